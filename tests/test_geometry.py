"""Where a photo lies in what the model sees: sizes by hand, pixels by PIL alone, and the way back to the photo."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from torch import Tensor
from torch.nn import functional

from segformer import ImageProcessor, Segformer, Segmenter, Views, fullres
from segformer.geometry import Placement, keep_ratio_size, place, unpadded

MODES = ("squash", "keep", "crop")
SHAPES = [(50, 70), (70, 50), (64, 96), (31, 500), (500, 31), (20, 20), (1, 1), (333, 100), (96, 64)]  # height, width


def photo_of(height: int, width: int, seed: int = 0) -> tuple[Image.Image, Image.Image]:
    """A photo of noise with a label map of it: a label is the first channel, of 0 to 6."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, 7, (height, width), dtype=np.uint8)
    others = generator.integers(0, 256, (height, width, 2), dtype=np.uint8)
    return Image.fromarray(np.dstack([labels * 36, others])), Image.fromarray(labels)


# Sizes


@pytest.mark.parametrize(
    ("mode", "size", "height", "width", "expected"),
    [
        ("squash", (64, 96), 50, 70, Placement((64, 96), (64, 96), (64, 96))),
        ("keep", (64, 64), 50, 100, Placement((32, 64), (32, 64), (64, 64))),
        ("keep", (64, 64), 100, 50, Placement((64, 32), (64, 32), (64, 64))),
        ("keep", (64, 64), 20, 20, Placement((64, 64), (64, 64), (64, 64))),
        ("keep", (64, 64), 1, 500, Placement((4, 64), (4, 64), (64, 64))),
        ("keep", (375, 500), 333, 500, Placement((332, 500), (332, 500), (375, 500))),
        ("keep", (375, 500), 375, 499, Placement((375, 500), (375, 500), (375, 500))),
        ("crop", (64, 64), 50, 100, Placement((64, 128), (64, 64), (64, 64), (0, 32))),
        ("crop", (64, 64), 101, 50, Placement((129, 64), (64, 64), (64, 64), (32, 0))),
        ("crop", (64, 96), 20, 20, Placement((96, 96), (64, 96), (64, 96), (16, 0))),
    ],
)
def test_a_photo_lies_where_its_mode_says(
    mode: str, size: tuple[int, int], height: int, width: int, expected: Placement
) -> None:
    assert place(mode, size, width, height) == expected


@pytest.mark.parametrize("mode", MODES)
def test_any_photo_comes_to_the_size(mode: str) -> None:
    generator = np.random.default_rng(0)
    for _ in range(500):
        height, width, *size = (int(side) for side in generator.integers(1, 700, 4))
        placement = place(
            mode, (size[0] + 32, size[1] + 32), width, height, at=(generator.random(), generator.random())
        )
        assert placement.view == (size[0] + 32, size[1] + 32)
        for side in range(2):
            assert 0 < placement.shown[side] <= placement.view[side]
            assert 0 <= placement.corner[side] <= placement.resized[side] - placement.shown[side]
            if placement.shown[side] < placement.view[side]:
                assert placement.shown[side] % 4 == 0
        if mode != "squash" and min(height, width) > 50:
            shapes = [math.log(h / w) for h, w in (placement.resized, (height, width))]
            assert abs(shapes[0] - shapes[1]) < 2.1 / min(placement.resized) * 2


def test_a_crop_reaches_every_place_and_none_beyond() -> None:
    corners = {place("crop", (64, 64), 100, 50, at=(0.0, at / 200)).corner for at in range(200)}
    assert corners == {(0, left) for left in range(65)}


def test_a_whole_photo_follows_its_shape_where_it_would_be_cropped() -> None:
    assert place("crop", (64, 64), 100, 50, whole=True) == Placement.filling((64, 128))
    for mode in ("squash", "keep"):
        assert place(mode, (64, 64), 100, 50, whole=True) == place(mode, (64, 64), 100, 50)


def test_a_photo_that_would_take_all_memory_to_cover_a_size_is_refused() -> None:
    with pytest.raises(ValueError, match="photo is 100000 x 10, which would be 5120000 x 512 to cover 512 x 512; cut"):
        place("crop", (512, 512), 100_000, 10)


