"""Augmentation on the device: torchvision's float arithmetic for a whole batch, each image by its own draws."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional

from data import SceneParse150
from data.augmentation.jitter import ColorJitter, sample_generator
from data.augmentation.on_device import AugmentOnDevice
from data.order import NO_ROW, Place
from segformer import ImageProcessor

SEED = 42
STRONG = ColorJitter(0.9, 1.5, 2.0, 0.5)
JITTERED = AugmentOnDevice(ColorJitter(), SEED, 1 / 255, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), reduce_labels=True)
ADJUSTMENTS = (
    functional.adjust_brightness,
    functional.adjust_contrast,
    functional.adjust_saturation,
    functional.adjust_hue,
)


def as_processed(processor: ImageProcessor, jitter: ColorJitter | None = None) -> AugmentOnDevice:
    mean, std = processor.image_mean, processor.image_std
    return AugmentOnDevice(jitter, SEED, processor.rescale_factor, mean, std, processor.do_reduce_labels)


def random_batch(seed: int, count: int, height: int = 11, width: int = 14) -> tuple[Tensor, Tensor, list[Place]]:
    """Noise, of which one image is grey, one black and one white, with every label there may be."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(256, (count, 3, height, width), generator=generator, dtype=torch.uint8)
    images[0] = images[0, :1]
    images[1], images[2] = 0, 255
    labels = torch.randint(151, (count, height, width), generator=generator, dtype=torch.uint8)
    labels[:, 0] = 255
    return images, labels, [(seed, row) for row in range(count)]


def jittered_by_torchvision(image: Tensor, place: Place, jitter: ColorJitter) -> Tensor:
    order, factors = jitter.draw(sample_generator(SEED, *place))
    pixels = image / 255
    for step in order:
        pixels = ADJUSTMENTS[step](pixels, factors[step])
    return pixels


@pytest.mark.parametrize("jitter", [ColorJitter(), STRONG])
def test_a_batch_gets_the_pixels_of_torchvisions_tensor_functions(jitter: ColorJitter) -> None:
    images, labels, places = random_batch(0, 200)
    orders = {tuple(jitter.draw(sample_generator(SEED, *place))[0]) for place in places}
    assert len(orders) == 24
    jittered, _ = replace(JITTERED, jitter=jitter)(images, labels, places)
    for image, place, pixels in zip(images, places, jittered, strict=True):
        torch.testing.assert_close(pixels, jittered_by_torchvision(image, place, jitter), rtol=0, atol=1e-5)


@pytest.mark.real_data
def test_real_photos_differ_from_the_jitter_of_pillow_by_less_than_two_levels_on_average(real_shards: Path) -> None:
    """Each of Pillow's three blends rounds down to a level, half a level on average, and its hues are 256."""
    dataset, processor = SceneParse150(real_shards, "train+validation"), ImageProcessor()
    photos = [dataset[row][0].resize((512, 512), Image.Resampling.BILINEAR) for row in range(len(dataset))]
    images = torch.from_numpy(np.stack([np.asarray(photo) for photo in photos])).permute(0, 3, 1, 2)
    places = [(0, row) for row in range(len(photos))]
    jittered, _ = JITTERED(images, torch.zeros(len(photos), 512, 512, dtype=torch.uint8), places)
    for photo, place, pixels in zip(photos, places, jittered, strict=True):
        by_pillow = ColorJitter()(photo, sample_generator(SEED, *place))
        expected = replace(processor, do_resize=False, do_normalize=False).image_to_tensor(by_pillow)
        assert (pixels - expected).abs().mean() < 2 / 255, place


def test_without_jitter_the_pixels_are_those_of_the_processor() -> None:
    images, labels, places = random_batch(1, 3)
    processor = ImageProcessor(do_resize=False, rescale_factor=0.01, image_mean=(0.1, 0.2, 0.3), image_std=(0.5, 1, 2))
    pixels, _ = as_processed(processor)(images, labels, places)
    photos = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in images]
    torch.testing.assert_close(pixels, torch.stack([processor(photo)[0] for photo in photos]), rtol=0, atol=1e-5)


def test_jittered_pixels_are_normalised_after_the_jitter() -> None:
    images, labels, places = random_batch(2, 8)
    processor = ImageProcessor()
    normalised, _ = as_processed(processor, ColorJitter())(images, labels, places)
    mean, std = (torch.tensor(values)[:, None, None] for values in (processor.image_mean, processor.image_std))
    torch.testing.assert_close(normalised * std + mean, JITTERED(images, labels, places)[0], rtol=0, atol=1e-5)


