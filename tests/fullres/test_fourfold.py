"""The loss for torch.compile: the plain one's values, and nothing of the enlarged logits' size once it is compiled."""

from __future__ import annotations

import re
from collections.abc import Iterator
from math import prod

import pytest
import torch
from fake_cuda import fake_cuda
from losses_compared import assert_same, assert_worked_out_in_float32, plain, some_logits, value_and_gradient
from torch import Tensor
from torch._inductor.utils import run_and_get_code

from segformer import fullres
from segformer.fullres import fourfold

SIZES = [(8, 12), (1, 1), (1, 5), (7, 1), (2, 2)]


@pytest.fixture(autouse=True)
def no_kinds_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fourfold, "_kinds", set())


@pytest.fixture
def as_it_stands() -> Iterator[None]:
    """What would be compiled runs as it is."""
    with torch.compiler.set_stance("force_eager"):
        yield


def some_labels(classes: int, size: tuple[int, int], ignore_index: int = 255) -> Tensor:
    generator = torch.Generator().manual_seed(2)
    labels = torch.randint(classes, (2, 4 * size[0], 4 * size[1]), generator=generator)
    return torch.where(torch.rand(labels.shape, generator=generator) < 0.2, ignore_index, labels)


def ours(logits: Tensor, labels: Tensor, ignore_index: int = 255) -> tuple[Tensor, Tensor]:
    return value_and_gradient(
        lambda x: fullres.cross_entropy(x, labels, ignore_index, reduction="sum", compiled=True), logits
    )


@pytest.mark.usefixtures("as_it_stands")
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("classes", [2, 19, 150])
@pytest.mark.parametrize("size", SIZES)
def test_loss_and_gradient_are_within_a_millionth_of_the_plain_ones(
    size: tuple[int, int], classes: int, memory_format: torch.memory_format
) -> None:
    logits, labels = some_logits(classes, size).contiguous(memory_format=memory_format), some_labels(classes, size)
    assert_same(ours(logits, labels), plain(logits, labels), 1e-6)


@pytest.mark.usefixtures("as_it_stands")
def test_one_class_is_the_binary_cross_entropy() -> None:
    logits, labels = some_logits(1, (4, 6)), some_labels(2, (4, 6))
    expected = value_and_gradient(lambda x: fullres.cross_entropy(x, labels, reduction="sum"), logits.double())
    assert_same(ours(logits, labels), expected, 1e-6)


@pytest.mark.usefixtures("as_it_stands")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_logits_in_low_precision_are_worked_out_in_float32(dtype: torch.dtype) -> None:
    logits, labels = some_logits(19, (8, 8)).to(dtype), some_labels(19, (8, 8))
    found = ours(logits, labels)
    assert found[1].dtype == dtype
    assert_worked_out_in_float32(found, plain(logits, labels))


@pytest.mark.usefixtures("as_it_stands")
def test_float64_keeps_its_precision() -> None:
    logits, labels = some_logits(5, (4, 6)).double(), some_labels(5, (4, 6))
    assert_same(ours(logits, labels), plain(logits, labels), 1e-14)


@pytest.mark.usefixtures("as_it_stands")
@pytest.mark.parametrize("ignore_index", [-100, 0, 18])
def test_any_label_can_be_the_ignored_one(ignore_index: int) -> None:
    logits, labels = some_logits(19, (4, 6)), some_labels(19, (4, 6), ignore_index)
    assert_same(ours(logits, labels, ignore_index), plain(logits, labels, ignore_index), 1e-6)


@pytest.mark.usefixtures("as_it_stands")
def test_labels_that_are_all_ignored_cost_nothing() -> None:
    value, gradient = ours(some_logits(19, (4, 6)), torch.full((2, 16, 24), 255))
    assert (value.item(), gradient.abs().max().item()) == (0, 0)


