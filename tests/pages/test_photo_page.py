"""The page of photos as a file: its numbers, its pictures, its size, and names that would break it."""

from __future__ import annotations

import base64
import io
import json
import re
import struct
import weakref
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from markup import Element, Markup
from PIL import Image
from run_folders import HOSTILE

from data import SceneParse150
from data.classes import ID2LABEL
from segformer import ConfusionMatrix, Segmenter
from segformer.pages.page import colour_code, readable_ink
from segformer.pages.photo_page import PagePhoto, PhotoPage, write_photo_page
from segformer.pictures import palette

NAMES = ["wall", "floor", "sky", "tree", "lamp", "rug", "never there"]
COLOURS = palette(len(NAMES))


def random_photo(seed: int, height: int = 60, width: int = 80, name: str = "", truth: bool = True) -> PagePhoto:
    """Noise, a map of blocks and a truth that differs from it and is not labelled everywhere."""
    generator = np.random.default_rng(seed)
    label_map = np.kron(generator.integers(0, 5, (5, 5)), np.ones((height // 5, width // 5))).astype(np.uint8)
    labels = np.where(generator.random(label_map.shape) < 0.3, 5, np.roll(label_map, 3, axis=1)).astype(np.uint8)
    labels[:4] = 255
    photo = Image.fromarray(generator.integers(0, 256, (height, width, 3), dtype=np.uint8))
    scores = {int(k): float(generator.random()) for k in np.unique(label_map)}
    return PagePhoto(name or f"photo {seed}", photo, label_map, scores, labels if truth else None)


def rendered(
    photos: list[PagePhoto], title: str = "title", facts: dict[str, str] | None = None, **options: Any
) -> Markup:
    page = PhotoPage(NAMES, COLOURS, len(photos), **options)
    for photo in photos:
        page.add(photo)
    return Markup(page.render(title, facts or {}))


def data_of(markup: Markup) -> dict[str, Any]:
    return json.loads(markup.one("script", id="data").text)


def pictures_of(markup: Markup, number: int) -> list[Image.Image]:
    """Photo, prediction and truth as the page holds them."""
    lines = markup.one("script", id=f"pixels-{number}").text.split("\n")
    return [Image.open(io.BytesIO(base64.b64decode(line))) for line in lines]


def matrix_of(photos: list[PagePhoto], num_labels: int = len(NAMES)) -> ConfusionMatrix:
    matrix = ConfusionMatrix(num_labels)
    for photo in photos:
        matrix.update(photo.label_map.astype(np.int64), photo.truth.astype(np.int64))
    return matrix


def total_rows(markup: Markup) -> dict[int, Element]:
    return {int(row.attributes["data-class"]): row for row in markup.all("tr") if "data-class" in row.attributes}


@pytest.fixture(scope="module")
def photos() -> list[PagePhoto]:
    return [random_photo(seed) for seed in range(4)]


@pytest.fixture(scope="module")
def markup(photos: list[PagePhoto]) -> Markup:
    return rendered(photos, facts={"Checkpoint": "runs/toy-1"})


# Numbers


@pytest.mark.parametrize("max_side", [16, 1024])
def test_total_scores_are_those_of_the_confusion_matrix_however_small_the_pictures(
    photos: list[PagePhoto], max_side: int
) -> None:
    markup = rendered(photos, max_side=max_side)
    scores = matrix_of(photos).scores()
    rows = total_rows(markup)
    assert set(rows) == set(np.flatnonzero(~np.isnan(scores.per_category_iou)).tolist())
    for k, row in rows.items():
        assert float(row.attributes["data-iou"]) == scores.per_category_iou[k]
        accuracy = scores.per_category_accuracy[k]
        assert float(row.attributes["data-accuracy"]) == (-1 if np.isnan(accuracy) else accuracy)
    numbers = dict(zip((e.text for e in markup.all("dt")), (e.text for e in markup.all("dd")), strict=True))
    assert numbers["mean IoU"] == f"{scores.mean_iou:.3f}"
    assert numbers["pixel accuracy"] == f"{scores.overall_accuracy:.3f}"


def test_scores_of_a_photo_are_those_of_its_own_confusion_matrix(photos: list[PagePhoto], markup: Markup) -> None:
    for photo, entry in zip(photos, data_of(markup)["photos"], strict=True):
        scores = matrix_of([photo]).scores()
        assert entry["iou"] == scores.mean_iou
        assert entry["accuracy"] == scores.overall_accuracy
        assert {k: iou for k, *_, iou in entry["classes"]} == {
            k: iou for k, iou in enumerate(scores.per_category_iou.tolist()) if not np.isnan(iou)
        }


def test_shares_and_scores_of_classes_are_told_largest_first(photos: list[PagePhoto], markup: Markup) -> None:
    for photo, entry in zip(photos, data_of(markup)["photos"], strict=True):
        shares = {int(k): float((photo.label_map == k).mean()) for k in np.unique(photo.label_map)}
        told = [(k, share, certainty) for k, share, certainty, *_ in entry["classes"] if share]
        assert {k: share for k, share, _ in told} == pytest.approx(shares)
        assert {k: certainty for k, _, certainty in told} == pytest.approx(photo.scores)
        assert [share for _, share, _ in told] == sorted(shares.values(), reverse=True)
        assert entry["certainty"] == pytest.approx(sum(shares[k] * photo.scores[k] for k in shares))


def test_a_class_that_only_the_truth_holds_is_told_with_its_share_there(
    photos: list[PagePhoto], markup: Markup
) -> None:
    for photo, entry in zip(photos, data_of(markup)["photos"], strict=True):
        k, share, certainty, labelled, iou = entry["classes"][-1]
        assert (k, share, certainty, iou) == (5, 0, None, 0)
        assert labelled == pytest.approx((photo.truth == 5).sum() / (photo.truth != 255).sum())


def test_classes_that_only_the_truth_holds_come_last_by_their_share_there() -> None:
    truth = np.repeat(np.array([4, 3, 3, 6, 6, 6, 0], np.uint8), 10).reshape(7, 10)
    photo = PagePhoto("a", Image.new("RGB", (10, 7)), np.zeros((7, 10), np.uint8), None, truth)
    (entry,) = data_of(rendered([photo]))["photos"]
    assert [k for k, *_ in entry["classes"]] == [0, 6, 3, 4]


def test_mistakes_are_the_pairs_that_take_most_pixels(photos: list[PagePhoto], markup: Markup) -> None:
    for photo, entry in zip(photos, data_of(markup)["photos"], strict=True):
        labelled = (photo.truth != 255).sum()
        counts = sorted(
            (
                ((photo.truth == t) & (photo.label_map == p)).sum() / labelled
                for t in range(7)
                for p in range(7)
                if t != p
            ),
            reverse=True,
        )
        for t, p, share in entry["mistakes"]:
            assert share == pytest.approx(((photo.truth == t) & (photo.label_map == p)).sum() / labelled)
        assert [share for *_, share in entry["mistakes"]] == pytest.approx(counts[:8])


def test_the_most_common_mistakes_link_to_the_photo_that_has_most_of_them(
    photos: list[PagePhoto], markup: Markup
) -> None:
    links = [link for link in markup.all("a") if "data-light" in link.attributes]
    rows = [row for row in markup.all("tr") if row.text.startswith(tuple(NAMES)) and "data-class" not in row.attributes]
    assert len(links) > len(rows) > 15  # those of the confusion matrix come after
    for link, row in zip(links[:15], rows[:15], strict=True):
        truth, prediction = row.text.split()[:2]
        pixels = [
            int(((p.truth == NAMES.index(truth)) & (p.label_map == NAMES.index(prediction))).sum()) for p in photos
        ]
        assert link.attributes["href"] == f"#photo-{pixels.index(max(pixels))}"
        assert link.attributes["data-light"] == str(NAMES.index(truth))
        matrix = [(other.attributes["href"], other.attributes["data-light"]) for other in links[15:]]
        assert (link.attributes["href"], link.attributes["data-light"]) in matrix


def test_photos_come_worst_first(photos: list[PagePhoto], markup: Markup) -> None:
    ious = {f"photo-{k}": matrix_of([photo]).scores().mean_iou for k, photo in enumerate(photos)}
    listed = [item.attributes["id"] for item in markup.all("li") if "id" in item.attributes]
    assert listed == sorted(ious, key=lambda name: ious[name])
    assert markup.all("option")[0].attributes["value"] == "worst"


def test_without_a_truth_nothing_is_judged() -> None:
    markup = rendered([random_photo(seed, truth=False) for seed in range(3)])
    assert [item.attributes["id"] for item in markup.all("li") if "id" in item.attributes] == [
        "photo-0",
        "photo-1",
        "photo-2",
    ]
    assert [option.attributes["value"] for option in markup.all("option")] == ["given", "unsure", "name"]
    assert all("data-iou" not in row.attributes for row in total_rows(markup).values())
    assert "IoU" not in "".join(element.text for element in markup.all("main") if element.tag == "table")
    assert markup.all("table", class_="confusions") == []
    assert [len(pictures_of(markup, number)) for number in range(3)] == [2, 2, 2]


def test_totals_without_a_truth_are_shares_of_all_pixels() -> None:
    photos = [random_photo(seed, height=30 * (seed + 1), truth=False) for seed in range(3)]
    maps = np.concatenate([photo.label_map.ravel() for photo in photos])
    rows = total_rows(rendered(photos))
    assert {k: float(row.attributes["data-share"]) for k, row in rows.items()} == {
        int(k): float((maps == k).mean()) for k in np.unique(maps)
    }
    assert {k: int(row.attributes["data-photos"]) for k, row in rows.items()} == {
        int(k): sum(bool((photo.label_map == k).any()) for photo in photos) for k in np.unique(maps)
    }


def test_a_photo_without_a_truth_stands_after_those_with_one_and_changes_no_score(photos: list[PagePhoto]) -> None:
    mixed = [random_photo(9, truth=False), *photos]
    markup = rendered(mixed)
    assert [item.attributes["id"] for item in markup.all("li") if "id" in item.attributes][-1] == "photo-0"
    assert data_of(markup)["photos"][0]["iou"] is None
    iou = matrix_of(photos).scores().per_category_iou
    assert {k: float(row.attributes["data-iou"]) for k, row in total_rows(markup).items()} == {
        k: value for k, value in enumerate(iou.tolist()) if not np.isnan(value)
    }


def test_a_photo_of_which_nothing_is_labelled_has_no_score() -> None:
    photo = random_photo(0)
    markup = rendered([PagePhoto("a", photo.photo, photo.label_map, None, np.full_like(photo.label_map, 255))])
    assert data_of(markup)["photos"][0]["iou"] is None
    assert not re.search(r"\bnan\b", markup.one("body").text, re.IGNORECASE)


# Pictures


def test_maps_keep_their_ids_when_they_are_not_made_smaller(photos: list[PagePhoto], markup: Markup) -> None:
    for number, photo in enumerate(photos):
        picture, prediction, truth = pictures_of(markup, number)
        assert (picture.format, picture.mode, picture.size) == ("JPEG", "RGB", photo.photo.size)
        assert prediction.mode == truth.mode == "P"
        assert np.array_equal(np.asarray(prediction), photo.label_map)
        assert np.array_equal(np.asarray(truth), photo.truth)


@pytest.mark.parametrize(
    ("height", "width", "shown"),
    [(1200, 1600, (40, 30)), (1600, 1200, (30, 40)), (5000, 5, (1, 40)), (30, 20, (20, 30))],
)
def test_pictures_are_no_larger_than_max_side_and_mix_no_ids(height: int, width: int, shown: tuple[int, int]) -> None:
    photo = random_photo(0, height, width)
    for picture in pictures_of(rendered([photo], max_side=40), 0):
        assert picture.size == shown
        if picture.mode == "P":
            assert set(np.unique(picture)) <= {*np.unique(photo.label_map), *np.unique(photo.truth)}


def test_maps_need_not_have_the_size_of_their_photo() -> None:
    photo = random_photo(0)
    large = PagePhoto("a", photo.photo.resize((800, 600)), photo.label_map, None, photo.truth)
    picture, prediction, truth = pictures_of(rendered([large]), 0)
    assert picture.size == (800, 600)
    assert np.array_equal(np.asarray(prediction), photo.label_map)
    assert np.array_equal(np.asarray(truth), photo.truth)


@pytest.mark.parametrize("max_side", [30, 1024])
def test_maps_are_written_as_the_script_reads_them(photos: list[PagePhoto], max_side: int) -> None:
    """A byte a pixel, no filter, not interlaced: ``readIds`` in photos.js relies on it."""
    lines = rendered(photos, max_side=max_side).one("script", id="pixels-0").text.split("\n")
    for line in lines[1:]:
        png = base64.b64decode(line)
        at, parts = 8, b""
        while at < len(png):
            length, kind = struct.unpack(">I4s", png[at : at + 8])
            content = png[at + 8 : at + 8 + length]
            if kind == b"IHDR":
                width, height, *form = struct.unpack(">IIBBBBB", content)
            parts += content if kind == b"IDAT" else b""
            at += 12 + length
        assert form == [8, 3, 0, 0, 0]
        rows = np.frombuffer(zlib.decompress(parts), np.uint8).reshape(height, width + 1)
        assert not rows[:, 0].any()


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P", "CMYK", "1", "I;16"])
def test_photos_of_any_mode_are_shown(mode: str) -> None:
    photo = PagePhoto("a", Image.new(mode, (20, 10)), np.zeros((10, 20), np.uint8))
    assert pictures_of(rendered([photo]), 0)[0].mode == "RGB"


@pytest.mark.parametrize("size", [(1, 1), (1, 5000), (5000, 1)])
def test_photos_of_any_shape_are_shown(size: tuple[int, int]) -> None:
    photo = PagePhoto("a", Image.new("RGB", size), np.zeros(size[::-1], np.uint8))
    assert max(pictures_of(rendered([photo]), 0)[0].size) == min(1024, max(size))


def test_thumbnails_are_small_overlays(photos: list[PagePhoto]) -> None:
    grey = PagePhoto("a", Image.new("RGB", (1200, 800), (100, 100, 100)), np.full((800, 1200), 3, np.uint8))
    source = rendered([grey]).one("li", id="photo-0")
    assert "tree 100.0 %" in source.text
    image = next(image for image in rendered([grey]).all("img") if image.attributes["alt"].startswith("Overlay"))
    picture = Image.open(io.BytesIO(base64.b64decode(image.attributes["src"].partition(",")[2])))
    assert picture.size == (216, 144)
    assert np.asarray(picture)[70, 100] == pytest.approx((COLOURS[3].astype(float) + 100) / 2, abs=4)


def test_pictures_are_made_smaller_until_the_page_fits() -> None:
    def page(max_bytes: int) -> int:
        builder = PhotoPage(NAMES, COLOURS, 12, max_bytes=max_bytes)
        for seed in range(12):
            builder.add(random_photo(seed, 300, 400))
        return len(builder.render("title", {}))

    assert page(40_000_000) > 1_200_000
    assert 700_000 < page(1_000_000) <= 1_000_000


def test_what_a_plain_photo_leaves_goes_to_those_after_it() -> None:
    noise = random_photo(0, 500, 500)
    plain = PagePhoto("plain", Image.new("RGB", (500, 500)), np.zeros((500, 500), np.uint8))
    options = {"max_bytes": 600_000}
    alone = pictures_of(rendered([noise, plain, plain, plain], **options), 0)[0].size
    after = pictures_of(rendered([plain, plain, plain, noise], **options), 3)[0].size
    assert after[0] > 1.5 * alone[0]


def test_photos_are_taken_one_at_a_time(tmp_path: Path) -> None:
    alive: list[weakref.ref[PagePhoto]] = []

    def stream() -> Iterator[PagePhoto]:
        for seed in range(6):
            assert sum(reference() is not None for reference in alive) <= 1
            photo = random_photo(seed)
            alive.append(weakref.ref(photo))
            yield photo
            del photo

    write_photo_page(tmp_path / "page.html", stream(), 6, NAMES, COLOURS, "title", {})
    assert len(alive) == 6


# Errors


@pytest.mark.parametrize(
    ("label_map", "truth", "message"),
    [
        (
            np.zeros((4, 5), np.float32),
            None,
            r"a photo: the label map is \[4, 5\] float32; it must be \(H, W\) integers",
        ),
        (np.zeros((1, 4, 5), np.uint8), None, r"the label map is \[1, 4, 5\]"),
        (np.zeros((0, 5), np.uint8), None, r"the label map is \[0, 5\]"),
        (np.zeros((4, 5), np.uint8), np.zeros((5, 4), np.uint8), r"the truth is \[5, 4\], the label map \[4, 5\]"),
    ],
)
def test_maps_that_cannot_be_are_refused_by_name(label_map: Any, truth: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PagePhoto("a photo", Image.new("RGB", (5, 4)), label_map, None, truth)


@pytest.mark.parametrize(("value", "label", "message"), [(7, 0, "classes 0 to 6"), (0, 7, "labels hold 7")])
def test_a_refused_photo_leaves_the_page_as_it_was(value: int, label: int, message: str) -> None:
    page = PhotoPage(NAMES, COLOURS, 3)
    page.add(random_photo(0))
    before = page.render("title", {})
    maps = [np.full((4, 5), number, np.uint8) for number in (value, label)]
    with pytest.raises(ValueError, match=f"^bad one: .*{message}"):
        page.add(PagePhoto("bad one", Image.new("RGB", (5, 4)), maps[0], None, maps[1]))
    assert page.render("title", {}) == before


@pytest.mark.parametrize("num_labels", [0, 256])
def test_more_classes_than_a_palette_holds_are_refused(num_labels: int) -> None:
    with pytest.raises(ValueError, match=f"{num_labels} class names"):
        PhotoPage([f"{k}" for k in range(num_labels)], np.zeros((num_labels, 3), np.uint8), 1)


def test_a_page_that_breaks_off_leaves_the_old_one(tmp_path: Path) -> None:
    def breaking() -> Iterator[PagePhoto]:
        yield random_photo(0)
        raise OSError("no such photo")

    (tmp_path / "page.html").write_text("old")
    with pytest.raises(OSError, match="no such photo"):
        write_photo_page(tmp_path / "page.html", breaking(), 2, NAMES, COLOURS, "title", {})
    assert [path.name for path in tmp_path.iterdir()] == ["page.html"]
    assert (tmp_path / "page.html").read_text() == "old"


def test_a_page_of_no_photo_says_so(tmp_path: Path) -> None:
    markup = rendered([])
    assert markup.faults == []
    assert "0" in [element.text for element in markup.all("dd")]


# Safe and for everybody


@pytest.fixture(scope="module")
def hostile() -> Markup:
    page = PhotoPage(HOSTILE, palette(len(HOSTILE)), len(HOSTILE))
    for seed, name in enumerate([*HOSTILE, "two\nlines"]):
        page.add(random_photo(seed, name=name))
    return Markup(page.render(HOSTILE[0], {name: name for name in HOSTILE}))


def test_hostile_names_add_no_element_to_a_page(hostile: Markup) -> None:
    plain = rendered([random_photo(seed) for seed in range(len(HOSTILE) + 1)])
    assert hostile.faults == []
    kinds = ("script", "style", "img", "figure", "input", "button", "dialog", "li", "a")
    assert {tag: len(hostile.all(tag)) for tag in kinds} == {tag: len(plain.all(tag)) for tag in kinds}
    assert {name for element in hostile.elements for name in element.attributes if name.startswith("on")} == set()


def test_hostile_names_stand_in_a_page_as_they_are(hostile: Markup) -> None:
    assert {photo["name"] for photo in data_of(hostile)["photos"]} == {*HOSTILE, "two\nlines"}
    assert [each["name"] for each in data_of(hostile)["classes"]] == [name.strip() for name in HOSTILE]
    names = {
        item.text.split(" IoU")[0].strip("\n") for item in hostile.all("a") if item.attributes["href"][1:6] == "photo"
    }
    assert {*HOSTILE, "two\nlines"} <= names
    assert hostile.one("h1").text == HOSTILE[0]


def test_the_same_photos_give_the_same_page(photos: list[PagePhoto], tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_photo_page(tmp_path / name, photos, 4, NAMES, COLOURS, "title", {"fact": "value"})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_page_names_no_address_but_its_own(markup: Markup) -> None:
    addresses = [e.attributes[name] for e in markup.elements for name in ("src", "href") if name in e.attributes]
    assert addresses
    assert [address[:40] for address in addresses if not address.startswith(("data:", "#"))] == []
    code = "".join(e.text for e in markup.all("style")) + markup.all("script")[-1].text
    assert re.findall(r"url\(|@import|https?:|fetch\(|XMLHttp|import\(|eval\(|innerHTML", code) == []


def test_markup_is_well_formed_and_its_references_meet(markup: Markup) -> None:
    assert markup.faults == []
    ids = [element.attributes["id"] for element in markup.elements if "id" in element.attributes]
    assert len(ids) == len(set(ids))
    for name in ("for", "aria-labelledby"):
        assert {e.attributes[name] for e in markup.elements if name in e.attributes} <= set(ids)
    assert {e.attributes["href"][1:] for e in markup.all("a")} <= set(ids)


def test_every_picture_has_a_text_and_every_field_a_label(markup: Markup) -> None:
    assert all(image.attributes["alt"] for image in markup.all("img"))
    assert all(canvas.attributes["aria-label"] for canvas in markup.all("canvas"))
    labelled = {label.attributes["for"] for label in markup.all("label")}
    assert {field.attributes["id"] for field in [*markup.all("input"), *markup.all("select")]} == labelled
    assert all("scope" in heading.attributes for heading in markup.all("th"))


def test_headings_go_down_one_level_at_a_time(markup: Markup) -> None:
    levels = [int(element.tag[1]) for element in markup.elements if re.fullmatch("h[1-6]", element.tag)]
    assert levels.count(1) == 1
    assert max(np.diff(levels)) == 1


def test_classes_have_their_colours_and_a_name_that_can_be_told(photos: list[PagePhoto]) -> None:
    page = PhotoPage(["bed ", " ", "door"], palette(3), 0)
    told = data_of(Markup(page.render("title", {})))["classes"]
    assert [each["name"] for each in told] == ["bed", "class 1", "door"]
    assert [each["colour"] for each in told] == [colour_code(colour) for colour in palette(3)]


@pytest.mark.parametrize("colours", [palette(150), palette(19), np.random.default_rng(0).integers(0, 256, (500, 3))])
def test_text_on_a_class_colour_stands_out(colours: np.ndarray) -> None:
    def luminance(channels: list[int]) -> float:
        shares = [value / 255 for value in channels]
        linear = [share / 12.92 if share <= 0.04045 else ((share + 0.055) / 1.055) ** 2.4 for share in shares]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    for colour in colours.astype(np.uint8):
        low, high = sorted([luminance(colour.tolist()), {"#000000": 0.0, "#ffffff": 1.0}[readable_ink(colour)]])
        assert (high + 0.05) / (low + 0.05) >= 4.5


# Real


@pytest.mark.real_data
def test_real_scores_are_those_of_the_confusion_matrix(real_shards: Path, ade_checkpoint: Path, tmp_path: Path) -> None:
    photos = real_photos(real_shards, ade_checkpoint)
    assert all((photo.truth[photo.truth != 255] != photo.label_map[photo.truth != 255]).any() for photo in photos)
    write_photo_page(
        tmp_path / "page.html", photos, len(photos), list(ID2LABEL.values()), palette(150), "ADE", {}, max_side=200
    )
    markup = Markup((tmp_path / "page.html").read_text())
    scores = matrix_of(photos, 150).scores()
    told = {k: float(row.attributes["data-iou"]) for k, row in total_rows(markup).items()}
    assert told == {k: iou for k, iou in enumerate(scores.per_category_iou.tolist()) if not np.isnan(iou)}
    assert f"{scores.mean_iou:.3f}" in [element.text for element in markup.all("dd")]
    for photo, entry in zip(photos, data_of(markup)["photos"], strict=True):
        assert entry["iou"] == matrix_of([photo], 150).scores().mean_iou


def real_photos(shards: Path, checkpoint: Path) -> list[PagePhoto]:
    """The six validation images, what the ADE checkpoint sees in them and what they are."""
    dataset = SceneParse150(shards, "validation")
    segmenter = Segmenter.from_pretrained(checkpoint, device="cpu")
    photos = []
    for index in range(len(dataset)):
        photo, annotation = dataset[index]
        truth = np.asarray(annotation).astype(np.uint8) - np.uint8(1)  # 0, everything else, becomes 255
        photos.append(PagePhoto(dataset.name(index), photo, segmenter.label_map(photo), None, truth))
    return photos
