"""Augmentations: the pixels of torchvision for the same draws, and draws that depend on nothing but the sample."""

from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from torchvision.transforms.v2 import functional

from data import SceneParse150
from data.augmentation import jitter
from data.augmentation.jitter import ColorJitter, mix, sample_generator

GUIDE = (0.25, 0.25, 0.25, 0.1)


def random_photo(seed: int, height: int = 9, width: int = 13) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def jitter_of_torchvision(photo: Image.Image, seed: int, strengths: tuple[float, ...] = GUIDE) -> Image.Image:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # torchvision draws from the global generator only
        return torchvision.transforms.ColorJitter(*strengths)(photo)


def test_jitter_gives_the_pixels_of_torchvision_for_the_same_draws() -> None:
    for seed in range(300):  # the 24 orders all come up
        photo = random_photo(seed)
        jittered = ColorJitter()(photo, torch.Generator().manual_seed(seed))
        assert jittered.tobytes() == jitter_of_torchvision(photo, seed).tobytes(), seed


@pytest.mark.real_data
def test_jitter_gives_the_pixels_of_torchvision_on_real_photos(real_shards: Path) -> None:
    dataset = SceneParse150(real_shards, "validation")
    for i in range(len(dataset)):
        photo, _ = dataset[i]
        jittered = ColorJitter()(photo, torch.Generator().manual_seed(i))
        assert jittered.tobytes() == jitter_of_torchvision(photo, i).tobytes(), i


@pytest.mark.parametrize("strengths", [(0.5, 0.1, 0.9, 0.5), (1.5, 1.0, 2.0, 0.02)])
def test_other_strengths_give_the_pixels_of_torchvision_too(strengths: tuple[float, ...]) -> None:
    for seed in range(30):
        photo = random_photo(seed)
        jittered = ColorJitter(*strengths)(photo, torch.Generator().manual_seed(seed))
        assert jittered.tobytes() == jitter_of_torchvision(photo, seed, strengths).tobytes(), seed


def every_colour() -> Image.Image:
    """All 2**24 of them, once each."""
    colours = np.arange(2**24, dtype="<u4").view(np.uint8).reshape(4096, 4096, 4)
    return Image.fromarray(np.ascontiguousarray(colours[..., :3]))


def only(**strength: float) -> ColorJitter:
    return ColorJitter(**{**dict.fromkeys(("brightness", "contrast", "saturation", "hue"), 0.0), **strength})


def hue_shifted(photo: Image.Image, steps: int) -> tuple[Image.Image, Image.Image]:
    """A photo shifted by steps of 1 / 255 of the colour circle, by us and by torchvision."""
    factor = (steps + 0.5 * np.sign(steps)) / 255  # both cut off what is beyond a step
    return jitter._adjust_hue(photo, factor), functional.adjust_hue(photo, factor)


@pytest.mark.parametrize("steps", [0, 25, -25])
def test_hue_gives_the_pixels_of_torchvision_for_every_colour(steps: int) -> None:
    ours, theirs = hue_shifted(every_colour(), steps)
    assert ours.tobytes() == theirs.tobytes()


@pytest.mark.slow
def test_hue_gives_the_pixels_of_torchvision_for_every_colour_and_every_shift() -> None:
    colours = every_colour()
    for steps in range(-127, 127):
        ours, theirs = hue_shifted(colours, steps)
        assert ours.tobytes() == theirs.tobytes(), steps


@pytest.mark.parametrize("step", ["brightness", "contrast", "saturation"])
@pytest.mark.parametrize("factor", [0.0, 0.3, 0.75, 1.0, 1.25, 2.9])
def test_the_other_steps_give_the_pixels_of_torchvision_for_any_factor(step: str, factor: float) -> None:
    photo = random_photo(0, 256, 300)
    ours = getattr(jitter, f"_adjust_{step}")(photo, factor)
    assert ours.tobytes() == getattr(functional, f"adjust_{step}")(photo, factor).tobytes()


