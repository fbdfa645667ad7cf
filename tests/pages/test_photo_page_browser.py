"""The page of photos in a real browser, as a person uses it: pointer, fingers, keys, a telephone, dark, no script."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser import Visit, chromium, needs_browser, visit, wait_until
from PIL import Image
from run_folders import HOSTILE
from test_photo_page import matrix_of, real_photos

from data.classes import ID2LABEL
from segformer.pages.photo_page import PagePhoto, write_photo_page
from segformer.pictures import UNTINTED, palette

pytestmark = needs_browser
WIDTHS = [390, 1440]
NAMES = ["wall", "floor", "sky", "tree", "lamp", "nowhere"]
COLOURS = palette(len(NAMES))
GREY = 100  # of every pixel of the photos, so that what is drawn over it can be computed
HEIGHT, WIDTH = 90, 120
MISSED, EXCESS = (255, 84, 46), (64, 156, 255)


def scene(kind: str) -> PagePhoto:
    """A photo whose pixels are known: sky above, wall left, floor right, a lamp that only the truth holds."""
    label_map = np.full((HEIGHT, WIDTH), 2, np.uint8)
    label_map[30:, :50] = 0
    label_map[30:, 50:] = 1
    truth = label_map.copy()
    if kind == "lamp missed":
        truth[40:80, 60:90] = 4  # seen as floor
        truth[:30, 100:] = 255
    if kind == "upside down":
        label_map = label_map[::-1].copy()
    if kind == "tall":
        label_map, truth = (np.ascontiguousarray(ids.T) for ids in (label_map, truth))
    scores = {0: 0.9, 1: 0.5 if kind == "all right" else 0.8, 2: 0.75}
    photo = Image.new("RGB", label_map.shape[::-1], (GREY, GREY, GREY))
    return PagePhoto(kind, photo, label_map, scores, truth)


SCENES = ["all right", "lamp missed", "tall", "upside down"]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as opened:
        yield opened


def written(path: Path, photos: list[PagePhoto], names: list[str] = NAMES, title: str = "Scenes") -> Path:
    facts = {"Checkpoint": "runs/toy-1"}
    write_photo_page(path, photos, len(photos), names, palette(len(names)), title, facts)
    return path


@pytest.fixture(scope="module")
def judged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(tmp_path_factory.mktemp("pages") / "judged.html", [scene(kind) for kind in SCENES])


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    photos = [scene(kind) for kind in SCENES]
    photos = [PagePhoto(p.name, p.photo, p.label_map, p.scores) for p in photos]
    return written(tmp_path_factory.mktemp("pages") / "plain.html", photos)


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = scene("lamp missed")
    names = [*HOSTILE[:5], HOSTILE[6]]
    photos = [PagePhoto(name, base.photo, base.label_map, base.scores, base.truth) for name in [*HOSTILE, "two\nlines"]]
    return written(tmp_path_factory.mktemp("pages") / "hostile.html", photos, names, HOSTILE[0])


@pytest.fixture
def visited(browser: Any, judged: Path) -> Iterator[Visit]:
    with visit(browser, judged) as opened:
        wait_for(opened.page, "upside down")
        yield opened
        assert opened.complaints == []


@pytest.fixture
def page(visited: Visit) -> Any:
    return visited.page


def wait_for(page: Any, name: str, kinds: list[str] = SCENES) -> None:
    page.locator(f'#stage[data-photo="{kinds.index(name)}"]').wait_for()
    settle(page)


def settle(page: Any) -> None:
    """Until what was asked for is drawn."""
    page.evaluate("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")


def go_to(page: Any, name: str) -> None:
    page.locator(f"#photo-{SCENES.index(name)} a").click()
    wait_for(page, name)


def place(page: Any, kind: str, y: float, x: float, height: int = HEIGHT, width: int = WIDTH) -> tuple[float, float]:
    """Where the middle of a pixel of the photo lies in the window while the whole photo is shown."""
    box = page.locator(f'[data-layer="{kind}"] canvas').bounding_box()
    scale = min(box["width"] / width, box["height"] / height)
    left, top = (box["width"] - scale * width) / 2, (box["height"] - scale * height) / 2
    return box["x"] + left + (x + 0.5) * scale, box["y"] + top + (y + 0.5) * scale


def point_at(page: Any, kind: str, y: float, x: float, height: int = HEIGHT, width: int = WIDTH) -> None:
    page.mouse.move(*place(page, kind, y, x, height, width))
    settle(page)


def colour_at(page: Any, kind: str, y: float, x: float) -> list[int]:
    """What the canvas shows there while the whole photo is shown."""
    settle(page)
    box = page.locator(f'[data-layer="{kind}"] canvas').bounding_box()
    left, top = place(page, kind, y, x)
    return page.evaluate(
        """([kind, x, y]) => {
            const canvas = document.querySelector(`[data-layer="${kind}"] canvas`);
            const scale = canvas.width / canvas.clientWidth;
            const pixel = new OffscreenCanvas(1, 1).getContext("2d", { willReadFrequently: true });
            pixel.drawImage(canvas, -Math.floor(x * scale), -Math.floor(y * scale));
            return [...pixel.getImageData(0, 0, 1, 1).data.slice(0, 3)];
        }""",
        [kind, left - box["x"], top - box["y"]],
    )


def mixed(colour: Any, opacity: float) -> Any:
    return pytest.approx(np.asarray(colour, float) * opacity + GREY * (1 - opacity), abs=2.5)


def tag(page: Any, kind: str) -> list[str]:
    lines = page.locator(f'[data-layer="{kind}"] .tag').inner_text().split("\n")
    return [line for line in lines if line]


def listed(page: Any) -> list[str]:
    return page.locator("#photos li:visible bdi").all_inner_texts()


def legend(page: Any) -> list[list[str]]:
    """The rows of the legend as they are read, without the buttons that hide."""
    return [
        [cell.inner_text() for cell in row.locator("th, td").all()][:-1] for row in page.locator("#legend tr").all()
    ]


def pill(page: Any, name: str) -> Any:
    return page.locator("#legend").get_by_role("button", name=name, exact=True)


# Whole


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("kind", ["judged", "plain", "hostile"])
def test_a_page_opens_without_a_complaint_or_a_request_and_fits(
    browser: Any, request: pytest.FixtureRequest, kind: str, width: int, scheme: str
) -> None:
    with visit(browser, request.getfixturevalue(kind), width, color_scheme=scheme) as opened:
        page = opened.page
        page.locator("#stage[data-photo]").wait_for()
        for key in ["b", "t", "p", "e", "1", "2", "3", "2", "s", "+", "0", "ArrowRight", "ArrowLeft"]:
            page.keyboard.press(key)
            settle(page)
            assert page.evaluate("document.documentElement.scrollWidth") == width
        for button in page.locator("#legend button").all():
            button.click()
        assert opened.complaints == []
        assert [address for address in opened.requests if not address.startswith("data:")] == []


@pytest.mark.parametrize("width", WIDTHS)
def test_a_page_is_whole_without_its_script(browser: Any, judged: Path, width: int) -> None:
    with visit(browser, judged, width, java_script_enabled=False) as opened:
        page = opened.page
        assert "this file also shows every photo large" in page.locator("#still:visible").inner_text()
        assert listed(page) == ["upside down", "lamp missed", "all right", "tall"]
        assert "sky 33.3 %" in page.locator("#photo-1 .found:visible").inner_text()
        assert page.locator(".totals tbody tr:visible").count() == 4
        assert page.locator(".confusions tbody tr:visible").count() > 2
        assert page.locator("button:visible, input:visible, select:visible, .hint:visible, canvas:visible").count() == 0
        assert page.evaluate("document.documentElement.scrollWidth") == width


def test_a_browser_without_decompression_gets_the_list(browser: Any, judged: Path) -> None:
    context = browser.new_context()
    context.add_init_script("delete window.DecompressionStream")
    page = context.new_page()
    page.goto(judged.as_uri())
    assert page.locator("#still:visible").count() == 1
    assert page.locator("button:visible").count() == 0
    context.close()


CONTRAST = """() => {
    const numbers = (colour) => colour.match(/[\\d.]+/g).map((value, k) =>
        colour.startsWith("color(srgb") && k < 3 ? 255 * value : Number(value));
    const light = ([red, green, blue]) => [red, green, blue].map((value) => {
        const share = value / 255;
        return share <= 0.04045 ? share / 12.92 : ((share + 0.055) / 1.055) ** 2.4;
    }).reduce((sum, value, k) => sum + value * [0.2126, 0.7152, 0.0722][k], 0);
    const behind = (element) => {
        for (let each = element; each; each = each.parentElement) {
            const colour = numbers(getComputedStyle(each).backgroundColor);
            if (colour.length === 3 || colour[3] > 0.9) return colour;
        }
    };
    const texts = [...document.querySelectorAll("body *")].filter((element) => [...element.childNodes].some(
        (node) => node.nodeType === 3 && node.textContent.trim()) && element.getClientRects().length
        && !element.closest(":disabled"));
    const worst = texts.map((element) => {
        const ink = numbers(getComputedStyle(element).color);
        const [low, high] = [light(ink), light(behind(element))].sort((a, b) => a - b);
        return [(high + 0.05) / (low + 0.05), element.outerHTML.slice(0, 80)];
    }).sort((a, b) => a[0] - b[0])[0];
    return [...worst, light(behind(document.body)), texts.length];
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_from_what_is_behind_it(browser: Any, judged: Path, scheme: str) -> None:
    with visit(browser, judged, color_scheme=scheme) as opened:
        wait_for(opened.page, "upside down")
        point_at(opened.page, "prediction", 10, 10)
        ratio, element, paper, count = opened.page.evaluate(CONTRAST)
        assert ratio >= 4.5, element  # WCAG 2.2 AA
        assert paper > 0.9 if scheme == "light" else paper < 0.02
        assert count > 60


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_what_lies_beside_a_photo_has_the_colour_of_the_scheme(browser: Any, judged: Path, scheme: str) -> None:
    with visit(browser, judged, color_scheme=scheme) as opened:
        wait_for(opened.page, "upside down")
        go_to(opened.page, "tall")
        colour = opened.page.evaluate("[...panes[0].context.getImageData(2, 2, 1, 1).data]")
        assert min(colour) > 200 if scheme == "light" else max(colour[:3]) < 60


# Reading

KNOWN = [  # of the scene whose lamp is missed: row, column, prediction, truth
    (0, 0, "sky", "sky"),
    (29, 60, "sky", "sky"),
    (31, 49, "wall", "wall"),
    (31, 51, "floor", "floor"),
    (60, 75, "floor", "lamp"),
    (89, 119, "floor", "floor"),
    (10, 110, "sky", "not labelled"),
]


@pytest.mark.parametrize("kind", ["truth", "prediction", "errors"])
@pytest.mark.parametrize(("y", "x", "found", "label"), KNOWN)
def test_pointing_names_the_class_in_every_pane(page: Any, kind: str, y: int, x: int, found: str, label: str) -> None:
    go_to(page, "lamp missed")
    point_at(page, kind, y, x)
    numbers = {"sky": "33.3 %, score 0.75", "wall": "27.8 %, score 0.90", "floor": "38.9 %, score 0.80"}[found]
    assert tag(page, "prediction") == [found, numbers]
    assert tag(page, "truth") == [label]
    verdict = {found: ["right"], "not labelled": ["not labelled"]}
    assert tag(page, "errors") == verdict.get(label, ["wrong", f"{label} taken for {found}"])
    told = page.locator("#under").inner_text()
    assert told.startswith(f"{found}: {numbers.replace(',', ' of the photo,')}.")
    assert told.endswith("Right." if found == label else f"Truth: {label}.")


@pytest.mark.parametrize("view", ["prediction", "truth", "errors"])
def test_pointing_names_the_class_in_a_pane_alone(page: Any, view: str) -> None:
    go_to(page, "lamp missed")
    page.keyboard.press(view[0])
    for y, x, found, _ in KNOWN:
        point_at(page, view, y, x)
        assert page.locator("#under").inner_text().startswith(f"{found}: ")
    assert page.locator("canvas:visible").count() == 1


def test_nothing_is_named_beside_the_photo_or_when_the_pointer_is_gone(page: Any) -> None:
    go_to(page, "tall")
    for y, x, is_named in ((60, 45, True), (60, -6, False), (60, 45, True)):
        point_at(page, "prediction", y, x, WIDTH, HEIGHT)
        assert page.locator(".tag:visible").count() == (3 if is_named else 0)
    page.mouse.move(5, 5)
    settle(page)
    assert page.locator(".tag:visible, .ring:visible").count() == 0


def test_the_ring_lies_where_the_pointer_is_in_every_pane(page: Any) -> None:
    go_to(page, "lamp missed")
    point_at(page, "truth", 60, 75)
    for kind in ("truth", "prediction", "errors"):
        ring = page.locator(f'[data-layer="{kind}"] .ring').bounding_box()
        middle = ring["x"] + ring["width"] / 2, ring["y"] + ring["height"] / 2
        assert middle == pytest.approx(place(page, kind, 60, 75), abs=1.5)


def test_a_class_without_a_score_is_named_with_its_share(browser: Any, tmp_path: Path) -> None:
    photo = scene("all right")
    path = written(tmp_path / "page.html", [PagePhoto("a", photo.photo, photo.label_map)])
    with visit(browser, path) as opened:
        opened.page.locator("#stage[data-photo]").wait_for()
        point_at(opened.page, "prediction", 5, 5)
        assert tag(opened.page, "prediction") == ["sky", "33.3 %"]
        assert opened.page.locator("#under").inner_text() == "sky: 33.3 % of the photo."
        assert opened.page.locator("#legend-head th").all_inner_texts() == ["Class", "Area"]


def test_what_the_resting_pointer_is_on_is_read_anew_in_the_next_photo(page: Any) -> None:
    go_to(page, "lamp missed")
    point_at(page, "prediction", 60, 75)
    page.keyboard.press("ArrowLeft")
    wait_for(page, "upside down")
    assert tag(page, "prediction") == ["sky", "33.3 %, score 0.75"]


def test_shift_and_arrows_read_without_a_pointer(page: Any) -> None:
    go_to(page, "lamp missed")
    page.keyboard.press("p")
    told = []
    for key in ["ArrowUp"] * 30 + ["ArrowDown"] * 60 + ["ArrowLeft"] * 60:
        page.keyboard.press(f"Shift+{key}")
        settle(page)
        told.append(page.locator("#under").inner_text().split(":")[0])
    assert [told[29], told[89], told[149]] == ["sky", "floor", "wall"]


def test_reading_by_keys_moves_a_zoomed_photo_along(page: Any) -> None:
    go_to(page, "lamp missed")
    for _ in range(6):
        page.keyboard.press("+")
    for _ in range(400):
        page.keyboard.press("Shift+ArrowRight")
    settle(page)
    ring, frame = (page.locator(f'[data-layer="prediction"] {name}').bounding_box() for name in (".ring", ".frame"))
    assert frame["x"] + frame["width"] - 40 < ring["x"] < frame["x"] + frame["width"] + 1


# Zoom and pan


def zoom(page: Any) -> str:
    settle(page)
    return page.locator("#fit").inner_text()


def test_a_place_stays_under_the_pointer_while_the_wheel_zooms(page: Any) -> None:
    go_to(page, "lamp missed")
    point_at(page, "prediction", 41, 61)  # a corner of the lamp
    for _ in range(8):
        page.mouse.wheel(0, -200)
        settle(page)
        assert tag(page, "truth") == ["lamp"]
        assert page.evaluate("state.spot") == pytest.approx([61.5 / WIDTH, 41.5 / HEIGHT], abs=1e-3)
    assert int(zoom(page).split()[0]) > 900


def test_pointing_names_the_class_after_zoom_and_pan(page: Any) -> None:
    go_to(page, "lamp missed")
    fixed = place(page, "prediction", 45, 60)
    page.mouse.dblclick(*fixed)
    assert zoom(page) == "300 %"
    page.mouse.move(*fixed)
    page.mouse.down()
    page.mouse.move(fixed[0] - 50, fixed[1] - 30, steps=4)
    page.mouse.up()
    for y, x, found, label in ((33, 56, "floor", "floor"), (44, 75, "floor", "lamp"), (52, 70, "floor", "lamp")):
        moved = [
            f + 3 * (p - f) + d for p, f, d in zip(place(page, "prediction", y, x), fixed, (-50, -30), strict=True)
        ]
        page.mouse.move(*moved)
        settle(page)
        assert page.evaluate("state.spot") == pytest.approx([(x + 0.5) / WIDTH, (y + 0.5) / HEIGHT], abs=2e-3)
        assert [tag(page, "prediction")[0], *tag(page, "truth")] == [found, label]


def test_buttons_and_keys_zoom_and_go_back(page: Any) -> None:
    assert zoom(page) == "100 %"
    for act, expected in [
        (lambda: page.locator("#nearer").click(), "150 %"),
        (lambda: page.keyboard.press("+"), "225 %"),
        (lambda: page.keyboard.press("-"), "150 %"),
        (lambda: page.locator("#farther").click(), "100 %"),
        (lambda: page.keyboard.press("="), "150 %"),
        (lambda: page.keyboard.press("0"), "100 %"),
        (lambda: page.keyboard.press("+"), "150 %"),
        (lambda: page.locator("#fit").click(), "100 %"),
    ]:
        act()
        assert zoom(page) == expected


def test_a_photo_cannot_be_dragged_out_of_its_pane(page: Any) -> None:
    go_to(page, "lamp missed")
    page.keyboard.press("+")
    x, y = place(page, "prediction", 45, 60)
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x + 3000, y + 3000, steps=3)
    page.mouse.up()
    settle(page)
    box = page.evaluate("photoBox()")
    assert (box["left"], box["top"]) == pytest.approx((0, 0), abs=0.01)


