"""The comparison of runs in a real browser: wide and narrow, light and dark, by pointer."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browser import chromium, needs_browser, visit
from test_comparison import IOUS, OTHER, run
from test_report_browser import CONTRAST, OVERLAPS, chart, point_at, values

from segformer.files import write_atomically
from segformer.pages.comparison import MOST_RUNS, load_runs, render_comparison

pytestmark = needs_browser


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as opened:
        yield opened


@pytest.fixture(scope="module")
def comparison(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As many runs as there may be, one of a long name, the first the shortest."""
    root = tmp_path_factory.mktemp("runs")
    names = ["first", "second", "a-run-with-quite-a-long-name-lr-0.0006-wd-0.01", "fourth", "fifth", "sixth"][
        :MOST_RUNS
    ]
    folders = [run(root / name, 500 + 100 * k, (IOUS, OTHER)[k % 2], learning_rate=k) for k, name in enumerate(names)]
    write_atomically(root / "comparison.html", render_comparison(load_runs(folders)))
    return root / "comparison.html"


@pytest.mark.parametrize("width", [390, 1440])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_comparison_opens_without_a_complaint_or_a_request_and_fits(
    browser: Any, comparison: Path, width: int, scheme: str
) -> None:
    with visit(browser, comparison, width, color_scheme=scheme) as opened:
        assert opened.complaints == []
        assert [address for address in opened.requests if not address.startswith("data:")] == []
        assert opened.page.evaluate("document.documentElement.scrollWidth") == width
        assert opened.page.evaluate(OVERLAPS) == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_and_lines_stand_out_from_the_paper(browser: Any, comparison: Path, scheme: str) -> None:
    with visit(browser, comparison, color_scheme=scheme) as opened:
        text, line, _ = opened.page.evaluate(CONTRAST)
        assert text >= 4.5  # WCAG 2.2 AA for text
        assert line >= 3.0  # and for what must be told apart in a picture


def test_a_step_beyond_the_end_of_the_first_run_can_be_read(browser: Any, comparison: Path) -> None:
    with visit(browser, comparison) as opened:
        point_at(opened.page, "eval_mean_iou", 900, 1000)
        assert chart(opened.page, "eval_mean_iou").locator(".at").inner_text() == "step 900"
        assert values(opened.page, "eval_mean_iou") == ["0.6000"] * 5 + ["0.5400"]
        told = chart(opened.page, "eval_mean_iou").locator("li small:visible").all_inner_texts()
        assert told == ["step 500", "step 600", "step 700", "step 800"]


def test_classes_are_sorted_by_any_run(browser: Any, comparison: Path) -> None:
    with visit(browser, comparison) as opened:
        opened.page.get_by_role("button", name="second").click()
        names = opened.page.locator(".changes tbody th").all_inner_texts()
        assert (names[0], names[-1]) == ("street lamp", "sky")
