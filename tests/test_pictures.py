"""Label maps as pictures: official colours, class ids that survive, shares that add up, legends with room for all."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data.classes import CLASS_NAMES, ID2LABEL, NUM_LABELS
from segformer.pictures import class_shares, label_map_picture, overlay, palette, with_legend

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
