"""Loss and prediction at the labels' resolution, four times finer than the logits, without logits of that size.

What they mean stands in ``plain_cross_entropy`` and ``plain_argmax``, the reference's own two lines each: enlarge the
logits bilinearly, then reduce them. (Reducing first and enlarging the label map afterwards gives a coarser answer.) The
plain way writes K x H x W floats several times, for B0 at 512 x 512 the larger part of a whole training step. Here:

* ``cross_entropy`` walks over the label map in bands of a few rows. Each band of logits is made, turned into its loss
  and, in the same pass, into its share of the gradient with respect to the small logits, while it is still in cache.
* ``argmax`` looks at the small logits first. Bilinear values are convex combinations of four corners, so where one
  class wins all four corners it wins every pixel between them; only pixels between unlike corners are worked out.
* ``argmax_of_mean``, ``argmax_with_probability`` and ``probabilities`` walk in bands too, over one or more views of the
  same pictures.

Predictions also take ``LogitRows``: logits too large to be held, made row by row as the bands come to need them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from segformer.bands import Band, Scratch, Taps, add_reduced, band_height, enlarge, plan, taps
from segformer.bands import LogitRows as LogitRows  # what predictions take, too

_LEAST_PROBABILITY = 1e-30  # whose logarithm is exact in float32; below, numbers lose their digits
_STRIP_PIXELS = 2**20  # of pictures looked at together for unlike corners
_MIXED_BYTES = 5 * 2**17  # of logits of single pixels worked out together
_MIXED_SHARE = 0.4  # beyond this share of pixels between unlike corners, bands are cheaper than single pixels


def plain_cross_entropy(logits: Tensor, labels: Tensor, ignore_index: int = 255) -> Tensor:
    """The sum of the cross-entropy over the valid pixels, by way of K x H x W logits: what ``cross_entropy`` means."""
    upsampled = F.interpolate(logits.float(), labels.shape[-2:], mode="bilinear", align_corners=False)
    return F.cross_entropy(upsampled, labels, ignore_index=ignore_index, reduction="sum")


def plain_argmax(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """The most likely class of every pixel, by way of K x H x W logits: what ``argmax`` means."""
    return F.interpolate(logits.float(), size, mode="bilinear", align_corners=False).argmax(1)


def plain_argmax_of_mean(views: Sequence[Tensor], size: Sequence[int]) -> Tensor:
    """The class of the highest mean probability, by way of K x H x W values: what ``argmax_of_mean`` means."""
    return plain_probabilities(views, size).argmax(1)


def plain_argmax_with_probability(views: Sequence[Tensor], size: Sequence[int]) -> tuple[Tensor, Tensor]:
    """The class of the highest mean probability, and that: what ``argmax_with_probability`` means."""
    probability, label_map = plain_probabilities(views, size).max(1)
    return label_map, probability


def plain_probabilities(views: Sequence[Tensor], size: Sequence[int]) -> Tensor:
    """The mean probabilities, (B, K, H, W), by way of as many values for every view: what ``probabilities`` means."""
    enlarged = (F.interpolate(v.float(), (*size,), mode="bilinear", align_corners=False) for v in views)
    return torch.stack([v.softmax(1) if v.shape[1] > 1 else v.sigmoid() for v in enlarged]).mean(0)


def cross_entropy(
    logits: Tensor, labels: Tensor, ignore_index: int = 255, reduction: str = "mean", compiled: bool = False
) -> Tensor:
    """Cross-entropy between enlarged logits and labels, over the pixels that are not ``ignore_index``.

    Shapes: logits (B, K, h, w) float, labels (B, H, W) int64 of any H, W -> a scalar, in float32 or better.
    ``reduction`` is "mean", which is 0 where no pixel is valid, or "sum". With K = 1 it is the binary cross-entropy as
    transformers has it: the mean runs over all pixels, the ignored ones counting 0. ``compiled`` runs each band as one
    function of torch.compile, which takes a while the first time.

    Raises ValueError for shapes that do not belong together and, on the CPU, for labels outside the classes. To look
    for those a GPU would have to wait, so there the loss becomes NaN; labels are checked where they are made.
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
    total: Tensor = _BandedCrossEntropy.apply(logits, labels, ignore_index, compiled)
    return total / (labels != ignore_index).sum().clamp(min=1) if reduction == "mean" else total


