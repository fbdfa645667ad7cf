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
    if logits.shape[1] == 1:
        return _binary_cross_entropy(logits, labels, ignore_index, reduction)
    if labels.device.type == "cpu":
        check_labels(labels, logits.shape[1], ignore_index)
    total: Tensor = _BandedCrossEntropy.apply(logits, labels, ignore_index)
    return total / (labels != ignore_index).sum().clamp(min=1) if reduction == "mean" else total


def argmax(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """The most likely class of every pixel of a picture of ``size`` (H, W) pixels.

    Shapes: (B, K, h, w) -> (B, H, W) int64. Of equal classes the first wins.
    """
    _check_logits(logits)
    if len(size) != 2 or min(size) < 1:
        raise ValueError(f"size is {tuple(size)}; it must be (H, W) with both at least 1")
    small = _channels_last(logits.detach())
    rows, columns = (_taps(n, m, small) for n, m in zip(small.shape[1:3], size, strict=True))
    winners = small.argmax(-1)  # (B, h, w)
    if small.device.type != "cpu":  # single pixels would have to be counted, and a GPU would have to wait for that
        return _banded_argmax(small, rows, columns)
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

    def matrix(self, first: int, last: int) -> tuple[slice, Tensor]:
        """Outputs first to last - 1 as a matrix over the inputs that they need: which these are, (n_out, n_in)."""
        low, high, weight = (values[first:last] for values in self)
        start, stop = int(low[0]), int(high[-1]) + 1
        matrix = weight.new_zeros(last - first, stop - start)
        outputs = torch.arange(last - first, device=weight.device)
        matrix.index_put_((outputs, low - start), 1 - weight, accumulate=True)
        matrix.index_put_((outputs, high - start), weight, accumulate=True)
        return slice(start, stop), matrix


def _taps(size_in: int, size_out: int, like: Tensor) -> _Taps:
    """The taps of ``F.interpolate(mode="bilinear", align_corners=False)``, in its own arithmetic."""
    outputs = torch.arange(size_out, dtype=like.dtype, device=like.device)
    scale = torch.tensor(size_in, dtype=like.dtype, device=like.device) / size_out
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
    rows, columns = _taps(h, H, small), _taps(w, W, small)
    across = columns.weight[:, None]  # (W, 1)
    total = small.new_zeros(())
    for images, first, last in _bands(B, H, W * K * small.element_size(), small.device):
        needed, down = rows.matrix(first, last)
        wide = _widen(small[images, needed], columns)  # (b, r, W, K)
        many_down = down.expand(wide.shape[0], -1, -1)  # matmul would copy where bmm does not
        band = torch.bmm(many_down, wide.flatten(2)).view(-1, K)  # (b * rows * W, K)
        target = labels[images, first:last].reshape(-1)
        log_probability = F.log_softmax(band, dim=-1)
        total += F.nll_loss(log_probability, target, ignore_index=ignore_index, reduction="sum")
        if gradient is None:
            continue
        valid = (target != ignore_index)[:, None]
        slope = log_probability.exp_()  # softmax minus one-hot, 0 where ignored
        slope.scatter_add_(1, torch.where(valid, target[:, None], 0), -valid.to(slope.dtype))
        slope *= valid
        slope = torch.bmm(many_down.transpose(1, 2), slope.view(wide.shape[0], last - first, W * K)).view_as(wide)
        right = slope * across
        gradient[images, needed].index_add_(2, columns.high, right)
        gradient[images, needed].index_add_(2, columns.low, slope.sub_(right))
    return total


def _banded_argmax(small: Tensor, rows: _Taps, columns: _Taps) -> Tensor:
    B, K = small.shape[0], small.shape[-1]
    H, W = len(rows.low), len(columns.low)
    prediction = torch.empty(B, H, W, dtype=torch.int64, device=small.device)
    for images, first, last in _bands(B, H, W * K * small.element_size(), small.device):
        needed, down = rows.matrix(first, last)
        wide = _widen(small[images, needed], columns)
        band = torch.bmm(down.expand(wide.shape[0], -1, -1), wide.flatten(2))  # (b, rows, W * K)
        prediction[images, first:last] = band.view(-1, last - first, W, K).argmax(-1)
    return prediction


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


def _widen(few_rows: Tensor, columns: _Taps) -> Tensor:
    """Interpolate along the width: (b, r, w, K) -> (b, r, W, K)."""
    left, right = few_rows.index_select(2, columns.low), few_rows.index_select(2, columns.high)
    return torch.lerp(left, right, columns.weight[:, None])


def _bands(images: int, height: int, row_bytes: int, device: torch.device) -> Iterator[tuple[slice, int, int]]:
    """Cut a batch of pictures into pieces of some images or some rows: (images, first row, row after the last)."""
    rows = max(1, _BAND_BYTES.get(device.type, _BAND_BYTES["cuda"]) // row_bytes)
    together = max(1, rows // height)
    for image in range(0, images, together):
        for first in range(0, height, rows):
            yield slice(image, image + together), first, min(first + rows, height)


def _channels_last(logits: Tensor) -> Tensor:
    """The logits as (B, h, w, K) in memory, in float32 or better."""
    return logits.permute(0, 2, 3, 1).to(torch.promote_types(logits.dtype, torch.float32)).contiguous()


def _binary_cross_entropy(logits: Tensor, labels: Tensor, ignore_index: int, reduction: str) -> Tensor:
    upsampled = F.interpolate(logits.float(), labels.shape[-2:], mode="bilinear", align_corners=False)
    each = F.binary_cross_entropy_with_logits(upsampled[:, 0], labels.float(), reduction="none")
    each = each * (labels != ignore_index)
    return each.mean() if reduction == "mean" else each.sum()


def _check_logits(logits: Tensor) -> None:
    if logits.ndim != 4 or 0 in logits.shape:
        raise ValueError(f"logits are {list(logits.shape)}; they must be (B, K, h, w), none empty")
