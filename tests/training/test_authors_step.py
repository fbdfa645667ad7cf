"""A step of the paper's recipe beside the authors' own, written anew from what mmsegmentation 0.11 does.

Their model here is transformers', whose decoder enlarges, concatenates and fuses as the paper has it. One line of
theirs is left out on purpose: they decay the decoder's BatchNorm, which ours spares like every norm.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from libraries import transformers
from torch import Tensor, nn

from segformer import Segformer, SegformerConfig
from segformer.dropout import relu_dropout_
from segformer.weights import dialects
from train import TrainConfig, build_optimizer, configure, learning_rate, train_step

TOTAL_STEPS, WARMUP_STEPS, RATE = 10, 2, 6e-5
RATES = {"drop_path_rate": 0.0, "classifier_dropout_prob": 0.0}


class KeptChannels(nn.Module):
    """Dropout2d whose draw is given: (B, C), 0 for what is dropped, else the factor that makes up for it."""

    def __init__(self) -> None:
        super().__init__()
        self.factors = torch.ones(1, 1)

    def forward(self, fused: Tensor) -> Tensor:
        return fused * self.factors[:, :, None, None].to(fused.dtype)


class AuthorsTraining:
    """Theirs: a cross-entropy at the crop's size, AdamW by parameter names, a line down that a warm-up multiplies."""

    def __init__(self, model: Any) -> None:
        self.model = model.train()
        self.kept = self.model.decode_head.dropout = KeptChannels()
        self.done = 0
        groups = []
        for name, weight in model.named_parameters():
            group: dict[str, Any] = {"params": [weight], "lr": RATE, "weight_decay": 0.01}
            if "decode_head" in name:
                group["lr"] = 10 * RATE
            if "norm" in name:
                group["weight_decay"] = 0.0
            groups.append(group)
        self.optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.999), foreach=False)
        self.base_rates = [group["lr"] for group in groups]

    def step(self, images: Tensor, labels: Tensor) -> Tensor:
        logits = F.interpolate(self.model(images).logits, labels.shape[1:], mode="bilinear", align_corners=False)
        loss = F.cross_entropy(logits, labels, ignore_index=255, reduction="none").mean()
        self.optimizer.zero_grad()
        loss.backward()
        for group, base in zip(self.optimizer.param_groups, self.base_rates, strict=True):
            regular = base * (1 - self.done / TOTAL_STEPS) ** 1.0
            missing = (1 - self.done / WARMUP_STEPS) * (1 - 1e-6) if self.done < WARMUP_STEPS else 0.0
            group["lr"] = regular * (1 - missing)
        self.optimizer.step()
        self.done += 1
        return loss.detach()


class OurTraining:
    """Ours: what the loop of train.py does in a step, with the settings of the recipe."""

    def __init__(self, model: Segformer, config: TrainConfig) -> None:
        self.model, self.config, self.done = model.train(), config, 0
        self.model.decoder.drops_channels = config.dropout_channels
        self.optimizer = build_optimizer(model, config)
        self.scaler = torch.amp.GradScaler("cpu", enabled=False)

    def step(self, images: Tensor, labels: Tensor) -> Tensor:
        self.done += 1
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.done, TOTAL_STEPS, self.config) * group["lr_factor"]
        batch = {"images": images, "labels": labels}
        return train_step(self.model, self.optimizer, self.scaler, batch, self.config).loss