@pytest.mark.parametrize(
    ("width", "height", "expected"),
    [
        (683, 512, (512, 704)),
        (512, 683, (704, 512)),
        (500, 375, (512, 704)),
        (640, 480, (512, 704)),
        (512, 512, (512, 512)),
        (4000, 500, (256, 2048)),
        (1, 3000, (2048, 32)),
    ],
)
def test_published_evaluation_sizes_are_multiples_of_32(width: int, height: int, expected: tuple[int, int]) -> None:
    assert keep_ratio_size(width, height, (2048, 512), 32) == expected


# Pixels


def plainly(processor: ImageProcessor, photo: Image.Image, labels: Image.Image) -> tuple[Tensor, Tensor]:
    """The same by PIL's resize and numpy's slices alone."""
    (height, width), mode = processor.size, processor.resize_mode
    scale = (max if mode == "crop" else min)(height / photo.height, width / photo.width)
    if mode == "squash":
        size = (width, height)
    elif mode == "keep":
        size = tuple(
            min(most, max(4, int(side * scale / 4 + 0.5) * 4))
            for side, most in zip(photo.size, (width, height), strict=True)
        )
    else:
        size = tuple(max(most, int(side * scale + 0.5)) for side, most in zip(photo.size, (width, height), strict=True))
    pixels = np.asarray(photo.resize(size, Image.Resampling.BILINEAR))
    raw = np.asarray(labels.resize(size, Image.Resampling.NEAREST))
    top, left = (
        (side - most) // 2 if mode == "crop" else 0 for side, most in zip(raw.shape, (height, width), strict=True)
    )
    pixels, raw = pixels[top : top + height, left : left + width], raw[top : top + height, left : left + width]
    mean, std = (np.array(values, np.float32) for values in (processor.image_mean, processor.image_std))
    normal = ((pixels * (1 / 255)).astype(np.float32) - mean) / std
    images, map_ = np.zeros((height, width, 3), np.float32), np.full((height, width), 255, np.int64)
    images[: raw.shape[0], : raw.shape[1]], map_[: raw.shape[0], : raw.shape[1]] = normal, raw
    return torch.from_numpy(images).permute(2, 0, 1), torch.from_numpy(map_)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("size", [(64, 64), (48, 100), (375, 50)], ids=str)
@pytest.mark.parametrize("mode", MODES)
def test_pixels_and_labels_are_those_of_the_plain_way(mode: str, size: tuple[int, int], shape: tuple[int, int]) -> None:
    processor = ImageProcessor(size=size, resize_mode=mode, do_reduce_labels=False)
    photo, label_map = photo_of(*shape)
    images, labels = processor(photo, label_map)
    expected = plainly(processor, photo, label_map)
    assert torch.equal(images, expected[0])
    assert labels is not None
    assert torch.equal(labels, expected[1])


@pytest.mark.parametrize("mode", MODES)
def test_labels_lie_where_their_photo_does(mode: str) -> None:
    processor = ImageProcessor(size=(64, 96), resize_mode=mode, resample=0, do_normalize=False, do_reduce_labels=False)
    for shape in SHAPES:
        images, labels = processor(*photo_of(*shape))
        assert labels is not None
        inside = labels != 255
        assert torch.equal((images[0] * 255 / 36).round().long()[inside], labels[inside])
        assert not images[:, ~inside].any()
        assert inside.all() or mode == "keep"


@pytest.mark.parametrize("mode", MODES)
def test_the_part_of_a_photo_that_is_seen_is_found_again(mode: str) -> None:
    photo = Image.fromarray(np.arange(100, dtype=np.uint8)[None].repeat(50, 0))
    part = place(mode, (64, 64), 100, 50).part_of(photo)
    assert part.size == ((50, 50) if mode == "crop" else (100, 50))
    assert np.asarray(part)[0].tolist() == (list(range(25, 75)) if mode == "crop" else list(range(100)))


# The way back