@pytest.mark.parametrize("width", [1, 2**16 - 1, 2**16, 2**16 + 1, 3 * 2**16 + 1])
def test_hue_gives_the_pixels_of_torchvision_wherever_the_pixels_worked_on_at_once_end(width: int) -> None:
    ours, theirs = hue_shifted(random_photo(1, 1, width), 9)
    assert ours.tobytes() == theirs.tobytes()


def test_strengths_that_torchvision_refuses_are_refused_by_name() -> None:
    for strength, value in product(("brightness", "contrast", "saturation", "hue"), (-0.1, float("nan"))):
        with pytest.raises(ValueError, match=f"{strength} is {value}"):
            only(**{strength: value})
    with pytest.raises(ValueError, match=r"hue is 0\.6; .* at most 0\.5"):
        only(hue=0.6)
    only(hue=0.5, contrast=7.0)


def test_the_draws_are_the_order_and_the_factors_of_torchvision() -> None:
    for seed in range(100):
        order, factors = ColorJitter().draw(torch.Generator().manual_seed(seed))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            widths = [[0.75, 1.25]] * 3
            expected_order, *expected = torchvision.transforms.ColorJitter.get_params(*widths, [-0.1, 0.1])
        assert order == expected_order.tolist()
        assert factors == expected


def test_jitter_leaves_its_input_as_it_was() -> None:
    photo = random_photo(0)
    before = photo.tobytes()
    ColorJitter()(photo, torch.Generator().manual_seed(1))
    assert photo.tobytes() == before


def test_jitter_draws_nothing_from_the_global_generator() -> None:
    before = torch.get_rng_state()
    ColorJitter()(random_photo(0), torch.Generator().manual_seed(1))
    assert torch.equal(torch.get_rng_state(), before)


def test_every_sample_draws_its_own_jitter() -> None:
    photo = random_photo(0)
    places = list(product(range(3), range(3), range(10)))
    jittered = {ColorJitter()(photo, sample_generator(*place)).tobytes() for place in places}
    assert len(jittered) == len(places)


def test_seed_epoch_and_row_each_change_the_draws_and_do_not_stand_in_for_each_other() -> None:
    places = list(product(range(6), range(6), range(6)))
    draws = {tuple(torch.rand(2, generator=sample_generator(*place)).tolist()) for place in places}
    assert len(draws) == len(places)


def test_the_draws_of_a_sample_are_the_same_on_every_machine_and_day() -> None:
    assert sample_generator(42, 3, 17).initial_seed() == 6323824391811613942


def test_the_draws_of_a_sample_do_not_depend_on_draws_before() -> None:
    first = torch.rand(4, generator=sample_generator(1, 2, 3))
    torch.rand(100)
    torch.rand(4, generator=sample_generator(1, 2, 4))
    assert torch.equal(torch.rand(4, generator=sample_generator(1, 2, 3)), first)


def test_mix_has_no_collisions_on_a_grid() -> None:
    grid = list(product((0, 1, 2, 42), range(20), range(200)))
    assert len({mix(*place) for place in grid}) == len(grid)


def test_mix_tells_apart_how_many_numbers_there_are() -> None:
    assert len({mix(), mix(0), mix(0, 0), mix(0, 0, 0), mix(1), mix(0, 1), mix(1, 0)}) == 7


def test_mix_fits_a_generators_seed_for_any_numbers() -> None:
    for numbers in ((0,), (2**63, 2**64 - 1), (-1, -5), (10**30, 7)):
        assert 0 <= mix(*numbers) < 2**63
        torch.Generator().manual_seed(mix(*numbers))


def test_neighbouring_rows_differ_in_about_half_of_their_bits() -> None:
    differing = [(mix(0, 0, row) ^ mix(0, 0, row + 1)).bit_count() for row in range(1000)]
    assert 31 < np.mean(differing) < 32  # of 63 bits
    assert min(differing) > 10
