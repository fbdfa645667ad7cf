"""How a photo is shown to the model: at which sizes, mirrored or not, as a whole or in overlapping windows."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import cycle, groupby

import torch
from torch import Tensor
from torch.nn import functional

from segformer.geometry import STRIDE, Placement, place, unpadded
from segformer.processor import ImageProcessor

Box = tuple[int, int, int, int]  # left, top, right, bottom in pixels, as PIL has it

_GRID = 32  # pixels from one position of the coarsest map to the next, and the least that a side may measure


@dataclass(frozen=True)
class Views:
    """The views of a photo whose probabilities are averaged; by default the one that transformers' pipeline takes.

    ``resize`` is "processor" (as the checkpoint's processor places a whole photo), a number (a square of so many
    pixels), "keep-ratio" (as the paper scores: the shape is kept, within the processor's ``keep_ratio_scale``, or 2048
    x 512) or "original". Left out it is "processor", and "original" with windows.

    With ``window`` a photo larger than so many pixels a side is seen in windows of that size, each of which shares
    ``overlap`` pixels with the next (left out, a quarter). Where windows overlap their logits are averaged, at the
    logits' own resolution. ``flip`` adds the mirror image of every view, and each of ``scales`` a view so many times as
    large. Raises ValueError naming the field, its value and the rule.
    """

    resize: int | str | None = None
    window: int | None = None
    overlap: int | None = None
    flip: bool = False
    scales: tuple[float, ...] = (1.0,)

    def __post_init__(self) -> None:
        if self.resize not in (None, "processor", "keep-ratio", "original") and not _is_side(self.resize):
            raise ValueError(
                f"resize is {self.resize!r}; it must be 'processor', 'keep-ratio', 'original' or a side in pixels of "
                f"at least {_GRID}"
            )
        if self.window is not None and not (_is_side(self.window) and self.window % _GRID == 0):
            raise ValueError(f"window is {self.window!r}; it must be a multiple of {_GRID} pixels")
        if self.overlap is not None and self.overlap not in range(0, self.window or 0, _GRID):
            raise ValueError(
                f"overlap is {self.overlap!r}; it must be a multiple of {_GRID} pixels, less than the window, which is "
                f"{self.window}"
            )
        if not isinstance(self.flip, bool):
            raise ValueError(f"flip is {self.flip!r}; it must be true or false")
        if not (isinstance(self.scales, tuple) and self.scales and all(map(_is_scale, self.scales))):
            raise ValueError(f"scales is {self.scales!r}; it must be a tuple of numbers from 0.1 to 4")

    @property
    def chosen_overlap(self) -> int:
        """The pixels that neighbouring windows share."""
        if self.overlap is not None:
            return self.overlap
        return 0 if self.window is None else self.window // 4 // _GRID * _GRID

    def sizes(self, processor: ImageProcessor, width: int, height: int) -> tuple[tuple[int, int], ...]:
        """The (height, width) of a photo's view at each of the scales."""
        return tuple(placement.view for placement in self.places(processor, width, height))

    def places(self, processor: ImageProcessor, width: int, height: int) -> tuple[Placement, ...]:
        """Where a photo lies in its view at each of the scales."""
        return tuple(self._place(processor, width, height, scale) for scale in self.scales)

    def _place(self, processor: ImageProcessor, width: int, height: int, scale: float) -> Placement:
        resize = self.resize or ("processor" if self.window is None else "original")
        if resize == "processor" and not processor.do_resize:
            resize = "original"
        if resize == "keep-ratio":
            return processor.place_keeping_ratio(width, height, scale)
        if resize == "processor":
            return place(processor.resize_mode, _scaled(processor.size, scale), width, height, whole=True)
        size = (resize, resize) if isinstance(resize, int) else (max(height, _GRID), max(width, _GRID))
        return Placement.filling(_scaled(size, scale))

    def window_for(self, size: tuple[int, int]) -> int | None:
        """The window for a view of this (height, width), or None where one would cover it."""
        return self.window if self.window is not None and max(size) > self.window else None


