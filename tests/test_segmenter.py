"""The segmenter: the label maps and segments of transformers' image-segmentation pipeline, for photos of any kind."""

import io
import logging
import math
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from libraries import pil_processor, transformers
from PIL import Image
from torch import Tensor

from data import SceneParse150
from data.augmentation.paper import keep_ratio_size
from data.classes import ID2LABEL
from segformer import ConfusionMatrix, ImageProcessor, Segformer, SegformerConfig, Segmenter, fullres
from segformer.pictures import palette
from segformer.views import SlidingLogits, Views, window_starts

REPOSITORY = Path(__file__).resolve().parents[1]
ORIENTATION = 0x0112


class Found(NamedTuple):
    """A real photo and its raw label map, and what the segmenter and the pipeline find in it."""

    photo: Image.Image
    raw_label_map: np.ndarray
    label_map: np.ndarray
    segments: list[dict[str, Any]]
    expected: list[dict[str, Any]]


@pytest.fixture(scope="module")
def real_segmenter(ade_checkpoint: Path) -> Segmenter:
    return Segmenter.from_pretrained(ade_checkpoint, device="cpu")


@pytest.fixture(scope="module")
def reference(ade_checkpoint: Path) -> Any:
    """transformers' pipeline."""
    return transformers.pipeline(
        "image-segmentation",
        model=transformers.SegformerForSemanticSegmentation.from_pretrained(ade_checkpoint),
        image_processor=pil_processor.SegformerImageProcessorPil.from_pretrained(ade_checkpoint),
        device="cpu",
    )


@pytest.fixture(scope="module")
def found(real_segmenter: Segmenter, reference: Any, real_shards: Path) -> list[Found]:
    dataset = SceneParse150(real_shards, "validation")
    results = []
    for i in range(len(dataset)):
        photo, raw = dataset[i]
        label_map = real_segmenter.label_map(photo)
        results.append(Found(photo, np.asarray(raw), label_map, real_segmenter.segments(label_map), reference(photo)))
    return results


@pytest.fixture
def segmenter(tiny_model: Segformer) -> Segmenter:
    """A tiny model whose classes are balanced on a random photo, so that its label maps show several of them.

    Its logits are spread, so that what changes them changes probabilities too.
    """
    processor = ImageProcessor(size=(64, 96))
    with torch.no_grad():
        logits = tiny_model(processor.image_to_tensor(random_photo())[None])
        tiny_model.decoder.classifier.bias -= logits.mean((0, 2, 3))
        for parameter in tiny_model.decoder.classifier.parameters():
            parameter *= 3 / (logits - logits.mean((0, 2, 3), keepdim=True)).std()
    return Segmenter(tiny_model, processor, device="cpu")


def random_photo(seed: int = 0, height: int = 70, width: int = 110) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def map_of(segments: list[dict[str, Any]]) -> np.ndarray:
    """The label map that the pipeline's segments describe."""
    ids = {label: k for k, label in ID2LABEL.items()}
    label_map = np.full(np.asarray(segments[0]["mask"]).shape, -1)
    for segment in segments:
        label_map[np.asarray(segment["mask"]) == 255] = ids[segment["label"]]
    return label_map


@pytest.mark.real_data
def test_real_label_maps_equal_the_pipelines(found: list[Found]) -> None:
    # Of 99.99 %: where two classes tie, the last float32 bit of a sum decides.
    for one in found:
        assert one.label_map.shape == (one.photo.height, one.photo.width)
        assert (one.label_map == map_of(one.expected)).mean() > 0.9999


@pytest.mark.real_data
def test_real_segments_are_those_of_the_pipeline(found: list[Found]) -> None:
    for one in found:
        assert [segment["label"] for segment in one.segments] == [segment["label"] for segment in one.expected]
        for segment, expected in zip(one.segments, one.expected, strict=True):
            assert segment.keys() == expected.keys()
            assert segment["score"] is expected["score"] is None
            assert (segment["mask"].mode, segment["mask"].size) == (expected["mask"].mode, expected["mask"].size)
            differing = np.asarray(segment["mask"]) != np.asarray(expected["mask"])
            assert differing.mean() < 0.0001, segment["label"]


@pytest.mark.real_data
def test_real_validation_photos_are_understood(found: list[Found]) -> None:
    matrix = ConfusionMatrix(150)
    for one in found:
        matrix.update(one.label_map, ImageProcessor().reduce_labels(one.raw_label_map))
    scores = matrix.scores()
    assert scores.overall_accuracy > 0.7
    assert scores.mean_iou > 0.3


def png_bytes(photo: Image.Image) -> bytes:
    stream = io.BytesIO()
    photo.save(stream, "PNG")
    return stream.getvalue()


def png_file(photo: Image.Image, folder: Path) -> Path:
    photo.save(folder / "photo.png")
    return folder / "photo.png"


FORMS: dict[str, Callable[[Image.Image, Path], Any]] = {
    "PIL image": lambda photo, folder: photo,
    "path": png_file,
    "path as text": lambda photo, folder: str(png_file(photo, folder)),
    "bytes": lambda photo, folder: png_bytes(photo),
    "array": lambda photo, folder: np.asarray(photo),
    "array with alpha": lambda photo, folder: np.asarray(photo.convert("RGBA")),
    "array of another memory order": lambda photo, folder: np.asfortranarray(np.asarray(photo)),
    "tensor": lambda photo, folder: torch.from_numpy(np.array(photo)).permute(2, 0, 1),
}


