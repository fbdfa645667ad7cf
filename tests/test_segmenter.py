"""The segmenter: the label maps and segments of transformers' image-segmentation pipeline, for photos of any kind."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import SegformerForSemanticSegmentation, pipeline
from transformers.models.segformer.image_processing_pil_segformer import SegformerImageProcessorPil

from data import SceneParse150
from data.classes import ID2LABEL
from segformer import ConfusionMatrix, ImageProcessor, Segformer, SegformerConfig, Segmenter

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
def found(real_segmenter: Segmenter, ade_checkpoint: Path, real_shards: Path) -> list[Found]:
    reference = pipeline(
        "image-segmentation",
        model=SegformerForSemanticSegmentation.from_pretrained(ade_checkpoint),
        image_processor=SegformerImageProcessorPil.from_pretrained(ade_checkpoint),
        device="cpu",
    )
    dataset = SceneParse150(real_shards, "validation")
    results = []
    for i in range(len(dataset)):
        photo, raw = dataset[i]
        label_map = real_segmenter.label_map(photo)
        results.append(Found(photo, np.asarray(raw), label_map, real_segmenter.segments(label_map), reference(photo)))
    return results


@pytest.fixture
def segmenter(tiny_model: Segformer) -> Segmenter:
    """A tiny model whose classes are balanced on a random photo, so that its label maps show several of them."""
    processor = ImageProcessor(size=(64, 96))
    with torch.no_grad():
        logits = tiny_model(processor.image_to_tensor(random_photo())[None])
        tiny_model.decoder.classifier.bias -= logits.mean((0, 2, 3))
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


def test_what_is_saved_is_what_is_loaded(segmenter: Segmenter, tmp_path: Path) -> None:
    segmenter.model.save_pretrained(tmp_path)
    segmenter.processor.save_pretrained(tmp_path)
    loaded = Segmenter.from_pretrained(tmp_path, device="cpu")
    assert np.array_equal(loaded.label_map(random_photo()), segmenter.label_map(random_photo()))


def test_a_folder_without_a_processor_config_is_refused_by_name(tiny_model: Segformer, tmp_path: Path) -> None:
    tiny_model.save_pretrained(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"preprocessor_config\.json"):
        Segmenter.from_pretrained(tmp_path)
