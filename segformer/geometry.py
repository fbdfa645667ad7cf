"""Where a photo comes to lie in what the model sees of it: the one place that decides sizes, crops and padding.

squash     resized to the size, whatever its shape: what transformers' processor does
keep       resized to fit into the size with its shape kept, the rest padded on the right and below
crop       resized to cover the size with its shape kept, and what stands out cut away
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch.nn.functional as F
from PIL import Image
from torch import Tensor

Size = tuple[int, int]  # height, width in pixels

RESIZE_MODES = ("squash", "keep", "crop")
MOST_PIXELS = 2**26  # that a photo is resized to: 8192 x 8192
PAPER_SCALE = (2048, 512)  # long side, short side: how the published weights were scored
STRIDE = 4  # pixels from one logit to the next


@dataclass(frozen=True)
class Placement:
    """A photo resized as a whole to ``resized``, of which ``shown`` is seen from ``corner`` (top, left) on.

    That lies in the upper left corner of ``view``; what is left of it is padding.
    """

    resized: Size
    shown: Size
    view: Size
    corner: tuple[int, int] = (0, 0)

    @classmethod
    def filling(cls, size: Size) -> Placement:
        """The whole photo, resized to a view of this size."""
        return cls(size, size, size)

    def resize(self, picture: Image.Image, resample: int) -> Image.Image:
        """A photo or a label map as far as it is seen, without padding."""
        if picture.size != self.resized[::-1]:
            picture = picture.resize(self.resized[::-1], resample)
        (top, left), (height, width) = self.corner, self.shown
        return picture if self.shown == self.resized else picture.crop((left, top, left + width, top + height))

    def pad(self, seen: Tensor, value: int) -> Tensor:
        """What is seen, (..., height, width) as ``shown``, in its view."""
        missing = self.view[0] - seen.shape[-2], self.view[1] - seen.shape[-1]
        return F.pad(seen, (0, missing[1], 0, missing[0]), value=value) if any(missing) else seen

    def part_of(self, photo: Image.Image) -> Image.Image:
        """The part of a photo that is seen, at the photo's own scale."""
        if self.shown == self.resized:
            return photo
        (top, left), (height, width) = self.corner, self.shown
        across, down = photo.width / self.resized[1], photo.height / self.resized[0]
        box = (left * across, top * down, (left + width) * across, (top + height) * down)
        return photo.crop(tuple(round(side) for side in box))  # type: ignore[arg-type]


def place(
    mode: str, size: Size, width: int, height: int, whole: bool = False, at: tuple[float, float] | None = None
) -> Placement:
    """Where a photo of so many pixels lies.

    A crop begins ``at`` shares of 0 to 1 of the room that there is for it, down and across, else it is the middle one;
    where the photo is wanted as a ``whole``, nothing of it is cut away and its view follows its shape. Raises
    ValueError for a photo so long that this takes more pixels than memory should be asked for.
    """
    if mode == "keep":
        inner = _inside(size, width, height)
        return Placement(inner, inner, size)
    if mode != "crop":
        return Placement.filling(size)
    covering = _covering(size, width, height)
    if whole:
        return Placement.filling(covering)
    room = covering[0] - size[0], covering[1] - size[1]
    if at is None:
        return Placement(covering, size, size, (room[0] // 2, room[1] // 2))
    return Placement(covering, size, size, (int(at[0] * (room[0] + 1)), int(at[1] * (room[1] + 1))))


def keep_ratio_size(width: int, height: int, scale: tuple[int, int], multiple: int) -> Size:
    """The size at which the published protocol scores a photo: within a long and a short side, its shape kept.

    Then each side is stretched up to a ``multiple``. The reference resizes twice to get there, which blurs more.
    """
    factor = min(scale[0] / max(width, height), scale[1] / min(width, height))
    sides = (max(1, int(side * factor + 0.5)) for side in (height, width))
    height, width = (math.ceil(side / multiple) * multiple for side in sides)
    return height, width


def unpadded(logits: Tensor, shown: Size) -> Tensor:
    """The logits of what is seen of a photo, of those of its whole view, (..., h, w)."""
    rows, columns = (-(-side // STRIDE) for side in shown)
    return logits[..., :rows, :columns]


def _inside(size: Size, width: int, height: int) -> Size:
    """The largest size of a photo's shape within a size, to whole logits, so that padding begins where one ends."""
    factor = min(size[0] / height, size[1] / width)
    sides = (max(STRIDE, int(side * factor / STRIDE + 0.5) * STRIDE) for side in (height, width))
    inner = tuple(min(side, limit) for side, limit in zip(sides, size, strict=True))
    return inner[0], inner[1]


def _covering(size: Size, width: int, height: int) -> Size:
    """The smallest size of a photo's shape that covers a size."""
    factor = max(size[0] / height, size[1] / width)
    covering = tuple(max(int(side * factor + 0.5), least) for side, least in zip((height, width), size, strict=True))
    if covering[0] * covering[1] > MOST_PIXELS:
        raise ValueError(
            f"photo is {width} x {height}, which would be {covering[1]} x {covering[0]} to cover {size[1]} x "
            f"{size[0]}; cut it into several, or take another resize mode (squash or keep)"
        )
    return covering[0], covering[1]
