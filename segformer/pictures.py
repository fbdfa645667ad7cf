"""Label maps as pictures: the palette, the overlay on the photo, the legend beside it."""

from __future__ import annotations

import colorsys
import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from segformer.fonts import Lettering, letterings, opened, own_font, shortened

# The official colours of SceneParse150, class k at place k. One colour stands twice: 8c8c8c is road and skyscraper.
_SCENEPARSE_COLOURS = """
787878 b47878 06e6e6 503232 04c803 787850 8c8c8c cc05ff e6e6e6 04fa07 e005ff ebff07 96053d 787846 08ff33
ff0652 8fff8c ccff04 ff3307 cc4603 0066c8 3de6fa ff0633 0b66ff ff0747 ff09e0 0907e6 dcdcdc ff095c 7009ff
08ffd6 07ffe0 ffb806 0aff47 ff290a 07ffff e0ff08 6608ff ff3d06 ffc207 ff7a08 00ff14 ff0829 ff0599 0633ff
eb0cff a09614 00a3ff 8c8c8c fa0a0f 14ff00 1fff00 ff1f00 ffe000 99ff00 0000ff ff4700 00ebff 00adff 1f00ff
0bc8c8 ff5200 00fff5 003dff 00ff70 00ff85 ff0000 ffa300 ff6600 c2ff00 008fff 33ff00 0052ff 00ff29 00ffad
0a00ff adff00 00ff99 ff5c00 ff00ff ff00f5 ff0066 ffad00 ff0014 ffb8b8 001fff 00ff3d 0047ff ff00cc 00ffc2
00ff52 000aff 0070ff 3300ff 00c2ff 007aff 00ffa3 ff9900 00ff0a ff7000 8fff00 5200ff a3ff00 ffeb00 08b8aa
8500ff 00ff5c b800ff ff001f 00b8ff 00d6ff ff0070 5cff00 00e0ff 70e0ff 46b8a0 a300ff 9900ff 47ff00 ff00a3
ffcc00 ff008f 00ffeb 85ff00 ff00eb f500ff ff007a fff500 0abed4 d6ff00 00ccff 1400ff ffff00 0099ff 0029ff
00ffcc 2900ff 29ff00 ad00ff 00f5ff 4700ff 7a00ff 00ffb8 005cff b8ff00 0085ff ffd600 19c2c2 66ff00 5c00ff
"""
_NOTHING = (0, 0, 0)  # pixels without a class
UNTINTED = (225, 225, 225)  # the colour of a background: in a map it is a light grey, a photo shows through it
_BACKGROUND = re.compile(r"[\W_]*background[\W_]*", re.IGNORECASE)
_ENOUGH_PIXELS = 2**19  # of a picture to know its colours by
_PAPER, _INK, _FAINT = (255, 255, 255), (28, 28, 30), (110, 110, 115)


def palette(num_labels: int, names: Iterable[str] = ()) -> NDArray[np.uint8]:
    """A colour for every class, (K, 3): the official ones for 150 classes, else hues a golden angle apart.

    A class whose name is "background" is ``UNTINTED``.
    """
    colours = _hues(num_labels)
    colours[[k for k, name in enumerate(names) if _BACKGROUND.fullmatch(name)]] = UNTINTED
    return colours


def _hues(num_labels: int) -> NDArray[np.uint8]:
    if num_labels == 150:
        return np.array([list(bytes.fromhex(colour)) for colour in _SCENEPARSE_COLOURS.split()], dtype=np.uint8)
    turns = (np.arange(num_labels) * 0.618034) % 1.0
    shades = [(0.75, 0.95), (0.55, 0.80), (0.90, 0.65)]
    colours = [colorsys.hsv_to_rgb(turn, *shades[k % 3]) for k, turn in enumerate(turns)]
    return np.round(np.array(colours).reshape(-1, 3) * 255).astype(np.uint8)


def label_map_picture(label_map: NDArray[Any], colours: NDArray[np.uint8]) -> Image.Image:
    """A (H, W) label map as a palette image, whose values stay the class ids; RGB for more than 256 classes."""
    if len(colours) > 256:
        return Image.fromarray(np.vstack([colours, _NOTHING])[np.minimum(label_map, len(colours))].astype(np.uint8))
    picture = Image.fromarray(label_map.astype(np.uint8))
    picture.putpalette(np.vstack([colours, np.tile(_NOTHING, (256 - len(colours), 1))]).astype(np.uint8).tobytes())
    return picture


