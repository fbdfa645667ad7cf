"""Loss and prediction at the labels' resolution, four times finer than the logits, without logits of that size.

What they mean stands in ``plain_cross_entropy`` and ``plain_argmax``, the reference's own two lines each: enlarge the
logits bilinearly, then reduce them. (Reducing first and enlarging the label map afterwards gives a coarser answer.) The
plain way writes K x H x W floats several times, for B0 at 512 x 512 the larger part of a whole training step. Here:

* ``cross_entropy`` walks over the label map in bands of a few rows. Each band of logits is made, turned into its loss
  and, in the same pass, into its share of the gradient with respect to the small logits, while it is still in cache.
* ``argmax`` looks at the small logits first. Bilinear values are convex combinations of four corners, so where one
  class wins all four corners it wins every pixel between them; only pixels between unlike corners are worked out.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

_BAND_BYTES = {"cpu": 5 * 2**19, "cuda": 2**28}  # what stays in a CPU's cache; what fills a GPU
_MIXED_SHARE = 0.4  # beyond this share of pixels between unlike corners, bands are cheaper than single pixels


def plain_cross_entropy(logits: Tensor, labels: Tensor, ignore_index: int = 255) -> Tensor:
    """The sum of the cross-entropy over the valid pixels, by way of K x H x W logits: what ``cross_entropy`` means."""
    upsampled = F.interpolate(logits.float(), labels.shape[-2:], mode="bilinear", align_corners=False)
    return F.cross_entropy(upsampled, labels, ignore_index=ignore_index, reduction="sum")


def plain_argmax(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """The most likely class of every pixel, by way of K x H x W logits: what ``argmax`` means."""
    return F.interpolate(logits.float(), size, mode="bilinear", align_corners=False).argmax(1)


def cross_entropy(logits: Tensor, labels: Tensor, ignore_index: int = 255, reduction: str = "mean") -> Tensor:
    """Cross-entropy between enlarged logits and labels, over the pixels that are not ``ignore_index``.

    Shapes: logits (B, K, h, w) float, labels (B, H, W) int64 of any H, W -> a scalar, in float32 or better.
    ``reduction`` is "mean", which is 0 where no pixel is valid, or "sum". With K = 1 it is the binary cross-entropy as
    transformers has it: the mean runs over all pixels, the ignored ones counting 0.

    Raises ValueError for shapes that do not belong together and, on the CPU, for labels outside the classes; on a GPU
    that check would make it wait, so labels are checked where they are made.
    """
    _check_logits(logits)
    if labels.ndim != 3 or 0 in labels.shape or labels.dtype != torch.int64:
        raise ValueError(f"labels are {list(labels.shape)} {labels.dtype}; they must be (B, H, W) int64, none empty")
    if logits.shape[0] != labels.shape[0]:
        raise ValueError(f"logits hold {logits.shape[0]} images but labels {labels.shape[0]}")
    if reduction not in ("mean", "sum"):
        raise ValueError(f"reduction is {reduction!r}; it is 'mean' or 'sum'")
    if labels.device.type == "cpu":
        check_labels(labels, max(2, logits.shape[1]), ignore_index)
    if logits.shape[1] == 1:
        return _binary_cross_entropy(logits, labels, ignore_index, reduction)
    total: Tensor = _BandedCrossEntropy.apply(logits, labels, ignore_index)
    return total / (labels != ignore_index).sum().clamp(min=1) if reduction == "mean" else total


@torch.no_grad()
def argmax(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """The most likely class of every pixel of a picture of ``size`` (H, W) pixels.

    Shapes: (B, K, h, w) -> (B, H, W) int64. Of equal classes the first wins.
    """
    _check_logits(logits)
    if len(size) != 2 or min(size) < 1:
        raise ValueError(f"size is {tuple(size)}; it must be (H, W) with both at least 1")
    small = _channels_last(logits.detach())
    rows, columns = (_taps(n, m, small.dtype) for n, m in zip(small.shape[1:3], size, strict=True))
    if small.device.type != "cpu":  # single pixels would have to be counted, and a GPU would have to wait for that
        return _banded_argmax(small, rows, columns.to(small.device))
    winners = small.argmax(-1)  # (B, h, w)
    corners = [winners[:, y][:, :, x] for y in (rows.low, rows.high) for x in (columns.low, columns.high)]
    mixed = torch.stack([corners[0] != corner for corner in corners[1:]]).any(0)  # (B, H, W)
    if mixed.float().mean() > _MIXED_SHARE:
        return _banded_argmax(small, rows, columns)
    return _fill_mixed(corners[0], mixed, small, rows, columns)


def check_labels(labels: Tensor, num_labels: int, ignore_index: int = 255) -> None:
    """Raise ValueError, naming the first stray, unless every label is a class id or ``ignore_index``."""
    stray = ((labels < 0) | (labels >= num_labels)) & (labels != ignore_index)
    if stray.any():
        raise ValueError(
            f"labels hold {int(labels[stray][0])}; the classes are 0 to {num_labels - 1}, and {ignore_index} is ignored"
        )


class _Taps(NamedTuple):
    """Bilinear interpolation along one side: output i is low + weight * (high - low) of the inputs named."""

    low: Tensor  # (n_out,) int64
    high: Tensor  # (n_out,) int64
    weight: Tensor  # (n_out,) float

    def to(self, device: torch.device) -> _Taps:
        """The same on another device."""
        return _Taps(*(values.to(device, non_blocking=True) for values in self))

    def matrix(self, first: int, last: int) -> tuple[slice, Tensor]:
        """Outputs first to last - 1 as a matrix over the inputs that they need: which these are, (n_out, n_in)."""
        low, high, weight = (values[first:last] for values in self)
        start, stop = int(low[0]), int(high[-1]) + 1
        matrix = weight.new_zeros(last - first, stop - start)
        outputs = torch.arange(last - first)
        matrix.index_put_((outputs, low - start), 1 - weight, accumulate=True)
        matrix.index_put_((outputs, high - start), weight, accumulate=True)
        return slice(start, stop), matrix


class _Band(NamedTuple):
    """Rows first to last - 1 of the pictures: the rows of the small logits that they need, and the matrix between."""

    first: int
    last: int
    needed: slice
    down: Tensor  # (rows, needed)


def _taps(size_in: int, size_out: int, dtype: torch.dtype) -> _Taps:
    """The taps of ``F.interpolate(mode="bilinear", align_corners=False)``, in its own arithmetic.

    On the CPU, where bands are planned: asking a GPU which rows a band needs would make it wait.
    """
    outputs = torch.arange(size_out, dtype=dtype)
    scale = torch.tensor(size_in, dtype=dtype) / size_out
    source = (scale * (outputs + 0.5) - 0.5).clamp(min=0)
    low = source.long().clamp(max=size_in - 1)
    return _Taps(low, (low + 1).clamp(max=size_in - 1), (source - low).clamp(0, 1))


class _BandedCrossEntropy(torch.autograd.Function):
    """The summed loss, and its gradient found on the way; backward only scales it."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, labels: Tensor, ignore_index: int) -> Tensor:
        with torch.autocast(logits.device.type, enabled=False):
            small = _channels_last(logits)
            gradient = torch.zeros_like(small) if ctx.needs_input_grad[0] else None
            total = _sum_bands(small, labels, ignore_index, gradient)
        if gradient is not None:
            ctx.save_for_backward(gradient)
            ctx.dtype = logits.dtype
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, scale: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        return (gradient * scale).to(ctx.dtype).permute(0, 3, 1, 2), None, None


