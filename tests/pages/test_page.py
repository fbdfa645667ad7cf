"""The shell of every page: whatever the text, nothing but our own markup and script, and no request."""

import base64
import hashlib
import io
import json
import re
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
from markup import Markup
from PIL import Image
from run_folders import HOSTILE

from segformer.files import write_atomically
from segformer.pages.page import (
    MOST_PIXELS,
    Html,
    asset,
    colour_code,
    distinct,
    embedded_json,
    joined,
    label_map_uri,
    photo_uri,
    png_uri,
    render_page,
    swatch,
)
from segformer.pictures import palette

WEB = resources.files("segformer.pages") / "web"


def page_of(title: str = "a title", body: Html = Html("<p>text</p>"), data: object = None) -> Html:  # noqa: B008
    return render_page(title, body, ["report.css"], ["report.js"], data)


def opened(uri: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2])))


# Text


@pytest.mark.parametrize("text", HOSTILE)
def test_text_put_into_markup_comes_back_as_text(text: str) -> None:
    markup = Markup(Html('<p title="{text}">{text}</p>').fill(text=text))
    assert [element.tag for element in markup.elements] == ["p"]
    assert markup.one("p").attributes == {"title": text}
    assert markup.one("p").text == text


def test_markup_put_into_markup_stays_markup() -> None:
    inner = Html("<b>{text}</b>").fill(text="a & b")
    assert Html("<p>{inner}</p>").fill(inner=inner) == "<p><b>a &amp; b</b></p>"
    assert isinstance(joined([inner, inner]), Html)


def test_numbers_put_into_markup_keep_their_format() -> None:
    assert (
        Html('<i style="width:{share:.1f}%">{count}</i>').fill(share=12.345, count=7) == '<i style="width:12.3%">7</i>'
    )


@pytest.mark.parametrize("text", HOSTILE)
def test_embedded_data_cannot_leave_its_element(text: str) -> None:
    embedded = embedded_json({text: [text]})
    assert not set("<>&") & set(embedded)
    assert json.loads(embedded) == {text: [text]}
    assert json.loads(Markup(page_of(data={text: [text]})).one("script", id="data").text) == {text: [text]}


def test_data_that_scripts_cannot_read_is_refused() -> None:
    with pytest.raises(ValueError, match="JSON"):
        embedded_json({"loss": float("nan")})


@pytest.mark.parametrize("title", HOSTILE)
def test_a_title_is_only_a_title(title: str) -> None:
    markup = Markup(page_of(title))
    assert markup.faults == []
    assert markup.one("title").text == title
    assert len(markup.all("script")) == 2


# The page


def test_a_page_names_no_address_but_data() -> None:
    markup = Markup(page_of())
    addresses = [
        element.attributes[name]
        for element in markup.elements
        for name in ("src", "href")
        if name in element.attributes
    ]
    assert addresses
    assert [address for address in addresses if not address.startswith("data:")] == []
    assert re.findall(r"url\(|@import|https?:(?!//www\.w3\.org/2000/svg)", page_of()) == []


def test_the_policy_of_a_page_allows_its_script_and_no_other() -> None:
    markup = Markup(page_of())
    policy = markup.one("meta", http_equiv="Content-Security-Policy").attributes["content"]
    script = next(element for element in markup.all("script") if "type" not in element.attributes)
    digest = base64.b64encode(hashlib.sha256(script.text.encode()).digest()).decode()
    assert policy.startswith("default-src 'none';")
    assert re.findall(r"script-src ([^;]+)", policy) == [f"'sha256-{digest}'"]


def test_the_policy_stands_before_anything_it_rules() -> None:
    tags = [element.tag for element in Markup(page_of()).elements]
    assert tags.index("meta") < min(tags.index(tag) for tag in ("style", "script", "link"))


@pytest.mark.parametrize("name", sorted(path.name for path in WEB.iterdir()))
def test_no_style_or_script_ends_its_own_element(name: str) -> None:
    if not name.endswith(".html"):
        assert not re.search(r"</(style|script)|<!--", asset(name))


