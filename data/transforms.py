"""Augmentations. Every draw comes from a generator that the caller seeds, never from the state of a worker."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from PIL import Image
from torch import Generator
from torchvision.transforms.v2 import functional


@dataclass(frozen=True)
class ColorJitter:
    """The guide's jitter: brightness, contrast, saturation and hue, each shifted at random, in random order.

    The same draws in the same order as torchvision's ColorJitter, and the same pixels for the same generator state.
    Factors are drawn from [1 - x, 1 + x]; hue from [-hue, hue], in turns of the colour circle (at most 0.5).
    """

    brightness: float = 0.25
    contrast: float = 0.25
    saturation: float = 0.25
    hue: float = 0.1

    def __call__(self, image: Image.Image, generator: Generator) -> Image.Image:
        order = torch.randperm(4, generator=generator).tolist()
        widths = (self.brightness, self.contrast, self.saturation)
        shifts = [_uniform(max(0.0, 1 - width), 1 + width, generator) for width in widths]
        shifts.append(_uniform(-self.hue, self.hue, generator))
        for step in order:
            image = _ADJUSTMENTS[step](image, shifts[step])
        return image


_ADJUSTMENTS = (
    functional.adjust_brightness,
    functional.adjust_contrast,
    functional.adjust_saturation,
    functional.adjust_hue,
)


def _uniform(low: float, high: float, generator: Generator) -> float:
    return float(torch.empty(1).uniform_(low, high, generator=generator))


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
