"""Losses at the labels' resolution, four times finer than the logits, without logits of that size.

What they mean stands in ``plain_loss``: enlarge the logits bilinearly, then compare them with the labels. That writes
K x H x W floats several times, for B0 at 512 x 512 the larger part of a whole training step. Here the label map is
walked over in bands of a few rows. Each band of logits is made, turned into its loss and, in the same pass, into its
share of the gradient with respect to the small logits, while it is still in cache.

With p the probabilities of a pixel, y its class and w the classes' weights, the gradient of every loss here is

    push * p - pull * onehot(y) - spread * w

with three numbers a pixel (1, 1 and 0 for cross-entropy), and for Dice ``push`` has a part of its own for each class.
Dice and the choice of the hardest pixels need a walk of their own before that one.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from segformer.fullres import cells
from segformer.fullres.bands import Band, Scratch, add_reduced, channels_last, enlarge, keep_for_graphs, plan
from segformer.fullres.fourfold import can_compile, is_fourfold, loss_and_gradient

KINDS = ("cross-entropy", "focal", "ohem")
_LEAST_PROBABILITY = 1e-30  # whose logarithm is exact in float32; below, numbers lose their digits
_EASY, _HARDEST_SHARE = 0.7, 1 / 16  # of OHEM, as in BiSeNet


@dataclass(frozen=True)
class Loss:
    """What a step minimises: a mean over the valid pixels of the whole effective batch, and Dice beside it.

    ``kind`` is what a pixel costs. Its cross-entropy; "focal", that times (1 - p)**gamma, p being the probability of
    its class (Lin et al., 2017); or "ohem", that if p is below 0.7 or the pixel among the hardest sixteenth of its
    forward pass, else nothing (Shrivastava et al., 2016; the mean still runs over all, as in mmsegmentation).

    ``weights`` of the classes and ``smoothing`` of the labels are those of torch's ``cross_entropy``: the mean is
    divided by the weights of the pixels' classes. ``dice_weight`` times 1 - Dice is added, averaged over the classes
    that occur in the effective batch. A model of one class has weights of two: of background and object.

    Raises ValueError, by name, for values that make no loss.
    """

    kind: str = "cross-entropy"
    gamma: float = 2.0
    weights: tuple[float, ...] | None = None
    smoothing: float = 0.0
    dice_weight: float = 0.0

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"loss is {self.kind!r}; it is one of {', '.join(KINDS)}")
        if not 0 <= self.gamma < math.inf:
            raise ValueError(f"focal_gamma is {self.gamma}; it must be a number of at least 0")
        if not 0 <= self.smoothing < 1:
            raise ValueError(f"label_smoothing is {self.smoothing}; it must be at least 0 and below 1")
        if not 0 <= self.dice_weight < math.inf:
            raise ValueError(f"dice_weight is {self.dice_weight}; it must be a number of at least 0")
        for k, weight in enumerate(self.weights or ()):
            if not 0 <= weight < math.inf:
                raise ValueError(f"class_weights hold {weight} for class {k}; they must be numbers of at least 0")
        if self.weights is not None and not any(self.weights):
            raise ValueError(f"class_weights are {list(self.weights)}; one of them at least must be above 0")

    @property
    def is_plain(self) -> bool:
        """Whether it is the cross-entropy and nothing else."""
        costs = self.kind == "cross-entropy" or (self.kind == "focal" and self.gamma == 0)
        return costs and self.weights is None and not self.smoothing and not self.dice_weight

    def check_classes(self, num_labels: int) -> None:
        """Raise ValueError unless there is a weight for every class, if any."""
        classes = max(2, num_labels)
        if self.weights is not None and len(self.weights) != classes:
            raise ValueError(f"class_weights are {len(self.weights)}; there are {classes} classes, each with a weight")


def balanced_weights(shares: Sequence[float]) -> tuple[float, ...]:
    """Weights by median frequency from the classes' pixels or shares of them.

    The median share over the class's own, so that a class of the median share has 1. A class that never occurs has 0.
    Shares are of all pixels; those of Eigen and Fergus (2015) are of the photos that hold the class.
    Raises ValueError where none occurs.
    """
    present = torch.tensor([share for share in shares if share > 0], dtype=torch.float64)
    if not len(present):
        raise ValueError(f"class shares are {list(shares)[:5]}; one of them at least must be above 0")
    median = present.quantile(0.5).item()
    return tuple(median / share if share > 0 else 0.0 for share in shares)


# --------------------------------------------------------------------------------------------------- what losses mean


def plain_cross_entropy(logits: Tensor, labels: Tensor, ignore_index: int = 255) -> Tensor:
    """The sum of the cross-entropy over the valid pixels, by way of K x H x W logits: what ``cross_entropy`` means."""
    upsampled = F.interpolate(logits.float(), labels.shape[-2:], mode="bilinear", align_corners=False)
    return F.cross_entropy(upsampled, labels, ignore_index=ignore_index, reduction="sum")


def plain_loss(logits: Tensor, labels: Tensor, loss: Loss, ignore_index: int = 255) -> Tensor:
    """The loss of a batch by way of K x H x W logits: what ``mean_loss`` means."""
    logits = _with_background(logits.to(_precise(logits)))
    K, valid = logits.shape[1], labels != ignore_index
    upsampled = F.interpolate(logits, labels.shape[-2:], mode="bilinear", align_corners=False)
    weights = logits.new_ones(K) if loss.weights is None else logits.new_tensor(loss.weights)
    cost = F.cross_entropy(
        upsampled, labels, weights, ignore_index=ignore_index, reduction="none", label_smoothing=loss.smoothing
    )
    target = torch.where(valid, labels, 0)
    probability = upsampled.softmax(1) if loss.kind != "cross-entropy" or loss.dice_weight else upsampled
    if loss.kind == "focal":
        cost = cost * (1 - probability.gather(1, target[:, None])[:, 0]) ** loss.gamma
    if loss.kind == "ohem":
        truth = probability.detach().gather(1, target[:, None])[:, 0]
        cost = cost * _hardest(torch.where(valid, truth, 2), valid.sum())
    divisor = weights[target][valid].sum()
    mean = cost.sum() / torch.where(divisor > 0, divisor, 1)
    return mean + loss.dice_weight * _plain_dice_loss(probability, target, valid) if loss.dice_weight else mean


def _plain_dice_loss(probability: Tensor, target: Tensor, valid: Tensor) -> Tensor:
    """1 - Dice, averaged over the classes that occur, from probabilities (B, K, H, W)."""
    one_hot = F.one_hot(target, probability.shape[1]).permute(0, 3, 1, 2) * valid[:, None]
    values = (probability * one_hot, probability * valid[:, None], one_hot)
    found, predicted, labelled = (each.sum((0, 2, 3)) for each in values)
    occurs = labelled > 0
    dice = 2 * found[occurs] / (predicted[occurs] + labelled[occurs])
    return (1 - dice).sum() / occurs.sum().clamp(min=1)


def _hardest(truth: Tensor, valid_pixels: Tensor) -> Tensor:
    """Which pixels are below 0.7 or among the hardest sixteenth of the valid ones; ``truth`` is 2 where ignored."""
    last = (valid_pixels * _HARDEST_SHARE).ceil().long().clamp(min=1) - 1
    limit = truth.flatten().sort().values.gather(0, last[None])
    return (truth < _EASY) | (truth <= limit)


# ------------------------------------------------------------------------------------------------ what a step calls


def cross_entropy(
    logits: Tensor, labels: Tensor, ignore_index: int = 255, reduction: str = "mean", compiled: bool = False
) -> Tensor:
    """Cross-entropy between enlarged logits and labels, over the pixels that are not ``ignore_index``.

    Shapes: logits (B, K, h, w) float, labels (B, H, W) int64 of any H, W -> a scalar, in float32 or better.
    ``reduction`` is "mean", which is 0 where no pixel is valid, or "sum". With K = 1 it is the binary cross-entropy as
    transformers has it: the mean runs over all pixels, the ignored ones counting 0. ``compiled`` has kernels made for
    labels of just four times the logits' size (see ``fourfold``), which takes a while the first time; for any other
    size it changes nothing.

    Raises ValueError for shapes that do not belong together and, on the CPU, for labels outside the classes. To look
    for those a GPU would have to wait, so there the loss becomes NaN; labels are checked where they are made.
    """
    if reduction not in ("mean", "sum"):
        raise ValueError(f"reduction is {reduction!r}; it is 'mean' or 'sum'")
    _check(logits, labels, ignore_index)
    total: Tensor = _BandedLoss.apply(_with_background(logits), labels, ignore_index, None, compiled)
    if reduction == "sum":
        return total
    return total / (labels.numel() if logits.shape[1] == 1 else (labels != ignore_index).sum().clamp(min=1))


def mean_loss(
    logits: Tensor,
    labels: Tensor,
    loss: Loss,
    ignore_index: int = 255,
    weight: Tensor | None = None,
    dice_sums: Tensor | None = None,
    compiled: bool = False,
) -> Tensor:
    """The share that this batch has in the loss of the effective batch: the shares of all its parts sum to it.

    ``weight`` and ``dice_sums`` are those of the effective batch, each the sum of ``total_weight`` and of
    ``sum_for_dice`` over its parts and ranks; without them, this batch is all there is. Everything else is as in
    ``cross_entropy``, but that the mean of a model of one class runs over its valid pixels. ``compiled`` concerns the
    plain cross-entropy.
    """
    _check(logits, labels, ignore_index)
    loss.check_classes(logits.shape[1])
    if weight is None:
        weight = total_weight(labels, loss, ignore_index, _precise(logits))
    weight = torch.where(weight > 0, weight, 1).to(_precise(logits))
    logits = _with_background(logits)
    terms = None
    if not loss.is_plain:
        terms = _Terms(loss, _class_weights(loss, weight.dtype, logits.device))
        if loss.kind == "ohem":
            terms.kept = _choose_hardest(logits, labels, ignore_index)
        if loss.dice_weight:
            sums = sum_for_dice(logits, labels, ignore_index) if dice_sums is None else dice_sums
            terms.dice = _Dice.of(sums, loss.dice_weight * weight)
    total: Tensor = _BandedLoss.apply(logits, labels, ignore_index, terms, compiled)
    return total / weight


def total_weight(labels: Tensor, loss: Loss, ignore_index: int = 255, dtype: torch.dtype = torch.float32) -> Tensor:
    """What the mean over these labels, (B, H, W), is divided by: the weights of the valid pixels' classes, summed."""
    if loss.weights is None:
        return (labels != ignore_index).sum()
    weights = _class_weights(loss, dtype, labels.device)
    assert weights is not None
    valid = _is_valid(labels, len(weights), ignore_index)
    return (weights[torch.where(valid, labels, 0)] * valid).sum()


