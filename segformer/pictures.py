"""Label maps as pictures: the palette, the overlay on the photo, the legend beside it."""

from __future__ import annotations

import colorsys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

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
_PAPER, _INK, _FAINT = (255, 255, 255), (28, 28, 30), (110, 110, 115)


def palette(num_labels: int) -> NDArray[np.uint8]:
    """A colour for every class, (K, 3): the official ones for 150 classes, else hues a golden angle apart."""
    if num_labels == 150:
        return np.array([list(bytes.fromhex(colour)) for colour in _SCENEPARSE_COLOURS.split()], dtype=np.uint8)
    turns = (np.arange(num_labels) * 0.618034) % 1.0
    shades = [(0.75, 0.95), (0.55, 0.80), (0.90, 0.65)]
    colours = [colorsys.hsv_to_rgb(turn, *shades[k % 3]) for k, turn in enumerate(turns)]
    return np.round(np.array(colours) * 255).astype(np.uint8)


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
    """The photo with every pixel tinted in the colour of its class; ``opacity`` from 0 (photo) to 1 (colours)."""
    return Image.blend(photo.convert("RGB"), label_map_picture(label_map, colours).convert("RGB"), opacity)


def class_shares(label_map: NDArray[Any], num_labels: int) -> list[tuple[int, float]]:
    """The classes present and their shares of the (H, W) map, largest first."""
    counts = np.bincount(label_map.ravel(), minlength=num_labels)[:num_labels]
    present = np.flatnonzero(counts)
    ranked = present[np.argsort(-counts[present], kind="stable")]
    return [(int(k), float(counts[k] / label_map.size)) for k in ranked]


def with_legend(
    picture: Image.Image,
    shares: Sequence[tuple[int, float]],
    names: Mapping[int, str],
    colours: NDArray[np.uint8],
) -> Image.Image:
    """The picture with a legend on its right: a swatch, the class's name and its share of the pixels."""
    text_height = max(11, min(28, picture.height // 32))
    font = ImageFont.load_default(text_height)
    row_height = round(text_height * 1.6)
    texts = [(names[k].strip(), f"{share:.1%}") for k, share in shares]
    name_width = max((round(font.getlength(name)) for name, _ in texts), default=0)
    share_width = max((round(font.getlength(share)) for _, share in texts), default=0)
    gap = text_height
    width = 4 * gap + text_height + name_width + share_width
    canvas = Image.new("RGB", (picture.width + width, max(picture.height, gap + row_height * len(texts))), _PAPER)
    canvas.paste(picture, (0, 0))
    draw = ImageDraw.Draw(canvas)
    left, right = picture.width + gap, canvas.width - gap
    for row, ((k, _), (name, share)) in enumerate(zip(shares, texts, strict=True)):
        top = gap // 2 + row * row_height
        swatch = (left, top, left + text_height, top + text_height)
        draw.rectangle(swatch, fill=tuple(int(value) for value in colours[k]), outline=_FAINT)
        draw.text((left + text_height + gap, top + text_height // 2), name, _INK, font, anchor="lm")
        draw.text((right, top + text_height // 2), share, _FAINT, font, anchor="rm")
    return canvas


def contact_sheet(rows: Sequence[Sequence[Image.Image]], titles: Sequence[str], side: int = 256) -> Image.Image:
    """Pictures in a grid of square cells, one sample a row, under column titles."""
    gap, band = 6, 26
    height = band + len(rows) * (side + gap)
    sheet = Image.new("RGB", (len(titles) * (side + gap) + gap, height), _PAPER)
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(15)
    for column, title in enumerate(titles):
        draw.text((gap + column * (side + gap), band // 2), title, _INK, font, anchor="lm")
        for row, pictures in enumerate(rows):
            cell = pictures[column].convert("RGB").resize((side, side), Image.Resampling.LANCZOS)
            sheet.paste(cell, (gap + column * (side + gap), band + row * (side + gap)))
    return sheet
