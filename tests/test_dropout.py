"""relu and dropout at once: the rate, the scale, the gradient, and draws that a seed repeats."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from segformer.dropout import _draw, relu_dropout_

RATES = [0.1, 0.25, 0.5, 0.9, 1e-4, 1 - 1e-4]


def some_map(dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(2, 7, 5, 9, generator=generator).to(dtype).contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("threshold", [1, 6554, 2**15 - 1, 2**15, 2**15 + 1, 2**16 - 1])
def test_as_many_are_dropped_as_the_threshold_says(threshold: int) -> None:
    torch.manual_seed(0)
    count, rate = 2**22, threshold / 2**16
    error = math.sqrt(rate * (1 - rate) / count)
    assert _draw([count], threshold, torch.float64).mean().item() == pytest.approx(1 - rate, abs=5 * error)


def test_each_of_the_four_numbers_of_a_word_is_dropped_as_often_and_on_its_own() -> None:
    torch.manual_seed(0)
    count, rate = 2**22, 1 / 4
    dropped = 1 - _draw([count], 2**14, torch.float64).view(-1, 4)
    error = math.sqrt(1 / (count / 4))
    assert torch.allclose(dropped.mean(0), torch.tensor(rate).double(), atol=5 * error)
    correlations = torch.corrcoef(dropped.T) - torch.eye(4)
    assert correlations.abs().max() < 5 * error


@pytest.mark.parametrize("rate", RATES)
def test_the_rate_is_within_2_to_the_minus_17_and_the_scale_is_its_own(rate: float) -> None:
    _, scale = relu_dropout_(some_map(), rate)
    rounded = 1 - 1 / scale
    assert abs(rounded - rate) <= 2**-17
    assert rounded * 2**16 == pytest.approx(round(rounded * 2**16), abs=1e-6)


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_the_expectation_is_that_of_relu(rate: float) -> None:
    torch.manual_seed(0)
    kept, scale = relu_dropout_(torch.ones(1, 1, 1000, 1000), rate)
    error = math.sqrt(rate / (1 - rate) / kept.numel())
    assert (kept.double() * scale).mean().item() == pytest.approx(1, abs=5 * error)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("memory_format", [torch.channels_last, torch.contiguous_format])
def test_an_element_is_its_relu_or_0_and_passes_its_gradient_or_none(
    dtype: torch.dtype, memory_format: torch.memory_format
) -> None:
    torch.manual_seed(0)
    x = some_map(dtype).contiguous(memory_format=memory_format).requires_grad_()
    kept, _ = relu_dropout_(x * 1, 0.4)
    slope = torch.randn_like(kept)
    kept.backward(slope)
    alive = kept != 0
    assert 0.1 < alive.double().mean() < 0.5  # of those above 0, six in ten
    assert torch.equal(kept, torch.where(alive, x, 0))
    assert (x[alive] > 0).all()
    assert torch.equal(x.grad, torch.where(alive, slope, 0))


def test_it_works_in_place_in_either_layout() -> None:
    for memory_format in (torch.channels_last, torch.contiguous_format):
        x = torch.ones(2, 7, 5, 9).contiguous(memory_format=memory_format)
        kept, _ = relu_dropout_(x, 0.4)
        assert kept.data_ptr() == x.data_ptr()
        assert set(x.unique().tolist()) == {0.0, 1.0}


def test_a_seed_repeats_the_draw_and_the_next_draw_is_another() -> None:
    torch.manual_seed(3)
    first, second = (relu_dropout_(some_map(), 0.5)[0] for _ in range(2))
    torch.manual_seed(3)
    assert torch.equal(relu_dropout_(some_map(), 0.5)[0], first)
    assert not torch.equal(second, first)


def test_the_draw_does_not_depend_on_the_number_of_threads() -> None:
    threads, draws = torch.get_num_threads(), []
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            torch.manual_seed(3)
            draws.append(relu_dropout_(torch.ones(2, 64, 64, 64), 0.1)[0])
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(*draws)


@pytest.mark.parametrize(("rate", "left"), [(0.0, 1.0), (1.0, 0.0)])
def test_no_dropout_is_relu_and_full_dropout_is_0(rate: float, left: float) -> None:
    kept, scale = relu_dropout_(some_map(), rate)
    assert torch.equal(kept * scale, some_map().relu() * left)


def test_compiled_code_drops_at_the_same_rate() -> None:
    torch.manual_seed(0)
    kept, scale = torch.compile(relu_dropout_, backend="aot_eager", fullgraph=True)(torch.ones(1, 8, 250, 500), 0.1)
    assert (kept * scale == 0).double().mean().item() == pytest.approx(0.1, abs=5 * 0.3 / 1000)
    assert (kept * scale).double().mean().item() == pytest.approx(1, abs=5 / 3 / 1000)


# Whole channels


def channel_draws(rate: float, batch: int, channels: int) -> Tensor:
    """Which channels of which images a seed drops, (B, C) bool."""
    torch.manual_seed(0)
    kept, _ = relu_dropout_(torch.ones(batch, channels, 1, 1), rate, whole_channels=True)
    return kept[:, :, 0, 0] == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("memory_format", [torch.channels_last, torch.contiguous_format])
def test_a_channel_of_an_image_is_its_relu_or_0_and_passes_its_gradient_or_none(
    dtype: torch.dtype, memory_format: torch.memory_format
) -> None:
    dropped = channel_draws(0.4, 2, 7)[:, :, None, None]
    assert 0 < dropped.sum() < 14
    x = some_map(dtype).contiguous(memory_format=memory_format).requires_grad_()
    torch.manual_seed(0)
    kept, _ = relu_dropout_(x * 1, 0.4, whole_channels=True)
    slope = torch.randn_like(kept)
    kept.backward(slope)
    assert torch.equal(kept, torch.where(dropped, 0, x.relu()))
    assert torch.equal(x.grad, torch.where(dropped | (x <= 0), 0, slope))


@pytest.mark.parametrize("whole_channels", [False, True])
def test_dropping_hides_neither_what_is_no_number_nor_what_is_infinite_as_torchs_does_not(whole_channels: bool) -> None:
    x = torch.tensor([math.inf, math.nan]).view(1, 1, 1, 2).expand(1, 64, 1, 2).clone()
    kept, _ = relu_dropout_(x.clone(), 0.5, whole_channels)
    assert not kept.isfinite().any()
    assert not torch.nn.functional.dropout(x, 0.5).isfinite().any()


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_channels_are_dropped_at_the_rate_each_for_itself_and_the_scale_makes_up_for_it(rate: float) -> None:
    dropped = channel_draws(rate, 1000, 1000).double()
    error = math.sqrt(rate * (1 - rate) / dropped.numel())
    assert dropped.mean().item() == pytest.approx(rate, abs=2**-17 + 5 * error)
    for each in (dropped, dropped.T):  # channels of one image, and one channel of all images
        assert each.mean(1).std().item() == pytest.approx(math.sqrt(rate * (1 - rate) / 1000), rel=0.2)
    _, scale = relu_dropout_(some_map(), rate, whole_channels=True)
    assert (1 - dropped.mean().item()) * scale == pytest.approx(1, abs=2**-16 + 5 * error / (1 - rate))


@pytest.mark.parametrize(("rate", "left"), [(0.0, 1.0), (1.0, 0.0)])
def test_no_and_full_dropout_of_channels_are_relu_and_0(rate: float, left: float) -> None:
    kept, scale = relu_dropout_(some_map(), rate, whole_channels=True)
    assert torch.equal(kept * scale, some_map().relu() * left)


def test_compiled_code_drops_whole_channels_at_the_same_rate() -> None:
    torch.manual_seed(0)
    drop = torch.compile(relu_dropout_, backend="aot_eager", fullgraph=True)
    kept, scale = drop(torch.ones(1000, 1000, 1, 2), 0.1, whole_channels=True)
    assert torch.equal(kept[..., 0], kept[..., 1])
    assert (kept * scale == 0).double().mean().item() == pytest.approx(0.1, abs=5 * 0.3 / 1000)
    assert (kept * scale).double().mean().item() == pytest.approx(1, abs=5 / 3 / 1000)
