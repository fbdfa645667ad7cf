"""Self-contained HTML: one file that opens from a disk or an e-mail and asks the network for nothing.

Text becomes markup only through ``Html.fill``, which escapes it, and data only through ``embedded_json``. Should either
ever leak, the page's own policy still lets the browser load nothing and run no script but the one written here.
"""

from __future__ import annotations

import base64
import hashlib
import html
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from importlib import resources
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from segformer.pictures import label_map_picture

MOST_PIXELS = 512  # widest picture on a page
_JPEG_QUALITY = 85
_NO_SOURCES: Mapping[str, str] = MappingProxyType({})


class Html(str):
    """Text that is markup already, and may hold ``{places}`` to fill."""

    __slots__ = ()

    def fill(self, **values: object) -> Html:
        """The markup with its places filled; text is escaped unless it is markup itself."""
        return Html(self.format(**{name: _as_markup(value) for name, value in values.items()}))


def _as_markup(value: object) -> object:
    return html.escape(value) if isinstance(value, str) and not isinstance(value, Html) else value


def joined(parts: Iterable[Html]) -> Html:
    """Pieces of markup, a line each."""
    return Html("\n".join(parts))


def asset(name: str) -> Html:
    """A file of ``segformer/pages/web``: markup with places, a style sheet, or a script."""
    return Html((resources.files("segformer.pages") / "web" / name).read_text(encoding="utf-8"))


def render_page(
    title: str,
    body: Html,
    styles: Sequence[str],
    scripts: Sequence[str],
    data: Any,
    sources: Mapping[str, str] = _NO_SOURCES,
) -> Html:
    """A whole page. ``styles`` and ``scripts`` name files of ``web/``, whose ``data`` is embedded as JSON.

    The style of all pages, ``page.css``, and the script of all, ``page.js``, stand before them. ``sources`` are what
    the page may load beside what stands in it, by directive of its policy.
    """
    code = joined(asset(name) for name in ("page.js", *scripts))
    digest = base64.b64encode(hashlib.sha256(code.encode("utf-8")).digest()).decode("ascii")
    allowed = {"img-src": "data:", "style-src": "'unsafe-inline'", "script-src": f"'sha256-{digest}'"}
    allowed |= {name: f"{allowed.get(name, '')} {places}".strip() for name, places in sources.items()}
    policy = {"default-src": "'none'", **allowed, "base-uri": "'none'", "form-action": "'none'"}
    return asset("page.html").fill(
        title=title,
        style=joined(asset(name) for name in ("page.css", *styles)),
        body=body,
        data=embedded_json(data),
        script=code,
        policy="; ".join(f"{name} {places}" for name, places in policy.items()),
    )


def embedded_json(data: Any) -> Html:
    """JSON that cannot end the element it stands in, nor open a comment there. Raises ValueError for NaN."""
    text = json.dumps(data, allow_nan=False, separators=(",", ":"))
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Html(text)


# ---------------------------------------------------------------------------------------------------------- pictures


def photo_uri(photo: Image.Image) -> str:
    """The photo as a JPEG in a ``data:`` address, at most ``MOST_PIXELS`` wide."""
    return data_uri("jpeg", encoded_photo(photo))


def encoded_photo(photo: Image.Image) -> bytes:
    """The photo as the bytes of a JPEG, at most ``MOST_PIXELS`` wide."""
    buffer = io.BytesIO()
    photo = photo.convert("RGB").resize(_shown_size(*photo.size), Image.Resampling.LANCZOS)
    photo.save(buffer, "JPEG", quality=_JPEG_QUALITY, optimize=True)
    return buffer.getvalue()


def label_map_uri(label_map: NDArray[Any], colours: NDArray[np.uint8]) -> str:
    """The (H, W) label map in its colours as a PNG in a ``data:`` address, at most ``MOST_PIXELS`` wide."""
    return png_uri(label_map_picture(label_map, colours))


def png_uri(picture: Image.Image, **options: Any) -> str:
    """The picture as a PNG in a ``data:`` address, at most ``MOST_PIXELS`` wide; no colour is mixed."""
    buffer = io.BytesIO()
    picture = picture.resize(_shown_size(*picture.size), Image.Resampling.NEAREST)
    picture.save(buffer, "PNG", optimize=True, **options)
    return data_uri("png", buffer.getvalue())


def distinct(colours: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The colours, no two alike and none black: no eye sees the change, but a script can tell the classes apart."""
    taken, result = {0}, []
    for red, green, blue in colours.tolist():
        code = red << 16 | green << 8 | blue
        while code in taken:
            code = (code + 1) % 2**24
        taken.add(code)
        result.append((code >> 16, code >> 8 & 255, code & 255))
    return np.array(result, dtype=np.uint8).reshape(-1, 3)


def colour_code(colour: NDArray[np.uint8]) -> str:
    """A colour as style sheets write it, such as ``#8c8c8c``."""
    return "#" + bytes(colour.tolist()).hex()


def readable_ink(colour: NDArray[np.uint8]) -> str:
    """Black or white for text on a colour, whichever stands out more: at least 4.5 to 1, as WCAG 2.2 AA asks."""
    shares = colour.astype(np.float64) / 255
    linear = np.where(shares <= 0.04045, shares / 12.92, ((shares + 0.055) / 1.055) ** 2.4)
    luminance = float(linear @ (0.2126, 0.7152, 0.0722))
    return "#000000" if (luminance + 0.05) / 0.05 >= 1.05 / (luminance + 0.05) else "#ffffff"


def swatch(colour: NDArray[np.uint8]) -> Html:
    """A small square of a colour; beside it stands what it means."""
    return Html('<i class="swatch" style="background:{code}"></i>').fill(code=colour_code(colour))


def _shown_size(width: int, height: int) -> tuple[int, int]:
    scale = min(1.0, MOST_PIXELS / width)
    return max(1, round(width * scale)), max(1, round(height * scale))


def data_uri(kind: str, content: bytes) -> str:
    """The bytes of a picture, ``kind`` being ``jpeg`` or ``png``, as an address that holds them."""
    return f"data:image/{kind};base64,{base64.b64encode(content).decode('ascii')}"
