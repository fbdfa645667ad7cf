"""The image processor: to the bit what transformers' PIL processor makes of photos and label maps, from any config."""

import io
import json
import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from libraries import pil_processor, transformers
from orientations import ORIENTATION, UPRIGHT
from PIL import Image

from data import SceneParse150
from segformer import ImageProcessor
from segformer.photos import open_photo

CONFIG_NAME = "preprocessor_config.json"
SIZES = [(7, 5), (17, 31), (64, 101), (2, 50), (401, 600), (1, 9)]  # (height, width)


def random_pair(seed: int, height: int, width: int) -> tuple[Image.Image, Image.Image]:
    rng = np.random.default_rng(seed)
    photo = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(photo), Image.fromarray(rng.integers(0, 256, (height, width), dtype=np.uint8))


def of_transformers(photo: Image.Image, label_map: Image.Image, **settings: Any) -> tuple[torch.Tensor, torch.Tensor]:
    batch = pil_processor.SegformerImageProcessorPil(**settings)(
        photo, label_map, input_data_format="channels_last", return_tensors="pt"
    )
    return batch["pixel_values"][0], batch["labels"][0]


def write_config(folder: Path, entries: object) -> Path:
    (folder / CONFIG_NAME).write_text(json.dumps(entries))
    return folder


# Against transformers


@pytest.mark.real_data
@pytest.mark.parametrize("do_reduce_labels", [True, False])
def test_real_pairs_become_the_tensors_of_transformers_to_the_bit(real_shards: Path, do_reduce_labels: bool) -> None:
    processor = ImageProcessor(do_reduce_labels=do_reduce_labels)
    dataset = SceneParse150(real_shards, "validation+train[:4]")
    for i in range(len(dataset)):
        photo, label_map = dataset[i]
        images, labels = processor(photo, label_map)
        expected_images, expected_labels = of_transformers(photo, label_map, do_reduce_labels=do_reduce_labels)
        assert (images.dtype, labels.dtype) == (expected_images.dtype, expected_labels.dtype)
        assert torch.equal(images, expected_images), dataset.name(i)
        assert torch.equal(labels, expected_labels), dataset.name(i)


@pytest.mark.parametrize("do_reduce_labels", [True, False])
@pytest.mark.parametrize("size", [(512, 512), (37, 64)])
def test_random_pairs_of_odd_sizes_become_the_tensors_of_transformers_to_the_bit(
    size: tuple[int, int], do_reduce_labels: bool
) -> None:
    processor = ImageProcessor(size=size, do_reduce_labels=do_reduce_labels)
    settings = {"size": {"height": size[0], "width": size[1]}, "do_reduce_labels": do_reduce_labels}
    for seed, (height, width) in enumerate(SIZES):
        photo, label_map = random_pair(seed, height, width)
        images, labels = processor(photo, label_map)
        expected_images, expected_labels = of_transformers(photo, label_map, **settings)
        assert torch.equal(images, expected_images), (height, width)
        assert torch.equal(labels, expected_labels), (height, width)


@pytest.mark.parametrize(
    "settings",
    [
        {"do_resize": False},
        {"do_rescale": False},
        {"do_normalize": False},
        {"do_rescale": False, "do_normalize": False},
        {"do_resize": False, "do_rescale": False, "do_normalize": False},
        {"rescale_factor": 1 / 127.5},
        {"image_mean": (0.5, 0.4, 0.3), "image_std": (0.5, 0.25, 2.0)},
        {"resample": 0},
        {"resample": 1},
        {"resample": 3},
    ],
    ids=str,
)
def test_every_setting_means_what_it_means_in_transformers(settings: dict[str, Any]) -> None:
    photo, label_map = random_pair(5, 41, 29)
    images, labels = ImageProcessor(**{"size": (64, 48), **settings})(photo, label_map)
    expected_images, expected_labels = of_transformers(
        photo, label_map, do_reduce_labels=True, size={"height": 64, "width": 48}, **settings
    )
    assert images.dtype == torch.float32
    assert torch.equal(images, expected_images.float())
    assert torch.equal(labels, expected_labels)


