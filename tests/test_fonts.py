"""Fonts: a name is written in letters that a font has, whatever system this is, and never as boxes."""

import logging
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFont, features

from segformer import fonts
from segformer.fonts import fonts_of, has_letters, letterings, own_font, plain_text, shortened
from segformer.pictures import palette, with_legend

CYRILLIC, KOREAN, CHINESE = "дорога", "사람과 자전거", "天空"
FOLDER_OF_FONTS = ("XDG_DATA_HOME", "XDG_DATA_DIRS", "HOME", "WINDIR", "LOCALAPPDATA")


@pytest.fixture(autouse=True)
def forgetful() -> Iterator[None]:
    """What was found for one test is not known to the next."""
    fonts_of.cache_clear()
    yield
    fonts_of.cache_clear()


@pytest.fixture
def without_fonts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A system that keeps fonts in one folder alone, which is empty."""
    monkeypatch.setattr(fonts, "font_folders", lambda: [tmp_path])
    return tmp_path


def system_font(text: str) -> Path:
    file = fonts_of(frozenset({text})).get(text)
    if file is None:
        pytest.skip(f"no font on this system has the letters of {text}")
    return file


@pytest.mark.parametrize("text", [CYRILLIC, KOREAN, CHINESE, "naïve café", "عربي"])
def test_a_font_that_is_found_draws_every_letter(text: str) -> None:
    font = ImageFont.truetype(system_font(text), 24)
    box = bytes(font.getmask("\uffff"))
    assert all(bytes(font.getmask(letter)) != box for letter in text if letter != " ")


def test_english_is_written_in_pillows_own_font() -> None:
    assert letterings({0: "street lamp", 1: " bed "}) == {0: ("street lamp", None), 1: ("bed", None)}


def test_pillows_own_font_has_english_and_no_korean() -> None:
    assert has_letters(own_font(20), "A street, a lamp: 100 %")
    assert not has_letters(own_font(20), "사람")


def test_a_name_that_no_font_has_letters_for_becomes_the_id_of_its_class(without_fonts: Path) -> None:
    assert letterings({0: "wall", 7: KOREAN, 8: CYRILLIC}) == {
        0: ("wall", None),
        7: ("class 7", None),
        8: ("class 8", None),
    }


def test_a_name_loses_its_accents_before_it_becomes_an_id(without_fonts: Path) -> None:
    assert letterings({0: "naïve café", 1: "ściana"}) == {0: ("naive cafe", None), 1: ("sciana", None)}


def test_letters_that_are_lacking_are_said_once(without_fonts: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            letterings({0: "wall", 1: KOREAN})
    assert len(caplog.records) == 1
    assert KOREAN in caplog.text
    assert "install a font" in caplog.text


def test_what_can_be_written_is_not_spoken_of(caplog: pytest.LogCaptureFixture) -> None:
    system_font(CYRILLIC)
    with caplog.at_level(logging.WARNING):
        assert letterings({0: "wall", 1: CYRILLIC})[1][0] == CYRILLIC
    assert caplog.records == []


@pytest.mark.parametrize("content", [b"", b"no font", b"\x00\x01\x00\x00" + bytes(100)])
def test_files_that_are_no_fonts_are_passed_over(without_fonts: Path, content: bytes) -> None:
    (without_fonts / "broken.ttf").write_bytes(content)
    assert letterings({0: CYRILLIC}) == {0: ("class 0", None)}


def test_a_font_is_found_in_folders_of_folders(
    without_fonts: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.undo()
    content = system_font(CYRILLIC).read_bytes()
    fonts_of.cache_clear()
    monkeypatch.setattr(fonts, "font_folders", lambda: [tmp_path])
    (tmp_path / "truetype/own").mkdir(parents=True)
    (tmp_path / "truetype/own/FONT.TTF").write_bytes(content)
    assert letterings({0: CYRILLIC}) == {0: (CYRILLIC, tmp_path / "truetype/own/FONT.TTF")}


def test_the_folder_of_the_user_is_looked_through_on_every_system(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in FOLDER_OF_FONTS:
        monkeypatch.setenv(name, f"/{name.lower()}")
    folders = {str(folder) for folder in fonts.font_folders()}
    assert {"/xdg_data_home/fonts", "/xdg_data_dirs/fonts", "/usr/share/fonts"} <= folders  # Linux
    assert {"/home/Library/Fonts", "/System/Library/Fonts"} <= folders  # macOS
    assert {"/windir/Fonts", "/localappdata/Microsoft/Windows/Fonts"} <= folders  # Windows


def test_letters_in_pieces_are_put_together() -> None:
    assert plain_text("\u1109\u1161\u1105\u1161\u11b7") == "사람"
    assert plain_text("cafe\u0301") == "café"


def test_a_name_is_one_line_without_controls() -> None:
    assert plain_text(" two\nlines\x00 \u202eand\ud800 more ") == "two lines and more"


def test_a_name_of_nothing_becomes_the_id_of_its_class() -> None:
    assert letterings({3: " \n", 4: "\u200b"}) == {3: ("class 3", None), 4: ("class 4", None)}


def test_a_shortened_text_fits_and_keeps_both_its_ends() -> None:
    font = own_font(15)
    short = shortened("a" * 100 + "_0042.jpg", font, 120)
    assert font.getlength(short) <= 120
    assert short.startswith("aaa")
    assert short.endswith("42.jpg")
    assert shortened("short.jpg", font, 120) == "short.jpg"


@pytest.mark.skipif(not features.check("raqm"), reason="this Pillow cannot join letters")
def test_letters_that_join_are_drawn_where_pillow_can() -> None:
    assert has_letters(ImageFont.truetype(system_font("عربي"), 20), "عربي")


def test_a_legend_draws_the_letters_and_no_boxes() -> None:
    file = system_font(CYRILLIC)
    legend = np.asarray(with_legend(Image.new("RGB", (64, 640)), [(0, 1.0)], {0: CYRILLIC}, palette(1)))[:, 64:]
    mask = np.asarray(Image.Image()._new(ImageFont.truetype(file, 20).getmask(CYRILLIC)))
    rows, columns = np.nonzero((legend == (28, 28, 30)).all(axis=-1))  # the ink of names at its full strength
    drawn = legend[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
    ys, xs = np.nonzero(mask == 255)
    assert drawn.shape[:2] == (ys.max() - ys.min() + 1, xs.max() - xs.min() + 1)
