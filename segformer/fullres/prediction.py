"""Predictions at the labels' resolution, four times finer than the logits, without logits of that size.

What they mean stands in ``plain_argmax`` and its kin: enlarge the logits bilinearly, then reduce them. (Reducing first
and enlarging the label map afterwards gives a coarser answer.) That way writes K x H x W floats. Here:

* ``argmax`` works out only those classes that can win between four small logits (``winners``), mostly one.
* ``argmax_of_mean``, ``argmax_with_probability`` and ``probabilities`` walk in bands of a few rows (``bands``), over
  one or more views of the same pictures.

Predictions also take ``LogitRows``: logits too large to be held, made row by row as the bands come to need them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from segformer.fullres import cells
from segformer.fullres.bands import Band, LogitRows, Scratch, Taps, band_height, channels_last, enlarge, plan, taps
from segformer.fullres.losses import check_logits
from segformer.fullres.winners import winners_by_cells

_STRIP_PIXELS = 2**20  # of pictures looked at together for unlike corners


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


@torch.no_grad()
def argmax(logits: Tensor | LogitRows, size: tuple[int, int]) -> Tensor:
    """The most likely class of every pixel of a picture of ``size`` (H, W) pixels.

    Shapes: (B, K, h, w) -> (B, H, W) int64. Of equal classes the first wins.
    """
    _check_size(size)
    if isinstance(logits, Tensor) and logits.ndim == 4 and cells.can_run(logits):
        return cells.argmax(logits.permute(0, 2, 3, 1), size)
    small = _as_rows(logits)
    B, h, w, K = small.shape
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
    for band, enlarged in _enlarged_bands(small, size):
        mean = _mean_probability(enlarged)  # (b, rows, W, K)
        for place, k in enumerate(classes):
            found[band.images, place, band.rows] = mean[..., k]
    return found


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
    check_logits(logits)
    return _WholeLogits(channels_last(logits.detach()))


def _enlarged_bands(views: Sequence[LogitRows], size: Sequence[int]) -> Iterator[tuple[Band, list[Tensor]]]:
    """Band by band, the enlarged logits of every view, (b, rows, W, K) each, which the next band overwrites."""
    _check_size(size)
    plans = [plan(view, size) for view in views]  # all cut the pictures alike
    scratches = [Scratch(view) for view in views]
    for bands in zip(*(bands for bands, _ in plans), strict=True):
        enlarged = []
        for view, band, (_, columns), scratch in zip(views, bands, plans, scratches, strict=True):
            wide = enlarge(view.rows(band.images, band.needed), band, columns, scratch)  # (b, rows, W * K)
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
    """Write the classes of some rows into ``prediction``, (B, H, W)."""
    low, high, weight = (values[strip] for values in rows)
    start = int(low[0])
    few_rows = small.rows(slice(None), slice(start, int(high[-1]) + 1))  # (B, r, w, K)
    classes = winners_by_cells(few_rows, Taps(low - start, high - start, weight), columns)
    if classes is None:
        _fill_bands(prediction, small, strip)
    else:
        prediction[:, strip] = classes


def _fill_bands(prediction: Tensor, small: LogitRows, strip: slice) -> None:
    """Write the classes of some rows into ``prediction``, (B, H, W), every pixel worked out."""
    size, K = prediction.shape[1:], small.shape[-1]
    bands, columns = plan(small, size)
    scratch = Scratch(small)
    for band in bands:
        if strip.start <= band.rows.start < strip.stop:
            few_rows = small.rows(band.images, band.needed)
            enlarged = enlarge(few_rows, band, columns, scratch)  # (b, rows, W * K)
            prediction[band.images, band.rows] = enlarged.view(-1, band.height, size[1], K).argmax(-1)


def _check_size(size: Sequence[int]) -> None:
    if len(size) != 2 or min(size) < 1:
        raise ValueError(f"size is {tuple(size)}; it must be (H, W) with both at least 1")