@pytest.mark.real_data
@pytest.mark.parametrize("form", FORMS)
def test_real_photos_of_every_form_give_the_pipelines_label_map(
    form: str, found: list[Found], real_segmenter: Segmenter, tmp_path: Path
) -> None:
    for one in found[:3]:
        label_map = real_segmenter.label_map(FORMS[form](one.photo, tmp_path))
        assert (label_map == map_of(one.expected)).mean() > 0.9999


@pytest.mark.real_data
def test_a_real_grey_array_gives_the_pipelines_label_map(
    found: list[Found], real_segmenter: Segmenter, reference: Any
) -> None:
    grey = found[0].photo.convert("L")
    expected = map_of(reference(grey.convert("RGB")))
    assert (real_segmenter.label_map(np.asarray(grey)) == expected).mean() > 0.9999


@pytest.mark.real_data
def test_a_real_batch_equals_its_photos(found: list[Found], ade_checkpoint: Path) -> None:
    segmenter = Segmenter.from_pretrained(ade_checkpoint, device="cpu", batch_size=4)
    for label_map, one in zip(segmenter.label_maps([one.photo for one in found]), found, strict=True):
        assert (label_map == one.label_map).mean() > 0.9999


@pytest.mark.real_data
def test_real_scores_are_the_mean_softmax_of_a_segments_pixels(found: list[Found], real_segmenter: Segmenter) -> None:
    for one in found[:2]:
        with torch.no_grad():
            logits = real_segmenter.model(real_segmenter.processor.image_to_tensor(one.photo)[None])
        enlarged = F.interpolate(logits, one.label_map.shape, mode="bilinear").softmax(1)[0]
        for segment in real_segmenter(one.photo, scores=True):
            k = {name: k for k, name in ID2LABEL.items()}[segment["label"]]
            expected = enlarged[k][torch.from_numpy(np.asarray(segment["mask"]) == 255)].double().mean()
            assert segment["score"] == pytest.approx(expected.item(), abs=1e-5)


@pytest.mark.real_data
def test_real_photos_are_understood_in_windows_and_at_their_own_shape(found: list[Found], ade_checkpoint: Path) -> None:
    for views in (Views(resize="keep-ratio", flip=True), Views(window=256, resize="keep-ratio")):
        segmenter = Segmenter.from_pretrained(ade_checkpoint, device="cpu", views=views)
        matrix = ConfusionMatrix(150)
        for one in found:
            truth = ImageProcessor().reduce_labels(one.raw_label_map)
            matrix.update(segmenter.label_map(one.photo), truth)
        assert matrix.scores().overall_accuracy > 0.7


def every_class(segmenter: Segmenter, rows: int = 3) -> tuple[np.ndarray, list[dict[str, Any]]]:
    label_map = np.tile(np.arange(segmenter.model.config.num_labels, dtype=np.uint8), (rows, 1))
    return label_map, segmenter.segments(label_map)


@pytest.mark.real_data
def test_labels_are_spelled_as_in_the_checkpoint(real_segmenter: Segmenter) -> None:
    _, segments = every_class(real_segmenter)
    assert [segment["label"] for segment in segments] == list(ID2LABEL.values())
    assert segments[7]["label"] == "bed "  # with its space


def test_masks_are_disjoint_and_cover_the_photo(segmenter: Segmenter) -> None:
    for label_map, segments in (every_class(segmenter), (None, segmenter(random_photo()))):
        masks = np.stack([np.asarray(segment["mask"]) for segment in segments])
        assert set(np.unique(masks)) <= {0, 255}
        assert (np.count_nonzero(masks, axis=0) == 1).all()
        assert masks.any(axis=(1, 2)).all()
        assert label_map is None or np.array_equal((masks == 255).argmax(0), label_map)


def test_segments_come_in_ascending_class_id(segmenter: Segmenter) -> None:
    segments = segmenter.segments(np.array([[5, 0], [6, 2]], dtype=np.uint8))
    assert [segment["label"] for segment in segments] == [segmenter.model.config.id2label[k] for k in (0, 2, 5, 6)]


def test_a_random_photo_shows_several_classes(segmenter: Segmenter) -> None:
    assert len(segmenter(random_photo())) > 3  # or the comparisons of this file would compare little


def test_calling_the_segmenter_gives_the_segments_of_its_label_map(segmenter: Segmenter) -> None:
    photo = random_photo()
    expected = segmenter.segments(segmenter.label_map(photo))
    assert [(s["label"], s["mask"].tobytes()) for s in segmenter(photo)] == [
        (s["label"], s["mask"].tobytes()) for s in expected
    ]


def test_a_label_map_is_the_class_of_the_enlarged_logits(segmenter: Segmenter) -> None:
    photo = random_photo()
    with torch.no_grad():
        logits = segmenter.model(segmenter.processor.image_to_tensor(photo)[None])
    upsampled = torch.nn.functional.interpolate(logits, (photo.height, photo.width), mode="bilinear")
    assert np.array_equal(segmenter.label_map(photo), upsampled.argmax(1)[0].numpy())


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (300, 1), (64, 96), (511, 3), (600, 333)])
def test_a_label_map_has_the_size_of_its_photo(size: tuple[int, int], segmenter: Segmenter) -> None:
    label_map = segmenter.label_map(random_photo(0, *size))
    assert (label_map.shape, label_map.dtype) == (size, np.uint8)