def test_the_wheel_scrolls_the_page_once_the_whole_photo_is_shown(page: Any) -> None:
    point_at(page, "prediction", 45, 60)
    page.mouse.wheel(0, 300)
    wait_until(page, "scrollY > 0")
    assert zoom(page) == "100 %"


def test_another_photo_is_shown_whole(page: Any) -> None:
    page.keyboard.press("+")
    page.keyboard.press("ArrowRight")
    wait_for(page, "lamp missed")
    assert zoom(page) == "100 %"


# What is shown


@pytest.mark.parametrize("opacity", [0, 30, 100])
def test_the_slider_mixes_photo_and_classes(page: Any, opacity: int) -> None:
    go_to(page, "lamp missed")
    page.locator("#opacity").fill(str(opacity))
    for y, x, found, label in KNOWN[:6]:
        assert colour_at(page, "prediction", y, x) == mixed(COLOURS[NAMES.index(found)], opacity / 100)
        assert colour_at(page, "truth", y, x) == mixed(COLOURS[NAMES.index(label)], opacity / 100)
    assert colour_at(page, "truth", 10, 110) == mixed((GREY,) * 3, 1)
    assert page.locator("#opacity-text").inner_text() == f"{opacity} %"


@pytest.mark.parametrize("with_keys", [True, False])
def test_photo_overlay_and_map_are_a_key_or_a_button_away(page: Any, with_keys: bool) -> None:
    go_to(page, "lamp missed")
    page.locator("#opacity").fill("40")
    for key, name, opacity in (("1", "Photo", 0), ("3", "Map", 1), ("2", "Overlay", 0.4)):
        if with_keys:
            page.keyboard.press(key)
        else:
            page.get_by_role("button", name=name, exact=True).click()
        assert colour_at(page, "prediction", 10, 10) == mixed(COLOURS[2], opacity)
        assert page.locator("[data-mix][aria-pressed=true]").inner_text() == name


