"""Mean IoU: the numbers of evaluate's metric, from counts that are exact, batched in any way and checked."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import programs
import pytest
import torch

from segformer import ConfusionMatrix

REPOSITORY = Path(__file__).resolve().parents[1]
Maps = Sequence[np.ndarray]


def random_maps(
    seed: int, num_labels: int, count: int = 5, ignored: float = 0.2, ignore_index: int = 255
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Predictions and labels of mixed sizes that agree in about half of their pixels."""
    rng = np.random.default_rng(seed)
    predictions, labels = [], []
    for _ in range(count):
        size = tuple(rng.integers(1, 12, 2).tolist())
        prediction, label = rng.integers(0, num_labels, (2, *size))
        label = np.where(rng.random(size) < 0.5, prediction, label)
        predictions.append(prediction)
        labels.append(np.where(rng.random(size) < ignored, ignore_index, label))
    return predictions, labels


def naive_scores(predictions: Maps, labels: Maps, num_labels: int, ignore_index: int = 255) -> dict[str, Any]:
    """Scores from sets of pixel places, one class at a time; None where nothing is there to score."""
    predicted: dict[int, set[tuple[int, ...]]] = {k: set() for k in range(num_labels)}
    labelled: dict[int, set[tuple[int, ...]]] = {k: set() for k in range(num_labels)}
    for number, (prediction, label) in enumerate(zip(predictions, labels, strict=True)):
        for place in np.ndindex(label.shape):
            if label[place] != ignore_index:
                predicted[int(prediction[place])].add((number, *place))
                labelled[int(label[place])].add((number, *place))
    iou, accuracy, right, total = [], [], 0, 0
    for k in range(num_labels):
        both, either = predicted[k] & labelled[k], predicted[k] | labelled[k]
        iou.append(len(both) / len(either) if either else None)
        accuracy.append(len(both) / len(labelled[k]) if labelled[k] else None)
        right, total = right + len(both), total + len(labelled[k])
    return {"iou": iou, "accuracy": accuracy, "overall": right / total if total else None}


def count(predictions: Maps, labels: Maps, num_labels: int, ignore_index: int = 255) -> ConfusionMatrix:
    matrix = ConfusionMatrix(num_labels, ignore_index)
    for prediction, label in zip(predictions, labels, strict=True):
        matrix.update(prediction, label)
    return matrix


def nan_for_none(values: list[float | None]) -> np.ndarray:
    return np.array([np.nan if value is None else value for value in values])


def mean_of_present(values: list[float | None]) -> float:
    present = [value for value in values if value is not None]
    return sum(present) / len(present)


@pytest.mark.parametrize("num_labels", [1, 2, 7, 150])
@pytest.mark.parametrize("seed", range(5))
def test_scores_are_those_of_sets_of_pixels(seed: int, num_labels: int) -> None:
    predictions, labels = random_maps(seed, num_labels)
    scores = count(predictions, labels, num_labels).scores()
    expected = naive_scores(predictions, labels, num_labels)
    np.testing.assert_array_equal(scores.per_category_iou, nan_for_none(expected["iou"]))
    np.testing.assert_array_equal(scores.per_category_accuracy, nan_for_none(expected["accuracy"]))
    assert scores.overall_accuracy == expected["overall"]
    assert scores.mean_iou == pytest.approx(mean_of_present(expected["iou"]), rel=1e-14)
    assert scores.mean_accuracy == pytest.approx(mean_of_present(expected["accuracy"]), rel=1e-14)


@pytest.mark.parametrize("ignore_index", [0, 3, 254, -100])
def test_any_value_can_be_the_ignored_one(ignore_index: int) -> None:
    predictions, labels = random_maps(3, 5, ignore_index=ignore_index)
    scores = count(predictions, labels, 5, ignore_index).scores()
    expected = naive_scores(predictions, labels, 5, ignore_index)
    np.testing.assert_array_equal(scores.per_category_iou, nan_for_none(expected["iou"]))


