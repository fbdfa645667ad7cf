"""How far runs of the same settings come apart: repeated, on other numbers of threads, split, compiled, in bfloat16.

    python -m benchmarks.repeatability --dataset path/to/shards --checkpoint path/to/mit-b0

Every run starts from the same weights and sees the same rows in the same order. What is told is the largest relative
difference of a step's loss from that of the first run, and the difference of the last mean IoU.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks import measure
from benchmarks.runs import of_steps, train_once
from train import configure

_COLUMNS = ["run", "same_weights", "loss_difference", "mean_iou_difference"]


def main() -> None:
    """Run the first, then each of the others, and compare."""
    parser = measure.flags(__doc__, "repeatability")
    parser.add_argument("--dataset", required=True, help="folder of parquet shards with train and validation")
    parser.add_argument("--checkpoint", default="nvidia/mit-b0")
    parser.add_argument("--steps", type=int, default=40)
    options = parser.parse_args()
    on_cuda = torch.device(options.device).type == "cuda"
    where = {name: getattr(options, name) for name in ("dataset", "checkpoint", "device")}
    config = of_steps(configure("guide", split="train", eval_split="validation", **where), options.steps, amp="off")
    variants: dict[str, dict[str, Any]] = {
        "repeated": {},
        "two workers": {"dataloader_num_workers": 2},
        "one thread": {"num_threads": 1},
        "two passes of one image": {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 2},
        "compiled": {"compile": True},
        "bfloat16": {"amp": "bf16"},
    }
    if on_cuda:
        variants = {"deterministic": {"deterministic": True}, **variants}
    first = train_once(replace(config, deterministic=on_cuda))
    rows: list[dict[str, Any]] = []
    for name, settings in variants.items():
        threads = settings.pop("num_threads", None)
        other = train_once(replace(config, **settings), threads)
        differences = [abs(a - b) / abs(a) for a, b in zip(first.losses, other.losses, strict=True)]
        row = {"run": name, "steps": options.steps, "same_weights": other.weights == first.weights}
        row |= {"loss_difference": max(differences)}
        rows.append(row | {"mean_iou_difference": abs(other.mean_iou - first.mean_iou)})
        measure.print_rows(rows, _COLUMNS)
    card = measure.machine_card(torch.device(options.device)) | {"checkpoint": Path(options.checkpoint).name}
    measure.report("repeatability", card, rows, _COLUMNS, options.save)


if __name__ == "__main__":
    main()
