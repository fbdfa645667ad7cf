"""The guide's run, ours and as the guide has it with Trainer: minutes, loss and mean IoU, seed by seed, taking turns.

    python -m benchmarks.guide --dataset path/to/shards --checkpoint path/to/mit-b0 --steps 400 --seeds 42 43 44

Both start from the same encoder, train on the same rows and score the same held-out rows at the same steps. Each draws
its own new decoder, dropout and jitter, so scores agree within the noise of the seeds, not to the bit.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import measure, peers
from benchmarks.runs import train_once
from data.classes import ID2LABEL
from data.sources.choice import open_rows
from segformer import ImageProcessor
from train import configure

_COLUMNS = ["seed", "minutes", "peer_minutes", "ratio", "mean_iou", "peer_mean_iou", "eval_loss", "peer_eval_loss"]


def our_run(options: argparse.Namespace, seed: int, folder: str) -> dict[str, float]:
    """Train as ``train.py --recipe guide`` does."""
    config = configure(
        "guide",
        dataset=options.dataset,
        split="train",
        eval_split="validation",
        checkpoint=options.checkpoint,
        max_steps=options.steps,
        eval_steps=options.eval_steps,
        save_steps=options.eval_steps,
        seed=seed,
        device=options.device,
    )
    outcome = train_once(config)
    return {"mean_iou": outcome.mean_iou, "eval_loss": outcome.results["eval_loss"]}


def trainer_run(options: argparse.Namespace, seed: int, folder: str) -> dict[str, float]:
    """Train as the guide does, with datasets, the image processor, torchvision's jitter and Trainer."""
    from datasets import load_dataset
    from torchvision.transforms import ColorJitter

    files = {split: [str(rows.path) for rows in open_rows(options.dataset, split)] for split in ("train", "validation")}  # type: ignore[attr-defined]
    rows = load_dataset("parquet", data_files=files, cache_dir=f"{folder}/cache")
    ImageProcessor().save_pretrained(f"{folder}/processor")
    processor = peers.transformers_processor(f"{folder}/processor")
    jitter = ColorJitter(brightness=0.25, contrast=0.25, saturation=0.25, hue=0.1)

    def prepare(examples: dict[str, Any], train: bool) -> Any:
        images = [jitter(image.convert("RGB")) if train else image.convert("RGB") for image in examples["image"]]
        return processor(images, examples["annotation"])

    prepared = tuple(
        rows[split].with_transform(partial(prepare, train=split == "train")) for split in ("train", "validation")
    )
    length, on_cpu = (options.steps, options.eval_steps), options.device == "cpu"
    trainer = peers.guide_trainer(options.checkpoint, ID2LABEL, prepared, *length, f"{folder}/theirs", seed, on_cpu)
    trainer.train()
    final = next(entry for entry in reversed(trainer.state.log_history) if "eval_loss" in entry)
    return {"mean_iou": final["eval_mean_iou"], "eval_loss": final["eval_loss"]}


def timed(run: Any, options: argparse.Namespace, seed: int) -> dict[str, float]:
    """What a run reached, in an empty folder, and its minutes from the first import to the last file."""
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        reached: dict[str, float] = run(options, seed, folder)
        return {"minutes": (time.perf_counter() - started) / 60, **reached}


def main() -> None:
    """Run every seed on both sides."""
    parser = measure.flags(__doc__, "guide")
    parser.add_argument("--dataset", required=True, help="folder of parquet shards with train and validation")
    parser.add_argument("--checkpoint", default="nvidia/mit-b0")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--eval-steps", type=int, default=100, help="steps between evaluations, and checkpoints")
    parser.add_argument("--seeds", type=int, nargs="+", default=[42, 43, 44])
    options = parser.parse_args()
    card = measure.machine_card(torch.device(options.device)) | {"checkpoint": Path(options.checkpoint).name}
    rows = saved_rows(options, card)
    for seed in options.seeds:
        ours, theirs = timed(our_run, options, seed), timed(trainer_run, options, seed)
        row = {"seed": seed, "steps": options.steps, "commit": card["commit"], **ours}
        row |= {f"peer_{name}": value for name, value in theirs.items()}
        rows.append(row | {"ratio": theirs["minutes"] / ours["minutes"]})
        rows.sort(key=lambda row: row["seed"])
        measure.print_rows(rows, _COLUMNS)
    means = {name: float(np.mean([row[name] for row in rows])) for name in _COLUMNS[1:]}
    means["ratio"] = means["peer_minutes"] / means["minutes"]
    measure.report("guide", card, [*rows, {"seed": "mean", "steps": options.steps, **means}], _COLUMNS, options.save)


def saved_rows(options: argparse.Namespace, card: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows of other seeds that were kept before, so that one can be run again, or added, at another time.

    Only of as many steps, by the same versions and on the same machine; each row has its commit.
    """
    path = measure.RESULTS / f"guide-{options.save}.json"
    if not path.exists():
        return []
    held = json.loads(path.read_text(encoding="utf-8"))
    of_another_time = ("commit", "changed_since_commit", "date")
    if any(held["machine"].get(name) != value for name, value in card.items() if name not in of_another_time):
        raise SystemExit(f"{path} was measured on another machine or with other versions; --save another name")
    return [
        row for row in held["rows"] if row["seed"] not in ("mean", *options.seeds) and row["steps"] == options.steps
    ]


if __name__ == "__main__":
    main()
