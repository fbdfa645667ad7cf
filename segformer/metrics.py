"""Mean IoU from one int64 confusion matrix that grows batch by batch and can live on the GPU.

The numbers are those of ``evaluate``'s mean_iou metric: pixels to ignore are dropped, a class that neither the labels
nor the predictions hold is NaN and left out of the means, a class that is only predicted counts with IoU 0. One thing
differs on purpose: a label outside the classes is an error here and dropped in silence there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor


@dataclass(frozen=True)
class Scores:
    """Scores from 0 to 1 in float64, NaN where nothing was there to score; arrays have one entry per class."""

    mean_iou: float
    mean_accuracy: float
    overall_accuracy: float
    per_category_iou: NDArray[np.float64]
    per_category_accuracy: NDArray[np.float64]


class ConfusionMatrix:
    """Count how often each class was predicted for each labelled class.

    ``counts[label, prediction]`` is (K, K) int64: exact beyond the 2**24 pixels at which float32 counts stand still.
    """

    def __init__(
        self, num_labels: int, ignore_index: int = 255, device: torch.device | str | int | None = None
    ) -> None:
        if num_labels < 1:
            raise ValueError(f"num_labels is {num_labels}; it must be at least 1")
        if not -1024 <= ignore_index < 2**16:
            raise ValueError(f"ignore_index is {ignore_index}; it must be from -1024 to {2**16 - 1}")
        self.num_labels = num_labels
        self.ignore_index = ignore_index
        self.counts = torch.zeros(num_labels, num_labels, dtype=torch.int64, device=device)

    def update(self, predictions: Tensor | NDArray[Any], labels: Tensor | NDArray[Any]) -> None:
        """Add the pixels of one map or of one batch of maps: two integer arrays of the same shape, such as (B, H, W).

        What is predicted where the label is to be ignored does not matter. Raises ValueError for shapes that differ and
        for any other value outside the classes, naming it.
        """
        predictions = torch.as_tensor(predictions, device=self.counts.device)
        labels = torch.as_tensor(labels, device=self.counts.device)
        if predictions.shape != labels.shape:
            raise ValueError(f"predictions are {list(predictions.shape)} but labels {list(labels.shape)}")
        if predictions.is_floating_point() or labels.is_floating_point():
            raise ValueError(f"predictions are {predictions.dtype} and labels {labels.dtype}; both must be integers")
        if labels.numel() == 0:
            return
        predictions, labels = predictions.long(), labels.long()
        # Labels get a row each from the lowest to the highest that may occur, so that one histogram of pairs counts the
        # classes, the ignored pixels and any strays between them, and no pixel has to be picked out first.
        lowest, highest = min(0, self.ignore_index), max(self.num_labels - 1, self.ignore_index)
        self._require(labels, "labels", lowest, highest)
        if not _within(predictions, 0, self.num_labels - 1):
            predictions = predictions.masked_fill(labels == self.ignore_index, 0)
            self._require(predictions, "predictions", 0, self.num_labels - 1)
        pairs = torch.add(predictions, labels, alpha=self.num_labels).flatten()
        if lowest:
            pairs -= lowest * self.num_labels
        counts = torch.bincount(pairs, minlength=(highest - lowest + 1) * self.num_labels).view(-1, self.num_labels)
        classes = slice(-lowest, self.num_labels - lowest)
        counts[self.ignore_index - lowest] = 0
        strays = counts.sum(1)
        strays[classes] = 0
        if strays.any():
            self._refuse("labels", int(strays.nonzero()[0]) + lowest)
        self.counts += counts[classes]

    def _require(self, values: Tensor, name: str, lowest: int, highest: int) -> None:
        if not _within(values, lowest, highest):
            low, high = (int(bound) for bound in torch.aminmax(values))
            self._refuse(name, low if low < lowest else high)

    def _refuse(self, name: str, stray: int) -> NoReturn:
        hint = f"; {self.ignore_index} is ignored" if name == "labels" else ""
        raise ValueError(f"{name} hold {stray}; the classes are 0 to {self.num_labels - 1}{hint}")

    def all_reduce(self) -> None:
        """Sum the counts over the ranks of a distributed run, so that every rank has the scores of all pixels."""
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(self.counts)

    def scores(self) -> Scores:
        """The scores of everything counted so far."""
        counts = self.counts.cpu().numpy().astype(np.float64)  # exact up to 2**53 pixels
        intersection, labelled = counts.diagonal(), counts.sum(1)
        union = labelled + counts.sum(0) - intersection
        iou = _ratio(intersection, union)
        accuracy = _ratio(intersection, labelled)
        return Scores(
            mean_iou=_nanmean(iou),
            mean_accuracy=_nanmean(accuracy),
            overall_accuracy=float(_ratio(intersection.sum(), labelled.sum())),
            per_category_iou=iou,
            per_category_accuracy=accuracy,
        )


def _within(values: Tensor, lowest: int, highest: int) -> bool:
    low, high = torch.aminmax(values)
    return bool((low >= lowest) & (high <= highest))


def _ratio(numerator: Any, denominator: Any) -> NDArray[np.float64]:
    with np.errstate(invalid="ignore"):
        return np.asarray(np.divide(numerator, denominator))  # 0 / 0 is NaN: nothing to score


def _nanmean(values: NDArray[np.float64]) -> float:
    return float(np.nanmean(values)) if not np.isnan(values).all() else float("nan")