def test_every_value_of_a_label_is_reduced_as_in_transformers() -> None:
    label_map = Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16))
    photo = Image.new("RGB", label_map.size)
    _, labels = ImageProcessor(do_resize=False)(photo, label_map)
    assert labels.flatten().tolist() == [255, *range(254), 255]
    assert torch.equal(labels, of_transformers(photo, label_map, do_resize=False, do_reduce_labels=True)[1])


def test_a_saved_config_opens_in_transformers_with_the_same_tensors(tmp_path: Path) -> None:
    processor = ImageProcessor(size=(48, 80), image_mean=(0.5, 0.4, 0.3), resample=3)
    processor.save_pretrained(tmp_path)
    photo, label_map = random_pair(1, 33, 21)
    images, labels = processor(photo, label_map)
    opened = transformers.AutoImageProcessor.from_pretrained(tmp_path, backend="pil")
    expected = opened(photo, label_map, return_tensors="pt")
    assert torch.equal(images, expected["pixel_values"][0])
    assert torch.equal(labels, expected["labels"][0])


def test_a_config_that_transformers_saved_opens_with_the_same_tensors(tmp_path: Path) -> None:
    reference = pil_processor.SegformerImageProcessorPil(
        do_reduce_labels=True, size={"height": 40, "width": 56}, resample=1
    )
    reference.save_pretrained(tmp_path)
    photo, label_map = random_pair(2, 33, 21)
    images, labels = ImageProcessor.from_pretrained(tmp_path)(photo, label_map)
    expected = reference(photo, label_map, return_tensors="pt")
    assert torch.equal(images, expected["pixel_values"][0])
    assert torch.equal(labels, expected["labels"][0])


# One and many


def test_a_list_gives_the_tensors_of_its_members_stacked() -> None:
    processor = ImageProcessor(size=(32, 24))
    photos, label_maps = zip(*(random_pair(seed, *size) for seed, size in enumerate(SIZES)), strict=True)
    images, labels = processor(photos, label_maps)
    assert images.shape == (len(SIZES), 3, 32, 24)
    for i, (photo, label_map) in enumerate(zip(photos, label_maps, strict=True)):
        one_image, one_labels = processor(photo, label_map)
        assert torch.equal(images[i], one_image)
        assert torch.equal(labels[i], one_labels)


def test_without_label_maps_there_are_no_labels() -> None:
    photo, _ = random_pair(0, 9, 9)
    assert ImageProcessor()(photo)[1] is None
    assert ImageProcessor()([photo, photo])[1] is None


@pytest.mark.parametrize(("photos", "label_maps"), [(2, 1), (1, 2), (0, 0), (0, None), (2, "one"), ("one", 1)], ids=str)
def test_photos_and_label_maps_that_do_not_pair_up_are_refused(photos: int | str, label_maps: int | str | None) -> None:
    photo, label_map = random_pair(0, 9, 9)
    given = photo if photos == "one" else [photo] * int(photos)
    maps = None if label_maps is None else label_map if label_maps == "one" else [label_map] * int(label_maps)
    with pytest.raises(ValueError, match="label map"):
        ImageProcessor()(given, maps)


@pytest.mark.parametrize("do_resize", [True, False])
def test_a_label_map_of_another_size_is_refused_by_both_sizes(do_resize: bool) -> None:
    photo, _ = random_pair(0, 9, 12)
    _, label_map = random_pair(0, 12, 9)
    with pytest.raises(ValueError, match=r"\(12, 9\) but its label map \(9, 12\)"):
        ImageProcessor(do_resize=do_resize)(photo, label_map)


