"""Other data than SceneParse150's, the paper's recipe and its way of scoring, and what a device does for workers."""

from __future__ import annotations

import io
import json
import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from libraries import pil_processor
from PIL import Image
from safetensors.torch import load_file, save_file

import train as training
from data import SceneParse150
from data.augmentation.paper import keep_ratio_size
from data.batches import collate
from data.sources.shards import write_shard
from segformer import VARIANTS, ConfusionMatrix, ImageProcessor, Segformer, SegformerConfig, fullres
from segformer.decoder import AllMLPDecoder
from segformer.training.checkpoints import _write_sums
from segformer.views import logits_of_views
from train import configure, evaluate, learning_rate, parse_arguments, train

STEPS = {"max_steps": 2, "eval_steps": 2, "save_steps": 2, "device": "cpu"}


@pytest.fixture
def settings(small_shards: Path, small_checkpoint: Path, tmp_path: Path) -> dict[str, Any]:
    """Settings of a run of a second."""
    data = {"dataset": str(small_shards), "split": "train", "eval_split": "validation"}
    return {**data, **STEPS, "checkpoint": str(small_checkpoint), "output_dir": str(tmp_path / "run")}


def make_folder(root: Path, values: tuple[int, ...], count: int = 6) -> Path:
    """Photos of as many stripes as there are values, each value with a brightness of its own, and their label maps."""
    for name in ("images", "annotations"):
        (root / name).mkdir(parents=True)
    for number in range(count):
        labels = np.roll(np.repeat(np.array(values, np.uint8), 12), number * 5)[None].repeat(40, axis=0)
        Image.fromarray(labels).save(root / f"annotations/{number}.png")
        Image.fromarray(np.stack([labels * 50] * 3, -1)).save(root / f"images/{number}.png")
    return root


# Your own data