@pytest.mark.parametrize("reduce_labels", [True, False])
def test_labels_are_those_of_the_processor(reduce_labels: bool) -> None:
    processor = ImageProcessor(do_resize=False, do_reduce_labels=reduce_labels)
    raw = torch.arange(256, dtype=torch.uint8).view(1, 16, 16)
    _, labels = as_processed(processor, ColorJitter())(torch.zeros(1, 3, 16, 16, dtype=torch.uint8), raw, [(0, 0)])
    assert labels.dtype == torch.int64
    assert torch.equal(labels[0], processor.labels_to_tensor(Image.fromarray(raw[0].numpy())))


def test_the_same_batch_gives_the_same_bits() -> None:
    batch = random_batch(3, 6)
    assert torch.equal(JITTERED(*batch)[0], JITTERED(*batch)[0])


def test_a_batch_is_its_images_one_by_one() -> None:
    images, labels, places = random_batch(4, 12)
    together, reduced = JITTERED(images, labels, places)
    for i in range(12):
        pixels, alone = JITTERED(images[i : i + 1], labels[i : i + 1], places[i : i + 1])
        torch.testing.assert_close(pixels[0], together[i], rtol=0, atol=1e-6)  # a mean may be summed in another order
        assert torch.equal(alone[0], reduced[i])


def test_seed_epoch_and_row_each_change_the_pixels() -> None:
    images, labels, _ = random_batch(5, 4)
    images[:] = images[3]
    pixels, _ = JITTERED(images, labels, [(0, 0), (0, 1), (1, 0), (1, 1)])
    other_seed, _ = replace(JITTERED, seed=SEED + 1)(images, labels, [(0, 0), (0, 1), (1, 0), (1, 1)])
    assert len({tuple(one.flatten().tolist()) for one in (*pixels, *other_seed)}) == 8


def test_the_place_that_is_no_row_is_jittered_like_any_other() -> None:
    images, labels, _ = random_batch(6, 3)
    assert torch.isfinite(JITTERED(images, labels, [(0, 5), (0, NO_ROW), (0, NO_ROW)])[0]).all()


def test_what_comes_in_stays_as_it_was() -> None:
    images, labels, places = random_batch(7, 5)
    before = images.clone(), labels.clone()
    JITTERED(images, labels, places)
    assert torch.equal(images, before[0])
    assert torch.equal(labels, before[1])


def test_other_types_shapes_and_numbers_are_refused_by_name() -> None:
    images, labels, places = random_batch(8, 3)
    with pytest.raises(ValueError, match=r"images are torch\.float32 .*; they must be uint8"):
        JITTERED(images.float(), labels, places)
    with pytest.raises(ValueError, match=r"images are torch\.uint8 \(3, 1, 11, 14\); they must be"):
        JITTERED(images[:, :1], labels, places)
    with pytest.raises(ValueError, match=r"labels are torch\.int64 .*; for these images they must be"):
        JITTERED(images, labels.long(), places)
    with pytest.raises(ValueError, match=r"labels are torch\.uint8 \(3, 10, 14\); .* uint8 \(3, 11, 14\)"):
        JITTERED(images, labels[:, 1:], places)
    with pytest.raises(ValueError, match="3 images need as many places, not 2"):
        JITTERED(images, labels, places[1:])


@pytest.mark.gpu
def test_cuda_gives_what_the_cpu_gives() -> None:
    images, labels, places = random_batch(9, 50)
    augment = as_processed(ImageProcessor(), ColorJitter())
    pixels, reduced = augment(images, labels, places)
    on_cuda, reduced_on_cuda = augment(images.cuda(), labels.cuda(), places)
    torch.testing.assert_close(on_cuda.cpu(), pixels, rtol=0, atol=1e-5)
    assert torch.equal(reduced_on_cuda.cpu(), reduced)


@pytest.mark.gpu
def test_the_host_does_not_wait_for_cuda() -> None:
    images, labels, places = random_batch(10, 8)
    augment = as_processed(ImageProcessor(), ColorJitter())
    on_cuda = images.cuda(), labels.cuda()
    torch.cuda.set_sync_debug_mode("error")
    try:
        augment(*on_cuda, places)
    finally:
        torch.cuda.set_sync_debug_mode("default")
