"""A run of before the code was laid out anew: it opens, is scored, goes on to where it went, and is told of again.

tests/fixtures/earlier_run was written by the code of that time: data, the weights to start from, and a run of 4 steps,
without dropout before the classifier, whose draws are others since.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import programs
import pytest
from PIL import Image
from programs import ROOT
from safetensors.torch import load_file

from segformer import Segmenter

EARLIER = ROOT / "tests/fixtures/earlier_run"
FLAGS = (
    "--recipe guide --split train --test-size 0.4 --num-labels 3 --no-reduce-labels --learning-rate 1e-3 --device cpu"
)
STEPS = "--classifier-dropout 0 --max-steps 4 --eval-steps 2 --save-steps 2"
# What shifts all pixels of a channel alike is taken out again by BatchNorm: their gradients are rounding, which Adam
# blows up to steps of the learning rate, in a direction of each machine's own.
WITHOUT_EFFECT = re.compile(r"decode_head\.linear_c\.\d\.proj\.bias|segformer\.encoder\.layer_norm\.3\.bias")


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Where everything lies now: dataset/, start/ and run/."""
    return shutil.copytree(EARLIER, tmp_path / "moved")


def python(place: Path, *words: str | Path) -> str:
    """What a command says that has to end well, started where the run lies."""
    done = programs.run(*words, folder=place, environment={**os.environ, "PYTHONPATH": str(ROOT)})
    assert done.returncode == 0, done.stderr
    return done.stdout


def furthest(folder: Path, other: Path) -> float:
    """The greatest difference between two weights of the same place that matter."""
    ours, theirs = (load_file(each / "model.safetensors") for each in (folder, other))
    assert ours.keys() == theirs.keys()
    compared = [name for name in ours if not WITHOUT_EFFECT.fullmatch(name)]
    return max(float((ours[name].double() - theirs[name].double()).abs().max()) for name in compared)


def numbers_of(folder: Path, name: str) -> list[float]:
    """What a run's log says under a name, in order."""
    entries = map(json.loads, (folder / "log.jsonl").read_text(encoding="utf-8").splitlines())
    return [entry[name] for entry in entries if name in entry]


@pytest.mark.parametrize("folder", ["run", "run/checkpoint-2", "run/checkpoint-4"])
def test_a_run_and_its_checkpoints_open(folder: str) -> None:
    segmenter = Segmenter.from_pretrained(EARLIER / folder, device="cpu")
    assert segmenter.model.config.id2label == {0: "LABEL_0", 1: "LABEL_1", 2: "LABEL_2"}
    with Image.open(EARLIER / "dataset/images/scene_0.png") as photo:
        assert segmenter.label_map(photo).shape == (photo.height, photo.width)


def test_it_is_scored_as_it_was(place: Path) -> None:
    python(place, ROOT / "train.py", "--eval-only", "--checkpoint", "run", "--output-dir", "score", "--device", "cpu")
    now, then = (json.loads((place / folder / "eval_results.json").read_text()) for folder in ("score", "run"))
    for name in ("eval_loss", "eval_mean_iou", "eval_mean_accuracy", "eval_overall_accuracy", "eval_per_category_iou"):
        assert now[name] == pytest.approx(then[name], rel=1e-5)


def go_on_with_the_flags_of_before(place: Path) -> None:
    paths = ["--dataset", place / "dataset", "--checkpoint", "start", "--output-dir", "run"]
    resume = ["--resume-from-checkpoint", "run/checkpoint-2"]
    python(place, ROOT / "train.py", *FLAGS.split(), *STEPS.split(), *paths, *resume)


def go_on_with_the_folder_alone(place: Path) -> None:
    shutil.rmtree(place / "run/checkpoint-4")
    python(place, ROOT / "train.py", "--resume-from-checkpoint", "run")


@pytest.mark.parametrize("go_on", [go_on_with_the_flags_of_before, go_on_with_the_folder_alone])
def test_it_goes_on_from_its_middle_to_the_weights_and_losses_that_it_had(
    go_on: Callable[[Path], None], place: Path
) -> None:
    (place / "run/model.safetensors").unlink()
    go_on(place)
    then = EARLIER / "run"
    assert furthest(then / "checkpoint-2", then / "checkpoint-4") > 1e-4  # or there would be nothing to see
    assert furthest(place / "run/checkpoint-4", then / "checkpoint-4") < 1e-5
    assert furthest(place / "run", then) < 1e-5
    for name in ("step", "learning_rate", "loss", "grad_norm", "eval_loss", "eval_mean_iou"):
        assert numbers_of(place / "run", name) == pytest.approx(numbers_of(then, name), rel=1e-5)


def test_its_report_is_made_again(place: Path) -> None:
    page = place / "run/report.html"
    page.unlink(missing_ok=True)
    python(place, "-m", "segformer.pages", "run")
    told = page.read_text(encoding="utf-8")
    (score,) = numbers_of(place / "run", "eval_mean_iou")[-1:]
    for held in (f"{score:.4f}", *("LABEL_0", "LABEL_1", "LABEL_2"), *("scene_4", "scene_2"), "classifier_dropout"):
        assert held in told
