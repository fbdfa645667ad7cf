"""relu and dropout of a large map at once, in place.

torch draws a CPU's dropout mask one double at a time on one thread, 7 to 9 % of a training step. Here one draw fills
64-bit words, four 16-bit numbers each, and an element is dropped where its number is below the rate times 2**16: the
rate is exact to 2**-17, and what is kept is scaled for the rate so rounded. The words are numpy's, whose generator is
twice as fast, from a seed of torch's own, so that torch's seed repeats them. No mask is held for the gradient: relu and
dropout both leave 0, so it passes where the output is above it. Where whole channels are dropped, a number stands for
one channel of one image.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

_NUMBERS = 2**16


def relu_dropout_(x: Tensor, rate: float, whole_channels: bool = False) -> tuple[Tensor, float]:
    """relu and then dropout in place; also the factor that scales up what is kept, left to the next layer's weight.

    Elements are dropped one by one, or ``whole_channels`` of an image (Tompson et al., 2015; torch's Dropout2d).

    Shapes: (B, C, H, W), in channels-last memory -> the same. Where torch draws well by itself, on a GPU and in
    compiled code, it does, and the factor is 1.
    """
    if rate == 0:
        return F.relu_(x), 1.0
    threshold = round(rate * _NUMBERS)
    if x.device.type != "cpu" or torch.compiler.is_compiling() or not 0 < threshold < _NUMBERS:
        drop = F.dropout2d if whole_channels else F.dropout
        return drop(F.relu_(x), rate), 1.0
    dropped: Tensor = _ReluDropout.apply(x, threshold, whole_channels)
    return dropped, _NUMBERS / (_NUMBERS - threshold)


class _ReluDropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, threshold: int, whole_channels: bool) -> Tensor:
        B, C, H, W = x.shape
        kept = _draw((B, 1, 1, C) if whole_channels else (B, H, W, C), threshold, x.dtype)
        x.relu_().mul_(kept.permute(0, 3, 1, 2))
        ctx.mark_dirty(x)
        ctx.save_for_backward(x)
        return x

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (kept,) = ctx.saved_tensors
        return torch.ops.aten.threshold_backward(gradient, kept, 0), None, None


def _draw(shape: Sequence[int], threshold: int, dtype: torch.dtype) -> Tensor:
    """0 with probability ``threshold / 2**16``, else 1, which a CPU multiplies with ten times as fast as with bool."""
    seed, count = int(torch.randint(2**63 - 1, ())), math.prod(shape)
    words = np.random.PCG64(seed).random_raw(-(-count // 4))
    numbers = torch.from_numpy(words.view(np.int16))[:count]
    return torch.ge(numbers, threshold - _NUMBERS // 2, out=torch.empty(count, dtype=dtype)).view(*shape)