def _sum_bands(small: Tensor, labels: Tensor, ignore_index: int, gradient: Tensor | None) -> Tensor:
    """Sum the loss band by band; add each band's share to ``gradient``, (B, h, w, K) like ``small``."""
    B, h, w, K = small.shape
    H, W = labels.shape[1:]
    rows, columns = _taps(h, H, small.dtype), _taps(w, W, small.dtype).to(small.device)
    scratch = _Scratch(small)
    total = small.new_zeros(())
    for images, (first, last, needed, down) in _bands(B, rows, W * K * small.element_size(), small.device):
        band = _enlarge(small[images, needed], down, columns, scratch).view(-1, K)  # (b * rows * W, K)
        target = labels[images, first:last].reshape(-1, 1)
        valid = target != ignore_index
        target = torch.where(valid, target, 0)
        log_probability = torch.log_softmax(band, dim=-1, out=scratch("log probability", *band.shape))
        total -= (log_probability.gather(1, target) * valid).sum()
        if gradient is None:
            continue
        slope = log_probability.exp_()  # softmax minus one-hot, 0 where ignored
        slope.scatter_add_(1, target, -valid.to(slope.dtype))
        slope *= valid
        _add_reduced(gradient[images, needed], slope.view(-1, last - first, W * K), down, columns, scratch)
    return total


def _banded_argmax(small: Tensor, rows: _Taps, columns: _Taps) -> Tensor:
    B, K = small.shape[0], small.shape[-1]
    H, W = len(rows.low), len(columns.low)
    prediction = torch.empty(B, H, W, dtype=torch.int64, device=small.device)
    scratch = _Scratch(small)
    for images, (first, last, needed, down) in _bands(B, rows, W * K * small.element_size(), small.device):
        band = _enlarge(small[images, needed], down, columns, scratch)  # (b, rows, W * K)
        prediction[images, first:last] = band.view(-1, last - first, W, K).argmax(-1)
    return prediction


