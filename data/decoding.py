"""The two encoded files of a row to a photo and its label map, with every fault named by its row.

Photos are read by the reader that is handed in, ``read_strictly`` if none is; label maps are read nowhere but here.
"""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from data.labels import SCENE_PARSE_LABELS, Colour, LabelRule, colour_of
from data.words import counted

# A photo's encoded bytes, and what to call it in a ValueError, to an upright RGB image.
OpenPhoto = Callable[[bytes, str], Image.Image]

# No others: Pillow runs programs to open some (EPS), JPEG blurs class ids, and GIF may number them anew.
_PHOTO_FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "TIFF", "GIF")
_LABEL_FORMATS = ("PNG", "BMP", "TIFF")
_MASK_FORMATS = ("JPEG", "GIF")  # of binary masks besides, whose greys are cut at half
_PHOTO_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr")
_ORIENTATION = 0x0112  # the EXIF tag
_TURNS = {  # of the orientations in which width and height change places
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_BACK = {Image.Transpose.ROTATE_270: Image.Transpose.ROTATE_90, Image.Transpose.ROTATE_90: Image.Transpose.ROTATE_270}
COPIED_TURN = "seen, but for an orientation that was copied from there: it is taken as stored"
_BLURRING = ("jpeg", "tiff_jpeg", "webp")  # compressions of a TIFF
_GREY_STEPS = {"L;2": 85, "L;4": 17}  # Pillow spreads grey of 2 and 4 bits over 0 to 255; a label is what is stored
_MOST_NAMED = 3  # colours in a message

logger = logging.getLogger(__name__)


def decode_pair(
    image_bytes: bytes | None,
    annotation_bytes: bytes | None,
    where: str,
    rule: LabelRule = SCENE_PARSE_LABELS,
    open_photo: OpenPhoto | None = None,
) -> tuple[Image.Image, Image.Image | None]:
    """Decode a row into (PIL RGB, PIL L of the same size, or None without annotation); ``where`` names it in errors.

    The photo comes upright, and so does its label map: one without an orientation of its own was drawn on the photo as
    it is seen, as tools show it, unless only the size of the stored pixels fits, which is said.
    Labels are the stored values, palette indices where there is a palette, as ``LabelRule.normalise`` returns them.
    Raises ValueError for a file that does not decode, a label map that is not one channel of whole numbers, or of
    colours that the rule knows, sizes that differ and values that the rule does not allow.
    """
    if not image_bytes:
        raise ValueError(f"image of {where} holds no bytes; a row needs the encoded file itself, not only its path")
    image = (open_photo or read_strictly)(image_bytes, f"image of {where}")
    if annotation_bytes is None:
        return image, None
    stored = StoredMap(annotation_bytes, where, rule.binary)
    return image, _fit(_by_rule(stored, where, rule), stored.turn, image, image_bytes, where)


def decode_label_map(encoded: bytes, where: str, rule: LabelRule) -> Image.Image:
    """A label map alone, PIL L; see ``decode_pair``."""
    return _by_rule(StoredMap(encoded, where, rule.binary), where, rule)


def _by_rule(stored: StoredMap, where: str, rule: LabelRule) -> Image.Image:
    if rule.colours:
        return Image.fromarray(rule.normalise_colours(stored.colours(), where))
    values = stored.values()
    if rule.palette:
        stored.check_palette(rule.palette, values)
    return Image.fromarray(rule.normalise(values, where))


class StoredMap:
    """What an encoded label map holds, before a rule says what it means, turned by an orientation of its own.

    ``turn`` is that orientation where it has made height of width, else None.

    Raises ValueError for a file that is none or keeps no class ids exactly. JPEG and GIF do not; with ``binary`` they
    are read, at half of their range.
    """

    def __init__(self, encoded: bytes, where: str, binary: bool = False) -> None:
        self._what, self._binary = f"annotation of {where}", binary
        formats = (*_LABEL_FORMATS, *_MASK_FORMATS) if binary else _LABEL_FORMATS
        with _opened(encoded, self._what, formats) as stored:
            self.mode, raw_mode = stored.mode, _raw_mode(stored)
            if raw_mode.endswith("I") and ";" in raw_mode:
                raise ValueError(f"stored inverted, as {raw_mode}")
            if self.mode == "L" and "X" in raw_mode:
                raise ValueError(f"more than one band, as {raw_mode}; save the one that holds the class ids")
            if self.mode.startswith("RGB") and ";16" in raw_mode:
                raise ValueError("16 bits a channel, of which half would be lost; save one channel of 8 or 16 bits")
            if (pages := getattr(stored, "n_frames", 1)) > 1:
                raise ValueError(f"{pages} pages, of which one has to be chosen; save one label map in a file")
            self._step = _GREY_STEPS.get(raw_mode, 1)
            is_blurred = stored.format in _MASK_FORMATS or stored.info.get("compression") in _BLURRING
            if is_blurred and not binary:
                raise ValueError("JPEG inside, which blurs class ids; save it without loss")
            # Keeps what it read; the bytes, Pillow would encode anew, which a mistyped entry forbids.
            self.turn = _TURNS.get(orientation_of(stored))
            stored.info.pop("exif", None)
            self._picture = ImageOps.exif_transpose(stored)
            self._picture.load()
        if is_blurred:
            self._picture, self.mode = self._picture.convert("L").point(lambda level: 255 * (level > 127)), "L"
        if self.mode in ("LA", "PA", "RGBA") and self._picture.getchannel("A").getextrema() != (255, 255):
            raise ValueError(
                f"{self._what} has mode {self.mode} with pixels that are transparent, of no certain class; save it "
                "without transparency"
            )
        if self.mode in ("LA", "PA", "RGBX"):
            self._picture = self._picture.convert({"LA": "L", "PA": "P", "RGBX": "RGB"}[self.mode])

    @property
    def is_coloured(self) -> bool:
        """Whether some pixel has a colour that is no grey, and no palette gives it a number."""
        if self._picture.mode not in ("RGB", "RGBA"):
            return False
        pixels = np.asarray(self._picture)
        red = pixels[..., 0]
        return not (np.array_equal(red, pixels[..., 1]) and np.array_equal(red, pixels[..., 2]))

    @property
    def palette(self) -> list[Colour] | None:
        """The colour of every number, where there is a palette."""
        if self._picture.mode != "P":
            return None
        return palette_of(self._picture)

    @property
    def is_black_second(self) -> bool:
        """Whether a palette has white before black, as Pillow makes it for a mask of both, so that indices mislead.

        In binary masks, so has any other colour before black: the background is black.
        """
        levels = self._picture.getpalette() or [] if self._picture.mode == "P" else []
        return _is_white_first(levels) or (self._binary and any(levels[:3]) and not any(levels[3:]))

    def colours(self) -> NDArray[np.uint32]:
        """The colour of every pixel, (H, W), packed as r + 256 g + 65536 b. Raises ValueError for deep masks."""
        picture = self._picture
        if picture.mode not in ("1", "L", "P", "RGB", "RGBA"):
            raise ValueError(f"{self._what} has mode {self.mode}, which has no colours for a class file to name")
        picture.info.pop("transparency", None)  # of an index, which is a colour all the same
        pixels = np.asarray(picture.convert("RGBA"))
        return pixels.view(np.uint32)[..., 0] & np.uint32(0xFFFFFF)

    def values(self) -> NDArray[Any]:
        """The number of every pixel, (H, W): its index where there is a palette, its grey where colours are greys.

        Of a palette that has but white and then black, black is 0 and white 1.
        Raises ValueError for colours, with some of them, and for numbers that are not whole.
        """
        if self.is_coloured:
            raise ValueError(f"{self._what} has mode {self.mode} and {self._some_colours()}")
        if self._picture.mode in ("RGB", "RGBA"):
            return np.asarray(self._picture)[..., 0]
        if self._picture.mode not in ("1", "L", "P") and not self._picture.mode.startswith("I"):
            raise ValueError(
                f"{self._what} has mode {self.mode}; it needs one channel of whole numbers that are class ids, or "
                "colours that a class file names"
            )
        values = np.asarray(self._picture)
        if self.is_black_second:
            return (values == 0).view(np.uint8)
        if self._binary and self.palette:
            self._check_background(self.palette, values)
        return values // self._step if self._step > 1 else values

    def check_palette(self, known: Sequence[tuple[int, Colour]], values: NDArray[Any]) -> None:
        """Raise ValueError where one of the values is drawn in another colour than is ``known`` of it."""
        own = self.palette or []
        others = {index: colour for index, colour in known if index < len(own) and own[index] != colour}
        drawn = [index for index in others if own[index] != (index,) * 3 and (values == index).any()]
        if drawn:
            raise ValueError(
                f"{self._what} draws {drawn[0]} in {own[drawn[0]]}, which is {others[drawn[0]]} in the label maps that "
                "were understood, so that its indices number the classes otherwise; save all with one palette, or with "
                "none where indices are the ids all the same"
            )

    def _check_background(self, palette: list[Colour], values: NDArray[Any]) -> None:
        """Refuse a palette that draws the background of a mask in a colour, and an object in black."""
        blacks = [] if palette[0] == (0, 0, 0) else [k for k, colour in enumerate(palette) if colour == (0, 0, 0)]
        black = next((index for index in blacks if (values == index).any()), None)
        if black is not None:
            raise ValueError(
                f"{self._what} has a palette that draws 0, the background, in {palette[0]} and {black} in black; save "
                "it as grey, with 0 for the background"
            )

    def _some_colours(self) -> str:
        codes, counts = np.unique(self.colours(), return_counts=True)
        first = [colour_of(int(code)) for code in codes[counts.argsort()[::-1][:_MOST_NAMED]]]
        shown = ", ".join(map(str, first)) + (", ..." if len(codes) > _MOST_NAMED else "")
        return (
            f"{counted(len(codes), 'colour')} ({shown}), which are class ids only to a model whose training read the "
            "colours of its classes from a labelmap.txt or class_dict.csv beside the data; save it as class ids"
        )


def palette_of(picture: Image.Image) -> list[Colour]:
    """The colour of every number in a picture with a palette, as ``StoredMap.values`` gives numbers."""
    levels = picture.getpalette() or []
    if _is_white_first(levels):
        return [(0, 0, 0), (255, 255, 255)]
    return [(levels[i], levels[i + 1], levels[i + 2]) for i in range(0, len(levels) - 2, 3)]


def _is_white_first(levels: list[int]) -> bool:
    """Whether a palette has white and then black; of a mask that is all white, the former alone."""
    return levels[:3] == [255] * 3 and not any(levels[3:])


def read_strictly(encoded: bytes, what: str) -> Image.Image:
    """A photo of 8 bits a channel, upright, in RGB; ``what`` names it in the ValueError for any other."""
    with _opened(encoded, what, _PHOTO_FORMATS) as stored:
        raw_mode = _raw_mode(stored)
        if stored.mode not in _PHOTO_MODES or ";16" in raw_mode or "X" in raw_mode or raw_mode.startswith("F"):
            raise ValueError(f"mode {stored.mode}, as {raw_mode}; save it as RGB of 8 bits, in PNG or JPEG")
        stored.getexif()
        stored.info.pop("exif", None)  # or Pillow encodes it anew, which a mistyped entry makes impossible
        image = ImageOps.exif_transpose(stored)
        if image.has_transparency_data and image.convert("RGBA").getchannel("A").getextrema() != (255, 255):
            raise ValueError("it has transparent pixels; save it without transparency")
        return image.convert("RGB")


def _fit(
    label_map: Image.Image, own: Image.Transpose | None, image: Image.Image, image_bytes: bytes, where: str
) -> Image.Image:
    """A label map that has its photo's size, or gets it by being turned as the photo was, or back from its ``own``."""
    if label_map.size == image.size:
        return label_map
    turn = _TURNS.get(_orientation(image_bytes)) if own is None else _BACK.get(own, own)
    if turn is None or label_map.size != image.size[::-1]:
        raise ValueError(
            f"annotation of {where} is {label_map.size} but its image {image.size} (width, height); bring them to one "
            "size, the label map by nearest neighbour"
        )
    _say_turned(where, "stored, on its side: it is turned upright with the photo" if own is None else COPIED_TURN)
    return label_map.transpose(turn)


def _orientation(encoded: bytes) -> int:
    with Image.open(io.BytesIO(encoded)) as stored:
        return orientation_of(stored)


def orientation_of(picture: Image.Image) -> int:
    """The EXIF orientation of an opened picture; 1, which is upright, without one."""
    orientation = picture.getexif().get(_ORIENTATION)
    return orientation if isinstance(orientation, int) else 1


_said: set[str] = set()  # of maps that were turned; each way is said once


def _say_turned(where: str, how: str) -> None:
    if how not in _said:
        _said.add(how)
        logger.warning("annotation of %s has the size of its photo as %s, and so are others like it", where, how)


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
        hint = _why_unknown(encoded, formats) if isinstance(error, UnidentifiedImageError) else ""
        raise ValueError(f"{what} does not decode ({said}){hint}") from error


def _why_unknown(encoded: bytes, formats: tuple[str, ...]) -> str:
    if "TIFF" in formats and encoded[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        return "; it is a TIFF of a form that Pillow does not know, such as numbers of 64 bits: save it with 8 or 16"
    return f"; it must be {' or '.join(formats)}"


@cache
def _silence_size_warning() -> None:
    """Hear nothing of what is refused anyway; once, as a filter set for every row makes all other warnings repeat."""
    warnings.simplefilter("ignore", Image.DecompressionBombWarning)
