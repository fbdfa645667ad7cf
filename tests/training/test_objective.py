"""The losses that settings name, as a step of training computes them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import train as training
from data import SceneParse150
from segformer import Segformer, fullres
from segformer.fullres.losses import Loss, plain_loss
from train import TrainConfig, build_optimizer, configure, sum_ahead_for_dice, train, train_step

WEIGHTS = "1,2,0.5,1,3,1,1"


@pytest.fixture
def batch() -> dict[str, Tensor]:
    """Four photos of seven classes, a fifth of whose pixels are ignored."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 7, (4, 40, 48), generator=generator)
    labels[torch.rand(labels.shape, generator=generator) < 0.2] = 255
    return {"images": torch.randn(4, 3, 40, 48, generator=generator), "labels": labels}


def loss_and_gradients(model: Segformer, batch: dict[str, Tensor], config: TrainConfig) -> tuple[float, list[Tensor]]:
    """Those of one step that moves nothing."""
    optimizer = build_optimizer(model, config)
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    loss = float(train_step(model, optimizer, scaler, batch, config).loss)
    return loss, [weight.grad.clone() for weight in model.parameters() if weight.grad is not None]


CASES: list[tuple[dict[str, Any], Loss]] = [
    ({}, Loss()),
    ({"loss": "focal", "focal_gamma": 1.5}, Loss("focal", 1.5)),
    ({"loss": "ohem"}, Loss("ohem")),
    ({"class_weights": WEIGHTS}, Loss(weights=tuple(map(float, WEIGHTS.split(","))))),
    ({"label_smoothing": 0.1}, Loss(smoothing=0.1)),
    ({"dice_weight": 0.5}, Loss(dice_weight=0.5)),
]


@pytest.mark.parametrize(("settings", "loss"), CASES, ids=lambda each: str(each)[:40])
def test_a_step_minimises_the_loss_that_is_named(
    settings: dict[str, Any], loss: Loss, tiny_model: Segformer, batch: dict[str, Tensor]
) -> None:
    config = configure("guide", per_device_train_batch_size=4, max_grad_norm=0.0, **settings)
    ours, gradients = loss_and_gradients(tiny_model, batch, config)
    tiny_model.zero_grad()
    plain = plain_loss(tiny_model(batch["images"]), batch["labels"], loss)
    plain.backward()
    assert ours == pytest.approx(plain.item(), rel=1e-5)
    norm = torch.cat([gradient.flatten() for gradient in gradients]).norm()
    expected = [weight.grad for weight in tiny_model.parameters() if weight.grad is not None]
    for made, wanted in zip(gradients, expected, strict=True):
        torch.testing.assert_close(made, wanted, rtol=1e-4, atol=1e-5 * float(norm))


@pytest.mark.parametrize(
    "settings",
    [{"loss": "focal"}, {"class_weights": WEIGHTS}, {"label_smoothing": 0.1}, {"dice_weight": 0.5}],
    ids=str,
)
def test_accumulation_changes_nothing_about_the_loss_of_a_step(
    settings: dict[str, Any], tiny_model: Segformer, batch: dict[str, Tensor]
) -> None:
    at_once = configure("guide", per_device_train_batch_size=4, max_grad_norm=0.0, **settings)
    in_parts = configure(
        "guide", per_device_train_batch_size=1, gradient_accumulation_steps=4, max_grad_norm=0.0, **settings
    )
    whole, gradients = loss_and_gradients(tiny_model, batch, at_once)
    summed, others = loss_and_gradients(tiny_model, batch, in_parts)
    assert summed == pytest.approx(whole, rel=1e-5)
    norm = torch.cat([gradient.flatten() for gradient in gradients]).norm()
    for made, wanted in zip(others, gradients, strict=True):
        torch.testing.assert_close(made, wanted, rtol=1e-4, atol=1e-5 * float(norm))


