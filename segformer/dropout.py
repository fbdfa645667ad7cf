"""relu and dropout of a large map at once, in place.

torch draws a CPU's dropout mask one double at a time on one thread, 7 to 9 % of a training step. Here one draw fills
64-bit words, four 16-bit numbers each, and an element is dropped where its number is below the rate times 2**16: the
rate is exact to 2**-17, and what is kept is scaled for the rate so rounded. Draws come from torch's own generator, so
that a seed repeats them. No mask is kept: relu and dropout both leave 0, so the gradient passes where the output is
above it. Where whole channels are dropped, a number stands for one channel of one image.
"""

from __future__ import annotations

import math
from typing import Any

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
        if whole_channels:  # a limit for each does both in the one pass that relu takes
            limits = torch.where(_draw(B * C, threshold).view(B, C, 1, 1), 0.0, math.inf)
            x.clamp_(x.new_zeros(()), limits.to(x.dtype))
        else:
            dropped = _draw(x.numel(), threshold).view(B, H, W, C).permute(0, 3, 1, 2)
            x.relu_().masked_fill_(dropped, 0)
        ctx.mark_dirty(x)
        ctx.save_for_backward(x)
        return x

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (kept,) = ctx.saved_tensors
        return torch.ops.aten.threshold_backward(gradient, kept, 0), None, None


def _draw(count: int, threshold: int) -> Tensor:
    """(count,) bool, each true with probability ``threshold / 2**16``."""
    words = torch.empty(-(-count // 4), dtype=torch.int64).random_(-(2**63), None)  # None: to the very last
    return words.view(torch.int16)[:count] < threshold - _NUMBERS // 2