@torch.no_grad()
def argmax(logits: Tensor | LogitRows, size: tuple[int, int]) -> Tensor:
    """The most likely class of every pixel of a picture of ``size`` (H, W) pixels.

    Shapes: (B, K, h, w) -> (B, H, W) int64. Of equal classes the first wins.
    """
    small = _as_rows(logits)
    B, h, w, K = small.shape
    _check_size(size)
    prediction = torch.empty(B, *size, dtype=torch.int64, device=small.device)
    if small.device.type != "cpu":  # single pixels would have to be counted, and a GPU would have to wait for that
        _fill_bands(prediction, small, slice(0, size[0]))
        return prediction
    rows, columns = (taps(n, m, small.dtype) for n, m in zip((h, w), size, strict=True))
    step = band_height(size[1], K, small.dtype, small.device)
    step *= max(1, _STRIP_PIXELS // (B * step * size[1]))  # strips begin where bands do
    for first in range(0, size[0], step):
        _fill_strip(prediction, small, slice(first, min(first + step, size[0])), rows, columns)
    return prediction


@torch.no_grad()
def argmax_of_mean(views: Sequence[Tensor | LogitRows], size: Sequence[int]) -> Tensor:
    """The class of the highest mean probability over several views of the same pictures, such as mirrored or scaled.

    Shapes: (B, K, h, w) each, of any h, w -> (B, H, W) int64. A single view is ``argmax``'s.
    """
    if len(views) == 1:
        return argmax(views[0], (size[0], size[1]))
    small = [_as_rows(logits) for logits in views]
    prediction = torch.empty(small[0].shape[0], *size, dtype=torch.int64, device=small[0].device)
    for band, enlarged in _enlarged_bands(small, size):
        prediction[band.images, band.rows] = _mean_probability(enlarged).argmax(-1)
    return prediction


@torch.no_grad()
def argmax_with_probability(views: Sequence[Tensor | LogitRows], size: Sequence[int]) -> tuple[Tensor, Tensor]:
    """The class of the highest mean probability over the views, and that probability: how sure the model is.

    Shapes: (B, K, h, w) each, of any h, w -> (B, H, W) int64 and (B, H, W) float. The first is what ``argmax_of_mean``
    gives. The probability of a model's only class is the sigmoid that its loss trains.
    """
    small = [_as_rows(logits) for logits in views]
    shape, device = (small[0].shape[0], *size), small[0].device
    prediction = torch.empty(shape, dtype=torch.int64, device=device)
    probability = torch.empty(shape, dtype=small[0].dtype, device=device)
    for band, enlarged in _enlarged_bands(small, size):
        mean = None if len(small) == 1 else _mean_probability(enlarged)
        # One view is judged by its logits: rounding makes probabilities equal that were not.
        scores = enlarged[0] if mean is None else mean
        winner = scores.argmax(-1, keepdim=True)  # (b, rows, W, 1)
        prediction[band.images, band.rows] = winner[..., 0]
        mean = _mean_probability(enlarged) if mean is None else mean
        probability[band.images, band.rows] = mean.gather(-1, winner)[..., 0]
    return prediction, probability


@torch.no_grad()
def probabilities(views: Sequence[Tensor | LogitRows], size: Sequence[int], classes: Sequence[int]) -> Tensor:
    """The probabilities of a few classes at every pixel, averaged over the views.

    Shapes: (B, K, h, w) each, of any h, w -> (B, len(classes), H, W) float. Raises ValueError for a class that is not
    among the K.
    """
    small = [_as_rows(logits) for logits in views]
    B, K = small[0].shape[0], small[0].shape[-1]
    strays = [k for k in classes if not 0 <= k < K]
    if strays:
        raise ValueError(f"classes are {list(classes)}; the model knows 0 to {K - 1}")
    found = torch.empty(B, len(classes), *size, dtype=small[0].dtype, device=small[0].device)
    chosen = torch.tensor(list(classes), dtype=torch.int64, device=small[0].device)
    for band, enlarged in _enlarged_bands(small, size):
        some = _mean_probability(enlarged).index_select(-1, chosen)  # (b, rows, W, C)
        found[band.images, :, band.rows] = some.permute(0, 3, 1, 2)
    return found


def check_labels(labels: Tensor, num_labels: int, ignore_index: int = 255) -> None:
    """Raise ValueError, naming the first stray, unless every label is a class id or ``ignore_index``."""
    stray = _is_stray(labels, num_labels, ignore_index)
    if stray.any():
        raise ValueError(
            f"labels hold {int(labels[stray][0])}; the classes are 0 to {num_labels - 1}, and {ignore_index} is ignored"
        )


def _is_stray(labels: Tensor, num_labels: int, ignore_index: int) -> Tensor:
    return ((labels < 0) | (labels >= num_labels)) & (labels != ignore_index)


def _is_valid(labels: Tensor, num_labels: int, ignore_index: int) -> Tensor:
    return (labels >= 0) & (labels < num_labels) & (labels != ignore_index)


class _BandedCrossEntropy(torch.autograd.Function):
    """The summed loss, and its gradient found on the way; backward only scales it."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, labels: Tensor, ignore_index: int, compiled: bool) -> Tensor:
        with torch.autocast(logits.device.type, enabled=False):
            small = _channels_last(logits)
            gradient = torch.zeros_like(small) if ctx.needs_input_grad[0] else None
            sum_bands = _sum_compiled_bands if compiled else _sum_bands
            total = sum_bands(small, labels, ignore_index, gradient)
        if labels.device.type != "cpu":
            total += torch.where(_is_stray(labels, small.shape[-1], ignore_index).any(), math.nan, 0.0)
        if gradient is not None:
            ctx.save_for_backward(gradient)
            ctx.dtype = logits.dtype
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, scale: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        return (gradient * scale).to(ctx.dtype).permute(0, 3, 1, 2), None, None, None


def _sum_bands(small: Tensor, labels: Tensor, ignore_index: int, gradient: Tensor | None) -> Tensor:
    """Sum the loss band by band; add each band's share to ``gradient``, (B, h, w, K) like ``small``."""
    K, W = small.shape[-1], labels.shape[2]
    bands, columns = plan(small, labels.shape[1:])
    scratch = Scratch(small)
    total = small.new_zeros(())
    for band in bands:
        wide = enlarge(small[band.images, band.needed], band.down, columns, scratch).view(-1, K)  # (b * rows * W, K)
        target = labels[band.images, band.rows].reshape(-1, 1)
        valid = _is_valid(target, K, ignore_index)
        target = torch.where(valid, target, 0)
        probability, log_truth = _softmax(wide, target, out=scratch("probability", *wide.shape))
        total -= torch.where(valid, log_truth, 0).sum()
        if gradient is None:
            continue
        slope = probability.scatter_add_(1, target, -torch.ones_like(log_truth))  # softmax minus one-hot
        _clear_ignored(slope, valid)
        share = gradient[band.images, band.needed]
        add_reduced(share, slope.view(-1, band.height, W * K), band.down, columns, scratch)
    return total


def _softmax(logits: Tensor, target: Tensor, out: Tensor) -> tuple[Tensor, Tensor]:
    """The probabilities of (n, K) logits, in ``out``, and the log of the target's, (n, 1), as log_softmax has it.

    On a CPU the exponentials are the loss's arithmetic, so they are worked out once, and a logarithm only for the
    target. Where its probability is too small for that to be exact, log_softmax looks again, at these rows alone; on a
    GPU, which would have to wait to know them, at all.
    """
    if logits.device.type != "cpu":
        log_probability = torch.log_softmax(logits, dim=-1, out=out)
        log_truth = log_probability.gather(1, target)
        return log_probability.exp_(), log_truth
    probability = torch.softmax(logits, dim=-1, out=out)
    truth = probability.gather(1, target)
    log_truth = truth.log()
    (rows,) = torch.where(truth[:, 0] < _LEAST_PROBABILITY)
    if len(rows):
        log_truth[rows] = torch.log_softmax(logits[rows], dim=-1).gather(1, target[rows])
    return probability, log_truth


def _sum_compiled_bands(small: Tensor, labels: Tensor, ignore_index: int, gradient: Tensor | None) -> Tensor:
    """The same, each band by ``_band_loss`` compiled."""
    bands, columns = plan(small, labels.shape[1:])
    total = small.new_zeros(())
    for band in bands:
        few_rows, target = small[band.images, band.needed], labels[band.images, band.rows]
        loss, share = _compiled_band_loss()(few_rows, target, band.down, columns, ignore_index)
        total += loss
        if gradient is not None:
            gradient[band.images, band.needed] += share
    return total


def _band_loss(
    few_rows: Tensor, labels: Tensor, down: Tensor, columns: Taps, ignore_index: int
) -> tuple[Tensor, Tensor]:
    """The loss of a band, summed, and its gradient with respect to ``few_rows``, (b, r, w, K): what is compiled."""
    K = few_rows.shape[-1]
    across = columns.weight[:, None]
    wide = torch.lerp(few_rows.index_select(2, columns.low), few_rows.index_select(2, columns.high), across)
    band = torch.einsum("yr,brxk->byxk", down, wide)
    valid = _is_valid(labels, K, ignore_index)
    log_probability = torch.log_softmax(band, dim=-1)
    truth = (torch.arange(K, device=band.device) == labels[..., None]) & valid[..., None]
    loss = -torch.where(truth, log_probability, 0).sum()
    slope = (log_probability.exp() - truth.to(band.dtype)) * valid[..., None]
    wide_slope = torch.einsum("yr,byxk->brxk", down, slope)
    gradient = torch.zeros_like(few_rows)
    gradient = gradient.index_add(2, columns.low, wide_slope * (1 - across))
    return loss, gradient.index_add(2, columns.high, wide_slope * across)


@cache
def _compiled_band_loss() -> Any:
    return torch.compile(_band_loss, dynamic=True)


def _clear_ignored(slope: Tensor, valid: Tensor) -> None:
    """Make the rows of (n, K) that are not valid 0: on a CPU these alone, for a GPU would have to wait to know them."""
    if slope.device.type == "cpu":
        slope.index_fill_(0, torch.where(~valid[:, 0])[0], 0)
    else:
        slope *= valid


class _WholeLogits(NamedTuple):
    """Logits that are there as a whole, (B, h, w, K), as ``LogitRows``."""

    small: Tensor

    @property
    def shape(self) -> Sequence[int]:
        return self.small.shape

    @property
    def dtype(self) -> torch.dtype:
        return self.small.dtype

    @property
    def device(self) -> torch.device:
        return self.small.device

    def rows(self, images: slice, rows: slice) -> Tensor:
        return self.small[images, rows]


def _as_rows(logits: Tensor | LogitRows) -> LogitRows:
    if not isinstance(logits, Tensor):
        return logits
    _check_logits(logits)
    return _WholeLogits(_channels_last(logits.detach()))


def _enlarged_bands(views: Sequence[LogitRows], size: Sequence[int]) -> Iterator[tuple[Band, list[Tensor]]]:
    """Band by band, the enlarged logits of every view, (b, rows, W, K) each, which the next band overwrites."""
    _check_size(size)
    plans = [plan(view, size) for view in views]  # all cut the pictures alike
    scratches = [Scratch(view) for view in views]
    for bands in zip(*(bands for bands, _ in plans), strict=True):
        enlarged = []
        for view, band, (_, columns), scratch in zip(views, bands, plans, scratches, strict=True):
            wide = enlarge(view.rows(band.images, band.needed), band.down, columns, scratch)  # (b, rows, W * K)
            enlarged.append(wide.view(-1, band.height, size[1], view.shape[-1]))
        yield bands[0], enlarged


def _mean_probability(enlarged: Sequence[Tensor]) -> Tensor:
    """The mean over the views of (b, rows, W, K) logits as probabilities."""
    each = (logits.softmax(-1) if logits.shape[-1] > 1 else logits.sigmoid() for logits in enlarged)
    total = next(each)
    for probability in each:
        total += probability
    return total.div_(len(enlarged))


def _fill_strip(prediction: Tensor, small: LogitRows, strip: slice, rows: Taps, columns: Taps) -> None:
    """Write the classes of some rows into ``prediction``, (B, H, W); pixels between unlike corners are worked out."""
    low, high, weight = (values[strip] for values in rows)
    start = int(low[0])
    few_rows = small.rows(slice(None), slice(start, int(high[-1]) + 1))  # (B, r, w, K)
    rows = Taps(low - start, high - start, weight)
    winners = few_rows.argmax(-1)  # (B, r, w)
    corners = [winners[:, y][:, :, x] for y in (rows.low, rows.high) for x in (columns.low, columns.high)]
    mixed = torch.stack([corners[0] != corner for corner in corners[1:]]).any(0)  # (B, rows, W)
    if mixed.float().mean() > _MIXED_SHARE:
        _fill_bands(prediction, small, strip)
        return
    prediction[:, strip] = corners[0]
    _fill_mixed(prediction[:, strip], mixed, few_rows, rows, columns)


def _fill_bands(prediction: Tensor, small: LogitRows, strip: slice) -> None:
    """Write the classes of some rows into ``prediction``, (B, H, W), every pixel worked out."""
    size, K = prediction.shape[1:], small.shape[-1]
    bands, columns = plan(small, size)
    scratch = Scratch(small)
    for band in bands:
        if strip.start <= band.rows.start < strip.stop:
            few_rows = small.rows(band.images, band.needed)
            enlarged = enlarge(few_rows, band.down, columns, scratch)  # (b, rows, W * K)
            prediction[band.images, band.rows] = enlarged.view(-1, band.height, size[1], K).argmax(-1)


def _fill_mixed(prediction: Tensor, mixed: Tensor, small: Tensor, rows: Taps, columns: Taps) -> None:
    """Work out the pixels marked in ``mixed`` one by one and write them into ``prediction``."""
    step = max(1, _MIXED_BYTES // (small.shape[-1] * small.element_size()))
    for places in torch.split(mixed.nonzero(), step):
        image, y, x = places.unbind(1)
        across, down = columns.weight[x, None], rows.weight[y, None]
        top, bottom = (
            torch.lerp(small[image, taps[y], columns.low[x]], small[image, taps[y], columns.high[x]], across)
            for taps in (rows.low, rows.high)
        )
        prediction[image, y, x] = torch.lerp(top, bottom, down).argmax(-1)


def _channels_last(logits: Tensor) -> Tensor:
    """The logits as (B, h, w, K) in memory, in float32 or better."""
    return logits.permute(0, 2, 3, 1).to(torch.promote_types(logits.dtype, torch.float32)).contiguous()


def _binary_cross_entropy(logits: Tensor, labels: Tensor, ignore_index: int, reduction: str) -> Tensor:
    precise = logits.to(torch.promote_types(logits.dtype, torch.float32))
    upsampled = F.interpolate(precise, labels.shape[-2:], mode="bilinear", align_corners=False)
    each = F.binary_cross_entropy_with_logits(upsampled[:, 0], labels.to(precise.dtype), reduction="none")
    each = each * (labels != ignore_index)
    return each.mean() if reduction == "mean" else each.sum()


def _check_size(size: Sequence[int]) -> None:
    if len(size) != 2 or min(size) < 1:
        raise ValueError(f"size is {tuple(size)}; it must be (H, W) with both at least 1")


def _check_logits(logits: Tensor) -> None:
    if logits.ndim != 4 or 0 in logits.shape:
        raise ValueError(f"logits are {list(logits.shape)}; they must be (B, K, h, w), none empty")