@pytest.mark.parametrize("shape", [(50, 100), (100, 50), (37, 53), (20, 20)], ids=str)
@pytest.mark.parametrize(("mode", "size"), [("keep", (64, 64)), ("keep", (62, 100)), ("crop", (64, 64))])
def test_a_photo_is_segmented_at_the_place_it_was_trained_at(
    mode: str, size: tuple[int, int], shape: tuple[int, int], tiny_model: Segformer
) -> None:
    processor = ImageProcessor(size=size, resize_mode=mode)
    photo, _ = photo_of(*shape)
    if mode == "keep":
        height, width = place(mode, size, photo.width, photo.height).shown
        pixels = plainly(processor, photo, photo.convert("L"))[0][None]
    else:
        scale = max(size[0] / shape[0], size[1] / shape[1])
        height, width = (max(least, int(side * scale + 0.5)) for side, least in zip(shape, size, strict=True))
        whole = replace(processor, size=(height, width), resize_mode="squash")
        pixels = whole.image_to_tensor(photo)[None]
    with torch.no_grad():
        logits = tiny_model(pixels)[..., : math.ceil(height / 4), : math.ceil(width / 4)]
    expected = functional.interpolate(logits, shape, mode="bilinear").argmax(1)[0].numpy()
    found = Segmenter(tiny_model, processor, "cpu").label_map(photo)
    assert (found == expected).mean() > 0.999  # a tie of rounding may move a pixel


@pytest.mark.parametrize("mode", MODES)
def test_photos_of_one_batch_are_segmented_as_each_alone(mode: str, tiny_model: Segformer) -> None:
    photos = [photo_of(*shape, seed=seed)[0] for seed, shape in enumerate([(50, 100), (100, 50), (60, 60), (50, 100)])]
    processor = ImageProcessor(size=(64, 64), resize_mode=mode)
    for views in (Views(), Views(flip=True, scales=(1.0, 0.5)), Views(window=32, resize="processor", flip=True)):
        alone = Segmenter(tiny_model, processor, "cpu", views)
        together = Segmenter(tiny_model, processor, "cpu", views, batch_size=4)
        for found, photo in zip(together.label_maps(photos), photos, strict=True):
            assert found.shape == (photo.height, photo.width)
            assert (found == alone.label_map(photo)).mean() > 0.999


def test_padding_has_no_logits_of_its_own() -> None:
    logits = torch.arange(16.0).view(1, 1, 4, 4)
    assert torch.equal(unpadded(logits, (16, 16)), logits)
    assert torch.equal(unpadded(logits, (8, 16)), logits[..., :2, :])
    assert torch.equal(unpadded(logits, (15, 12)), logits[..., :3])
    assert fullres.argmax(unpadded(logits, (8, 4)), (5, 5)).shape == (1, 5, 5)


# Files


@pytest.mark.parametrize("mode", MODES)
def test_the_mode_is_kept_and_transformers_opens_it_and_prepares_photos_of_that_size(mode: str, tmp_path: Path) -> None:
    processor = ImageProcessor(size=(64, 96), resize_mode=mode, label_rule={"num_labels": 3})
    processor.save_pretrained(tmp_path)
    assert ImageProcessor.from_pretrained(tmp_path) == processor
    theirs = transformers.AutoImageProcessor.from_pretrained(tmp_path, use_fast=False)
    photo, _ = photo_of(50, 70)
    pixels = np.asarray(theirs(photo)["pixel_values"][0])
    assert pixels.shape == (3, 64, 96)
    squashed = replace(processor, resize_mode="squash").image_to_tensor(photo)
    assert np.array_equal(pixels, squashed.numpy())  # theirs knows no other way


def test_a_mode_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match="resize_mode is 'stretch'; it is one of squash, keep, crop"):
        ImageProcessor(resize_mode="stretch")


@pytest.mark.parametrize(("mode", "said"), [("keep", "fit into 64 x 96"), ("crop", "cover 64 x 96")])
def test_a_processor_tells_its_mode(mode: str, said: str) -> None:
    assert said in repr(ImageProcessor(size=(64, 96), resize_mode=mode))
