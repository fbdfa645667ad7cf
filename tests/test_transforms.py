"""Augmentations: the pixels of torchvision for the same draws, and draws that depend on nothing but the sample."""

from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image

from data import SceneParse150
from data.transforms import ColorJitter, mix, sample_generator

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
