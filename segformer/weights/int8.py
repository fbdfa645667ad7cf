"""A graph whose products are of 8 bits, a third of the size, and what that costs, measured on photos.

Weights keep 256 levels between their smallest and largest, and so does what flows into every convolution, whose range
is looked up as it flows. Ranges fixed beforehand from calibration photos made up to twice as many pixels change their
class on the photos of the ADE20K model that this was chosen by; docs/export.md has the figures.
"""

from __future__ import annotations

import importlib
import math
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from segformer.console import counted
from segformer.metrics import ConfusionMatrix
from segformer.photos import open_photo
from segformer.predictions import find_photos
from segformer.segmenter import Segmenter

_MOST_PHOTOS = 100  # to measure with

# The (H, W) truth of a photo, class ids and 255 where nothing is labelled; None of one without a label map.
Truths = Callable[[Path, Image.Image], NDArray[np.uint8] | None]


@dataclass(frozen=True)
class Examples:
    """Photos on which a quantised graph is measured; ``open_truths`` gives what is known of them, for a model."""

    photos: Sequence[Path]
    open_truths: Callable[[Segmenter], Truths] | None = None

    @classmethod
    def of_folder(cls, folder: str | Path, open_truths: Callable[[Segmenter], Truths] | None = None) -> Examples:
        """A folder's photos, or if they are many some from all over. Raises FileNotFoundError where there are none."""
        if not Path(folder).is_dir():
            raise FileNotFoundError(f"--int8 {folder} is no folder; name one of photos to measure with")
        photos = find_photos([str(folder)])
        step = max(1.0, len(photos) / _MOST_PHOTOS)
        return cls([photos[int(k * step)] for k in range(min(len(photos), _MOST_PHOTOS))], open_truths)


@dataclass(frozen=True)
class Loss:
    """What quantising changed: the share of pixels that keep their class, and the mean IoU where truths are known."""

    photos: int
    pixels: int
    agreement: float
    scored_photos: int = 0
    mean_iou: float | None = None
    mean_iou_int8: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """The entries of the metadata."""
        return asdict(self)

    def __str__(self) -> str:
        pixels = f"{self.pixels:,} pixels of {counted(self.photos, 'photo')}"
        text = f"label maps of 8 and 32 bits agree on {self.agreement:.2%} of {pixels}"
        if self.mean_iou is None or self.mean_iou_int8 is None:
            return text
        return f"{text}; mean IoU is {self.mean_iou_int8:.4f}, with 32 bits {self.mean_iou:.4f}"


def quantise(path: Path) -> Any:
    """The graph of a file, quantised, as onnx has it."""
    tools = importlib.import_module("onnxruntime.quantization")
    with tempfile.TemporaryDirectory() as folder:
        quantised = Path(folder) / "int8.onnx"
        # Resizing and attention multiply what has no weights, and stay as they are.
        tools.quantize_dynamic(path, quantised, weight_type=tools.QuantType.QUInt8, op_types_to_quantize=["Conv"])
        return importlib.import_module("onnx").load(quantised)


def judge(quantised: Segmenter, segmenter: Segmenter, examples: Examples) -> Loss:
    """What a quantised graph makes of the photos, beside what the model does."""
    truth_of: Truths = examples.open_truths(segmenter) if examples.open_truths else lambda *_: None
    matrices = [ConfusionMatrix(segmenter.model.config.num_labels) for _ in range(2)]
    equal = pixels = scored = 0
    for path in examples.photos:
        photo = open_photo(path)
        found = [each.label_map(photo) for each in (segmenter, quantised)]
        equal += int((found[0] == found[1]).sum())
        pixels += found[0].size
        if (truth := truth_of(path, photo)) is not None:
            scored += 1
            for matrix, label_map in zip(matrices, found, strict=True):
                matrix.update(label_map, truth)
    scores = [matrix.scores().mean_iou if scored else math.nan for matrix in matrices]
    known = [float(score) if math.isfinite(score) else None for score in scores]
    return Loss(len(examples.photos), pixels, equal / pixels, scored, *known)
