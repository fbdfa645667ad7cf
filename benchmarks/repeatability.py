"""How far runs of the same settings come apart: repeated, on other numbers of threads, split, compiled, in bfloat16.

    python -m benchmarks.repeatability --dataset path/to/shards --checkpoint path/to/mit-b0

Every run starts from the same weights and sees the same rows in the same order. What is told is the largest relative
difference of a step's loss from that of the first run, and the difference of the last mean IoU.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from benchmarks import measure
from train import configure, train

_COLUMNS = ["run", "same_weights", "loss_difference", "mean_iou_difference"]


@contextmanager
def threads(count: int | None) -> Iterator[None]:
    """So many threads of torch in the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def run(options: argparse.Namespace, num_threads: int | None = None, **settings: Any) -> dict[str, Any]:
    """Losses step by step, the last mean IoU, and the bytes of the weights."""
    torch.use_deterministic_algorithms(False)  # until a run asks for them
    with tempfile.TemporaryDirectory() as folder, threads(num_threads):
        config = configure(
            "guide",
            **{
                "dataset": options.dataset,
                "split": "train",
                "eval_split": "validation",
                "checkpoint": options.checkpoint,
                "max_steps": options.steps,
                "eval_steps": options.steps,
                "save_steps": options.steps,
                "device": options.device,
                "amp": "off",
                "output_dir": f"{folder}/run",
                **settings,
            },
        )
        output = train(config)
        log = [json.loads(line) for line in (output / "log.jsonl").read_text(encoding="utf-8").splitlines()]
        results = json.loads((output / "eval_results.json").read_text(encoding="utf-8"))
        return {
            "losses": [entry["loss"] for entry in log if "loss" in entry],
            "mean_iou": results["eval_mean_iou"],
            "weights": (output / "model.safetensors").read_bytes(),
        }


def main() -> None:
    """Run the first, then each of the others, and compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", required=True, help="folder of parquet shards with train and validation")
    parser.add_argument("--checkpoint", default="nvidia/mit-b0")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--save", metavar="NAME", help="keep the rows as results/repeatability-NAME.json")
    options = parser.parse_args()
    on_cuda = torch.device(options.device).type == "cuda"
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
    first = run(options, **({"deterministic": True} if on_cuda else {}))
    rows = []
    for name, settings in variants.items():
        other = run(options, **settings)
        differences = [abs(a - b) / abs(a) for a, b in zip(first["losses"], other["losses"], strict=True)]
        row = {"run": name, "steps": options.steps, "same_weights": other["weights"] == first["weights"]}
        row |= {"loss_difference": max(differences)}
        rows.append(row | {"mean_iou_difference": abs(other["mean_iou"] - first["mean_iou"])})
        measure.print_rows(rows, _COLUMNS)
    card = measure.machine_card(torch.device(options.device)) | {"checkpoint": Path(options.checkpoint).name}
    measure.report("repeatability", card, rows, _COLUMNS, options.save)


if __name__ == "__main__":
    main()
