"""What a run says: before its first step, while it goes on, when it is only tried, and in the end."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from segformer.metrics import class_table
from segformer.training.description import RunDescription
from segformer.training.history import Plan, duration, fitted
from segformer.training.summary import start_summary
from train import configure, train


@pytest.fixture
def settings(small_shards: Path, small_checkpoint: Path, tmp_path: Path) -> dict[str, Any]:
    """Settings of a run of a second."""
    data = {"dataset": str(small_shards), "split": "train", "eval_split": "validation", "device": "cpu"}
    steps = {"max_steps": 2, "eval_steps": 2, "save_steps": 2}
    return {**data, **steps, "checkpoint": str(small_checkpoint), "output_dir": str(tmp_path / "run")}


def test_a_run_says_what_it_understood_in_lines_of_80_columns(
    settings: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    train(configure("guide", **settings))
    said = capsys.readouterr().out.partition("\nstep ")[0]
    names = [line.split()[0] for line in said.splitlines() if not line.startswith(" ")]
    assert names == ["device", "model", "data", "rows", "photos", "steps", "schedule", "folder"]
    assert "0 is other, ignored, and k is class k - 1" in " ".join(said.split())
    assert "10 photos to train on, 5 to score (validation)" in said
    assert all(len(line) <= 80 for line in said.splitlines() if "/" not in line)  # a path is never broken


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({}, ""),
        ({"loss": "focal", "focal_gamma": 1.5}, "focal loss, gamma 1.5"),
        ({"loss": "ohem"}, "ohem"),
        (
            {"class_weights": "balanced", "dice_weight": 0.5},
            "cross-entropy, class weights balanced, 0.5 times 1 - Dice on",
        ),
        ({"class_weights": "1,2.5,3"}, "cross-entropy, class weights 1, 2.5, 3"),
        ({"label_smoothing": 0.1}, "cross-entropy, label smoothing 0.1"),
        ({"loss_mean": "all", "dataloader_drop_last": True}, "cross-entropy, the mean over all pixels, ignored ones"),
    ],
    ids=str,
)
def test_a_loss_that_is_not_plain_cross_entropy_is_said(settings: dict[str, Any], said: str) -> None:
    about = RunDescription(image_size=[32, 32], understood=["data"])
    config = configure("guide", **settings)
    told = start_summary(config, about, Plan.of(config, 10), torch.device("cpu"), 1)
    lines = [line for line in told.splitlines() if line.startswith("loss")]
    if said:
        assert " ".join(lines[0].split()).startswith(f"loss {said}")
    else:
        assert lines == []


@pytest.mark.parametrize(("steps", "is_told"), [(15, True), (100, True), (101, False)])
def test_a_warm_up_that_is_longer_than_the_run_is_told_of(steps: int, is_told: bool) -> None:
    about = RunDescription(image_size=[32, 32], understood=["data"])
    config = configure("guide", warmup_steps=100, max_steps=steps)
    told = " ".join(start_summary(config, about, Plan.of(config, 10), torch.device("cpu"), 1).split())
    assert (f"which a run of {steps} never comes to the end of: lower --warmup-steps" in told) == is_told


SEVERAL = "epochs|rows|photos|images|steps|classes|colours|threads|parameters|evaluations"
ONE_OF_SEVERAL = re.compile(rf"(?<![\d,.])1 ({SEVERAL})\b")


def test_what_there_is_one_of_is_not_told_as_several(
    settings: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one = {"split": "train[:1]", "eval_split": "validation[:1]", "num_train_epochs": 1, "max_steps": -1}
    one |= {"per_device_train_batch_size": 1, "warmup_steps": 1, "eval_steps": 1, "save_steps": 1}
    folder = train(configure("guide", **{**settings, **one}))
    told = [
        capsys.readouterr().out,
        *((folder / name).read_text() for name in ("report.html", "README.md", "run.json")),
    ]
    assert "1 photo to train on, 1 to score" in told[0]
    assert "1 of 1 photo, 1 epoch of 1" in " ".join(told[0].split())
    assert "1 evaluation as a table" in told[1]
    for text in told:
        assert not ONE_OF_SEVERAL.search(" ".join(re.sub(r"<[^>]*>", " ", text).split()))


def test_a_run_that_is_piped_has_a_plain_line_and_no_nan_before_there_is_a_score(
    settings: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    train(configure("guide", **settings))
    (line,) = re.findall(r"^step +1 of 2, .*$", capsys.readouterr().out, re.MULTILINE)
    assert re.search(r"loss \d\.\d+, [\d.]+ images/s", line)
    assert "nan" not in line
    assert len(line) <= 80


def test_a_dry_run_tries_a_step_and_a_batch_and_writes_nothing(
    settings: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    train(configure("guide", **settings, dry_run=True))
    last = capsys.readouterr().out.splitlines()[-1]
    assert re.match(r"a step takes \d+ ms \(loss \d\.\d+\): .* for 2, and .* for each evaluation; .* MiB", last)
    assert list(tmp_path.iterdir()) == []


def test_everything_that_is_written_says_where_it_comes_from(settings: dict[str, Any]) -> None:
    folder = train(configure("guide", **settings))
    told = [json.loads((folder / name).read_text())["provenance"] for name in ("run.json", "eval_results.json")]
    assert told[0] == told[1]
    assert len(told[0]["weights_sha256"]) == 64
    assert told[0]["checkpoint"] == Path(settings["checkpoint"]).name
    assert told[0]["versions"]["torch"]
    assert told[0]["weights_sha256"][:16] in (folder / "report.html").read_text()


def test_the_scores_of_every_class_stand_in_a_table_for_other_programs(settings: dict[str, Any]) -> None:
    folder = train(configure("guide", **settings))
    lines = (folder / "classes.csv").read_text().splitlines()
    assert lines[0] == "id,class,iou,accuracy,share,boundary_iou"
    assert len(lines) == 151


def test_the_table_in_the_end_shows_what_occurs_and_of_many_the_best_and_the_worst() -> None:
    names = [f"class {k}" for k in range(40)]
    iou = [k / 40 for k in range(30)] + [0.0] * 3 + [math.nan] * 7
    share = [1 / 30] * 30 + [0.0] * 10
    lines = class_table(names, iou, [0.5] * 40, share, most=6).splitlines()
    assert [line.split("  ")[0] for line in lines[1:4]] == ["class 29", "class 28", "class 27"]
    assert lines[4] == "... 24 more ..."
    assert [line.split("  ")[0] for line in lines[5:8]] == ["class 2", "class 1", "class 0"]
    assert lines[8] == "3 classes that never occur in the labels are predicted, at IoU 0"
    assert "nan" not in "\n".join(lines)


def test_a_line_gives_way_from_its_end() -> None:
    parts = ["loss 0.123", "mean IoU 0.456", "12.3 images/s"]
    assert fitted(parts, 80) == "loss 0.123, mean IoU 0.456, 12.3 images/s"
    assert fitted(parts, 27) == "loss 0.123, mean IoU 0.456"
    assert fitted(parts, 3) == "loss 0.123"


@pytest.mark.parametrize(
    ("seconds", "said"), [(4.2, "4 s"), (100, "2 min"), (3600, "1 h 00 min"), (9300, "2 h 35 min")]
)
def test_times_are_said_as_people_say_them(seconds: float, said: str) -> None:
    assert duration(seconds) == said
