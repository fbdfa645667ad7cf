"""Photos as the published ADE20K recipe trains on them.

SegFormer (section 4.1) names the resizing, the crop and the flip; the numbers, the rule for a crop and the distortion
of colours are those of mmsegmentation's pipeline, which trained the published weights. Where this differs from it:

- Photos are resized by PIL, whose bilinear filter is antialiased where a photo shrinks; OpenCV's is not.
- A label is looked up in the middle of its pixel, where the photo is sampled too; OpenCV's nearest filter takes a
  corner of the pixel, half of one away.
- Saturation and hue change in one step and in floating point, hue by any amount. There, hue changes by whole numbers,
  and what OpenCV computes is rounded to 180 hues and 256 saturations, and to RGB between the two.

What the recipe does on tensors comes after normalising: ``pad_to``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Generator, Tensor
from torch.nn import functional as F

from data.classes import IGNORE_INDEX

Box = tuple[int, int, int, int]  # left, top, right, bottom in pixels, as PIL has it
Range = tuple[float, float]

PAPER_SCALE = (2048, 512)  # what the long and the short side of a photo may measure


@dataclass(frozen=True)
class PaperAugmentation:
    """Resize at random, crop where the classes are mixed, flip, distort the colours: a photo and its map together.

    ``scale`` limits the long and the short side after resizing; both limits are multiplied by one draw from ``ratio``.
    ``crop_size`` is (height, width). A crop is drawn anew, ``tries`` times at most, while one class holds
    ``max_class_share`` or more of its labelled pixels; 1 takes the first. ``ignored`` are the values of a raw label map
    that are no class. ``flip`` and ``distortion`` are chances, the latter of each of four steps: ``brightness`` shifts
    the levels of 0 to 255 by up to so much, ``contrast`` and ``saturation`` are ranges of factors, ``hue`` shifts by up
    to so many half-degrees, 180 to the circle. Raises ValueError naming the field, its value and the rule.
    """

    crop_size: tuple[int, int] = (512, 512)
    scale: tuple[int, int] = PAPER_SCALE
    ratio: Range = (0.5, 2.0)
    max_class_share: float = 0.75
    tries: int = 10
    flip: float = 0.5
    distortion: float = 0.5
    brightness: float = 32
    contrast: Range = (0.5, 1.5)
    saturation: Range = (0.5, 1.5)
    hue: float = 18
    ignored: tuple[int, ...] = (0, 255)

    def __post_init__(self) -> None:
        if not (_is_pair(self.crop_size) and all(map(_is_count, self.crop_size))):
            raise ValueError(f"crop_size is {self.crop_size!r}; it must be (height, width) in pixels, both above 0")
        if not (_is_pair(self.scale) and all(map(_is_count, self.scale)) and self.scale[0] >= self.scale[1]):
            raise ValueError(f"scale is {self.scale!r}; it must be (long side, short side) in pixels, longer first")
        if not (_is_range(self.ratio) and self.ratio[0] > 0):
            raise ValueError(f"ratio is {self.ratio!r}; it must be (lowest, highest), both above 0")
        if not (_is_number(self.max_class_share) and 0 < self.max_class_share <= 1):
            raise ValueError(f"max_class_share is {self.max_class_share!r}; it must be above 0 and at most 1")
        if not _is_count(self.tries):
            raise ValueError(f"tries is {self.tries!r}; it must be a whole number above 0")
        for name, limit in (("flip", 1), ("distortion", 1), ("brightness", 255), ("hue", 90)):
            value = getattr(self, name)
            if not (_is_number(value) and 0 <= value <= limit):
                raise ValueError(f"{name} is {value!r}; it must lie between 0 and {limit}")
        for name in ("contrast", "saturation"):
            value = getattr(self, name)
            if not (_is_range(value) and value[0] >= 0):
                raise ValueError(f"{name} is {value!r}; it must be (lowest, highest), neither below 0")
        if not (isinstance(self.ignored, tuple) and all(_is_level(value) for value in self.ignored)):
            raise ValueError(f"ignored is {self.ignored!r}; it must be a tuple of whole numbers from 0 to 255")

    def __call__(
        self, image: Image.Image, label_map: Image.Image, generator: Generator
    ) -> tuple[Image.Image, Image.Image]:
        """Augment a PIL RGB image and its raw PIL L label map of the same size; both come back at most ``crop_size``.

        A sample takes the same number of draws whatever they turn out to be: a crop that is refused changes no flip
        and no colour. Raises ValueError for other modes and for sizes that differ.
        """
        if (image.mode, label_map.mode) != ("RGB", "L"):
            raise ValueError(f"image has mode {image.mode} and label map {label_map.mode}; they must be RGB and L")
        if image.size != label_map.size:
            raise ValueError(f"image is {image.size} but its label map {label_map.size} (width, height)")
        size = self.draw_size(image, generator)
        label_map = label_map.resize(size, Image.Resampling.NEAREST)
        box = self.draw_box(label_map, generator)
        image, label_map = resize_and_crop(image, size, box), label_map.crop(box)
        if _draw(1, generator)[0] < self.flip:
            image, label_map = (each.transpose(Image.Transpose.FLIP_LEFT_RIGHT) for each in (image, label_map))
        return self.distort(image, generator), label_map

    def draw_size(self, image: Image.Image, generator: Generator) -> tuple[int, int]:
        """The (width, height) that an image is resized to."""
        ratio = _within(self.ratio, _draw(1, generator)[0])
        long_limit, short_limit = (int(limit * ratio) for limit in self.scale)
        return keep_ratio_size(image.width, image.height, (long_limit, short_limit))

    def draw_box(self, label_map: Image.Image, generator: Generator) -> Box:
        """The first of ``tries`` random boxes that is mixed enough; if none is, one more, whatever it holds."""
        height, width = min(self.crop_size[0], label_map.height), min(self.crop_size[1], label_map.width)
        draws = _draw(2 * (self.tries + 1), generator)
        for across, down in zip(draws[::2], draws[1::2], strict=True):
            left, top = int(across * (label_map.width - width + 1)), int(down * (label_map.height - height + 1))
            box = (left, top, left + width, top + height)
            if self.accepts(label_map.crop(box)):
                break
        return box

    def accepts(self, crop: Image.Image) -> bool:
        """Whether every class holds less than its share of the labelled pixels; a lone class, or none, never does."""
        if self.max_class_share == 1:
            return True
        counts = crop.histogram()
        for value in self.ignored:
            counts[value] = 0
        return max(counts) < self.max_class_share * sum(counts)

    def distort(self, image: Image.Image, generator: Generator) -> Image.Image:
        """Change brightness, contrast, saturation and hue, each by chance; contrast before or after the last two."""
        contrast_first, *draws = _draw(9, generator)
        ranges = ((-self.brightness, self.brightness), self.contrast, self.saturation, (-self.hue, self.hue))
        brightness, contrast, saturation, hue = (
            _within(limits, amount) if chance < self.distortion else unchanged
            for limits, unchanged, chance, amount in zip(ranges, (0, 1, 1, 0), draws[:4], draws[4:], strict=True)
        )
        image = map_levels(image, 1, brightness)
        if contrast_first < 0.5:
            return shift_colours(map_levels(image, contrast, 0), hue, saturation)
        return map_levels(shift_colours(image, hue, saturation), contrast, 0)


def keep_ratio_size(width: int, height: int, scale: tuple[int, int]) -> tuple[int, int]:
    """The largest (width, height) of this shape whose long and short side keep within ``scale``, in whole pixels."""
    if min(width, height) < 1:
        raise ValueError(f"photo is {width} x {height}; both sides must be above 0")
    factor = min(scale[0] / max(width, height), scale[1] / min(width, height))
    return max(1, int(width * factor + 0.5)), max(1, int(height * factor + 0.5))


def resize_and_crop(image: Image.Image, size: tuple[int, int], box: Box) -> Image.Image:
    """What ``image.resize(size, BILINEAR).crop(box)`` gives, to the bit, without enlarging all that is cut away.

    PIL enlarges across and then down, with a rounding in between; what lies beside the box can go after the first.
    """
    left, top, right, bottom = box
    if size[0] > image.width and size[1] > image.height:
        image = image.resize((size[0], image.height), Image.Resampling.BILINEAR).crop((left, 0, right, image.height))
        size, box = (right - left, size[1]), (0, top, right - left, bottom)
    return image.resize(size, Image.Resampling.BILINEAR).crop(box)


def map_levels(image: Image.Image, factor: float, shift: float) -> Image.Image:
    """Every level times ``factor`` plus ``shift``, kept within 0 to 255 and cut to a whole number."""
    if factor == 1 and shift == 0:
        return image
    levels = np.clip(np.arange(256) * factor + shift, 0, 255).astype(np.uint8)
    return image.point(levels.tolist() * 3)


def shift_colours(image: Image.Image, half_degrees: float, saturation: float) -> Image.Image:
    """Hue plus ``half_degrees``, 180 to the circle, and saturation times ``saturation``, at most full, as HSV has them.

    In tensors: PIL's own HSV takes more than twice as long and knows only 255 hues. Value, a pixel's largest channel,
    stays; the others lie below it by up to the chroma, which is saturation times value, as their hue is far.
    """
    if half_degrees == 0 and saturation == 1:
        return image
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)  # (3, H, W)
    red, green, blue = pixels.to(torch.float32, memory_format=torch.contiguous_format)  # (H, W) each
    value = torch.maximum(torch.maximum(red, green), blue)
    chroma = value - torch.minimum(torch.minimum(red, green), blue)
    per_chroma = chroma.clamp(min=1).reciprocal_()  # grey has no hue, so any number does
    near_red = (green - blue).mul_(per_chroma)
    near_green = (blue - red).mul_(per_chroma).add_(2)
    near_blue = (red - green).mul_(per_chroma).add_(4)
    # A weight of 0 or 1 makes lerp a choice, several times faster than torch.where.
    hue = near_blue.lerp_(near_green, green.eq_(value)).lerp_(near_red, red.eq_(value))
    hue.add_(half_degrees / 30)
    hue.sub_((hue / 6).floor_().mul_(6))  # red is at 0 and 6, green at 2, blue at 4
    chroma = torch.minimum(chroma.mul_(saturation), value)
    least = (value - chroma).add_(0.5)  # to the nearest level
    shares = ((hue - 3).abs_().sub_(1), 2 - (hue - 2).abs_(), 2 - (hue - 4).abs_())
    channels = [share.clamp_(0, 1).mul_(chroma).add_(least).to(torch.uint8) for share in shares]
    return Image.merge("RGB", [Image.fromarray(channel.numpy()) for channel in channels])


def pad_to(
    images: Tensor, labels: Tensor, size: tuple[int, int], ignore_index: int = IGNORE_INDEX
) -> tuple[Tensor, Tensor]:
    """Pad on the right and below to ``size`` (height, width): zeros on a normalised photo, ``ignore_index`` on labels.

    Shapes: (3, h, w) and (h, w) -> (3, H, W) and (H, W). Raises ValueError where they do not fit ``size``.
    """
    height, width = labels.shape
    if images.shape[-2:] != labels.shape:
        raise ValueError(f"images is {tuple(images.shape)} but labels {tuple(labels.shape)}; they must be of one size")
    if height > size[0] or width > size[1]:
        raise ValueError(f"labels is {tuple(labels.shape)}; to be padded it must be at most {size} (height, width)")
    margins = (0, size[1] - width, 0, size[0] - height)
    return F.pad(images, margins), F.pad(labels, margins, value=ignore_index)


def _draw(count: int, generator: Generator) -> list[float]:
    """Uniform numbers of at least 0, below 1."""
    numbers: list[float] = torch.rand(count, generator=generator).tolist()
    return numbers


def _within(limits: Range, share: float) -> float:
    return limits[0] + share * (limits[1] - limits[0])


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _is_level(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= 255


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_pair(value: object) -> bool:
    return isinstance(value, tuple) and len(value) == 2


def _is_range(value: object) -> bool:
    return isinstance(value, tuple) and len(value) == 2 and all(map(_is_number, value)) and value[0] <= value[1]