def test_the_divider_parts_photo_and_classes(page: Any) -> None:
    go_to(page, "lamp missed")
    page.keyboard.press("s")
    divider = page.locator('[data-layer="prediction"] .divider')
    for share in (0.5, 0.25):
        frame = page.locator('[data-layer="prediction"] .frame').bounding_box()
        box = divider.bounding_box()
        page.mouse.move(box["x"] + box["width"] / 2, box["y"] + 30)
        page.mouse.down()
        page.mouse.move(frame["x"] + share * frame["width"], box["y"] + 60, steps=3)
        page.mouse.up()
        page.mouse.move(5, 5)
        for kind in ("prediction", "truth"):
            for column in (5, 20, 25, 40, 55, 65, 80, 95):
                opacity = 0.6 if column / WIDTH > share else 0
                assert colour_at(page, kind, 10, column) == mixed(COLOURS[2], opacity)
        assert divider.get_attribute("aria-valuenow") == f"{100 * share:.0f}"
    page.keyboard.press("s")
    assert colour_at(page, "prediction", 10, 5) == mixed(COLOURS[2], 0.6)
    assert page.locator(".divider:visible").count() == 0


def test_arrow_keys_move_the_divider_and_not_the_photo(page: Any) -> None:
    page.locator("#swipe").click()
    divider = page.locator('[data-layer="truth"] .divider')
    divider.focus()
    for key, value in (("ArrowLeft", "48"), ("ArrowRight", "50"), ("Home", "0"), ("End", "100")):
        page.keyboard.press(key)
        settle(page)
        assert divider.get_attribute("aria-valuenow") == value
    assert page.locator("#stage").get_attribute("data-photo") == str(SCENES.index("upside down"))