@pytest.mark.parametrize("mode", ["RGB", "LA"])
def test_a_label_map_of_several_channels_is_refused_by_mode(mode: str) -> None:
    with pytest.raises(ValueError, match=f"mode {mode}"):
        ImageProcessor()(Image.new("RGB", (4, 4)), Image.new(mode, (4, 4)))


# Modes and orientations


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "HSV", "LAB"])
def test_a_photo_of_any_mode_is_treated_as_its_rgb(mode: str) -> None:
    rgb = random_pair(0, 9, 12)[0]
    photo = rgb.convert("P").convert("PA") if mode == "PA" else Image.new(mode, rgb.size)
    if mode in ("1", "L", "LA", "P", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "HSV"):
        photo = rgb.convert(mode)
    assert photo.mode == mode
    processor = ImageProcessor(size=(16, 16))
    assert torch.equal(processor.image_to_tensor(photo), processor.image_to_tensor(photo.convert("RGB")))


@pytest.mark.parametrize("kind", [np.uint16, np.int32])
def test_a_sixteen_bit_photo_keeps_its_upper_eight_bits(kind: type) -> None:
    upper = np.random.default_rng(0).integers(0, 256, (9, 12), dtype=np.uint8)
    photo = Image.fromarray((upper.astype(kind) << 8) + 200)
    assert photo.mode.startswith("I")
    processor = ImageProcessor()
    assert torch.equal(processor.image_to_tensor(photo), processor.image_to_tensor(Image.fromarray(upper)))


def test_a_palette_label_map_is_read_by_value() -> None:
    photo, label_map = random_pair(0, 9, 12)
    coloured = label_map.copy()
    coloured.putpalette(bytes(reversed(range(256))) * 3)
    assert coloured.mode == "P"
    assert torch.equal(ImageProcessor()(photo, coloured)[1], ImageProcessor()(photo, label_map)[1])


