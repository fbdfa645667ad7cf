"""Loss and prediction at the labels' resolution, each as one kernel on CUDA, for an enlargement by any factor.

A cell are the pixels between four neighbouring logits. One program has one cell: it loads four vectors of K, makes its
pixels in registers, a few at a time, takes softmax and loss in float32, and keeps what flows back to its four corners.
So nothing of size K x H x W exists even for a moment, and a logit is read four times. Each corner's gradient goes to a
buffer of its own; ``_add_corners`` adds the four in a fixed order, so that there are no atomics and the bits are the
same every time. ``plain_cross_entropy`` and ``plain_argmax`` say what is computed; tests hold the kernels, which stand
in ``kernels``, to them in Triton's interpreter.

It is not in use until a GPU has shown it to be at least 1.3 times as fast as the compiled form of ``fourfold``, which
``python -m benchmarks`` tells. Weighted, smoothed, focal losses and Dice go by bands in any case.
"""

from __future__ import annotations

import importlib.util
import os
from functools import cache, lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from segformer.fullres.bands import keep_for_graphs, taps

IN_USE = False  # the switch: whether losses and predictions take these kernels where they can

_MOST_CLASSES = 1024  # of a vector that fits in registers
_CAPABILITY = (7, 0)  # that Triton compiles for


def can_run(logits: Tensor) -> bool:
    """Whether logits (B, K, h, w) are to take these kernels, and can."""
    fits = logits.shape[1] <= _MOST_CLASSES and logits.dtype in (torch.float32, torch.float16, torch.bfloat16)
    return IN_USE and fits and _is_supported(logits.device)


@cache
def _is_supported(device: torch.device) -> bool:
    if importlib.util.find_spec("triton") is None:
        return False
    if os.environ.get("TRITON_INTERPRET") == "1":
        return True
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= _CAPABILITY


class Cells(NamedTuple):
    """Where the cells of an enlargement begin along one side, and how far every pixel is on its way through its own."""

    first: Tensor  # (n_in + 1,) int32: cell i has the pixels first[i] to first[i + 1] - 1
    place: Tensor  # (n_out,) float32: 0 at the cell's logit, 1 at the next one


@lru_cache(maxsize=64)
@torch.inference_mode(mode=False)
def _cells(size_in: int, size_out: int, device: torch.device) -> Cells:
    """The taps of the enlargement by cell; beyond the last logit there is nothing to be on the way to."""
    low, high, weight = taps(size_in, size_out, torch.float32)
    first = torch.searchsorted(low, torch.arange(size_in + 1)).to(torch.int32)
    place = torch.where(low == high, 0.0, weight)
    return Cells(first.to(device), place.to(device))


def loss_and_gradient(
    small: Tensor, labels: Tensor, ignore_index: int, with_gradient: bool
) -> tuple[Tensor, Tensor | None]:
    """The cross-entropy summed over the valid pixels, and its gradient with respect to ``small``, if wanted.

    Shapes: small (B, h, w, K) of float32 or less, labels (B, H, W) -> a scalar and (B, h, w, K), in float32.
    """
    small, labels = small.contiguous(), labels.contiguous()
    losses = torch.empty(small.shape[:3], dtype=torch.float32, device=small.device)  # of each cell
    corners = small.new_empty((4, *small.shape) if with_gradient else 1, dtype=torch.float32)
    _launch(
        _kernels().cell_loss, small, labels, (labels, losses, corners), IGNORED=ignore_index, GRADIENT=with_gradient
    )
    if not with_gradient:
        return losses.sum(), None
    gradient = small.new_empty(small.shape, dtype=torch.float32)
    block, count = 1024, gradient.numel()
    _kernels().add_corners[(-(-count // block),)](corners, gradient, count, *small.shape[1:], BLOCK=block)
    return losses.sum(), gradient


def argmax(small: Tensor, size: tuple[int, int]) -> Tensor:
    """The most likely class of every pixel: small (B, h, w, K) -> (B, H, W) int64. Of equal classes the first wins."""
    small = small.contiguous()
    prediction = torch.empty(small.shape[0], *size, dtype=torch.int64, device=small.device)
    _launch(_kernels().cell_argmax, small, prediction, (prediction,))
    return prediction


def _launch(kernel: Any, small: Tensor, pixels: Tensor, operands: tuple[Tensor, ...], **constants: Any) -> None:
    """Run a kernel over every cell between logits (B, h, w, K) and pixels (B, H, W)."""
    B, h, w, K = small.shape
    H, W = pixels.shape[1:]
    rows, columns = keep_for_graphs((_cells(h, H, small.device), _cells(w, W, small.device)), small.device)
    classes = 1 << max(1, (K - 1).bit_length())
    constants |= {"CLASSES": classes, "PIXELS": _pixels_at_once(w, W), "num_warps": max(1, classes // 256)}
    kernel[(B * h * w,)](small, *rows, *columns, *operands, h, w, H, W, K, **constants)


def _pixels_at_once(w: int, W: int) -> int:
    """How many pixels of a row a program makes together: as many as lie between two logits, at most eight."""
    return min(8, 1 << max(0, (W // w).bit_length() - 1))


def _kernels() -> Any:
    """Only now is Triton imported, which comes with torch for CUDA and else may not be there."""
    from segformer.fullres import kernels

    return kernels