@pytest.mark.parametrize(("num_labels", "kind"), [(1, np.uint8), (256, np.uint8), (257, np.uint16)])
def test_a_label_map_takes_the_smallest_type_that_holds_its_classes(num_labels: int, kind: type) -> None:
    config = SegformerConfig(
        depths=(1, 1, 1, 1),
        hidden_sizes=(8, 8, 8, 8),
        num_attention_heads=(1, 1, 1, 1),
        decoder_hidden_size=8,
        num_labels=num_labels,
    )
    segmenter = Segmenter(Segformer(config), ImageProcessor(size=(32, 32)), device="cpu")
    assert segmenter.label_map(random_photo(0, 9, 9)).dtype == kind


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "YCbCr"])
def test_a_photo_of_any_mode_gives_the_label_map_of_its_rgb(mode: str, segmenter: Segmenter) -> None:
    photo = random_photo().convert(mode)
    assert np.array_equal(segmenter.label_map(photo), segmenter.label_map(photo.convert("RGB")))


@pytest.mark.parametrize("kind", [str, Path])
def test_a_path_gives_the_label_map_of_its_photo(kind: type, segmenter: Segmenter, tmp_path: Path) -> None:
    random_photo().save(tmp_path / "photo.png")
    assert np.array_equal(segmenter.label_map(kind(tmp_path / "photo.png")), segmenter.label_map(random_photo()))


@pytest.fixture(params=["path", "opened"])
def rotated(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path | Image.Image]:
    """A photo stored on its side, as a path and as an image that was just opened."""
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    random_photo().save(tmp_path / "photo.png", exif=exif)
    if request.param == "path":
        yield tmp_path / "photo.png"
    else:
        with Image.open(tmp_path / "photo.png") as photo:
            yield photo


def test_a_photo_stored_on_its_side_is_segmented_upright(rotated: Path | Image.Image, segmenter: Segmenter) -> None:
    upright = random_photo().transpose(Image.Transpose.ROTATE_270)
    assert np.array_equal(segmenter.label_map(rotated), segmenter.label_map(upright))


def test_a_photo_is_left_as_it_was(segmenter: Segmenter) -> None:
    photo = random_photo()
    segmenter(photo)
    assert photo.tobytes() == random_photo().tobytes()


def test_segmenting_prints_nothing(segmenter: Segmenter, capfd: pytest.CaptureFixture[str]) -> None:
    segmenter(random_photo())
    assert capfd.readouterr() == ("", "")


def test_a_model_in_training_mode_is_put_to_use_in_evaluation_mode(tiny_model: Segformer) -> None:
    segmenter = Segmenter(tiny_model.train(), ImageProcessor(size=(64, 96)), device="cpu")
    assert not any(module.training for module in segmenter.model.modules())


def test_a_model_that_is_being_trained_is_looked_at_without_being_touched(tiny_model: Segformer) -> None:
    segmenter = Segmenter(tiny_model, ImageProcessor(size=(64, 96)), device="cpu", views=Views(flip=True))
    expected = segmenter.label_map(random_photo())
    tiny_model.train().encoder.stages[0].eval()
    modes = [module.training for module in tiny_model.modules()]
    weights = {name: value.clone() for name, value in tiny_model.state_dict().items()}
    assert np.array_equal(segmenter.label_map(random_photo()), expected)
    assert modes == [module.training for module in tiny_model.modules()]
    assert all(torch.equal(value, weights[name]) for name, value in tiny_model.state_dict().items())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("views", [Views(), Views(window=64)])
def test_a_model_of_another_precision_is_given_photos_of_its_own(
    dtype: torch.dtype, views: Views, tiny_model: Segformer
) -> None:
    expected = Segmenter(tiny_model, ImageProcessor(size=(64, 96)), device="cpu", views=views).label_map(random_photo())
    segmenter = Segmenter(tiny_model.to(dtype), ImageProcessor(size=(64, 96)), device="cpu", views=views)
    assert (segmenter.label_map(random_photo()) == expected).mean() > 0.95


@pytest.mark.parametrize(
    "photo", ["photo.jpg", Path("photo.jpg"), b"photo", Image.new("RGB", (9, 9)), np.zeros((9, 9))]
)
def test_one_photo_is_not_taken_apart_where_several_are_asked_for(photo: object, segmenter: Segmenter) -> None:
    for ask in (segmenter.predict, segmenter.label_maps):
        with pytest.raises(ValueError, match=r"photos is one \w+; it must be a list of photos, such as \[photo\]"):
            ask(photo)  # type: ignore[operator]


@pytest.mark.parametrize("opacity", [-0.1, 1.1, 50, float("nan")])
def test_an_opacity_that_is_none_is_refused(opacity: float, segmenter: Segmenter) -> None:
    with pytest.raises(ValueError, match=r"opacity is .*; it must be from 0 \(the photo\) to 1"):
        segmenter.overlay(random_photo(), opacity)


def test_what_is_saved_is_what_is_loaded(segmenter: Segmenter, tmp_path: Path) -> None:
    segmenter.model.save_pretrained(tmp_path)
    segmenter.processor.save_pretrained(tmp_path)
    loaded = Segmenter.from_pretrained(tmp_path, device="cpu")
    assert np.array_equal(loaded.label_map(random_photo()), segmenter.label_map(random_photo()))