@pytest.mark.parametrize("size", [(0, 5), (5, 0), (0, 0)])
def test_a_photo_without_pixels_is_refused_by_size(size: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match=re.escape(f"image is {size}")):
        ImageProcessor()(Image.new("RGB", size))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_open_photo_stands_a_photo_upright(orientation: int, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    Image.fromarray(pixels).save(tmp_path / "photo.png", exif=exif)
    photo = open_photo(tmp_path / "photo.png")
    assert photo.mode == "RGB"
    assert np.array_equal(np.asarray(photo), UPRIGHT[orientation](pixels))


def test_open_photo_stands_a_photo_upright_whose_exif_has_a_mistyped_entry(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    exif[0x010F] = "maker"
    stream = io.BytesIO()
    random_pair(0, 4, 6)[0].save(stream, "JPEG", exif=exif)
    encoded = stream.getvalue()
    assert b"\x01\x0f\x00\x02" in encoded  # the entry and its type, text
    path = tmp_path / "photo.jpg"
    path.write_bytes(encoded.replace(b"\x01\x0f\x00\x02", b"\x01\x03\x00\x02"))  # another entry, which is a number
    assert np.array_equal(np.asarray(open_photo(path)), UPRIGHT[6](np.asarray(Image.open(stream))))


@pytest.mark.parametrize("content", [b"", b"no picture", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0"])
def test_open_photo_refuses_what_is_no_picture_by_name(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").write_bytes(content)
    with pytest.raises(ValueError, match=r"photo\.jpg is not a readable image"):
        open_photo(tmp_path / "photo.jpg")


def test_open_photo_refuses_a_truncated_picture_by_name(tmp_path: Path) -> None:
    path = tmp_path / "photo.jpg"
    random_pair(0, 64, 64)[0].save(path)
    path.write_bytes(path.read_bytes()[:900])
    with pytest.raises(ValueError, match=r"photo\.jpg is not a readable image"):
        open_photo(path)


def test_open_photo_misses_a_file_by_name(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"gone\.jpg"):
        open_photo(tmp_path / "gone.jpg")


# Configs


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"size": (48, 64)},
        {"do_reduce_labels": False},
        {"do_resize": False, "do_rescale": False, "do_normalize": False},
        {"resample": 3, "rescale_factor": 0.5, "image_mean": (0.1, 0.2, 0.3), "image_std": (1.0, 2.0, 3.0)},
    ],
    ids=str,
)
def test_what_is_saved_is_what_is_loaded(settings: dict[str, Any], tmp_path: Path) -> None:
    processor = ImageProcessor(**settings)
    processor.save_pretrained(tmp_path / "new" / "folder")
    assert ImageProcessor.from_pretrained(tmp_path / "new" / "folder") == processor


@pytest.mark.real_data
def test_the_published_configs_of_old_form_are_read(ade_checkpoint: Path, encoder_checkpoint: Path) -> None:
    assert ImageProcessor.from_pretrained(ade_checkpoint) == ImageProcessor(do_reduce_labels=True)
    assert ImageProcessor.from_pretrained(encoder_checkpoint) == ImageProcessor(do_reduce_labels=False)


@pytest.mark.parametrize(("size", "expected"), [(64, (64, 64)), ({"height": 48, "width": 64}, (48, 64))], ids=str)
def test_a_size_is_one_number_or_height_and_width(size: object, expected: tuple[int, int], tmp_path: Path) -> None:
    assert ImageProcessor.from_pretrained(write_config(tmp_path, {"size": size})).size == expected


@pytest.mark.parametrize(
    ("entries", "reduces"),
    [
        ({}, False),
        ({"reduce_labels": True}, True),
        ({"reduce_labels": False}, False),
        ({"do_reduce_labels": True}, True),
        ({"do_reduce_labels": True, "reduce_labels": False}, True),
        ({"do_reduce_labels": False, "reduce_labels": True}, False),
    ],
    ids=str,
)
def test_do_reduce_labels_wins_over_its_older_name(entries: dict[str, bool], reduces: bool, tmp_path: Path) -> None:
    assert ImageProcessor.from_pretrained(write_config(tmp_path, entries)).do_reduce_labels is reduces


def test_entries_that_are_null_or_unknown_change_nothing(tmp_path: Path) -> None:
    entries = {"size": None, "image_mean": None, "crop_size": {"height": 9, "width": 9}, "do_reduce_labels": True}
    assert ImageProcessor.from_pretrained(write_config(tmp_path, entries)) == ImageProcessor()


def test_a_step_that_is_null_is_left_out_as_in_transformers(tmp_path: Path) -> None:
    for name in ("do_resize", "do_rescale", "do_normalize"):
        entries = {name: None, "size": [24, 32], "image_mean": 0.5, "image_std": [0.2, 0.3, 0.4]}
        ours = ImageProcessor.from_pretrained(write_config(tmp_path, entries))
        assert getattr(ours, name) is False
        assert (ours.size, ours.image_mean) == ((24, 32), (0.5,) * 3)
        theirs = pil_processor.SegformerImageProcessorPil.from_pretrained(tmp_path)
        photo = Image.fromarray(np.random.default_rng(0).integers(0, 256, (24, 32, 3), np.uint8))
        expected = theirs(photo, return_tensors="pt")["pixel_values"][0]
        assert torch.equal(ours.image_to_tensor(photo), expected.float())


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("size", -1),
        ("size", 0),
        ("size", "512"),
        ("size", [512]),
        ("size", True),
        ("size", 51.2),
        ("size", {"height": "512", "width": "512"}),
        ("size", {"height": 512}),
        ("size", {"height": 512, "width": -1}),
        ("size", {"height": 512, "width": None}),
        ("size", {"shortest_edge": 512}),
        ("image_mean", [0.5, 0.5]),
        ("image_mean", "half"),
        ("image_mean", ["a", "b", "c"]),
        ("image_std", [0.5, 0.5, 0.5, 0.5]),
        ("image_std", [0.2, 0.0, 0.2]),
        ("image_std", [0.2, -0.1, 0.2]),
        ("resample", 9),
        ("resample", -1),
        ("resample", "bilinear"),
        ("rescale_factor", "1/255"),
        ("do_reduce_labels", "false"),
        ("do_resize", "no"),
    ],
    ids=str,
)
def test_a_value_that_breaks_a_rule_is_refused_by_file_and_field(field: str, value: object, tmp_path: Path) -> None:
    write_config(tmp_path, {field: value})
    with pytest.raises(ValueError, match=re.escape(str(tmp_path / CONFIG_NAME)) + f".*{field}"):
        ImageProcessor.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    "content", [b"[]", b'"text"', b"null", b"", b"{", b"\xff\xfe\x00{}", b"[" * 100_000], ids=lambda c: repr(c[:6])
)
def test_a_config_that_is_no_json_object_is_refused_by_file(content: bytes, tmp_path: Path) -> None:
    (tmp_path / CONFIG_NAME).write_bytes(content)
    with pytest.raises(ValueError, match=re.escape(str(tmp_path / CONFIG_NAME))):
        ImageProcessor.from_pretrained(tmp_path)


