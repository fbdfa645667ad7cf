"""--resize-mode: what a run trains on, scores, keeps and segments, where photos have another shape than the model's."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional

import train as training
from data import SceneParse150
from data.batches import Samples, collate, for_evaluation, for_training
from segformer import ConfusionMatrix, ImageProcessor, Segformer, Segmenter, Views
from segformer.training.arguments import parse_arguments
from train import configure, evaluate, train

CPU = torch.device("cpu")


@pytest.fixture
def settings(small_shards: Path, small_checkpoint: Path, tmp_path: Path) -> dict[str, Any]:
    """Settings of a run of a second, on photos of 30 to 50 pixels a side."""
    data = {"dataset": str(small_shards), "split": "train", "eval_split": "validation", "device": "cpu"}
    steps = {"max_steps": 2, "eval_steps": 2, "save_steps": 1, "image_size": "32x48"}
    return {**data, **steps, "checkpoint": str(small_checkpoint), "output_dir": str(tmp_path / "run")}


@pytest.fixture
def noisy(settings: dict[str, Any]) -> tuple[Segformer, SceneParse150]:
    """A model that sees something else in every photo, and the photos to score."""
    model = Segformer.from_pretrained(settings["checkpoint"])
    torch.manual_seed(1)
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.2)
    dataset = SceneParse150(settings["dataset"], "validation")
    with torch.no_grad():
        logits = model.eval()(ImageProcessor(size=(64, 64)).image_to_tensor(dataset[0][0])[None])
        model.decoder.classifier.bias -= logits.mean((0, 2, 3))
    return model, dataset


@pytest.mark.parametrize("mode", ["keep", "crop"])
@pytest.mark.parametrize("more", [{}, {"augmentation": "paper"}, {"eval_resolution": "original"}], ids=str)
def test_a_run_trains_scores_and_leaves_a_model_of_its_mode(
    mode: str, more: dict[str, Any], settings: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = train(configure("guide", **settings, resize_mode=mode, per_device_eval_batch_size=3, **more))
    said = " ".join(capsys.readouterr().out.split())
    assert f"48 x 32 (width x height) pixels, their shape kept and {'padded' if mode == 'keep' else 'cropped'}" in said
    for place in (folder, folder / "checkpoint-1"):
        assert ImageProcessor.from_pretrained(place).resize_mode == mode
    card, run = (folder / "README.md").read_text(), json.loads((folder / "run.json").read_text())
    assert f"resized to {'fit into' if mode == 'keep' else 'cover'} 48 x 32 with their shape kept" in card
    assert run["resize_mode"] == mode
    assert Segmenter.from_pretrained(folder, "cpu").processor.resize_mode == mode


class Pairs:
    """Photos with label maps, as a dataset has them."""

    def __init__(self, pairs: list[tuple[Image.Image, Image.Image]]) -> None:
        self.pairs = pairs

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, row: int) -> tuple[Image.Image, Image.Image]:
        return self.pairs[row]

    def name(self, row: int) -> str:
        return f"photo {row}"


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("mode", ["squash", "keep", "crop"])
def test_an_evaluation_at_the_labels_own_size_sees_what_infer_sees(
    mode: str, flip: bool, noisy: tuple[Segformer, SceneParse150]
) -> None:
    model, dataset = noisy
    processor = ImageProcessor(size=(32, 48), resize_mode=mode, do_reduce_labels=False)
    segmenter = Segmenter(model, processor, "cpu", Views(flip=flip))
    photos = [photo for photo, _ in dataset]
    found = [segmenter.label_map(photo) for photo in photos]
    assert min(len(np.unique(each)) for each in found) > 1  # or there would be little to see
    truths = Pairs([(photo, Image.fromarray(each)) for photo, each in zip(photos, found, strict=True)])
    config = configure("guide", eval_resolution="original", eval_flip=flip, per_device_eval_batch_size=3, amp="off")
    samples = Samples(truths, for_evaluation(processor, "original"))  # type: ignore[arg-type]
    assert evaluate(model, samples, config, CPU)["eval_overall_accuracy"] == 1


@pytest.mark.parametrize("mode", ["keep", "crop"])
def test_an_evaluation_at_the_models_size_counts_what_is_seen_and_no_padding(
    mode: str, noisy: tuple[Segformer, SceneParse150]
) -> None:
    model, dataset = noisy
    processor = ImageProcessor(size=(32, 48), resize_mode=mode)
    config = configure("guide", per_device_eval_batch_size=3, amp="off")
    ours = evaluate(model, Samples(dataset, for_evaluation(processor, "processed")), config, CPU)
    matrix, loss, pixels = ConfusionMatrix(150), 0.0, 0
    for photo, label_map in dataset:
        images, labels = processor(photo, label_map)
        height, width = processor.place(*photo.size).shown
        assert (labels[height:] == 255).all()
        assert (labels[:, width:] == 255).all()
        with torch.no_grad():
            logits = model(images[None])[..., : math.ceil(height / 4), : math.ceil(width / 4)]
        enlarged = functional.interpolate(logits, (height, width), mode="bilinear")
        seen = labels[:height, :width]
        loss += float(functional.cross_entropy(enlarged, seen[None], ignore_index=255, reduction="sum"))
        pixels += int((seen != 255).sum())
        matrix.update(enlarged.argmax(1)[0], seen)
    assert ours["eval_loss"] == pytest.approx(loss / pixels, rel=1e-5)
    assert ours["eval_overall_accuracy"] == pytest.approx(matrix.scores().overall_accuracy, abs=1e-3)
    assert ours["eval_mean_iou"] == pytest.approx(matrix.scores().mean_iou, abs=1e-3)


def test_samples_prepared_for_training_are_not_scored(noisy: tuple[Segformer, SceneParse150]) -> None:
    model, dataset = noisy
    samples = Samples(dataset, for_training(ImageProcessor(size=(32, 48)), "none", seed=0))
    with pytest.raises(ValueError, match=r"prepared by Resized, as for training; .* for_evaluation"):
        evaluate(model, samples, configure("guide", amp="off"), CPU)


def test_photos_that_fill_their_view_are_scored_beside_others_that_do_not(
    noisy: tuple[Segformer, SceneParse150],
) -> None:
    model, dataset = noisy
    photo, label_map = dataset[0]
    shapes = [(48, 32), (40, 30), (96, 64), (30, 40)]
    rows = Pairs([(photo.resize(shape), label_map.resize(shape, Image.Resampling.NEAREST)) for shape in shapes])
    samples = Samples(rows, for_evaluation(ImageProcessor(size=(32, 48), resize_mode="keep"), "processed"))  # type: ignore[arg-type]
    together, alone = (
        evaluate(model, samples, configure("guide", per_device_eval_batch_size=size, amp="off"), CPU) for size in (4, 1)
    )
    assert together["eval_loss"] == pytest.approx(alone["eval_loss"], rel=1e-5)
    assert together["eval_confusion"].sum() == alone["eval_confusion"].sum()


def test_padding_is_nothing_to_learn_from(noisy: tuple[Segformer, SceneParse150], settings: dict[str, Any]) -> None:
    _, dataset = noisy
    sample = for_training(ImageProcessor(size=(32, 96), resize_mode="keep"), "none", 0)(*dataset[0], (0, 0))
    width = 4 * round(32 * dataset[0][0].width / dataset[0][0].height / 4)
    assert (sample["labels"][:, width:] == 255).all()
    assert not sample["images"][..., width:].any()
    assert (sample["labels"][:, :width] != 255).any(0).all()


# Crops


def crops(processor: ImageProcessor, augmentation: str, seed: int, places: list[tuple[int, int]], **how: Any) -> list:
    photo = Image.fromarray(np.arange(200, dtype=np.uint8)[None].repeat(20, 0)).convert("RGB")
    label_map = photo.convert("L").point(lambda level: level % 151)
    prepare = for_training(processor, augmentation, seed, **how)
    return [prepare(photo, label_map, place)["labels"] for place in places]


CROP = ImageProcessor(size=(32, 32), resize_mode="crop", do_reduce_labels=False)


def test_a_crop_is_a_function_of_seed_epoch_and_row() -> None:
    places = [(epoch, row) for epoch in range(4) for row in range(4)]
    first, again = crops(CROP, "none", 7, places), crops(CROP, "none", 7, places[::-1])[::-1]
    assert all(map(torch.equal, first, again))
    starts = {int(labels[0, 0]) for labels in first}
    assert len(starts) > 10
    others = crops(CROP, "none", 8, places)
    assert sum(map(torch.equal, first, others)) < 4


def test_a_crop_lies_where_it_lies_with_jitter_and_on_the_device_too() -> None:
    places = [(0, row) for row in range(8)]
    first = crops(CROP, "none", 7, places)
    assert all(map(torch.equal, first, crops(CROP, "jitter", 7, places)))
    on_device = crops(CROP, "jitter", 7, places, on_device=True)
    assert all(torch.equal(ours, theirs.long()) for ours, theirs in zip(first, on_device, strict=True))


def test_crops_are_those_of_an_uninterrupted_run_after_a_resume(settings: dict[str, Any], tmp_path: Path) -> None:
    whole = train(configure("guide", **settings, resize_mode="crop"))
    weights = (whole / "model.safetensors").read_bytes()
    shutil.rmtree(whole / "checkpoint-2")
    again = train(parse_arguments(["--resume-from-checkpoint", str(whole), "--dataloader-num-workers", "1"]))
    assert (again / "model.safetensors").read_bytes() == weights


# What goes together


def test_photos_that_are_padded_are_not_left_to_the_device(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="augment_on_device changes whole photos, and those of resize_mode keep are"):
        train(configure("guide", **settings, resize_mode="keep", augment_on_device=True))


def test_crops_of_one_size_are_augmented_on_the_device(settings: dict[str, Any]) -> None:
    folder = train(configure("guide", **settings, resize_mode="crop", augment_on_device=True))
    assert (folder / "model.safetensors").is_file()


def test_the_checkpoints_mode_is_taken_unless_another_is_asked_for(settings: dict[str, Any], tmp_path: Path) -> None:
    start = shutil.copytree(settings["checkpoint"], tmp_path / "start")
    replace(ImageProcessor.from_pretrained(start), resize_mode="keep").save_pretrained(start)
    for asked, expected in ((None, "keep"), ("squash", "squash"), ("crop", "crop")):
        config = configure("guide", **{**settings, "checkpoint": str(start)}, resize_mode=asked)
        assert training.build_model(config, start)[1].resize_mode == expected


def test_a_model_is_scored_in_its_own_mode(settings: dict[str, Any], tmp_path: Path) -> None:
    folder = train(configure("guide", **settings, resize_mode="crop", eval_resolution="original"))
    words = ["--eval-only", "--checkpoint", str(folder), "--dataset", settings["dataset"], "--device", "cpu"]
    scored = train(parse_arguments([*words, "--output-dir", str(tmp_path / "scored")]))
    then, now = (json.loads((each / "eval_results.json").read_text()) for each in (folder, scored))
    for name in ("eval_loss", "eval_mean_iou", "eval_per_category_iou"):
        assert now[name] == then[name]
    assert json.loads((scored / "run.json").read_text())["resize_mode"] == "crop"


@pytest.mark.parametrize(("mode", "size"), [("crop", (20, 20)), ("keep", (40, 20)), ("squash", (40, 20))])
def test_samples_show_what_is_scored(mode: str, size: tuple[int, int], noisy: tuple[Segformer, SceneParse150]) -> None:
    ramp = Image.fromarray(np.arange(40, dtype=np.uint8)[None].repeat(20, 0))
    processor = ImageProcessor(size=(64, 64), resize_mode=mode, do_reduce_labels=False)
    samples = Samples(Pairs([(ramp.convert("RGB"), ramp)]), for_evaluation(processor, "processed"))  # type: ignore[arg-type]
    assert samples.seen(0).size == size
    batch = collate([samples[0, 0]])
    seen = batch.get("labels", batch.get("original_labels"))[0]
    across = {"crop": (10, 30), "keep": (0, 40), "squash": (0, 40)}[mode]
    first, last = int(seen[5, 1]), int(seen[5, -1])
    assert abs(first - across[0]) <= 1
    assert abs(last - (across[1] - 2)) <= 1
    (shown,) = training.predict_samples(noisy[0], samples, configure("guide", amp="off"), CPU)
    assert shown.photo.size == size
    assert shown.truth.shape == shown.prediction.shape
    assert abs(shown.truth.shape[1] / shown.truth.shape[0] - (size[0] / size[1] if mode != "squash" else 1)) < 0.1