def test_a_folder_with_named_classes_is_trained_on(small_checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("soil\ncrop\nweed\n")
    folder = train(
        configure(
            "guide",
            dataset=str(make_folder(tmp_path / "field", (0, 1, 2, 255))),
            split="train",
            label_names=str(tmp_path / "names.txt"),
            reduce_labels=False,
            checkpoint=str(small_checkpoint),
            output_dir=str(tmp_path / "run"),
            **STEPS,
        )
    )
    assert Segformer.from_pretrained(folder).config.id2label == {0: "soil", 1: "crop", 2: "weed"}
    assert not ImageProcessor.from_pretrained(folder).do_reduce_labels
    results = json.loads((folder / "eval_results.json").read_text())
    assert len(results["eval_per_category_iou"]) == 3
    assert sum(results["eval_per_category_share"]) == pytest.approx(1)


def test_binary_masks_are_background_and_object(small_checkpoint: Path, tmp_path: Path) -> None:
    config = configure(
        "guide",
        dataset=str(make_folder(tmp_path / "masks", (0, 255))),
        split="train",
        binary_masks=True,
        reduce_labels=False,
        checkpoint=str(small_checkpoint),
        **STEPS,
    )
    model, processor = training.build_model(config, config.checkpoint)
    samples, _ = training.build_samples(config, processor)
    assert model.config.id2label == {0: "background", 1: "object"}
    assert samples[0, 0]["labels"].unique().tolist() == [0, 1]


@pytest.mark.parametrize("augmentation", ["jitter", "paper"])
@pytest.mark.parametrize("reduce_labels", [True, False])
def test_every_augmentation_gives_class_ids(
    augmentation: str, reduce_labels: bool, small_checkpoint: Path, tmp_path: Path
) -> None:
    config = configure(
        "guide",
        dataset=str(make_folder(tmp_path / "field", (0, 1, 2))),
        split="train",
        num_labels=3,
        reduce_labels=reduce_labels,
        augmentation=augmentation,
        checkpoint=str(small_checkpoint),
    )
    _, processor = training.build_model(config, config.checkpoint)
    samples, _ = training.build_samples(config, processor)
    seen = set(torch.cat([samples[epoch, 0]["labels"].flatten() for epoch in range(8)]).tolist())
    assert seen - {255} == ({0, 1} if reduce_labels else {0, 1, 2})
    assert samples[0, 0]["images"].shape == (3, 32, 32)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_labels": 3, "label_names": "names.txt", "reduce_labels": True}, "num-labels is 3.* names 2 classes"),
        ({"label_names": "absent.txt"}, "absent.txt"),
        ({"binary_masks": True, "reduce_labels": True}, "reduce_labels is True but binary masks have no other"),
        ({"num_labels": 2}, "leave two readings: with --no-reduce-labels 0 is .*; with --reduce-labels 0 is ignored"),
        ({"num_labels": 2, "reduce_labels": True}, "hold .* 0 \\(ignored\\) and 1 to 2"),
    ],
)
def test_labels_that_contradict_each_other_are_refused(
    changes: dict[str, Any],
    message: str,
    settings: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("names.txt").write_text("a\nb\n")
    with pytest.raises((ValueError, OSError), match=message):
        train(configure("guide", **settings, **changes))


# Augmentation on the device


def test_the_device_finishes_what_workers_leave(settings: dict[str, Any]) -> None:
    for augmentation in ("none", "jitter"):
        config = configure("guide", **settings, augmentation=augmentation, augment_on_device=True)
        _, processor = training.build_model(config, config.checkpoint)
        finish = training.build_device_augmentation(config, processor)
        there = finish(collate([training.build_samples(config, processor)[0][3, row] for row in range(4)]))
        config = configure("guide", **settings, augmentation=augmentation)
        here = collate([training.build_samples(config, processor)[0][3, row] for row in range(4)])
        assert torch.equal(there["labels"], here["labels"])
        levels = (there["images"] - here["images"]).abs() * torch.tensor(processor.image_std)[:, None, None] * 255
        # Jittered before it is resized, rounded at every step, or not: what that is on photos, test_on_device.py holds.
        assert levels.mean() < (1e-4 if augmentation == "none" else 2)


def test_a_run_augments_on_its_device_and_resumes_exactly(settings: dict[str, Any], tmp_path: Path) -> None:
    settings |= {"augment_on_device": True, "max_steps": 4}
    whole = train(configure("guide", **settings))
    settings |= {"output_dir": str(tmp_path / "part")}
    training.Run(configure("guide", **settings)).train()
    (tmp_path / "part/checkpoint-4/config.json").unlink()
    resumed = train(configure("guide", **settings, resume_from_checkpoint="last"))
    assert (resumed / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()


# The paper's recipe


def test_the_papers_learning_rate_follows_its_warm_up_and_its_line_to_zero() -> None:
    paper = configure("paper")
    for step, expected in (
        (1, 6e-5 * 1e-6),
        (751, 6e-5 * (1 - 750 / 160_000) * (1 - (1 - 750 / 1500) * (1 - 1e-6))),
        (1501, 6e-5 * (1 - 1500 / 160_000)),
        (160_000, 6e-5 / 160_000),
    ):
        assert learning_rate(step, 160_000, paper) == pytest.approx(expected, rel=1e-12)


def test_the_paper_spares_norms_and_drives_the_decoder_ten_times_as_fast(tiny_model: Segformer) -> None:
    optimizer = training.build_optimizer(tiny_model, configure("paper"))
    seen = {
        id(weight): (group["weight_decay"], group["lr_factor"])
        for group in optimizer.param_groups
        for weight in group["params"]
    }
    for name, weight in tiny_model.named_parameters():
        decay = 0.0 if "norm" in name else 0.01
        assert seen[id(weight)] == (decay, 10.0 if name.startswith("decoder") else 1.0), name


def test_the_guide_spares_norms_and_biases(tiny_model: Segformer) -> None:
    optimizer = training.build_optimizer(tiny_model, configure("guide", weight_decay=0.5))
    decayed = {id(w) for group in optimizer.param_groups if group["weight_decay"] for w in group["params"]}
    for name, weight in tiny_model.named_parameters():
        assert (id(weight) in decayed) == (weight.ndim > 1), name


def test_the_paper_drops_whole_channels_and_the_guide_single_elements(settings: dict[str, Any]) -> None:
    for recipe, whole in (("paper", True), ("guide", False)):
        config = configure(recipe, **settings)
        model, _ = training.build_model(config, config.checkpoint)
        assert model.decoder.drops_channels is whole


def mmsegmentations_deviations(config: SegformerConfig) -> dict[str, float]:
    """The standard deviations that a new decoder of theirs starts with, by name.

    SegFormerHead's MLPs are Linear layers and linear_pred a Conv2d, both left as torch starts them: uniform up to
    1 / sqrt(fan in), whose deviation is that over sqrt(3). (Its init_weights draws conv_seg alone, which is not used.)
    linear_fuse is a ConvModule: kaiming_init with mode fan_out and the gain of a ReLU.
    """
    width = config.decoder_hidden_size
    uniform = {f"projections.{i}": (3 * channels) ** -0.5 for i, channels in enumerate(config.hidden_sizes)}
    return {**uniform, "fuse": (2 / width) ** 0.5, "classifier": (3 * width) ** -0.5}


@pytest.mark.parametrize("variant", ["b0", "b2"])
def test_a_decoder_that_starts_as_the_authors_has_their_deviations(variant: str) -> None:
    torch.manual_seed(0)
    config = VARIANTS[variant](num_labels=150)
    decoder = AllMLPDecoder(config)
    decoder.initialize_as_authors()
    expected = mmsegmentations_deviations(config)
    if variant == "b0":  # as measured in their code
        measured = {"fuse": 0.088, "classifier": 0.036, "projections.0": 0.102}
        assert {name: round(expected[name], 3) for name in measured} == measured
    for name, deviation in expected.items():
        layer = decoder.get_submodule(name)
        assert layer.weight.std().item() == pytest.approx(deviation, rel=0.03), name
        assert layer.weight.mean().abs() < 0.03 * deviation
        if layer.bias is not None:
            assert layer.bias.std().item() == pytest.approx(deviation, rel=0.15)
    assert decoder.fuse.weight.abs().max() > 3.5 * expected["fuse"]  # normal, and not cut off
    assert decoder.classifier.weight.abs().max() <= expected["classifier"] * 3**0.5  # uniform


def test_what_a_checkpoint_brings_is_not_drawn_anew(settings: dict[str, Any], small_checkpoint: Path) -> None:
    held = Segformer.from_pretrained(small_checkpoint).state_dict()
    config = configure("paper", **settings)
    model, _ = training.build_model(config, config.checkpoint)
    assert all(torch.equal(tensor, held[name]) for name, tensor in model.state_dict().items())


def test_a_new_classifier_alone_is_drawn_by_the_authors_rule(settings: dict[str, Any], small_checkpoint: Path) -> None:
    held = Segformer.from_pretrained(small_checkpoint).state_dict()
    config = configure("paper", **settings, num_labels=151, reduce_labels=False)
    model, _ = training.build_model(config, config.checkpoint)
    new = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, held[name])}
    assert new == {"decoder.classifier.weight", "decoder.classifier.bias"}
    deviation = mmsegmentations_deviations(model.config)["classifier"]
    assert model.decoder.classifier.weight.std().item() == pytest.approx(deviation, rel=0.05)