# Classes


def test_the_legend_is_sorted_by_area_and_tells_share_score_and_iou(page: Any) -> None:
    go_to(page, "lamp missed")
    scores = matrix_of([scene("lamp missed")], len(NAMES)).scores().per_category_iou
    assert page.locator("#legend-head th").all_inner_texts() == ["Class", "Area", "Score", "IoU"]
    rows = legend(page)
    assert rows[:3] == [
        ["floor", "38.9 %", "0.80", f"{scores[1]:.3f}"],
        ["sky", "33.3 %", "0.75", "1.000"],
        ["wall", "27.8 %", "0.90", "1.000"],
    ]
    assert rows[3][0].split() == ["lamp", "only", "in", "the", "truth,", "11.8", "%"]
    assert rows[3][1:] == ["0.0 %", "\N{EN DASH}", "0.000"]


def test_the_legend_has_the_colours_of_the_classes(page: Any) -> None:
    go_to(page, "lamp missed")
    for name in ("floor", "sky", "wall", "lamp"):
        shown = pill(page, name).evaluate("(button) => getComputedStyle(button).backgroundColor")
        assert shown == f"rgb({', '.join(map(str, COLOURS[NAMES.index(name)]))})"


def test_a_class_lit_up_stands_alone(page: Any) -> None:
    go_to(page, "lamp missed")
    pill(page, "wall").click()
    assert pill(page, "wall").get_attribute("aria-pressed") == "true"
    assert colour_at(page, "prediction", 60, 20) == mixed(COLOURS[0], 0.6)
    for y, x in ((10, 10), (60, 100), (10, 110)):
        for kind in ("prediction", "truth"):
            assert max(colour_at(page, kind, y, x)) < 60
    pill(page, "wall").click()
    assert colour_at(page, "prediction", 10, 10) == mixed(COLOURS[2], 0.6)


def test_a_hidden_class_shows_the_photo(page: Any) -> None:
    go_to(page, "lamp missed")
    button = page.get_by_role("button", name="Hide sky")
    button.click()
    assert button.get_attribute("aria-pressed") == "true"
    for kind in ("prediction", "truth"):
        assert colour_at(page, kind, 10, 10) == mixed((GREY,) * 3, 1)
        assert colour_at(page, kind, 60, 20) == mixed(COLOURS[0], 0.6)
    page.get_by_role("button", name="Show all").click()
    assert colour_at(page, "prediction", 10, 10) == mixed(COLOURS[2], 0.6)
    assert page.locator("#plain:visible").count() == 0


def test_escape_shows_all_classes_again(page: Any) -> None:
    go_to(page, "lamp missed")
    pill(page, "wall").click()
    page.keyboard.press("Escape")
    assert page.locator("#legend [aria-pressed=true]").count() == 0
    assert colour_at(page, "prediction", 10, 10) == mixed(COLOURS[2], 0.6)


def test_lighting_a_class_up_over_the_bare_photo_brings_the_overlay_back(page: Any) -> None:
    go_to(page, "lamp missed")
    page.keyboard.press("1")
    pill(page, "wall").click()
    assert colour_at(page, "prediction", 60, 20) == mixed(COLOURS[0], 0.6)


def test_what_is_lit_up_stays_so_in_photos_that_hold_it_and_darkens_no_other(browser: Any, tmp_path: Path) -> None:
    photo = scene("all right")
    photos = [PagePhoto(f"{k}", photo.photo, ids) for k, ids in enumerate([photo.label_map, photo.label_map * 0 + 3])]
    with visit(browser, written(tmp_path / "page.html", photos)) as opened:
        page = opened.page
        wait_for(page, "0", ["0", "1"])
        pill(page, "wall").click()
        page.keyboard.press("ArrowRight")
        wait_for(page, "1", ["0", "1"])
        assert colour_at(page, "prediction", 10, 10) == mixed(COLOURS[3], 0.6)
        page.keyboard.press("ArrowLeft")
        wait_for(page, "0", ["0", "1"])
        assert max(colour_at(page, "prediction", 10, 10)) < 60


def notes(page: Any) -> list[str]:
    settle(page)
    return page.locator(".note:visible").all_inner_texts()


def test_a_class_that_was_never_predicted_says_so_and_leaves_the_prediction_bright(page: Any) -> None:
    go_to(page, "lamp missed")
    pill(page, "lamp").click()
    assert notes(page) == ["lamp: in the truth, but never predicted in this photo"]
    assert page.locator('[data-layer="prediction"] .note').is_visible()
    for (y, x), k in (((60, 20), 0), ((60, 75), 1), ((10, 10), 2)):
        assert colour_at(page, "prediction", y, x) == mixed(COLOURS[k], 0.6)
    assert colour_at(page, "truth", 60, 75) == mixed(COLOURS[4], 0.6)
    assert max(colour_at(page, "truth", 60, 20)) < 60
    pill(page, "lamp").click()
    assert notes(page) == []


def test_a_class_lit_up_beside_one_never_predicted_stands_alone(page: Any) -> None:
    go_to(page, "lamp missed")
    pill(page, "lamp").click()
    pill(page, "wall").click()
    assert notes(page) == ["lamp: in the truth, but never predicted in this photo"]
    assert max(colour_at(page, "prediction", 10, 10)) < 60