@torch.no_grad()
def sum_for_dice(logits: Tensor, labels: Tensor, ignore_index: int = 255) -> Tensor:
    """What Dice is made of, (3, K), over the valid pixels of a batch; sums of parts and ranks add up.

    Of each class: the probability that its own pixels give it, that which all pixels give it, and its pixels.
    """
    _check(logits, labels, ignore_index)
    small = channels_last(_with_background(logits))
    precise = torch.float32 if small.device.type == "mps" else torch.float64  # float32 counts to 2**24, one by one
    found, predicted, labelled = sums = small.new_zeros(3, small.shape[-1], dtype=precise)
    with torch.autocast(small.device.type, enabled=False):
        for pixels in _Walk(small, labels, ignore_index):
            valid, target = pixels.valid.to(small.dtype), pixels.target[:, 0]
            found.index_add_(0, target, (pixels.log_truth.exp() * valid)[:, 0].to(precise))
            predicted += (valid.t() @ pixels.probability)[0]
            labelled.index_add_(0, target, valid[:, 0].to(precise))
    return sums


def check_labels(labels: Tensor, num_labels: int, ignore_index: int = 255) -> None:
    """Raise ValueError, naming the first stray, unless every label is a class id or ``ignore_index``."""
    stray = _is_stray(labels, num_labels, ignore_index)
    if stray.any():
        raise ValueError(
            f"labels hold {int(labels[stray][0])}; the classes are 0 to {num_labels - 1}, and {ignore_index} is ignored"
        )