@pytest.mark.parametrize("source", ["an encoder", None])
def test_a_new_decoder_is_drawn_by_the_rule_of_the_recipe(
    source: str | None, settings: dict[str, Any], small_checkpoint: Path, tmp_path: Path
) -> None:
    if source:
        shutil.copytree(small_checkpoint, tmp_path / source)
        weights = load_file(small_checkpoint / "model.safetensors")
        encoder = {name: tensor for name, tensor in weights.items() if not name.startswith("decode_head")}
        save_file(encoder, tmp_path / source / "model.safetensors")
        settings |= {"checkpoint": str(tmp_path / source)}
    else:
        settings |= {"checkpoint": None}
    for recipe in ("guide", "paper"):
        config = configure(recipe, **settings)
        model, _ = training.build_model(config, config.checkpoint)
        expected = mmsegmentations_deviations(model.config)
        for name, deviation in expected.items():
            weight = model.decoder.get_submodule(name).weight
            assert weight.std().item() == pytest.approx(0.02 if recipe == "guide" else deviation, rel=0.1), name


def test_how_a_model_was_trained_is_no_part_of_its_config_json(settings: dict[str, Any], tmp_path: Path) -> None:
    entries = {}
    for recipe in ("paper", "guide"):
        config = configure(recipe, **settings)
        model, _ = training.build_model(config, config.checkpoint)
        model.save_pretrained(tmp_path / recipe)
        entries[recipe] = json.loads((tmp_path / recipe / "config.json").read_text(encoding="utf-8"))
    rates = ("drop_path_rate", "classifier_dropout_prob")
    assert {**entries["paper"], **{name: entries["guide"][name] for name in rates}} == entries["guide"]


