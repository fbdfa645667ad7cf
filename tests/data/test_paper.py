"""The paper's augmentations: against loops that say the same slowly, and on real photos."""

from __future__ import annotations

import colorsys
import math
import random
from collections import Counter
from dataclasses import replace
from fractions import Fraction
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from data import SceneParse150
from data.augmentation.jitter import sample_generator
from data.augmentation.paper import (
    PaperAugmentation,
    keep_ratio_size,
    map_levels,
    pad_to,
    resize_and_crop,
    shift_colours,
)
from segformer import ImageProcessor

PLAIN = PaperAugmentation(distortion=0)
ODD_SIZES = [(1, 1), (2, 3), (1, 3000), (3000, 1), (31, 47), (300, 200), (511, 513), (700, 513), (2000, 600)]


def generator_of(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_photo(width: int, height: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def random_map(width: int, height: int, cell: int, classes: int, seed: int = 0) -> Image.Image:
    """Rectangular patches of random raw labels."""
    rows, columns = math.ceil(height / cell), math.ceil(width / cell)
    patches = np.random.default_rng(seed).integers(0, classes + 1, (rows, columns), dtype=np.uint8)
    return Image.fromarray(patches.repeat(cell, axis=0).repeat(cell, axis=1)[:height, :width])


def one_colour(*pixel: int) -> Image.Image:
    return Image.new("RGB", (1, 1), pixel)


def painted(label_map: Image.Image) -> Image.Image:
    """A photo whose colours say which label they belong to."""
    raw = np.asarray(label_map)
    return Image.fromarray(np.stack([raw, 255 - raw, raw ^ 0x55], axis=-1))


# Sizes


def test_a_photo_becomes_as_large_as_the_limits_allow_with_its_shape_kept() -> None:
    rng = np.random.default_rng(0)
    for _ in range(3000):
        width, height = (int(side) for side in np.exp(rng.uniform(0, 9, 2)))
        long_limit, short_limit = sorted((int(limit) for limit in rng.integers(1, 4096, 2)), reverse=True)
        exact = min(Fraction(long_limit, max(width, height)), Fraction(short_limit, min(width, height)))
        found = keep_ratio_size(width, height, (long_limit, short_limit))
        for side, original in zip(found, (width, height), strict=True):
            # 1e-9: the reference works in floating point, so an exact half may go either way.
            assert abs(side - exact * original) <= Fraction(1, 2) + Fraction(1e-9) or side == 1
        assert max(found) == long_limit or min(found) == short_limit


@pytest.mark.parametrize(
    ("width", "height", "expected"),
    [
        (683, 512, (683, 512)),
        (375, 500, (512, 683)),
        (4000, 500, (2048, 256)),
        (3000, 1, (2048, 1)),
        (1, 1, (512, 512)),
    ],
)
def test_sizes_at_the_recipes_limits(width: int, height: int, expected: tuple[int, int]) -> None:
    assert keep_ratio_size(width, height, (2048, 512)) == expected


def test_the_sizes_drawn_cover_the_range_evenly() -> None:
    photo = Image.new("RGB", (683, 512))
    sides = np.array([PLAIN.draw_size(photo, generator_of(seed))[1] for seed in range(3000)])
    assert sides.min() in range(256, 260)
    assert sides.max() in range(1019, 1025)
    assert abs(sides.mean() - 640) < 4 * 768 / math.sqrt(12 * 3000)  # four standard errors of a uniform draw
    assert abs((sides < 448).mean() - 0.25) < 4 * math.sqrt(0.25 * 0.75 / 3000)


def test_the_limits_are_scaled_and_cut_to_whole_pixels_before_the_photo_meets_them() -> None:
    for seed in range(100):
        ratio = 0.5 + 1.5 * float(torch.rand(1, generator=generator_of(seed)))
        limits = (int(2048 * ratio), int(512 * ratio))
        for width, height in ODD_SIZES:
            drawn = PLAIN.draw_size(Image.new("RGB", (width, height)), generator_of(seed))
            assert drawn == keep_ratio_size(width, height, limits)


def test_a_photo_without_pixels_has_no_size() -> None:
    for width, height in ((0, 5), (5, 0), (-1, 5)):
        with pytest.raises(ValueError, match=f"photo is {width} x {height}; both sides must be above 0"):
            keep_ratio_size(width, height, (2048, 512))


# Resizing and cropping


def test_enlarging_only_what_the_crop_keeps_gives_the_same_bits() -> None:
    rng = np.random.default_rng(0)
    for seed in range(200):
        photo = random_photo(int(rng.integers(1, 90)), int(rng.integers(1, 90)), seed)
        size = int(rng.integers(1, 180)), int(rng.integers(1, 180))
        left, top = (int(rng.integers(0, side)) for side in size)
        box = (left, top, int(rng.integers(left + 1, size[0] + 1)), int(rng.integers(top + 1, size[1] + 1)))
        plain = photo.resize(size, Image.Resampling.BILINEAR).crop(box)
        found = resize_and_crop(photo, size, box)
        assert found.size == plain.size
        assert found.tobytes() == plain.tobytes(), (photo.size, size, box)


def naively_accepted(crop: Image.Image, share: float, ignored: tuple[int, ...]) -> bool:
    counts = Counter(value for value in np.asarray(crop).ravel().tolist() if value not in ignored)
    return len(counts) > 1 and max(counts.values()) / counts.total() < share


def test_a_crop_is_accepted_as_counting_its_pixels_one_by_one_says() -> None:
    verdicts: Counter[bool] = Counter()
    for seed in range(600):
        rng = np.random.default_rng(seed)
        share, ignored = float(rng.uniform(0.3, 0.99)), [(0, 255), (255,), (), (1, 7)][seed % 4]
        crop = Image.fromarray(rng.choice([0, 1, 7, 150, 255], (6, 6), p=rng.dirichlet([0.4] * 5)).astype(np.uint8))
        accepted = PaperAugmentation(max_class_share=share, ignored=ignored).accepts(crop)
        assert accepted == naively_accepted(crop, share, ignored), (seed, share, ignored)
        verdicts[accepted] += 1
    assert min(verdicts.values()) > 100


@pytest.mark.parametrize(
    ("labels", "accepted"),
    [
        ([1, 1, 1, 2], False),  # exactly 75 %
        ([1, 1, 2, 2], True),
        ([0, 0, 0, 0, 0, 255, 1, 2], True),  # what is ignored is no class and does not count as labelled
        ([0, 0, 0, 1], False),  # one class alone
        ([0, 0, 255, 255], False),  # none
    ],
)
def test_crops_at_the_edges_of_the_rule(labels: list[int], accepted: bool) -> None:
    crop = Image.fromarray(np.array([labels], np.uint8))
    assert PLAIN.accepts(crop) is accepted
    assert replace(PLAIN, max_class_share=1).accepts(crop) is True


def test_the_box_is_the_first_of_ten_that_is_accepted_or_else_the_eleventh() -> None:
    augmentation = PaperAugmentation(crop_size=(8, 12))
    chosen: Counter[int] = Counter()
    for seed in range(400):
        label_map = random_map(40, 30, cell=10, classes=3, seed=seed)
        draws = torch.rand(11, 2, generator=generator_of(seed)).double()
        boxes = []
        for across, down in draws.tolist():
            left, top = math.floor(across * 29), math.floor(down * 23)  # 40 - 12 + 1 and 30 - 8 + 1 places
            boxes.append((left, top, left + 12, top + 8))
        accepted = [naively_accepted(label_map.crop(box), 0.75, (0, 255)) for box in boxes[:10]]
        expected = accepted.index(True) if any(accepted) else 10
        assert augmentation.draw_box(label_map, generator_of(seed)) == boxes[expected]
        chosen[expected] += 1
    assert {0, 1, 2, 3} <= set(chosen)
    uniform = Image.new("L", (40, 30), 5)
    assert augmentation.draw_box(uniform, generator_of(399)) == boxes[10]


def test_crops_are_mixed_where_mixed_crops_exist() -> None:
    labels = np.full((400, 400), 3, np.uint8)
    labels[:, 150:] = np.arange(250) // 20 + 4  # the left is one class, the rest stripes of many
    augmentation = PaperAugmentation(crop_size=(100, 100), scale=(400, 400), ratio=(1, 1), distortion=0)
    photo, label_map = Image.new("RGB", (400, 400)), Image.fromarray(labels)
    mixed: Counter[str] = Counter()
    for seed in range(300):
        for name, share in (("rule", 0.75), ("no rule", 1.0)):
            _, crop = replace(augmentation, max_class_share=share)(photo, label_map, generator_of(seed))
            mixed[name] += naively_accepted(crop, 0.75, (0, 255))
    assert mixed["rule"] == 300  # a random box fails four times in ten, ten in a row once in ten thousand
    assert 120 < mixed["no rule"] < 240


def test_every_place_of_a_crop_comes_up_equally_often() -> None:
    augmentation = PaperAugmentation(crop_size=(3, 2), max_class_share=1)
    label_map = Image.new("L", (4, 4))
    boxes = Counter(augmentation.draw_box(label_map, generator_of(seed)) for seed in range(3000))
    assert set(boxes) == {(left, top, left + 2, top + 3) for left in range(3) for top in range(2)}
    assert all(abs(count - 500) < 4 * math.sqrt(3000 * 1 / 6 * 5 / 6) for count in boxes.values())


# Photo and label map


def shifted(values: np.ndarray, down: int, across: int) -> np.ndarray:
    """All but a rim of one pixel, moved by up to one pixel."""
    height, width = values.shape
    return values[1 + down : height - 1 + down, 1 + across : width - 1 + across]


def agreements(augmentation: PaperAugmentation, label_map: Image.Image, seed: int) -> dict[tuple[int, int], float]:
    """Where a photo is white on even labels and black on odd ones: the share of pixels that still are, by a shift."""
    even = np.asarray(label_map) % 2 == 0
    photo = Image.fromarray(even.astype(np.uint8)[..., None].repeat(3, -1) * 255)
    image, labels = augmentation(photo, label_map, generator_of(seed))
    white, expected = np.asarray(image)[..., 0] > 127, np.asarray(labels) % 2 == 0
    places = product((-1, 0, 1), (-1, 0, 1))
    return {place: float((shifted(white, *place) == shifted(expected, 0, 0)).mean()) for place in places}


@pytest.mark.parametrize("size", [(300, 200), (200, 300), (700, 513), (2000, 600)])
def test_photo_and_label_map_stay_aligned_to_less_than_a_pixel(size: tuple[int, int]) -> None:
    label_map = random_map(*size, cell=25, classes=150)
    for seed in range(12):
        shares = agreements(PLAIN, label_map, seed)
        exact = shares.pop((0, 0))
        assert exact > 0.99  # at corners the filter rounds off what the nearest label does not
        assert 1 - exact < 0.4 * (1 - max(shares.values()))


def test_without_resizing_every_pixel_stays_with_its_label() -> None:
    augmentation = PaperAugmentation(crop_size=(40, 30), scale=(90, 70), ratio=(1, 1), distortion=0)
    label_map = random_map(90, 70, cell=1, classes=150)
    seen = set()
    for seed in range(50):
        photo, labels = augmentation(painted(label_map), label_map, generator_of(seed))
        assert labels.size == (30, 40)
        assert photo.tobytes() == painted(labels).tobytes()
        seen.add(labels.tobytes())
    assert len(seen) > 45


def test_labels_are_those_at_the_middle_of_each_pixel() -> None:
    label_map = random_map(60, 45, cell=1, classes=150)
    augmentation = PaperAugmentation(crop_size=(200, 200), scale=(4096, 45), ratio=(0.5, 3.0), flip=0, distortion=0)
    for seed in range(8):
        width, height = augmentation.draw_size(label_map, generator_of(seed))
        _, labels = augmentation(painted(label_map), label_map, generator_of(seed))
        raw, found, compared = np.asarray(label_map), np.asarray(labels), 0
        for y, x in product(range(height), range(width)):
            row, beside_row = divmod((2 * y + 1) * 45, 2 * height)
            column, beside_column = divmod((2 * x + 1) * 60, 2 * width)
            if beside_row and beside_column:  # else the middle lies between two pixels, and either will do
                assert found[y, x] == raw[row, column]
                compared += 1
        assert compared > 0.9 * found.size


def test_flips_happen_half_of_the_time_and_to_both() -> None:
    label_map = Image.fromarray(np.array([[1, 2]], np.uint8))
    augmentation = PaperAugmentation(crop_size=(1, 2), scale=(2, 1), ratio=(1, 1), distortion=0)
    flipped = 0
    for seed in range(2000):
        photo, labels = augmentation(painted(label_map), label_map, generator_of(seed))
        assert photo.tobytes() == painted(labels).tobytes()
        flipped += np.asarray(labels).tolist() == [[2, 1]]
    assert abs(flipped - 1000) < 4 * math.sqrt(2000 / 4)


@pytest.mark.parametrize(("flip", "expected"), [(0, [1, 2]), (1, [2, 1])])
def test_a_flip_can_be_ruled_out_or_made_certain(flip: float, expected: list[int]) -> None:
    label_map = Image.fromarray(np.array([[1, 2]], np.uint8))
    augmentation = PaperAugmentation(crop_size=(1, 2), scale=(2, 1), ratio=(1, 1), flip=flip, distortion=0)
    for seed in range(100):
        assert np.asarray(augmentation(painted(label_map), label_map, generator_of(seed))[1]).tolist() == [expected]


@pytest.mark.parametrize("size", ODD_SIZES)
def test_any_shape_of_photo_comes_back_at_most_as_large_as_the_crop(size: tuple[int, int]) -> None:
    photo, label_map = random_photo(*size), random_map(*size, cell=5, classes=150)
    for seed in range(3):
        width, height = PaperAugmentation().draw_size(photo, generator_of(seed))
        image, labels = PaperAugmentation()(photo, label_map, generator_of(seed))
        assert image.size == labels.size == (min(width, 512), min(height, 512))
        assert (image.mode, labels.mode) == ("RGB", "L")
        assert set(labels.tobytes()) <= set(label_map.tobytes())


def test_crop_size_is_height_and_width() -> None:
    augmentation = PaperAugmentation(crop_size=(20, 50))
    image, labels = augmentation(random_photo(64, 64), random_map(64, 64, 8, 9), generator_of(0))
    assert image.size == labels.size == (50, 20)


def test_photo_and_label_map_passed_in_stay_as_they_were() -> None:
    photo, label_map = random_photo(30, 20), random_map(30, 20, 4, 150)
    before = photo.tobytes(), label_map.tobytes()
    for seed in range(20):
        PaperAugmentation(distortion=1)(photo, label_map, generator_of(seed))
        shift_colours(photo, 5, 0.5)
        map_levels(photo, 2, 5)
    assert (photo.tobytes(), label_map.tobytes()) == before


def test_photo_and_label_map_that_do_not_belong_together_are_refused() -> None:
    with pytest.raises(ValueError, match=r"image is \(3, 2\) but its label map \(2, 3\)"):
        PaperAugmentation()(Image.new("RGB", (3, 2)), Image.new("L", (2, 3)), generator_of(0))
    with pytest.raises(ValueError, match="image has mode L and label map L; they must be RGB and L"):
        PaperAugmentation()(Image.new("L", (3, 2)), Image.new("L", (3, 2)), generator_of(0))
    with pytest.raises(ValueError, match="image has mode RGB and label map P"):
        PaperAugmentation()(Image.new("RGB", (3, 2)), Image.new("P", (3, 2)), generator_of(0))


# Draws


def augmented(place: tuple[int, int, int], **settings: Any) -> bytes:
    photo, label_map = random_photo(40, 30), random_map(40, 30, 4, 150)
    augmentation = PaperAugmentation(**{"crop_size": (20, 20), "scale": (80, 30), **settings})
    image, labels = augmentation(photo, label_map, sample_generator(*place))
    return image.tobytes() + labels.tobytes()


def test_a_place_in_training_says_all_about_its_augmentation() -> None:
    first = augmented((1, 2, 3))
    torch.rand(7)
    np.random.rand(7)  # noqa: NPY002
    random.random()
    augmented((9, 9, 9))
    assert augmented((1, 2, 3)) == first


def test_seed_epoch_and_row_each_change_the_augmentation() -> None:
    places = [(seed, epoch, row) for seed in range(4) for epoch in range(4) for row in range(4)]
    assert len({augmented(place) for place in places}) == len(places)


def test_nothing_is_drawn_from_global_generators() -> None:
    before = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()  # type: ignore[index]  # noqa: NPY002
    for row in range(10):
        augmented((0, 0, row))
    after = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()  # type: ignore[index]  # noqa: NPY002
    assert torch.equal(before[0], after[0])
    assert before[1:] == after[1:]


def test_every_sample_takes_as_many_draws_whatever_they_turn_out_to_be() -> None:
    states = set()
    base = PaperAugmentation(crop_size=(20, 20), scale=(60, 30))
    chances = [replace(base, flip=chance) for chance in (0, 1)] + [
        replace(base, distortion=chance) for chance in (0, 1)
    ]
    for augmentation in (base, replace(base, max_class_share=1), *chances):
        for size, classes in product([(1, 1), (30, 40), (1, 300)], (0, 150)):
            generator = generator_of(5)
            augmentation(random_photo(*size), random_map(*size, 4, classes), generator)
            states.add(generator.get_state().numpy().tobytes())
    assert len(states) == 1


# Colours


def test_levels_are_mapped_as_a_loop_over_them_does() -> None:
    ramp = Image.fromarray(np.arange(768, dtype=np.uint16).reshape(16, 16, 3).astype(np.uint8))
    rng = np.random.default_rng(0)
    cases = [(1.0, float(shift)) for shift in rng.uniform(-300, 300, 60)]
    cases += [(float(factor), 0.0) for factor in rng.uniform(0, 3, 60)] + [(1, 0), (0, 0), (0.5, 0), (2, -128)]
    for factor, shift in cases:
        naive = [int(min(max(level * factor + shift, 0), 255)) for level in ramp.tobytes()]
        assert list(map_levels(ramp, factor, shift).tobytes()) == naive


def colours_by_loop(pixel: tuple[int, int, int], half_degrees: float, saturation: float) -> list[float]:
    hue, full, value = colorsys.rgb_to_hsv(*(channel / 255 for channel in pixel))
    shifted = colorsys.hsv_to_rgb((hue + half_degrees / 180) % 1, min(full * saturation, 1), value)
    return [channel * 255 for channel in shifted]


def test_colours_are_shifted_as_a_loop_over_pixels_does() -> None:
    levels = [0, 1, 2, 100, 127, 128, 200, 254, 255]
    corners = np.array([(r, g, b) for r in levels for g in levels for b in levels], np.uint8)
    anywhere = np.random.default_rng(0).integers(0, 256, (271, 3), dtype=np.uint8)
    photo = Image.fromarray(np.concatenate([corners, anywhere]).reshape(25, 40, 3))
    pixels = np.asarray(photo).reshape(-1, 3).tolist()
    for half_degrees in (-90, -18, -7.3, 0, 0.4, 11, 18, 90):
        for saturation in (0, 0.5, 0.83, 1, 1.5, 4):
            found = np.asarray(shift_colours(photo, half_degrees, saturation)).reshape(-1, 3)
            exact = np.array([colours_by_loop(tuple(pixel), half_degrees, saturation) for pixel in pixels])
            # the nearest level; 1e-3 where float32 takes the other of two that are as near
            assert np.abs(found - exact).max() < 0.5 + 1e-3, (half_degrees, saturation)


def test_a_third_of_the_circle_swaps_the_channels_round() -> None:
    photo = random_photo(40, 30)
    red, green, blue = photo.split()
    assert shift_colours(photo, 60, 1).tobytes() == Image.merge("RGB", (blue, red, green)).tobytes()
    assert shift_colours(photo, -60, 1).tobytes() == Image.merge("RGB", (green, blue, red)).tobytes()


def test_thirty_half_degrees_turn_red_to_yellow() -> None:
    assert shift_colours(one_colour(255, 0, 0), 30, 1).getpixel((0, 0)) == (255, 255, 0)


def test_a_full_turn_changes_no_pixel() -> None:
    photo = random_photo(512, 512)
    for half_degrees in (180, -180):
        assert shift_colours(photo, half_degrees, 1).tobytes() == photo.tobytes()


def test_no_saturation_leaves_the_value_as_grey() -> None:
    photo = random_photo(40, 30)
    grey = np.asarray(photo).max(-1, keepdims=True).repeat(3, -1)
    assert np.array_equal(np.asarray(shift_colours(photo, 5, 0)), grey)


ALONE: dict[str, Any] = {"brightness": 0, "contrast": (1, 1), "saturation": (1, 1), "hue": 0}


def outcomes(photo: Image.Image, **settings: Any) -> np.ndarray:
    """The first pixel after each of 2000 distortions with only some of the steps, (2000, 3)."""
    augmentation = PaperAugmentation(**{**ALONE, **settings})
    shifted = [augmentation.distort(photo, generator_of(seed)).getpixel((0, 0)) for seed in range(2000)]
    return np.array(shifted)


@pytest.mark.parametrize(
    ("step", "amount", "pixel", "channel", "lowest", "highest"),
    [
        ("brightness", 32, (128, 128, 128), 0, 96, 160),
        ("contrast", (0.5, 1.5), (100, 100, 100), 1, 50, 150),
        ("saturation", (0.5, 1.5), (200, 100, 100), 2, 50, 150),
        ("hue", 18, (255, 128, 0), 1, 128 - 153, 128 + 153),  # 18 of the 30 half-degrees from red to yellow
    ],
)
def test_each_step_happens_half_of_the_time_and_draws_evenly_from_its_range(
    step: str, amount: Any, pixel: tuple[int, int, int], channel: int, lowest: int, highest: int
) -> None:
    found = outcomes(one_colour(*pixel), **{step: amount})
    happened = (found != pixel).any(-1)
    # A draw near the middle changes nothing that eight bits can show.
    unseen = 1.5 / (highest - lowest)
    assert abs(happened.mean() - 0.5 * (1 - unseen)) < 4 * math.sqrt(0.25 / 2000) + unseen
    levels = found[happened, channel]
    reached_low, reached_high = max(lowest, 0), min(highest, 255)
    assert reached_low <= levels.min() <= reached_low + 2
    assert reached_high - 2 <= levels.max() <= reached_high
    assert abs(levels.mean() - (lowest + highest) / 2) < 5 * (highest - lowest) / math.sqrt(12 * 1000)


def test_steps_happen_apart_from_each_other() -> None:
    photo = one_colour(150, 100, 50)
    steps = {"brightness": 32, "contrast": (0.5, 0.5), "saturation": (0.5, 0.5), "hue": 18}
    unchanged = (outcomes(photo, **steps) == (150, 100, 50)).all(-1).mean()
    assert abs(unchanged - 1 / 16) < 4 * math.sqrt(1 / 16 * 15 / 16 / 2000)
    neither = (outcomes(photo, contrast=(0.5, 0.5), saturation=(0.5, 0.5)) == (150, 100, 50)).all(-1).mean()
    assert abs(neither - 1 / 4) < 4 * math.sqrt(1 / 4 * 3 / 4 / 2000)


def test_contrast_comes_before_or_after_saturation_and_hue_as_often() -> None:
    found = outcomes(one_colour(250, 100, 100), contrast=(1.5, 1.5), saturation=(0.5, 0.5), distortion=1)
    counts = Counter(map(tuple, found.tolist()))
    # before: (255, 150, 150), and half of the chroma of 105; after: (250, 175, 175) times 1.5
    before, after = (255, 203, 203), (255, 255, 255)
    assert set(counts) == {before, after}
    assert abs(counts[before] - 1000) < 4 * math.sqrt(2000 / 4)


def test_brightness_comes_before_contrast() -> None:
    assert not outcomes(one_colour(90, 90, 90), brightness=32, contrast=(0, 0), distortion=1).any()


def test_no_distortion_leaves_the_pixels_alone() -> None:
    photo = random_photo(9, 7)
    for seed in range(50):
        assert PLAIN.distort(photo, generator_of(seed)).tobytes() == photo.tobytes()


# Padding


def test_padding_is_zero_on_the_photo_and_ignored_on_the_labels() -> None:
    images, labels = torch.randn(3, 4, 5), torch.randint(0, 150, (4, 5))
    padded_images, padded_labels = pad_to(images, labels, (7, 11))
    assert padded_images.shape == (3, 7, 11)
    assert padded_labels.shape == (7, 11)
    assert padded_images.dtype == images.dtype
    assert padded_labels.dtype == labels.dtype
    assert torch.equal(padded_images[:, :4, :5], images)
    assert torch.equal(padded_labels[:4, :5], labels)
    outside = torch.ones(7, 11, dtype=torch.bool)
    outside[:4, :5] = False
    assert (padded_images[:, outside] == 0).all()
    assert (padded_labels[outside] == 255).all()
    assert (pad_to(images, labels, (7, 11), ignore_index=-1)[1][outside] == -1).all()


def test_what_has_the_size_already_is_not_padded() -> None:
    images, labels = torch.randn(3, 4, 5), torch.randint(0, 150, (4, 5))
    padded = pad_to(images, labels, (4, 5))
    assert torch.equal(padded[0], images)
    assert torch.equal(padded[1], labels)


@pytest.mark.parametrize("size", [(3, 9), (9, 4)])
def test_padding_never_cuts(size: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match=r"labels is \(4, 5\); to be padded it must be at most \(\d, \d\)"):
        pad_to(torch.zeros(3, 4, 5), torch.zeros(4, 5), size)


def test_padding_refuses_a_photo_and_labels_of_two_sizes() -> None:
    with pytest.raises(ValueError, match=r"images is \(3, 5, 4\) but labels \(4, 5\)"):
        pad_to(torch.zeros(3, 5, 4), torch.zeros(4, 5), (9, 9))


# Settings


def test_the_defaults_are_the_published_recipe() -> None:
    assert PaperAugmentation() == PaperAugmentation(
        crop_size=(512, 512),
        scale=(2048, 512),
        ratio=(0.5, 2.0),
        max_class_share=0.75,
        tries=10,
        flip=0.5,
        distortion=0.5,
        brightness=32,
        contrast=(0.5, 1.5),
        saturation=(0.5, 1.5),
        hue=18,
        ignored=(0, 255),
    )


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("crop_size", (0, 512)),
        ("crop_size", 512),
        ("crop_size", [512, 512]),
        ("crop_size", (512.0, 512)),
        ("scale", (512, 2048)),
        ("scale", (2048,)),
        ("scale", (2048, 0)),
        ("ratio", (0, 2.0)),
        ("ratio", (2.0, 0.5)),
        ("ratio", (0.5, math.inf)),
        ("ratio", 1.0),
        ("max_class_share", 0),
        ("max_class_share", 75),
        ("max_class_share", math.nan),
        ("tries", 0),
        ("tries", 2.5),
        ("tries", True),
        ("flip", 1.1),
        ("flip", -0.1),
        ("distortion", "half"),
        ("distortion", 2),
        ("brightness", -1),
        ("brightness", 256),
        ("hue", 91),
        ("hue", None),
        ("contrast", (-0.5, 1.5)),
        ("contrast", (1.5, 0.5)),
        ("contrast", 0.5),
        ("saturation", (0.5, math.nan)),
        ("saturation", (0.5, 1.0, 1.5)),
        ("ignored", 255),
        ("ignored", (0, 256)),
        ("ignored", (-1,)),
        ("ignored", (0.0,)),
    ],
)
def test_a_bad_setting_is_refused_by_name(field: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"^{field} is ") as error:
        PaperAugmentation(**{field: value})  # type: ignore[arg-type]
    assert repr(value) in str(error.value)
    assert "; it must " in str(error.value)