class _Scratch:
    """Memory by name that every band uses anew: for a CPU, fresh pages cost more than the arithmetic on them."""

    def __init__(self, like: Tensor) -> None:
        self.like = like
        self.buffers: dict[str, Tensor] = {}

    def __call__(self, name: str, *shape: int) -> Tensor:
        size = math.prod(shape)
        if name not in self.buffers or self.buffers[name].numel() < size:
            self.buffers[name] = self.like.new_empty(size)
        return self.buffers[name][:size].view(shape)


def _enlarge(few_rows: Tensor, down: Tensor, columns: _Taps, scratch: _Scratch) -> Tensor:
    """Enlarge a band: (b, r, w, K) -> (b, rows, W * K), along the width by gathering, then down by a small matrix."""
    b, r, _, K = few_rows.shape
    left, right = (scratch(side, b, r, len(columns.low), K) for side in ("left", "right"))
    torch.index_select(few_rows, 2, columns.low, out=left)
    torch.index_select(few_rows, 2, columns.high, out=right)
    wide = torch.lerp(left, right, columns.weight[:, None], out=left)  # (b, r, W, K)
    band = scratch("band", b, down.shape[0], wide.shape[2] * K)
    return torch.bmm(down.expand(b, -1, -1), wide.flatten(2), out=band)


def _add_reduced(gradient: Tensor, slope: Tensor, down: Tensor, columns: _Taps, scratch: _Scratch) -> None:
    """Undo ``_enlarge`` for a gradient: add (b, rows, W * K) to ``gradient``, (b, r, w, K), where it came from."""
    b, r, _, K = gradient.shape
    wide = scratch("left", b, r, slope.shape[-1])
    torch.bmm(down.t().expand(b, -1, -1), slope, out=wide)
    wide = wide.view(b, r, -1, K)
    right = torch.mul(wide, columns.weight[:, None], out=scratch("right", *wide.shape))
    gradient.index_add_(2, columns.high, right)
    gradient.index_add_(2, columns.low, wide.sub_(right))


def _fill_mixed(prediction: Tensor, mixed: Tensor, small: Tensor, rows: _Taps, columns: _Taps) -> Tensor:
    """Work out the pixels marked in ``mixed`` one by one and write them into ``prediction``."""
    step = max(1, _BAND_BYTES["cpu"] // (4 * small.shape[-1] * small.element_size()))
    for places in torch.split(mixed.nonzero(), step):
        image, y, x = places.unbind(1)
        across, down = columns.weight[x, None], rows.weight[y, None]
        top, bottom = (
            torch.lerp(small[image, taps[y], columns.low[x]], small[image, taps[y], columns.high[x]], across)
            for taps in (rows.low, rows.high)
        )
        prediction[image, y, x] = torch.lerp(top, bottom, down).argmax(-1)
    return prediction


def _bands(images: int, rows: _Taps, row_bytes: int, device: torch.device) -> Iterator[tuple[slice, _Band]]:
    """Cut a batch of pictures into pieces of some images or some rows, each with the matrix that makes its rows."""
    height = len(rows.low)
    step = max(1, _BAND_BYTES.get(device.type, _BAND_BYTES["cuda"]) // row_bytes)
    together = max(1, step // height)
    for first in range(0, height, step):
        last = min(first + step, height)
        needed, down = rows.matrix(first, last)
        band = _Band(first, last, needed, down.to(device, non_blocking=True))
        for image in range(0, images, together):
            yield slice(image, image + together), band


def _channels_last(logits: Tensor) -> Tensor:
    """The logits as (B, h, w, K) in memory, in float32 or better."""
    return logits.permute(0, 2, 3, 1).to(torch.promote_types(logits.dtype, torch.float32)).contiguous()


def _binary_cross_entropy(logits: Tensor, labels: Tensor, ignore_index: int, reduction: str) -> Tensor:
    precise = logits.to(torch.promote_types(logits.dtype, torch.float32))
    upsampled = F.interpolate(precise, labels.shape[-2:], mode="bilinear", align_corners=False)
    each = F.binary_cross_entropy_with_logits(upsampled[:, 0], labels.to(precise.dtype), reduction="none")
    each = each * (labels != ignore_index)
    return each.mean() if reduction == "mean" else each.sum()


def _check_logits(logits: Tensor) -> None:
    if logits.ndim != 4 or 0 in logits.shape:
        raise ValueError(f"logits are {list(logits.shape)}; they must be (B, K, h, w), none empty")
