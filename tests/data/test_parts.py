"""The rows to train on and to score: what comes out empty, or without labels, is refused by the flag that chose it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from data.labels import LabelRule
from data.parts import Parts, open_parts
from segformer.training.recipes import configure


def dataset(root: Path, train: int = 5, validation: int = 0, test: int = 0) -> Path:
    """Photos with label maps of 0 and 1, but for those of test, which have none."""
    for split, count in (("train", train), ("val", validation), ("test", test)):
        for number in range(count):
            for kind in ("images", "masks"):
                (root / kind / split).mkdir(parents=True, exist_ok=True)
            values = np.random.default_rng([len(split), number]).integers(0, 2, (8, 9)).astype(np.uint8)
            Image.fromarray(np.stack([values] * 3, -1)).save(root / f"images/{split}/{number}.png")
            if split != "test":
                Image.fromarray(values).save(root / f"masks/{split}/{number}.png")
    return root


def parts(root: Path, **settings: Any) -> Parts:
    said = {"num_labels": 2, "reduce_labels": False, "split": "train"}
    return open_parts(configure("guide", dataset=str(root), **{**said, **settings}), None)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"test_size": 0.0}, r"--test-size 0 holds out no row to score; name rows to score by --eval-split"),
        ({"split": "train[:1]"}, r"--test-size 0.2 leaves none of the 1 row of --split train\[:1\] to train on; name"),
        ({"test_size": 0.9}, r"--test-size 0.9 leaves none of the 5 rows of --split train to train on"),
        ({"split": "train[:0]"}, r"^--split: split 'train\[:0\]' of .* is empty; it selects no row"),
        ({"eval_split": "validation[:0]"}, r"^--eval-split: split 'validation\[:0\]' of .* is empty"),
        ({"eval_split": "train[90:]"}, r"^--eval-split: split 'train\[90:\]' of .* is empty"),
        ({"eval_split": "all"}, r"^--eval-split: .* has no split 'all'; it has train, validation, test"),
        ({"split": "all"}, r"^--split: .* has no split 'all'; it has train, validation, test"),
        ({"eval_split": "test"}, r"^--eval-split test: .*/0.png has no label map; name a split whose rows have one"),
        ({"split": "test"}, r"^--split test: .*/0.png has no label map; name a split whose rows have one"),
    ],
    ids=str,
)
def test_rows_that_are_none_are_refused_by_the_flag_that_chose_them(
    settings: dict[str, Any], said: str, tmp_path: Path
) -> None:
    root = dataset(tmp_path, 5, 2, 1)
    with pytest.raises(ValueError, match=said):
        parts(root, **settings)


def test_a_row_to_train_on_and_one_to_score_are_enough(tmp_path: Path) -> None:
    found = parts(dataset(tmp_path, 5), split="train[:2]", test_size=0.5)
    assert (len(found.train), len(found.evaluation)) == (1, 1)


def test_a_validation_split_without_label_maps_is_left_for_a_share_of_the_other(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = dataset(tmp_path, 5, 2)
    for path in (root / "masks/val").iterdir():
        path.unlink()
    found = parts(root, eval_split="auto")
    assert (len(found.train), len(found.evaluation)) == (4, 1)
    assert "validation has no label maps; a share of train is scored instead" in caplog.text
    with pytest.raises(ValueError, match=r"^--eval-split validation: .* has no label map"):
        parts(root, eval_split="validation")


def test_masks_that_mean_something_else_where_they_are_scored_are_refused(tmp_path: Path) -> None:
    root = dataset(tmp_path, 5, 2)
    (root / "classes.txt").write_text("background\ncrack\n")
    for split, value in (("train", 1), ("val", 255)):
        for path in (root / f"masks/{split}").iterdir():
            Image.fromarray(np.uint8([[0, value]] * 2).repeat(8, 0).repeat(8, 1)).save(path)
    for path in (root / "images").rglob("*.png"):
        Image.new("RGB", (16, 16)).save(path)
    with pytest.raises(ValueError, match=r"val.0\.png holds 255; .*give --binary-masks"):
        parts(root, num_labels=None, reduce_labels=None, eval_split="auto")


def test_label_maps_that_are_numbered_otherwise_where_they_are_scored_are_said(tmp_path: Path) -> None:
    root = dataset(tmp_path, 5, 2)
    assert parts(root, num_labels=3, eval_split="auto").labels.warnings[1:] == []
    for path in (root / "masks/val").iterdir():
        Image.fromarray(np.asarray(Image.open(path)) + np.uint8(1)).save(path)
    warnings = parts(root, num_labels=3, eval_split="auto").labels.warnings
    assert warnings[1].startswith("label maps of validation hold 1 to 2 where those to train on hold 0 to 1: if they")


SHARED = "such scores say what is remembered, not what is recognised; python -m data.look names all such photos"


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"eval_split": "train"}, "5 of 5 rows to score (IN/images/train/0.png, IN/images/train/"),
        ({"split": "train+validation", "eval_split": "auto"}, "2 of 2 rows to score (IN/images/val/0.png, "),
        ({"eval_split": "train[80%:]"}, "1 of 1 row to score (IN/images/train/4.png); "),
        ({"eval_split": "auto"}, "copies of photos (IN/images/val/0.png is IN/images/train/3.png); "),
    ],
    ids=str,
)
def test_rows_that_are_trained_on_and_scored_are_told_of(settings: dict[str, Any], said: str, tmp_path: Path) -> None:
    root = dataset(tmp_path, 5, 2)
    (root / "images/val/0.png").write_bytes((root / "images/train/3.png").read_bytes())
    found = parts(root, **settings).labels.warnings[-1]
    assert found.replace(str(tmp_path), "IN").startswith(f"trained on as well as scored: {said}")
    assert found.endswith(SHARED)


def test_a_photo_listed_twice_is_told_of_when_both_sides_of_a_hold_out_have_it(tmp_path: Path) -> None:
    dataset(tmp_path, 4)
    listed = [f"images/train/{number}.png,masks/train/{number}.png\n" for number in range(4)]
    (tmp_path / "rows.csv").write_text("".join(listed))
    assert not any(SHARED in warning for warning in parts(tmp_path / "rows.csv").labels.warnings)
    (tmp_path / "rows.csv").write_text("".join(listed * 3))
    assert any(SHARED in warning for warning in parts(tmp_path / "rows.csv").labels.warnings)


def test_an_evaluation_alone_takes_any_number_of_rows(tmp_path: Path) -> None:
    found = parts(dataset(tmp_path, 5, 1), eval_only=True, checkpoint="a/b", eval_split="validation")
    assert (len(found.evaluation), found.labels.rule) == (1, LabelRule(2, False))
