"""The page of a dataset: what it is told stands on it, whatever the text, and its pictures show what they should."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import browser
import numpy as np
import pytest
from markup import Markup
from PIL import Image
from run_folders import HOSTILE

from segformer.pages.look_page import NO_CLASS, STRAY, Example, LookedAt, Problem, SplitShares, render_look, share_text

NAMES = ("sky", "road", "car")


def example(name: str = "a", size: tuple[int, int] = (16, 12), **changes: Any) -> Example:
    label_map = np.zeros((12, 16), np.uint8)
    label_map[6:], label_map[:2], label_map[0, 0] = 1, NO_CLASS, STRAY
    return Example(**{"name": name, "photo": Image.new("RGB", size, "red"), "label_map": label_map, **changes})


def looked_at(text: str = "text", *examples: Example) -> LookedAt:
    return LookedAt(
        title=text,
        headline={text: text},
        facts={text: text},
        class_names=[text, "", "car"],
        splits=[SplitShares("train", [0.2, 0.0, 0.8], [0.5, 0.0, 1.0]), SplitShares("test", [1, 0, 0], [1, 0, 0])],
        problems=[Problem(text, text, True, [text], "2 rows", [(text, "said"), ("where", text)], [example(text)])],
        examples={"train": examples or (example(text),)},
    )


def pictures(markup: Markup, alt: str) -> list[Image.Image]:
    found = (each.attributes for each in markup.all("img"))
    sources = [each["src"] for each in found if each["alt"].startswith(alt)]
    return [Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2]))) for source in sources]


@pytest.mark.parametrize("text", HOSTILE)
def test_text_stays_text(text: str) -> None:
    markup = Markup(render_look(looked_at(text)))
    assert markup.faults == []
    assert len(markup.all("script")) == 2
    assert markup.one("h1").text == text


def test_classes_without_a_name_are_left_out_and_the_largest_is_first() -> None:
    rows = [
        each.attributes["data-name"]
        for each in Markup(render_look(looked_at())).all("tr")
        if "data-name" in each.attributes
    ]
    assert rows == ["car", "text"]


def test_a_label_map_shows_what_no_class_has_first() -> None:
    markup = Markup(render_look(looked_at("sky", example())))
    keys = [" ".join(each.text.split()) for each in markup.all("li") if "%" in each.text]
    assert keys[0] == "no class 0.5 %"
    assert "ignored 16.1 %" in keys


def test_a_label_map_of_another_size_stands_beside_its_photo() -> None:
    markup = Markup(render_look(looked_at("sky", example(size=(12, 16)))))
    (alone,) = pictures(markup, "Label map")
    assert alone.size == (16, 12)
    assert "Label map, 16 x 12" in markup.one("body").text


@pytest.mark.parametrize("missing", ["photo", "label_map"])
def test_what_does_not_decode_leaves_a_word(missing: str) -> None:
    markup = Markup(render_look(looked_at("sky", example(**{missing: None}))))
    assert f"no {missing.replace('_', ' ')}" in markup.one("body").text


def test_a_wide_photo_is_made_small_and_no_class_of_its_label_map_is_mixed() -> None:
    label_map = np.random.default_rng(0).integers(0, 2, (300, 1000), np.uint8)
    markup = Markup(render_look(looked_at("sky", example(photo=Image.new("RGB", (1000, 300)), label_map=label_map))))
    drawn = pictures(markup, "Its label map")[-1]
    assert drawn.width <= 512
    assert set(np.unique(np.asarray(drawn))) == {0, 1}


@pytest.mark.parametrize(
    ("share", "text"), [(0, "none"), (1e-6, "< 0.01 %"), (0.001234, "0.12 %"), (0.5, "50.0 %"), (1, "100.0 %")]
)
def test_a_share_is_told_in_percent(share: float, text: str) -> None:
    assert share_text(share) == text


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with browser.chromium() as opened:
        yield opened


@pytest.fixture
def page(tmp_path: Path) -> Path:
    path = tmp_path / "look.html"
    path.write_text(render_look(looked_at()), encoding="utf-8")
    return path


class TestInABrowser:
    pytestmark = browser.needs_browser

    @pytest.mark.parametrize("width", [390, 1440])
    def test_it_opens_without_a_complaint_and_without_scrolling_sideways(
        self, chromium: Any, page: Path, width: int
    ) -> None:
        with browser.visit(chromium, page, width) as visit:
            assert visit.complaints == visit.requests == []
            assert visit.page.evaluate("document.documentElement.scrollWidth") == width

    def test_the_slider_says_how_strongly_label_maps_cover(self, chromium: Any, page: Path) -> None:
        with browser.visit(chromium, page, reduced_motion="reduce") as visit:
            visit.page.locator("#opacity").fill("20")
            assert visit.page.locator(".map").last.evaluate("each => getComputedStyle(each).opacity") == "0.2"

    def test_a_photo_under_the_pointer_is_bare(self, chromium: Any, page: Path) -> None:
        with browser.visit(chromium, page, reduced_motion="reduce") as visit:
            visit.page.locator(".picture").last.hover()
            assert visit.page.locator(".map").last.evaluate("each => getComputedStyle(each).opacity") == "0"

    def test_classes_are_sorted_by_the_heading_that_is_pressed(self, chromium: Any, page: Path) -> None:
        with browser.visit(chromium, page) as visit:
            visit.page.locator("th[data-sort=pixels1] button").click()
            assert visit.page.locator("tbody tr").evaluate_all("rows => rows.map(row => row.dataset.name)")[0] == "text"