def test_a_folder_without_a_model_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=re.escape(f"no {CONFIG_NAME} in folder {tmp_path}")):
        ImageProcessor.from_pretrained(tmp_path)


@pytest.mark.parametrize("named", ["folder", "file"])
def test_a_model_without_a_config_gets_what_transformers_does_without_and_says_so(
    named: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"")
    with caplog.at_level(logging.WARNING, "segformer"):
        found = ImageProcessor.from_pretrained(tmp_path / ("model.safetensors" if named == "file" else ""))
    theirs = pil_processor.SegformerImageProcessorPil()
    assert found == ImageProcessor.from_dict(theirs.to_dict())
    (line,) = caplog.messages
    assert line.startswith(f"no {CONFIG_NAME} in ")
    assert "512 x 512" in line
    assert "labels as they are" in line


def test_a_weights_file_takes_the_config_beside_it(tmp_path: Path) -> None:
    ImageProcessor(size=(48, 64)).save_pretrained(tmp_path)
    (tmp_path / "alone.pth").write_bytes(b"")
    assert ImageProcessor.from_pretrained(tmp_path / "alone.pth") == ImageProcessor(size=(48, 64))


@pytest.mark.parametrize(
    "changes",
    [
        {"do_reduce_labels": True},
        {"reduce_labels": True},
        {"size": 64},
        {"size": (48, 64)},
        {"size": {"height": 48, "width": 64}},
        {"image_mean": [0.5, 0.5, 0.5]},
        {"resample": Image.Resampling.BICUBIC},
    ],
    ids=str,
)
def test_changes_replace_what_the_file_says(changes: dict[str, Any], tmp_path: Path) -> None:
    saved = ImageProcessor(do_reduce_labels=False, size=(32, 32))
    saved.save_pretrained(tmp_path)
    renamed = {"do_reduce_labels" if name == "reduce_labels" else name: value for name, value in changes.items()}
    expected = saved.to_dict() | renamed
    assert ImageProcessor.from_pretrained(tmp_path, **changes) == ImageProcessor.from_dict(expected) != saved


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"do_reduce_label": True}, "ImageProcessor has no do_reduce_label; did you mean do_reduce_labels?"),
        ({"use_fast": True}, "ImageProcessor has no use_fast; it has do_resize"),
        ({"do_resize": 1}, "do_resize is 1; it must be true or false"),
    ],
    ids=str,
)
def test_a_change_that_is_none_is_refused_by_name(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    ImageProcessor().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=re.escape(message)):
        ImageProcessor.from_pretrained(tmp_path, **changes)


# Photos and label maps of every form


FORMS: dict[str, Callable[[Image.Image, Path], Any]] = {
    "text": lambda image, path: str(path),
    "path": lambda image, path: path,
    "bytes": lambda image, path: path.read_bytes(),
    "array": lambda image, path: np.asarray(image),
    "tensor": lambda image, path: torch.from_numpy(np.array(image)).permute(2, 0, 1),
}


