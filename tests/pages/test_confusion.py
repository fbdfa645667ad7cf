"""The confusion matrix on a page: what stands in its cells, in which order, and where a cell leads."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from markup import Markup
from numpy.typing import NDArray

from segformer.metrics import ConfusionMatrix
from segformer.pages.confusion import confusion_section, order_by_likeness
from segformer.pages.page import Html
from segformer.pages.record import RunRecord
from segformer.pages.report import render_report
from segformer.pictures import palette
from segformer.training.description import RunDescription, read_confusion, write_results

NAMES = ["road", "<sidewalk>", "car", "sky", "never"]
COUNTS = np.array(
    [[90, 10, 0, 0, 0], [30, 60, 9, 1, 0], [0, 4, 996, 0, 0], [0, 0, 0, 50, 0], [0, 0, 0, 0, 0]], np.int64
)


def shown(counts: NDArray[np.int64], **rest: Any) -> Markup:
    names = NAMES if len(counts) == len(NAMES) else [f"class {k}" for k in range(len(counts))]
    return Markup(confusion_section(counts, names, palette(len(counts)), **rest))


def table(markup: Markup) -> dict[str, dict[str, str]]:
    """What stands in the cells, by label and prediction."""
    heads = [cell.text for cell in markup.all("th") if cell.attributes.get("scope") == "col"]
    rows = [cell.text for cell in markup.all("th") if cell.attributes.get("scope") == "row"]
    cells = [cell.text for cell in markup.all("td")][1:]
    assert len(cells) == len(rows) * len(heads)
    grid = np.array(cells, dtype=object).reshape(len(rows), len(heads))
    return {row: dict(zip(heads, values, strict=True)) for row, values in zip(rows, grid, strict=True)}


def test_cells_are_percents_of_their_rows_and_classes_that_never_occur_are_left_out() -> None:
    cells = table(shown(COUNTS))
    assert set(cells) == {"road", "<sidewalk>", "car", "sky"}
    assert cells["road"] == {"road": "90", "<sidewalk>": "10", "car": "", "sky": ""}
    assert cells["<sidewalk>"] == {"road": "30", "<sidewalk>": "60", "car": "9", "sky": "1"}
    assert cells["car"]["<sidewalk>"] == ""  # 0.4 %


def test_a_cell_says_what_it_is_and_leads_to_the_photo_that_shows_it() -> None:
    markup = shown(COUNTS, photo_of={(1, 0): 7})
    assert "&lt;sidewalk&gt;: 30.0 % taken for road" in confusion_section(COUNTS, NAMES, palette(5))
    (link,) = markup.all("a")
    assert (link.attributes["href"], link.attributes["data-light"], link.text) == ("#photo-7", "1", "30")


def test_classes_that_are_confused_stand_together() -> None:
    groups = [[0, 7, 4], [1, 3, 6], [2, 5]]
    counts = np.eye(8, dtype=np.int64) * 100
    for group in groups:
        counts[np.ix_(group, group)] += 30
    counts[4, 3] = 2
    order = order_by_likeness(counts)
    assert sorted(order) == list(range(8))
    for group in groups:
        places = sorted(order.index(k) for k in group)
        assert places == list(range(places[0], places[0] + len(group)))
    assert order_by_likeness(counts) == order


def test_of_many_classes_those_with_the_most_wrong_pixels_are_shown() -> None:
    counts = np.eye(60, dtype=np.int64) * 1000
    for k in range(50):
        counts[k, k + 1] = 10 + k
    markup = shown(counts)
    assert len(table(markup)) == 40
    assert "class 50" in table(markup)
    assert "class 3" not in table(markup)
    assert "the 40 classes with the most wrong pixels of 60" in str(confusion_section(counts, ["c"] * 60, palette(60)))


@pytest.mark.parametrize("counts", [np.zeros((3, 3), np.int64), np.diag([5, 0, 0])])
def test_one_class_or_none_makes_no_table(counts: NDArray[np.int64]) -> None:
    assert confusion_section(counts, ["a", "b", "c"], palette(3)) == Html("")


def scored(folder: Path, counts: NDArray[np.int64]) -> RunDescription:
    """Leave the results of an evaluation in a folder."""
    matrix = ConfusionMatrix(len(counts))
    matrix.counts += torch.from_numpy(counts)
    results = {f"eval_{name}": value for name, value in matrix.scores().entries().items()}
    about = RunDescription(class_names=['a "b", c', *NAMES[1:]], settings={"eval_only": True})
    about.save(folder)
    write_results(folder, 0, results, about, counts)
    return about


def test_the_matrix_is_kept_with_the_results_and_told_in_the_report(tmp_path: Path) -> None:
    scored(tmp_path, COUNTS)
    with (tmp_path / "confusion.csv").open(newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["label", 'a "b", c', *NAMES[1:]]
    assert rows[2] == ["<sidewalk>", "30", "60", "9", "1", "0"]
    assert ">Confusion matrix<" in render_report(RunRecord.load(tmp_path))


def test_a_matrix_of_other_results_is_not_told(tmp_path: Path) -> None:
    scored(tmp_path, COUNTS)
    results = json.loads((tmp_path / "eval_results.json").read_text())
    results["eval_per_category_iou"][0] += 0.01
    (tmp_path / "eval_results.json").write_text(json.dumps(results))
    assert ">Confusion matrix<" not in render_report(RunRecord.load(tmp_path))


@pytest.mark.parametrize("text", ["", "label,a\na,x\n", "label,a,b\na,1,2\n", "label,a,b\na,1,-2\nb,1,2\n", "\0"])
def test_a_damaged_matrix_is_passed_over(tmp_path: Path, text: str) -> None:
    (tmp_path / "confusion.csv").write_text(text)
    assert read_confusion(tmp_path, 2) is None