def overlay(
    photo: Image.Image, label_map: NDArray[Any], colours: NDArray[np.uint8], opacity: float = 0.5
) -> Image.Image:
    """The photo with every pixel tinted in the colour of its class; ``opacity`` from 0 (photo) to 1 (colours).

    A class whose colour is ``UNTINTED`` leaves the photo as it is. Raises ValueError for another opacity.
    """
    if not 0 <= opacity <= 1:
        raise ValueError(f"opacity is {opacity}; it must be from 0 (the photo) to 1 (the colours)")
    photo = photo.convert("RGB")
    tinted = Image.blend(photo, label_map_picture(label_map, colours).convert("RGB"), opacity)
    untinted = np.flatnonzero(is_untinted(colours))
    if len(untinted):
        tinted.paste(photo, mask=Image.fromarray(np.isin(label_map, untinted)))
    return tinted


def is_untinted(colours: NDArray[Any]) -> NDArray[np.bool_]:
    """Which of some colours, (..., 3), leave a photo as it is."""
    return np.asarray((colours == UNTINTED).all(axis=-1))


def tints(
    pictures: Sequence[Image.Image], label_maps: Sequence[NDArray[Any]], colours: NDArray[np.uint8]
) -> NDArray[np.uint8]:
    """The colours as one sees them in tinted pictures, (K + 1, 3): of each class the mean of its pixels.

    Of large pictures only every few rows are looked at. The last colour is that of pixels without a class. A class that
    is untinted, or in none of the rows, keeps its own.
    """
    seen = np.vstack([colours, _NOTHING]).astype(np.float64)
    sums, counts = np.zeros_like(seen), np.zeros(len(seen))
    for picture, label_map in zip(pictures, label_maps, strict=True):
        rows = slice(None, None, 1 + label_map.size // _ENOUGH_PIXELS)
        ids = np.minimum(label_map[rows].ravel().astype(np.intp), len(colours)) << 8
        for channel, band in enumerate(picture.split()):
            levels = np.bincount(ids + np.asarray(band)[rows].ravel(), minlength=len(seen) << 8).reshape(-1, 256)
            sums[:, channel] += levels @ np.arange(256)
        counts += levels.sum(1)
    there = (counts > 0) & ~is_untinted(seen)
    seen[there] = sums[there] / counts[there, None]
    return seen.round().astype(np.uint8)


def class_shares(label_map: NDArray[Any], num_labels: int) -> list[tuple[int, float]]:
    """The classes present and their shares of the (H, W) map, largest first."""
    counts = np.bincount(label_map.ravel(), minlength=num_labels)[:num_labels]
    present = np.flatnonzero(counts)
    ranked = present[np.argsort(-counts[present], kind="stable")]
    return [(int(k), float(counts[k] / label_map.size)) for k in ranked]


class _Entry(NamedTuple):
    """A line of a legend, with or without a swatch; ``number`` stands at its right."""

    colour: NDArray[np.uint8] | None
    lettering: Lettering
    number: str = ""


def with_legend(
    picture: Image.Image,
    shares: Sequence[tuple[int, float]],
    names: Mapping[int, str],
    colours: NDArray[np.uint8],
) -> Image.Image:
    """The picture with a legend on its right: a swatch, the class's name and its share of the pixels.

    The swatches have the ``colours`` given: beside a tinted photo those are its ``tints``.
    """
    written = letterings(names)
    entries = [_Entry(colours[k], written[k], f"{share:.1%}") for k, share in shares]
    return _beside(picture, entries, text_height=max(11, min(28, picture.height // 32)))


def _beside(picture: Image.Image, entries: Sequence[_Entry], text_height: int) -> Image.Image:
    """The picture with the entries of a legend on its right, on paper that has room for all."""
    row_height, gap = round(text_height * 1.6), text_height
    fonts = [opened(file, text_height) for _, (_, file), _ in entries]
    texts = [shortened(text, font, 30 * text_height) for (_, (text, _), _), font in zip(entries, fonts, strict=True)]
    plain = own_font(text_height)
    name_width = max((round(font.getlength(text)) for text, font in zip(texts, fonts, strict=True)), default=0)
    number_width = max((round(plain.getlength(entry.number)) for entry in entries), default=0)
    width = 4 * gap + text_height + name_width + number_width
    canvas = Image.new("RGB", (picture.width + width, max(picture.height, gap + row_height * len(texts))), _PAPER)
    canvas.paste(picture, (0, 0))
    draw = ImageDraw.Draw(canvas)
    left, right = picture.width + gap, canvas.width - gap
    for row, (entry, text, font) in enumerate(zip(entries, texts, fonts, strict=True)):
        top = gap // 2 + row * row_height
        middle = top + text_height // 2
        if entry.colour is not None:
            fill = _PAPER if is_untinted(entry.colour) else tuple(int(value) for value in entry.colour)
            draw.rectangle((left, top, left + text_height, top + text_height), fill=fill, outline=_FAINT)
        draw.text((left + text_height + gap, middle), text, _INK, font, anchor="lm")
        draw.text((right, middle), entry.number, _FAINT, plain, anchor="rm")
    return canvas


class SheetRow(NamedTuple):
    """A photo, and the (H, W) maps that are shown tinted beside it, of whatever size, under its name and a score."""

    name: str
    score: str
    photo: Image.Image
    label_maps: Sequence[NDArray[Any]]


def grid(rows: Sequence[Sequence[Image.Image]], titles: Sequence[str], side: int = 256) -> Image.Image:
    """Pictures in rows and columns, each fitted into a square of ``side`` pixels, below the titles of the columns."""
    gap, band = 6, 26
    sheet = Image.new("RGB", (gap + len(titles) * (side + gap), band + len(rows) * (side + gap)), _PAPER)
    draw, font = ImageDraw.Draw(sheet), own_font(15)
    for column, title in enumerate(titles):
        draw.text((gap + column * (side + gap), band // 2), title.strip(), _FAINT, font, anchor="lm")
    for k, row in enumerate(rows):
        for column, picture in enumerate(row):
            sheet.paste(_fitted(picture.convert("RGB"), side), (gap + column * (side + gap), band + k * (side + gap)))
    return sheet


def contact_sheet(
    rows: Sequence[SheetRow],
    titles: Sequence[str],
    names: Mapping[int, str],
    colours: NDArray[np.uint8],
    side: int = 256,
    opacity: float = 0.6,
) -> Image.Image:
    """A row for each photo, in its own shape, and its maps; beside them a legend of the classes that occur."""
    photos = [_fitted(row.photo, side) for row in rows]
    maps = [[_resized(ids, photo.size) for ids in row.label_maps] for row, photo in zip(rows, photos, strict=True)]
    tinted = [[overlay(photo, ids, colours, opacity) for ids in each] for photo, each in zip(photos, maps, strict=True)]
    gap, band = 6, 26
    width = max((photo.width for photo in photos), default=side)
    height = band + sum(band + photo.height + gap for photo in photos)
    sheet = Image.new("RGB", (gap + len(titles) * (width + gap), height), _PAPER)
    draw, font = ImageDraw.Draw(sheet), own_font(15)
    for column, title in enumerate(titles):
        draw.text((gap + column * (width + gap), band // 2), title, _FAINT, font, anchor="lm")
    top = band
    captions = letterings({k: row.name for k, row in enumerate(rows)}, kind="photo")
    for k, (photo, each) in enumerate(zip(photos, tinted, strict=True)):
        _write_caption(draw, captions[k], rows[k].score, (gap, top + band // 2), sheet.width - 2 * gap)
        for column, picture in enumerate([photo, *each]):
            sheet.paste(picture, (gap + column * (width + gap), top + band))
        top += band + photo.height + gap
    entries = _legend_of(tinted, maps, names, colours)
    room = sheet.height // 24 - 1
    if len(entries) > room:
        entries[room - 1 :] = [_Entry(None, (f"and {len(entries) - room + 1} more", None))]
    return _beside(sheet, entries, text_height=15)


def _write_caption(
    draw: ImageDraw.ImageDraw, lettering: Lettering, score: str, place: tuple[int, int], width: int
) -> None:
    """The name of a photo, and at the right its score, in one line."""
    font, plain = opened(lettering[1], 15), own_font(15)
    text = shortened(lettering[0], font, width - plain.getlength(score) - 15)
    draw.text(place, text, _INK, font, anchor="lm")
    draw.text((place[0] + width, place[1]), score, _INK, plain, anchor="rm")


def _legend_of(
    tinted: Sequence[Sequence[Image.Image]],
    maps: Sequence[Sequence[NDArray[Any]]],
    names: Mapping[int, str],
    colours: NDArray[np.uint8],
) -> list[_Entry]:
    """The classes of the first maps of all rows, largest first, then those that only the next ones hold, as seen."""
    seen = tints(list(chain(*tinted)), list(chain(*maps)), colours)
    written = letterings(names) | {len(colours): ("not labelled", None)}
    present: dict[int, None] = {}
    for column in zip(*maps, strict=True):
        ids = np.concatenate([np.minimum(each.ravel(), len(colours)) for each in column])
        present |= dict.fromkeys(k for k, _ in class_shares(ids, len(seen)))
    return [_Entry(seen[k], written[k]) for k in present]


def _fitted(photo: Image.Image, side: int) -> Image.Image:
    """The photo in RGB, its longer side of this length."""
    scale = side / max(photo.size)
    width, height = (max(1, round(length * scale)) for length in photo.size)
    return photo.convert("RGB").resize((width, height), Image.Resampling.LANCZOS)


def _resized(label_map: NDArray[Any], size: tuple[int, int]) -> NDArray[Any]:
    """The map at another width and height, no class mixed with another."""
    ids = Image.fromarray(label_map.astype(np.int32))
    return np.asarray(ids.resize(size, Image.Resampling.NEAREST))
