"""Every loss at label resolution against its plain twin, which is itself held to torch's and the papers' formulas."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from test_fullres import assert_same_loss, peak_extra_bytes, some_labels, some_logits, value_and_gradient
from torch import Tensor

from segformer import fullres
from segformer.fullres import Loss

WEIGHTS = (0.3, 2.0, 1.0, 0.0, 5.5)
LOSSES = {
    "plain": Loss(),
    "weighted": Loss(weights=WEIGHTS),
    "smoothed": Loss(smoothing=0.1),
    "weighted and smoothed": Loss(weights=WEIGHTS, smoothing=0.3),
    "focal": Loss("focal"),
    "focal of gamma 0.5": Loss("focal", gamma=0.5),
    "focal of gamma 0": Loss("focal", gamma=0.0),
    "focal of gamma 0.5, smoothed": Loss("focal", gamma=0.5, smoothing=0.1),
    "ohem": Loss("ohem"),
    "dice": Loss(dice_weight=0.7),
    "all of focal": Loss("focal", gamma=1.5, weights=WEIGHTS, smoothing=0.2, dice_weight=2.0),
    "all of ohem": Loss("ohem", weights=WEIGHTS, smoothing=0.2, dice_weight=0.5),
}
every_loss = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
SIZES = [((8, 12), (32, 48)), ((7, 5), (27, 18)), ((9, 8), (4, 3)), ((1, 1), (13, 9)), ((75, 70), (300, 280))]


def ours(logits: Tensor, labels: Tensor, loss: Loss, **more: Any) -> tuple[Tensor, Tensor]:
    return value_and_gradient(lambda x: fullres.mean_loss(x, labels, loss, **more), logits)


def plain(logits: Tensor, labels: Tensor, loss: Loss, **more: Any) -> tuple[Tensor, Tensor]:
    return value_and_gradient(lambda x: fullres.plain_loss(x, labels, loss, **more), logits)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-11)])
@pytest.mark.parametrize(("small", "size"), SIZES)
@every_loss
def test_loss_and_gradient_equal_the_plain_ones(
    loss: Loss, small: tuple[int, int], size: tuple[int, int], dtype: torch.dtype, tolerance: float
) -> None:
    logits, labels = some_logits(2, 5, small, dtype), some_labels(2, 5, size)
    if loss.kind == "ohem" and dtype == torch.float32:
        tolerance = 1e-5  # of a few hard pixels, whose costs round more
    assert_same_loss(ours(logits, labels, loss), plain(logits, labels, loss), tolerance)


@pytest.mark.parametrize("size", [(6, 7), (12, 8), (2, 2)])
@pytest.mark.parametrize("loss", [loss for loss in LOSSES.values() if loss.kind != "ohem"])
def test_gradient_passes_gradcheck_in_float64(loss: Loss, size: tuple[int, int]) -> None:
    logits = some_logits(2, 5, (3, 2), torch.float64).requires_grad_()
    labels = some_labels(2, 5, size)
    assert torch.autograd.gradcheck(lambda x: fullres.mean_loss(x, labels, loss), logits)


@every_loss
def test_a_model_of_one_class_has_the_loss_of_background_and_object(loss: Loss) -> None:
    loss = Loss(loss.kind, loss.gamma, loss.weights and (0.5, 3.0), loss.smoothing, loss.dice_weight)
    logits, labels = some_logits(2, 1, (8, 8)), some_labels(2, 2, (30, 31))
    both = torch.cat([torch.zeros_like(logits), logits], 1)
    expected, gradient = plain(both, labels, loss)
    assert_same_loss(ours(logits, labels, loss), (expected, gradient[:, 1:]), 1e-5)


def test_weights_and_smoothing_are_those_of_torch() -> None:
    logits, labels = some_logits(2, 5, (8, 8), torch.float64), some_labels(2, 5, (32, 31))
    upsampled = F.interpolate(logits, (32, 31), mode="bilinear")
    weights = torch.tensor(WEIGHTS, dtype=torch.float64)
    expected = F.cross_entropy(upsampled, labels, weights, ignore_index=255, label_smoothing=0.1)
    found = fullres.mean_loss(logits, labels, Loss(weights=WEIGHTS, smoothing=0.1))
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)


def test_focal_ohem_and_dice_are_their_formulas_pixel_by_pixel() -> None:
    logits, labels = some_logits(1, 3, (4, 4), torch.float64), some_labels(1, 3, (9, 9))
    probability = F.interpolate(logits, (9, 9), mode="bilinear").softmax(1)[0]
    pixels = [
        (probability[:, y, x], int(labels[0, y, x])) for y in range(9) for x in range(9) if labels[0, y, x] != 255
    ]
    truths = sorted(p[k].item() for p, k in pixels)
    focal = sum((1 - p) ** 2 * -math.log(p) for p in truths) / len(truths)
    hardest = truths[: math.ceil(len(truths) / 16)]
    kept = [p for p in truths if p < 0.7 or p in hardest]
    ohem = sum(-math.log(p) for p in kept) / len(truths)
    dice = 0.0
    for k in range(3):
        found = sum(p[k].item() for p, label in pixels if label == k)
        sizes = sum(p[k].item() for p, _ in pixels) + sum(label == k for _, label in pixels)
        dice += (1 - 2 * found / sizes) / 3
    plain_mean = fullres.cross_entropy(logits, labels).item()
    assert fullres.mean_loss(logits, labels, Loss("focal")).item() == pytest.approx(focal, rel=1e-12)
    assert fullres.mean_loss(logits, labels, Loss("ohem")).item() == pytest.approx(ohem, rel=1e-12)
    found_dice = fullres.mean_loss(logits, labels, Loss(dice_weight=0.5)).item() - plain_mean
    assert found_dice == pytest.approx(0.5 * dice, rel=1e-12)


def test_ohem_keeps_the_hardest_sixteenth_where_all_is_easy() -> None:
    labels = some_labels(1, 5, (32, 32))
    logits = torch.zeros(1, 5, 32, 32).scatter_(1, torch.where(labels == 255, 0, labels)[:, None], 1)
    logits *= 5 + torch.rand(1, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    _, gradient = ours(logits, labels, Loss("ohem"))
    assert (gradient.abs().amax(1) > 0).sum() == math.ceil((labels != 255).sum().item() / 16)


def test_the_plain_loss_is_the_cross_entropy_to_the_bit() -> None:
    logits, labels = some_logits(2, 19, (8, 8)), some_labels(2, 19, (32, 31))
    mean = value_and_gradient(lambda x: fullres.cross_entropy(x, labels), logits)
    assert all(map(torch.equal, ours(logits, labels, Loss()), mean))


@pytest.mark.parametrize("loss", [loss for loss in LOSSES.values() if loss.kind != "ohem"])
def test_parts_of_an_effective_batch_sum_to_its_loss_and_gradient(loss: Loss) -> None:
    logits, labels = some_logits(4, 5, (8, 8)), some_labels(4, 5, (30, 32))
    labels[0] = 255  # a part without a valid pixel
    labels[1:3][labels[1:3] == 2] = 1  # and a class that only one part knows
    parts = [slice(0, 1), slice(1, 3), slice(3, 4)]
    weight = sum(fullres.total_weight(labels[part], loss) for part in parts)
    sums = sum(fullres.sum_for_dice(logits[part], labels[part]) for part in parts)
    shares = [ours(logits[part], labels[part], loss, weight=weight, dice_sums=sums) for part in parts]
    together = sum(value for value, _ in shares), torch.cat([gradient for _, gradient in shares])
    assert_same_loss(together, ours(logits, labels, loss), 1e-6)


@pytest.mark.parametrize("classes", [1, 5])
@every_loss
def test_a_batch_without_valid_pixels_costs_nothing(loss: Loss, classes: int) -> None:
    loss = Loss(
        loss.kind, loss.gamma, loss.weights and loss.weights[: max(2, classes)], loss.smoothing, loss.dice_weight
    )
    value, gradient = ours(some_logits(2, classes, (8, 8)), torch.full((2, 30, 31), 255), loss)
    assert (value.item(), gradient.abs().max().item()) == (0.0, 0.0)


def test_pixels_of_a_class_without_weight_alone_cost_nothing() -> None:
    value, gradient = ours(some_logits(2, 5, (8, 8)), torch.full((2, 30, 31), 3), Loss(weights=WEIGHTS))
    assert (value.item(), gradient.abs().max().item()) == (0.0, 0.0)


@pytest.mark.parametrize("ignore_index", [-100, 0, 4])
@every_loss
def test_any_label_can_be_the_ignored_one(loss: Loss, ignore_index: int) -> None:
    logits, labels = some_logits(2, 5, (8, 8)), some_labels(2, 5, (30, 31), ignore_index)
    found, expected = (by(logits, labels, loss, ignore_index=ignore_index) for by in (ours, plain))
    assert_same_loss(found, expected, 1e-5)


@every_loss
def test_loss_survives_large_logits(loss: Loss) -> None:
    logits, labels = 1e4 * some_logits(1, 5, (4, 4)), some_labels(1, 5, (16, 16))
    value, gradient = ours(logits, labels, loss)
    assert torch.isfinite(value)
    assert torch.isfinite(gradient).all()
    exact = fullres.plain_loss(logits.double(), labels, loss)
    torch.testing.assert_close(value.double(), exact, rtol=1e-5, atol=0)


@pytest.mark.parametrize("loss", [loss for loss in LOSSES.values() if loss.kind != "ohem"])
def test_gradients_of_pixels_that_are_sure_are_those_of_float64(loss: Loss) -> None:
    logits, labels = some_logits(2, 5, (16, 16)), some_labels(2, 5, (64, 64))
    logits[0, 1, 4:8, 4:8] = 30
    labels[0, 16:32, 16:32] = 1
    _, gradient = ours(logits, labels, loss)
    _, exact = ours(logits.double(), labels, loss)
    assert (gradient - exact).norm() < 1e-3 * exact.norm()


def test_dice_counts_beyond_what_float32_can_count_one_by_one() -> None:
    pixels = 2**24 + 2**12
    logits, labels = torch.zeros(1, 2, 1, 1), torch.zeros(1, 2**12, pixels // 2**12, dtype=torch.int64)
    found, predicted, labelled = fullres.sum_for_dice(logits, labels).tolist()
    assert labelled == [pixels, 0]
    assert found == [pixels / 2, 0]
    assert predicted == pytest.approx([pixels / 2, pixels / 2])


@every_loss
def test_autocast_and_half_precision_do_not_round_the_loss(loss: Loss) -> None:
    logits, labels = some_logits(2, 5, (8, 12)).bfloat16(), some_labels(2, 5, (30, 47))
    exact, _ = ours(logits.float(), labels, loss)
    with torch.autocast("cpu", torch.bfloat16):
        value, gradient = ours(logits, labels, loss)
    assert value.dtype == torch.float32
    assert gradient.dtype == torch.bfloat16
    torch.testing.assert_close(value, exact, rtol=1e-6, atol=0)


@every_loss
def test_no_loss_holds_a_third_of_the_enlarged_logits(loss: Loss, tmp_path: Path) -> None:
    logits = some_logits(2, 150, (96, 96)).contiguous(memory_format=torch.channels_last).requires_grad_()
    labels = some_labels(2, 150, (384, 384))
    loss = Loss(loss.kind, loss.gamma, loss.weights and 30 * loss.weights, loss.smoothing, loss.dice_weight)
    held = peak_extra_bytes(lambda: fullres.mean_loss(logits, labels, loss).backward(), tmp_path / "trace.json")
    assert held < 2 * 150 * 384 * 384 * 4 / 3


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"kind": "dice"}, "loss is 'dice'; it is one of cross-entropy, focal, ohem"),
        ({"gamma": -0.1}, "focal_gamma is -0.1; it must be a number of at least 0"),
        ({"gamma": math.nan}, "focal_gamma is nan"),
        ({"gamma": math.inf}, "focal_gamma is inf"),
        ({"smoothing": 1.0}, "label_smoothing is 1.0; it must be at least 0 and below 1"),
        ({"smoothing": -0.1}, "label_smoothing is -0.1"),
        ({"smoothing": math.nan}, "label_smoothing is nan"),
        ({"dice_weight": -1.0}, "dice_weight is -1.0; it must be a number of at least 0"),
        ({"dice_weight": math.inf}, "dice_weight is inf"),
        ({"weights": (1.0, -2.0)}, "class_weights hold -2.0 for class 1; they must be numbers of at least 0"),
        ({"weights": (math.nan, 1.0)}, "class_weights hold nan for class 0"),
        ({"weights": (1.0, math.inf)}, "class_weights hold inf for class 1"),
        ({"weights": (0.0, 0.0)}, r"class_weights are \[0.0, 0.0\]; one of them at least must be above 0"),
        ({"weights": ()}, r"class_weights are \[\]; one of them at least must be above 0"),
    ],
)
def test_values_that_make_no_loss_are_refused_by_name(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Loss(**values)


@pytest.mark.parametrize("classes", [1, 4, 6])
def test_weights_of_another_number_of_classes_are_refused(classes: int) -> None:
    message = f"class_weights are 5; there are {max(2, classes)} classes, each with a weight"
    with pytest.raises(ValueError, match=message):
        fullres.mean_loss(some_logits(2, classes, (8, 8)), some_labels(2, 2, (30, 31)), Loss(weights=WEIGHTS))


@every_loss
def test_a_label_outside_the_classes_is_refused(loss: Loss) -> None:
    with pytest.raises(ValueError, match="labels hold 5; the classes are 0 to 4"):
        fullres.mean_loss(some_logits(2, 5, (8, 8)), some_labels(2, 6, (30, 31)), loss)


def test_balanced_weights_are_the_median_share_over_each_share() -> None:
    assert fullres.balanced_weights([50, 0, 10, 40]) == pytest.approx((0.8, 0.0, 4.0, 1.0))
    assert fullres.balanced_weights([0.25, 0.25, 0.25, 0.25]) == (1, 1, 1, 1)
    assert fullres.balanced_weights([1, 3]) == pytest.approx((2, 2 / 3))


def test_balanced_weights_of_no_class_are_refused() -> None:
    with pytest.raises(ValueError, match=r"class shares are \[0, 0\]; one of them at least must be above 0"):
        fullres.balanced_weights([0, 0])
