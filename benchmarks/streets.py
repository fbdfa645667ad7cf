"""Learning from photos of one's own in so many minutes: recipes of train.py, and the guide's settings under Trainer.

    python -m benchmarks.streets --dataset path/to/camvid --data reduce_labels=false ignore_index=11 --minutes 20

Every run starts from the same encoder, trains on the same rows and has the same minutes, evaluations on the way
included; its schedule ends with them. In the end each model is scored alike, at every label map's own size, by
``train.py --eval-only``; that takes no part in its time.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset

from benchmarks import measure, peers
from data.parts import open_parts
from segformer import ImageProcessor
from segformer.photos import decode_photo
from train import configure, train

_COLUMNS = ["run", "seed", "steps", "scored_mean_iou", "scored_boundary_iou", "scored_pixel_accuracy"]
_SCORES = {"mean_iou": "mean_iou", "boundary_iou": "mean_boundary_iou", "pixel_accuracy": "overall_accuracy"}
_EVALUATIONS = 4  # of a run by the guide, evenly spread
_UNENDING = 10**6  # steps, of which the minutes leave what they leave

# What is tried: the recipe, and what is changed of it. CamVid's photos are 480 x 360.
RUNS: dict[str, tuple[str, dict[str, Any]]] = {
    "own": ("own", {"num_train_epochs": 10_000, "image_size": "360x480"}),
    "guide": ("guide", {"max_steps": _UNENDING}),
}


def parse_arguments() -> argparse.Namespace:
    """What to run, and for how long."""
    parser = measure.flags(__doc__, "streets")
    parser.add_argument("--dataset", required=True, help="folder with a training and a validation part")
    parser.add_argument(
        "--data", nargs="+", default=[], metavar="NAME=VALUE", help="what train.py has to be told of its labels"
    )
    parser.add_argument("--checkpoint", default="nvidia/mit-b0")
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--runs", nargs="+", choices=(*RUNS, "trainer"), default=[*RUNS, "trainer"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[42])
    parser.add_argument(
        "--set", nargs="+", default=[], metavar="NAME=VALUE", help="settings of train.py to change in its runs"
    )
    return parser.parse_args()


def data_of(options: argparse.Namespace) -> dict[str, Any]:
    """The settings that name the data, the same for every run."""
    told = dict(map(_changed, options.data))
    return {"dataset": options.dataset, "split": "train", "eval_split": "validation", "device": options.device, **told}


def our_run(options: argparse.Namespace, name: str, seed: int, folder: Path) -> tuple[Path, list[dict[str, float]]]:
    """Train by a recipe; the folder of the model, and its scores on the way."""
    recipe, changes = RUNS[name]
    changes = {**changes, **dict(map(_changed, options.set))}
    if recipe == "guide":
        every = _steps_between_evaluations(options, partial(_seconds_of_our_step, options, recipe, seed))
        changes |= {"eval_steps": every, "save_steps": every}
    config = configure(
        recipe,
        **data_of(options),
        **changes,
        checkpoint=options.checkpoint,
        max_train_minutes=options.minutes,
        seed=seed,
        output_dir=str(folder / "ours"),
    )
    output = train(config)
    log = map(json.loads, (output / "log.jsonl").read_text(encoding="utf-8").splitlines())
    return output, [_point(entry) for entry in log if "eval_mean_iou" in entry]


def _changed(text: str) -> tuple[str, Any]:
    name, _, value = text.partition("=")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


def _point(entry: dict[str, Any]) -> dict[str, float]:
    return {"step": entry["step"], "mean_iou": entry["eval_mean_iou"]}


def _seconds_of_our_step(options: argparse.Namespace, recipe: str, seed: int) -> float:
    """What a step takes, from a run of a few."""
    with tempfile.TemporaryDirectory() as folder:
        steps = {"max_steps": 12, "eval_steps": 12, "save_steps": 12, "output_dir": f"{folder}/tried"}
        config = configure(recipe, **data_of(options), **steps, checkpoint=options.checkpoint, seed=seed)
        started = time.perf_counter()
        output = train(config)
        seconds = time.perf_counter() - started
        results = json.loads((output / "eval_results.json").read_text(encoding="utf-8"))
        return (seconds - results["eval_runtime"]) / 12


def _steps_between_evaluations(options: argparse.Namespace, seconds_of_step: Any) -> int:
    return max(1, int(60 * options.minutes / _EVALUATIONS / seconds_of_step()))


class _Rows(Dataset[dict[str, Any]]):
    """Rows as transformers' processor makes them, with the guide's jitter on those to train on."""

    def __init__(self, rows: Any, processor: Any, jitter: Any) -> None:
        self.rows, self.processor, self.jitter = rows, processor, jitter

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, row: int) -> dict[str, Any]:
        photo, label_map = self.rows[row]
        made = self.processor(self.jitter(photo) if self.jitter else photo, label_map, return_tensors="pt")
        return {name: values[0] for name, values in made.items()}


def trainer_run(options: argparse.Namespace, seed: int, folder: Path) -> tuple[Path, list[dict[str, float]]]:
    """Train with Trainer and the guide's settings, for as many steps as the minutes have room for."""
    from torchvision.transforms import ColorJitter

    parts = open_parts(configure("guide", **data_of(options)), decode_photo)
    ImageProcessor(do_reduce_labels=parts.labels.rule.reduce_labels).save_pretrained(folder / "processor")
    processor = peers.transformers_processor(folder / "processor")
    jitter = ColorJitter(brightness=0.25, contrast=0.25, saturation=0.25, hue=0.1)
    id2label = dict(parts.labels.id2label)

    rows = _Rows(parts.train, processor, jitter), _Rows(parts.evaluation, processor, None)

    def run(steps: int, every: int, output: Path) -> Any:
        on_cpu = options.device == "cpu"
        trainer = peers.guide_trainer(options.checkpoint, id2label, rows, steps, every, output, seed, on_cpu)
        trainer.train()
        return trainer

    started = time.perf_counter()
    tried = run(12, 12, folder / "tried")
    evaluation = next(e["eval_runtime"] for e in tried.state.log_history if "eval_runtime" in e)
    seconds_of_step = (time.perf_counter() - started - evaluation) / 12
    steps = max(_EVALUATIONS, int((60 * options.minutes - _EVALUATIONS * evaluation) / seconds_of_step))
    trainer = run(steps, max(1, steps // _EVALUATIONS), folder / "theirs")
    trainer.save_model(folder / "model")
    ImageProcessor(do_reduce_labels=parts.labels.rule.reduce_labels).save_pretrained(folder / "model")
    scores = [_point(entry) for entry in trainer.state.log_history if "eval_mean_iou" in entry]
    return folder / "model", scores


def score(options: argparse.Namespace, model: Path, folder: Path) -> dict[str, Any]:
    """A model's scores at every label map's own size."""
    config = configure(
        "guide",
        **data_of(options),
        checkpoint=str(model),
        eval_only=True,
        eval_resolution="original",
        output_dir=str(folder / "scored"),
    )
    results: dict[str, Any] = json.loads((train(config) / "eval_results.json").read_text(encoding="utf-8"))
    return results


def main() -> None:
    """Every run with every seed, saved after each."""
    options = parse_arguments()
    card = measure.machine_card(torch.device(options.device)) | {"checkpoint": Path(options.checkpoint).name}
    rows: list[dict[str, Any]] = []
    for seed in options.seeds:
        for name in options.runs:
            with tempfile.TemporaryDirectory() as place:
                folder, started = Path(place), time.perf_counter()
                if name == "trainer":
                    model, curve = trainer_run(options, seed, folder)
                else:
                    model, curve = our_run(options, name, seed, folder)
                minutes = (time.perf_counter() - started) / 60
                results = score(options, model, folder)
            steps = curve[-1]["step"]
            for point in curve:  # of which nobody noted the time: steps take equally long
                point["minutes"] = round(options.minutes * point["step"] / steps, 2)
            row = {"run": name, "seed": seed, "steps": steps, "minutes_in_all": minutes, "changed": options.set}
            row |= {f"scored_{each}": results[f"eval_{key}"] for each, key in _SCORES.items()}
            row |= {"per_category_iou": results["eval_per_category_iou"], "curve": curve}
            rows.append(row)
            measure.report("streets", card, rows, _COLUMNS, options.save)


if __name__ == "__main__":
    main()