def test_a_segmenter_saves_what_it_needs(segmenter: Segmenter, tmp_path: Path) -> None:
    segmenter.save_pretrained(tmp_path / "new")
    loaded = Segmenter.from_pretrained(tmp_path / "new", device="cpu")
    assert loaded.processor == segmenter.processor
    assert np.array_equal(loaded.label_map(random_photo()), segmenter.label_map(random_photo()))


@pytest.mark.parametrize("opacity", [0.0, 0.5, 1.0])
def test_an_overlay_is_the_photo_tinted_by_class(opacity: float, segmenter: Segmenter) -> None:
    photo = random_photo()
    colours = palette(7)[segmenter.label_map(photo)].astype(float)
    expected = (1 - opacity) * np.asarray(photo) + opacity * colours
    assert np.abs(np.asarray(segmenter.overlay(photo, opacity)) - expected).max() <= 1  # PIL's rounding


def test_an_overlay_of_a_photo_stored_on_its_side_is_upright(rotated: Path | Image.Image, segmenter: Segmenter) -> None:
    upright = random_photo().transpose(Image.Transpose.ROTATE_270)
    assert np.array_equal(segmenter.overlay(rotated), segmenter.overlay(upright))


def test_a_segmenter_shows_its_model_device_views_and_processor(segmenter: Segmenter) -> None:
    assert repr(segmenter).startswith("Segmenter(SegformerConfig(depths=(1, 2, 1, 1), ")
    assert ", on cpu, Views(" in repr(segmenter)
    assert repr(segmenter.processor) in repr(segmenter)


def test_a_model_without_a_processor_sees_photos_as_transformers_shows_them(
    tiny_model: Segformer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tiny_model.save_pretrained(tmp_path)
    with caplog.at_level(logging.WARNING, "segformer"):
        loaded = Segmenter.from_pretrained(tmp_path, device="cpu")
    (line,) = caplog.messages
    assert re.search(rf"no preprocessor_config\.json in folder {tmp_path}.*512 x 512", line)
    by_hand = Segmenter(tiny_model, ImageProcessor(), device="cpu")
    assert np.array_equal(loaded.label_map(random_photo()), by_hand.label_map(random_photo()))


def test_a_model_of_four_bands_is_refused_at_load(tiny_config: SegformerConfig, tmp_path: Path) -> None:
    Segformer(replace(tiny_config, num_channels=4)).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=rf"{tmp_path}: num_channels is 4; photos are read as red, green and blue"):
        Segmenter.from_pretrained(tmp_path)


def test_a_model_of_four_bands_is_refused_by_the_segmenter(tiny_config: SegformerConfig) -> None:
    with pytest.raises(ValueError, match="num_channels is 4; photos are read as red, green and blue"):
        Segmenter(Segformer(replace(tiny_config, num_channels=4)), ImageProcessor(), "cpu")


def test_a_model_of_one_class_is_said_to_see_nothing_else(
    tiny_config: SegformerConfig, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "segformer"):
        Segmenter(Segformer(replace(tiny_config, num_labels=1, id2label=None)), ImageProcessor(), "cpu")
    assert "the model has one class, 'LABEL_0'" in caplog.text


@pytest.mark.parametrize("form", FORMS)
def test_a_photo_of_any_form_gives_the_label_map_of_its_pixels(form: str, segmenter: Segmenter, tmp_path: Path) -> None:
    photo = random_photo()
    assert np.array_equal(segmenter.label_map(FORMS[form](photo, tmp_path)), segmenter.label_map(photo))


def test_a_grey_array_is_a_grey_photo(segmenter: Segmenter) -> None:
    grey = random_photo().convert("L")
    assert np.array_equal(segmenter.label_map(np.asarray(grey)), segmenter.label_map(grey))


def test_bytes_of_a_photo_stored_on_its_side_are_segmented_upright(segmenter: Segmenter) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    stream = io.BytesIO()
    random_photo().save(stream, "PNG", exif=exif)
    upright = random_photo().transpose(Image.Transpose.ROTATE_270)
    assert np.array_equal(segmenter.label_map(stream.getvalue()), segmenter.label_map(upright))


@pytest.mark.parametrize(
    ("photo", "message"),
    [
        (np.zeros((5, 6, 3)), r"array of \(5, 6, 3\) float64; it must be .* uint8"),
        (np.zeros((5, 6, 2), np.uint8), r"array of \(5, 6, 2\) uint8"),
        (np.zeros((5, 0, 3), np.uint8), r"array of \(5, 0, 3\)"),
        (np.zeros((1, 5, 6, 3), np.uint8), r"array of \(1, 5, 6, 3\)"),
        (torch.zeros(5, 6, 3, dtype=torch.uint8), r"tensor of \(5, 6, 3\) torch.uint8; it must be \(3, H, W\)"),
        (torch.zeros(3, 5, 6), r"tensor of \(3, 5, 6\) torch.float32"),
        (b"no picture", "these 10 bytes hold is not a readable image"),
        (b"", "these 0 bytes hold is not a readable image"),
        (17, "photo is a int"),
        (Image.new("F", (5, 6)), "mode F, floating-point numbers"),
    ],
    ids=lambda value: None if isinstance(value, Image.Image) else str(value),
)
def test_what_is_no_photo_is_refused_by_what_it_is(photo: Any, message: str, segmenter: Segmenter) -> None:
    with pytest.raises(ValueError, match=message):
        segmenter.label_map(photo)