def test_a_class_that_is_not_in_the_truth_says_so(browser: Any, tmp_path: Path) -> None:
    photo = scene("lamp missed")
    turned = PagePhoto("turned", photo.photo, np.where(photo.truth == 255, 2, photo.truth), None, photo.label_map)
    with visit(browser, written(tmp_path / "page.html", [turned])) as opened:
        opened.page.locator("#stage[data-photo]").wait_for()
        pill(opened.page, "lamp").click()
        assert notes(opened.page) == ["lamp: predicted, but not in the truth in this photo"]
        assert colour_at(opened.page, "truth", 60, 20) == mixed(COLOURS[0], 0.6)


def test_what_is_missing_is_said_of_the_photo_shown(page: Any) -> None:
    go_to(page, "lamp missed")
    pill(page, "lamp").click()
    go_to(page, "all right")
    assert notes(page) == []


def test_a_background_leaves_the_photo_untinted_and_has_a_colour_in_the_map(browser: Any, tmp_path: Path) -> None:
    names = ["wall", "floor", "Background", "tree", "lamp", "nowhere"]
    colours = palette(len(names), names)
    write_photo_page(tmp_path / "page.html", [scene("all right")], 1, names, colours, "Own", {})
    with visit(browser, tmp_path / "page.html") as opened:
        page = opened.page
        page.locator("#stage[data-photo]").wait_for()
        settle(page)
        assert colour_at(page, "prediction", 10, 10) == [GREY] * 3
        assert colour_at(page, "prediction", 60, 20) == mixed(colours[0], 0.6)
        page.keyboard.press("3")
        assert colour_at(page, "prediction", 10, 10) == list(UNTINTED)
        page.keyboard.press("2")
        assert colour_at(page, "prediction", 10, 10) == [GREY] * 3
        pill(page, "Background").click()
        assert colour_at(page, "prediction", 10, 10) == [GREY] * 3
        assert max(colour_at(page, "prediction", 60, 20)) < 60


LONG_NAMES = ["IMG_20261127_101500_0001.jpg", "IMG_20261127_101500_0002.jpg", "short.jpg"]


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("script", [True, False])
def test_of_a_long_name_the_end_is_seen_under_its_thumbnail(
    browser: Any, tmp_path: Path, width: int, script: bool
) -> None:
    photo = scene("all right")
    photos = [PagePhoto(name, photo.photo, photo.label_map) for name in LONG_NAMES]
    with visit(browser, written(tmp_path / "page.html", photos), width, java_script_enabled=script) as opened:
        names = opened.page.locator("#photos bdi")
        assert names.all_text_contents() == LONG_NAMES
        for k in (0, 1):
            end, item = names.nth(k).locator("span").nth(1), opened.page.locator("#photos li").nth(k)
            box, room = end.bounding_box(), item.bounding_box()
            assert end.inner_text() == LONG_NAMES[k][-8:]
            assert box["x"] + box["width"] <= room["x"] + room["width"]
        assert names.nth(2).locator("span").count() == 0


@pytest.mark.parametrize("width", [390, 1280, 1440])
def test_of_a_long_name_the_end_is_seen_above_its_photo(browser: Any, tmp_path: Path, width: int) -> None:
    photo = scene("all right")
    names = "a" * 100 + "_0001.jpg", "short.jpg"
    photos = [PagePhoto(name, photo.photo, photo.label_map, photo.scores, photo.truth) for name in names]
    with visit(browser, written(tmp_path / "page.html", photos), width) as opened:
        opened.page.locator('#stage[data-photo="0"]').wait_for()
        end = opened.page.locator("#name span").nth(1)
        box, button = end.bounding_box(), opened.page.locator("#next").bounding_box()
        assert box["x"] + box["width"] <= button["x"]
        assert end.evaluate("(end) => end.scrollWidth <= end.clientWidth")  # nothing of it is left out
        opened.page.keyboard.press("ArrowRight")
        opened.page.locator('#stage[data-photo="1"]').wait_for()
        assert opened.page.locator("#name").inner_text() == "short.jpg"


# Errors

COUNT = """(colours) => {
    const canvas = layerOf("errors");
    const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
    const counts = colours.map(() => 0);
    for (let k = 0; k < data.length; k += 4) {
        colours.forEach((colour, j) => { counts[j] += colour.every((value, c) => value === data[k + c]); });
    }
    return counts;
}"""


def test_errors_are_the_labelled_pixels_that_are_wrong(page: Any) -> None:
    for kind in SCENES:
        go_to(page, kind)
        photo = scene(kind)
        labelled = photo.truth != 255
        wrong = labelled & (photo.truth != photo.label_map)
        assert page.evaluate(COUNT, [list(MISSED)]) == [wrong.sum()]
        caption = page.locator('[data-layer="errors"] figcaption').inner_text()
        assert caption == f"Errors {100 * wrong.sum() / labelled.sum():.1f} % wrong"


def test_errors_are_drawn_where_they_are(page: Any) -> None:
    go_to(page, "lamp missed")
    page.keyboard.press("3")
    assert colour_at(page, "errors", 60, 75) == list(MISSED)
    for y, x in ((60, 95), (60, 20), (10, 10)):
        assert max(colour_at(page, "errors", y, x)) < GREY


def test_of_a_class_lit_up_errors_tell_missed_from_seen_in_excess(page: Any) -> None:
    go_to(page, "lamp missed")
    assert page.evaluate(COUNT, [MISSED, EXCESS]) == [1200, 0]
    pill(page, "lamp").click()
    assert page.evaluate(COUNT, [MISSED, EXCESS]) == [1200, 0]
    page.keyboard.press("Escape")
    pill(page, "floor").click()
    assert page.evaluate(COUNT, [MISSED, EXCESS]) == [0, 1200]
    page.keyboard.press("Escape")
    pill(page, "wall").click()
    assert page.evaluate(COUNT, [MISSED, EXCESS]) == [0, 0]


def test_mistakes_of_a_photo_are_named_and_light_their_class_up(page: Any) -> None:
    go_to(page, "lamp missed")
    mistakes = page.locator("#mixed-up li")
    assert [text.split("\n") for text in mistakes.all_inner_texts()] == [["lamp", "taken for", "floor", "11.8 %"]]
    mistakes.get_by_role("button", name="lamp").click()
    assert page.evaluate(COUNT, [MISSED, EXCESS]) == [1200, 0]
    assert pill(page, "lamp").get_attribute("aria-pressed") == "true"
    go_to(page, "all right")
    assert mistakes.count() == 0


