"""Images a second on each GPU of several, and how much of one GPU's own rate that is.

    torchrun --nproc-per-node 4 -m benchmarks.scaling --batch-size 16 --amp bf16

One process measures ``train_step`` alone, before it knows of the others; then all take the same step together, their
gradients averaged. The efficiency is the rate of a GPU among others over the rate of one alone.
"""

from __future__ import annotations

import argparse
import os
import statistics
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from benchmarks import measure
from data.classes import ID2LABEL
from segformer import VARIANTS, Segformer
from segformer.training.ranks import distribute, join_ranks, leave_ranks
from train import TrainConfig, build_optimizer, train_step

_COLUMNS = ["variant", "size", "batch_size", "amp", "ranks", "images_per_second_per_device", "alone", "efficiency"]


def main() -> None:
    """Measure one setting on all ranks."""
    parser = measure.flags(__doc__, "scaling", repeats=7)
    parser.add_argument("--variant", choices=tuple(VARIANTS), default="b0")
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--batch-size", type=int, default=2, help="on each device")
    parser.add_argument("--amp", choices=("off", "bf16", "fp16"), default="off")
    options = parser.parse_args()
    device = torch.device(options.device, *([int(os.environ["LOCAL_RANK"])] if options.device == "cuda" else []))
    torch.manual_seed(0)
    model = Segformer(VARIANTS[options.variant](id2label=ID2LABEL)).to(device).train()
    alone = _median(_step(model, model, options, device), device, options) if os.environ["RANK"] == "0" else 0.0
    ranks, device = join_ranks(device)  # the others have been waiting here for the first
    together = _median(_step(model, distribute(model, ranks, device), options, device), device, options)
    if ranks.is_writer:
        row: dict[str, Any] = {name: vars(options)[name] for name in ("variant", "size", "batch_size", "amp")}
        row |= {"ranks": ranks.count, "images_per_second_per_device": options.batch_size / together}
        row |= {"alone": options.batch_size / alone, "efficiency": alone / together}
        measure.report("scaling", measure.machine_card(device), [row], _COLUMNS, options.save)
    leave_ranks()


def _step(model: Segformer, trained: nn.Module, options: argparse.Namespace, device: torch.device) -> Callable[[], Any]:
    config = TrainConfig(amp=options.amp, per_device_train_batch_size=options.batch_size)
    optimizer = build_optimizer(model, config)
    scaler = torch.amp.GradScaler(device.type, enabled=options.amp == "fp16")
    side = options.size
    batch = {
        "images": torch.randn(options.batch_size, 3, side, side, device=device),
        "labels": torch.randint(0, 150, (options.batch_size, side, side), device=device),
    }
    return lambda: train_step(trained, optimizer, scaler, batch, config)


def _median(step: Callable[[], Any], device: torch.device, options: argparse.Namespace) -> float:
    return statistics.median(measure.alternate({"step": step}, device, options.repeats)["step"])


if __name__ == "__main__":
    main()