def test_scores_are_those_of_the_example_in_the_documentation_of_evaluate() -> None:
    predictions = [[[1, 2], [3, 4], [5, 255]], [[2, 7], [9, 2], [3, 6]], [[2, 2, 3], [8, 2, 4], [3, 255, 2]]]
    labels = [[[0, 3], [5, 4], [6, 255]], [[1, 7], [9, 2], [3, 6]], [[1, 2, 2], [8, 2, 1], [3, 255, 1]]]
    scores = count([np.array(p) for p in predictions], [np.array(label) for label in labels], 10).scores()
    assert scores.mean_iou == pytest.approx(0.47750000000000004, rel=1e-15)
    assert scores.mean_accuracy == pytest.approx(0.5916666666666666, rel=1e-15)
    assert scores.overall_accuracy == pytest.approx(0.5263157894736842, rel=1e-15)
    np.testing.assert_allclose(scores.per_category_iou, [0, 0, 0.375, 0.4, 0.5, 0, 0.5, 1, 1, 1], rtol=1e-15)
    np.testing.assert_allclose(scores.per_category_accuracy, [0, 0, 0.75, 2 / 3, 1, 0, 0.5, 1, 1, 1], rtol=1e-15)


def test_a_class_in_neither_map_is_nan_and_left_out_of_the_means() -> None:
    scores = count([np.array([0, 0, 2])], [np.array([0, 2, 2])], 4).scores()
    np.testing.assert_array_equal(scores.per_category_iou, [0.5, np.nan, 0.5, np.nan])
    np.testing.assert_array_equal(scores.per_category_accuracy, [1.0, np.nan, 0.5, np.nan])
    assert (scores.mean_iou, scores.mean_accuracy) == (0.5, 0.75)


def test_a_class_that_is_only_predicted_counts_with_iou_0_and_has_no_accuracy() -> None:
    scores = count([np.array([0, 1])], [np.array([0, 0])], 2).scores()
    np.testing.assert_array_equal(scores.per_category_iou, [0.5, 0.0])
    np.testing.assert_array_equal(scores.per_category_accuracy, [0.5, np.nan])
    assert (scores.mean_iou, scores.mean_accuracy) == (0.25, 0.5)


