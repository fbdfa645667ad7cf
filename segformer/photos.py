"""Photos of every form that a program may hold them in, as upright RGB images."""

from __future__ import annotations

import io
import logging
import os
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

Photo = Image.Image | str | Path | bytes | NDArray[Any] | Tensor

_SEVERAL_VIEWS = {"MPO"}  # of one scene or smaller copies of it, as cameras store them beside the photo

logger = logging.getLogger(__name__)


def as_photo(photo: Photo) -> Image.Image:
    """A photo of any form as a PIL RGB image, upright.

    A PIL image of any mode; a path; the bytes of an image file; a uint8 array (H, W), (H, W, 3) or (H, W, 4), whose
    fourth channel is left out; a uint8 tensor (3, H, W). What is stored with an EXIF orientation is turned by it.
    Raises FileNotFoundError and ValueError, naming the path or the shape, for what is no photo.
    """
    if isinstance(photo, Image.Image):
        return upright_rgb(photo)
    if isinstance(photo, str | os.PathLike):
        return open_photo(photo)
    if isinstance(photo, bytes | bytearray | memoryview):
        return _decode(io.BytesIO(photo), f"what these {len(photo)} bytes hold")
    if isinstance(photo, Tensor):
        _check_pixels(photo, photo.dtype == torch.uint8, photo.ndim == 3 and photo.shape[0] == 3, "(3, H, W)")
        return Image.fromarray(photo.permute(1, 2, 0).contiguous().cpu().numpy())
    if isinstance(photo, np.ndarray):
        fits = photo.ndim == 2 or (photo.ndim == 3 and photo.shape[2] in (3, 4))
        _check_pixels(photo, photo.dtype == np.uint8, fits, "(H, W), (H, W, 3) or (H, W, 4)")
        return to_rgb(Image.fromarray(np.ascontiguousarray(photo)))
    raise ValueError(f"photo is a {type(photo).__name__}; it must be a PIL image, path, bytes, uint8 array or tensor")


def _check_pixels(photo: NDArray[Any] | Tensor, is_uint8: bool, fits: bool, shapes: str) -> None:
    if not (is_uint8 and fits and 0 not in photo.shape):
        kind = "tensor" if isinstance(photo, Tensor) else "array"
        raise ValueError(
            f"photo is a {kind} of {tuple(photo.shape)} {photo.dtype}; it must be {shapes}, uint8 from 0 to 255"
        )


def open_photo(path: str | os.PathLike[str]) -> Image.Image:
    """Read a photo upright (its EXIF orientation applied), as RGB; of a moving picture the first frame, and log that.

    Raises ValueError naming a file that is no image, or one too large for Pillow's ``MAX_IMAGE_PIXELS``.
    """
    return _decode(path, os.fspath(path))


def _decode(source: str | os.PathLike[str] | BinaryIO, what: str) -> Image.Image:
    try:
        with Image.open(source, formats=_formats()) as image:
            photo = upright_rgb(image)
            frames = _count_frames(image)
    except FileNotFoundError:
        raise FileNotFoundError(f"no photo {what}") from None
    except UnidentifiedImageError:
        raise ValueError(f"{what} is not a readable image: Pillow knows no format that begins like this") from None
    except Exception as error:  # Pillow's decoders raise what they like for damaged files
        raise ValueError(f"{what} is not a readable image: {error}") from error
    if frames > 1 and image.format not in _SEVERAL_VIEWS:
        logger.info("%s has %d frames; the first is taken", what, frames)
    return photo


@cache
def _formats() -> list[str]:
    """All that Pillow reads, but for EPS, a program that it would have Ghostscript run."""
    Image.init()
    return [form for form in Image.ID if form != "EPS"]


def _count_frames(image: Image.Image) -> int:
    try:
        return getattr(image, "n_frames", 1)
    except Exception:  # damage behind the first frame, which is whole
        return 1


def upright_rgb(image: Image.Image) -> Image.Image:
    """An image as RGB and the way it is meant to be seen: its EXIF orientation applied."""
    # The image keeps what it read. Without the bytes Pillow does not encode them anew, which a mistyped entry forbids.
    image.getexif()
    encoded = image.info.pop("exif", None)
    try:
        return to_rgb(ImageOps.exif_transpose(image))
    finally:
        if encoded is not None:
            image.info["exif"] = encoded


def to_rgb(image: Image.Image) -> Image.Image:
    """An image of any mode as RGB; the 16 bits of a deep image keep their upper eight.

    Raises ValueError for an empty image and for one of floating-point numbers, which PIL would cut off at 255.
    """
    if 0 in image.size:
        raise ValueError(f"image is {image.size} (width, height); it has no pixels")
    if image.mode == "F":
        raise ValueError("image has mode F, floating-point numbers of no known range; save it with 8 or 16 bits")
    if image.mode.startswith("I"):  # 16-bit greyscale, which PIL would clip rather than scale
        return Image.fromarray((np.clip(np.asarray(image), 0, 65535) >> 8).astype(np.uint8)).convert("RGB")
    return image.convert("RGB")
