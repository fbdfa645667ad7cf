"""Loss and prediction at label resolution against the plain way and transformers' own formulas."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from losses_compared import value_and_gradient
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from segformer import fullres
from segformer.fullres import bands, prediction, winners

SIZES = [
    ((8, 8), (32, 32)),
    ((8, 12), (32, 48)),
    ((8, 8), (30, 31)),
    ((7, 5), (27, 18)),
    ((5, 9), (97, 61)),
    ((6, 6), (6, 6)),
    ((9, 8), (4, 3)),
    ((8, 5), (3, 20)),
    ((40, 37), (7, 5)),
    ((1, 1), (13, 9)),
    ((1, 6), (5, 24)),
    ((5, 1), (1, 1)),
    ((16, 16), (300, 280)),  # of 150 classes, more than one band of rows
    ((75, 75), (300, 300)),
    ((3, 2), (12, 8)),
    ((2, 3), (9, 12)),
    ((4, 1), (16, 4)),
]


def some_logits(batch: int, classes: int, size: tuple[int, int], dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return 3 * torch.randn(batch, classes, *size, generator=generator, dtype=dtype)


def some_labels(batch: int, classes: int, size: tuple[int, int], ignore_index: int = 255) -> Tensor:
    generator = torch.Generator().manual_seed(2)
    labels = torch.randint(classes, (batch, *size), generator=generator)
    return torch.where(torch.rand(labels.shape, generator=generator) < 0.2, ignore_index, labels)


def transformers_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """As written in SegformerForSemanticSegmentation.forward."""
    upsampled = F.interpolate(logits, size=labels.shape[-2:], mode="bilinear", align_corners=False)
    return torch.nn.CrossEntropyLoss(ignore_index=255)(upsampled, labels)


def transformers_binary_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """As written in SegformerForSemanticSegmentation.forward for one class."""
    upsampled = F.interpolate(logits, size=labels.shape[-2:], mode="bilinear", align_corners=False)
    valid_mask = ((labels >= 0) & (labels != 255)).float()
    loss = torch.nn.BCEWithLogitsLoss(reduction="none")(upsampled.squeeze(1), labels.float())
    return (loss * valid_mask).mean()


def assert_same_loss(ours: tuple[Tensor, Tensor], expected: tuple[Tensor, Tensor], tolerance: float) -> None:
    """Relative to the loss, and to the largest entry of the gradient."""
    value, gradient = expected
    torch.testing.assert_close(ours[0], value, rtol=tolerance, atol=0)
    torch.testing.assert_close(ours[1], gradient, rtol=0, atol=tolerance * gradient.abs().max().item())


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(("small", "size"), SIZES)
def test_summed_loss_equals_the_plain_one(
    small: tuple[int, int], size: tuple[int, int], memory_format: torch.memory_format
) -> None:
    logits = some_logits(2, 150, small).contiguous(memory_format=memory_format)
    labels = some_labels(2, 150, size)
    ours = value_and_gradient(lambda x: fullres.cross_entropy(x, labels, reduction="sum"), logits)
    plain = value_and_gradient(lambda x: fullres.plain_cross_entropy(x, labels), logits)
    assert_same_loss(ours, plain, 1e-5)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
@pytest.mark.parametrize(("small", "size"), SIZES)
def test_mean_loss_equals_transformers(
    small: tuple[int, int], size: tuple[int, int], dtype: torch.dtype, tolerance: float
) -> None:
    logits, labels = some_logits(2, 19, small, dtype), some_labels(2, 19, size)
    labels[0, 0, 0] = 3  # one valid pixel at least, for transformers
    ours = value_and_gradient(lambda x: fullres.cross_entropy(x, labels), logits)
    theirs = value_and_gradient(lambda x: transformers_loss(x, labels), logits)
    assert_same_loss(ours, theirs, tolerance)


def test_a_machine_without_onednn_has_the_same_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    logits, labels = some_logits(2, 150, (75, 75)), some_labels(2, 150, (300, 300))
    at_once = value_and_gradient(lambda x: fullres.cross_entropy(x, labels), logits)
    monkeypatch.setattr(bands, "_HAS_DEPTHWISE", False)
    assert_same_loss(value_and_gradient(lambda x: fullres.cross_entropy(x, labels), logits), at_once, 1e-6)


@pytest.mark.parametrize(("small", "size"), [((8, 12), (32, 48)), ((7, 5), (27, 18)), ((9, 8), (4, 3))])
def test_binary_loss_equals_transformers(small: tuple[int, int], size: tuple[int, int]) -> None:
    logits, labels = some_logits(2, 1, small), some_labels(2, 2, size)
    ours = value_and_gradient(lambda x: fullres.cross_entropy(x, labels), logits)
    theirs = value_and_gradient(lambda x: transformers_binary_loss(x, labels), logits)
    assert_same_loss(ours, theirs, 1e-6)


def test_binary_sum_is_the_mean_times_all_pixels() -> None:
    logits, labels = some_logits(2, 1, (8, 8)), some_labels(2, 2, (30, 31))
    total = fullres.cross_entropy(logits, labels, reduction="sum")
    torch.testing.assert_close(total / labels.numel(), fullres.cross_entropy(logits, labels))


@pytest.mark.parametrize("size", [(6, 7), (2, 2), (3, 4)])
def test_gradient_passes_gradcheck_in_float64(size: tuple[int, int]) -> None:
    logits = some_logits(2, 4, (3, 2), torch.float64).requires_grad_()
    labels = some_labels(2, 4, size)
    assert torch.autograd.gradcheck(lambda x: fullres.cross_entropy(x, labels), logits)


def test_loss_keeps_float64_precision_with_one_class() -> None:
    logits, labels = some_logits(1, 1, (3, 2), torch.float64), some_labels(1, 2, (6, 7))
    assert fullres.cross_entropy(logits, labels).dtype == torch.float64


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_loss_of_half_precision_logits_is_worked_out_in_float32(
    dtype: torch.dtype, memory_format: torch.memory_format
) -> None:
    logits = some_logits(2, 19, (8, 12)).to(dtype).contiguous(memory_format=memory_format)
    labels = some_labels(2, 19, (32, 48))
    value, gradient = value_and_gradient(lambda x: fullres.cross_entropy(x, labels), logits)
    expected, exact = value_and_gradient(lambda x: transformers_loss(x, labels), logits.float())
    assert value.dtype == torch.float32
    assert gradient.dtype == dtype
    torch.testing.assert_close(value, expected, rtol=1e-5, atol=0)
    # The gradient is rounded once, to the precision of the logits.
    torch.testing.assert_close(gradient.float(), exact, rtol=torch.finfo(dtype).eps, atol=1e-6)


def test_autocast_does_not_round_the_loss() -> None:
    logits, labels = some_logits(2, 19, (8, 12)), some_labels(2, 19, (30, 47))
    exact = value_and_gradient(lambda x: fullres.cross_entropy(x, labels), logits)
    with torch.autocast("cpu", torch.bfloat16):
        inside = value_and_gradient(lambda x: fullres.cross_entropy(x, labels), logits)
    assert_same_loss(inside, exact, 1e-6)


def test_mean_is_the_sum_over_the_valid_pixels() -> None:
    logits, labels = some_logits(2, 19, (8, 8)), some_labels(2, 19, (30, 31))
    total = fullres.cross_entropy(logits, labels, reduction="sum")
    valid = (labels != 255).sum()
    assert valid < labels.numel()
    torch.testing.assert_close(fullres.cross_entropy(logits, labels) * valid, total)


def test_loss_of_a_batch_is_the_sum_of_its_images() -> None:
    logits, labels = some_logits(5, 150, (8, 8)), some_labels(5, 150, (90, 101))
    alone = [fullres.cross_entropy(logits[i : i + 1], labels[i : i + 1], reduction="sum") for i in range(5)]
    torch.testing.assert_close(fullres.cross_entropy(logits, labels, reduction="sum"), sum(alone), rtol=1e-5, atol=0)


def test_gradient_follows_the_scale_of_the_loss() -> None:
    logits, labels = some_logits(2, 19, (8, 8)), some_labels(2, 19, (30, 31))
    _, once = value_and_gradient(lambda x: fullres.cross_entropy(x, labels), logits)
    _, scaled = value_and_gradient(lambda x: -1024 * fullres.cross_entropy(x, labels), logits)
    assert torch.equal(scaled, -1024 * once)


def test_loss_without_a_gradient_is_the_same() -> None:
    logits, labels = some_logits(2, 19, (8, 8)), some_labels(2, 19, (30, 31))
    assert torch.equal(fullres.cross_entropy(logits, labels), fullres.cross_entropy(logits.requires_grad_(), labels))


def test_logits_under_ignored_pixels_alone_get_no_gradient() -> None:
    logits, labels = some_logits(1, 19, (8, 8)), some_labels(1, 19, (32, 32))
    labels[:, :, :16] = 255
    _, gradient = value_and_gradient(lambda x: fullres.cross_entropy(x, labels), logits)
    # The first valid column, 16, lies between the logits' columns 3 and 4.
    assert not gradient[..., :3].any()
    assert gradient[..., 3:].abs().amin(dim=(0, 1)).all()


def test_logits_of_ignored_pixels_do_not_change_the_loss() -> None:
    logits, labels = some_logits(2, 19, (8, 8)), some_labels(2, 19, (32, 32))
    labels[1] = 255
    elsewhere = logits.clone()
    elsewhere[1] += 5
    assert torch.equal(fullres.cross_entropy(logits, labels), fullres.cross_entropy(elsewhere, labels))


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("classes", [1, 19])
def test_a_batch_without_valid_pixels_costs_nothing(classes: int, reduction: str) -> None:
    labels = torch.full((2, 30, 31), 255)
    value, gradient = value_and_gradient(
        lambda x: fullres.cross_entropy(x, labels, reduction=reduction), some_logits(2, classes, (8, 8))
    )
    assert (value.item(), gradient.abs().max().item()) == (0.0, 0.0)


@pytest.mark.parametrize("ignore_index", [-100, 0, 18])
def test_any_label_can_be_the_ignored_one(ignore_index: int) -> None:
    logits, labels = some_logits(2, 19, (8, 8)), some_labels(2, 19, (30, 31), ignore_index)
    ours = fullres.cross_entropy(logits, labels, ignore_index=ignore_index, reduction="sum")
    torch.testing.assert_close(ours, fullres.plain_cross_entropy(logits, labels, ignore_index), rtol=1e-5, atol=0)


def test_loss_survives_large_logits() -> None:
    logits, labels = 1e4 * some_logits(1, 19, (4, 4)), some_labels(1, 19, (16, 16))
    ours = value_and_gradient(lambda x: fullres.cross_entropy(x, labels), logits)
    assert_same_loss(ours, value_and_gradient(lambda x: transformers_loss(x, labels), logits), 1e-5)


def test_loss_of_an_all_but_impossible_class_is_as_exact_as_any() -> None:
    logits = some_logits(1, 19, (4, 4))
    logits[:, 3] -= torch.linspace(50, 200, 16).view(4, 4)  # probabilities from 1e-20 to less than a float32 can hold
    labels = torch.full((1, 16, 16), 3)
    ours = value_and_gradient(lambda x: fullres.cross_entropy(x, labels), logits)
    exact = value_and_gradient(lambda x: transformers_loss(x, labels), logits.double())
    assert_same_loss(ours, (exact[0].float(), exact[1].float()), 1e-6)


@pytest.mark.parametrize(
    ("small", "size", "dtype"),
    [((128, 128), (512, 512), torch.float64), ((125, 94), (497, 375), torch.float32)],
    ids=["four-fold, against float64", "any size, whose corners float32 rounds for both, against float32"],
)
def test_loss_and_gradient_are_within_a_millionth_of_the_plain_ones(
    small: tuple[int, int], size: tuple[int, int], dtype: torch.dtype
) -> None:
    logits, labels = smooth_logits(1, 150, small), some_labels(1, 150, size)
    ours = value_and_gradient(lambda x: fullres.cross_entropy(x, labels), logits)
    plain = value_and_gradient(lambda x: transformers_loss(x, labels), logits.to(dtype))
    assert_same_loss(ours, (plain[0].float(), plain[1].float()), 1e-6)


LOGITS, LABELS = torch.zeros(2, 5, 4, 4), torch.zeros(2, 16, 16, dtype=torch.int64)


@pytest.mark.parametrize(
    ("logits", "labels", "message"),
    [
        (LOGITS[0], LABELS, r"logits are \[5, 4, 4\]"),
        (LOGITS[:, :0], LABELS, r"logits are \[2, 0, 4, 4\]"),
        (LOGITS[:, :, :0], LABELS, r"logits are \[2, 5, 0, 4\]"),
        (LOGITS, LABELS[0], r"labels are \[16, 16\]"),
        (LOGITS, LABELS[:, None], r"labels are \[2, 1, 16, 16\]"),
        (LOGITS, LABELS[:, :0], r"labels are \[2, 0, 16\]"),
        (LOGITS, LABELS.int(), r"torch\.int32"),
        (LOGITS, LABELS.to(torch.uint8), r"torch\.uint8"),
        (LOGITS, LABELS.float(), r"torch\.float32"),
        (LOGITS, LABELS[:1], "logits hold 2 images but labels 1"),
        (LOGITS, LABELS + 5, "labels hold 5; the classes are 0 to 4"),
        (LOGITS, LABELS - 1, "labels hold -1; the classes are 0 to 4"),
        (LOGITS[:, :1], LABELS + 2, "labels hold 2; the classes are 0 to 1"),
    ],
)
def test_wrong_input_is_refused_with_its_value(logits: Tensor, labels: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fullres.cross_entropy(logits, labels)


def test_an_unknown_reduction_is_refused() -> None:
    with pytest.raises(ValueError, match="reduction is 'none'"):
        fullres.cross_entropy(LOGITS, LABELS, reduction="none")


@pytest.mark.parametrize("size", [(0, 4), (4, -1), (4,), (1, 4, 4)])
def test_argmax_refuses_an_impossible_size(size: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="size is"):
        fullres.argmax(LOGITS, size)


def test_argmax_refuses_a_single_image_without_its_batch_axis() -> None:
    with pytest.raises(ValueError, match=r"logits are \[5, 4, 4\]"):
        fullres.argmax(LOGITS[0], (16, 16))


def smooth_logits(batch: int, classes: int, size: tuple[int, int]) -> Tensor:
    """Large regions of one class, as a trained model draws them."""
    coarse = some_logits(batch, classes, (3, 2))
    return F.interpolate(coarse, size, mode="bicubic")


@pytest.fixture
def worked_out(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """How many classes of pixels are worked out, by cells and by bands."""
    counts = {"cells": 0, "bands": 0}
    fill_cells, fill_bands = winners._fill, prediction._fill_bands

    def by_cells(classes: Tensor, number: Tensor, corners: Tensor, listed: Tensor, *taps: Any) -> None:
        counts["cells"] += int((number >= 0).sum()) * listed.shape[1]
        fill_cells(classes, number, corners, listed, *taps)

    def by_bands(prediction: Tensor, small: Any, strip: slice) -> None:
        counts["bands"] += prediction[:, strip].numel() * small.shape[-1]
        fill_bands(prediction, small, strip)

    monkeypatch.setattr(winners, "_fill", by_cells)
    monkeypatch.setattr(prediction, "_fill_bands", by_bands)
    return counts


@pytest.mark.parametrize("classes", [19, 150])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("size", [(128, 128), (125, 94), (90, 201)])
def test_argmax_of_smooth_logits_equals_the_plain_one_and_works_out_few_classes(
    size: tuple[int, int], memory_format: torch.memory_format, classes: int, worked_out: dict[str, int]
) -> None:
    logits = smooth_logits(2, classes, (32, 24)).contiguous(memory_format=memory_format)
    assert torch.equal(fullres.argmax(logits, size), fullres.plain_argmax(logits, size))
    assert 0 < worked_out["cells"] < 2 * size[0] * size[1] * classes / 5
    assert worked_out["bands"] == 0


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("size", [(128, 96), (125, 94), (300, 280)])
def test_argmax_of_noise_equals_the_plain_one_band_by_band(
    size: tuple[int, int], memory_format: torch.memory_format, worked_out: dict[str, int]
) -> None:
    logits = some_logits(2, 150, (32, 24)).contiguous(memory_format=memory_format)
    assert torch.equal(fullres.argmax(logits, size), fullres.plain_argmax(logits, size))
    assert worked_out == {"cells": 0, "bands": 2 * size[0] * size[1] * 150}


def test_a_class_that_wins_between_corners_and_at_none_is_found(worked_out: dict[str, int]) -> None:
    logits = torch.tensor([[5.0, 5, 5, 5, 5, 0], [0, 0, 0, 0, 0, 5], [3, 3, 3, 3, 3, 3], [1, 1, 1, 1, 1, 1]])
    prediction = fullres.argmax(logits[None, :, None], (1, 48))
    assert torch.equal(prediction, fullres.plain_argmax(logits[None, :, None], (1, 48)))
    assert prediction.unique().tolist() == [0, 1, 2]
    assert worked_out["cells"] > 0


def test_no_class_is_passed_over_that_rounding_lets_win() -> None:
    """Four classes are apart by the last bits of small logits, which are lost beside a large one; one is far behind."""
    apart = 1 + 2e-7 * some_logits(4, 2000, (1, 5)).view(4, 2000, 5) / 3
    corners = torch.tensor([1000.0, 1, 1, 1])[:, None, None] * apart
    corners[..., 4] -= 0.5
    rounding = 16 * torch.finfo(torch.float32).eps * corners.max()
    can_win = winners.can_win_between(corners, corners.argmax(2), rounding)
    assert not can_win[:, 4].any()
    for across, down in torch.rand(100, 2, generator=torch.Generator().manual_seed(0)):
        top, bottom = (torch.lerp(corners[i], corners[i + 1], across) for i in (0, 2))
        assert can_win.gather(1, torch.lerp(top, bottom, down).argmax(1, keepdim=True)).all()


@pytest.mark.parametrize("classes", [1, 2, 19])
@pytest.mark.parametrize(("small", "size"), SIZES)
def test_argmax_of_any_size_equals_the_plain_one(small: tuple[int, int], size: tuple[int, int], classes: int) -> None:
    logits = some_logits(2, classes, small)
    assert torch.equal(fullres.argmax(logits, size), fullres.plain_argmax(logits, size))


@pytest.mark.parametrize("make_logits", [smooth_logits, some_logits])
def test_argmax_of_bfloat16_logits_equals_the_plain_one(make_logits: Callable[..., Tensor]) -> None:
    logits = make_logits(2, 19, (16, 16)).bfloat16()
    assert torch.equal(fullres.argmax(logits, (64, 61)), fullres.plain_argmax(logits, (64, 61)))


@pytest.mark.parametrize("make_logits", [smooth_logits, some_logits])
def test_autocast_does_not_round_the_argmax(make_logits: Callable[..., Tensor]) -> None:
    logits = make_logits(2, 19, (16, 16))
    with torch.autocast("cpu", torch.bfloat16):
        prediction = fullres.argmax(logits, (64, 61))
    assert torch.equal(prediction, fullres.plain_argmax(logits, (64, 61)))


def test_argmax_takes_the_first_of_equal_classes() -> None:
    logits = torch.zeros(1, 5, 4, 4)
    logits[:, 2:4] = 1
    assert fullres.argmax(logits, (16, 16)).unique().tolist() == [2]


def peak_extra_bytes(work: Callable[[], object], trace: Path) -> int:
    """The most memory that ``work`` held at one time, by the allocator's own record of every block."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        work()
    profiler.export_chrome_trace(str(trace))
    events = [event for event in json.loads(trace.read_text())["traceEvents"] if event["name"] == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda event: event["ts"]):
        held += event["args"]["Bytes"]
        peak = max(peak, held)
    return peak