def check_logits(logits: Tensor) -> None:
    """Raise ValueError unless they are (B, K, h, w), none empty."""
    if logits.ndim != 4 or 0 in logits.shape:
        raise ValueError(f"logits are {list(logits.shape)}; they must be (B, K, h, w), none empty")


def _check(logits: Tensor, labels: Tensor, ignore_index: int) -> None:
    check_logits(logits)
    if labels.ndim != 3 or 0 in labels.shape or labels.dtype != torch.int64:
        raise ValueError(f"labels are {list(labels.shape)} {labels.dtype}; they must be (B, H, W) int64, none empty")
    if logits.shape[0] != labels.shape[0]:
        raise ValueError(f"logits hold {logits.shape[0]} images but labels {labels.shape[0]}")
    if labels.device.type == "cpu":
        check_labels(labels, max(2, logits.shape[1]), ignore_index)


def _is_stray(labels: Tensor, num_labels: int, ignore_index: int) -> Tensor:
    return ((labels < 0) | (labels >= num_labels)) & (labels != ignore_index)


def _is_valid(labels: Tensor, num_labels: int, ignore_index: int) -> Tensor:
    return (labels >= 0) & (labels < num_labels) & (labels != ignore_index)


def _with_background(logits: Tensor) -> Tensor:
    """The logits of an only class beside 0 for what is not of it, whose softmax is the sigmoid; of more, themselves."""
    return torch.cat([torch.zeros_like(logits), logits], 1) if logits.shape[1] == 1 else logits