def test_the_paper_recipe_runs_from_beginning_to_end(settings: dict[str, Any]) -> None:
    folder = train(configure("paper", **settings, image_size=64, per_device_train_batch_size=2))
    assert "keep" in (folder / "README.md").read_text(encoding="utf-8")
    assert ImageProcessor.from_pretrained(folder).keep_ratio_scale == (2048, 512)
    theirs = pil_processor.SegformerImageProcessorPil.from_pretrained(folder)
    assert (theirs.size["height"], theirs.size["width"]) == (64, 64)
    rates = [json.loads(line).get("learning_rate") for line in (folder / "log.jsonl").read_text().splitlines()]
    assert rates[0] == pytest.approx(6e-5 / 2 * (1 / 1500 + (1 - 1 / 1500) * 1e-6))


# Scoring


@pytest.mark.parametrize(("flip", "scales"), [(False, "1"), (True, "0.5,1.25")])
def test_scores_that_keep_the_shape_are_those_of_the_plain_way(
    flip: bool, scales: str, settings: dict[str, Any], small_shards: Path
) -> None:
    config = configure("paper", **settings, eval_flip=flip, eval_scales=scales)
    model, processor = training.build_model(config, config.checkpoint)
    torch.nn.init.normal_(model.decoder.classifier.weight)
    model.eval()
    ours = evaluate(model, training.build_samples(config, processor)[1], config, torch.device("cpu"))
    matrix, losses, pixels = ConfusionMatrix(150), 0.0, 0
    mean, std = (torch.tensor(values)[:, None, None] for values in (processor.image_mean, processor.image_std))
    for image, label_map in SceneParse150(small_shards, "validation"):
        labels = torch.from_numpy(np.array(label_map)).long()
        labels = torch.where(labels == 0, 255, labels - 1)
        probabilities = torch.zeros(150, *labels.shape)
        for number, scale in enumerate(config.scales):
            kept = keep_ratio_size(*image.size, (int(2048 * scale), int(512 * scale)))
            width, height = (math.ceil(side / 32) * 32 for side in kept)
            small = np.array(image.resize((width, height), Image.Resampling.BILINEAR))
            view = (torch.from_numpy(small).permute(2, 0, 1) / 255 - mean) / std
            for mirrored in (False, True) if flip else (False,):
                with torch.no_grad():
                    logits = model(view.flip(-1)[None] if mirrored else view[None])
                logits = logits.flip(-1) if mirrored else logits
                enlarged = F.interpolate(logits, labels.shape, mode="bilinear")
                probabilities += enlarged.softmax(1)[0]
                if number == 0 and not mirrored:
                    losses += float(F.cross_entropy(enlarged, labels[None], ignore_index=255, reduction="sum"))
                    pixels += int((labels != 255).sum())
        matrix.update(probabilities.argmax(0), labels)
    scores = matrix.scores()
    assert ours["eval_mean_iou"] == pytest.approx(scores.mean_iou, abs=1e-4)  # a tie of rounding may move a pixel
    assert ours["eval_overall_accuracy"] == pytest.approx(scores.overall_accuracy, abs=1e-4)
    assert ours["eval_loss"] == pytest.approx(losses / pixels, rel=1e-5)


def test_a_checkpoint_is_scored_alone_with_a_report(settings: dict[str, Any], tmp_path: Path) -> None:
    run = train(configure("guide", **settings))
    settings |= {"checkpoint": str(run), "eval_only": True, "output_dir": str(tmp_path / "score")}
    for resolution in ("processed", "original"):
        scored = train(
            configure("guide", **settings, eval_resolution=resolution, eval_flip=True, overwrite_output_dir=True)
        )
        assert json.loads((scored / "eval_results.json").read_text())["eval_mean_iou"] is not None
        assert (scored / "report.html").is_file()
    assert not list(scored.glob("*.safetensors"))