def mirrored_logits(model: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    """What a model makes of mirror images, turned back onto the grid of ``model(images)``.

    Shapes: (B, 3, H, W) -> (B, K, h, w).

    A width between two multiples of the stride is first filled up to the next; the grid of the mirror image would else
    begin in the middle of a position, up to three pixels beside that of the photo.
    """
    missing = -images.shape[-1] % STRIDE
    return model(functional.pad(images, (0, missing, 0, 0), mode="replicate").flip(-1)).flip(-1)


def logits_of_views(
    model: Callable[[Tensor], Tensor], views: Sequence[Tensor], flip: bool = False, window: int = 0, stride: int = 0
) -> list[Tensor]:
    """The logits of views of one batch, and with ``flip`` of their mirror images, turned back.

    Shapes: views (B, 3, H, W), of any sizes -> (B, K, ceil(H / 4), ceil(W / 4)) each. With ``window`` a photo that is
    larger, alone in its batch, is seen in windows of so many pixels, ``stride`` from one to the next, whose logits are
    averaged where they overlap.
    """
    looks: list[Callable[[Tensor], Tensor]] = [model]
    if flip:
        looks.append(partial(mirrored_logits, model))
    return [_in_windows(look, view, window, stride) for look in looks for view in views]


def logits_of_photo(seen: Sequence[Tensor], number: int, shown: Sequence[tuple[int, int]]) -> list[Tensor]:
    """The logits (1, K, h, w) of one photo of a batch, of all views that ``logits_of_views`` gave, without its padding.

    ``shown`` is (height, width) of what is no padding in each view.
    """
    sizes = cycle(shown)  # of the mirror images, too
    return [unpadded(logits[number : number + 1], size) for logits, size in zip(seen, sizes, strict=False)]


def _in_windows(look: Callable[[Tensor], Tensor], view: Tensor, window: int, stride: int) -> Tensor:
    size = view.shape[-2], view.shape[-1]
    if not window or max(size) <= window:
        return look(view)

    def crops(boxes: Sequence[Box]) -> Tensor:
        return look(torch.cat([view[..., top:bottom, left:right] for left, top, right, bottom in boxes]))

    num_labels = crops([(0, 0, min(window, size[1]), min(window, size[0]))]).shape[1]
    sliding = SlidingLogits(crops, size, window, window - stride, num_labels, device=view.device)
    return sliding.rows(slice(0, 1), slice(0, sliding.shape[1])).permute(0, 3, 1, 2)


class SlidingLogits:
    """The logits of a photo that is seen in windows, as ``fullres.LogitRows``: (1, h, w, K).

    They lie on the grid that the whole photo's logits would have, of ceil(size / 4) positions, each the mean over the
    windows that cover it. A row of windows is run when the first of its logits are asked for, and what lies above the
    rows asked for is forgotten: memory grows with the width of the photo and not with its height. ``look`` gives the
    logits (b, K, h, w) of a few windows of one size.
    """

    def __init__(
        self,
        look: Callable[[Sequence[Box]], Tensor],
        size: tuple[int, int],
        window: int,
        overlap: int,
        num_labels: int,
        batch_size: int = 1,
        device: torch.device | str = "cpu",
    ) -> None:
        self.shape = (1, *(math.ceil(side / STRIDE) for side in size), num_labels)
        self.dtype = torch.float32
        self.device = torch.device(device)
        self._look, self._size, self._window, self._batch_size = look, size, window, batch_size
        self._tops, self._lefts = (window_starts(side, window, overlap) for side in size)
        self._counts = [  # how many windows cover each row and each column of the logits
            self._count_cover(starts, length)
            for starts, length in zip((self._tops, self._lefts), self.shape[1:3], strict=True)
        ]
        self._waiting = list(self._tops)
        self._asked = self._first = 0  # the first row that was asked for last, and the first that is there
        self._logits = torch.empty(1, 0, self.shape[2], num_labels, device=self.device)  # (1, r, w, K)

    def rows(self, images: slice, rows: slice) -> Tensor:
        """Some rows of the logits, (1, r, w, K). Rows above those of an earlier call are gone."""
        self._asked = rows.start
        while self._waiting and self._waiting[0] // STRIDE < rows.stop:
            self._add_windows(self._waiting.pop(0))
        return self._logits[images, rows.start - self._first : rows.stop - self._first]

    def _add_windows(self, window_top: int) -> None:
        """Run a row of windows and add its logits; those that no further row covers become means."""
        top, bottom = window_top // STRIDE, min((window_top + self._window) // STRIDE, self.shape[1])
        first = min(self._asked, top)
        kept = self._logits[:, first - self._first :].clone()
        self._logits = kept  # the rows above are let go of before room is made for those below
        logits = torch.zeros(1, bottom - first, *self.shape[2:], device=self.device)
        logits[:, : kept.shape[1]] = kept
        for boxes in self._batches(window_top):
            for (left, *_), one in zip(boxes, self._look(boxes).permute(0, 2, 3, 1), strict=True):
                place = slice(left // STRIDE, left // STRIDE + one.shape[1])
                logits[0, top - first :, place] += one
        done = self._waiting[0] // STRIDE if self._waiting else bottom
        down, across = self._counts
        logits[0, top - first : done - first] /= down[top:done, None, None] * across[None, :, None]
        self._logits, self._first = logits, first

    def _batches(self, top: int) -> list[list[Box]]:
        """The windows of a row; the last may be up to three pixels narrower than the others and runs by itself."""
        height, width = self._size
        bottom = min(top + self._window, height)
        boxes = [(left, top, min(left + self._window, width), bottom) for left in self._lefts]
        alike = [list(group) for _, group in groupby(boxes, lambda box: box[2] - box[0])]
        step = self._batch_size
        return [group[first : first + step] for group in alike for first in range(0, len(group), step)]

    def _count_cover(self, starts: Sequence[int], length: int) -> Tensor:
        counts = torch.zeros(length, device=self.device)
        for start in starts:
            counts[start // STRIDE : (start + self._window) // STRIDE] += 1
        return counts


def window_starts(length: int, window: int, overlap: int) -> list[int]:
    """Where windows begin along a side of ``length`` pixels, in order; all fall on the grid of the logits.

    The last ends with the photo, or up to three pixels beyond it, and so shares more with the one before.
    """
    if length <= window:
        return [0]
    last = math.ceil((length - window) / STRIDE) * STRIDE
    return [*range(0, last, window - overlap), last]


def _scaled(size: tuple[int, int], scale: float) -> tuple[int, int]:
    """A size so many times as large, to whole positions of the coarsest map."""
    if scale == 1:
        return size
    height, width = (max(_GRID, round(side * scale / _GRID) * _GRID) for side in size)
    return height, width


def _is_side(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= _GRID


def _is_scale(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0.1 <= value <= 4