def _precise(logits: Tensor) -> torch.dtype:
    return torch.promote_types(logits.dtype, torch.float32)


def _class_weights(loss: Loss, dtype: torch.dtype, device: torch.device) -> Tensor | None:
    """Sent to the device once, for it would wait each time."""
    return None if loss.weights is None else keep_for_graphs(_send_weights(loss.weights, dtype, device), device)


@lru_cache(maxsize=16)
@torch.inference_mode(mode=False)
def _send_weights(weights: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.tensor(weights, dtype=dtype, device=device)


# ----------------------------------------------------------------------------------------------------- band by band


class _BandedLoss(torch.autograd.Function):
    """The summed loss, and its gradient found on the way; backward only scales it."""

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, labels: Tensor, ignore_index: int, terms: _Terms | None, compiled: bool
    ) -> Tensor:
        with_gradient = ctx.needs_input_grad[0]
        compiled = compiled and terms is None and is_fourfold(logits, labels)
        with torch.autocast(logits.device.type, enabled=False):
            small = logits.permute(0, 2, 3, 1)
            if terms is None and cells.can_run(logits):
                total, gradient = cells.loss_and_gradient(small, labels, ignore_index, with_gradient)
            elif compiled and can_compile(logits, labels, ignore_index):
                total, gradient = loss_and_gradient(small, labels, ignore_index, with_gradient)
            else:
                small = channels_last(logits)
                gradient = torch.zeros_like(small) if with_gradient else None
                total = _sum_bands(small, labels, ignore_index, gradient, terms)
        if labels.device.type != "cpu":
            total += torch.where(_is_stray(labels, logits.shape[1], ignore_index).any(), math.nan, 0.0)
        if gradient is not None:
            ctx.save_for_backward(gradient)
            ctx.dtype = logits.dtype
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, scale: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        return (gradient * scale).to(ctx.dtype).permute(0, 3, 1, 2), None, None, None, None


def _sum_bands(
    small: Tensor, labels: Tensor, ignore_index: int, gradient: Tensor | None, terms: _Terms | None
) -> Tensor:
    """Sum the loss band by band; add each band's share to ``gradient``, (B, h, w, K) like ``small``."""
    total = small.new_zeros(())
    walk = _Walk(small, labels, ignore_index)
    for pixels in walk:
        if terms is not None:
            total += terms.cost(pixels, with_slope=gradient is not None)
        else:
            total -= torch.where(pixels.valid, pixels.log_truth, 0).sum()
        if gradient is None:
            continue
        if terms is None:
            pixels.probability.scatter_add_(1, pixels.target, -torch.ones_like(pixels.log_truth))
            _clear_ignored(pixels.probability, pixels.valid)
        walk.add_reduced(gradient, pixels)
    return total


