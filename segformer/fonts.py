"""Letters for the legends of pictures: Pillow's own font, or one of this system's that has what a name is written in.

Pillow's font has the letters of English and draws a box for every other. Fonts are looked for where systems keep them;
a name that no font has letters for is written without its accents or, where that is not enough, as its number.
"""

from __future__ import annotations

import logging
import os
import threading
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from functools import cache, lru_cache
from pathlib import Path

from PIL import ImageFont, features

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont
Lettering = tuple[str, Path | None]  # a text and the file of its font, None for Pillow's own

_PROBE_SIZE = 20
_NO_LETTER = "\uffff"  # never a letter, so that every font shows its box for it
_ELLIPSIS = "..."  # which every font has
_KINDS = {".ttf", ".otf", ".ttc", ".otc"}
_USUAL = ("sans", "gothic", "arial", "helvetica", "segoe")
_UNUSUAL = ("bold", "italic", "oblique", "light", "thin", "black", "condensed", "mono", "serif", "extra", "math")
_SEARCH = threading.Lock()  # of the system, once however many threads draw legends

logger = logging.getLogger(__name__)


def font_folders() -> list[Path]:
    """Where Linux, macOS and Windows keep fonts, this user's own before those of all."""
    home, environment = Path.home(), os.environ
    shared = f"{environment.get('XDG_DATA_DIRS', '')}:/usr/local/share:/usr/share".strip(":")
    windows = [Path(environment[name]) for name in ("LOCALAPPDATA", "WINDIR") if environment.get(name)]
    return [
        Path(environment.get("XDG_DATA_HOME") or home / ".local/share") / "fonts",
        home / ".fonts",
        *(Path(folder) / "fonts" for folder in shared.split(":")),
        home / "Library/Fonts",
        Path("/Library/Fonts"),
        Path("/System/Library/Fonts"),
        *(folder / inside for folder in windows for inside in ("Microsoft/Windows/Fonts", "Fonts")),
    ]


def letterings(names: Mapping[int, str], kind: str = "class") -> dict[int, Lettering]:
    """How every name is written: as it is, else without accents, else as its kind and number, such as "class 3".

    What is not written as it is, is said once.
    """
    texts = {k: plain_text(name) or f"{kind} {k}" for k, name in names.items()}
    with _SEARCH:
        files = fonts_of(frozenset(texts.values()))
    written = {}
    for k, text in texts.items():
        bare = "".join(letter for letter in unicodedata.normalize("NFKD", text) if not unicodedata.combining(letter))
        if text in files:
            written[k] = (text, files[text])
        else:
            written[k] = (bare if has_letters(own_font(_PROBE_SIZE), bare) else f"{kind} {k}", None)
    return written


def plain_text(text: str) -> str:
    """One line of composed letters: macOS keeps names of files in pieces, which fonts draw one by one."""
    shown = (letter for letter in " ".join(text.split()) if unicodedata.category(letter)[0] != "C")
    return unicodedata.normalize("NFC", "".join(shown))


def shortened(text: str, font: Font, width: float) -> str:
    """The text, or as much of its beginning and its end as fits: names of files often differ only at their end."""
    kept = len(text)
    short = text
    while font.getlength(short) > width and kept > 2:
        kept -= 1
        short = text[: (kept + 1) // 2] + _ELLIPSIS + text[len(text) - kept // 2 :]
    return short


def opened(file: Path | None, size: int) -> Font:
    """The font of a lettering."""
    return own_font(size) if file is None else ImageFont.truetype(file, size)


@lru_cache(maxsize=16)
def own_font(size: int) -> Font:
    """Pillow's own font."""
    return ImageFont.load_default(size)


@cache
def fonts_of(texts: frozenset[str]) -> dict[str, Path | None]:
    """For each text the first font that has all of its letters; texts that none has are left out, and said."""
    found: dict[str, Path | None] = {text: None for text in texts if has_letters(own_font(_PROBE_SIZE), text)}
    left = set(texts) - set(found)
    for file in _font_files() if left else ():
        try:
            font = ImageFont.truetype(file, _PROBE_SIZE)
        except OSError:  # no font after all, or one of pictures of one size
            continue
        here = {text for text in left if has_letters(font, text)}
        found |= dict.fromkeys(here, file)
        left -= here
        if not left:
            break
    if left:
        logger.warning(
            "no font on this system has the letters of %s; in pictures such names stand without accents or as a number "
            "(to have them written out, install a font that has them, such as Noto Sans CJK)",
            ", ".join(repr(text) for text in sorted(left)[:5]) + (" and others" if len(left) > 5 else ""),
        )
    return found


def has_letters(font: Font, text: str) -> bool:
    """Whether a font draws every letter of a text, and draws them joined and in order where they are to be."""
    box = bytes(font.getmask(_NO_LETTER))
    return all(bytes(font.getmask(letter)) != box and _is_drawable(letter) for letter in _inked(text))


def _inked(text: str) -> Iterable[str]:
    return (letter for letter in set(text) if not letter.isspace())


def _is_drawable(letter: str) -> bool:
    """Letters that run from right to left, or change with their neighbours, need a library that Pillow may lack."""
    shaped = unicodedata.bidirectional(letter) in ("R", "AL") or unicodedata.category(letter) == "Mc"
    return not shaped or bool(features.check("raqm"))


def _font_files() -> Iterator[Path]:
    """The fonts of this system, plain ones before bold, slanted and narrow ones."""
    files = {file for folder in font_folders() for file in folder.rglob("*") if file.suffix.lower() in _KINDS}

    def order(file: Path) -> tuple[int, bool, str]:
        name = file.name.lower()
        return sum(word in name for word in _UNUSUAL), not any(word in name for word in _USUAL), name

    for file in sorted(files, key=order):
        if "lastresort" not in file.name.lower():  # macOS's, which has a box for every letter there is
            yield file