def loss_bytes(loss: Callable[[Tensor, Tensor], Tensor], side: int, trace: Path) -> int:
    """The most memory that a loss and its gradient hold for two images of ``side`` pixels and 150 classes."""
    logits = some_logits(2, 150, (side // 4, side // 4))
    logits = logits.contiguous(memory_format=torch.channels_last).requires_grad_()  # as the decoder makes them
    labels = some_labels(2, 150, (side, side))
    return peak_extra_bytes(lambda: loss(logits, labels).backward(), trace)


def test_loss_never_holds_a_third_of_the_enlarged_logits(tmp_path: Path) -> None:
    """At 384 pixels: a band has as many bytes in a small picture, which are more of it."""
    assert loss_bytes(fullres.cross_entropy, 384, tmp_path / "trace.json") < 2 * 150 * 384 * 384 * 4 / 3


@pytest.mark.slow
def test_loss_needs_a_twentieth_of_the_plain_memory(tmp_path: Path) -> None:
    losses = fullres.cross_entropy, fullres.plain_cross_entropy
    ours, plain = (loss_bytes(loss, 512, tmp_path / "trace.json") for loss in losses)
    assert plain > 2 * 150 * 512 * 512 * 4  # the record is complete: one enlarged batch at the least
    assert ours < 0.05 * plain


def test_argmax_needs_a_tenth_of_the_plain_memory(tmp_path: Path) -> None:
    logits = smooth_logits(1, 150, (128, 128)).contiguous(memory_format=torch.channels_last)
    ours, plain = (
        peak_extra_bytes(lambda argmax=argmax: argmax(logits, (512, 512)), tmp_path / "trace.json")
        for argmax in (fullres.argmax, fullres.plain_argmax)
    )
    assert plain > 150 * 512 * 512 * 4
    assert ours < 0.1 * plain


VIEWS = [[((8, 12), 1)], [((8, 12), 1), ((8, 12), 2)], [((8, 12), 1), ((5, 7), 2), ((12, 18), 3)]]


def some_views(shapes: list[tuple[tuple[int, int], int]], classes: int, batch: int = 2) -> list[Tensor]:
    generator = torch.Generator().manual_seed(4)
    return [scale * torch.randn(batch, classes, *size, generator=generator) for size, scale in shapes]


@pytest.mark.parametrize("classes", [2, 19, 150])
@pytest.mark.parametrize("size", [(32, 48), (30, 47), (3, 5), (300, 280)])
@pytest.mark.parametrize("shapes", VIEWS, ids=len)
def test_classes_and_their_probability_equal_the_plain_ones(
    shapes: list[tuple[tuple[int, int], int]], size: tuple[int, int], classes: int
) -> None:
    views = some_views(shapes, classes)
    label_map, probability = fullres.argmax_with_probability(views, size)
    expected_map, expected = fullres.plain_argmax_with_probability(views, size)
    torch.testing.assert_close(probability, expected, rtol=0, atol=1e-5)
    assert torch.equal(label_map, expected_map)
    assert torch.equal(label_map, fullres.argmax_of_mean(views, size))


@pytest.mark.parametrize("size", [(32, 48), (30, 47), (3, 5), (300, 280)])
@pytest.mark.parametrize("shapes", VIEWS, ids=len)
def test_probabilities_of_some_classes_equal_the_plain_ones(
    shapes: list[tuple[tuple[int, int], int]], size: tuple[int, int]
) -> None:
    views = some_views(shapes, 19)
    expected = fullres.plain_probabilities(views, size)
    torch.testing.assert_close(expected.sum(1), torch.ones(2, *size), rtol=0, atol=1e-5)
    found = fullres.probabilities(views, size, [7, 0, 18, 7])
    torch.testing.assert_close(found, expected[:, [7, 0, 18, 7]], rtol=0, atol=1e-5)


def test_a_single_view_is_judged_by_its_logits_where_rounding_makes_probabilities_equal() -> None:
    logits = torch.zeros(1, 3, 4, 4)
    logits[:, 2] = 1e-9
    assert fullres.plain_probabilities([logits], (8, 8)).unique().numel() == 1
    assert fullres.argmax_with_probability([logits], (8, 8))[0].unique().tolist() == [2]


def test_the_probability_of_an_only_class_is_its_sigmoid() -> None:
    logits = some_logits(2, 1, (8, 12))
    expected = F.interpolate(logits, (30, 47), mode="bilinear").sigmoid()
    torch.testing.assert_close(fullres.probabilities([logits], (30, 47), [0]), expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(
        fullres.argmax_with_probability([logits], (30, 47))[1], expected[:, 0], rtol=0, atol=1e-6
    )


@pytest.mark.parametrize("classes", [[5], [0, -1]])
def test_probabilities_of_a_class_that_is_not_there_are_refused(classes: list[int]) -> None:
    with pytest.raises(ValueError, match="the model knows 0 to 4"):
        fullres.probabilities([LOGITS], (16, 16), classes)


@pytest.mark.parametrize("size", [(0, 4), (4,)])
def test_predictions_with_probability_refuse_an_impossible_size(size: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="size is"):
        fullres.argmax_with_probability([LOGITS], size)


def test_probability_needs_a_tenth_of_the_plain_memory(tmp_path: Path) -> None:
    logits = smooth_logits(1, 150, (128, 128)).contiguous(memory_format=torch.channels_last)
    ours, plain = (
        peak_extra_bytes(lambda work=work: work([logits], (512, 512)), tmp_path / "trace.json")
        for work in (fullres.argmax_with_probability, fullres.plain_argmax_with_probability)
    )
    assert plain > 2 * 150 * 512 * 512 * 4
    assert ours < 0.1 * plain


class Forgetful:
    """``LogitRows`` that make no row before it is asked for, and destroy those above the rows asked for."""

    def __init__(self, logits: Tensor) -> None:
        self.small = logits.permute(0, 2, 3, 1).clone()
        self.shape, self.dtype, self.device = self.small.shape, self.small.dtype, self.small.device
        self.rows_asked: list[int] = []

    def rows(self, images: slice, rows: slice) -> Tensor:
        assert rows.start >= max(self.rows_asked, default=0), "rows are asked for from top to bottom"
        self.rows_asked.append(rows.start)
        self.small[:, : rows.start] = torch.nan
        return self.small[images, rows]


@pytest.mark.parametrize("strip_pixels", [1, 5000, 2**20])
@pytest.mark.parametrize("make_logits", [smooth_logits, some_logits])
def test_rows_are_asked_for_once_and_in_order(
    make_logits: Callable[..., Tensor], strip_pixels: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prediction, "_STRIP_PIXELS", strip_pixels)
    logits, size = make_logits(1, 19, (64, 48)).double(), (250, 193)  # in float64, so that no two classes tie
    enlarged, mirrored = (F.interpolate(each, size, mode="bilinear") for each in (logits, logits.flip(2)))
    assert torch.equal(fullres.argmax(Forgetful(logits), size), enlarged.argmax(1))
    assert torch.equal(fullres.argmax_with_probability([Forgetful(logits)], size)[0], enlarged.argmax(1))
    twice = fullres.argmax_of_mean([Forgetful(logits), Forgetful(logits.flip(2))], size)
    assert torch.equal(twice, (enlarged.softmax(1) + mirrored.softmax(1)).argmax(1))
    found = fullres.probabilities([Forgetful(logits)], size, [3])
    torch.testing.assert_close(found, enlarged.softmax(1)[:, 3:4], rtol=0, atol=1e-12)


@pytest.mark.parametrize("make_logits", [smooth_logits, some_logits])
def test_argmax_of_a_large_picture_is_seamless(make_logits: Callable[..., Tensor]) -> None:
    logits, size = make_logits(1, 7, (300, 330)).double(), (1199, 1317)  # in float64, so that no two classes tie
    assert size[0] * size[1] > prediction._STRIP_PIXELS  # more than one strip
    assert torch.equal(fullres.argmax(logits, size), F.interpolate(logits, size, mode="bilinear").argmax(1))


def test_argmax_of_a_large_picture_needs_few_bytes_a_pixel(tmp_path: Path) -> None:
    logits, size = smooth_logits(1, 7, (60, 80)), (2400, 3200)
    held = peak_extra_bytes(lambda: fullres.argmax(logits, size), tmp_path / "trace.json")
    assert held < 16 * size[0] * size[1]  # of which the answer takes 8