class _Pixels(NamedTuple):
    """The n pixels of a band; what is (n, K) is overwritten by the next band's."""

    band: Band
    logits: Tensor  # (n, K)
    probability: Tensor  # (n, K), which whoever wants a gradient turns into its slope
    log_truth: Tensor  # (n, 1), the logarithm of the target's probability
    target: Tensor  # (n, 1), 0 where ignored
    valid: Tensor  # (n, 1) bool


class _Walk:
    """A batch band by band: small logits (B, h, w, K) enlarged to labels, (B, H, W), and slopes brought back."""

    def __init__(self, small: Tensor, labels: Tensor, ignore_index: int) -> None:
        self.small, self.labels, self.width = small, labels, labels.shape[2]
        self.valid = _is_valid(labels, small.shape[-1], ignore_index)
        self.bands, self.columns = plan(small, labels.shape[1:])
        self.scratch = Scratch(small)

    def __iter__(self) -> Iterator[_Pixels]:
        K = self.small.shape[-1]
        for band in self.bands:
            few_rows = self.small[band.images, band.needed]
            logits = enlarge(few_rows, band, self.columns, self.scratch).view(-1, K)  # (b * rows * W, K)
            valid, labels = (each[band.images, band.rows].reshape(-1, 1) for each in (self.valid, self.labels))
            target = torch.where(valid, labels, 0)
            probability, log_truth = _softmax(logits, target, out=self.scratch("probability", *logits.shape))
            yield _Pixels(band, logits, probability, log_truth, target, valid)

    def add_reduced(self, gradient: Tensor, pixels: _Pixels) -> None:
        """Add the slope that stands in ``pixels.probability`` to the gradient of the small logits."""
        band, values_a_row = pixels.band, self.width * self.small.shape[-1]
        slope = pixels.probability.view(-1, band.height, values_a_row)
        add_reduced(gradient[band.images, band.needed], slope, band, self.columns, self.scratch)


def _softmax(logits: Tensor, target: Tensor, out: Tensor) -> tuple[Tensor, Tensor]:
    """The probabilities of (n, K) logits, in ``out``, and the log of the target's, (n, 1), as log_softmax has it.

    On a CPU the exponentials are the loss's arithmetic, so they are worked out once, and a logarithm only for the
    target. Where its probability is too small for that to be exact, log_softmax looks again, at these rows alone; on a
    GPU, which would have to wait to know them, at all.
    """
    if logits.device.type != "cpu":
        log_probability = torch.log_softmax(logits, dim=-1, out=out)
        log_truth = log_probability.gather(1, target)
        return log_probability.exp_(), log_truth
    probability = torch.softmax(logits, dim=-1, out=out)
    truth = probability.gather(1, target)
    log_truth = truth.log()
    (rows,) = torch.where(truth[:, 0] < _LEAST_PROBABILITY)
    if len(rows):
        log_truth[rows] = torch.log_softmax(logits[rows], dim=-1).gather(1, target[rows])
    return probability, log_truth


def _clear_ignored(slope: Tensor, valid: Tensor) -> None:
    """Make the rows of (n, K) that are not valid 0: on a CPU these alone, for a GPU would have to wait to know them."""
    if slope.device.type == "cpu":
        slope.index_fill_(0, torch.where(~valid[:, 0])[0], 0)
    else:
        slope *= valid


# ------------------------------------------------------------------------------------- what is not plain cross-entropy


@dataclass
class _Dice:
    """1 - Dice as a function of one pixel's probabilities, all others being what they are: its value and slopes.

    With F, P and L the sums of ``sum_for_dice``, n the classes that occur and D = P + L, it is the sum over these of
    (1 - 2 F / D) / n. A part of the effective batch has (its L) / L - 2 (its F) / D in it.
    """

    of_truth: Tensor  # (K,) d/dF: -2 / (n D)
    of_all: Tensor  # (K,) d/dP: 2 F / (n D**2)
    of_pixel: Tensor  # (K,) 1 / (n L): what a pixel adds for being there

    @staticmethod
    def of(sums: Tensor, scale: Tensor) -> _Dice:
        """From the sums over the effective batch, in the precision of the ``scale``."""
        dtype = scale.dtype
        found, predicted, labelled = sums
        occurs = labelled > 0
        scale = torch.where(occurs, scale / occurs.sum().clamp(min=1), 0)
        both = torch.where(occurs, predicted + labelled, 1)
        slopes = -2 * scale / both, 2 * scale * found / both**2, scale / torch.where(occurs, labelled, 1)
        return _Dice(*(each.to(dtype) for each in slopes))


