"""Small logits enlarged bilinearly, a band of rows at a time: what ``fullres`` and ``losses`` walk over.

A band is a few rows of the enlarged logits, (b, rows, W, K), made from the few small rows that it needs: along the
width first, then down by a small matrix. ``add_reduced`` is the way back, for gradients. Weights and corners are those
of ``F.interpolate(mode="bilinear", align_corners=False)``.

The four-fold enlargement, which training nearly always is, goes along the width by strided interpolation, and any other
by gathering. On a CPU it goes down in strides, too, and back by one depthwise convolution: a matrix nearly all zeros
waits for memory there.
"""

from __future__ import annotations

import math
import platform
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple, Protocol, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

Made = TypeVar("Made")

BAND_BYTES = {"cpu": 10 * 2**20, "cuda": 2**28}  # what stays in a CPU's cache; what fills a GPU


class LogitRows(Protocol):
    """Logits of which only some rows exist at a time; bands ask for them from top to bottom."""

    @property
    def shape(self) -> Sequence[int]:
        """(B, h, w, K), all that there will be."""

    @property
    def dtype(self) -> torch.dtype:
        """float32 or better."""

    @property
    def device(self) -> torch.device: ...

    def rows(self, images: slice, rows: slice) -> Tensor:
        """These rows of these images, (b, r, w, K). Rows above the first of any earlier call may be gone."""


class Taps(NamedTuple):
    """Bilinear interpolation along one side: output i is low + weight * (high - low) of the inputs named."""

    low: Tensor  # (n_out,) int64
    high: Tensor  # (n_out,) int64
    weight: Tensor  # (n_out,) float

    def to(self, device: torch.device) -> Taps:
        """The same on another device."""
        return Taps(*(values.to(device) for values in self))

    def matrix(self, first: int, last: int) -> tuple[slice, Tensor]:
        """Outputs first to last - 1 as a matrix over the inputs that they need: which these are, (n_out, n_in)."""
        low, high, weight = (values[first:last] for values in self)
        start, stop = int(low[0]), int(high[-1]) + 1
        matrix = weight.new_zeros(last - first, stop - start)
        outputs = torch.arange(last - first)
        matrix.index_put_((outputs, low - start), 1 - weight, accumulate=True)
        matrix.index_put_((outputs, high - start), weight, accumulate=True)
        return slice(start, stop), matrix


def taps(size_in: int, size_out: int, dtype: torch.dtype) -> Taps:
    """The taps of ``F.interpolate(mode="bilinear", align_corners=False)``, in its own arithmetic.

    On the CPU, where bands are planned: asking a GPU which rows a band needs would make it wait.
    """
    outputs = torch.arange(size_out, dtype=dtype)
    scale = torch.tensor(size_in, dtype=dtype) / size_out
    source = (scale * (outputs + 0.5) - 0.5).clamp(min=0)
    low = source.long().clamp(max=size_in - 1)
    return Taps(low, (low + 1).clamp(max=size_in - 1), (source - low).clamp(0, 1))


class Band(NamedTuple):
    """Rows of some pictures of a batch: the rows of the small logits that they need, and the matrix between the two."""

    images: slice
    rows: slice
    needed: slice
    down: Tensor  # (rows, needed)
    beyond: tuple[int, int] | None  # four-fold: small rows needed above the first and below the last one, 0 or 1 each

    @property
    def height(self) -> int:
        """The rows of each picture."""
        return self.down.shape[0]


class Scratch:
    """Memory by name that every band uses anew: for a CPU, fresh pages cost more than the arithmetic on them."""

    def __init__(self, like: Tensor | LogitRows) -> None:
        self.dtype, self.device = like.dtype, like.device
        self.buffers: dict[str, Tensor] = {}

    def __call__(self, name: str, *shape: int) -> Tensor:
        size = math.prod(shape)
        if name not in self.buffers or self.buffers[name].numel() < size:
            self.buffers[name] = torch.empty(size, dtype=self.dtype, device=self.device)
        return self.buffers[name][:size].view(shape)


_held_by_graphs: list[Any] = []


def keep_for_graphs(made: Made, device: torch.device) -> Made:
    """What was made on a device, kept for good if a CUDA graph is being captured, which will read it by its address."""
    is_live = device.type == "cuda" and torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    if is_live and torch.cuda.is_current_stream_capturing():
        _held_by_graphs.append(made)
    return made


