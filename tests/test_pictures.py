"""Label maps as pictures: official colours, class ids that survive, shares that add up, legends with room for all."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data.classes import CLASS_NAMES, ID2LABEL, NUM_LABELS
from segformer.pictures import (
    UNTINTED,
    SheetRow,
    class_shares,
    contact_sheet,
    grid,
    is_untinted,
    label_map_picture,
    overlay,
    palette,
    tints,
    with_legend,
)

PAPER = (255, 255, 255)
NAMES = dict(enumerate(CLASS_NAMES))


def random_map(seed: int, height: int, width: int, num_labels: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, num_labels, (height, width)).astype(np.uint16)


def random_photo(height: int = 11, width: int = 17) -> Image.Image:
    return Image.fromarray(np.random.default_rng(9).integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.fixture(scope="session")
def label_files(real_data: Path) -> Path:
    return real_data / "datasets/huggingface/label-files"


@pytest.mark.real_data
def test_the_palette_of_150_classes_is_the_official_one(label_files: Path) -> None:
    official = json.loads((label_files / "color150.json").read_text())
    assert palette(150).tolist() == official


@pytest.mark.real_data
def test_class_names_are_the_official_ones(label_files: Path) -> None:
    official = json.loads((label_files / "ade20k-id2label.json").read_text())
    assert {str(k): name for k, name in ID2LABEL.items()} == official


def test_class_names_for_people_have_no_space_around_them() -> None:
    assert tuple(name.strip() for name in ID2LABEL.values()) == CLASS_NAMES
    assert CLASS_NAMES[7] == "bed"
    assert len(CLASS_NAMES) == NUM_LABELS == 150


def test_palettes_of_other_sizes_hold_distinct_colours() -> None:
    for num_labels in range(1, 51):
        colours = palette(num_labels)
        assert (colours.shape, colours.dtype) == ((num_labels, 3), np.uint8)
        assert len(np.unique(colours, axis=0)) == num_labels, num_labels


@pytest.mark.parametrize("count", [2, 255, 256, 257])
def test_tints_are_seen_with_any_number_of_classes(count: int) -> None:
    colours = palette(count)
    label_map = np.array([[0, count - 1]], np.min_scalar_type(count - 1))
    seen = tints([label_map_picture(label_map, colours).convert("RGB")], [label_map], colours)
    assert np.array_equal(seen[[0, count - 1]], colours[[0, count - 1]])


def test_a_class_keeps_its_colour_when_classes_are_added() -> None:
    assert np.array_equal(palette(7), palette(50)[:7])


@pytest.mark.parametrize("num_labels", [1, 2, 7, 150, 256])
def test_a_palette_png_gives_back_the_class_ids(num_labels: int, tmp_path: Path) -> None:
    label_map = random_map(0, 23, 31, num_labels)
    label_map_picture(label_map, palette(num_labels)).save(tmp_path / "labels.png")
    with Image.open(tmp_path / "labels.png") as stored:
        assert stored.mode == "P"
        assert np.array_equal(np.asarray(stored), label_map)


@pytest.mark.parametrize("num_labels", [2, 7, 150, 256, 257, 300])
def test_a_label_map_picture_shows_the_colours_of_its_classes(num_labels: int) -> None:
    label_map, colours = random_map(1, 23, 31, num_labels), palette(num_labels)
    shown = np.asarray(label_map_picture(label_map, colours).convert("RGB"))
    assert np.array_equal(shown, colours[label_map])


@pytest.mark.parametrize(("num_labels", "ignored"), [(150, 255), (7, 255), (7, 7), (300, 300), (300, 65535)])
def test_pixels_without_a_class_are_black(num_labels: int, ignored: int) -> None:
    label_map = np.array([[0, ignored]], dtype=np.uint16)
    shown = np.asarray(label_map_picture(label_map, palette(num_labels)).convert("RGB"))
    assert shown[0].tolist() == [palette(num_labels)[0].tolist(), [0, 0, 0]]


def test_an_overlay_of_opacity_0_is_the_photo() -> None:
    photo = random_photo()
    blended = overlay(photo, random_map(2, 11, 17, 150), palette(150), 0.0)
    assert blended.tobytes() == photo.tobytes()


def test_an_overlay_of_opacity_1_is_the_colours() -> None:
    label_map = random_map(2, 11, 17, 150)
    blended = overlay(random_photo(), label_map, palette(150), 1.0)
    assert np.array_equal(np.asarray(blended), palette(150)[label_map])


def test_an_overlay_of_opacity_one_half_lies_in_the_middle() -> None:
    photo, label_map = random_photo(), random_map(2, 11, 17, 150)
    middle = (np.asarray(photo).astype(float) + palette(150)[label_map]) / 2
    assert np.abs(np.asarray(overlay(photo, label_map, palette(150), 0.5)) - middle).max() <= 1  # uint8 rounding


def test_shares_are_those_of_counting_largest_first() -> None:
    label_map = np.array([[4, 4, 1], [4, 0, 1]], dtype=np.uint8)
    assert class_shares(label_map, 6) == [(4, 3 / 6), (1, 2 / 6), (0, 1 / 6)]


def test_classes_of_equal_share_come_in_ascending_class_id() -> None:
    assert [k for k, _ in class_shares(np.array([[5, 0, 3, 1]]), 6)] == [0, 1, 3, 5]


@pytest.mark.parametrize("seed", range(4))
def test_shares_add_up_to_one(seed: int) -> None:
    label_map = random_map(seed, 37, 53, 150)
    assert sum(share for _, share in class_shares(label_map, 150)) == pytest.approx(1, abs=1e-12)


def legend_of(photo: Image.Image, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """The pixels of a photo with its legend, (H, W, 3), and of the legend alone."""
    shares = [(k, 1 / classes) for k in range(classes)]
    picture = np.asarray(with_legend(photo, shares, NAMES, palette(150)))
    return picture, picture[:, photo.width :]


SIZES = [(1, 1), (1, 3000), (3000, 1), (64, 64), (480, 640), (900, 30), (2000, 1500)]  # (height, width)


@pytest.mark.parametrize("classes", [1, 5, 150])
@pytest.mark.parametrize("size", SIZES)
def test_a_legend_leaves_the_photo_whole(size: tuple[int, int], classes: int) -> None:
    photo = random_photo(*size)
    picture, _ = legend_of(photo, classes)
    assert np.array_equal(picture[: photo.height, : photo.width], np.asarray(photo))


@pytest.mark.parametrize("classes", [1, 5, 150])
@pytest.mark.parametrize("size", SIZES)
def test_a_legend_cuts_nothing_off(size: tuple[int, int], classes: int) -> None:
    _, legend = legend_of(random_photo(*size), classes)
    for edge in (legend[0], legend[-1], legend[:, 0], legend[:, -1]):
        assert (edge == PAPER).all()


def rows_with_ink(strip: np.ndarray) -> int:
    """How many groups of rows that are not blank a strip of pixels holds."""
    inked = (strip != PAPER).any(axis=(1, 2))
    return int(inked[0]) + int((inked[1:] & ~inked[:-1]).sum())


@pytest.mark.parametrize("size", SIZES)
def test_a_legend_has_a_swatch_a_name_and_a_share_for_every_class(size: tuple[int, int]) -> None:
    _, legend = legend_of(random_photo(*size), 12)
    inked = (legend != PAPER).any(axis=(0, 2))
    gap = int(inked.argmax())  # the margin on the left, which is also that on the right
    assert inked[::-1].argmax() >= gap - 2
    swatches = legend[:, gap : gap + 5]
    assert rows_with_ink(swatches) == 12
    assert rows_with_ink(legend[:, -3 * gap :]) == 12
    inside = legend[:, gap + 3]
    shown = [tuple(pixel) for pixel in inside if tuple(pixel) != PAPER]
    assert {tuple(colour) for colour in palette(150)[:12].tolist()} <= {tuple(map(int, pixel)) for pixel in shown}


def test_a_legend_strips_names_and_keeps_names_and_shares_apart() -> None:
    photo, colours = random_photo(64, 64), palette(150)
    longest = {0: "a class with quite a long name indeed ", 1: "b"}
    picture = np.asarray(with_legend(photo, [(0, 0.999), (1, 0.001)], longest, colours))[:, 64:]
    stripped = np.asarray(with_legend(photo, [(0, 0.999), (1, 0.001)], {0: longest[0].strip(), 1: "b"}, colours))
    assert np.array_equal(picture, stripped[:, 64:])
    blank = (picture == PAPER).all(axis=(0, 2))
    inked = np.flatnonzero(~blank)
    widest = max(np.diff(inked))  # between the name and its share, wider than any space between letters or words
    assert widest > 11


def test_a_legend_of_no_class_is_blank() -> None:
    picture = np.asarray(with_legend(random_photo(), [], {}, palette(7)))
    assert (picture[:, 17:] == PAPER).all()


# Backgrounds


@pytest.mark.parametrize("name", ["background", "Background", "BACKGROUND ", "_background_", "__background__"])
def test_a_background_is_untinted(name: str) -> None:
    photo, label_map = random_photo(), random_map(4, 11, 17, 2)
    tinted = np.asarray(overlay(photo, label_map, palette(2, [name, "object"])))
    plain = np.asarray(overlay(photo, label_map, palette(2)))
    assert np.array_equal(tinted[label_map == 0], np.asarray(photo)[label_map == 0])
    assert np.array_equal(tinted[label_map == 1], plain[label_map == 1])
    assert not np.array_equal(tinted[label_map == 1], np.asarray(photo)[label_map == 1])


@pytest.mark.parametrize("name", ["object", "backgrounds", "background noise", "back ground", ""])
def test_only_a_background_is_untinted(name: str) -> None:
    assert np.array_equal(palette(2, [name, "object"]), palette(2))


def test_no_class_has_the_colour_of_a_background_by_chance() -> None:
    assert not any(is_untinted(palette(num_labels)).any() for num_labels in (*range(1, 150), 150, 1000))
    assert not is_untinted(palette(150, CLASS_NAMES)).any()


def test_a_background_is_told_from_pixels_without_a_class() -> None:
    shown = np.asarray(label_map_picture(np.array([[0, 255]]), palette(2, ["background"])).convert("RGB"))
    assert shown[0].tolist() == [list(UNTINTED), [0, 0, 0]]


def swatches_of(picture: np.ndarray, left: int) -> list[tuple[int, ...]]:
    """The colours inside the swatches of a legend that begins at a column, from above."""
    legend = picture[:, left:]
    gap = int((legend != PAPER).any(axis=(0, 2)).argmax())
    outlined = (legend[:, gap] != PAPER).any(axis=-1)
    tops = np.flatnonzero(outlined & ~np.roll(outlined, 1))
    return [tuple(map(int, legend[top + 4, gap + 4])) for top in tops]


def test_the_swatch_of_a_background_is_paper() -> None:
    colours = palette(2, ["background", "object"])
    names = {0: "background", 1: "object"}
    picture = np.asarray(with_legend(random_photo(64, 64), [(0, 0.5), (1, 0.5)], names, colours))
    assert swatches_of(picture, 64) == [PAPER, tuple(map(int, colours[1]))]


# Tints


@pytest.mark.parametrize("opacity", [0.0, 0.3, 0.5, 1.0])
def test_tints_are_the_mean_colours_in_the_picture(opacity: float) -> None:
    label_map, colours = random_map(5, 40, 30, 4), palette(7)
    label_map[0, :5] = 255
    tinted = overlay(random_photo(40, 30), label_map, colours, opacity)
    seen, pixels = tints([tinted], [label_map], colours), np.asarray(tinted).astype(float)
    for k in (0, 1, 2, 3):
        assert np.abs(seen[k] - pixels[label_map == k].mean(axis=0)).max() <= 0.5  # rounded to whole levels
    assert np.abs(seen[7] - pixels[label_map == 255].mean(axis=0)).max() <= 0.5
    assert np.array_equal(seen[4:7], colours[4:])


def test_tints_are_those_of_all_pictures_together() -> None:
    maps, photos = [np.zeros((2, 2), np.uint8)] * 2, [Image.new("RGB", (2, 2), (level,) * 3) for level in (10, 30)]
    assert tints(photos, maps, palette(2))[0].tolist() == [20, 20, 20]


def test_tints_of_a_large_picture_are_those_of_a_small_one() -> None:
    label_map = np.repeat(np.array([[0, 1], [2, 3]], np.uint8), 1000, axis=0).repeat(1000, axis=1)
    tinted = overlay(Image.new("RGB", (2000, 2000), (9, 99, 199)), label_map, palette(4))
    small = label_map[::100, ::100]
    assert np.array_equal(
        tints([tinted], [label_map], palette(4)),
        tints([overlay(Image.new("RGB", (20, 20), (9, 99, 199)), small, palette(4))], [small], palette(4)),
    )


def test_a_background_keeps_its_colour_among_tints() -> None:
    colours = palette(2, ["background", "object"])
    label_map = random_map(6, 11, 17, 2)
    assert tints([overlay(random_photo(), label_map, colours)], [label_map], colours)[0].tolist() == list(UNTINTED)


# Sheets of samples


def sheet_of(*sizes: tuple[int, int], side: int = 100, names: tuple[str, ...] = ("wall", "floor")) -> np.ndarray:
    """A sheet of gray photos of these (width, height), all of class 1 by truth and prediction."""
    ids = np.ones((5, 5), np.uint8)  # squashed, as labels are that a model is trained with
    rows = [SheetRow("a", "mean IoU 1.000", Image.new("RGB", size, (90, 90, 90)), [ids, ids]) for size in sizes]
    titles = ["photo", "truth", "prediction"]
    return np.asarray(contact_sheet(rows, titles, dict(enumerate(names)), palette(len(names), names), side))


def shape_of(sheet: np.ndarray, colour: tuple[int, int, int]) -> tuple[int, int]:
    """Width and height of the area of a colour."""
    ys, xs = np.nonzero((sheet == colour).all(axis=-1))
    return int(xs.max() - xs.min() + 1), int(ys.max() - ys.min() + 1)


@pytest.mark.parametrize(
    ("size", "shown"), [((200, 100), (100, 50)), ((30, 60), (50, 100)), ((7, 7), (100, 100)), ((1000, 1), (100, 1))]
)
def test_a_sheet_shows_photos_in_their_own_shape(size: tuple[int, int], shown: tuple[int, int]) -> None:
    assert shape_of(sheet_of(size), (90, 90, 90)) == shown


def test_a_sheet_tints_truth_and_prediction_alike() -> None:
    sheet = sheet_of((200, 100))
    tint = tuple(
        map(int, np.asarray(overlay(Image.new("RGB", (1, 1), (90, 90, 90)), np.ones((1, 1)), palette(2), 0.6))[0, 0])
    )
    is_tint = (sheet == tint).all(axis=-1)
    assert is_tint.sum() > 2 * 100 * 50  # both, and the swatch
    assert is_tint[60, 112:212].all()
    assert is_tint[60, 218:318].all()


def test_the_legend_of_a_sheet_names_the_classes_that_occur_as_they_are_seen() -> None:
    sheet = sheet_of((200, 100))
    tint = tuple(map(int, sheet[70, 150]))
    assert swatches_of(sheet, 6 + 3 * 106) == [tint]


def test_the_legend_of_a_sheet_tells_what_is_not_labelled() -> None:
    truth = np.array([[0, 255]], np.uint8)
    row = SheetRow("a", "", Image.new("RGB", (100, 100), (90, 90, 90)), [truth, np.zeros((1, 2), np.uint8)])
    sheet = np.asarray(contact_sheet([row], ["photo", "truth", "prediction"], {0: "wall"}, palette(1), 100))
    dark = overlay(row.photo, np.full((100, 100), 255), palette(1), 0.6)
    assert swatches_of(sheet, 6 + 3 * 106)[1] == dark.getpixel((0, 0))


def test_the_legend_of_a_sheet_is_no_longer_than_the_sheet() -> None:
    truth, many = np.array([[3]], np.uint8), np.arange(40, dtype=np.uint8).reshape(5, 8)
    row = SheetRow("a", "", Image.new("RGB", (100, 100), (90, 90, 90)), [truth, many])
    titles, names = ["photo", "truth", "prediction"], {k: f"class {k}" for k in range(40)}
    sheet = contact_sheet([row], titles, names, palette(40), 100)
    assert sheet.height == 26 + 26 + 100 + 6
    swatches = swatches_of(np.asarray(sheet), 6 + 3 * 106)
    assert len(swatches) == 4  # and a line that says how many more there are
    assert swatches[0] == max([(int(n), c) for n, c in sheet.crop((112, 52, 212, 152)).getcolors() or []])[1]  # truth


def test_a_sheet_leaves_a_background_untinted() -> None:
    sheet = sheet_of((100, 100), names=("wall", "background"))
    assert (sheet == 90).all(axis=-1).sum() == 3 * 100 * 100


def test_a_sheet_of_nothing_is_a_sheet() -> None:
    assert sheet_of().shape[0] > 0


def test_a_grid_shows_every_picture_fitted_below_the_title_of_its_column() -> None:
    wide, tall = Image.new("RGB", (80, 40), (200, 0, 0)), Image.new("L", (40, 80), 90)
    sheet = np.asarray(grid([[wide, tall], [tall, wide]], ["one", "two"], 40))
    assert sheet.shape == (26 + 2 * 46, 6 + 2 * 46, 3)
    assert sheet[26, 6].tolist() == [200, 0, 0]
    assert sheet[26 + 46, 6].tolist() == [90, 90, 90]
    assert len(np.unique(sheet[:26].reshape(-1, 3), axis=0)) > 1  # the titles