@dataclass
class _Terms:
    """A loss ready for the walk: what it needs to know beside the pixels of one band."""

    loss: Loss
    weights: Tensor | None  # (K,)
    kept: Tensor | None = None  # (B, H, W) bool
    dice: _Dice | None = None

    def cost(self, pixels: _Pixels, with_slope: bool) -> Tensor:
        """The cost of a band, summed; its slope, if wanted, is left in ``pixels.probability``."""
        cost, push, pull, spread = self._numbers(pixels)
        counted = pixels.valid
        if self.kept is not None:
            counted = counted & self.kept[pixels.band.images, pixels.band.rows].reshape(-1, 1)
        cost, push, pull, spread = (torch.where(counted, each, 0) for each in (cost, push, pull, spread))
        slope, own_push = pixels.probability, None
        if self.dice is not None:
            truth = torch.where(pixels.valid, pixels.log_truth.exp(), 0)
            of_truth, of_pixel = self.dice.of_truth[pixels.target] * truth, self.dice.of_pixel[pixels.target]
            cost = cost + of_truth + of_pixel * pixels.valid
            push = push - of_truth - (slope @ self.dice.of_all)[:, None] * pixels.valid
            pull = pull - of_truth
            own_push = torch.mul(pixels.valid, self.dice.of_all, out=pixels.logits) if with_slope else None
        if with_slope:
            slope *= push if own_push is None else own_push.add_(push)
            if self.loss.smoothing:
                slope.addcmul_(spread, slope.new_ones(1) if self.weights is None else self.weights, value=-1)
            slope.scatter_add_(1, pixels.target, -pull)
        return cost.sum()

    def _numbers(self, pixels: _Pixels) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Cost, push, pull and spread of every pixel, (n, 1) each, as if all were to count."""
        log_truth, K, loss = pixels.log_truth, pixels.logits.shape[1], self.loss
        weight = torch.ones_like(log_truth) if self.weights is None else self.weights[pixels.target]
        push = pull = (1 - loss.smoothing) * weight
        cost, spread = -pull * log_truth, torch.zeros_like(log_truth)
        if loss.smoothing:
            weights = weight.new_ones(K) if self.weights is None else self.weights
            log_sum = pixels.logits.gather(1, pixels.target) - log_truth
            spread = spread + loss.smoothing / K
            cost = cost + spread * (weights.sum() * log_sum - (pixels.logits @ weights)[:, None])
            push = push + spread * weights.sum()
        if loss.kind == "focal" and loss.gamma:
            # 1 - p, of which p itself leaves no more digits; with a gamma below 1 the slope at 0 would be infinite.
            rest = (-torch.expm1(log_truth)).clamp(min=torch.finfo(log_truth.dtype).eps)
            factor = rest**loss.gamma
            steeper = loss.gamma * factor / rest * log_truth.exp() * cost
            cost, spread = factor * cost, factor * spread
            push, pull = factor * push + steeper, factor * pull + steeper
        return cost, push, pull, spread


@torch.no_grad()
def _choose_hardest(logits: Tensor, labels: Tensor, ignore_index: int) -> Tensor:
    """Which pixels OHEM keeps, (B, H, W) bool."""
    small = channels_last(logits)
    truth = torch.empty(labels.shape, dtype=small.dtype, device=small.device)
    with torch.autocast(small.device.type, enabled=False):
        for pixels in _Walk(small, labels, ignore_index):
            place = truth[pixels.band.images, pixels.band.rows]
            place.copy_(torch.where(pixels.valid, pixels.log_truth.exp(), 2).view_as(place))
    return _hardest(truth, (labels != ignore_index).sum())
