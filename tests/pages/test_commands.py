"""python -m segformer.pages: what it writes, and what it says of folders that hold no run."""

import re
import shutil
from pathlib import Path

import programs
import pytest
from markup import Markup
from run_folders import write_run

from segformer.pages.__main__ import main
from segformer.pages.comparison import load_runs, render_comparison
from segformer.pages.record import RunRecord
from segformer.pages.report import build_report, render_report


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("runs") / "toy-1")


def test_the_command_writes_a_report_and_names_it(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = shutil.copytree(folder, tmp_path / "run")
    assert main([str(run)]) == 0
    assert capsys.readouterr().out.strip() == str(run / "report.html")
    assert (run / "report.html").read_text(encoding="utf-8") == render_report(RunRecord.load(run))


def test_the_command_refuses_a_folder_without_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path)]) == 1
    assert capsys.readouterr().err == f"error: {tmp_path} holds no run (no log.jsonl)\n"
    assert list(tmp_path.iterdir()) == []


def test_a_file_or_a_folder_that_is_not_there_is_refused_in_one_line(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for path, told in (
        (folder / "log.jsonl", f"error: {folder}/log.jsonl is a file; name the folder of the run it belongs to\n"),
        (folder / "nothing", f"error: there is no folder {folder}/nothing; name that of a run, such as runs/toy-1\n"),
        (folder / "samples", f"error: {folder}/samples holds no run (no log.jsonl); that is {folder}\n"),
    ):
        assert main([str(path)]) == 1
        assert capsys.readouterr().err == told


def test_the_command_that_a_report_names_writes_it_again(folder: Path) -> None:
    page = build_report(folder)
    command = Markup(page.read_text(encoding="utf-8")).one("footer").text
    named = re.search(r"python -m ([\w.]+) RUN", command)
    assert named
    page.unlink()
    assert programs.run("-m", named[1], folder).returncode == 0
    assert page.exists()


def test_several_runs_are_compared_in_one_page(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    other = shutil.copytree(folder, tmp_path / "toy-2")
    before = (folder / "report.html").read_bytes()
    assert main([str(folder), str(other)]) == 0
    assert capsys.readouterr().out == "comparison.html\n"
    assert (tmp_path / "comparison.html").read_text(encoding="utf-8") == render_comparison(load_runs([folder, other]))
    assert (folder / "report.html").read_bytes() == before


@pytest.mark.parametrize("count", [1, 2])
def test_a_page_goes_where_output_says(folder: Path, tmp_path: Path, count: int) -> None:
    folders = [shutil.copytree(folder, tmp_path / str(number)) for number in range(count)]
    assert main([*map(str, folders), "--output", str(tmp_path / "page.html")]) == 0
    assert Markup((tmp_path / "page.html").read_text(encoding="utf-8")).faults == []


def test_one_folder_without_a_run_among_several_is_named(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "page.html"
    for wrong, told in ((tmp_path, "holds no run (no log.jsonl)"), (folder, "is named twice")):
        assert main([str(folder), str(wrong), "--output", str(output)]) == 1
        error = capsys.readouterr().err
        assert error.startswith(f"error: {wrong} {told}")
        assert error.count("\n") == 1
    assert not output.exists()


def test_a_page_that_cannot_be_written_is_one_line(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(folder), "--output", str(tmp_path / "none" / "page.html")]) == 1
    assert capsys.readouterr().err.count("\n") == 1
