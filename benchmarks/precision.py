"""The same training in float32 and in bfloat16, side by side: the loss of every step, and the last mean IoU.

    python -m benchmarks.precision --steps 200 --recipe paper --dataset path/to/shards --checkpoint path/to/mit-b0

All other flags are those of train.py; without any it is the toy's run. Both start from the same weights, see the same
rows in the same order, and on a CPU draw the same dropout. A row tells the mean loss of twenty steps on either side and
the largest difference of any of them, as a share of the loss in float32. A training magnifies whatever sets it off, so
beside that stands the difference of float32 from itself, on one thread, whose sums round in another order.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks import measure
from benchmarks.runs import of_steps, train_once
from segformer.segmenter import choose_device
from train import parse_arguments

_COLUMNS = ["steps", "float32", "bfloat16", "difference", "difference_on_one_thread"]
_STEPS_OF_A_ROW = 20


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
    parser = measure.flags(__doc__, "precision", on_device=False)
    parser.allow_abbrev = False
    parser.add_argument("--steps", type=int, default=200)
    options, flags = parser.parse_known_args()
    config = parse_arguments(flags)
    ways = [("off", None), ("bf16", None), ("off", 1)]
    outcomes = [train_once(of_steps(config, options.steps, amp=amp), threads) for amp, threads in ways]
    rows = compare(*(outcome.losses for outcome in outcomes))
    one, two, three = ([outcome.mean_iou] for outcome in outcomes)
    last = {"steps": "mean IoU after them", "float32": one[0], "bfloat16": two[0]}
    rows.append(last | {"difference": _farthest(one, two), "difference_on_one_thread": _farthest(one, three)})
    told = " ".join(Path(word).name if "/" in word else word for word in flags)
    card = measure.machine_card(choose_device(config.device)) | {"flags": told}
    measure.report("precision", card, rows, _COLUMNS, options.save)


if __name__ == "__main__":
    main()
