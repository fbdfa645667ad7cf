"""What a run says: before its first step, while it goes on, when it is only tried, and in the end."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest

from segformer.metrics import class_table
from segformer.training.history import duration, fitted
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
    assert lines[0] == "id,class,iou,accuracy,share"
    assert len(lines) == 151


def test_the_table_in_the_end_shows_what_occurs_and_of_many_the_best_and_the_worst() -> None:
    names = [f"class {k}" for k in range(40)]
    iou = [k / 40 for k in range(30)] + [0.0] * 3 + [math.nan] * 7
    share = [1 / 30] * 30 + [0.0] * 10
    lines = class_table(names, iou, [0.5] * 40, share, most=6).splitlines()
    assert [line.split("  ")[0] for line in lines[1:4]] == ["class 29", "class 28", "class 27"]
    assert lines[4] == "... 24 more ..."
    assert [line.split("  ")[0] for line in lines[5:8]] == ["class 2", "class 1", "class 0"]
    assert lines[8] == "3 classes are predicted that never occur in the labels, which counts as IoU 0"
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