@pytest.mark.parametrize("name", ["moving.gif", "pages.tif", "moving.webp"])
def test_of_a_moving_picture_the_first_frame_is_taken_and_that_is_said(
    name: str, segmenter: Segmenter, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first, second = random_photo(0).convert("P"), random_photo(1).convert("P")
    first.save(
        tmp_path / name, save_all=True, append_images=[second, first], **({"lossless": True} if "webp" in name else {})
    )
    with caplog.at_level(logging.INFO):
        label_map = segmenter.label_map(tmp_path / name)
    with Image.open(tmp_path / name) as stored:
        assert np.array_equal(label_map, segmenter.label_map(stored.convert("RGB")))
    assert f"{name} has 3 frames; the first is taken" in caplog.text


def photos_of_several_sizes() -> list[Image.Image]:
    sizes = [(70, 110), (110, 70), (70, 110), (64, 96), (71, 110), (110, 70), (70, 110)]
    return [random_photo(seed, *size) for seed, size in enumerate(sizes)]


@pytest.mark.parametrize("views", [Views(), Views(resize="keep-ratio"), Views(resize="original", flip=True)], ids=str)
@pytest.mark.parametrize("batch_size", [2, 3, 8])
def test_a_batch_gives_what_its_photos_give_one_by_one(batch_size: int, views: Views, tiny_model: Segformer) -> None:
    processor = ImageProcessor(size=(64, 96), keep_ratio_scale=(192, 96))
    alone = Segmenter(tiny_model, processor, "cpu", views, batch_size=1)
    together = Segmenter(tiny_model, processor, "cpu", views, batch_size)
    photos = photos_of_several_sizes()
    for photo, one in zip(photos, together.predict(photos, probability=True), strict=True):
        expected = alone.predict([photo], probability=True)[0]
        assert one.label_map.shape == (photo.height, photo.width)
        assert (one.label_map == expected.label_map).mean() > 0.9999  # where classes tie, the last bit decides
        np.testing.assert_allclose(one.probability, expected.probability, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("views", "expected"),
    [
        (Views(), [3, 3, 1]),
        # 70 x 110 and 110 x 70 fill up by turns; the others wait for the end.
        (Views(resize="original"), [3, 2, 1, 1]),
        (Views(window=128), [3, 2, 1, 1]),
        (Views(flip=True), [3, 3, 3, 3, 1, 1]),
    ],
    ids=["one size", "several sizes", "in one window", "mirrored"],
)
def test_photos_of_one_processed_size_run_together(views: Views, expected: list[int], tiny_model: Segformer) -> None:
    segmenter = Segmenter(tiny_model, ImageProcessor(size=(64, 96)), "cpu", views, batch_size=3)
    seen: list[int] = []
    tiny_model.register_forward_pre_hook(lambda module, inputs: seen.append(len(inputs[0])))
    segmenter.label_maps(photos_of_several_sizes())
    assert seen == expected


def test_a_list_gives_the_segments_of_each_photo(segmenter: Segmenter) -> None:
    photos = [random_photo(seed) for seed in range(2)]
    listed = segmenter(photos)
    assert [[s["mask"].tobytes() for s in each] for each in listed] == [
        [s["mask"].tobytes() for s in segmenter(photo)] for photo in photos
    ]
    assert segmenter([]) == []


def test_a_batch_size_of_none_is_refused(tiny_model: Segformer) -> None:
    with pytest.raises(ValueError, match="batch_size is 0"):
        Segmenter(tiny_model, ImageProcessor(), "cpu", batch_size=0)


def on_the_grid(pixels: Tensor) -> Tensor:
    """(3, H, W) with its last column repeated until W is a multiple of 4, the pixels from one logit to the next."""
    last = pixels[:, :, -1:]
    while pixels.shape[2] % 4:
        pixels = torch.cat([pixels, last], dim=2)
    return pixels


def plain_mean(segmenter: Segmenter, photo: Image.Image, sizes: Sequence[tuple[int, int]], flip: bool) -> Tensor:
    """The mean probabilities over views of these (height, width), (K, H, W), step by step."""
    each = []
    for size in sizes:
        pixels = replace(segmenter.processor, size=size).image_to_tensor(photo)
        for mirrored in (False, True)[: 1 + flip]:
            with torch.no_grad():
                logits = segmenter.model((on_the_grid(pixels).flip(2) if mirrored else pixels)[None])
            logits = logits.flip(3) if mirrored else logits
            each.append(F.interpolate(logits, (photo.height, photo.width), mode="bilinear").softmax(1)[0])
    return torch.stack(each).mean(0)


@pytest.mark.parametrize(
    ("views", "sizes"),
    [
        (Views(), [(64, 96)]),
        (Views(flip=True), [(64, 96)]),
        (Views(resize=80, flip=True), [(80, 80)]),
        (Views(resize="original", flip=True), [(70, 110)]),
        (Views(scales=(0.5, 1.0, 1.5), flip=True), [(32, 64), (64, 96), (96, 128)]),
        (Views(resize="keep-ratio", scales=(0.5, 1.0)), [(64, 96), (96, 160)]),
    ],
    ids=str,
)
def test_mirrored_and_scaled_views_are_averaged_as_in_a_plain_implementation(
    views: Views, sizes: list[tuple[int, int]], segmenter: Segmenter
) -> None:
    segmenter.views, segmenter.processor = views, replace(segmenter.processor, keep_ratio_scale=(192, 96))
    photo = random_photo()
    expected = plain_mean(segmenter, photo, sizes, views.flip)
    probability, label_map = (each.numpy() for each in expected.max(0))
    (found,) = segmenter.predict([photo], probability=True)
    np.testing.assert_allclose(found.probability, probability, rtol=0, atol=1e-5)
    assert (found.label_map == label_map).mean() > 0.9995  # where classes tie, the last bit decides
    assert np.array_equal(found.label_map, segmenter.label_map(photo))
    np.testing.assert_allclose(segmenter.probabilities(photo, range(7)), expected, rtol=0, atol=1e-5)


def test_mirroring_changes_the_probabilities(segmenter: Segmenter) -> None:
    photo = random_photo()
    alone = segmenter.probabilities(photo, [0])
    segmenter.views = Views(flip=True)
    assert np.abs(segmenter.probabilities(photo, [0]) - alone).max() > 0.1  # or the test above would compare little


def test_scores_are_the_mean_softmax_of_a_segments_pixels(segmenter: Segmenter) -> None:
    photo = random_photo()
    expected = plain_mean(segmenter, photo, [(64, 96)], flip=False)
    ids = {name: k for k, name in segmenter.model.config.id2label.items()}
    segments = segmenter(photo, scores=True)
    assert len(segments) > 3
    for segment in segments:
        inside = torch.from_numpy(np.asarray(segment["mask"]) == 255)
        assert segment["score"] == pytest.approx(expected[ids[segment["label"]]][inside].mean().item(), abs=1e-5)


def test_scores_of_a_large_photo_are_summed_whole(segmenter: Segmenter) -> None:
    (found,) = segmenter.predict([random_photo().resize((1500, 1100))], probability=True)
    assert found.probability is not None
    scores = found.scores()
    assert scores == {
        k: pytest.approx(found.probability[found.label_map == k].mean(dtype=np.float64), abs=1e-9)
        for k in np.unique(found.label_map)
    }


def test_probabilities_of_classes_by_name_or_id_are_the_same(segmenter: Segmenter) -> None:
    names = segmenter.model.config.id2label
    photo = random_photo()
    by_id = segmenter.probabilities(photo, [4, 1])
    assert (by_id.shape, by_id.dtype) == ((2, photo.height, photo.width), np.float32)
    assert np.array_equal(segmenter.probabilities(photo, [f" {names[4]} ", 1]), by_id)
    assert not np.array_equal(by_id[0], by_id[1])


@pytest.mark.real_data
def test_a_class_is_found_by_its_name_without_the_checkpoints_spaces(real_segmenter: Segmenter) -> None:
    assert real_segmenter.class_ids(["bed", "wall", 149]) == [7, 0, 149]


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        (["LABL_3"], "no class is named 'LABL_3'; did you mean .*LABEL_3"),
        ([7], "class 7 is none of the model's, 0 to 6"),
        ([-1], "class -1 is none"),
        ("LABEL_1", "classes is 'LABEL_1'; it must be a list"),
    ],
)
def test_an_unknown_class_is_refused_by_name(classes: Any, message: str, segmenter: Segmenter) -> None:
    with pytest.raises(ValueError, match=message):
        segmenter.probabilities(random_photo(), classes)


