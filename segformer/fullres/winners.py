"""The most likely class of every pixel, by way of the few classes that can be: how ``fullres.argmax`` works on a CPU.

A cell is what lies between four small logits, its corners. Enlarged bilinearly, the logits of a pixel are convex
combinations of those at the corners of its cell. So a class that wins all four corners wins every pixel between them;
and where corners have unlike winners, a class that one of these exceeds at all four corners wins none. Of 150 classes
two or three remain there, and only those are worked out.

Cells are numbered by their first corner, so there are as many as small logits.
"""

from __future__ import annotations

import torch
from torch import Tensor

from segformer.fullres.bands import Taps

_CELL_BYTES = 2**20  # of logits at the corners of cells, or of pixels, worked out together
_CANDIDATE_SHARE = 0.3  # beyond this share of all classes of all cells it is cheaper to work out every pixel


def winners_by_cells(small: Tensor, rows: Taps, columns: Taps) -> Tensor | None:
    """The largest class of every pixel that the taps tell, of equal ones the first.

    Shapes: (B, h, w, K) -> (B, H, W) int64. None where so many classes can win that this would be no gain.
    """
    winners = small.argmax(-1)  # (B, h, w)
    logits, corners = small.reshape(-1, small.shape[-1]), _corners(winners)
    won = winners.take(corners)
    has_pixels = torch.zeros_like(winners, dtype=torch.bool)
    has_pixels[:, rows.low[:, None], columns.low] = True
    unlike = ((won != won[0]).any(0) & has_pixels.flatten()).nonzero()[:, 0]
    found = _candidates(logits, corners[:, unlike], won[:, unlike])
    if found is None:
        return None
    can_win, counts = found
    classes = _to_pixels(winners, rows, columns)  # right where corners are alike
    width = 1
    while (counts > width).any():
        some = ((counts > width) & (counts <= 4 * width)).nonzero()[:, 0]
        width *= 4
        listed, cells = _listed(can_win[some], counts[some], width), unlike[some]
        number = torch.full_like(winners, -1).put_(cells, torch.arange(len(cells)))
        around = logits.take(corners[:, cells].t()[..., None] * logits.shape[1] + listed[:, None])
        _fill(classes, _to_pixels(number, rows, columns), around, listed, rows, columns)
    return classes


def _corners(cells: Tensor) -> Tensor:
    """Where the small logits at the corners of each of (B, h, w) cells stand among those of all, (4, B * h * w)."""
    h, w = cells.shape[1:]
    below, right = (torch.arange(1, n + 1).clamp(max=n - 1) for n in (h, w))
    places = torch.arange(cells.numel()).view_as(cells)
    lower = places[:, below]
    return torch.stack([places, places[:, :, right], lower, lower[:, :, right]]).flatten(1)


def _to_pixels(values: Tensor, rows: Taps, columns: Taps) -> Tensor:
    """To every pixel the value of its cell: (B, h, w) -> (B, H, W)."""
    return values.index_select(1, rows.low).index_select(2, columns.low)


def _candidates(logits: Tensor, corners: Tensor, won: Tensor) -> tuple[Tensor, Tensor] | None:
    """Which classes can win in a cell, (n, K), and how many, (n,); None as soon as they are too many.

    ``logits`` are those of all cells, (N, K); ``corners`` and ``won`` their places and winners at each corner, (4, n).
    """
    can_win = torch.empty(corners.shape[1], logits.shape[1], dtype=torch.bool)
    counts = torch.zeros(corners.shape[1], dtype=torch.int64)
    rounding = 16 * torch.finfo(logits.dtype).eps * torch.stack(logits.aminmax()).abs().max()
    step = max(1, _CELL_BYTES // (4 * logits[0].nbytes))
    for some in (slice(first, first + step) for first in range(0, len(can_win), step)):
        at_corners = logits.index_select(0, corners[:, some].flatten()).view(4, -1, logits.shape[1])
        can_win[some] = can_win_between(at_corners, won[:, some], rounding)
        counts[some] = can_win[some].sum(1)
        if counts.sum() > _CANDIDATE_SHARE * logits.numel():
            return None
    return can_win, counts


def can_win_between(corners: Tensor, won: Tensor, rounding: Tensor | float) -> Tensor:
    """Which classes no winner exceeds at all corners by more than ``rounding``: (4, n, K) and (4, n) -> (n, K) bool.

    Two unlike winners are asked; others of the four would exclude hardly any more.
    """
    another = won.gather(0, (won != won[0]).byte().argmax(0, keepdim=True))[0]
    can_win = torch.ones(corners.shape[1:], dtype=torch.bool)
    for winner in (won[0], another):
        ahead = corners - corners.gather(2, winner[:, None].expand(4, -1, 1))
        can_win &= ahead.amax(0) >= -rounding
    return can_win


def _listed(can_win: Tensor, counts: Tensor, width: int) -> Tensor:
    """The classes that (n, K) marks, in order, (n, width); the first stands once more where there are fewer."""
    first = counts.cumsum(0) - counts
    cell, k = can_win.nonzero().unbind(1)
    listed = k[first, None].repeat(1, width)
    listed[cell, torch.arange(len(k)) - first[cell]] = k
    return listed


def _fill(classes: Tensor, number: Tensor, corners: Tensor, listed: Tensor, rows: Taps, columns: Taps) -> None:
    """Write into ``classes``, (B, H, W), the pixels that have a ``number``: that of a cell, or -1.

    Of the cells there are the classes that can win, (n, width), and their logits at the corners, (n, 4, width).
    """
    H, W = classes.shape[1:]
    width = listed.shape[1]
    step = max(1, _CELL_BYTES // (4 * width * corners.element_size()))
    for pixels in torch.split((number.flatten() >= 0).nonzero()[:, 0], step):
        cell = number.take(pixels)
        across, down = columns.weight.take(pixels % W), rows.weight.take(pixels // W % H)
        left, right = corners.index_select(0, cell).view(-1, 2, 2, width).unbind(2)  # (pixels, 2, width)
        top, bottom = torch.lerp(left, right, across[:, None, None]).unbind(1)
        winner = torch.lerp(top, bottom, down[:, None]).argmax(1)
        classes.put_(pixels, listed.take(cell * width + winner))