@pytest.mark.parametrize("form", FORMS)
def test_a_photo_of_any_form_becomes_the_tensor_of_its_pixels(form: str, tmp_path: Path) -> None:
    photo, _ = random_pair(0, 17, 31)
    photo.save(tmp_path / "photo.png")
    processor = ImageProcessor()
    assert torch.equal(processor(FORMS[form](photo, tmp_path / "photo.png"))[0], processor(photo)[0])


def test_photos_of_any_form_may_share_a_list(tmp_path: Path) -> None:
    photo, _ = random_pair(0, 17, 31)
    photo.save(tmp_path / "photo.png")
    several = [make(photo, tmp_path / "photo.png") for make in FORMS.values()]
    images, _ = ImageProcessor()(several)
    assert torch.equal(images, ImageProcessor()([photo] * len(several))[0])


@pytest.mark.parametrize("form", ["text", "path", "array", "tensor"])
@pytest.mark.parametrize("kind", ["uint8", "int64"])
def test_a_label_map_of_any_form_becomes_the_labels_of_its_values(form: str, kind: str, tmp_path: Path) -> None:
    photo, label_map = random_pair(0, 17, 31)
    label_map.save(tmp_path / "labels.png")
    values = np.asarray(label_map).astype(kind)
    given = {"array": values, "tensor": torch.from_numpy(values)}.get(
        form, FORMS["text"](None, tmp_path / "labels.png")
    )
    processor = ImageProcessor()
    assert torch.equal(processor(photo, given)[1], processor(photo, label_map)[1])


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.zeros((17, 31)), r"label map is \(17, 31\) float64; it must be \(H, W\) integers"),
        (np.zeros((17, 31, 3), np.uint8), r"label map is \(17, 31, 3\) uint8"),
        (np.full((17, 31), -1), r"label map holds -1 to -1; class ids are from 0"),
        (torch.zeros(1, 17, 31, dtype=torch.int64), r"label map is \(1, 17, 31\) int64"),
        (7, r"label map is \(\) int64"),
    ],
    ids=lambda each: each if isinstance(each, str) else "",
)
def test_what_is_no_label_map_is_refused_by_what_it_is(labels: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ImageProcessor()(random_pair(0, 17, 31)[0], labels)


def test_a_label_map_that_is_not_there_or_no_picture_is_refused_by_name(tmp_path: Path) -> None:
    photo, _ = random_pair(0, 17, 31)
    with pytest.raises(FileNotFoundError, match=r"no label map .*gone\.png"):
        ImageProcessor()(photo, tmp_path / "gone.png")
    (tmp_path / "text.png").write_text("labels")
    with pytest.raises(ValueError, match=r"text\.png is not a readable label map"):
        ImageProcessor()(photo, tmp_path / "text.png")


@pytest.mark.parametrize(
    "photo", ["gone.jpg", 7, None, np.zeros((5, 5, 3)), {"image": 1}], ids=lambda each: type(each).__name__
)
def test_what_is_no_photo_is_refused(photo: Any) -> None:
    with pytest.raises((ValueError, FileNotFoundError), match="photo"):
        ImageProcessor()(photo)


def test_a_processor_shows_its_steps() -> None:
    assert repr(ImageProcessor()) == (
        "ImageProcessor(resize to 512 x 512 (bilinear); / 255; mean (0.485, 0.456, 0.406), std (0.229, 0.224, 0.225); "
        "labels reduced: 0 to 255, k to k - 1)"
    )


def test_a_processor_does_not_show_the_steps_it_leaves_out() -> None:
    plain = ImageProcessor(do_resize=False, do_rescale=False, do_normalize=False, do_reduce_labels=False)
    assert repr(plain) == "ImageProcessor(labels as they are)"