def test_every_setting_changes_something() -> None:
    changed: dict[str, Any] = {
        "crop_size": (19, 20),
        "ratio": (0.5, 1.0),
        "max_class_share": 0.05,
        "tries": 1,
        "flip": 1.0,
        "distortion": 1.0,
        "brightness": 3,
        "contrast": (0.9, 1.0),
        "saturation": (0.9, 1.0),
        "hue": 1,
        "ignored": tuple(range(140)),
    }
    assert set(changed) | {"scale"} == set(PaperAugmentation.__dataclass_fields__)
    for field, value in changed.items():
        base = {"max_class_share": 0.07} if field in ("tries", "ignored") else {}
        pairs = [
            (augmented((0, 0, row), **base), augmented((0, 0, row), **{**base, field: value})) for row in range(20)
        ]
        assert any(before != after for before, after in pairs), field
    photo = Image.new("RGB", (40, 30))
    assert replace(PLAIN, scale=(90, 30)).draw_size(photo, generator_of(0)) != PLAIN.draw_size(photo, generator_of(0))


# Real photos


@pytest.mark.real_data
def test_real_label_maps_stay_aligned_to_less_than_a_pixel(real_shards: Path) -> None:
    dataset = SceneParse150(real_shards, "train")
    for row in range(len(dataset)):
        _, label_map = dataset[row]
        assert label_map is not None
        shares = agreements(PLAIN, label_map, row)
        exact = shares.pop((0, 0))
        assert exact > 0.998
        assert 1 - exact < 0.4 * (1 - max(shares.values()))


