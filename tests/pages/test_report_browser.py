"""The report in a real browser, as a person uses it: pointer, finger, keys, a telephone, the dark, and no script."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser import Visit, chromium, needs_browser, visit
from run_folders import CLASS_NAMES, HOSTILE, final_scores, loss_at, prediction_at, scene, write_log, write_run

from segformer.files import write_atomically
from segformer.pages.record import RunRecord
from segformer.pages.report import build_report, render_report
from segformer.pages.samples import NO_CLASS, ReportSample

pytestmark = needs_browser
WIDTHS = [390, 1440]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as opened:
        yield opened


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_report(write_run(tmp_path_factory.mktemp("runs") / "toy-1"))


@pytest.fixture(scope="module")
def hostile_report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_run(tmp_path_factory.mktemp("runs") / "hostile", class_names=HOSTILE)
    record = RunRecord.load(folder)
    samples = [
        ReportSample(name, s.photo, s.truth, s.predictions) for name, s in zip(HOSTILE, record.samples, strict=False)
    ]
    about = type(record.about)({name: name for name in HOSTILE}, HOSTILE, HOSTILE[2], 7)
    page = render_report(RunRecord(HOSTILE[6], record.history, record.results, HOSTILE, samples, about))
    write_atomically(folder / "report.html", page)
    return folder / "report.html"


@pytest.fixture
def visited(browser: Any, report: Path) -> Iterator[Visit]:
    with visit(browser, report) as opened:
        yield opened
        assert opened.complaints == []


@pytest.fixture
def page(visited: Visit) -> Any:
    return visited.page


def chart(page: Any, key: str) -> Any:
    return page.locator(f"[data-chart={key}]")


def point_at(page: Any, key: str, step: int, last_step: int = 1000) -> None:
    """Move the pointer over a chart to where a step lies."""
    drawing = chart(page, key).locator(".plot > svg")
    drawing.scroll_into_view_if_needed()
    box = drawing.bounding_box()
    page.mouse.move(box["x"] + box["width"] * step / last_step, box["y"] + box["height"] / 3)


def values(page: Any, key: str) -> list[str]:
    return chart(page, key).locator("li b").all_inner_texts()


def named_rows(page: Any) -> list[str]:
    return page.locator(".classes tbody tr:visible th span").all_inner_texts()


# Whole


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("kind", ["report", "hostile_report"])
def test_a_page_opens_without_a_complaint_or_a_request_and_fits(
    browser: Any, request: pytest.FixtureRequest, kind: str, width: int, scheme: str
) -> None:
    with visit(browser, request.getfixturevalue(kind), width, color_scheme=scheme) as opened:
        for summary in opened.page.locator("summary").all():
            summary.click()
        assert opened.complaints == []
        assert [address for address in opened.requests if not address.startswith("data:")] == []
        assert opened.page.evaluate("document.documentElement.scrollWidth") == width
        assert opened.page.locator("figure.chart path.line").count() == 6
        assert opened.page.evaluate("[...document.images].every((image) => image.naturalWidth > 0)")


@pytest.mark.parametrize("content", ["", '{"step": 1, "loss": 2.5}\n', '{"step": 0, "eval_mean_iou": null}\n'])
def test_a_page_of_hardly_anything_opens_without_a_complaint(browser: Any, tmp_path: Path, content: str) -> None:
    (tmp_path / "log.jsonl").write_text(content)
    with visit(browser, build_report(tmp_path), 390) as opened:
        assert opened.complaints == []
        assert opened.page.evaluate("document.documentElement.scrollWidth") == 390


def test_the_policy_stops_a_script_that_got_in(browser: Any, report: Path, tmp_path: Path) -> None:
    leaky = report.read_text().replace(
        "<footer>", "<footer><script>window.leaked = 1</script><img src=https://a.example>"
    )
    (tmp_path / "leaky.html").write_text(leaky)
    with visit(browser, tmp_path / "leaky.html") as opened:
        assert opened.page.evaluate("window.leaked") is None
        assert [address for address in opened.requests if not address.startswith("data:")] == []
        assert len(opened.complaints) == 2


@pytest.mark.parametrize("width", WIDTHS)
def test_a_page_is_whole_without_its_script(browser: Any, report: Path, width: int) -> None:
    with visit(browser, report, width, java_script_enabled=False) as opened:
        page = opened.page
        assert page.locator("figure.chart path.line").count() == 6
        assert page.locator(".prediction:visible").count() == 2
        assert len(named_rows(page)) == 7
        assert page.locator(".control:visible, .hint:visible, button:visible").count() == 0


OVERLAPS = """() => [...document.querySelectorAll(".plot")].flatMap((plot) => {
    const boxes = [...plot.querySelectorAll("text")].map((text) => text.getBoundingClientRect());
    const apart = (a, b) => a.right <= b.left || b.right <= a.left || a.bottom <= b.top || b.bottom <= a.top;
    return boxes.flatMap((a, k) => [
        ...boxes.slice(k + 1).filter((b) => !apart(a, b)).map(() => "overlap"),
        ...(a.left < 0 || a.right > innerWidth ? ["outside"] : []),
    ]);
})"""


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("last_step", [30, 1000, 160_000])
def test_no_text_of_a_chart_leaves_the_page_or_hides_another(
    browser: Any, tmp_path: Path, width: int, last_step: int
) -> None:
    write_log(tmp_path, last_step, every=last_step // 30, eval_every=last_step // 3)
    with visit(browser, build_report(tmp_path), width) as opened:
        assert opened.page.locator(".plot text").count() > 20
        assert opened.page.evaluate(OVERLAPS) == []


CONTRAST = """() => {
    const channels = (colour) => colour.match(/[\\d.]+/g).slice(0, 3).map((value) => {
        const share = value / 255;
        return share <= 0.04045 ? share / 12.92 : ((share + 0.055) / 1.055) ** 2.4;
    });
    const light = (colour) => { const [r, g, b] = channels(colour); return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
    const paper = light(getComputedStyle(document.body).backgroundColor);
    const ratio = (colour) => {
        const [low, high] = [light(colour), paper].sort((a, b) => a - b);
        return (high + 0.05) / (low + 0.05);
    };
    const texts = [...document.querySelectorAll("body *")].filter((element) => [...element.childNodes].some(
        (node) => node.nodeType === 3 && node.textContent.trim()) && element.getClientRects().length);
    const inks = texts.map((e) => getComputedStyle(e)[e.namespaceURI.endsWith("svg") ? "fill" : "color"]);
    const lines = [...document.querySelectorAll("path.line:not(.faint)")].map((line) => getComputedStyle(line).stroke);
    return [Math.min(...inks.map(ratio)), Math.min(...lines.map(ratio)), paper];
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_and_lines_stand_out_from_the_paper(browser: Any, report: Path, scheme: str) -> None:
    with visit(browser, report, color_scheme=scheme) as opened:
        text, line, paper = opened.page.evaluate(CONTRAST)
        assert text >= 4.5  # WCAG 2.2 AA for text
        assert line >= 3.0  # and for what must be told apart in a picture
        assert paper > 0.9 if scheme == "light" else paper < 0.02


# Curves


def test_pointing_at_a_step_reads_every_chart_there(page: Any) -> None:
    assert values(page, "loss") == [f"{loss_at(1000):.4f}", "0.5000"]
    point_at(page, "loss", 300)
    scores = final_scores(300, 1000)
    assert values(page, "loss") == [f"{loss_at(300):.3f}", "2.250"]
    assert values(page, "scores") == [f"{scores['eval_mean_iou']:.4f}", f"{scores['eval_overall_accuracy']:.4f}"]
    assert values(page, "norm") == ["7.000"]
    assert chart(page, "norm").locator(".at").inner_text() == "step 300"


def test_between_evaluations_the_nearest_is_read_and_its_step_said(page: Any) -> None:
    point_at(page, "loss", 470)
    evaluation = chart(page, "loss").locator("li.evaluation")
    assert values(page, "loss") == [f"{loss_at(470):.4f}", "1.750"]
    assert evaluation.locator("small").is_visible()
    assert evaluation.locator("small").inner_text() == "step 500"
    point_at(page, "loss", 500)
    assert not evaluation.locator("small").is_visible()


def test_the_ring_lies_on_the_curve(page: Any) -> None:
    point_at(page, "scores", 400)
    ring = chart(page, "scores").locator("circle.ring.evaluation").bounding_box()
    dot = chart(page, "scores").locator("circle.dot.evaluation").nth(3).bounding_box()
    for side, size in (("x", "width"), ("y", "height")):
        assert ring[side] + ring[size] / 2 == pytest.approx(dot[side] + dot[size] / 2, abs=0.6)


def test_arrow_keys_move_along_a_curve_and_say_what_they_read(page: Any) -> None:
    plot = chart(page, "loss").locator(".plot")
    plot.focus()
    for key, step in (
        ("Home", 10),
        ("ArrowRight", 20),
        ("PageUp", 120),
        ("ArrowLeft", 110),
        ("End", 1000),
        ("ArrowUp", 1000),
    ):
        page.keyboard.press(key)
        assert plot.get_attribute("aria-valuenow") == str(step)
        assert plot.get_attribute("aria-valuetext").startswith(f"step {step}: training {loss_at(step):.4g}"[:24])
        assert values(page, "loss")[0] == f"{loss_at(step):#.4g}"
    assert plot.get_attribute("role") == "slider"
    assert plot.get_attribute("aria-label") == "Loss by step"


@pytest.mark.parametrize("place", [".plot", ".pictures"])
def test_reading_with_keys_does_not_scroll_the_page(page: Any, place: str) -> None:
    page.locator(place).nth(1).focus()
    before = page.evaluate("scrollY")
    for key in ("ArrowDown", "ArrowUp", "ArrowDown"):
        page.keyboard.press(key)
        page.wait_for_timeout(150)  # the browser scrolls smoothly, after the key
        assert page.evaluate("scrollY") == before


def test_a_finger_reads_a_curve(browser: Any, report: Path) -> None:
    with visit(browser, report, 390, has_touch=True, is_mobile=True) as opened:
        page = opened.page
        drawing = chart(page, "rate").locator(".plot > svg")
        drawing.scroll_into_view_if_needed()
        box = drawing.bounding_box()
        page.touchscreen.tap(box["x"] + box["width"] / 2, box["y"] + 20)
        assert chart(page, "rate").locator(".at").inner_text() == "step 500"
        assert values(page, "loss")[0] == f"{loss_at(500):.4f}"


def test_reading_a_curve_moves_nothing_on_the_page(page: Any) -> None:
    before = page.evaluate("document.documentElement.scrollHeight")
    for step in range(10, 1000, 90):
        point_at(page, "loss", step)
        assert page.evaluate("document.documentElement.scrollHeight") == before


def test_what_is_touched_is_large_enough_for_fingers(browser: Any, report: Path) -> None:
    with visit(browser, report, 390, has_touch=True, is_mobile=True) as opened:
        targets = opened.page.locator("button:visible, input:visible, summary:visible").all()
        assert len(targets) > 6
        boxes = [(target.evaluate("(e) => e.outerHTML"), target.bounding_box()) for target in targets]
        assert [e[:90] for e, box in boxes if min(box["width"], box["height"]) < 43.99] == []
        assert opened.page.evaluate("document.documentElement.scrollWidth") == 390


# Samples


def shown_predictions(page: Any) -> list[str]:
    return [image.get_attribute("alt").split(",")[0] for image in page.locator(".prediction:visible").all()]


def test_the_slider_moves_all_samples_through_the_run(page: Any) -> None:
    assert shown_predictions(page) == ["Prediction after step 1000"] * 2
    before = page.locator(".prediction:visible").first.get_attribute("src")
    page.locator("#time").focus()
    page.keyboard.press("ArrowLeft")
    assert shown_predictions(page) == ["Prediction after step 500"] * 2
    assert page.locator("#shown-step").inner_text() == "500"
    assert page.locator(".mistakes:visible").count() == 2
    assert page.locator(".prediction:visible").first.get_attribute("src") != before
    page.keyboard.press("Home")
    assert shown_predictions(page) == ["Prediction after step 200"] * 2
    assert page.locator("#time").get_attribute("aria-valuetext") == "step 200"


def stop_the_clock(page: Any) -> None:
    """Let the page's time stand, so that a slow machine shows no step more than a test asks for."""
    page.clock.install(time=0)
    page.clock.pause_at(3600)


def test_play_goes_from_the_first_step_to_the_last_and_stops(page: Any) -> None:
    stop_the_clock(page)
    play = page.get_by_role("button", name="Play")
    play.focus()
    page.keyboard.press("Enter")
    seen = [page.locator("#shown-step").inner_text()]
    for _ in range(3):
        assert page.locator("#play").inner_text() == ("Pause" if len(seen) < 3 else "Play")
        page.clock.run_for(700)
        seen.append(page.locator("#shown-step").inner_text())
    assert seen == ["200", "500", "1,000", "1,000"]


def test_play_can_be_stopped(page: Any) -> None:
    stop_the_clock(page)
    page.get_by_role("button", name="Play").click()
    page.get_by_role("button", name="Pause").click()
    page.clock.run_for(5000)
    assert page.locator("#shown-step").inner_text() == "200"


@pytest.mark.parametrize("step", [1000, 200])
def test_pointing_at_a_picture_names_its_classes(page: Any, step: int) -> None:
    if step == 200:
        page.locator("#time").fill("0")
    truth = scene(1)
    prediction = prediction_at(truth, step, 1000)
    sample = page.locator(".sample").nth(1)
    for kind, y, x in (("photo", 1, 2), ("truth", 20, 5), ("prediction:visible", 40, 60), ("mistakes:visible", 10, 30)):
        picture = sample.locator(f".{kind}")
        picture.scroll_into_view_if_needed()
        box = picture.bounding_box()
        page.mouse.move(box["x"] + box["width"] * (x + 0.5) / 64, box["y"] + box["height"] * (y + 0.5) / 48)
        names = ["not labelled" if k == NO_CLASS else CLASS_NAMES[k] for k in (truth[y, x], prediction[y, x])]
        assert sample.locator(".under").inner_text() == f"Truth: {names[0]}. Prediction: {names[1]}."


def test_arrow_keys_read_a_picture_too(page: Any) -> None:
    sample = page.locator(".sample").first
    sample.locator(".pictures").focus()
    for _ in range(80):
        page.keyboard.press("ArrowUp")
    assert sample.locator(".under").inner_text().startswith("Truth: not labelled.")
    for _ in range(80):
        page.keyboard.press("ArrowDown")
    assert sample.locator(".under").inner_text().startswith(f"Truth: {CLASS_NAMES[scene(0)[47, 32]]}.")


def test_what_is_read_follows_the_step(page: Any) -> None:
    sample = page.locator(".sample").first
    truth = scene(0)
    y, x = (int(place[-1]) for place in np.nonzero((truth != 0) & (truth != NO_CLASS)))
    picture = sample.locator(".truth")
    picture.scroll_into_view_if_needed()
    box = picture.bounding_box()
    page.mouse.move(box["x"] + box["width"] * (x + 0.5) / 64, box["y"] + box["height"] * (y + 0.5) / 48)
    before = sample.locator(".under").inner_text()
    page.locator("#time").focus()
    page.keyboard.press("Home")
    assert before.endswith(f"Prediction: {CLASS_NAMES[truth[y, x]]}.")
    assert sample.locator(".under").inner_text().endswith("Prediction: wall.")


def test_the_pictures_of_a_sample_have_the_photos_shape(page: Any) -> None:
    shapes = page.evaluate(
        """() => [...document.querySelectorAll(".picture")].map((picture) => picture.getBoundingClientRect())
            .filter((box) => box.width).map((box) => box.width / box.height)"""
    )
    assert len(shapes) == 8
    assert shapes == pytest.approx([1.0] * 8, abs=0.01)


# Classes


@pytest.mark.parametrize(
    ("column", "first"),
    [
        ("IoU", ["only predicted", "rug", "street lamp", "tree", "sky", "floor", "wall"]),  # was descending
        ("Accuracy", ["rug", "street lamp", "tree", "sky", "floor", "wall", "only predicted"]),
        ("Pixels", ["floor", "sky", "tree", "street lamp", "rug", "wall", "only predicted"]),
        ("Class", ["floor", "only predicted", "rug", "sky", "street lamp", "tree", "wall"]),
    ],
)
def test_classes_are_sorted_by_a_column_and_back_again(page: Any, column: str, first: list[str]) -> None:
    assert named_rows(page) == CLASS_NAMES[:7]
    button = page.locator(".classes thead").get_by_role("button", name=column)
    button.focus()
    page.keyboard.press("Enter")
    assert named_rows(page) == first
    heading = page.locator(f"th:has(button:text('{column}'))")
    before = heading.get_attribute("aria-sort")
    button.click()
    assert named_rows(page) == first[::-1]
    assert {before, heading.get_attribute("aria-sort")} == {"ascending", "descending"}
    assert page.locator("[aria-sort]").count() == 1


def test_classes_are_found_by_a_part_of_their_name(page: Any) -> None:
    page.get_by_label("Find a class").focus()
    page.keyboard.type("  LAMP")
    assert named_rows(page) == ["street lamp"]
    assert page.locator("#found").inner_text() == "1 of 8"
    page.get_by_label("Find a class").fill("nothing of that name")
    assert named_rows(page) == []
    assert page.locator("#found").inner_text() == "0 of 8"
    page.get_by_label("Find a class").fill("")
    assert len(named_rows(page)) == 7
    assert page.locator("#found").inner_text() == ""


def test_sorting_keeps_what_is_filtered_out_hidden(page: Any) -> None:
    page.get_by_label("Find a class").fill("r")
    page.get_by_role("button", name="Class").click()
    assert named_rows(page) == ["floor", "only predicted", "rug", "street lamp", "tree"]


@pytest.mark.parametrize("width", WIDTHS)
def test_bars_are_as_long_as_their_scores(browser: Any, report: Path, width: int) -> None:
    measured = """() => [...document.querySelectorAll(".classes tbody tr")].map((row) => {
        const bar = row.querySelector(".bar");
        const [cell, part] = bar.getClientRects().length ? [bar, "::before"] : [row.querySelector("th"), "::after"];
        const style = getComputedStyle(cell);
        const room = cell.clientWidth - parseFloat(style.paddingLeft) - parseFloat(style.paddingRight);
        return parseFloat(getComputedStyle(cell, part).width) / room;
    })"""
    with visit(browser, report, width) as opened:
        shares = opened.page.evaluate(measured)
    ious = [iou for iou in final_scores(1000, 1000)["eval_per_category_iou"] if iou is not None]
    assert len(shares) == 7
    assert all(math.isclose(share, iou, abs_tol=0.02) for share, iou in zip(shares, ious, strict=True))


@pytest.mark.parametrize("name", [name for name in HOSTILE[:7] if "\u202e" not in name])
def test_hostile_names_are_found_and_read_as_they_are(browser: Any, hostile_report: Path, name: str) -> None:
    with visit(browser, hostile_report) as opened:
        opened.page.get_by_label("Find a class").fill(name)
        assert opened.page.locator(".classes tbody tr:visible th span").all_text_contents() == [name]
        assert opened.complaints == []


# By keys alone


def test_every_control_is_reached_by_the_tab_key(page: Any) -> None:
    reached = []
    for _ in range(60):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.outerHTML.slice(0, 200)"))
    for control in ('class="plot"', 'id="play"', 'id="time"', 'class="pictures"', 'id="filter"', "<button", "<summary"):
        assert any(control in element for element in reached), control
    assert len([element for element in reached if 'class="plot"' in element]) >= 4


def test_what_has_the_focus_is_marked(page: Any) -> None:
    page.keyboard.press("Tab")
    assert re.match(r"[1-9]", page.evaluate("getComputedStyle(document.activeElement).outlineWidth"))
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