def test_the_look_ahead_for_dice_is_of_the_passes_that_follow_and_leaves_no_trace(
    tiny_model: Segformer, batch: dict[str, Tensor]
) -> None:
    config = configure("guide", per_device_train_batch_size=2, gradient_accumulation_steps=2, dice_weight=0.5)
    parts = list(zip(batch["images"].split(2), batch["labels"].split(2), strict=True))
    tiny_model.train()
    before, state = [buffer.clone() for buffer in tiny_model.buffers()], torch.get_rng_state()
    ahead = sum_ahead_for_dice(tiny_model, parts, config)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(*pair) for pair in zip(tiny_model.buffers(), before, strict=True))
    with torch.no_grad():
        passes = [fullres.sum_for_dice(tiny_model(images), labels) for images, labels in parts]
    assert torch.equal(ahead, passes[0] + passes[1])
    assert not torch.equal(torch.get_rng_state(), state)  # something was drawn


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"loss": "hinge"}, "loss is 'hinge'; it is one of cross-entropy, focal, ohem"),
        ({"focal_gamma": -1.0}, "focal_gamma is -1.0"),
        ({"label_smoothing": 1.0}, "label_smoothing is 1.0"),
        ({"dice_weight": -0.5}, "dice_weight is -0.5"),
        ({"class_weights": "1,0,2"}, "every weight must be above 0"),
        ({"class_weights": "1,-2"}, "every weight must be above 0|at least 0"),
        ({"class_weights": "heavy"}, "class_weights is 'heavy'; it must be none, balanced, numbers"),
    ],
    ids=str,
)
def test_what_makes_no_loss_is_refused_before_anything_is_computed(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        configure("guide", **settings)


def test_weights_of_the_wrong_number_are_refused(tiny_model: Segformer, batch: dict[str, Tensor]) -> None:
    config = configure("guide", per_device_train_batch_size=4, class_weights="1,2")
    with pytest.raises(ValueError, match="class_weights are 2; there are 7 classes"):
        loss_and_gradients(tiny_model, batch, config)


def test_weights_come_from_a_file_too(tmp_path: Path) -> None:
    (tmp_path / "weights.txt").write_text("1\n2.5\n3\n")
    assert configure("guide", class_weights=str(tmp_path / "weights.txt")).objective.weights == (1, 2.5, 3)


def test_balanced_weights_are_those_of_the_training_rows_and_survive_a_resume(
    small_shards: Path, small_checkpoint: Path, tmp_path: Path
) -> None:
    settings = {"dataset": str(small_shards), "split": "train", "eval_split": "validation", "device": "cpu"}
    steps = {"max_steps": 2, "eval_steps": 2, "save_steps": 1, "class_weights": "balanced"}
    config = configure("guide", checkpoint=str(small_checkpoint), **settings, **steps, output_dir=str(tmp_path / "run"))
    run = training.Run(config)
    run.earlier.release()
    dataset = SceneParse150(small_shards, "train")
    pixels = sum(np.bincount(np.asarray(dataset[row][1]).ravel(), minlength=151)[1:] for row in range(len(dataset)))
    expected = [np.median(pixels[pixels > 0]) / count if count else 0.0 for count in pixels]
    assert run.step_config.objective.weights == pytest.approx(expected)
    whole = (train(replace(config, output_dir=str(tmp_path / "whole"))) / "model.safetensors").read_bytes()
    again = replace(config, output_dir=None, resume_from_checkpoint=str(tmp_path / "whole/checkpoint-1"))
    assert (train(again) / "model.safetensors").read_bytes() == whole


def test_balanced_weights_are_median_over_share_and_0_for_what_never_occurs() -> None:
    weights = configure("guide", class_weights="balanced").balanced([100, 50, 0, 25]).objective.weights
    assert weights == pytest.approx((0.5, 1, 0, 2))


def test_balanced_weights_that_nobody_worked_out_are_not_taken_for_none(tiny_model: Segformer) -> None:
    config = configure("guide", class_weights="balanced")
    with pytest.raises(ValueError, match=r"class_weights is 'balanced'; config\.balanced\(pixels\) works"):
        config.objective  # noqa: B018
    optimizer, scaler = build_optimizer(tiny_model, config), torch.amp.GradScaler("cpu", enabled=False)
    batch = {"images": torch.zeros(2, 3, 32, 32), "labels": torch.zeros(2, 32, 32, dtype=torch.int64)}
    with pytest.raises(ValueError, match="class_weights is 'balanced'"):
        train_step(tiny_model, optimizer, scaler, batch, config)


def test_weights_that_are_no_text_are_refused_in_words() -> None:
    with pytest.raises(ValueError, match="class_weights"):
        configure("guide", class_weights=[1, 2])