def test_a_name_that_two_classes_share_is_refused(tiny_config: SegformerConfig) -> None:
    config = replace(tiny_config, id2label={**{k: f"class {k}" for k in range(6)}, 6: "class 2 "})
    segmenter = Segmenter(Segformer(config), ImageProcessor(size=(64, 64)), "cpu")
    with pytest.raises(ValueError, match="classes 2, 6 are all named 'class 2'"):
        segmenter.class_ids(["class 2"])


@pytest.mark.parametrize("width", [1, 33, 96, 97, 500, 683, 2000])
@pytest.mark.parametrize(("window", "overlap"), [(32, 0), (64, 32), (96, 0), (96, 64), (512, 128)])
def test_windows_cover_a_side_and_share_what_they_should(width: int, window: int, overlap: int) -> None:
    starts = window_starts(width, window, overlap)
    assert starts[0] == 0
    assert all(start % 4 == 0 and start < width for start in starts)
    assert starts[-1] + window >= width
    assert len(starts) == 1 or starts[-1] + window - width <= 3
    assert all(start + window - following >= overlap for start, following in pairwise(starts))
    assert starts == sorted(set(starts))


def plain_windows(segmenter: Segmenter, photo: Image.Image, window: int, overlap: int, flip: bool = False) -> Tensor:
    """The logits of a photo at its own size, (1, K, h, w): the mean of what every window says, place by place."""
    pixels = replace(segmenter.processor, do_resize=False).image_to_tensor(photo)
    K, height, width = segmenter.model.config.num_labels, -(-photo.height // 4), -(-photo.width // 4)
    total, count = torch.zeros(K, height, width), torch.zeros(height, width)
    for top in window_starts(photo.height, window, overlap):
        for left in window_starts(photo.width, window, overlap):
            seen = pixels[:, top : top + window, left : left + window]
            with torch.no_grad():
                logits = segmenter.model((on_the_grid(seen).flip(2) if flip else seen)[None])[0]
            logits = logits.flip(2) if flip else logits
            for y in range(logits.shape[1]):
                for x in range(logits.shape[2]):
                    total[:, top // 4 + y, left // 4 + x] += logits[:, y, x]
                    count[top // 4 + y, left // 4 + x] += 1
    assert count.min() == 1 < count.max()
    return (total / count)[None]


@pytest.mark.parametrize("batch_size", [1, 4])
@pytest.mark.parametrize("size", [(200, 310), (64, 201), (333, 50)])
def test_windows_give_the_mean_of_their_logits(size: tuple[int, int], batch_size: int, segmenter: Segmenter) -> None:
    photo = random_photo(0, *size)
    segmenter.views, segmenter.batch_size = Views(window=96, overlap=32), batch_size
    (found,) = segmenter.predict([photo], probability=True)
    label_map, probability = fullres.plain_argmax_with_probability([plain_windows(segmenter, photo, 96, 32)], size)
    np.testing.assert_allclose(found.probability, probability[0], rtol=0, atol=1e-5)
    assert (found.label_map == label_map[0].numpy()).mean() > 0.9995  # where classes tie, the last bit decides
    assert np.array_equal(segmenter.label_map(photo), found.label_map)


def test_mirrored_windows_are_averaged_with_the_others(segmenter: Segmenter) -> None:
    photo = random_photo(0, 200, 310)
    segmenter.views = Views(window=96, overlap=32, flip=True)
    views = [plain_windows(segmenter, photo, 96, 32, flip) for flip in (False, True)]
    expected = fullres.plain_probabilities(views, (200, 310))[0]
    np.testing.assert_allclose(segmenter.probabilities(photo, range(7)), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("window", "size"), [(320, (200, 310)), (128, (70, 110)), (96, (96, 96)), (32, (20, 9))])
def test_one_window_that_covers_the_photo_gives_what_the_whole_gives(
    window: int, size: tuple[int, int], segmenter: Segmenter
) -> None:
    photo = random_photo(0, *size)
    segmenter.views = Views(resize="original")
    (whole,) = segmenter.predict([photo], probability=True)
    segmenter.views = Views(window=window)
    (found,) = segmenter.predict([photo], probability=True)
    assert np.array_equal(found.label_map, whole.label_map)
    assert np.array_equal(found.probability, whole.probability)


def sliding(segmenter: Segmenter, size: tuple[int, int], window: int, overlap: int) -> SlidingLogits:
    pixels = segmenter.processor.image_to_tensor(random_photo(0, *size).resize((96, 64)))
    pixels = F.interpolate(pixels[None], size, mode="bilinear")

    def look(boxes: Sequence[tuple[int, int, int, int]]) -> Tensor:
        with torch.no_grad():
            seen = torch.cat([pixels[..., top:bottom, left:right] for left, top, right, bottom in boxes])
            return segmenter.model(seen)

    return SlidingLogits(look, size, window, overlap, num_labels=7)


def test_sliding_a_single_window_gives_the_models_own_logits(segmenter: Segmenter) -> None:
    logits = sliding(segmenter, (200, 310), 320, 64)
    expected = logits._look([(0, 0, 310, 200)]).permute(0, 2, 3, 1)
    assert (*logits.shape,) == tuple(expected.shape) == (1, 50, 78, 7)
    assert torch.equal(logits.rows(slice(None), slice(0, 50)), expected)


def test_sliding_logits_come_row_by_row_as_they_come_at_once(segmenter: Segmenter) -> None:
    at_once = sliding(segmenter, (300, 130), 64, 32).rows(slice(None), slice(0, 75))
    logits = sliding(segmenter, (300, 130), 64, 32)
    for first in (0, 1, 1, 7, 30, 31, 60, 72):
        assert torch.equal(logits.rows(slice(None), slice(first, first + 3)), at_once[:, first : first + 3])


def test_sliding_logits_hold_no_more_than_a_row_of_windows_and_what_is_asked_for(segmenter: Segmenter) -> None:
    logits = sliding(segmenter, (640, 130), 64, 32)
    held = [logits.rows(slice(None), slice(y, y + 2)).untyped_storage().nbytes() for y in range(158)]
    assert max(held) <= (64 // 4 + 2) * logits.shape[2] * 7 * 4


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (300, 1), (97, 210)])
@pytest.mark.parametrize(
    "views",
    [
        Views(resize="keep-ratio"),
        Views(resize="original"),
        Views(resize=64, scales=(0.75, 1.25)),
        Views(window=64, flip=True, scales=(0.5, 2.0)),
        Views(window=64, overlap=0, resize="keep-ratio"),
    ],
    ids=str,
)
def test_every_view_gives_a_label_map_of_the_photos_own_size(
    views: Views, size: tuple[int, int], segmenter: Segmenter
) -> None:
    segmenter.views, segmenter.processor = views, replace(segmenter.processor, keep_ratio_scale=(192, 96))
    assert segmenter.label_map(random_photo(0, *size)).shape == size


@pytest.mark.parametrize("scale", [None, (2048, 512), (640, 640), (100, 50)])
def test_keep_ratio_is_the_size_at_which_training_scores(scale: tuple[int, int] | None) -> None:
    processor = ImageProcessor(keep_ratio_scale=scale)
    generator = np.random.default_rng(0)
    for width, height in [(1, 1), (1, 5000), (5000, 1), (683, 512), *generator.integers(1, 3000, (50, 2)).tolist()]:
        for factor in (1.0, 0.5, 1.75):
            limits = tuple(int(limit * factor) for limit in scale or (2048, 512))
            (size,) = Views(resize="keep-ratio", scales=(factor,)).sizes(processor, width, height)
            kept = keep_ratio_size(width, height, limits)[::-1]
            assert size == tuple(math.ceil(side / 32) * 32 for side in kept)


@pytest.mark.parametrize(
    ("views", "expected"),
    [
        (Views(), (512, 640)),
        (Views(resize="processor"), (512, 640)),
        (Views(resize=300), (300, 300)),
        (Views(resize="original"), (333, 1000)),
        (Views(window=512), (333, 1000)),
        (Views(window=512, resize="processor"), (512, 640)),
        (Views(window=512, resize="keep-ratio"), (512, 1536 + 32)),
        (Views(scales=(0.5,)), (256, 320)),
    ],
    ids=str,
)
def test_a_view_has_the_size_asked_for(views: Views, expected: tuple[int, int]) -> None:
    assert views.sizes(ImageProcessor(size=(512, 640)), 1000, 333) == (expected,)


def test_a_processor_that_does_not_resize_shows_photos_as_they_are() -> None:
    assert Views().sizes(ImageProcessor(do_resize=False), 1000, 9) == ((32, 1000),)  # no model sees less than 32


@pytest.mark.parametrize(
    "wrong",
    [
        {"resize": "huge"},
        {"resize": 16},
        {"resize": True},
        {"window": 100},
        {"window": 0},
        {"window": 128, "overlap": 128},
        {"window": 128, "overlap": 33},
        {"window": 128, "overlap": -32},
        {"overlap": 32},
        {"flip": 1},
        {"scales": ()},
        {"scales": (0.01,)},
        {"scales": [1.0]},
    ],
    ids=str,
)
def test_wrong_views_are_refused_by_field(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"^{list(wrong)[-1]} is "):
        Views(**wrong)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused_by_tensor(value: float, segmenter: Segmenter, tmp_path: Path) -> None:
    with torch.no_grad():
        segmenter.model.decoder.classifier.weight[3, 2] = value
    with pytest.raises(ValueError, match=r"1 of the 112 values of decoder\.classifier\.weight are not finite"):
        Segmenter(segmenter.model, segmenter.processor, "cpu")
    segmenter.model.save_pretrained(tmp_path)
    segmenter.processor.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=f"{tmp_path}/model.safetensors: 1 of the 112 values"):
        Segmenter.from_pretrained(tmp_path)


def test_a_device_that_lacks_an_operation_gives_way_to_the_cpu(
    segmenter: Segmenter, caplog: pytest.LogCaptureFixture
) -> None:
    expected = segmenter.label_map(random_photo())

    def lacks(module: torch.nn.Module, inputs: tuple[Tensor]) -> None:
        if inputs[0].device.type != "cpu":
            raise NotImplementedError("aten::some_operation")

    segmenter.model.register_forward_pre_hook(lacks)
    segmenter.device = torch.device("meta")  # stands for a device such as MPS
    assert np.array_equal(segmenter.label_map(random_photo()), expected)
    assert segmenter.device.type == "cpu"
    assert "meta lacks an operation (aten::some_operation); going on on the CPU" in caplog.text


@pytest.mark.gpu
@pytest.mark.parametrize(
    "views", [Views(), Views(resize="keep-ratio", flip=True), Views(window=96, flip=True)], ids=str
)
def test_cuda_gives_what_the_cpu_gives(views: Views, segmenter: Segmenter) -> None:
    photos = photos_of_several_sizes()
    segmenter.views = views
    expected = segmenter.predict(photos, probability=True)
    on_cuda = Segmenter(segmenter.model, segmenter.processor, "cuda", views)
    for one, other in zip(on_cuda.predict(photos, probability=True), expected, strict=True):
        np.testing.assert_allclose(one.probability, other.probability, rtol=0, atol=1e-3)  # convolutions in TF32
        assert (one.label_map == other.label_map).mean() > 0.99


_LARGE_PHOTO = """
import sys
import numpy as np, torch
from PIL import Image
from pathlib import Path
from segformer import VARIANTS, ImageProcessor, Segformer, Segmenter
from segformer.views import Views

torch.manual_seed(0)
segmenter = Segmenter(Segformer(VARIANTS["b0"](num_labels=150)), ImageProcessor(), "cpu", Views(window=512))
label_map = segmenter.label_map(sys.argv[1])
print(label_map.shape == (4000, 6000), len(np.unique(label_map)))
status = Path("/proc/self/status").read_text().splitlines()
print(next(line for line in status if line.startswith("VmHWM:")).split()[1])
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
def test_a_photo_of_24_megapixels_stays_within_2_gb(tmp_path: Path) -> None:
    random_photo(0, 40, 60).resize((6000, 4000), Image.Resampling.BICUBIC).save(tmp_path / "large.jpg")
    command = [sys.executable, "-c", _LARGE_PHOTO, str(tmp_path / "large.jpg")]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    seen, peak_kib = done.stdout.splitlines()
    assert seen.split()[0] == "True"
    assert int(peak_kib) * 1024 < 2e9  # of the whole process, libraries included


@pytest.mark.parametrize("name", ["drawing.eps", "photo.jpg"])  # whatever it is called
def test_a_program_that_draws_a_picture_is_not_run(name: str, segmenter: Segmenter, tmp_path: Path) -> None:
    Image.new("RGB", (40, 30), "red").save(tmp_path / "drawing", "EPS")
    (tmp_path / "drawing").rename(tmp_path / name)
    with pytest.raises(ValueError, match=f"{name} is not a readable image: Pillow knows no format"):
        segmenter.label_map(tmp_path / name)
