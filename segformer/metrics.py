"""Mean IoU and its kin from one int64 confusion matrix that grows batch by batch and can live on the GPU.

The numbers are those of ``evaluate``'s mean_iou metric: pixels to ignore are dropped, a class that neither the labels
nor the predictions hold is NaN and left out of the means, a class that is only predicted counts with IoU 0. One thing
differs on purpose: a label outside the classes is an error here and dropped in silence there. Dice, precision and
recall are mmsegmentation's mDice and mFscore.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NoReturn

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

_CHUNK_PIXELS = 2**18  # counted at a time: few enough for a cache, many beside the cells of the matrix
_NO_STRAY = 2**63 - 1


@dataclass(frozen=True, eq=False, repr=False)
class Scores:
    """Scores from 0 to 1 in float64, NaN where nothing was there to score; arrays have one entry per class.

    They are made from counts of pixels: those of a class that were found, those labelled and those predicted as it.
    Means leave out what is NaN. Printed, they are a table of the classes, under their names if it was given them.
    """

    found: NDArray[np.float64]
    labelled: NDArray[np.float64]
    predicted: NDArray[np.float64]
    names: Sequence[str] = ()

    @cached_property
    def per_category_iou(self) -> NDArray[np.float64]:
        """Found over labelled or predicted."""
        return _ratio(self.found, self.labelled + self.predicted - self.found)

    @cached_property
    def per_category_dice(self) -> NDArray[np.float64]:
        """Twice found over labelled plus predicted, which is also the F-score of precision and recall."""
        return _ratio(2 * self.found, self.labelled + self.predicted)

    @cached_property
    def per_category_precision(self) -> NDArray[np.float64]:
        """Found over predicted; NaN for a class that was never predicted."""
        return _ratio(self.found, self.predicted)

    @cached_property
    def per_category_recall(self) -> NDArray[np.float64]:
        """Found over labelled; NaN for a class that never occurs."""
        return _ratio(self.found, self.labelled)

    @property
    def per_category_accuracy(self) -> NDArray[np.float64]:
        """Recall, as ``evaluate`` calls it."""
        return self.per_category_recall

    @property
    def mean_iou(self) -> float:
        return _nanmean(self.per_category_iou)

    @property
    def mean_dice(self) -> float:
        return _nanmean(self.per_category_dice)

    @property
    def mean_precision(self) -> float:
        return _nanmean(self.per_category_precision)

    @property
    def mean_recall(self) -> float:
        return _nanmean(self.per_category_recall)

    @property
    def mean_accuracy(self) -> float:
        return self.mean_recall

    @property
    def overall_accuracy(self) -> float:
        """The share of all labelled pixels that were found."""
        return float(_ratio(self.found.sum(), self.labelled.sum()))

    def entries(self) -> dict[str, float | list[float]]:
        """The scores under the names that ``evaluate`` has for them, and each class's share of the labelled pixels."""
        return {
            "mean_iou": self.mean_iou,
            "mean_accuracy": self.mean_accuracy,
            "overall_accuracy": self.overall_accuracy,
            "per_category_iou": self.per_category_iou.tolist(),
            "per_category_accuracy": self.per_category_accuracy.tolist(),
            "per_category_share": _ratio(self.labelled, self.labelled.sum()).tolist(),
        }

    def __repr__(self) -> str:
        columns = {
            "IoU": self.per_category_iou,
            "Dice": self.per_category_dice,
            "precision": self.per_category_precision,
            "recall": self.per_category_recall,
            "share of pixels": _ratio(self.labelled, self.labelled.sum()),
        }
        names = [str(name).strip() for name in self.names] or [str(k) for k in range(len(self.found))]
        widest = max(len("class"), *map(len, names))
        lines = [
            f"mean IoU {self.mean_iou:.4f}  mean accuracy {self.mean_accuracy:.4f}  "
            f"pixel accuracy {self.overall_accuracy:.4f}  mean Dice {self.mean_dice:.4f}",
            "  ".join(["class".ljust(widest), *(title.rjust(6) for title in columns)]),
        ]
        for name, *values in zip(names, *columns.values(), strict=True):
            cells = ("-" if np.isnan(v) else f"{v:.4f}" for v in values)
            aligned = (cell.rjust(max(6, len(title))) for cell, title in zip(cells, columns, strict=True))
            lines.append("  ".join([name.ljust(widest), *aligned]))
        return "\n".join(lines)


