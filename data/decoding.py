"""The two encoded files of a row to a photo and its label map, with every fault named by its row."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from data.labels import SCENE_PARSE_LABELS, LabelRule

# No others: Pillow runs programs to open some (EPS), JPEG blurs class ids, and GIF may number them anew.
_PHOTO_FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "TIFF", "GIF")
_LABEL_FORMATS = ("PNG", "BMP", "TIFF")
_ORIENTATION = 0x0112  # the EXIF tag
_TRANSPOSES = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_GREY_STEPS = {"L;2": 85, "L;4": 17}  # Pillow spreads grey of 2 and 4 bits over 0 to 255; a label is what is stored


def decode_pair(
    image_bytes: bytes | None, annotation_bytes: bytes | None, where: str, rule: LabelRule = SCENE_PARSE_LABELS
) -> tuple[Image.Image, Image.Image | None]:
    """Decode a row into (PIL RGB, PIL L of the same size, or None without annotation); ``where`` names it in errors.

    The photo comes upright. Its label map turns with it if it was drawn on the pixels as stored, which its size tells.
    Labels are the stored values, palette indices where there is a palette, as ``LabelRule.normalise`` returns them.
    Raises ValueError for a file that does not decode or has more pixels than ``PIL.Image.MAX_IMAGE_PIXELS``, a label
    map that is not one channel of at most 8 bits, sizes that differ and values that the rule does not allow.
    """
    if not image_bytes:
        raise ValueError(f"image of {where} holds no bytes; a row needs the encoded file itself, not only its path")
    image, orientation = _decode_image(image_bytes, where)
    if annotation_bytes is None:
        return image, None
    label_map = _decode_label_map(annotation_bytes, where, rule)
    turned = label_map.transpose(_TRANSPOSES[orientation]) if orientation in _TRANSPOSES else label_map
    for candidate in (turned, label_map):
        if candidate.size == image.size:
            return image, candidate
    raise ValueError(f"annotation of {where} is {label_map.size} but its image {image.size} (width, height)")


def _decode_image(encoded: bytes | None, where: str) -> tuple[Image.Image, int]:
    """The photo upright in RGB, and the EXIF orientation in which it was stored."""
    with _opened(encoded or b"", f"image of {where}", _PHOTO_FORMATS) as stored:
        orientation = int(stored.getexif().get(_ORIENTATION, 1))
        stored.info.pop("exif", None)  # or Pillow encodes it anew, which a mistyped entry makes impossible
        image = ImageOps.exif_transpose(stored)
        if image.mode.startswith("I"):  # 16-bit greyscale, which PIL would clip rather than scale
            image = Image.fromarray((np.clip(np.asarray(image), 0, 65535) >> 8).astype(np.uint8))
        return image.convert("RGB"), orientation


def _decode_label_map(encoded: bytes, where: str, rule: LabelRule) -> Image.Image:
    with _opened(encoded, f"annotation of {where}", _LABEL_FORMATS) as stored:
        mode, raw_mode = stored.mode, _raw_mode(stored)
        if raw_mode.endswith("I") and ";" in raw_mode:
            raise ValueError(f"stored inverted, as {raw_mode}")
        step = _GREY_STEPS.get(raw_mode, 1)
        pixels = np.asarray(stored)
    if mode not in ("1", "L", "P"):
        raise ValueError(
            f"annotation of {where} has mode {mode}; it needs one channel of at most 8 bits that holds class ids, so "
            "turn colours into class ids first, and save 16 bits as 8"
        )
    return Image.fromarray(rule.normalise(pixels // step if step > 1 else pixels, where))


def _raw_mode(stored: Image.Image) -> str:
    """How the pixels lie in the file, in Pillow's words, which an image has in its tiles until it is loaded."""
    tiles = getattr(stored, "tile", None)
    layout = tiles[0][3] if tiles else None
    return str(layout[0] if isinstance(layout, tuple) and layout else layout)


@contextmanager
def _opened(encoded: bytes, what: str, formats: tuple[str, ...]) -> Iterator[Image.Image]:
    """An encoded image, of which Pillow has read the header; whatever is wrong with it becomes a ValueError."""
    _silence_size_warning()
    try:
        with Image.open(io.BytesIO(encoded), formats=formats) as stored:
            limit = Image.MAX_IMAGE_PIXELS
            if limit is not None and stored.width * stored.height > limit:
                size = f"{stored.width} x {stored.height} pixels"
                raise Image.DecompressionBombError(f"{size}, above the limit of {limit} pixels")
            yield stored
    except Image.DecompressionBombError as error:  # Pillow raises it itself from twice the limit on
        raise ValueError(f"{what} is too large ({error}); make it smaller") from error
    except Exception as error:  # Pillow's decoders raise what they like for damaged files
        said = str(error) if isinstance(error, ValueError) else type(error).__name__
        hint = f"; it must be {' or '.join(formats)}" if isinstance(error, UnidentifiedImageError) else ""
        raise ValueError(f"{what} does not decode ({said}){hint}") from error


@cache
def _silence_size_warning() -> None:
    """Hear nothing of what is refused anyway; once, as a filter set for every row makes all other warnings repeat."""
    warnings.simplefilter("ignore", Image.DecompressionBombWarning)
