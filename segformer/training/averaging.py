"""An average of the weights over the steps, which is scored and saved in place of the weights of the last step."""

from __future__ import annotations

import copy

import torch

from segformer.model import Segformer


def start_average(model: Segformer) -> Segformer:
    """A copy of a model, to become the average of what it will be."""
    return copy.deepcopy(model).requires_grad_(False).eval()


@torch.no_grad()
def move_average(average: Segformer, model: Segformer, decay: float, step: int) -> None:
    """Move each weight of ``average``, and BatchNorm's statistics, towards those of ``model`` after a step.

    What it was counts ``decay``, but no more than (1 + step) / (10 + step), so that the first weights are soon
    forgotten (the schedule of TensorFlow's ExponentialMovingAverage with ``num_updates``).
    """
    decay = min(decay, (1 + step) / (10 + step))
    for averaged, now in zip(average.state_dict().values(), model.state_dict().values(), strict=True):
        if averaged.is_floating_point():
            averaged.lerp_(now, 1 - decay)
        else:
            averaged.copy_(now)
