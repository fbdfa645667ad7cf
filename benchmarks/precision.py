"""The same training in float32 and in bfloat16, side by side: the loss of every step, and the last mean IoU.

    python -m benchmarks.precision --steps 200 --recipe paper --dataset path/to/shards --checkpoint path/to/mit-b0

All other flags are those of train.py; without any it is the toy's run. Both start from the same weights, see the same
rows in the same order, and on a CPU draw the same dropout. A row tells the mean loss of twenty steps on either side and
the largest difference of any of them, as a share of the loss in float32.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks import measure
from segformer.segmenter import choose_device
from train import TrainConfig, parse_arguments, train

_COLUMNS = ["steps", "float32", "bfloat16", "difference"]
_STEPS_OF_A_ROW = 20


def run(config: TrainConfig, amp: str, steps: int) -> tuple[list[float], float]:
    """The losses step by step, and the mean IoU at the end."""
    with tempfile.TemporaryDirectory() as folder:
        changes: dict[str, Any] = {"max_steps": steps, "eval_steps": steps, "save_steps": steps, "logging_steps": 1}
        output = train(replace(config, amp=amp, output_dir=f"{folder}/run", **changes))
        log = [json.loads(line) for line in (output / "log.jsonl").read_text(encoding="utf-8").splitlines()]
        results = json.loads((output / "eval_results.json").read_text(encoding="utf-8"))
    return [entry["loss"] for entry in log if "loss" in entry], results["eval_mean_iou"]


def compare(precise: list[float], coarse: list[float]) -> list[dict[str, Any]]:
    """Rows of twenty steps each, with all of their losses."""
    rows = []
    for first in range(0, len(precise), _STEPS_OF_A_ROW):
        some = slice(first, first + _STEPS_OF_A_ROW)
        a, b = precise[some], coarse[some]
        row = {"steps": f"{first + 1} to {first + len(a)}", "float32": sum(a) / len(a), "bfloat16": sum(b) / len(b)}
        row |= {"difference": max(abs(x - y) / x for x, y in zip(a, b, strict=True))}
        rows.append(row | {"float32_losses": a, "bfloat16_losses": b})
    return rows


def main() -> None:
    """Train twice and compare."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--save", metavar="NAME", help="keep the rows as results/precision-NAME.json")
    options, flags = parser.parse_known_args()
    config = parse_arguments(flags)
    (precise, precise_iou), (coarse, coarse_iou) = (run(config, amp, options.steps) for amp in ("off", "bf16"))
    rows = compare(precise, coarse)
    last = {"steps": "mean IoU after them", "float32": precise_iou, "bfloat16": coarse_iou}
    rows.append(last | {"difference": abs(precise_iou - coarse_iou) / precise_iou if precise_iou else None})
    told = " ".join(Path(word).name if "/" in word else word for word in flags)
    card = measure.machine_card(choose_device(config.device)) | {"flags": told}
    measure.report("precision", card, rows, _COLUMNS, options.save)


if __name__ == "__main__":
    main()
