"""Boundary IoU and IoU by size, beside a second implementation that looks at every pixel and its neighbours."""

from __future__ import annotations

import math
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from segformer import ConfusionMatrix
from segformer.detail import SIZES, DetailedConfusionMatrix

CLASSES, IGNORED = 5, 255


def some_maps(size: tuple[int, int], count: int = 3, seed: int = 0) -> tuple[NDArray[Any], NDArray[Any]]:
    """Label maps of a few blocks with some ignored pixels, and predictions that are wrong here and there."""
    random = np.random.default_rng(seed)
    height, width = size
    labels = np.zeros((count, height, width), np.uint8)
    for photo in labels:
        for k in random.integers(0, CLASSES, 6):
            (top, bottom), (left, right) = (sorted(random.integers(0, side + 1, 2)) for side in size)
            photo[top:bottom, left:right] = k
    predictions = np.where(random.random(labels.shape) < 0.05, random.integers(0, CLASSES, labels.shape), labels)
    labels[random.random(labels.shape) < 0.01] = IGNORED
    labels[:, : height // 8, : width // 2] = IGNORED
    return predictions.astype(np.uint8), labels


def border_pixels(label_map: NDArray[Any], k: int) -> set[tuple[int, int]]:
    """The pixels of a class that have another or the outside within 2 % of the diagonal."""
    height, width = label_map.shape
    reach = max(1, round(0.02 * math.hypot(height, width)))
    around = range(-reach, reach + 1)
    return {
        (y, x)
        for y, x in zip(*np.nonzero(label_map == k), strict=True)
        if any(
            not (0 <= y + dy < height and 0 <= x + dx < width) or label_map[y + dy, x + dx] not in (k, IGNORED)
            for dy, dx in product(around, around)
        )
    }


def ratio(intersection: float, union: float) -> float:
    return intersection / union if union else math.nan


@pytest.mark.parametrize("size", [(40, 60), (61, 33), (7, 90), (2, 2), (1, 5)])
def test_boundary_iou_compares_what_is_near_the_end_of_a_class(size: tuple[int, int]) -> None:
    predictions, labels = some_maps(size)
    matrix = DetailedConfusionMatrix(CLASSES)
    matrix.update(predictions, labels)
    scored = np.where(labels == IGNORED, IGNORED, predictions)
    for k, iou in enumerate(matrix.scores().boundary.per_category_iou):
        pairs = [(border_pixels(made, k), border_pixels(true, k)) for made, true in zip(scored, labels, strict=True)]
        met, all_of_it = (sum(len(how(*pair)) for pair in pairs) for how in (set.intersection, set.union))
        assert iou == pytest.approx(ratio(met, all_of_it), nan_ok=True)


def test_by_size_a_class_is_counted_in_the_photos_where_it_has_that_share() -> None:
    predictions, labels = some_maps((40, 60), count=8, seed=1)
    matrix = DetailedConfusionMatrix(CLASSES)
    matrix.update(predictions, labels)
    limits = [*SIZES.values(), math.inf]
    for number, scores in enumerate(matrix.scores().by_size.values()):
        for k, iou in enumerate(scores.per_category_iou):
            met = all_of_it = 0
            for made, true in zip(predictions, labels, strict=True):
                valid = true != IGNORED
                if limits[number] <= (true == k).sum() / valid.sum() < limits[number + 1] and (true == k).any():
                    met += ((made == k) & (true == k)).sum()
                    all_of_it += (((made == k) | (true == k)) & valid).sum()
            assert iou == pytest.approx(ratio(met, all_of_it), nan_ok=True)
    found = np.concatenate([scores.per_category_iou for scores in matrix.scores().by_size.values()])
    assert np.isfinite(found).sum() > CLASSES  # or the maps show too little


def test_a_ragged_outline_costs_more_than_in_mean_iou() -> None:
    labels = np.zeros((100, 100), np.int64)
    labels[:, 50:] = 1
    predictions = labels.copy()
    predictions[::2, 48:50] = 1
    matrix = DetailedConfusionMatrix(2)
    matrix.update(predictions, labels)
    scores = matrix.scores()
    assert scores.mean_iou > 0.97
    assert scores.boundary.mean_iou < 0.85


def test_ignored_specks_are_no_borders_that_everybody_meets() -> None:
    labels = np.zeros((200, 200), np.uint8)
    labels[50:150, 50:150] = 1
    predictions = labels.copy()
    predictions[50:150, 150:154] = 1
    specks = np.where(np.random.default_rng(0).random(labels.shape) < 0.01, IGNORED, labels)
    ious = []
    for truth in (labels, specks):
        matrix = DetailedConfusionMatrix(2)
        matrix.update(predictions, truth)
        ious.append(matrix.scores().boundary.per_category_iou)
    assert ious[0].max() < 0.9
    np.testing.assert_allclose(ious[1], ious[0], atol=0.01)


def test_bytes_are_no_negative_index_to_ignore() -> None:
    whole = np.full((8, 8), 156, np.uint8)  # -100 modulo 256
    matrix = DetailedConfusionMatrix(200, ignore_index=-100)
    matrix.update(whole, whole)
    assert matrix.counts[156, 156] == 64
    assert matrix.details[:, :, 156].tolist() == [[28] * 3, [0] * 3, [0] * 3, [64] * 3]  # an edge of one pixel; large


def test_batches_and_sums_of_matrices_are_counted_as_one_photo_after_another() -> None:
    predictions, labels = some_maps((40, 60))
    whole, parts = DetailedConfusionMatrix(CLASSES), DetailedConfusionMatrix(CLASSES)
    whole.update(predictions, labels)
    for made, true in zip(predictions, labels, strict=True):
        one = DetailedConfusionMatrix(CLASSES)
        one.update(torch.from_numpy(made).long(), torch.from_numpy(true).long())
        parts.add(one)
    assert torch.equal(whole.details, parts.details)
    assert torch.equal(whole.counts, parts.counts)


def test_all_pixels_are_scored_as_by_the_plain_matrix() -> None:
    predictions, labels = some_maps((40, 60))
    plain, detailed = ConfusionMatrix(CLASSES), DetailedConfusionMatrix(CLASSES)
    for matrix in (plain, detailed):
        matrix.update(predictions, labels)
    entries, those_of_all = detailed.scores().entries(), plain.scores().entries()
    assert {name: entries[name] for name in those_of_all} == those_of_all
    assert set(entries) - set(those_of_all) == {
        "mean_boundary_iou",
        "per_category_boundary_iou",
        *(f"mean_iou_{size}" for size in SIZES),
    }


def test_ignored_photos_count_nothing_and_what_is_predicted_there_does_not_matter() -> None:
    matrix = DetailedConfusionMatrix(CLASSES)
    matrix.update(np.full((2, 9, 9), 200, np.uint8), np.full((2, 9, 9), IGNORED, np.uint8))
    assert not matrix.details.any()
    assert math.isnan(matrix.scores().boundary.mean_iou)


def test_only_maps_of_whole_photos_have_borders() -> None:
    matrix = DetailedConfusionMatrix(CLASSES)
    with pytest.raises(ValueError, match=r"label maps are \[12\]; they must be \(H, W\) or \(B, H, W\)"):
        matrix.update(np.zeros(12, np.uint8), np.zeros(12, np.uint8))
    assert not matrix.counts.any()


def test_the_scores_are_printed_with_the_details() -> None:
    predictions, labels = some_maps((40, 60))
    matrix = DetailedConfusionMatrix(CLASSES)
    matrix.update(predictions, labels)
    scores = matrix.scores([f"class {k}" for k in range(CLASSES)])
    assert repr(scores).splitlines()[-1].startswith(f"boundary IoU {scores.boundary.mean_iou:.4f}  IoU by size: small ")