def test_views_show_what_they_are_called(page: Any) -> None:
    for key, view, shown in (
        ("t", "Truth", ["Truth"]),
        ("e", "Errors", ["Errors 66.7 % wrong"]),
        ("p", "Prediction", ["Prediction"]),
        ("b", "Side by side", ["Truth", "Prediction", "Errors 66.7 % wrong"]),
    ):
        page.keyboard.press(key)
        assert [text.strip() for text in page.locator("figcaption:visible").all_inner_texts()] == shown
        assert page.locator("[data-view][aria-pressed=true]").inner_text() == view


def test_without_a_truth_there_is_one_pane_and_nothing_to_judge(browser: Any, plain: Path) -> None:
    with visit(browser, plain) as opened:
        page = opened.page
        wait_for(page, "all right")
        for key in "btep":
            page.keyboard.press(key)
            settle(page)
            assert page.locator("canvas:visible").count() == 1
            assert colour_at(page, "prediction", 10, 10) == mixed(COLOURS[2], 0.6)
        assert page.locator("#views:visible, #mistakes:visible, figcaption:visible").count() == 0
        assert page.locator("#order option").all_inner_texts() == ["As given", "Least sure first", "By name"]


@pytest.mark.real_data
def test_the_real_error_view_shows_the_pixels_that_the_confusion_matrix_counts(
    browser: Any, real_shards: Path, ade_checkpoint: Path, tmp_path: Path
) -> None:
    photos = real_photos(real_shards, ade_checkpoint)
    path = written(tmp_path / "page.html", photos, list(ID2LABEL.values()))
    names = [name.strip() for name in ID2LABEL.values()]
    with visit(browser, path) as opened:
        page = opened.page
        page.locator("#stage[data-photo]").wait_for()
        for number, photo in enumerate(photos):
            page.locator(f"#photo-{number} a").click()
            page.locator(f'#stage[data-photo="{number}"]').wait_for()
            matrix = matrix_of([photo], 150)
            counts = matrix.counts.numpy()
            assert page.evaluate(COUNT, [list(MISSED)]) == [counts.sum() - counts.trace()]
            ious = matrix.scores().per_category_iou
            told = {row[0].split("\n")[0].split(" only in the truth")[0].strip(): row[-1] for row in legend(page)}
            assert told == {names[k]: f"{ious[k]:.3f}" for k in np.flatnonzero(~np.isnan(ious))}
        scores = matrix_of(photos, 150).scores().per_category_iou
        totals = {
            row.locator("th").inner_text().strip(): row.locator("td:not(.bar)").first.inner_text()
            for row in page.locator(".totals tbody tr").all()
        }
        assert totals == {names[k]: f"{scores[k]:.3f}" for k in np.flatnonzero(~np.isnan(scores))}
        assert opened.complaints == []


# Photos


@pytest.mark.parametrize(
    ("order", "names"),
    [
        ("best", ["all right", "tall", "lamp missed", "upside down"]),
        ("given", ["all right", "lamp missed", "tall", "upside down"]),
        ("unsure", ["all right", "lamp missed", "tall", "upside down"]),
        ("name", ["all right", "lamp missed", "tall", "upside down"]),
        ("worst", ["upside down", "lamp missed", "all right", "tall"]),
    ],
)
def test_photos_are_listed_in_the_order_asked_for(page: Any, order: str, names: list[str]) -> None:
    assert listed(page) == ["upside down", "lamp missed", "all right", "tall"]
    page.get_by_label("Order").select_option("name")
    page.get_by_label("Order").select_option(order)
    assert listed(page) == names
    wait_for(page, names[0])
    assert page.locator("#place").inner_text().startswith("1 of 4")


def test_the_order_is_that_of_the_mean_ious(page: Any) -> None:
    ious = {kind: matrix_of([scene(kind)], len(NAMES)).scores().mean_iou for kind in SCENES}
    assert listed(page) == sorted(SCENES, key=lambda kind: ious[kind])
    shown = page.locator("#photos small").all_inner_texts()
    assert shown == [f"IoU {ious[kind]:.3f}" for kind in listed(page)]


def test_arrows_go_through_the_photos_as_listed_and_stop_at_the_ends(page: Any) -> None:
    names = listed(page)
    for key, name in (
        ("ArrowLeft", names[0]),
        ("ArrowRight", names[1]),
        ("ArrowRight", names[2]),
        ("ArrowRight", names[3]),
        ("ArrowRight", names[3]),
        ("ArrowLeft", names[2]),
    ):
        page.keyboard.press(key)
        wait_for(page, name)
        assert page.locator("#name").inner_text() == name
        assert page.locator('#photos [aria-current="true"] bdi').all_inner_texts() == [name]
    page.locator("#next").click()
    wait_for(page, names[3])
    assert page.locator("#next").is_disabled()


def test_held_down_an_arrow_goes_as_far_as_it_was_pressed(page: Any) -> None:
    page.evaluate("for (let k = 0; k < 3; k += 1) step(1)")
    wait_for(page, "tall")
    assert page.locator("#name").inner_text() == "tall"


def test_arrows_leave_a_slider_its_own_keys(page: Any) -> None:
    page.locator("#opacity").focus()
    page.keyboard.press("ArrowRight")
    assert page.locator("#opacity").input_value() == "61"
    assert page.locator("#name").inner_text() == "upside down"


def test_a_class_of_the_table_lists_the_photos_that_hold_it_worst_first(page: Any) -> None:
    page.locator(".totals").get_by_role("button", name="lamp").click()
    wait_for(page, "lamp missed")
    assert listed(page) == ["lamp missed"]
    assert page.locator("#count").inner_text() == "1 of 4 photos with lamp"
    assert pill(page, "lamp").get_attribute("aria-pressed") == "true"
    page.locator(".totals").get_by_role("button", name="floor").click()
    assert listed(page) == ["upside down", "lamp missed", "all right", "tall"]
    ious = {kind: matrix_of([scene(kind)], len(NAMES)).scores().per_category_iou[1] for kind in SCENES}
    assert page.locator("#photos small:visible").all_inner_texts() == [f"IoU {ious[kind]:.3f}" for kind in listed(page)]
    assert ious["upside down"] < ious["lamp missed"] < 1
    page.locator(".totals").get_by_role("button", name="lamp").click()
    wait_for(page, "lamp missed")
    page.get_by_role("button", name="List all photos").click()
    assert len(listed(page)) == 4
    assert page.locator("#everything:visible").count() == 0


