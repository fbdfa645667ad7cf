"""Loss and prediction at the labels' resolution, four times finer than the logits, without logits of that size."""

from segformer.fullres.bands import LogitRows
from segformer.fullres.losses import (
    Loss,
    balanced_weights,
    check_labels,
    cross_entropy,
    mean_loss,
    plain_cross_entropy,
    plain_loss,
    sum_for_dice,
    total_weight,
)
from segformer.fullres.prediction import (
    argmax,
    argmax_of_mean,
    argmax_with_probability,
    plain_argmax,
    plain_argmax_of_mean,
    plain_argmax_with_probability,
    plain_probabilities,
    probabilities,
)

__all__ = [
    "LogitRows",
    "Loss",
    "argmax",
    "argmax_of_mean",
    "argmax_with_probability",
    "balanced_weights",
    "check_labels",
    "cross_entropy",
    "mean_loss",
    "plain_argmax",
    "plain_argmax_of_mean",
    "plain_argmax_with_probability",
    "plain_cross_entropy",
    "plain_loss",
    "plain_probabilities",
    "probabilities",
    "sum_for_dice",
    "total_weight",
]
