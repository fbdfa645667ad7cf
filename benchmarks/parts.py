"""The parts by themselves: losses forward and backward, prediction, and one update of the confusion matrix.

python -m benchmarks.parts --against plain --memory
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks import measure, peers
from benchmarks.worker import alone
from segformer import ConfusionMatrix, fullres
from segformer.fullres import Loss

LossOf = Callable[[Tensor, Tensor], Tensor]  # of logits (B, K, h, w) and labels (B, H, W)

_COLUMNS = ["part", "shape", "ms", "peer_ms", "ratio", "difference"]
_K = 150
_LOSSES = {
    "weighted": Loss(weights=tuple(0.1 + k / _K for k in range(_K))),
    "smoothed": Loss(smoothing=0.1),
    "focal": Loss("focal"),
    "OHEM": Loss("ohem"),
    "with Dice": Loss(dice_weight=0.5),
}


def parse_arguments(words: Sequence[str] | None = None) -> argparse.Namespace:
    """What to measure."""
    parser = measure.flags(__doc__, "parts", repeats=9)
    parser.add_argument("--batch-size", type=int, default=2)
    parser.add_argument("--size", type=int, default=512, help="side of the label maps; logits have a quarter of it")
    parser.add_argument("--against", choices=("plain",), default="plain", help="interpolate first; numpy histograms")
    parser.add_argument("--memory", action="store_true", help="also the peak memory of every loss, in fresh processes")
    return parser.parse_args(words)


def _smooth_logits(options: argparse.Namespace) -> Tensor:
    """Logits with regions in them, as a model's have."""
    coarse = torch.randn(options.batch_size, _K, 12, 12, device=options.device)
    side = options.size // 4
    return torch.nn.functional.interpolate(coarse, (side, side), mode="bicubic").contiguous() * 4


def loss_sides(
    options: argparse.Namespace,
    ours: LossOf = fullres.cross_entropy,
    peer: LossOf = peers.plain_loss,
    dtype: torch.dtype = torch.float32,
) -> dict[str, Callable[[], Any]]:
    """Both ways of a loss with its gradient, each on logits in the layout that suits it; they return loss and gradient.

    Without others it is the cross-entropy, as the training step and transformers have it.
    """
    torch.manual_seed(0)
    smooth = _smooth_logits(options).to(dtype)
    labels = torch.randint(0, _K, (options.batch_size, options.size, options.size), device=options.device)
    labels[:, : options.size // 16] = 255

    def side(loss_of: LossOf, layout: torch.memory_format) -> Callable[[], Any]:
        logits = smooth.contiguous(memory_format=layout).requires_grad_()

        def run() -> tuple[Tensor, Tensor | None]:
            logits.grad = None
            with torch.autocast(labels.device.type, dtype, enabled=dtype != torch.float32):
                loss = loss_of(logits, labels)
            loss.backward()
            return loss.detach(), logits.grad

        return run

    return {"ours": side(ours, torch.channels_last), "peer": side(peer, torch.contiguous_format)}


def prediction_sides(options: argparse.Namespace) -> dict[str, Callable[[], Tensor]]:
    """Both ways from small logits to a label map."""
    torch.manual_seed(0)
    logits, size = _smooth_logits(options), (options.size, options.size)
    return {"ours": lambda: fullres.argmax(logits, size), "peer": lambda: fullres.plain_argmax(logits, size)}


def metric_sides(options: argparse.Namespace) -> dict[str, Callable[[], Tensor]]:
    """Both ways of adding one pair of label maps; each returns the counts' diagonal so far."""
    generator = np.random.default_rng(0)
    label = generator.integers(0, _K, (options.size, options.size))
    prediction = np.where(generator.random(label.shape) < 0.7, label, generator.integers(0, _K, label.shape))
    label[: options.size // 16] = 255
    ours, theirs = ConfusionMatrix(_K, device=options.device), peers.HistogramMeanIoU(_K)
    on_device = [torch.from_numpy(array).to(options.device) for array in (prediction, label)]

    def update_ours() -> Tensor:
        ours.update(*on_device)
        return ours.counts.diagonal()

    def update_theirs() -> Tensor:
        theirs.update(prediction, label)
        return torch.from_numpy(theirs.areas[0]).to(options.device)

    return {"ours": update_ours, "peer": update_theirs}


def difference(ours: Any, theirs: Any) -> float:
    """The largest difference between two results, relative to the largest value."""
    if isinstance(ours, tuple):
        return max(difference(our, their) for our, their in zip(ours, theirs, strict=True))
    return float((ours.double() - theirs.double()).abs().max() / theirs.double().abs().max())


def measure_part(
    part: str, options: argparse.Namespace, ways: dict[str, Callable[[], Any]], limit: float = 1e-5
) -> dict[str, Any]:
    """The row of a part, whose two sides are no further apart than ``limit``, or nothing is timed."""
    found = difference(ways["ours"](), ways["peer"]())
    if not found <= limit:
        raise SystemExit(f"{part}: the two sides differ by {found}; nothing was timed")
    times = 20 if part == "mean IoU update" else 1
    row = {"part": part, "shape": f"{options.batch_size} x {options.size}", "difference": found}
    return row | measure.side_by_side(ways, torch.device(options.device), options.repeats, times)


def _parts() -> dict[str, Callable[[argparse.Namespace], dict[str, Callable[[], Any]]]]:
    """Every part by its name, as what makes its two sides; those whose name begins with loss are losses."""
    parts: dict[str, Any] = {"loss": loss_sides, "prediction": prediction_sides, "mean IoU update": metric_sides}
    for name, loss in _LOSSES.items():
        ours, plain = (partial(by, loss=loss) for by in (fullres.mean_loss, fullres.plain_loss))
        parts[f"loss, {name}"] = partial(loss_sides, ours=ours, peer=plain)
    return parts


def _peak(options: argparse.Namespace, part: str, side: str) -> float | None:
    """The peak memory of one side of a part, in this process."""
    return measure.peak_memory_mib(_parts()[part](options)[side], torch.device(options.device))


def main() -> None:
    """Measure every part."""
    options = parse_arguments()
    rows = [measure_part(part, options, sides_of(options)) for part, sides_of in _parts().items()]
    columns = list(_COLUMNS)
    if options.memory:
        for row in rows:
            if row["part"].startswith("loss"):
                for side, name in (("ours", "peak_memory_mib"), ("peer", "peer_peak_memory_mib")):
                    row[name] = alone(partial(_peak, options, row["part"], side))
        columns += ["peak_memory_mib", "peer_peak_memory_mib"]
    measure.report("parts", measure.machine_card(torch.device(options.device)), rows, columns, options.save)


if __name__ == "__main__":
    main()
