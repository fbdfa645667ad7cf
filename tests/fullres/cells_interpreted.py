"""The hand-written kernels: the plain values at any size, whatever the classes and labels.

``test_cells`` runs this with TRITON_INTERPRET=1, in a process of its own: what Triton interprets is settled when it is
imported.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from losses_compared import assert_same, assert_worked_out_in_float32, plain, some_logits, value_and_gradient
from torch import Tensor

from segformer import fullres
from segformer.fullres import cells


@pytest.fixture
def in_use(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The switch is on; the names of the kernels that ran."""
    from segformer.fullres import kernels

    ran: list[str] = []

    class Noting:
        def __getattr__(self, name: str) -> Any:
            ran.append(name)
            return getattr(kernels, name)

    monkeypatch.setattr(cells, "IN_USE", True)
    monkeypatch.setattr(cells, "_kernels", Noting)
    return ran


def some_labels(classes: int, size: tuple[int, int], ignore_index: int = 255) -> Tensor:
    generator = torch.Generator().manual_seed(2)
    labels = torch.randint(max(2, classes), (2, *size), generator=generator)
    return torch.where(torch.rand(labels.shape, generator=generator) < 0.2, ignore_index, labels)


def ours(logits: Tensor, labels: Tensor, ignore_index: int = 255) -> tuple[Tensor, Tensor]:
    return value_and_gradient(lambda x: fullres.cross_entropy(x, labels, ignore_index, reduction="sum"), logits)


SIZES = [
    ((3, 4), (12, 16)),  # four-fold
    ((1, 1), (4, 4)),
    ((1, 3), (4, 12)),
    ((3, 2), (13, 7)),  # odd, and no multiple
    ((2, 2), (38, 21)),  # more pixels between two logits than are made at once
    ((4, 3), (4, 3)),
    ((5, 7), (3, 2)),  # smaller than the logits
]


@pytest.mark.parametrize(("small", "size"), SIZES)
def test_loss_and_gradient_are_within_a_millionth_of_the_plain_ones(
    small: tuple[int, int], size: tuple[int, int], in_use: list[str]
) -> None:
    logits, labels = some_logits(19, small), some_labels(19, size)
    assert_same(ours(logits, labels), plain(logits, labels), 1e-6)
    assert in_use == ["cell_loss", "add_corners"]


@pytest.mark.parametrize(
    ("classes", "memory_format"),
    [
        (2, torch.contiguous_format),
        (16, torch.channels_last),
        (150, torch.contiguous_format),
        (300, torch.channels_last),
    ],
)
@pytest.mark.usefixtures("in_use")
def test_any_number_of_classes_is_taken(classes: int, memory_format: torch.memory_format) -> None:
    logits, labels = some_logits(classes, (2, 3)).contiguous(memory_format=memory_format), some_labels(classes, (8, 12))
    assert_same(ours(logits, labels), plain(logits, labels), 1e-6)


def test_one_class_is_the_binary_cross_entropy(in_use: list[str]) -> None:
    logits, labels = some_logits(1, (2, 3)), some_labels(1, (8, 12))
    found = ours(logits, labels)
    assert in_use
    both = value_and_gradient(lambda x: fullres.cross_entropy(x, labels, reduction="sum"), logits.double())
    assert_same(found, both, 1e-6)


@pytest.mark.parametrize("ignore_index", [-100, 0, 18, 255])
@pytest.mark.usefixtures("in_use")
def test_any_label_can_be_the_ignored_one(ignore_index: int) -> None:
    logits, labels = some_logits(19, (2, 3)), some_labels(19, (8, 12), ignore_index)
    assert_same(ours(logits, labels, ignore_index), plain(logits, labels, ignore_index), 1e-6)


@pytest.mark.usefixtures("in_use")
def test_labels_that_are_all_ignored_cost_nothing() -> None:
    value, gradient = ours(some_logits(19, (2, 2)), torch.full((2, 8, 8), 255))
    assert (value.item(), gradient.abs().max().item()) == (0, 0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.usefixtures("in_use")
def test_logits_in_low_precision_are_worked_out_in_float32(dtype: torch.dtype) -> None:
    logits, labels = some_logits(19, (2, 3)).to(dtype), some_labels(19, (8, 12))
    found = ours(logits, labels)
    assert found[1].dtype == dtype
    assert_worked_out_in_float32(found, plain(logits, labels))


@pytest.mark.usefixtures("in_use")
def test_the_loss_of_an_all_but_impossible_class_is_as_exact_as_any() -> None:
    logits = some_logits(19, (2, 3))
    logits[:, 3] -= torch.linspace(50, 200, 6).view(2, 3)  # probabilities down to less than a float32 can hold
    labels = torch.full((2, 8, 12), 3)
    assert_same(ours(logits, labels), plain(logits, labels), 1e-6)


@pytest.mark.usefixtures("in_use")
def test_a_loss_that_is_no_number_stays_none() -> None:
    logits, labels = some_logits(5, (2, 2)), some_labels(5, (8, 8))
    logits[0, 1, 0, 0] = float("nan")
    assert ours(logits, labels)[0].isnan()


def test_a_loss_without_a_gradient_makes_none(in_use: list[str]) -> None:
    logits, labels = some_logits(19, (2, 3)), some_labels(19, (8, 12))
    with torch.inference_mode():
        value = fullres.cross_entropy(logits, labels, reduction="sum")
    assert in_use == ["cell_loss"]
    torch.testing.assert_close(value.double(), plain(logits, labels)[0], rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    ("small", "size", "classes"), [(*sizes, 19) for sizes in SIZES] + [(*SIZES[3], classes) for classes in (1, 2, 150)]
)
def test_the_prediction_is_the_plain_one(
    small: tuple[int, int], size: tuple[int, int], classes: int, in_use: list[str]
) -> None:
    logits = some_logits(classes, small)
    assert torch.equal(fullres.argmax(logits, size), fullres.plain_argmax(logits, size))
    assert in_use == ["cell_argmax"]


@pytest.mark.usefixtures("in_use")
def test_of_equal_classes_the_first_wins() -> None:
    logits = torch.zeros(1, 5, 2, 2)
    logits[:, 2:4] = 1
    assert fullres.argmax(logits, (8, 8)).unique().tolist() == [2]


def test_other_losses_and_precisions_go_by_bands(in_use: list[str]) -> None:
    logits, labels = some_logits(5, (2, 3)), some_labels(5, (8, 12))
    fullres.mean_loss(logits, labels, fullres.Loss("focal"))
    fullres.cross_entropy(logits.double(), labels)
    fullres.cross_entropy(some_logits(2000, (1, 1)), some_labels(2000, (4, 4)))
    assert in_use == []
