"""One photo in, its classes out: what the image-segmentation pipeline does, in the open."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from segformer import fullres
from segformer.model import Segformer
from segformer.processor import PROCESSOR_NAME, ImageProcessor, open_photo, upright_rgb


class Segmenter:
    """A model, its processor and a device, ready for photos of any size and mode.

    A photo is a PIL image or a path; its EXIF orientation is applied to what comes out.
    """

    def __init__(self, model: Segformer, processor: ImageProcessor, device: torch.device | str | None = None) -> None:
        self.device = choose_device(device)
        self.model = model.eval().to(self.device)
        self.processor = processor

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        device: torch.device | str | None = None,
        revision: str | None = None,
        token: str | bool | None = None,
        local_files_only: bool = False,
    ) -> Segmenter:
        """Load model and processor from a Hub id or folder, or a weights file with what stands beside it."""
        model = Segformer.from_pretrained(source, revision=revision, token=token, local_files_only=local_files_only)
        if model.load_report.missing:
            raise ValueError(f"{source} has no decoder, only an encoder; fine-tune it before asking it for segments")
        return cls(model, processor_of(source, revision, token, local_files_only), device)

    def __call__(self, photo: Image.Image | str | Path) -> list[dict[str, Any]]:
        """The photo's segments in ascending class id, as transformers' pipeline gives them.

        Each is ``{"label": name, "score": None, "mask": PIL image}``; masks are mode L at the photo's own size, 255 on
        the class, do not overlap and cover the photo.
        """
        return self.segments(self.label_map(photo))

    def segments(self, label_map: NDArray[Any]) -> list[dict[str, Any]]:
        """The segments of a (H, W) label map."""
        return [
            {
                "label": self.model.config.id2label[int(k)],
                "score": None,
                "mask": Image.fromarray(np.where(label_map == k, 255, 0).astype(np.uint8)),
            }
            for k in np.unique(label_map)
        ]

    @torch.inference_mode()
    def label_map(self, photo: Image.Image | str | Path) -> NDArray[Any]:
        """The class of every pixel, (H, W) at the photo's own size: uint8, or uint16 for more than 256 classes."""
        photo = upright_rgb(photo) if isinstance(photo, Image.Image) else open_photo(photo)
        images = self.processor.image_to_tensor(photo)[None].to(self.device)
        width, height = photo.size
        prediction = fullres.argmax(self.model(images), (height, width))[0]
        return prediction.cpu().numpy().astype(np.min_scalar_type(self.model.config.num_labels - 1))


def processor_of(
    source: str | Path,
    revision: str | None = None,
    token: str | bool | None = None,
    local_files_only: bool = False,
) -> ImageProcessor:
    """The processor of a Hub id or folder, or the one beside a weights file; the default if nothing is beside it."""
    if not Path(source).is_file():
        return ImageProcessor.from_pretrained(source, revision, token, local_files_only)
    beside = Path(source).parent
    return ImageProcessor.from_pretrained(beside) if (beside / PROCESSOR_NAME).is_file() else ImageProcessor()


def choose_device(device: torch.device | str | None = None) -> torch.device:
    """The device asked for, or this machine's accelerator, or its CPU. Raises ValueError for one that is not there."""
    if device is None:
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        chosen = torch.device(device)
        torch.empty(1, device=chosen).cpu()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ValueError(
            f"device is {str(device)!r}, which this machine does not have; use cpu, or leave it out"
        ) from error
    return chosen
