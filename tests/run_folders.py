"""Run folders as train.py leaves them, made in a moment: scenes of boxes that a pretended model learns to see."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from segformer.pages.samples import NO_CLASS, save_predictions, save_samples
from segformer.pictures import palette
from segformer.training.description import RunDescription

CLASS_NAMES = ["wall", "floor", "sky", "tree", "street lamp", "rug", "only predicted", "never there"]
NUM_LABELS = len(CLASS_NAMES)
HOSTILE = [
    "</script><script>alert(1)</script>",
    "<!-- <script>",
    "\"><img src=x onerror=alert(2)>' onmouseover='alert(3)",
    "{braces} {0} %s ${x}",
    "&amp; & &lt;",
    "🏔️ montagne \u202e\u0000\u2028",
    "W" * 300,
    "half a pair \ud800",
]


def final_scores(step: int, last_step: int) -> dict[str, Any]:
    """An evaluation of eight classes, the better the later; class 6 is only predicted, class 7 never there."""
    done = step / last_step
    ious = [done * (0.95 - 0.1 * k) for k in range(6)] + [0.0, math.nan]
    return {
        "eval_loss": 3.0 - 2.5 * done,
        "eval_mean_iou": float(np.nanmean(ious)),
        "eval_mean_accuracy": 0.9 * done,
        "eval_overall_accuracy": 0.2 + 0.7 * done,
        "eval_per_category_iou": [None if math.isnan(iou) else iou for iou in ious],
        "eval_per_category_accuracy": [0.5 + 0.05 * k for k in range(6)] + [None, None],
        "eval_per_category_share": [0.05, 0.3, 0.25, 0.2, 0.1, 0.0999, 0.0, 0.0],
        "eval_runtime": 2.0,
        "eval_samples_per_second": 40.0,
    }


def loss_at(step: int) -> float:
    """The loss that the log has for a step."""
    return round(0.4 + 4.0 * math.exp(-step / 200) + 0.05 * math.sin(step), 6)


def write_log(folder: Path, last_step: int, every: int = 10, eval_every: int = 100, finished: bool = True) -> None:
    """log.jsonl of a run with one entry every few steps."""
    entries: list[dict[str, Any]] = []
    for step in range(every, last_step + 1, every):
        place = {"step": step, "epoch": step / 100}
        rate = 6e-5 * (1 - step / (last_step + 1))
        entries.append({**place, "loss": loss_at(step), "grad_norm": 1 + step % 7, "learning_rate": rate})
        if step % eval_every == 0:
            entries.append({**place, **final_scores(step, last_step)})
    if finished:
        times = {"train_runtime": 222.0, "train_samples_per_second": 50.5, "train_steps_per_second": last_step / 222}
        entries.append({"step": last_step, "epoch": last_step / 100, **times})
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "log.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in entries), encoding="utf-8")


def scene(number: int, height: int = 48, width: int = 64) -> np.ndarray:
    """A truth of a few boxes, its uppermost rows unlabelled."""
    generator = np.random.default_rng(number)
    truth = np.full((height, width), 2, np.uint8)
    truth[height // 2 :] = 1
    for k in (0, 3, 4):
        y, x = generator.integers(0, height // 2), generator.integers(0, width // 2)
        truth[y : y + height // 3, x : x + width // 3] = k
    truth[:3] = NO_CLASS
    return truth


def prediction_at(truth: np.ndarray, step: int, last_step: int) -> np.ndarray:
    """What the pretended model sees: walls everywhere, and from the left ever more of the truth."""
    prediction = np.zeros_like(truth)
    known = round(truth.shape[1] * step / last_step)
    prediction[:, :known] = np.where(truth == NO_CLASS, 2, truth)[:, :known]
    return prediction


def write_samples(
    folder: Path, steps: list[int], last_step: int, count: int = 2, names: list[str] | None = None
) -> None:
    """The samples folder, as an evaluation at each of the steps fills it."""
    truths, colours = [scene(number) for number in range(count)], palette(NUM_LABELS)
    photos = [Image.fromarray(np.repeat(truth[..., None] * 25 + 40, 3, axis=-1)).resize((96, 96)) for truth in truths]
    save_samples(folder, names or [f"photo {number}" for number in range(count)], photos, truths, colours)
    for step in steps:
        save_predictions(folder, step, [prediction_at(truth, step, last_step) for truth in truths], colours)


def write_run(folder: Path, last_step: int = 1000, class_names: list[str] | None = None, count: int = 2) -> Path:
    """A whole run folder of a finished run."""
    write_log(folder, last_step)
    scores = {"step": last_step, **final_scores(last_step, last_step)}
    (folder / "eval_results.json").write_text(json.dumps(scores), encoding="utf-8")
    RunDescription(
        settings={"recipe": "toy", "checkpoint": None, "dataset": "toy", "eval_resolution": "processed", "amp": None},
        class_names=class_names or CLASS_NAMES,
        model="SegFormer-B0",
        parameters=3_752_694,
        train_images=800,
        eval_images=80,
        image_size=[48, 64],
        total_steps=last_step,
    ).save(folder)
    write_samples(folder, [last_step // 5, last_step // 2, last_step], last_step, count)
    return folder