def class_table(
    names: Sequence[str], iou: Sequence[float], accuracy: Sequence[float], share: Sequence[float], most: int = 16
) -> str:
    """IoU and accuracy of the classes that occur, best first, as aligned lines; of many, the best and the worst."""
    occurring = sorted((k for k in range(len(names)) if share[k] > 0), key=lambda k: -iou[k])
    lines = [f"{names[k]:<24.24}{iou[k]:>8.3f}{accuracy[k]:>10.3f}{share[k]:>8.1%}" for k in occurring]
    if len(lines) > most:
        lines[most // 2 : -(most // 2)] = [f"... {len(lines) - most // 2 * 2} more ..."]
    only_predicted = sum(iou[k] == 0 and share[k] == 0 for k in range(len(names)))
    if only_predicted:
        one, several = "1 class that never occurs in the labels is", "classes that never occur in the labels are"
        lines.append(f"{one if only_predicted == 1 else f'{only_predicted} {several}'} predicted, at IoU 0")
    return "\n".join([f"{'class':<24}{'IoU':>8}{'accuracy':>10}{'share':>8}", *lines])


class ConfusionMatrix:
    """Count how often each class was predicted for each labelled class.

    ``counts[label, prediction]`` is (K, K) int64: exact beyond the 2**24 pixels at which float32 counts stand still.
    On CUDA the host waits once, in ``scores``: only there, and not in ``update``, are values outside the classes
    refused. They are in no count.
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
        # Of labels and of predictions, where nobody looks at once: -1 if there were strays, and the lowest of them.
        self._strays = torch.zeros(2, 2, dtype=torch.int64, device=device)
        self._strays[:, 1] = _NO_STRAY

    def update(self, predictions: Tensor | NDArray[Any], labels: Tensor | NDArray[Any]) -> None:
        """Add the pixels of one map or of one batch of maps: two integer arrays of the same shape, such as (B, H, W).

        What is predicted where the label is to be ignored does not matter. Raises ValueError for shapes that differ
        and, but on CUDA, for any other value outside the classes, naming it.
        """
        predictions = torch.as_tensor(predictions, device=self.counts.device)
        labels = torch.as_tensor(labels, device=self.counts.device)
        if predictions.shape != labels.shape:
            raise ValueError(f"predictions are {list(predictions.shape)} but labels {list(labels.shape)}")
        if predictions.is_floating_point() or labels.is_floating_point():
            raise ValueError(f"predictions are {predictions.dtype} and labels {labels.dtype}; both must be integers")
        if labels.numel() == 0:
            return
        if labels.device.type == "cuda":
            self._add_without_waiting(predictions, labels)
            return
        step = _CHUNK_PIXELS if labels.device.type == "cpu" else labels.numel()
        first, *others = zip(*(torch.split(each.flatten(), step) for each in (predictions, labels)), strict=True)
        counts = self._count(*first)
        for chunk in others:
            counts += self._count(*chunk)
        self._add(counts)

    def _add_without_waiting(self, predictions: Tensor, labels: Tensor) -> None:
        """Count the classes, and keep of the strays what ``scores`` has to know."""
        predictions, labels = predictions.flatten().long(), labels.flatten().long()
        labelled = labels != self.ignore_index
        of_classes = [(values >= 0) & (values < self.num_labels) for values in (labels, predictions)]
        counted = labelled & of_classes[0] & of_classes[1]
        pairs = torch.where(counted, labels * self.num_labels + predictions, 0)
        self.counts.view(-1).scatter_add_(0, pairs, counted.long())
        strays = torch.stack([labelled & ~each for each in of_classes])  # (2, pixels)
        lowest = torch.where(strays, torch.stack([labels, predictions]), _NO_STRAY).amin(1)
        self._strays = torch.minimum(self._strays, torch.stack([-strays.any(1).long(), lowest], 1))

    def _count(self, predictions: Tensor, labels: Tensor) -> Tensor:
        """The pixels of every label, classes or not, and prediction."""
        lowest, highest = self._label_range
        self._require(labels, "labels", lowest, highest)
        if not _within(predictions, 0, self.num_labels - 1):
            predictions = predictions.masked_fill(labels == self.ignore_index, 0)
            self._require(predictions, "predictions", 0, self.num_labels - 1)
        cells = (highest - lowest + 1) * self.num_labels
        kind = torch.int32 if cells < 2**31 else torch.int64  # the narrower, the faster
        pairs = torch.add(predictions.to(kind), labels.to(kind), alpha=self.num_labels)
        if lowest:
            pairs -= lowest * self.num_labels
        return torch.bincount(pairs, minlength=cells).view(-1, self.num_labels)

    def _add(self, counts: Tensor) -> None:
        lowest = self._label_range[0]
        classes = slice(-lowest, self.num_labels - lowest)
        counts[self.ignore_index - lowest] = 0
        strays = counts.sum(1)
        strays[classes] = 0
        if strays.any():
            self._refuse("labels", int(strays.nonzero()[0]) + lowest)
        self.counts += counts[classes]

    @property
    def _label_range(self) -> tuple[int, int]:
        """The lowest and highest label that may occur.

        Each between them gets a row, so that one histogram of pairs counts the classes, the ignored pixels and any
        strays, and no pixel has to be picked out first.
        """
        return min(0, self.ignore_index), max(self.num_labels - 1, self.ignore_index)

    def _require(self, values: Tensor, name: str, lowest: int, highest: int) -> None:
        if not _within(values, lowest, highest):
            low, high = (int(bound) for bound in torch.aminmax(values.long()))
            self._refuse(name, low if low < lowest else high)

    def _refuse(self, name: str, stray: int) -> NoReturn:
        hint = f"; {self.ignore_index} is ignored" if name == "labels" else ""
        raise ValueError(f"{name} hold {stray}; the classes are 0 to {self.num_labels - 1}{hint}")

    def all_reduce(self) -> None:
        """Sum the counts over the ranks of a distributed run, so that every rank has the scores of all pixels."""
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(self.counts)
            dist.all_reduce(self._strays, dist.ReduceOp.MIN)  # so that every rank refuses what one has seen

    def scores(self, names: Sequence[str] | Mapping[int, str] = ()) -> Scores:
        """The scores of everything counted so far; ``names`` of the classes, such as an ``id2label``, are for printing.

        Raises ValueError unless every class has its name, or none has, and for what ``update`` has not refused yet.
        """
        by_id = dict(names) if isinstance(names, Mapping) else dict(enumerate(names))
        if by_id and set(by_id) != set(range(self.num_labels)):
            raise ValueError(
                f"names are of {_some(by_id)}; the classes are 0 to {self.num_labels - 1}, each with a name"
            )
        listed = [by_id[k] for k in sorted(by_id)]
        numbers = torch.cat([self._strays.flatten(), self.counts.flatten()]).cpu()  # at once: on CUDA this waits
        for name, (seen, lowest) in zip(("labels", "predictions"), numbers[:4].view(2, 2).tolist(), strict=True):
            if seen:
                self._refuse(name, lowest)
        counts = numbers[4:].view_as(self.counts).numpy().astype(np.float64)  # exact up to 2**53 pixels
        return Scores(counts.diagonal().copy(), counts.sum(1), counts.sum(0), listed)


def _within(values: Tensor, lowest: int, highest: int) -> bool:
    if values.device.type != "cpu":
        low, high = torch.aminmax(values)
        return bool((low >= lowest) & (high <= highest))
    array = values.numpy()  # whose extremes are found three times as fast as torch's
    if lowest == 0 and highest < 2 ** (8 * array.itemsize - 1):  # read without its sign, what is negative is huge
        return int(array.view(f"u{array.itemsize}").max()) <= highest
    return int(array.min()) >= lowest and int(array.max()) <= highest


def _some(ids: Mapping[int, str]) -> str:
    listed = ", ".join(map(repr, list(ids)[:3]))
    return f"{listed}, ... ({len(ids)} in all)" if len(ids) > 3 else listed


def _ratio(numerator: Any, denominator: Any) -> NDArray[np.float64]:
    with np.errstate(invalid="ignore"):
        return np.asarray(np.divide(numerator, denominator))  # 0 / 0 is NaN: nothing to score


def _nanmean(values: NDArray[np.float64]) -> float:
    return float(np.nanmean(values)) if not np.isnan(values).all() else float("nan")
