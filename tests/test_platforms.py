"""Windows and macOS, as far as another system can tell: what they lack and forbid, and how workers start."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path, PureWindowsPath
from typing import Any

import programs
import pytest
from PIL import Image

from segformer.files import flush
from segformer.predictions import output_names, shown_path
from segformer.training.output import RunLock

REPOSITORY = Path(__file__).resolve().parents[1]


def elsewhere(folder: Path, *words: object) -> str:
    """What a command says that runs as if on another system, whose console knows no UTF-8."""
    done = subprocess.run(
        [sys.executable, "-W", "error::RuntimeWarning", str(REPOSITORY / "tests/elsewhere.py"), *map(str, words)],
        capture_output=True,
        cwd=folder,
        env={**os.environ, "PYTHONUTF8": "0", "PYTHONIOENCODING": "cp1252", "XDG_CACHE_HOME": str(folder / "cache")},
        timeout=300,
        check=False,
    )
    said = done.stdout.decode("cp1252") + done.stderr.decode("cp1252")
    assert done.returncode == 0, said
    return said


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("elsewhere")


@pytest.fixture(scope="module")
def settings(small_shards: Path, small_checkpoint: Path) -> list[object]:
    told = {
        "recipe": "guide",
        "dataset": small_shards,
        "checkpoint": small_checkpoint,
        "image-size": 32,
        "max-steps": 4,
        "eval-steps": 4,
        "save-steps": 2,
        "save-total-limit": 1,
        "output-dir": "run",
    }
    return [word for name, value in told.items() for word in (f"--{name}", value)]


@pytest.fixture(scope="module")
def trained(folder: Path, settings: list[object]) -> tuple[Path, str]:
    """The folder of a run with spawned workers, and what it said."""
    said = elsewhere(folder, "train", *settings, "--dataloader-num-workers", 1)
    return folder / "run", said


linux = pytest.mark.skipif(sys.platform != "linux", reason="pretends on Linux to be elsewhere")


@linux
def test_a_run_elsewhere_with_spawned_workers_is_the_run_here(
    trained: tuple[Path, str], settings: list[object], tmp_path: Path
) -> None:
    words = [*map(str, settings), "--dataloader-num-workers", "0"]
    done = programs.run(REPOSITORY / "train.py", *words, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (trained[0] / "model.safetensors").read_bytes() == (tmp_path / "run/model.safetensors").read_bytes()


@linux
def test_a_run_elsewhere_says_that_nothing_locks_its_folder_and_counts_no_memory(trained: tuple[Path, str]) -> None:
    folder, said = trained
    assert "run cannot be locked" in said
    assert not (folder / ".lock").exists()
    entries = [json.loads(line) for line in (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [entry["peak_memory_mib"] for entry in entries if "peak_memory_mib" in entry] == [None]


@linux
def test_checkpoints_elsewhere_are_flushed_rotated_and_gone_on_from(
    trained: tuple[Path, str], settings: list[object], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(trained[0], run)
    assert [path.name for path in run.glob("*checkpoint-*")] == ["checkpoint-4"]
    cut_off = [*settings, "--max-steps", 2, "--overwrite-output-dir"]
    elsewhere(tmp_path, "train", *cut_off)
    said = elsewhere(tmp_path, "train", *settings, "--resume-from-checkpoint", "last")
    assert "resuming from" in said
    assert "stays, for it cannot be deleted" not in said
    assert {path.name for path in run.glob("*checkpoint-*")} == {
        "checkpoint-2",
        "checkpoint-4",
    }  # the best and the last


@linux
def test_photos_are_segmented_elsewhere(trained: tuple[Path, str], tmp_path: Path) -> None:
    for name in ("사진.png", "b.png"):
        Image.new("RGB", (40, 30), "red").save(tmp_path / name)
    words = ["infer", tmp_path, "--checkpoint", trained[0], "--html", tmp_path / "page.html", "--masks"]
    for _ in range(2):  # the second replaces what the first wrote
        said = elsewhere(tmp_path, *words)
    assert "2 photos in predictions" in said
    assert (tmp_path / "predictions/사진_labels.png").is_file()


@pytest.mark.parametrize(
    ("photo", "name"),
    [
        ("2024-01-01 12:30:45.jpg", "2024-01-01 12_30_45"),
        ("what?.png", "what_"),
        ("a\\b.png", "a_b"),
        ("line\nbreak.png", "line_break"),
        ("con.2024.png", "con_.2024"),
        ("NUL .png", "NUL_ "),
        ("lpt1.png", "lpt1_"),
        ("context.png", "context"),
        ("icon.png", "icon"),
        ("com10.png", "com10"),
    ],
)
def test_no_result_has_a_name_that_windows_forbids(photo: str, name: str) -> None:
    assert output_names([Path(photo)]) == {Path(photo): name}


def test_photos_whose_names_windows_makes_one_are_numbered() -> None:
    assert list(output_names([Path("a:b.png"), Path("a?b.png")]).values()) == ["a_b_1", "a_b_2"]


def test_segments_name_photos_as_every_system_reads_them() -> None:
    assert shown_path(PureWindowsPath(r"trips\2024\a.jpg")) == "trips/2024/a.jpg"


def test_a_file_system_without_locks_is_warned_of_and_not_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    fcntl = pytest.importorskip("fcntl")

    def refuse(*_: Any) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "lockf", refuse)
    with RunLock(tmp_path):
        assert "cannot be locked" in caplog.text
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_no_disk_keeps_is_told_of_but_a_folder_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    (tmp_path / "a").touch()
    monkeypatch.setattr(os, "fsync", refuse)
    flush(tmp_path)
    with pytest.raises(OSError, match="Input/output error"):
        flush(tmp_path / "a")