@pytest.mark.usefixtures("as_it_stands")
def test_loss_survives_large_logits() -> None:
    logits, labels = some_logits(19, (4, 4), scale=1e4), some_labels(19, (4, 4))
    value, gradient = ours(logits, labels)
    # At 1e4 a float32 has three digits behind the point, of which softmax is a function: bands are as far off.
    assert_same((value, gradient), plain(logits, labels), 5e-3)


@pytest.mark.usefixtures("as_it_stands")
def test_the_loss_of_an_all_but_impossible_class_is_as_exact_as_any() -> None:
    logits = some_logits(19, (4, 4))
    logits[:, 3] -= torch.linspace(50, 200, 16).view(4, 4)  # probabilities down to less than a float32 can hold
    labels = torch.full((2, 16, 16), 3)
    assert_same(ours(logits, labels), plain(logits, labels), 1e-6)


@pytest.mark.usefixtures("as_it_stands")
@pytest.mark.parametrize("size", [(30, 48), (32, 47), (64, 96)])
def test_other_enlargements_go_by_bands(size: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    with fake_cuda(monkeypatch) as card:
        labels = torch.empty(2, *size, dtype=torch.int64, device="cuda")
        fullres.cross_entropy(torch.empty(2, 5, 8, 12, device="cuda"), labels, compiled=True)
    assert card.kernels("bmm")


@pytest.mark.usefixtures("as_it_stands")
def test_there_are_no_products_no_tables_and_no_atomics(monkeypatch: pytest.MonkeyPatch) -> None:
    with fake_cuda(monkeypatch) as card:
        labels = torch.empty(2, 32, 48, dtype=torch.int64, device="cuda")
        logits = torch.empty(2, 5, 8, 12, device="cuda", requires_grad=True)
        fullres.cross_entropy(logits, labels, compiled=True).backward()
    assert not card.kernels("bmm", "mm", "addmm", "index_add_", "scatter_add_", "index_select", "gather", "index")
    assert card.waits == []


@pytest.mark.usefixtures("as_it_stands")
def test_more_kinds_of_input_than_are_compiled_go_by_bands(monkeypatch: pytest.MonkeyPatch) -> None:
    with fake_cuda(monkeypatch) as card:
        for width in range(1, 20):
            card.forget()
            labels = torch.empty(2, 32, 4 * width, dtype=torch.int64, device="cuda")
            fullres.cross_entropy(torch.empty(2, 5, 8, width, device="cuda"), labels, compiled=True)
            assert bool(card.kernels("bmm")) == (width > 8)


def test_bands_start_few_kernels_and_none_writes_a_large_part_of_the_enlarged_logits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with fake_cuda(monkeypatch) as card:
        logits = torch.empty(16, 150, 128, 128, device="cuda", dtype=torch.bfloat16, requires_grad=True)
        labels = torch.empty(16, 512, 512, dtype=torch.int64, device="cuda")
        for _ in range(2):  # the first plans the bands
            card.forget()
            fullres.cross_entropy(logits, labels).backward()
    assert max(launch.numel for launch in card.launches) < 16 * 150 * 512 * 512 / 8
    assert len(card.launches) <= 414


@pytest.mark.slow  # half a minute of a C++ compiler
def test_compiled_it_has_the_plain_values_and_no_buffer_of_the_enlarged_logits_size() -> None:
    logits, labels = some_logits(19, (8, 8)).contiguous(memory_format=torch.channels_last), some_labels(19, (8, 8))
    result, codes = run_and_get_code(lambda: ours(logits, labels))
    assert_same(result, plain(logits, labels), 1e-6)
    shapes = re.findall(r"empty_strided\w*\(\(([\d, ]*)\)", "".join(codes))
    buffers = [prod(int(side) for side in shape.split(",") if side.strip()) for shape in shapes]
    # The largest is that of every second step: as many rows as there are pixels, as many columns as logits.
    assert 0 < max(buffers) < 2 * 19 * 32 * 32 / 3
