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
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset

from benchmarks import measure, peers
from data.parts import open_parts
from segformer import ImageProcessor
from segformer.photos import decode_photo
from train import configure, train

_COLUMNS = ["run", "seed", "steps", "minutes", "scored_mean_iou", "scored_boundary_iou", "scored_pixel_accuracy"]
_SCORES = {"mean_iou": "mean_iou", "boundary_iou": "mean_boundary_iou", "pixel_accuracy": "overall_accuracy"}
_EVALUATIONS = 4  # of a run by the guide, evenly spread
_UNENDING = 10**6  # steps, of which the minutes leave what they leave
_TRIED_STEPS = 12  # to see how long one takes

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


def our_run(options: argparse.Namespace, name: str, seed: int, folder: Path) -> tuple[Path, list[dict[str, Any]]]:
    """Train by a recipe; the folder of the model, and the entries of its log."""
    recipe, changes = RUNS[name]
    common = data_of(options) | {"checkpoint": options.checkpoint, "seed": seed}
    common |= changes | dict(map(_changed, options.set))
    if recipe == "guide":
        short = {"max_steps": _TRIED_STEPS, "eval_steps": _TRIED_STEPS, "save_steps": _TRIED_STEPS}
        tried = train(configure(recipe, **(common | short), output_dir=str(folder / "tried")))
        every = max(1, int(60 * options.minutes / _EVALUATIONS / _seconds_of_step(_log_of(tried))))
        common |= {"eval_steps": every, "save_steps": every}
    config = configure(recipe, **common, max_train_minutes=options.minutes, output_dir=str(folder / "ours"))
    output = train(config)
    return output, _log_of(output)


def _changed(text: str) -> tuple[str, Any]:
    name, _, value = text.partition("=")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


def _log_of(output: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (output / "log.jsonl").read_text(encoding="utf-8").splitlines()]


def _of_log(log: list[dict[str, Any]], key: str) -> float:
    """A number that stands once in a log."""
    return next(float(entry[key]) for entry in log if key in entry)


def _seconds_of_step(log: list[dict[str, Any]]) -> float:
    """What a step takes without its evaluation, from the log of a run of a few."""
    return (_of_log(log, "train_runtime") - _of_log(log, "eval_runtime")) / _TRIED_STEPS


def curve_of(log: list[dict[str, Any]]) -> list[dict[str, float]]:
    """The scores of a run over its steps and minutes; when each was found nobody notes, and steps take equally long."""
    minutes = _of_log(log, "train_runtime") / 60
    scored = [entry for entry in log if "eval_mean_iou" in entry]
    steps = scored[-1]["step"]
    return [
        {
            "step": entry["step"],
            "mean_iou": entry["eval_mean_iou"],
            "minutes": round(minutes * entry["step"] / steps, 2),
        }
        for entry in scored
    ]


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


def trainer_run(options: argparse.Namespace, seed: int, folder: Path) -> tuple[Path, list[dict[str, Any]]]:
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

    tried = run(_TRIED_STEPS, _TRIED_STEPS, folder / "tried").state.log_history
    seconds = 60 * options.minutes / _EVALUATIONS - _of_log(tried, "eval_runtime")
    every = max(1, int(seconds / _seconds_of_step(tried)))
    trainer = run(_EVALUATIONS * every, every, folder / "theirs")
    trainer.save_model(folder / "model")
    ImageProcessor(do_reduce_labels=parts.labels.rule.reduce_labels).save_pretrained(folder / "model")
    return folder / "model", trainer.state.log_history


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
                folder = Path(place)
                if name == "trainer":
                    model, log = trainer_run(options, seed, folder)
                else:
                    model, log = our_run(options, name, seed, folder)
                results = score(options, model, folder)
            curve = curve_of(log)
            row = {"run": name, "seed": seed, "steps": curve[-1]["step"], "minutes": curve[-1]["minutes"]}
            row |= {"changed": options.set if name in RUNS else []}
            row |= {f"scored_{each}": results[f"eval_{key}"] for each, key in _SCORES.items()}
            row |= {"per_category_iou": results["eval_per_category_iou"], "curve": curve}
            rows.append(row)
            measure.report("streets", card, rows, _COLUMNS, options.save)


if __name__ == "__main__":
    main()
