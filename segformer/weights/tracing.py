"""What a graph for other runtimes is traced from: the model, its decoder folded, alone or from photo to label map.

Both hold the decoder at half its price, with BatchNorm multiplied in. Batch, height and width stay open. The ``whole``
one resizes as Pillow does, normalises, enlarges the logits to the photo and takes the most likely class; its enlarged
logits exist, K numbers for every pixel of a photo.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from segformer.decoder import AllMLPDecoder, fuse
from segformer.model import Segformer
from segformer.processor import ImageProcessor

_TRACED_SIZE = (70, 94)  # no multiples of anything, so that no size is taken for granted


class FoldedDecoder(nn.Module):
    """``AllMLPDecoder`` in eval mode, with all that depends on its weights alone worked out beforehand."""

    def __init__(self, decoder: AllMLPDecoder) -> None:
        super().__init__()
        weights, bias = decoder.folded_weights()
        self.weights = nn.ParameterList(weights)
        self.bias = nn.Parameter(bias)
        self.classifier = decoder.classifier

    def forward(self, features: list[Tensor]) -> Tensor:
        return self.classifier(fuse(features, list(self.weights), self.bias).relu())


class LabelMaps(nn.Module):
    """Photos (B, H, W, 3) uint8 -> label maps (B, H, W), uint8 or beyond 256 classes int32.

    ``size`` is the (height, width) at which the model sees them; None leaves them as they are.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, model: nn.Module, processor: ImageProcessor, size: tuple[int, int] | None, num_labels: int):
        super().__init__()
        self.model, self.size = model, size
        self.kind = torch.uint8 if num_labels <= 256 else torch.int32
        ramp = Image.fromarray(np.arange(256, dtype=np.uint8)[None, :, None].repeat(3, 2))
        levels = replace(processor, do_resize=False).image_to_tensor(ramp)[:, 0]  # (3, 256)
        self.register_buffer("shift", levels[:, 0, None, None])
        self.register_buffer("scale", ((levels[:, 255] - levels[:, 0]) / 255)[:, None, None])

    def forward(self, photos: Tensor) -> Tensor:
        images = photos.permute(0, 3, 1, 2).float()  # (B, 3, H, W)
        size = images.shape[-2:]
        if self.size is not None:
            images = resize(images, self.size)
        logits = self.model(images * self.scale + self.shift)
        enlarged = F.interpolate(logits, size, mode="bilinear", align_corners=False)  # (B, K, H, W)
        return enlarged.argmax(1).to(self.kind)


def resize(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Pillow's bilinear filter, first across and then down, each rounded to whole levels: (B, 3, H, W) -> ``size``.

    Within one level of what Pillow gives. Written as two products with matrices, which every runtime has; not all
    have a filter that shrinks this way.
    """
    across, down = (_filter(length, side) for length, side in zip(images.shape[:1:-1], size[::-1], strict=True))
    images = (images @ across.T + 0.5).floor()  # (B, 3, H, width)
    return (down @ images + 0.5).floor()  # (B, 3, height, width)


def _filter(length: int, side: int) -> Tensor:
    """How much each of ``length`` pixels has of each of ``side``: (side, length), rows sum to 1."""
    places = torch.arange(length) + 0.5
    length_there = places[-1] + 0.5  # a tensor: the length is open in a graph
    centres = (2 * torch.arange(side) + 1) * length_there / (2 * side)  # the product is exact
    reach = (length_there / side).clamp(min=1)
    weights = (1 - (places - centres[:, None]).abs() / reach).clamp(min=0)
    return weights / weights.sum(1, keepdim=True)


def graph_of(model: Segformer, processor: ImageProcessor, whole: bool, resize: str) -> tuple[nn.Module, Tensor]:
    """The module to write, and what it is traced with. Raises ValueError for a filter that a ``whole`` graph lacks."""
    folded = copy.deepcopy(model)
    with torch.no_grad():
        folded.decoder = cast(AllMLPDecoder, FoldedDecoder(folded.decoder))
    if not whole:
        return folded.eval(), torch.zeros(2, 3, *_TRACED_SIZE)
    resizes = processor.do_resize and resize == "processor"
    if resizes and processor.resample != Image.Resampling.BILINEAR:
        name = Image.Resampling(processor.resample).name.lower()
        raise ValueError(
            f"the processor resizes by {name}; a whole graph does so bilinearly, or with --resize original"
        )
    if resizes and processor.resize_mode != "squash":
        raise ValueError(
            f"the processor keeps the shape of photos (resize_mode {processor.resize_mode}), which a whole graph does "
            "not; export one without --whole, or with --resize original"
        )
    photos = torch.zeros(2, *_TRACED_SIZE, 3, dtype=torch.uint8)
    return LabelMaps(folded, processor, processor.size if resizes else None, model.config.num_labels).eval(), photos


def trace(graph: nn.Module, example: Tensor) -> torch.export.ExportedProgram:
    """The graph with the axes of batch, height and width left open."""
    first = 2 if example.shape[1] == 3 else 1
    axes = dict.fromkeys((0, first, first + 1), torch.export.Dim.DYNAMIC)
    with torch.no_grad():
        return torch.export.export(graph, (example,), dynamic_shapes=(axes,), strict=False)