@pytest.mark.real_data
def test_on_real_photos_the_rule_refuses_most_crops_that_are_too_uniform(real_shards: Path) -> None:
    uniform: Counter[float] = Counter()
    dataset = SceneParse150(real_shards, "train")
    for row in range(len(dataset)):
        _, label_map = dataset[row]
        assert label_map is not None
        for epoch in range(10):
            for share in (0.75, 1.0):
                augmentation = replace(PLAIN, max_class_share=share)
                generator = sample_generator(0, epoch, row)
                resized = label_map.resize(augmentation.draw_size(label_map, generator), Image.Resampling.NEAREST)
                uniform[share] += not PLAIN.accepts(resized.crop(augmentation.draw_box(resized, generator)))
    assert uniform[0.75] < uniform[1.0] / 2


@pytest.mark.real_data
def test_a_real_photo_goes_through_the_recipe_to_tensors_of_the_crops_size(real_shards: Path) -> None:
    dataset = SceneParse150(real_shards, "train")
    processor, padded = ImageProcessor(do_resize=False), 0
    for row in range(len(dataset)):
        image, label_map = dataset[row]
        assert label_map is not None
        image, label_map = PaperAugmentation()(image, label_map, sample_generator(42, 0, row))
        images, labels = processor(image, label_map)
        assert labels is not None
        images, labels = pad_to(images, labels, (512, 512))
        assert images.shape == (3, 512, 512)
        assert labels.shape == (512, 512)
        assert labels.max() <= 255
        assert not images[:, image.height :].any()
        assert not images[:, :, image.width :].any()
        assert (labels[image.height :] == 255).all()
        assert (labels[:, image.width :] == 255).all()
        padded += image.size != (512, 512)
    assert 0 < padded < len(dataset)
