"""Augmentations. Every draw comes from a generator that the caller seeds, never from the state of a worker.

The jitter gives the pixels that torchvision's gives for a PIL image, in less than half the time. Brightness and
contrast turn every level into one other, so Pillow blends a ramp of all 256 and the photo looks its levels up. Hue goes
by way of HSV, which Pillow reaches pixel by pixel: numpy sorts the channels of many pixels at once, looks up what
Pillow makes of such channels, and comes back by one formula.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, fields
from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageStat
from torch import Generator

BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)  # the steps, as torchvision numbers them

_PIXELS_AT_ONCE = 2**16  # their intermediate values stay in the cache
# On a colour circle of 6 * 255 steps: where red is missing most, and where green and blue are missing least.
_CENTRES = np.array([[765], [510], [1020]], np.int16)


@dataclass(frozen=True)
class ColorJitter:
    """The guide's jitter: brightness, contrast, saturation and hue, each shifted at random, in random order.

    The same draws in the same order as torchvision's ColorJitter, and the same pixels for the same generator state.
    Factors are drawn from [1 - x, 1 + x]; hue from [-hue, hue], in turns of the colour circle (at most 0.5).
    Raises ValueError for a strength out of its range.
    """

    brightness: float = 0.25
    contrast: float = 0.25
    saturation: float = 0.25
    hue: float = 0.1

    def __post_init__(self) -> None:
        for strength in fields(self):
            value, most = getattr(self, strength.name), 0.5 if strength.name == "hue" else math.inf
            if not 0 <= value <= most:
                raise ValueError(f"{strength.name} is {value}; a strength is at least 0, that of hue at most 0.5")

    def __call__(self, image: Image.Image, generator: Generator) -> Image.Image:
        """Jitter an RGB image into a new one."""
        order, factors = self.draw(generator)
        for step in order:
            image = _ADJUSTMENTS[step](image, factors[step])
        return image

    def draw(self, generator: Generator) -> tuple[list[int], list[float]]:
        """The steps in the order drawn, and the factor of each step: that of BRIGHTNESS is factors[BRIGHTNESS]."""
        order = torch.randperm(4, generator=generator).tolist()
        widths = (self.brightness, self.contrast, self.saturation)
        factors = [_uniform(max(0.0, 1 - width), 1 + width, generator) for width in widths]
        return order, [*factors, _uniform(-self.hue, self.hue, generator)]


def _uniform(low: float, high: float, generator: Generator) -> float:
    return float(torch.empty(1).uniform_(low, high, generator=generator))


def _adjust_brightness(image: Image.Image, factor: float) -> Image.Image:
    return _blend_with_level(image, 0, factor)


def _adjust_contrast(image: Image.Image, factor: float) -> Image.Image:
    mean = ImageStat.Stat(image.convert("L")).mean[0]
    return _blend_with_level(image, int(mean + 0.5), factor)


def _blend_with_level(image: Image.Image, level: int, factor: float) -> Image.Image:
    ramp = Image.frombytes("L", (256, 1), bytes(range(256)))
    levels = Image.blend(Image.new("L", ramp.size, level), ramp, factor).tobytes()
    return image.point(list(levels) * 3)


def _adjust_saturation(image: Image.Image, factor: float) -> Image.Image:
    gray = image.convert("L")
    return Image.blend(Image.merge("RGB", (gray, gray, gray)), image, factor)


def _adjust_hue(image: Image.Image, factor: float) -> Image.Image:
    shift = np.int32(factor * 255).astype(np.uint8)  # one below 0 goes the long way round
    planes = [np.frombuffer(image.tobytes("raw", band), np.uint8) for band in "RGB"]
    shifted = np.empty((3, planes[0].size), np.uint8)
    for start in range(0, planes[0].size, _PIXELS_AT_ONCE):
        part = slice(start, start + _PIXELS_AT_ONCE)
        red, green, blue = (plane[part] for plane in planes)
        _shift_hue(red, green, blue, shift, out=shifted[:, part])
    return Image.merge("RGB", [Image.frombuffer("L", image.size, plane, "raw", "L", 0, 1) for plane in shifted])


_ADJUSTMENTS = (_adjust_brightness, _adjust_contrast, _adjust_saturation, _adjust_hue)


def _shift_hue(
    red: NDArray[np.uint8], green: NDArray[np.uint8], blue: NDArray[np.uint8], shift: np.uint8, out: NDArray[np.uint8]
) -> None:
    """Shift the hue of N pixels by ``shift`` / 256 of the circle, as Pillow counts it, into ``out`` (3, N)."""
    hues, chromas = _hues_and_chromas()
    high = np.maximum(np.maximum(red, green), blue)
    low = np.minimum(np.minimum(red, green), blue)
    middle = red ^ green ^ blue ^ high ^ low
    order = (blue >= red).view(np.uint8)
    order += order
    order |= green >= blue
    order += order
    order |= red >= green
    index = np.multiply(order, 2**16, dtype=np.uint32)
    index |= _pair(high - low, middle - low)
    hue = hues.take(index)
    hue += shift
    chroma = chromas.take(_pair(high, low))
    # A channel misses none of the chroma on a third of the circle, all of it on another, a linear share in between.
    share = np.abs(np.multiply(hue, 6, dtype=np.int16) - _CENTRES)  # (3, N)
    share -= 255
    share.clip(0, 255, out=share)
    share[0] ^= 255
    missing = share.astype(np.float32)
    missing *= chroma
    np.subtract(high + np.float32(0.5), missing, out=missing)
    np.copyto(out, missing, casting="unsafe")


def _pair(first: NDArray[np.uint8], second: NDArray[np.uint8]) -> NDArray[np.uint16]:
    pair = np.multiply(first, 256, dtype=np.uint16)
    pair |= second
    return pair


@cache
def _hues_and_chromas() -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """What Pillow makes of channels: hue by (order, high - low, middle - low), and chroma / 255 by (high, low)."""
    first, second = np.indices((256, 256), np.uint8)
    hues = np.zeros((8, 256, 256), np.uint8)
    for channels in itertools.permutations(range(3)):  # from the highest to the lowest
        ranked = dict(zip(channels, (first, second, np.zeros_like(first)), strict=True))
        red, green, blue = (-channels.index(channel) for channel in range(3))
        order = 4 * (blue >= red) + 2 * (green >= blue) + (red >= green)
        hues[order] = _to_hsv(ranked[0], ranked[1], ranked[2])[..., 0]
    saturations = _to_hsv(first, second, second)[..., 1]
    chromas = first * (saturations / 255**2)
    return hues.reshape(-1), chromas.astype(np.float32).reshape(-1)


def _to_hsv(*planes: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.asarray(Image.merge("RGB", [Image.fromarray(plane) for plane in planes]).convert("HSV"))


def mix(*numbers: int) -> int:
    """One seed of 63 bits from several numbers, so that neighbours share nothing (the splitmix64 finaliser)."""
    state = 0
    for number in numbers:
        state = (state + number + 0x9E3779B97F4A7C15) % 2**64
        state = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        state = (state ^ (state >> 27)) * 0x94D049BB133111EB % 2**64
        state ^= state >> 31
    return state >> 1


def sample_generator(seed: int, epoch: int, row: int) -> Generator:
    """The generator of one sample in one epoch: the same for any number of workers, ranks or interruptions."""
    return Generator().manual_seed(mix(seed, epoch, row))