def channels_last(logits: Tensor) -> Tensor:
    """Logits (B, K, h, w) as (B, h, w, K) in memory, in float32 or better."""
    return logits.permute(0, 2, 3, 1).to(torch.promote_types(logits.dtype, torch.float32)).contiguous()


def plan(small: Tensor | LogitRows, size: Sequence[int]) -> tuple[list[Band], Taps]:
    """How to enlarge (B, h, w, K) to ``size`` in bands, and the taps along the width."""
    B, h, w, K = small.shape
    return keep_for_graphs(_plan_once((B, h, w, K), (size[0], size[1]), small.dtype, small.device), small.device)


@lru_cache(maxsize=16)
@torch.inference_mode(mode=False)  # a plan made in an evaluation serves training too
def _plan_once(
    small: tuple[int, int, int, int], size: tuple[int, int], dtype: torch.dtype, device: torch.device
) -> tuple[list[Band], Taps]:
    B, h, w, K = small
    H, W = size
    rows, columns = taps(h, H, dtype), taps(w, W, dtype)
    goes_by_strides = device.type == "cpu" and _is_fourfold(h, H) and _is_fourfold(w, W)
    if device.type == "cpu":
        step = band_height(W, K, dtype, device)
        together = max(1, step // H)
    else:  # whole pictures would need a large matrix, nearly all zeros: the loss would multiply ten times as much
        most, together = band_height(W, K, dtype, device, B), B
        step = math.ceil(H / math.ceil(H / most))  # as many bands, all alike, so that none takes more memory
    bands = []
    for first in range(0, H, step):
        last = min(first + step, H)
        needed, down = rows.matrix(first, last)
        down = down.to(device)
        beyond = (int(first == 0), int(last == H)) if goes_by_strides else None
        images = (slice(image, image + together) for image in range(0, B, together))
        bands += [Band(some, slice(first, last), needed, down, beyond) for some in images]
    return bands, columns.to(device)


def band_height(width: int, num_labels: int, dtype: torch.dtype, device: torch.device, together: int = 1) -> int:
    """How many rows of this width a band has, of each of the pictures that are ``together`` in it."""
    row_bytes = together * width * num_labels * dtype.itemsize
    rows = max(1, BAND_BYTES.get(device.type, BAND_BYTES["cuda"]) // row_bytes)
    return max(4, rows - rows % 4) if device.type == "cpu" else rows  # those in the place of whole small rows


def enlarge(few_rows: Tensor, band: Band, columns: Taps, scratch: Scratch) -> Tensor:
    """Enlarge what a band needs: (b, r, w, K) -> (b, rows, W * K), along the width and then down."""
    if band.beyond:
        few_rows = _with_edges(few_rows, band.beyond)
    b, r, w, K = few_rows.shape
    W = len(columns.low)
    wide = scratch("wide", b, r, W, K)
    if _is_fourfold(w, W):
        _widen_fourfold(few_rows, wide)
    else:
        torch.index_select(few_rows, 2, columns.low, out=wide)
        high = torch.index_select(few_rows, 2, columns.high, out=scratch("high", *wide.shape))
        torch.lerp(wide, high, columns.weight[:, None], out=wide)
    enlarged = scratch("band", b, band.height, W * K)
    if band.beyond:
        return _lower_fourfold(wide.flatten(2), enlarged)
    return torch.bmm(band.down.expand(b, -1, -1), wide.flatten(2), out=enlarged)


def add_reduced(gradient: Tensor, slope: Tensor, band: Band, columns: Taps, scratch: Scratch) -> None:
    """Undo ``enlarge`` for a gradient: add (b, rows, W * K) to ``gradient``, (b, r, w, K), where it came from."""
    b, r, w, K = gradient.shape
    W = len(columns.low)
    if band.beyond and slope.dtype == torch.float32 and _HAS_DEPTHWISE:
        _add_narrowed_at_once(gradient, slope.view(b, -1, W, K), band.beyond)
        return
    wide = torch.bmm(band.down.t().expand(b, -1, -1), slope, out=scratch("wide", b, r, W * K)).view(b, r, W, K)
    if _is_fourfold(w, W):
        _add_narrowed_fourfold(gradient, wide)
        return
    high = torch.mul(wide, columns.weight[:, None], out=scratch("high", *wide.shape))
    gradient.index_add_(2, columns.high, high)
    gradient.index_add_(2, columns.low, wide.sub_(high))


# Of the four pixels that stand in the place of one small logit, at -3/8, -1/8, 1/8 and 3/8 of the way to the next one,
# the first two lie between it and the one before, the others between it and the one after. Those outside of the first
# and the last logit are these themselves. So a logit has a share in eight pixels, of eighths.

_PLACES = (5 / 8, 7 / 8, 1 / 8, 3 / 8)  # of the four, each between its two logits
_SHARES = (1, 3, 5, 7, 7, 5, 3, 1)
_HAS_DEPTHWISE = platform.machine() in ("x86_64", "AMD64") and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]


def _is_fourfold(w: int, W: int) -> bool:
    return 4 * w == W and w > 1


def _widen_fourfold(few_rows: Tensor, wide: Tensor) -> None:
    """Four-fold along the width: (b, r, w, K) into ``wide``, (b, r, 4 w, K)."""
    pixels = wide.view(*few_rows.shape[:3], 4, -1)  # (b, r, w, 4, K)
    before, after = few_rows[:, :, :-1], few_rows[:, :, 1:]
    for phase, weight in enumerate(_PLACES):
        places = slice(1, None) if phase < 2 else slice(None, -1)
        torch.lerp(before, after, weight, out=pixels[:, :, places, phase])
    pixels[:, :, 0, :2] = few_rows[:, :, :1]
    pixels[:, :, -1, 2:] = few_rows[:, :, -1:]


def _add_narrowed_fourfold(gradient: Tensor, wide: Tensor) -> None:
    """Undo ``_widen_fourfold`` for a gradient: add (b, r, 4 w, K) to ``gradient``, (b, r, w, K)."""
    before, first, last, after = gradient[:, :, :-1], gradient[:, :, 0], gradient[:, :, -1], gradient[:, :, 1:]
    for phase, own in enumerate((5 / 8, 7 / 8, 7 / 8, 5 / 8)):
        pixels = wide[:, :, phase::4]  # (b, r, w, K)
        gradient.add_(pixels, alpha=own)
        if phase < 2:
            before.add_(pixels[:, :, 1:], alpha=1 - own)
            first.add_(pixels[:, :, 0], alpha=1 - own)
        else:
            after.add_(pixels[:, :, :-1], alpha=1 - own)
            last.add_(pixels[:, :, -1], alpha=1 - own)


def _with_edges(few_rows: Tensor, beyond: tuple[int, int]) -> Tensor:
    """The small rows of a band with the first and the last one once more where the picture ends."""
    above, below = beyond
    parts = [few_rows[:, :1]] * above + [few_rows] + [few_rows[:, -1:]] * below
    return torch.cat(parts, 1) if len(parts) > 1 else few_rows


def _lower_fourfold(wide: Tensor, band: Tensor) -> Tensor:
    """Four-fold down: (b, r + 2, n) with a row above and one below into ``band``, (b, 4 r, n)."""
    b, r, n = wide.shape[0], wide.shape[1] - 2, wide.shape[2]
    rows = band.view(b, r, 4, n)
    for phase, weight in enumerate(_PLACES):
        above = 0 if phase < 2 else 1
        torch.lerp(wide[:, above : above + r], wide[:, above + 1 : above + 1 + r], weight, out=rows[:, :, phase])
    return band


def _add_narrowed_at_once(gradient: Tensor, slope: Tensor, beyond: tuple[int, int]) -> None:
    """Undo both for a gradient: add (b, 4 r, W, K) to ``gradient``, the r rows in whose place it is and those beside.

    Each class by itself is convolved with the shares, with a stride of 4; what falls beyond an edge belongs to it.
    """
    K, (above, below) = slope.shape[-1], beyond
    share = F.conv2d(slope.permute(0, 3, 1, 2), _convolution(K), stride=4, padding=6, groups=K).permute(0, 2, 3, 1)
    share[:, :, 1] += share[:, :, 0]  # (b, r + 2, w + 2, K)
    share[:, :, -2] += share[:, :, -1]
    if above:
        share[:, 1] += share[:, 0]
    if below:
        share[:, -2] += share[:, -1]
    gradient += share[:, above : share.shape[1] - below, 1:-1]


@lru_cache(maxsize=4)
@torch.inference_mode(mode=False)
def _convolution(K: int) -> Tensor:
    """What eight pixels along each side have of a logit, for every class: (K, 1, 8, 8)."""
    shares = torch.tensor(_SHARES) / 8
    return torch.outer(shares, shares).repeat(K, 1, 1, 1)
