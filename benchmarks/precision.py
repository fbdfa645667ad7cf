"""The same training in float32 and in bfloat16, side by side: the loss of every step, and the last mean IoU.

    python -m benchmarks.precision --steps 200 --recipe paper --dataset path/to/shards --checkpoint path/to/mit-b0

All other flags are those of train.py; without any it is the toy's run. Both start from the same weights, see the same
rows in the same order, and on a CPU draw the same dropout. A row tells the mean loss of twenty steps on either side and
the largest difference of any of them, as a share of the loss in float32. A training magnifies whatever sets it off, so
beside that stands the difference of float32 from itself, on one thread, whose sums round in another order.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks import measure
from benchmarks.repeatability import threads
from segformer.segmenter import choose_device
from train import TrainConfig, parse_arguments, train

_COLUMNS = ["steps", "float32", "bfloat16", "difference", "difference_on_one_thread"]
_STEPS_OF_A_ROW = 20


def run(config: TrainConfig, amp: str, steps: int, num_threads: int | None = None) -> tuple[list[float], float]:
    """The losses step by step, and the mean IoU at the end."""
    with tempfile.TemporaryDirectory() as folder, threads(num_threads):
        changes: dict[str, Any] = {"max_steps": steps, "eval_steps": steps, "save_steps": steps, "logging_steps": 1}
        output = train(replace(config, amp=amp, output_dir=f"{folder}/run", **changes))
        log = [json.loads(line) for line in (output / "log.jsonl").read_text(encoding="utf-8").splitlines()]
        results = json.loads((output / "eval_results.json").read_text(encoding="utf-8"))
    return [entry["loss"] for entry in log if "loss" in entry], results["eval_mean_iou"]


def compare(precise: list[float], coarse: list[float], again: list[float]) -> list[dict[str, Any]]:
    """Rows of twenty steps each, with all of their losses."""
    rows = []
    for first in range(0, len(precise), _STEPS_OF_A_ROW):
        a, b, c = (losses[first : first + _STEPS_OF_A_ROW] for losses in (precise, coarse, again))
        row = {"steps": f"{first + 1} to {first + len(a)}", "float32": sum(a) / len(a), "bfloat16": sum(b) / len(b)}
        row |= {"difference": _farthest(a, b), "difference_on_one_thread": _farthest(a, c)}
        rows.append(row | {"float32_losses": a, "bfloat16_losses": b, "one_thread_losses": c})
    return rows


def _farthest(first: list[float], other: list[float]) -> float | None:
    return max(abs(a - b) / a for a, b in zip(first, other, strict=True)) if all(first) else None


def main() -> None:
    """Train three times and compare."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--save", metavar="NAME", help="keep the rows as results/precision-NAME.json")
    options, flags = parser.parse_known_args()
    config = parse_arguments(flags)
    runs = [run(config, *how) for how in (("off", options.steps), ("bf16", options.steps), ("off", options.steps, 1))]
    (precise, coarse, again), scores = zip(*runs, strict=True)
    rows = compare(precise, coarse, again)
    last = {"steps": "mean IoU after them", "float32": scores[0], "bfloat16": scores[1]}
    one, two, three = ([score] for score in scores)
    rows.append(last | {"difference": _farthest(one, two), "difference_on_one_thread": _farthest(one, three)})
    told = " ".join(Path(word).name if "/" in word else word for word in flags)
    card = measure.machine_card(choose_device(config.device)) | {"flags": told}
    measure.report("precision", card, rows, _COLUMNS, options.save)


if __name__ == "__main__":
    main()