@pytest.mark.parametrize("update", [True, False])
def test_nothing_to_score_is_nan_everywhere_without_a_warning(update: bool) -> None:
    matrix = ConfusionMatrix(3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        if update:
            matrix.update(np.array([[0, 1], [2, 0]]), np.full((2, 2), 255))
        scores = matrix.scores()
    assert np.isnan([scores.mean_iou, scores.mean_accuracy, scores.overall_accuracy]).all()
    assert np.isnan(scores.per_category_iou).all()
    assert np.isnan(scores.per_category_accuracy).all()


def test_scores_come_in_float64() -> None:
    scores = count([np.array([0, 1])], [np.array([0, 0])], 2).scores()
    assert scores.per_category_iou.dtype == scores.per_category_accuracy.dtype == np.float64
    assert type(scores.mean_iou) is type(scores.mean_accuracy) is type(scores.overall_accuracy) is float


@pytest.mark.parametrize("seed", range(3))
def test_dice_precision_and_recall_are_those_of_sets_of_pixels(seed: int) -> None:
    predictions, labels = random_maps(seed, 7)
    scores = count(predictions, labels, 7).scores()
    valid = np.concatenate([label.ravel() for label in labels]) != 255
    predicted = np.concatenate([each.ravel() for each in predictions])[valid]
    labelled = np.concatenate([each.ravel() for each in labels])[valid]
    for k in range(7):
        p, t = set(np.flatnonzero(predicted == k)), set(np.flatnonzero(labelled == k))
        assert scores.per_category_precision[k] == len(p & t) / len(p)
        assert scores.per_category_recall[k] == len(p & t) / len(t)
        assert scores.per_category_dice[k] == 2 * len(p & t) / (len(p) + len(t))
    for name in ("dice", "precision", "recall"):
        mean = getattr(scores, f"per_category_{name}").mean()
        assert getattr(scores, f"mean_{name}") == pytest.approx(mean, rel=1e-14)


def test_dice_is_the_harmonic_mean_of_precision_and_recall() -> None:
    scores = count(*random_maps(0, 5), 5).scores()
    precision, recall = scores.per_category_precision, scores.per_category_recall
    np.testing.assert_allclose(scores.per_category_dice, 2 * precision * recall / (precision + recall), rtol=1e-14)


def test_what_is_never_predicted_has_no_precision_and_what_never_occurs_no_recall() -> None:
    scores = count([np.array([0, 0, 2])], [np.array([0, 1, 0])], 4).scores()
    np.testing.assert_array_equal(scores.per_category_precision, [0.5, np.nan, 0, np.nan])
    np.testing.assert_array_equal(scores.per_category_recall, [0.5, 0, np.nan, np.nan])
    np.testing.assert_array_equal(scores.per_category_dice, [0.5, 0, 0, np.nan])
    assert (scores.mean_precision, scores.mean_recall, scores.mean_dice) == (0.25, 0.25, 0.5 / 3)


def test_scores_print_as_a_table_of_the_classes() -> None:
    scores = count([np.array([0, 0, 2, 1])], [np.array([0, 2, 2, 255])], 3).scores({0: "wall", 1: "bed ", 2: "sky"})
    assert repr(scores).splitlines() == [
        "mean IoU 0.5000  mean accuracy 0.7500  pixel accuracy 0.6667  mean Dice 0.6667",
        "class     IoU    Dice  precision  recall  share of pixels",
        "wall   0.5000  0.6667     0.5000  1.0000           0.3333",
        "bed         -       -          -       -           0.0000",
        "sky    0.5000  0.6667     1.0000  0.5000           0.6667",
    ]


def test_classes_without_names_print_as_their_numbers() -> None:
    assert [line.split()[0] for line in repr(ConfusionMatrix(3).scores()).splitlines()[2:]] == ["0", "1", "2"]


@pytest.mark.parametrize(
    ("names", "said"),
    [(["wall", "bed"], "names are of 0, 1;"), ({"0": "wall", "1": "bed", "2": "sky"}, "names are of '0', '1', '2';")],
    ids=["too few", "by text, as JSON has them"],
)
def test_names_that_are_not_the_classes_are_refused(names: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        ConfusionMatrix(3).scores(names)


@pytest.mark.parametrize("stray", [2**32, 2**32 + 1, -(2**32), 2**40, -(2**63)])
@pytest.mark.parametrize("where", ["labels", "predictions"])
def test_a_stray_is_refused_however_narrow_the_counting_is(where: str, stray: int) -> None:
    good = np.array([0, 1, 2])
    bad = np.array([0, stray, 2])
    with pytest.raises(ValueError, match=f"{where} hold {stray};"):
        ConfusionMatrix(3).update(*((good, bad) if where == "labels" else (bad, good)))


def test_maps_counted_one_by_one_in_batches_or_in_rows_give_the_same_counts() -> None:
    rng = np.random.default_rng(0)
    predictions, labels = rng.integers(0, 6, (2, 8, 9, 11))
    labels[rng.random(labels.shape) < 0.3] = 255
    counts = []
    for parts in (1, 2, 4, 8):
        matrix = ConfusionMatrix(6)
        for prediction, label in zip(np.split(predictions, parts), np.split(labels, parts), strict=True):
            matrix.update(prediction, label)
        counts.append(matrix.counts)
    counts.append(count(predictions, labels, 6).counts)
    counts.append(count(predictions.reshape(-1, 11), labels.reshape(-1, 11), 6).counts)
    assert all(torch.equal(one, counts[0]) for one in counts)


def test_many_pixels_are_counted_as_few_are_and_a_stray_among_the_last_is_refused() -> None:
    rng = np.random.default_rng(0)
    predictions, labels = rng.integers(0, 6, (2, 600, 1001))  # more than are counted at a time, and no multiple of them
    labels[rng.random(labels.shape) < 0.3] = 255
    whole = ConfusionMatrix(6)
    whole.update(predictions, labels)
    assert torch.equal(whole.counts, count(predictions, labels, 6).counts)  # row by row
    before = whole.counts.clone()
    labels[-1, -1] = 7
    with pytest.raises(ValueError, match="labels hold 7"):
        whole.update(predictions, labels)
    assert torch.equal(whole.counts, before)


def test_counts_stand_by_label_then_prediction() -> None:
    matrix = count([np.array([2, 2, 1])], [np.array([0, 0, 1])], 3)
    assert matrix.counts.tolist() == [[0, 0, 2], [0, 1, 0], [0, 0, 0]]


def test_the_pixel_after_2_to_the_24_is_counted() -> None:
    matrix = ConfusionMatrix(2)
    matrix.counts[0, 0] = 2**24  # where float32 stands still
    matrix.update(np.array([0, 1]), np.array([0, 0]))
    assert matrix.counts.tolist() == [[2**24 + 1, 1], [0, 0]]
    assert matrix.scores().overall_accuracy == (2**24 + 1) / (2**24 + 2)


KINDS = {
    "uint8 array": lambda values: values.astype(np.uint8),
    "uint16 array": lambda values: values.astype(np.uint16),  # what a Segmenter of more than 256 classes gives
    "int32 array": lambda values: values.astype(np.int32),
    "int64 array": lambda values: values.astype(np.int64),
    "uint8 tensor": lambda values: torch.from_numpy(values.astype(np.uint8)),
    "int64 tensor": lambda values: torch.from_numpy(values.astype(np.int64)),
    "strided array": lambda values: np.repeat(values, 2, axis=-1)[..., ::2],
}


@pytest.mark.parametrize(
    ("predictions_kind", "labels_kind"),
    [*((kind, kind) for kind in KINDS), ("uint8 array", "int64 tensor"), ("int64 array", "uint8 tensor")],
)
def test_integers_of_any_kind_are_counted_alike(predictions_kind: str, labels_kind: str) -> None:
    rng = np.random.default_rng(0)
    predictions, labels = rng.integers(0, 150, (2, 4, 13, 17))
    labels[rng.random(labels.shape) < 0.2] = 255
    expected = np.zeros((150, 150), np.int64)
    np.add.at(expected, (labels[labels != 255], predictions[labels != 255]), 1)
    matrix = ConfusionMatrix(150)
    matrix.update(KINDS[predictions_kind](predictions), KINDS[labels_kind](labels))
    assert np.array_equal(matrix.counts.numpy(), expected)


def test_predictions_on_ignored_pixels_may_be_anything() -> None:
    matrix = count([np.array([0, 255, -7, 10**9])], [np.array([0, 255, 255, 255])], 2)
    assert matrix.counts.tolist() == [[1, 0], [0, 0]]


@pytest.mark.parametrize("stray", [3, 150, 254, -1, -100])
def test_a_label_outside_the_classes_is_refused_by_value(stray: int) -> None:
    with pytest.raises(ValueError, match=f"labels hold {stray}; the classes are 0 to 2; 255 is ignored"):
        ConfusionMatrix(3).update(np.array([0, 1, 2]), np.array([0, stray, 255]))


@pytest.mark.parametrize("stray", [3, 255, -1])
def test_a_prediction_outside_the_classes_is_refused_by_value(stray: int) -> None:
    with pytest.raises(ValueError, match=f"predictions hold {stray}; the classes are 0 to 2"):
        ConfusionMatrix(3).update(np.array([0, stray, 2]), np.array([0, 1, 2]))


@pytest.mark.parametrize(
    ("labels", "ignore_index"),
    [(np.array([156], np.uint8), -100), (np.array([-1], np.int8), 255), (torch.tensor([-1], dtype=torch.int8), 255)],
    ids=["uint8 156 is not -100", "int8 -1 is not 255", "int8 tensor -1 is not 255"],
)
def test_a_label_is_not_ignored_because_its_type_cannot_hold_the_ignored_value(labels: Any, ignore_index: int) -> None:
    with pytest.raises(ValueError, match="labels hold"):
        ConfusionMatrix(3, ignore_index).update(np.array([0]), labels)


def test_a_refused_update_leaves_the_counts_as_they_were() -> None:
    matrix = count([np.array([0, 1])], [np.array([0, 1])], 2)
    with pytest.raises(ValueError, match="labels hold 2"):
        matrix.update(np.array([0, 1]), np.array([0, 2]))
    assert matrix.counts.tolist() == [[1, 0], [0, 1]]


# -------------------------------------------------------------- counted as on CUDA, where nobody looks before the end


def counted_without_waiting(
    predictions: Maps, labels: Maps, num_labels: int, ignore_index: int = 255
) -> ConfusionMatrix:
    matrix = ConfusionMatrix(num_labels, ignore_index)
    for prediction, label in zip(predictions, labels, strict=True):
        matrix._add_without_waiting(torch.as_tensor(prediction), torch.as_tensor(label))
    return matrix


@pytest.mark.parametrize("ignore_index", [255, -100, 0])
@pytest.mark.parametrize("num_labels", [1, 2, 7, 150])
def test_counting_without_waiting_gives_the_same_counts(num_labels: int, ignore_index: int) -> None:
    maps = random_maps(0, num_labels, ignore_index=ignore_index)
    ours = counted_without_waiting(*maps, num_labels, ignore_index)
    assert torch.equal(ours.counts, count(*maps, num_labels, ignore_index).counts)


def test_without_waiting_predictions_on_ignored_pixels_may_be_anything() -> None:
    maps = [np.array([0, 255, -7, 10**9])], [np.array([0, 255, 255, 255])]
    matrix = counted_without_waiting(*maps, 2)
    assert matrix.counts.tolist() == [[1, 0], [0, 0]]
    assert matrix.scores().overall_accuracy == 1


@pytest.mark.parametrize("stray", [3, 254, -1, 2**32, 2**63 - 1, -(2**63)])
@pytest.mark.parametrize("where", ["labels", "predictions"])
def test_without_waiting_a_stray_is_refused_by_value_with_the_scores(where: str, stray: int) -> None:
    good, bad = np.array([0, 1, 2]), np.array([0, stray, 2])
    maps = ([good], [bad]) if where == "labels" else ([bad], [good])
    matrix = counted_without_waiting(*maps, 3)
    matrix._add_without_waiting(torch.tensor([1]), torch.tensor([1]))  # what comes later does not hide it
    assert matrix.counts.sum() == 3
    with pytest.raises(ValueError, match=f"{where} hold {stray}; the classes are 0 to 2"):
        matrix.scores()


@pytest.mark.parametrize(("predicted", "labelled"), [((2, 3), (3, 2)), ((6,), (2, 3)), ((1, 2, 3), (2, 3))])
def test_shapes_that_differ_are_refused_by_both(predicted: tuple[int, ...], labelled: tuple[int, ...]) -> None:
    with pytest.raises(ValueError) as refusal:  # noqa: PT011
        ConfusionMatrix(2).update(np.zeros(predicted, np.int64), np.zeros(labelled, np.int64))
    assert str(refusal.value) == f"predictions are {list(predicted)} but labels {list(labelled)}"


@pytest.mark.parametrize("kinds", [(np.float32, np.int64), (np.int64, np.float64), (np.float16, np.float16)])
def test_floats_are_refused(kinds: tuple[type, type]) -> None:
    with pytest.raises(ValueError, match="must be integers"):
        ConfusionMatrix(2).update(np.zeros(3, kinds[0]), np.zeros(3, kinds[1]))


@pytest.mark.parametrize("num_labels", [0, -3])
def test_a_number_of_classes_below_one_is_refused_by_value(num_labels: int) -> None:
    with pytest.raises(ValueError, match=f"num_labels is {num_labels}"):
        ConfusionMatrix(num_labels)


def test_all_reduce_without_a_distributed_run_changes_nothing() -> None:
    matrix = count([np.array([0, 1])], [np.array([0, 0])], 2)
    matrix.all_reduce()
    assert matrix.counts.tolist() == [[1, 1], [0, 0]]


RANK_SCRIPT = """
import sys, torch, torch.distributed as dist
from segformer import ConfusionMatrix
rank = int(sys.argv[1])
dist.init_process_group("gloo", init_method="file://" + sys.argv[2], rank=rank, world_size=2)
matrix = ConfusionMatrix(2)
matrix.counts[0, 0] = 2**40
matrix.update(torch.tensor([rank, 1]), torch.tensor([0, rank]))
matrix.all_reduce()
print(matrix.counts.tolist())
dist.destroy_process_group()
"""


def test_all_reduce_gives_every_rank_the_sum(tmp_path: Path) -> None:
    ranks = [programs.start("-c", RANK_SCRIPT, str(rank), tmp_path / "meeting") for rank in range(2)]
    outputs = [process.communicate(timeout=120)[0].strip() for process in ranks]
    assert outputs == [str([[2**41 + 1, 2], [0, 1]])] * 2