def test_without_a_truth_a_class_lists_its_photos_largest_first(browser: Any, tmp_path: Path) -> None:
    maps = [np.zeros((10, 10), np.uint8) for _ in range(3)]
    maps[0][:2], maps[2][:7] = 3, 3
    photos = [PagePhoto(f"{k}", Image.new("RGB", (10, 10)), ids) for k, ids in enumerate(maps)]
    with visit(browser, written(tmp_path / "page.html", photos)) as opened:
        wait_for(opened.page, "0", ["0", "1", "2"])
        opened.page.locator(".totals").get_by_role("button", name="tree").click()
        wait_for(opened.page, "2", ["0", "1", "2"])
        assert listed(opened.page) == ["2", "0"]


def test_a_common_mistake_leads_to_where_it_is_largest(page: Any) -> None:
    row = page.locator(".confusions tr", has_text="lamp")
    assert row.locator("td").all_inner_texts()[:2] == ["lamp", "floor"]
    row.locator("a").click()
    wait_for(page, "lamp missed")
    assert page.evaluate(COUNT, [MISSED, EXCESS]) == [1200, 0]


@pytest.mark.parametrize(("column", "first"), [("IoU", "all"), ("Class", "floor"), ("Pixels", "floor")])
def test_the_table_of_classes_is_sorted_by_a_column(page: Any, column: str, first: str) -> None:
    names = page.locator(".totals tbody th span")
    before = names.all_inner_texts()
    page.locator(".totals thead").get_by_role("button", name=column).click()
    after = names.all_inner_texts()
    assert after == before[::-1] if column == "IoU" else after[0] == first
    assert page.locator(".totals [aria-sort]").count() == 1


def test_hostile_names_are_shown_literally(browser: Any, hostile: Path) -> None:
    with visit(browser, hostile) as opened:
        page = opened.page
        page.locator("#stage[data-photo]").wait_for()
        for number, name in enumerate([*HOSTILE, "two\nlines"]):
            page.locator(f"#photo-{number} a").click()
            page.locator(f'#stage[data-photo="{number}"]').wait_for()
            assert page.locator("#name").text_content() == name
        assert page.locator("#legend bdi").all_text_contents() == [HOSTILE[1], HOSTILE[2], HOSTILE[0], HOSTILE[4]]
        point_at(page, "prediction", 60, 75)
        assert page.locator('[data-layer="errors"] .tag small').text_content() == f"{HOSTILE[4]} taken for {HOSTILE[1]}"
        assert page.evaluate("document.querySelectorAll('#stage img, #stage script').length") == 0
        assert opened.complaints == []


# By keys alone, and by touch


def test_every_control_is_reached_by_the_tab_key_and_photos_are_one_stop(page: Any) -> None:
    page.locator("#swipe").click()
    page.evaluate("document.activeElement.blur()")
    reached = []
    for _ in range(70):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.outerHTML.slice(0, 120)"))
    for control in ("order", "previous", "next", "opacity", "swipe", "ask", "stage", "nearer"):
        assert any(f'id="{control}"' in element for element in reached) or control == "previous", control
    for control in ('class="divider"', 'class="pill"', "data-hide", 'class="choose"', 'data-view="truth"', "data-mix"):
        assert any(control in element for element in reached), control
    assert len({element for element in reached if 'href="#photo-' in element and "data-light" not in element}) == 1


def test_the_help_opens_and_closes_and_can_turn_the_keys_off(page: Any) -> None:
    page.keyboard.press("?")
    assert page.locator("#help").is_visible()
    page.get_by_role("button", name="Close").focus()
    page.keyboard.press("1")
    page.keyboard.press("Escape")
    assert not page.locator("#help").is_visible()
    assert page.locator("#opacity-text").inner_text() == "60 %"
    page.locator("#ask").click()
    page.get_by_label("Use these keys").uncheck()
    page.get_by_role("button", name="Close").click()
    page.keyboard.press("1")
    page.keyboard.press("ArrowRight")
    settle(page)
    assert page.locator("#opacity-text").inner_text() == "60 %"
    assert page.locator("#name").inner_text() == "upside down"


def test_canvases_tell_in_words_what_they_show(page: Any) -> None:
    go_to(page, "lamp missed")
    labels = [canvas.get_attribute("aria-label") for canvas in page.locator("canvas").all()]
    assert labels == [
        "Truth of lamp missed: floor 29.4 %, sky 29.4 %, wall 29.4 %, lamp 11.8 %",
        "Prediction for lamp missed: floor 38.9 %, sky 33.3 %, wall 27.8 %",
        "Errors in lamp missed: 11.8 % wrong",
    ]


@pytest.fixture
def telephone(browser: Any, judged: Path) -> Iterator[Any]:
    with visit(browser, judged, 390, 844, has_touch=True, is_mobile=True, device_scale_factor=2) as opened:
        wait_for(opened.page, "upside down")
        go_to(opened.page, "lamp missed")
        yield opened.page
        assert opened.complaints == []


def test_a_telephone_shows_one_pane_and_switches(telephone: Any) -> None:
    assert telephone.locator("canvas:visible").count() == 1
    telephone.get_by_role("button", name="Truth", exact=True).tap()
    assert telephone.locator("figcaption:visible").inner_text().strip() == "Truth"
    assert colour_at(telephone, "truth", 60, 75) == mixed(COLOURS[4], 0.6)
    assert telephone.get_by_role("button", name="Side by side").count() == 0


def test_a_telephone_opens_on_the_overlay(telephone: Any) -> None:
    assert [text.strip() for text in telephone.locator("figcaption:visible").all_inner_texts()] == ["Prediction"]
    assert colour_at(telephone, "prediction", 60, 20) == mixed(COLOURS[0], 0.6)
    assert telephone.locator("[data-view][aria-pressed=true]").inner_text() == "Prediction"


def test_a_tap_names_the_class(telephone: Any) -> None:
    telephone.get_by_role("button", name="Errors", exact=True).tap()
    telephone.locator("#stage").scroll_into_view_if_needed()
    telephone.touchscreen.tap(*place(telephone, "errors", 60, 75))
    settle(telephone)
    assert tag(telephone, "errors") == ["wrong", "lamp taken for floor"]
    assert telephone.locator("#under").inner_text() == "floor: 38.9 % of the photo, score 0.80. Truth: lamp."


def touch(session: Any, kind: str, *points: tuple[float, float], **options: float) -> None:
    touches = [{"x": x, "y": y, "id": k} for k, (x, y) in enumerate(points)]
    session.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": touches, **options})


def test_a_double_tap_zooms_in_and_back(telephone: Any) -> None:
    telephone.locator("#stage").scroll_into_view_if_needed()
    session = telephone.context.new_cdp_session(telephone)
    start = time.time()
    for first, expected in [(start, "300 %"), (start + 2, "100 %")]:
        for at in (first, first + 0.1):  # by the events' own time, for a slow machine takes longer over two taps
            touch(session, "touchStart", place(telephone, "prediction", 45, 60), timestamp=at)
            touch(session, "touchEnd", timestamp=at + 0.03)
        settle(telephone)
        assert zoom(telephone) == expected


