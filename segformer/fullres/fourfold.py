"""The cross-entropy at four times the logits' resolution, and its gradient, written for torch.compile.

What inductor makes of this for a GPU is a handful of kernels that work out a pixel's K logits wherever they are needed:
nothing of size K x H x W is ever in memory, and there are no matrix products, no tables of indices and no atomics, so
that the bits are the same every time. Run as it stands, without the compiler, it holds several times K x H x W.

Between two neighbouring logits lie four pixels, at 1/8, 3/8, 5/8 and 7/8 of the way. Repeated at the edges, the logits
are (B, h + 2, w + 2, K) cells with (h + 1) x (w + 1) gaps between four of them; the two outermost rows and columns of
pixels are not there, and carry the label to ignore.

1. ``_losses`` works out every pixel from its four cells, and keeps what makes its logits probabilities.
2. ``_across`` works it out again, and adds its slope to the two cells beside it: (B, h + 1, 4, w, K).
3. ``_down`` adds that to the two cells above and below: (B, h, w, K).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

_PLACES = (1 / 8, 3 / 8, 5 / 8, 7 / 8)
_MOST_COMPILED = 8  # kinds of input, after which torch.compile no longer does

_kinds: set[Any] = set()


class Norms(NamedTuple):
    """What turns a pixel's logits z into probabilities, exp(z - high - rest): (B, h + 1, 4, w + 1, 4) each."""

    high: Tensor  # the largest of them
    rest: Tensor  # the log of the sum over the classes, beyond it; inf where the label is ignored


def is_fourfold(logits: Tensor, labels: Tensor) -> bool:
    """Whether labels (B, H, W) are four times as high and as wide as logits (B, K, h, w)."""
    return tuple(labels.shape[1:]) == (4 * logits.shape[2], 4 * logits.shape[3])


def can_compile(logits: Tensor, labels: Tensor, ignore_index: int) -> bool:
    """Whether there are kernels for such input, or may be: each kind has its own, with its sizes written into them."""
    modes = torch.is_inference_mode_enabled(), torch.are_deterministic_algorithms_enabled()
    layouts = tuple((each.shape, each.stride(), each.dtype, each.device) for each in (logits, labels))
    if len(_kinds) < _MOST_COMPILED:
        _kinds.add((layouts, ignore_index, modes))
    return (layouts, ignore_index, modes) in _kinds


def loss_and_gradient(
    small: Tensor, labels: Tensor, ignore_index: int, with_gradient: bool, compiled: bool = True
) -> tuple[Tensor, Tensor | None]:
    """The cross-entropy summed over the valid pixels, and its gradient with respect to ``small``, if wanted.

    Shapes: small (B, h, w, K) of any float type, labels (B, 4 h, 4 w) -> a scalar and (B, h, w, K), in float32 or
    better.
    """
    parts: list[Callable[..., Any]] = [_losses, _across, _down]
    losses, across, down = map(_compiled, parts) if compiled else parts
    cells = torch.cat([small[:, :1], small, small[:, -1:]], 1)
    cells = torch.cat([cells[:, :, :1], cells, cells[:, :, -1:]], 2)
    padded = F.pad(labels, (2, 2, 2, 2), value=ignore_index)
    total, norms = losses(cells, padded, ignore_index)
    return total, down(across(cells, padded, norms)) if with_gradient else None


@cache
def _compiled(part: Callable[..., Any]) -> Callable[..., Any]:
    # Without fullgraph it might run as it stands, and without these limits keep the logits that are used thrice.
    options: dict[str, str | int | bool | Callable[..., Any]] = {
        "realize_reads_threshold": 1000,
        "realize_opcount_threshold": 100_000,
    }
    return torch.compile(part, dynamic=False, fullgraph=True, options=options)


def _losses(cells: Tensor, labels: Tensor, ignore_index: int) -> tuple[Tensor, Norms]:
    """The loss, summed, and what the gradient needs of it; cells (B, h + 2, w + 2, K), labels (B, 4 h + 4, 4 w + 4)."""
    K = cells.shape[-1]
    labels = _by_gap(labels, cells)
    cells = _precise(cells)[:, :, None, :, None]
    place = (2 * torch.arange(4, device=cells.device, dtype=cells.dtype) + 1) / 8
    above, below = (
        _between(row[:, :, :, :-1], row[:, :, :, 1:], place[:, None]) for row in (cells[:, :-1], cells[:, 1:])
    )
    logits = _between(above, below, place[:, None, None, None])  # (B, h + 1, 4, w + 1, 4, K)
    high = logits.amax(-1)
    rest = (logits - high[..., None]).exp().sum(-1).log()
    truth = torch.where(torch.arange(K, device=cells.device) == labels[..., None], logits, 0).sum(-1)
    valid = (labels >= 0) & (labels < K) & (labels != ignore_index)
    return torch.where(valid, high - truth + rest, 0).sum(), Norms(high, torch.where(valid, rest, math.inf))


def _across(cells: Tensor, labels: Tensor, norms: Norms) -> Tensor:
    """The slopes of the pixels of every row, added to the cells beside them: (B, h + 1, 4, w, K)."""
    K, last = cells.shape[-1], cells.shape[2] - 3
    labels = _by_gap(labels, cells)
    cells = _precise(cells)[:, :, None]
    place = (2 * torch.arange(4, device=cells.device, dtype=cells.dtype) + 1) / 8
    row = _between(cells[:, :-1], cells[:, 1:], place[:, None, None])  # (B, h + 1, 4, w + 2, K)
    before, here, after = row[:, :, :, :-2], row[:, :, :, 1:-1], row[:, :, :, 2:]
    classes, column = torch.arange(K, device=cells.device), torch.arange(last + 1, device=cells.device)[:, None]

    def slope(logits: Tensor, gaps: slice, q: int) -> Tensor:
        high, rest, label = (each[:, :, :, gaps, q, None] for each in (norms.high, norms.rest, labels))
        truth = (classes == label) & (rest < math.inf)
        return torch.exp(logits - high - rest) - truth.to(logits.dtype)

    total = torch.zeros_like(here)
    for q, t in enumerate(_PLACES):  # of a repeated cell the share is its original's, which has all of the pixel then
        total = total + torch.where(column == 0, 1, t) * slope(_between(before, here, t), slice(None, -1), q)
        total = total + torch.where(column == last, 1, 1 - t) * slope(_between(here, after, t), slice(1, None), q)
    return total


def _down(rows: Tensor) -> Tensor:
    """What ``_across`` has made, (B, h + 1, 4, w, K), added to the cells above and below: (B, h, w, K)."""
    last = rows.shape[1] - 2
    row = torch.arange(last + 1, device=rows.device)[:, None, None]
    total = torch.zeros_like(rows[:, 1:, 0])
    for q, t in enumerate(_PLACES):
        total = total + torch.where(row == 0, 1, t) * rows[:, :-1, q]
        total = total + torch.where(row == last, 1, 1 - t) * rows[:, 1:, q]
    return total


def _by_gap(labels: Tensor, cells: Tensor) -> Tensor:
    """Labels (B, 4 h + 4, 4 w + 4) as (B, h + 1, 4, w + 1, 4)."""
    return labels.view(cells.shape[0], cells.shape[1] - 1, 4, cells.shape[2] - 1, 4)


def _between(a: Tensor, b: Tensor, place: float | Tensor) -> Tensor:
    return a + place * (b - a)


def _precise(values: Tensor) -> Tensor:
    return values.to(torch.promote_types(values.dtype, torch.float32))
