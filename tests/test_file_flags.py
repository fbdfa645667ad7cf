"""Flags that take a file or a folder, given another thing: always one line that says which and what to give instead."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import infer
import train
from data.class_files import read_classes

BINARY = bytes(range(256)) * 4
# Every flag of the two commands that names something to read, and what each takes for none of it.
OF_TRAIN = ("--label-names", "--class-weights", "--config", "--resume-from-checkpoint", "--checkpoint", "--dataset")
OF_INFER = ("--annotations", "--checkpoint")
MISTAKES = ("folder", "empty.txt", "empty.json", "binary.txt", "binary.json", "binary.safetensors", "gone.txt")


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to start commands in, with a small dataset and all that can be named by mistake."""
    for kind in ("images", "masks"):
        (tmp_path / "data" / kind).mkdir(parents=True)
    for number in range(4):
        values = np.random.default_rng(number).integers(0, 3, (40, 50)).astype(np.uint8)
        Image.fromarray(np.stack([values * 80] * 3, -1)).save(tmp_path / f"data/images/{number}.png")
        Image.fromarray(values).save(tmp_path / f"data/masks/{number}.png")
    (tmp_path / "names.txt").write_text("sky\nroad\ncar\n")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/class_dict.csv").write_text("name,r,g,b\na,0,0,0\nb,1,1,1\n")
    for mistake in MISTAKES:
        if mistake.startswith(("empty", "binary")):
            (tmp_path / mistake).write_bytes(BINARY if mistake.startswith("binary") else b"")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # which was read when it was imported
    return tmp_path


def refusal(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, command: str, *words: str) -> str:
    """What a command says last that has to fail."""
    monkeypatch.setattr(sys, "argv", [f"{command}.py", *words])
    try:
        status = {"train": train.main, "infer": infer.main}[command]()
    except SystemExit as end:
        status = end.code
    assert status in (1, 2)
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.startswith("error: ")
    assert not re.search(r"Errno|Traceback|codec", said)
    return said


@pytest.mark.parametrize("mistake", MISTAKES)
@pytest.mark.parametrize("flag", OF_TRAIN)
def test_train_says_what_it_was_given_and_what_to_give(
    flag: str,
    mistake: str,
    place: Path,
    small_checkpoint: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    usual = ["--dataset", "data", "--checkpoint", str(small_checkpoint), "--label-names", "names.txt", "--device"]
    words = [*usual, "cpu", "--no-reduce-labels", "--max-steps", "1", "--dry-run", flag, mistake]
    said = refusal(capsys, monkeypatch, "train", *words)
    assert mistake in said


@pytest.mark.parametrize("mistake", MISTAKES)
@pytest.mark.parametrize("flag", OF_INFER)
def test_infer_says_what_it_was_given_and_what_to_give(
    flag: str,
    mistake: str,
    place: Path,
    small_checkpoint: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    words = ["data/images", "--checkpoint", str(small_checkpoint), "--device", "cpu", flag, mistake]
    assert mistake in refusal(capsys, monkeypatch, "infer", *words)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--label-names folder", "--label-names folder is a folder; name a file of classes, as folder/class_dict.csv"),
        ("--label-names data", "--label-names data is a folder; name a file of classes"),
        ("--label-names gone.txt", "there is no file gone.txt"),
        ("--label-names empty.txt", "label names in empty.txt: 0 names; there must be 1 to 255"),
        ("--label-names binary.txt", "binary.txt is not UTF-8 text"),
        ("--class-weights folder", "class_weights is 'folder', a folder; it must be none, balanced, numbers"),
        ("--class-weights empty.txt", "class_weights is empty.txt, which holds nothing; it must hold a number for"),
        ("--class-weights names.txt", "class_weights is names.txt, which holds 'sky'; it must hold a number for"),
        ("--config folder", "there is no file folder/run.json; --config takes the run.json of a run"),
        ("--config gone.json", "there is no file gone.json; --config takes the run.json of a run"),
        ("--resume-from-checkpoint names.txt", "names.txt is a file; --resume-from-checkpoint takes a run's folder"),
    ],
)
def test_the_mistake_and_the_cure_are_named(
    words: str, said: str, place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    usual = ["--dataset", "data", "--checkpoint", "none", "--device", "cpu", "--no-reduce-labels", "--dry-run"]
    assert said in refusal(capsys, monkeypatch, "train", *usual, *words.split())


def test_a_text_with_a_zero_byte_is_no_list_of_names(tmp_path: Path) -> None:
    (tmp_path / "wide.txt").write_bytes("sky\nroad\n".encode("utf-16-le"))
    with pytest.raises(ValueError, match=r"wide.txt is no text \(byte 1 is 0\)"):
        read_classes(tmp_path / "wide.txt")