def test_scoring_alone_needs_no_training_split(
    settings: dict[str, Any], small_checkpoint: Path, tmp_path: Path
) -> None:
    settings |= {"split": "no-such-split", "eval_only": True, "checkpoint": str(small_checkpoint)}
    assert (train(configure("guide", **settings)) / "eval_results.json").is_file()


@pytest.mark.parametrize("count", [1, 3])
def test_mean_of_views_is_that_of_the_plain_way(count: int) -> None:
    torch.manual_seed(0)
    views = [torch.randn(2, 7, 9 + 4 * n, 12 + n) * 3 for n in range(count)]
    size = (37, 50)
    probabilities = [F.interpolate(view, size, mode="bilinear").softmax(1) for view in views]
    expected = torch.stack(probabilities).mean(0).argmax(1)
    assert torch.equal(fullres.argmax_of_mean(views, size), expected)
    assert torch.equal(fullres.plain_argmax_of_mean(views, size), expected)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"eval_scales": "1,x"}, "eval_scales is '1,x'; it must be numbers of 0.1 to 4"),
        ({"eval_scales": ""}, "eval_scales is ''"),
        ({"eval_scales": "0.5,1"}, "takes eval_resolution keep-ratio"),
        (
            {"eval_resolution": "keep-ratio", "per_device_eval_batch_size": 2},
            "per_device_eval_batch_size is 2; .* scored one by one: set it to 1",
        ),
        ({"augment_on_device": True, "augmentation": "paper"}, "augment_on_device is for the jitter"),
        (
            {"loss_mean": "all"},
            "loss_mean is 'all', which would count photos that only fill in .* --dataloader-drop-last",
        ),
        ({"augmentation": "cutmix"}, "augmentation is 'cutmix'; it is one of none, jitter, paper"),
        ({"head_learning_rate_factor": -1.0}, "head_learning_rate_factor is -1.0"),
        ({"eval_steps": 0}, "eval_steps is 0; it must be at least 1"),
    ],
)
def test_settings_that_contradict_each_other_are_refused_at_once(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        configure("guide", **changes)


# Going on with a run


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"variant": "b2"}, "variant None, this run asks for 'b2'"),
        ({"num_labels": 149, "reduce_labels": False}, "has other classes than the 149 asked for"),
        ({"learning_rate": 1.0}, "learning_rate 6e-05, this run asks for 1.0; go on with the former, or start"),
    ],
)
def test_what_would_make_another_run_of_it_is_refused_with_both_values(
    changes: dict[str, Any], message: str, settings: dict[str, Any]
) -> None:
    train(configure("guide", **settings))
    with pytest.raises(ValueError, match=message):
        train(configure("guide", **settings, **changes, resume_from_checkpoint="last"))


def test_a_run_goes_on_as_it_began_with_a_release_whose_recipe_has_learned_more(settings: dict[str, Any]) -> None:
    younger = {"dropout_channels": False, "loss_mean": "valid", "dataloader_drop_last": False}
    younger |= {"head_initialization": "transformers"}
    folder = train(configure("paper", **settings, **younger, image_size=64, per_device_train_batch_size=2))
    state_file = folder / "checkpoint-2/training_state.pt"
    state = torch.load(state_file, weights_only=True)
    for name in younger:
        del state["config"][name]
    torch.save(state, state_file)
    _write_sums(state_file.parent)
    config = parse_arguments(["--resume-from-checkpoint", str(folder)])
    assert config.recipe == "paper"
    assert {name: getattr(config, name) for name in younger} == younger
    train(config)
    settings |= {"image_size": 64, "per_device_train_batch_size": 2, "resume_from_checkpoint": "last"}
    with pytest.raises(
        ValueError, match=r"dropout_channels False, .*drop_last False, this run asks for 'authors', True, 'all', True"
    ):
        train(configure("paper", **settings))


