"""What workers would do last, done on the device for a whole batch: jitter, normalise, reduce labels.

The draws are those of ``ColorJitter`` for the same sample. The arithmetic is that of torchvision for float tensors,
which unlike Pillow's does not go down to 256 levels after each step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from data.augmentation.jitter import CONTRAST, HUE, SATURATION, ColorJitter, sample_generator
from data.classes import IGNORE_INDEX
from data.order import Place


@dataclass(frozen=True)
class AugmentOnDevice:
    """Decoded and resized batches to what the model takes.

    Shapes: images (B, 3, H, W) and raw labels (B, H, W), both uint8, and the (epoch, row) of every image -> float32
    (B, 3, H, W), where level x is jittered and becomes (x * ``rescale_factor`` - ``image_mean``) / ``image_std``, and
    int64 (B, H, W), where with ``reduce_labels`` 0 and 255 become 255 and k becomes k - 1. The host does not wait for a
    CUDA device. Raises ValueError for other types and shapes and another number of places.
    """

    jitter: ColorJitter | None
    seed: int
    rescale_factor: float
    image_mean: tuple[float, ...]
    image_std: tuple[float, ...]
    reduce_labels: bool

    @classmethod
    def in_place_of(cls, processor: Any, jitter: ColorJitter | None, seed: int) -> AugmentOnDevice:
        """What the processor would have done."""
        return cls(
            jitter,
            seed,
            processor.rescale_factor if processor.do_rescale else 1.0,
            processor.image_mean if processor.do_normalize else (0.0, 0.0, 0.0),
            processor.image_std if processor.do_normalize else (1.0, 1.0, 1.0),
            processor.do_reduce_labels,
        )

    def finish(self, batch: dict[str, Any]) -> dict[str, Any]:
        """A batch that ``Unprocessed`` made, on the device: ``images`` and ``labels`` as the model takes them."""
        images, labels = self(batch["images"], batch["labels"], batch["place"])
        return {"images": images, "labels": labels}

    def __call__(self, images: Tensor, labels: Tensor, places: Sequence[Place]) -> tuple[Tensor, Tensor]:
        """The images jittered and normalised, and the labels reduced."""
        _check(images, labels, places)
        pixels = images / 255
        if self.jitter is not None:
            pixels = _jitter(pixels, [self.jitter.draw(sample_generator(self.seed, *place)) for place in places])
        mean, std = _send(torch.tensor([self.image_mean, self.image_std]), images.device).view(2, 3, 1, 1)
        return (pixels * (255 * self.rescale_factor) - mean) / std, self._reduce(labels).long()

    def _reduce(self, labels: Tensor) -> Tensor:
        return torch.where(labels == IGNORE_INDEX, labels, labels - 1) if self.reduce_labels else labels  # 0 wraps


def _check(images: Tensor, labels: Tensor, places: Sequence[Place]) -> None:
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(f"images are {images.dtype} {tuple(images.shape)}; they must be uint8 (B, 3, H, W)")
    sizes = (len(images), *images.shape[2:])
    if labels.dtype != torch.uint8 or labels.shape != sizes:
        raise ValueError(
            f"labels are {labels.dtype} {tuple(labels.shape)}; for these images they must be uint8 {sizes}"
        )
    if len(places) != len(images):
        raise ValueError(f"{len(images)} images need as many places, not {len(places)}")


def _jitter(images: Tensor, draws: Sequence[tuple[list[int], list[float]]]) -> Tensor:
    """Jitter images (B, 3, H, W) with values from 0 to 1, each by its own order and factors.

    At each of the four positions an image is blended with black, its mean grey, its own grey or, by a factor of 1, with
    nothing, and those whose turn it is are shifted in hue.
    """
    orders = torch.tensor([order for order, _ in draws])  # (B, 4)
    factors = torch.tensor([factors for _, factors in draws])
    keep = torch.where(orders == HUE, 1.0, factors.gather(1, orders))
    blends = torch.stack([keep, (1 - keep) * (orders == CONTRAST), (1 - keep) * (orders == SATURATION)])  # (3, B, 4)
    turns = (orders == HUE).long().argmax(dim=1)
    ends = turns.bincount(minlength=4).cumsum(0).tolist()
    groups = _send(turns.argsort(), images.device).tensor_split(ends[:-1])
    shifts = _send(factors[:, HUE], images.device)
    for shares, group in zip(_send(blends, images.device).unbind(dim=2), groups, strict=True):
        images = _blend(images, *shares[..., None, None, None])
        if len(group):
            images.index_copy_(0, group, _shift_hue(images.index_select(0, group), shifts.index_select(0, group)))
    return images


def _blend(images: Tensor, keep: Tensor, mean_share: Tensor, grey_share: Tensor) -> Tensor:
    """Blend images (B, 3, H, W) by shares (B, 1, 1, 1) of themselves, of their mean grey and of their grey."""
    red, green, blue = images.unbind(dim=1)
    grey = (0.2989 * red + 0.587 * green + 0.114 * blue)[:, None]  # (B, 1, H, W)
    other = mean_share * grey.mean(dim=(1, 2, 3), keepdim=True) + grey_share * grey
    return (keep * images + other).clamp_(0, 1)


def _shift_hue(images: Tensor, shifts: Tensor) -> Tensor:
    """Shift the hue of images (B, 3, H, W) by ``shifts`` (B,) turns of the colour circle."""
    red, green, blue = images.unbind(dim=1)  # (B, H, W)
    high = images.amax(dim=1)
    chroma = high - images.amin(dim=1)
    divisor = chroma.clamp(min=1e-12)  # grey has no hue and, as its chroma is 0, any will do
    beside_red, beside_green, beside_blue = (green - blue) / divisor, (blue - red) / divisor, (red - green) / divisor
    hue = torch.where(high == red, beside_red, torch.where(high == green, 2 + beside_green, 4 + beside_blue))
    hue = (hue + 6 * shifts[:, None, None]).remainder_(6)
    # A channel misses none of the chroma on a third of the circle, all of it on another, a linear share in between.
    missing = torch.stack([2 - (hue - 3).abs(), (hue - 2).abs() - 1, (hue - 4).abs() - 1], dim=1).clamp_(0, 1)
    return high[:, None] - chroma[:, None] * missing  # (B, 3, H, W)


def _send(values: Tensor, device: torch.device) -> Tensor:
    """Numbers to a device, without waiting for it: from pinned memory, and without the gaps of a view."""
    if device.type != "cuda":
        return values.to(device)
    return values.contiguous().pin_memory().to(device, non_blocking=True)
