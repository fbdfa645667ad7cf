"""The page of an exported model in a real browser: the label maps of Python, from a server and from the disk."""

from __future__ import annotations

import functools
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser import Visit, chromium, needs_browser, visit, wait_until
from PIL import Image
from runtime import NAMES, sampled_segmenter
from test_model_page import written

from data.toy.scenes import toy_rows
from segformer import ImageProcessor, Segmenter
from segformer.export import export_page
from segformer.pages.model_page import find_runtime
from segformer.pictures import palette
from segformer.weights.export import made_photo

pytestmark = needs_browser
SCRIPTS = ("model.js", "runtime.js")
PROCESSOR = ImageProcessor(size=(48, 64), image_mean=(0.4, 0.5, 0.6), image_std=(0.2, 0.3, 0.4))
WAIT_SECONDS = 60  # for a model to be loaded or run, on a machine that does other things, too


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as opened:
        yield opened


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(tmp_path_factory.mktemp("pages") / "site", PROCESSOR)


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """The address of a folder's page on a plain server."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=folder)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/index.html"
        server.shutdown()


def says(page: Any, text: str) -> None:
    wait_until(page, "text => document.getElementById('status').textContent.includes(text)", text, seconds=WAIT_SECONDS)


@contextmanager
def opened(browser: Any, place: Path | str, width: int = 1440, **options: Any) -> Iterator[Visit]:
    """The page, with its model loaded."""
    with visit(browser, place, width, beside=SCRIPTS, **options) as visited:
        says(visited.page, "Ready.")
        yield visited
        assert [text for text in visited.complaints if "onnxruntime" not in text] == []
        assert [address for address in visited.requests if not address.startswith("blob:")] == []


def choose(page: Any, path: Path) -> np.ndarray:
    """Choose a photo; the label map that the page shows."""
    page.set_input_files("#files", path)
    says(page, f"{path.name}: ")
    assert "wrong" not in (page.get_attribute("#status", "class") or ""), page.inner_text("#status")
    width, height, ids = page.evaluate(
        "(({ prediction: { width, height, ids } }) => [width, height, Array.from(ids)])(shots.at(-1))"
    )
    return np.uint8(ids).reshape(height, width)


def noise(width: int, height: int) -> Image.Image:
    """Colours of a few pixels each, which every filter changes."""
    pixels = np.random.default_rng(0).integers(0, 256, (-(-height // 3), -(-width // 3), 3), dtype=np.uint8)
    return Image.fromarray(pixels.repeat(3, 0).repeat(3, 1)[:height, :width])


@pytest.mark.parametrize("way", ["server", "disk"])
def test_the_page_works_from_a_server_and_from_the_disk(way: str, browser: Any, site: Path, tmp_path: Path) -> None:
    photo = made_photo(200, 150)
    photo.save(tmp_path / "photo.png")
    with served(site) as address:
        place = address if way == "server" else site / "index.html"
        with opened(browser, place) as visited:
            found = choose(visited.page, tmp_path / "photo.png")
    expected = sampled_segmenter(PROCESSOR).label_map(photo)
    assert len(np.unique(expected)) >= 3
    assert (found == expected).all()


SIZES = [(64, 48), (640, 480), (30, 20), (63, 200), (64, 500), (300, 48), (1, 1), (1500, 7)]


def test_photos_of_every_size_get_the_label_maps_of_python(browser: Any, site: Path, tmp_path: Path) -> None:
    segmenter = sampled_segmenter(PROCESSOR)
    with opened(browser, site / "index.html") as visited:
        for width, height in SIZES:
            path = tmp_path / f"{width}x{height}.png"
            noise(width, height).save(path)
            found = choose(visited.page, path)
            expected = segmenter.label_map(path)
            assert found.shape == expected.shape
            assert (found != expected).mean() <= 1e-4, path.name  # ties that the last bit decides


def test_the_page_resizes_as_pillow_does_to_the_bit(browser: Any, site: Path, tmp_path: Path) -> None:
    with opened(browser, site / "index.html") as visited:
        for width, height in [(96, 80), (30, 20), (63, 130), (80, 150), (64, 100), (100, 48), (300, 7)]:
            photo = noise(width, height)
            pixels = np.asarray(photo.convert("RGBA")).ravel().tolist()
            asked = f"(() => {{ {worker_of(site)}; return (given) => Array.from(resize(...given)); }})()"
            may_go_down_first = visited.page.evaluate("data.processor.mayGoDownFirst")
            found = visited.page.evaluate(asked, [pixels, width, height, 64, 48, may_go_down_first])
            expected = np.asarray(photo.resize((64, 48), Image.Resampling.BILINEAR)).transpose(2, 0, 1)
            assert (np.uint8(found).reshape(3, 48, 64) == expected).all(), (width, height)


def worker_of(site: Path) -> str:
    """The functions of the worker, without what listens."""
    from segformer.pages.page import asset

    return asset("segment.js").replace('"use strict";', "").partition("addEventListener(")[0]


def test_what_is_turned_or_transparent_is_seen_as_python_sees_it(browser: Any, site: Path, tmp_path: Path) -> None:
    segmenter = sampled_segmenter(PROCESSOR)
    turned = Image.Exif()
    turned[0x0112] = 6
    made_photo(120, 80).save(tmp_path / "turned.png", exif=turned)
    clear = made_photo(120, 80).convert("RGBA")
    clear.putalpha(Image.fromarray(np.uint8(np.arange(120) < 60)[None].repeat(80, 0) * 255))
    clear.save(tmp_path / "clear.png")
    made_photo(90, 60).convert("L").save(tmp_path / "grey.png")
    with opened(browser, site / "index.html") as visited:
        for path in sorted(tmp_path.glob("*.png")):
            found = choose(visited.page, path)
            assert (found == segmenter.label_map(path)).all(), path.name


def test_a_processor_that_does_not_resize_leaves_photos_as_they_are(browser: Any, tmp_path: Path) -> None:
    processor = ImageProcessor(do_resize=False)
    site = written(tmp_path / "site", processor)
    noise(70, 50).save(tmp_path / "photo.png")
    with opened(browser, site / "index.html") as visited:
        found = choose(visited.page, tmp_path / "photo.png")
    assert (found != sampled_segmenter(processor).label_map(tmp_path / "photo.png")).mean() <= 1e-3


def test_legend_and_tint_are_those_of_the_label_map(browser: Any, site: Path, tmp_path: Path) -> None:
    made_photo(120, 80).save(tmp_path / "photo.png")
    with opened(browser, site / "index.html") as visited:
        page = visited.page
        label_map = choose(page, tmp_path / "photo.png")
        rows = page.eval_on_selector_all("#legend tr", "rows => rows.map((row) => row.innerText.split('\\t'))")
        ids, counts = np.unique(label_map, return_counts=True)
        largest = ids[np.argsort(-counts)][0]
        assert {row[0].strip() for row in rows} == {NAMES[k].strip() for k in ids}
        assert rows[0][0].strip() == NAMES[largest].strip()
        assert rows[0][1] == f"{100 * counts.max() / label_map.size:.1f} %"
        page.click('[data-mix="map"]')
        page.evaluate("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
        y, x = (int(each[0]) for each in np.where(label_map == largest))
        shown = page.evaluate(
            "([x, y]) => Array.from(layerOf('prediction').getContext('2d').getImageData(x, y, 1, 1).data)", [x, y]
        )
        assert tuple(shown[:3]) == tuple(palette(len(NAMES), NAMES)[largest])


def test_several_photos_are_taken_and_a_file_that_is_none_is_named(browser: Any, site: Path, tmp_path: Path) -> None:
    made_photo(60, 40).save(tmp_path / "a.png")
    made_photo(40, 60).save(tmp_path / "b.png")
    (tmp_path / "notes.png").write_text("no photo")
    with opened(browser, site / "index.html") as visited:
        page = visited.page
        page.set_input_files("#files", [tmp_path / "a.png", tmp_path / "notes.png", tmp_path / "b.png"])
        says(page, "b.png: ")
        assert page.locator("#photos li").count() == 2
        assert page.inner_text("#name") == "b.png"
        page.set_input_files("#files", tmp_path / "notes.png")
        says(page, "notes.png: this browser cannot read it as a photo")
        page.keyboard.press("ArrowLeft")
        wait_until(page, "document.getElementById('name').textContent === 'a.png'")


def test_a_photo_is_dropped_anywhere_on_the_page(browser: Any, site: Path, tmp_path: Path) -> None:
    made_photo(60, 40).save(tmp_path / "dropped.png")
    with opened(browser, site / "index.html") as visited:
        drop = """(bytes) => {
          const given = new DataTransfer();
          given.items.add(new File([Uint8Array.from(bytes)], "dropped.png", { type: "image/png" }));
          document.querySelector("footer").dispatchEvent(
            new DragEvent("drop", { dataTransfer: given, bubbles: true, cancelable: true }));
        }"""
        visited.page.evaluate(drop, list((tmp_path / "dropped.png").read_bytes()))
        says(visited.page, "dropped.png: 60 ")


def test_keys_do_nothing_before_there_is_a_photo(browser: Any, site: Path) -> None:
    with opened(browser, site / "index.html") as visited:
        for key in ("+", "0", "ArrowRight", "Shift+ArrowLeft", "b", "3", "s"):
            visited.page.keyboard.press(key)
        assert visited.complaints == []


def test_a_page_without_its_scripts_says_what_is_missing(browser: Any, site: Path, tmp_path: Path) -> None:
    (tmp_path / "index.html").write_bytes((site / "index.html").read_bytes())
    with visit(browser, tmp_path / "index.html", beside=SCRIPTS) as visited:
        says(visited.page, "The model cannot be started: runtime.js is not beside this page")
        assert visited.page.is_disabled("#files")


def test_a_graph_that_does_not_start_is_told(browser: Any, site: Path, tmp_path: Path) -> None:
    from segformer.pages.model_page import _script

    for path in site.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "model.js").write_text(_script("no graph", {"model": b"{"}))
    with visit(browser, tmp_path / "index.html", beside=SCRIPTS) as visited:
        says(visited.page, "The model cannot be started: ")


def test_a_browser_that_alters_what_a_page_reads_gets_no_wrong_map(browser: Any, site: Path) -> None:
    altered = """const read = CanvasRenderingContext2D.prototype.getImageData;
    CanvasRenderingContext2D.prototype.getImageData = function (...words) {
      const found = read.apply(this, words);
      found.data[5] ^= 1;
      return found;
    };"""
    with visit(browser, "about:blank") as visited:
        visited.page.add_init_script(altered)
        visited.page.unroute_all()
        visited.page.context.unroute_all()
        visited.page.goto((site / "index.html").as_uri())
        says(visited.page, "This browser alters the pixels that a page reads")
        assert visited.page.is_disabled("#files")


@pytest.mark.parametrize("width", [390, 1440])
@pytest.mark.parametrize("chosen", [False, True], ids=["empty", "chosen"])
def test_nothing_is_wider_than_the_window(width: int, chosen: bool, browser: Any, site: Path, tmp_path: Path) -> None:
    with opened(browser, site / "index.html", width) as visited:
        if chosen:
            for name in ("a.png", f"{'a very long name ' * 12}.png"):
                made_photo(300, 200).save(tmp_path / name)
                choose(visited.page, tmp_path / name)
        assert visited.page.evaluate("document.documentElement.scrollWidth") <= width


# The real runtime


@pytest.mark.slow  # it exports a model
@pytest.mark.parametrize("way", ["server", "disk"])
def test_onnxruntime_web_gives_the_label_maps_of_python(
    way: str, browser: Any, source: Path, onnx: Any, tmp_path: Path
) -> None:
    try:
        find_runtime(None)
    except FileNotFoundError as error:
        pytest.skip(f"the browser was not tried with the real runtime: {error}")
    row = next(iter(toy_rows("validation")))
    (tmp_path / "scene.png").write_bytes(row["image"]["bytes"])
    Image.open(tmp_path / "scene.png").convert("RGB").save(tmp_path / "scene.png")
    export_page(source, tmp_path / "site")
    with served(tmp_path / "site") as address:
        place = address if way == "server" else tmp_path / "site/index.html"
        with opened(browser, place) as visited:
            found = choose(visited.page, tmp_path / "scene.png")
    expected = Segmenter.from_pretrained(source, "cpu").label_map(tmp_path / "scene.png")
    assert len(np.unique(expected)) >= 3
    assert (found == expected).mean() >= 0.999
