"""Where a mean IoU comes from: how borders are met, and how what is small in its photo fares beside what is large.

Boundary IoU is that of Cheng et al. (CVPR 2021), counted over all photos as mean IoU is: of every class, only the
pixels within 2 % of the picture's diagonal from where it ends are compared, so that the insides of large regions, which
every model gets right, no longer hide a ragged outline. What is ignored is looked through: a class ends where another
is seen within that reach, or where the picture ends.

By size, a class is counted in the photos of which it covers a small, a medium or a large share, as label maps do not
tell one object from the next. What is predicted in photos without the class counts for no size.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

from segformer.metrics import ConfusionMatrix, Scores

SIZES = {"small": 0.0, "medium": 0.01, "large": 0.1}  # from which share of a photo's labelled pixels
_BORDER = 0.02  # of the diagonal


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class DetailedScores(Scores):
    """Scores of all pixels, and the same of those along borders and of classes that are ``SIZES`` in their photo."""

    boundary: Scores
    by_size: Mapping[str, Scores]

    def entries(self) -> dict[str, float | list[float]]:
        """Those of all pixels, then the means of the others and each class's boundary IoU."""
        return {
            **super().entries(),
            "mean_boundary_iou": self.boundary.mean_iou,
            "per_category_boundary_iou": self.boundary.per_category_iou.tolist(),
            **{f"mean_iou_{size}": scores.mean_iou for size, scores in self.by_size.items()},
        }

    def __repr__(self) -> str:
        sizes = "  ".join(f"{size} {scores.mean_iou:.4f}" for size, scores in self.by_size.items())
        return f"{super().__repr__()}\nboundary IoU {self.boundary.mean_iou:.4f}  IoU by size: {sizes}"


class DetailedConfusionMatrix(ConfusionMatrix):
    """A confusion matrix that also counts along borders and by size, from maps of whole photos."""

    def __init__(
        self, num_labels: int, ignore_index: int = 255, device: torch.device | str | int | None = None
    ) -> None:
        super().__init__(num_labels, ignore_index, device)
        # Along borders, then by each size: pixels of each class that were found, those labelled, those predicted.
        self.details = torch.zeros(1 + len(SIZES), 3, num_labels, dtype=torch.int64, device=device)

    def update(self, predictions: Tensor | NDArray[Any], labels: Tensor | NDArray[Any]) -> None:
        """Add a map (H, W) or a batch of maps (B, H, W) of whole photos, as ``ConfusionMatrix.update`` does."""
        predictions = torch.as_tensor(predictions, device=self.counts.device)
        labels = torch.as_tensor(labels, device=self.counts.device)
        if labels.ndim not in (2, 3):
            raise ValueError(f"label maps are {list(labels.shape)}; they must be (H, W) or (B, H, W)")
        super().update(predictions, labels)
        if labels.numel() == 0:
            return
        if self.ignore_index < 0 and not labels.dtype.is_signed:  # which would be compared modulo 256
            left_out = torch.zeros_like(labels, dtype=torch.bool)
        else:
            left_out = labels == self.ignore_index
        if labels.device.type == "cuda":  # where strays are refused only with the scores
            left_out |= (labels < 0) | (labels >= self.num_labels) | (predictions < 0)
            left_out |= predictions >= self.num_labels
        narrow = torch.uint8 if self.num_labels < 2**8 else torch.int16 if self.num_labels < 2**15 else torch.int32
        seen, true = (
            each.to(narrow, copy=True).masked_fill_(left_out, self.num_labels).view(-1, *each.shape[-2:])
            for each in (predictions, labels)
        )
        self._add_sizes(*self._areas(seen, true))
        self.details[0] += torch.stack(self._areas(self._border_of(seen), self._border_of(true))).sum(1)

    def _areas(self, predictions: Tensor, labels: Tensor) -> list[Tensor]:
        """The pixels (B, K) of each photo and class that were found, labelled and predicted; K in a map is none."""
        found = labels.masked_fill(predictions != labels, self.num_labels)
        return [self._histogram(each) for each in (found, labels, predictions)]

    def _histogram(self, maps: Tensor) -> Tensor:
        bins = self.num_labels + 1
        if maps.device.type == "cpu":
            return torch.stack([torch.bincount(each.flatten(), minlength=bins)[:-1] for each in maps])
        counts = torch.zeros(len(maps), bins, dtype=torch.int64, device=maps.device)
        numbers = maps.flatten(1).long()  # bincount would wait for the largest of them
        return counts.scatter_add_(1, numbers, torch.ones_like(numbers))[:, :-1]

    def _border_of(self, maps: Tensor) -> Tensor:
        """The maps (B, H, W) with K wherever a pixel lies further from all other classes, and from the edge.

        K in them is no class: to the lowest it is above all others, to the highest it is made the lowest.
        """
        reach = max(1, round(_BORDER * math.hypot(*maps.shape[-2:])))
        inside = maps[:, reach:-reach, reach:-reach]
        if inside.numel() == 0:
            return maps
        window = 2 * reach + 1
        highest = _over_windows(maps.masked_fill(maps == self.num_labels, 0), window, torch.maximum)
        lowest = _over_windows(maps, window, torch.minimum)
        border = maps.clone()
        border[:, reach:-reach, reach:-reach] = inside.masked_fill(highest <= lowest, self.num_labels)
        return border

    def _add_sizes(self, found: Tensor, labelled: Tensor, predicted: Tensor) -> None:
        share = labelled / labelled.sum(1, keepdim=True)
        areas = torch.stack([found, labelled, predicted])  # (3, B, K)
        for number, (least, below) in enumerate(pairwise([*SIZES.values(), math.inf]), start=1):
            of_size = (labelled > 0) & (share >= least) & (share < below)
            self.details[number] += (areas * of_size).sum(1)

    def add(self, other: DetailedConfusionMatrix) -> None:
        """Add all that another one has counted of the same classes."""
        self.counts += other.counts
        self.details += other.details

    def all_reduce(self) -> None:
        super().all_reduce()
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(self.details)

    def scores(self, names: Sequence[str] | Mapping[int, str] = ()) -> DetailedScores:
        whole = super().scores(names)
        details = self.details.cpu().numpy().astype(float)
        boundary, *by_size = (Scores(found, labelled, predicted, whole.names) for found, labelled, predicted in details)
        return DetailedScores(
            whole.found,
            whole.labelled,
            whole.predicted,
            whole.names,
            boundary=boundary,
            by_size=dict(zip(SIZES, by_size, strict=True)),
        )


def _over_windows(maps: Tensor, window: int, extreme: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """The extreme in every square window that lies within maps (B, H, W), from windows that double in width."""
    for axis in (1, 2):
        width = 1
        while width < window:
            step = min(width, window - width)
            length = maps.shape[axis] - step
            maps = extreme(maps.narrow(axis, 0, length), maps.narrow(axis, step, length))
            width += step
    return maps
