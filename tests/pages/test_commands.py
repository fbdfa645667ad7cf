"""python -m segformer.pages: what it writes, and what it says of folders that hold no run."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from markup import Markup
from run_folders import write_run

from segformer.pages.__main__ import main
from segformer.pages.record import RunRecord
from segformer.pages.report import build_report, render_report

ROOT = Path(__file__).parents[2]


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
    subprocess.run([sys.executable, "-m", named[1], folder], cwd=ROOT, check=True)
    assert page.exists()
