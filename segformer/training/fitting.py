"""How many photos fit into the memory of a GPU at once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch

from segformer import fullres
from segformer.model import Segformer
from segformer.training.precision import autocast
from segformer.training.ranks import Ranks
from segformer.training.recipes import TrainConfig


def fit_batch(
    model: Segformer, config: TrainConfig, image_size: tuple[int, int], device: torch.device, ranks: Ranks
) -> TrainConfig:
    """The settings with as many photos in a pass as every rank has memory for; a step's photos stay as many.

    Tried with all that a step holds, the optimiser's two moments included; the model stays as it was. Raises ValueError
    on a CPU, which does not say when its memory is full.
    """
    if device.type != "cuda":
        raise ValueError(
            f"auto_batch_size takes a GPU, and this runs on {device.type}; leave it out and lower "
            "--per-device-train-batch-size, raising --gradient-accumulation-steps, if memory is short"
        )
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    moments = [torch.empty_like(weight) for weight in model.parameters() if weight.requires_grad for _ in range(2)]
    model.train()

    def attempt(size: int) -> None:
        images = torch.zeros(size, model.config.num_channels, *image_size, device=device)
        labels = torch.zeros(size, *image_size, dtype=torch.int64, device=device)
        with autocast(config.amp, device):
            logits = model(images)
        fullres.mean_loss(logits, labels, config.objective).backward()  # type: ignore[no-untyped-call]

    try:
        size = ranks.least(largest_fitting(config.per_device_train_batch_size, attempt))
    finally:
        model.zero_grad(set_to_none=True)
        for name, buffer in model.named_buffers():
            buffer.copy_(before[name])
        del moments
        torch.cuda.empty_cache()
    return replace(config, per_device_train_batch_size=size)


def largest_fitting(most: int, attempt: Callable[[int], object]) -> int:
    """The largest divisor of ``most`` photos for which ``attempt`` does not run out of memory.

    Raises torch.OutOfMemoryError where there is no room for one.
    """
    for size in (size for size in range(most, 1, -1) if most % size == 0):
        try:
            attempt(size)
        except torch.OutOfMemoryError:
            pass  # and what it held is let go of with the error
        else:
            return size
        torch.cuda.empty_cache()
    attempt(1)
    return 1