def test_other_rows_are_refused_and_a_dataset_that_moved_is_not(
    settings: dict[str, Any], small_shards: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    settings |= {"num_labels": 150, "reduce_labels": True}
    train(configure("guide", **settings))
    moved = tmp_path / "moved"
    moved.symlink_to(small_shards)
    again = settings | {"dataset": str(moved), "resume_from_checkpoint": "last"}
    train(configure("guide", **again))
    assert f"dataset is now '{moved}', it was '{small_shards}'" in caplog.text
    write_shard(tmp_path / "other/train.parquet", _named_rows("other", 10), [])
    write_shard(tmp_path / "other/validation.parquet", _named_rows("other", 2), [])
    with pytest.raises(ValueError, match=r"on other rows: 10 of .*, from train_0; this run has 10 of .*, from other_0"):
        train(configure("guide", **{**again, "dataset": str(tmp_path / "other")}))


def _named_rows(name: str, count: int) -> Iterator[dict[str, Any]]:
    buffer = io.BytesIO()
    Image.new("L", (32, 32), 1).save(buffer, "PNG")
    for number in range(count):
        file = {"bytes": buffer.getvalue(), "path": f"{name}_{number}.png"}
        yield {"image": file, "annotation": file, "scene_category": None}


# Photos that are not square, and photos far larger than the crop


def test_an_image_size_of_height_and_width_is_that_of_training_scoring_and_transformers(
    settings: dict[str, Any],
) -> None:
    folder = train(configure("guide", **settings, image_size="32x64"))
    assert ImageProcessor.from_pretrained(folder).size == (32, 64)
    theirs = pil_processor.SegformerImageProcessorPil.from_pretrained(folder)
    assert theirs(Image.new("RGB", (50, 40)), return_tensors="pt")["pixel_values"].shape == (1, 3, 32, 64)
    assert json.loads((folder / "run.json").read_text())["image_size"] == [32, 64]


@pytest.mark.parametrize("size", ["0", "64x", "x64", "64x64x64", "64.5", "big"])
def test_an_image_size_that_is_none_is_refused(size: str) -> None:
    with pytest.raises(ValueError, match=rf"image_size is {size}; it must be a side in pixels, such as 512, or height"):
        configure("guide", image_size=size)


def test_paper_crops_are_scaled_around_their_own_size(settings: dict[str, Any]) -> None:
    config = configure("guide", **settings, augmentation="paper", image_size="32x48")
    _, processor = training.build_model(config, config.checkpoint)
    samples, _ = training.build_samples(config, processor)
    assert {tuple(samples[epoch, 0]["images"].shape) for epoch in range(4)} == {(3, 32, 48)}
    assert samples.prepare.augment.scale == (128, 32)  # of 512 x 512 the paper's 2048, 512


@pytest.mark.parametrize("flip", [False, True])
def test_windows_that_cover_a_photo_score_what_the_whole_photo_scores(
    flip: bool, settings: dict[str, Any], small_checkpoint: Path
) -> None:
    settings |= {"per_device_eval_batch_size": 1, "eval_resolution": "window", "eval_flip": flip}
    model = Segformer.from_pretrained(small_checkpoint)
    scores = []
    for window in (64, 4096):
        config = configure("guide", **settings, eval_window=window, eval_stride=64)
        samples = training.build_samples(config, ImageProcessor(size=(32, 32)))[1]
        scores.append(evaluate(model, samples, config, torch.device("cpu")))
    assert scores[0]["eval_loss"] == pytest.approx(scores[1]["eval_loss"], rel=1e-6)


def test_scores_in_windows_are_those_of_logits_averaged_by_hand(
    settings: dict[str, Any], tiny_model: Segformer
) -> None:
    images = torch.randn(1, 3, 64, 160, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        (seen,) = logits_of_views(tiny_model, [images], window=64, stride=32)
        total, count = torch.zeros(1, 7, 16, 40), torch.zeros(40)
        for left in (0, 32, 64, 96):
            total[..., left // 4 : left // 4 + 16] += tiny_model(images[..., left : left + 64])
            count[left // 4 : left // 4 + 16] += 1
    torch.testing.assert_close(seen, total / count, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("window", "stride"), [(100, 64), (64, 100), (64, 96)])
def test_windows_that_do_not_fit_the_grid_or_leave_gaps_are_refused(window: int, stride: int) -> None:
    with pytest.raises(ValueError, match=f"eval_window is {window} and eval_stride {stride}"):
        configure("guide", eval_window=window, eval_stride=stride)
