"""The two encoded files of a row to a photo and its label map, with every fault named by its row."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image, ImageOps

from data.classes import NUM_LABELS

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


def decode_pair(
    image_bytes: bytes | None, annotation_bytes: bytes | None, where: str, num_labels: int = NUM_LABELS
) -> tuple[Image.Image, Image.Image | None]:
    """Decode a row into (PIL RGB, PIL L of the same size, or None without annotation); ``where`` names it in errors.

    The photo comes upright. Its label map turns with it if it was drawn on the pixels as stored, which its size tells.
    Raises ValueError for a file that does not decode, sizes that differ and labels above ``num_labels``.
    """
    image, orientation = _decode_image(image_bytes, where)
    if annotation_bytes is None:
        return image, None
    label_map = _decode_label_map(annotation_bytes, where, num_labels)
    turned = label_map.transpose(_TRANSPOSES[orientation]) if orientation in _TRANSPOSES else label_map
    for candidate in (turned, label_map):
        if candidate.size == image.size:
            return image, candidate
    raise ValueError(f"annotation of {where} is {label_map.size} but its image {image.size} (width, height)")


def _decode_image(encoded: bytes | None, where: str) -> tuple[Image.Image, int]:
    """The photo upright in RGB, and the EXIF orientation in which it was stored."""
    try:
        with Image.open(io.BytesIO(encoded or b"")) as stored:
            orientation = int(stored.getexif().get(_ORIENTATION, 1))
            stored.info.pop("exif", None)  # or Pillow encodes it anew, which a mistyped entry makes impossible
            image = ImageOps.exif_transpose(stored)
            if image.mode.startswith("I"):  # 16-bit greyscale, which PIL would clip rather than scale
                image = Image.fromarray((np.clip(np.asarray(image), 0, 65535) >> 8).astype(np.uint8))
            return image.convert("RGB"), orientation
    except Exception as error:  # Pillow's decoders raise what they like for damaged files
        raise ValueError(f"image of {where} does not decode ({type(error).__name__})") from error


def _decode_label_map(encoded: bytes, where: str, num_labels: int) -> Image.Image:
    try:
        with Image.open(io.BytesIO(encoded)) as stored:
            mode, pixels = stored.mode, np.asarray(stored)
    except Exception as error:
        raise ValueError(f"annotation of {where} does not decode ({type(error).__name__})") from error
    if mode not in ("1", "L", "P"):
        raise ValueError(f"annotation of {where} has mode {mode}; it needs one channel of at most 8 bits")
    labels = pixels.astype(np.uint8)
    if labels.max(initial=0) > num_labels:
        raise ValueError(f"label map of {where} holds {labels.max()}; its classes are 0 (other) to {num_labels}")
    return Image.fromarray(labels)