def of_both(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
    """Tensors of both models by name, keys and values apart."""
    apart: dict[str, Tensor] = {}
    for name, tensor in ours.items():
        halves = ("key", "value") if ".key_value." in name else ("key_value",)
        pieces = tensor.chunk(len(halves)) if tensor.ndim else (tensor,)
        apart |= {name.replace("key_value", half): piece for half, piece in zip(halves, pieces, strict=True)}
    renamed = {dialects._recognise(name)[0]: tensor for name, tensor in theirs.items()}
    assert apart.keys() == renamed.keys()
    return {name: (tensor, renamed[name]) for name, tensor in apart.items()}


Both = Callable[..., tuple[OurTraining, AuthorsTraining]]


@pytest.fixture
def both(tiny_config: SegformerConfig, tmp_path: Path) -> Both:
    """Both trainings of the same weights, with a rate of dropout for ours."""
    torch.manual_seed(0)
    model = Segformer(tiny_config)
    for weight in model.parameters():
        if weight.ndim > 1:
            nn.init.normal_(weight, std=weight[0].numel() ** -0.5)
        else:
            weight.data += 0.2 * torch.randn_like(weight)
    model.save_pretrained(tmp_path)

    def make(dtype: torch.dtype, dropout: float, **changes: Any) -> tuple[OurTraining, AuthorsTraining]:
        config = configure("paper", learning_rate=RATE, warmup_steps=WARMUP_STEPS, **changes)
        ours = Segformer.from_pretrained(tmp_path, config_changes={**RATES, "classifier_dropout_prob": dropout})
        theirs = transformers.SegformerForSemanticSegmentation.from_pretrained(tmp_path, **RATES)
        return OurTraining(ours.to(dtype), config), AuthorsTraining(theirs.to(dtype))

    return make


def crops(step: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Three crops of 64 x 64 with ignored pixels, one of them padded to the right and below."""
    generator = torch.Generator().manual_seed(step)
    images = torch.randn(3, 3, 64, 64, generator=generator).to(dtype)
    labels = torch.randint(0, 7, (3, 8, 8), generator=generator).repeat_interleave(8, 1).repeat_interleave(8, 2)
    labels[labels == step % 7] = 255
    images[1, :, 40:], images[1, :, :, 50:] = 0, 0
    labels[1, 40:], labels[1, :, 50:] = 255, 255
    return images, labels


def factors_of_draw(seed: int, shape: tuple[int, int], rate: float) -> Tensor:
    """What our dropout multiplies each channel by after that seed."""
    torch.manual_seed(seed)
    kept, scale = relu_dropout_(torch.ones(*shape, 1, 1), rate, whole_channels=True)
    return kept[:, :, 0, 0].double() * scale


def take_step(ours: OurTraining, theirs: AuthorsTraining, dtype: torch.dtype, dropout: float) -> tuple[Tensor, Tensor]:
    """The losses of one step of both, on the same crops with the same channels dropped."""
    images, labels = crops(ours.done, dtype)
    if dropout:
        width = ours.model.config.decoder_hidden_size
        theirs.kept.factors = factors_of_draw(ours.done, (len(images), width), dropout)
        assert 0 < (theirs.kept.factors == 0).sum() < theirs.kept.factors.numel()
    torch.manual_seed(ours.done)
    return ours.step(images, labels), theirs.step(images, labels)


@pytest.mark.parametrize("dropout", [0.0, 0.3], ids=["no dropout", "the channels given"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-13)])
def test_loss_and_every_gradient_of_a_step_are_the_authors(
    both: Both, dtype: torch.dtype, tolerance: float, dropout: float
) -> None:
    ours, theirs = both(dtype, dropout)
    loss, expected_loss = take_step(ours, theirs, dtype, dropout)
    assert loss.item() == pytest.approx(expected_loss.item(), rel=1e-6)  # ours tells it in float32
    gradients = [{name: weight.grad for name, weight in each.model.named_parameters()} for each in (ours, theirs)]
    pairs = of_both(*gradients)
    # Of what a softmax or a BatchNorm takes out again the gradient is rounding around zero.
    largest = max(gradient.norm() for _, gradient in pairs.values())
    for name, (found, gradient) in pairs.items():
        assert (found - gradient).norm() <= tolerance * (gradient.norm() + 0.1 * largest), name


@pytest.mark.parametrize("dropout", [0.0, 0.3], ids=["no dropout", "the channels given"])
def test_weights_after_three_steps_are_the_authors(both: Both, dropout: float) -> None:
    ours, theirs = both(torch.float64, dropout)  # in float32 Adam makes steps of gradients that are rounding alone
    started = {name: weight.detach().clone() for name, weight in ours.model.named_parameters()}
    for _ in range(3):
        loss, expected_loss = take_step(ours, theirs, torch.float64, dropout)
        assert loss.item() == pytest.approx(expected_loss.item(), rel=1e-6)
    for name, weight in ours.model.named_parameters():
        if weight.ndim > 1:  # of biases some have no gradient
            assert (weight - started[name]).abs().median() > 1e-6, name
    for name, (weight, expected) in of_both(ours.model.state_dict(), theirs.model.state_dict()).items():
        torch.testing.assert_close(weight, expected, rtol=0, atol=1e-11, msg=name)


@pytest.mark.parametrize(
    "change",
    [{"loss_mean": "valid"}, {"dropout_channels": False}, {"weight_decay": 0.0}, {"head_learning_rate_factor": 1.0}],
    ids=str,
)
def test_each_of_the_recipes_own_settings_is_needed_for_that(both: Both, change: dict[str, Any]) -> None:
    ours, theirs = both(torch.float64, 0.3, **change)
    for _ in range(3):
        take_step(ours, theirs, torch.float64, 0.3)
    pairs = of_both(ours.model.state_dict(), theirs.model.state_dict())
    assert max((weight - expected).abs().max().item() for weight, expected in pairs.values()) > 1e-6