def test_a_page_says_its_language_and_fits_telephones() -> None:
    markup = Markup(page_of())
    assert markup.one("html").attributes["lang"] == "en"
    assert "width=device-width" in markup.one("meta", name="viewport").attributes["content"]
    assert markup.one("meta", name="color-scheme").attributes["content"] == "light dark"


# Writing


def test_writing_replaces_and_leaves_nothing_beside(tmp_path: Path) -> None:
    for text in ("first", "second"):
        write_atomically(tmp_path / "page.html", text)
    assert [path.name for path in tmp_path.iterdir()] == ["page.html"]
    assert (tmp_path / "page.html").read_text() == "second"


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "page.html"
    write_atomically(path, "old")

    def full(self: Path, content: bytes) -> int:
        with self.open("wb") as file:
            file.write(content[:1])
        raise OSError("no space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="no space"):
        write_atomically(path, "new and longer")
    assert path.read_text() == "old"


def test_half_a_surrogate_pair_is_written_as_a_question_mark(tmp_path: Path) -> None:
    write_atomically(tmp_path / "page.html", "a\ud800b")
    assert (tmp_path / "page.html").read_text() == "a?b"


# Pictures


@pytest.mark.parametrize(("size", "shown"), [((640, 480), (512, 384)), ((300, 900), (300, 900)), ((3000, 1), (512, 1))])
def test_pictures_are_made_no_wider_than_a_page_shows_them(size: tuple[int, int], shown: tuple[int, int]) -> None:
    photo = opened(photo_uri(Image.new("RGB", size, (9, 200, 30))))
    assert (photo.format, photo.size) == ("JPEG", shown)
    assert opened(label_map_uri(np.zeros(size[::-1], np.uint8), palette(3))).size == shown
    assert shown[0] <= MOST_PIXELS


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P", "CMYK", "1"])
def test_photos_of_any_mode_become_jpegs(mode: str) -> None:
    assert opened(photo_uri(Image.new(mode, (5, 4)))).mode == "RGB"


@pytest.mark.parametrize(("num_labels", "width"), [(7, 40), (150, 40), (150, 1100), (300, 40), (300, 1100)])
def test_a_label_map_on_a_page_has_only_the_colours_of_its_classes(num_labels: int, width: int) -> None:
    label_map = np.random.default_rng(0).integers(0, num_labels, (30, width)).astype(np.uint16)
    colours = palette(num_labels)
    shown = np.asarray(opened(label_map_uri(label_map, colours)).convert("RGB"))
    if width <= MOST_PIXELS:
        assert np.array_equal(shown, colours[label_map])
    assert {tuple(pixel) for row in shown.tolist() for pixel in row} <= {tuple(colour) for colour in colours.tolist()}


def test_transparency_survives() -> None:
    picture = Image.fromarray(np.array([[0, 1]], np.uint8))
    picture.putpalette(bytes((0, 0, 0, 200, 0, 0)))
    shown = opened(png_uri(picture, transparency=bytes((0, 255)), bits=1)).convert("RGBA")
    assert [shown.getpixel((x, 0)) for x in (0, 1)] == [(0, 0, 0, 0), (200, 0, 0, 255)]


@pytest.mark.parametrize("num_labels", [0, 1, 7, 150, 300])
def test_distinct_colours_are_distinct_and_not_black_yet_look_the_same(num_labels: int) -> None:
    before, after = palette(num_labels).reshape(-1, 3), distinct(palette(num_labels))
    codes = [colour_code(colour) for colour in after]
    assert len(set(codes) - {"#000000"}) == num_labels
    assert np.abs(before.astype(int) - after.astype(int)).max(initial=0) <= 2


def test_equal_and_black_colours_are_told_apart() -> None:
    colours = np.array([[0, 0, 0], [0, 0, 0], [255, 255, 255], [255, 255, 255], [0, 0, 255], [0, 0, 255]], np.uint8)
    codes = [colour_code(colour) for colour in distinct(colours)]
    assert len(set(codes)) == 6
    assert "#000000" not in codes


def test_a_swatch_has_its_colour() -> None:
    assert Markup(swatch(np.array([1, 171, 255], np.uint8))).one("i").attributes["style"] == "background:#01abff"
