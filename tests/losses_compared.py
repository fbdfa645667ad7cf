"""A loss and its gradient beside those of another way to the same, as several test files compare them."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor


def some_logits(classes: int, size: tuple[int, int], scale: float = 3) -> Tensor:
    return scale * torch.randn(2, classes, *size, generator=torch.Generator().manual_seed(1))


def value_and_gradient(loss: Callable[[Tensor], Tensor], logits: Tensor) -> tuple[Tensor, Tensor]:
    logits = logits.detach().requires_grad_()
    value = loss(logits)
    value.backward()
    assert logits.grad is not None
    return value.detach(), logits.grad


def plain(logits: Tensor, labels: Tensor, ignore_index: int = 255) -> tuple[Tensor, Tensor]:
    """By way of enlarged logits, in float64."""

    def loss(logits: Tensor) -> Tensor:
        enlarged = F.interpolate(logits, labels.shape[1:], mode="bilinear", align_corners=False)
        return F.cross_entropy(enlarged, labels, ignore_index=ignore_index, reduction="sum")

    return value_and_gradient(loss, logits.double())


def assert_same(ours: tuple[Tensor, Tensor], expected: tuple[Tensor, Tensor], tolerance: float) -> None:
    """Relative to the loss, and to the largest entry of the gradient."""
    torch.testing.assert_close(ours[0].double(), expected[0], rtol=tolerance, atol=0)
    largest = expected[1].abs().max().item()
    torch.testing.assert_close(ours[1].double(), expected[1], rtol=0, atol=tolerance * largest)


def assert_worked_out_in_float32(ours: tuple[Tensor, Tensor], expected: tuple[Tensor, Tensor]) -> None:
    """Of logits in lower precision: the loss is as exact as in float32, and the gradient rounded once, to theirs."""
    torch.testing.assert_close(ours[0].double(), expected[0], rtol=1e-6, atol=0)
    torch.testing.assert_close(ours[1].double(), expected[1], rtol=torch.finfo(ours[1].dtype).eps, atol=1e-6)