def test_two_fingers_zoom_about_the_place_between_them_and_one_drags(telephone: Any) -> None:
    telephone.locator("#stage").scroll_into_view_if_needed()
    x, y = place(telephone, "prediction", 45, 60)
    session = telephone.context.new_cdp_session(telephone)
    touch(session, "touchStart", (x - 20, y), (x + 20, y))
    for apart in (30, 40, 60):
        touch(session, "touchMove", (x - apart, y), (x + apart, y))
    touch(session, "touchEnd")
    assert zoom(telephone) == "300 %"
    assert telephone.evaluate("state.centre") == pytest.approx([60.5 / WIDTH, 45.5 / HEIGHT], abs=5e-3)
    before = telephone.evaluate("photoBox()")
    touch(session, "touchStart", (x, y))
    for moved in (10, 30, 50):
        touch(session, "touchMove", (x + moved / 2, y + moved))
    touch(session, "touchEnd")
    after = telephone.evaluate("photoBox()")
    assert (after["left"] - before["left"], after["top"] - before["top"]) == pytest.approx((25, 50), abs=1)


TARGETS = "button:visible, select:visible, input:visible, summary:visible, main a:visible, [role=slider]:visible"


def test_what_is_touched_is_large_enough_for_fingers(telephone: Any) -> None:
    telephone.locator("#swipe").tap()
    telephone.get_by_role("button", name="Hide sky").tap()  # and with it comes the button that shows all again
    boxes = {each.evaluate("(e) => e.outerHTML"): each.bounding_box() for each in telephone.locator(TARGETS).all()}
    assert len(boxes) > 30
    small = {element[:90]: box for element, box in boxes.items() if min(box["width"], box["height"]) < 43.99}
    assert small == {}  # WCAG 2.2 AAA asks for 44 pixels


def test_help_speaks_of_touch_where_there_are_no_keys(telephone: Any) -> None:
    telephone.get_by_role("button", name="Help").tap()
    told = telephone.locator("#help").inner_text()
    assert "double tap" in told
    for word in ("Shift", "Esc", "wheel", "Use these keys"):
        assert word not in told
    telephone.get_by_role("button", name="Close").tap()
    assert telephone.locator("#under").inner_text() == "Tap the photo to see what is there."


def test_help_speaks_of_keys_where_there_is_a_mouse(page: Any) -> None:
    page.locator("#ask").click()
    told = page.locator("#help").inner_text()
    assert "Shift + arrows" in told
    assert "double tap" not in told
    page.get_by_role("button", name="Close").click()
    page.mouse.move(2, 2)
    settle(page)
    assert page.locator("#under").inner_text() == "Point at the photo to see what is there."


def test_a_page_for_fingers_fits_a_telephone(telephone: Any) -> None:
    assert telephone.evaluate("document.documentElement.scrollWidth") == 390


# Many


def many_photos(count: int) -> Iterator[PagePhoto]:
    """Photos of 1024 pixels that compress as real ones do, with maps of many pieces."""
    generator = np.random.default_rng(0)
    textures = []
    for _ in range(4):
        pixels = np.full((768, 1024, 3), 128.0)
        for size in (4, 16, 64, 256, 768):
            noise = generator.normal(scale=45 / size**0.35, size=(3, size * 3 // 4, size)).astype(np.float32)
            for channel in range(3):
                pixels[..., channel] += np.asarray(
                    Image.fromarray(noise[channel]).resize((1024, 768), Image.Resampling.BICUBIC)
                )
        textures.append(Image.fromarray(pixels.clip(0, 255).astype(np.uint8)))
    bends = (np.arange(1024) + (20 * np.sin(np.arange(1024) / 9)).astype(int)) % 1024
    for number in range(count):
        pieces = Image.fromarray(generator.integers(0, 150, (9, 12)).astype(np.uint8))
        label_map = np.asarray(pieces.resize((1024, 768), Image.Resampling.NEAREST))[:, bends]
        scores = {int(k): 0.5 for k in np.unique(label_map)}
        truth = np.roll(label_map, 25, axis=1) if number % 4 == 0 else None
        yield PagePhoto(f"photo {number}", textures[number % 4], label_map, scores, truth)


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pages") / "many.html"
    write_photo_page(path, many_photos(200), 200, list(ID2LABEL.values()), palette(150), "Many", {})
    return path


def test_200_photos_of_1024_pixels_stay_below_40_megabytes(many: Path) -> None:
    assert 20_000_000 < many.stat().st_size <= 40_000_000


FRAMES = """async (act) => {
    const acts = {
        slider: (k) => {
            slider.value = 20 + k;
            slider.dispatchEvent(new Event("input"));
        },
        swipe: (k) => setSwipe(k / 60),
        pan: (k) => panBy(k % 20 < 10 ? -12 : 12, k % 14 < 7 ? 5 : -5),
        point: (k) => read([0.2 + k / 100, 0.4]),
    };
    const slider = document.getElementById("opacity");
    const times = [];
    for (let k = 0; k < 60; k += 1) {
        times.push(await new Promise(requestAnimationFrame));
        acts[act](k);
    }
    return times.slice(1).map((time, k) => time - times[k]).sort((a, b) => a - b)[29];
}"""


@pytest.mark.parametrize("view", ["b", "p"])
@pytest.mark.parametrize("act", ["slider", "swipe", "pan", "point"])
def test_a_page_of_200_photos_stays_fluid(browser: Any, many: Path, view: str, act: str) -> None:
    with visit(browser, many) as opened:
        page = opened.page
        page.locator("#stage[data-photo]").wait_for()
        page.keyboard.press(view)
        if act == "pan":
            page.keyboard.press("+")
            page.keyboard.press("+")
        page.wait_for_timeout(300)
        assert page.locator("canvas:visible").count() == (3 if view == "b" else 1)
        # Two frames of a screen at 60 Hz; the best of six, for other work on the machine takes its part.
        assert any(page.evaluate(FRAMES, act) <= 33.4 for _ in range(6))
        assert opened.complaints == []


def test_only_the_photo_shown_and_its_neighbours_are_decoded(browser: Any, many: Path) -> None:
    with visit(browser, many) as opened:
        page = opened.page
        page.locator("#stage[data-photo]").wait_for()
        for _ in range(10):
            page.keyboard.press("ArrowRight")
        page.locator("#place", has_text="11 of 200").wait_for()
        settle(page)
        shown = page.evaluate("sequence.slice(9, 12).sort()")
        assert page.evaluate("[...decoded.keys()].sort()") == shown
        assert opened.complaints == []
