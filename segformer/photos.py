"""The one reader of photos: every form that a program may hold them in, as upright RGB images of what a viewer shows.

What Pillow would decode to something else than that is refused in a line that says what to do: numbers of no known
range, 10 to 14 bits kept in 16, bands beyond red, green and blue.
"""

from __future__ import annotations

import io
import logging
import os
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps, TiffImagePlugin, UnidentifiedImageError
from torch import Tensor

Photo = Image.Image | str | Path | bytes | NDArray[Any] | Tensor

_SEVERAL_VIEWS = {"MPO"}  # of one scene or smaller copies of it, as cameras store them beside the photo
_FULL = 2**16  # levels of 16 bits
_COLOURS, _BANDS, _EXTRA_BANDS = 262, 277, 338  # TIFF tags: what the bands are, how many, and what further ones mean
_BANDS_OF_COLOURS = {0: 1, 1: 1, 3: 1, 5: 4}  # grey, palette and inks; all others have three
_ALPHA = (1, 2)  # of the latter, multiplied into the colours or not
_MOST_SHADES = 64  # of transparency, in most of a photo

logger = logging.getLogger(__name__)


def as_photo(photo: Photo) -> Image.Image:
    """A photo of any form as a PIL RGB image, upright.

    A PIL image of any mode; a path; the bytes of an image file; a uint8 array (H, W), (H, W, 3) or (H, W, 4); a uint8
    tensor (3, H, W). What is stored with an EXIF orientation is turned by it, and what is transparent shows white.
    Raises FileNotFoundError and ValueError, naming the path or the shape, for what is no photo.
    """
    if isinstance(photo, Image.Image):
        return upright_rgb(photo)
    if isinstance(photo, str | os.PathLike):
        return open_photo(photo)
    if isinstance(photo, bytes | bytearray | memoryview):
        return decode_photo(photo, f"what these {len(photo)} bytes hold")
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


def decode_photo(encoded: bytes | bytearray | memoryview, what: str) -> Image.Image:
    """The bytes of an image file as ``open_photo`` reads it; ``what`` names them in the ValueError."""
    return _decode(io.BytesIO(encoded), what)


def _decode(source: str | os.PathLike[str] | BinaryIO, what: str) -> Image.Image:
    try:
        with Image.open(source, formats=_formats()) as image:
            if isinstance(image, TiffImagePlugin.TiffImageFile):
                _check_bands(image.tag_v2)
            deep_colours = image.mode.startswith("RGB") and ";16" in _raw_mode(image)
            photo = upright_rgb(image)
            if deep_colours:  # of which Pillow has kept the upper eight bits
                upper = np.asarray(photo)
                high = int(upper.max(where=upper < 255, initial=0))  # beside what is marked or burnt out
                if high or upper.max() == 0:
                    _check_range(0, 256 * high + 255)
            frames = _count_frames(image)
    except FileNotFoundError:
        raise FileNotFoundError(f"no photo {what}") from None
    except UnidentifiedImageError:
        raise ValueError(f"{what} is not a readable image: {_why_unknown(source)}") from None
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


def _raw_mode(image: Image.Image) -> str:
    """How the pixels lie in the file, in Pillow's words, which an image has in its tiles until it is loaded."""
    tiles = getattr(image, "tile", None)
    layout = tiles[0][3] if tiles else None
    return str(layout[0] if isinstance(layout, tuple) and layout else layout)


def _check_bands(entries: Mapping[int, Any]) -> None:
    """Refuse a TIFF of bands that RGB has no place for; Pillow drops some, and knows no mode for others."""
    bands, extra = entries.get(_BANDS, 1), entries.get(_EXTRA_BANDS, ())
    further = bands - _BANDS_OF_COLOURS.get(entries.get(_COLOURS, 1), 3)
    has_alpha = further == 1 and extra and extra[0] in _ALPHA
    if further > 0 and not has_alpha:
        raise ValueError(f"it has {bands} bands; keep the three that are red, green and blue, and save those")


def _why_unknown(source: str | os.PathLike[str] | BinaryIO) -> str:
    """Why Pillow does not open a file: of a TIFF, its bands."""
    try:
        with open(source, "rb") if isinstance(source, str | os.PathLike) else source as file:
            file.seek(0)
            head = file.read(8)
            if head[2:4] == (43).to_bytes(2, "little" if head[:2] == b"II" else "big"):  # of 64 bits
                head += file.read(8)
            entries = TiffImagePlugin.ImageFileDirectory_v2(head)
            file.seek(entries.next)
            entries.load(file)
        _check_bands(entries)
        bands, bits = entries.get(_BANDS, 1), entries.get(258, (1,))
        return f"a TIFF of {bands} bands of {bits[0]} bits in a form that Pillow does not know; save three of 8 bits"
    except ValueError as error:
        return str(error)
    except Exception:  # no TIFF, or a damaged one
        return "Pillow knows no format that begins like this"


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
    """An image of any mode as RGB; the 16 bits of a deep image keep their upper eight, what is transparent shows white.

    Raises ValueError for an empty image, for one of floating-point numbers, which PIL would cut off at 255, for a
    deep one that does not fill its 16 bits, and for a fourth band that is hardly transparency.
    """
    if 0 in image.size:
        raise ValueError(f"image is {image.size} (width, height); it has no pixels")
    if image.mode == "F":
        raise ValueError("image has mode F, floating-point numbers of no known range; save it with 8 or 16 bits")
    if image.mode.startswith("I"):  # deep greyscale, which PIL would clip rather than scale
        levels = np.asarray(image)
        _check_range(int(levels.min()), int(levels.max()))
        _check_range(0, int(levels.max(where=levels < _FULL - 1, initial=0)))  # beside what is marked or burnt out
        return Image.fromarray((levels >> 8).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        if image.getchannel("A").getextrema() != (255, 255):
            _check_alpha(image.getchannel("A"))
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def _check_alpha(alpha: Image.Image) -> None:
    """Refuse transparency that leaves nothing to see, and what a file calls so though it is a band such as infrared."""
    counts = alpha.histogram()
    if counts[0] == sum(counts):
        raise ValueError("all of its pixels are transparent; save it without transparency")
    between = counts[1:255]
    if sum(between) > sum(counts) / 2 and sum(map(bool, between)) > _MOST_SHADES:
        raise ValueError(
            "its fourth band, which it calls transparency, has all kinds of values, as near infrared has; keep the "
            "three that are red, green and blue, and save those"
        )


def _check_range(low: int, high: int) -> None:
    """Refuse levels that are no 16 bits, or that leave so many of them empty that the photo would come out dark."""
    if low < 0 or high >= _FULL:
        raise ValueError(
            f"its levels are {low} to {high}, which are not the 0 to 65535 of 16 bits; save it with 8 bits"
        )
    if 0 < high < _FULL // 4:
        raise ValueError(
            f"its brightest level is {high} of 65535, as where {high.bit_length()} bits are kept in 16; stretch the "
            "levels over all 16 bits, or save it with 8"
        )
