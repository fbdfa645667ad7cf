"""SceneParse150 (ADE20K's 150-class benchmark) as a Dataset, read lazily and row by row; and any data like it."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from copy import copy
from itertools import accumulate
from pathlib import Path
from typing import Any, cast

import numpy as np
from PIL import Image
from torch.utils.data import Dataset, Subset

from data.class_files import Classes
from data.decoding import OpenPhoto, decode_pair
from data.labels import SCENE_PARSE_LABELS, LabelRule
from data.sources.choice import classes_beside, open_rows
from data.sources.columns import Asked
from data.sources.hub import HOME, SCENE_PARSE_150
from data.sources.shards import Rows
from data.splits import EmptySplitError, SplitPart, parse_split
from data.words import counted

Pair = tuple[Image.Image, Image.Image | None]


class SceneParse150(Dataset[Pair]):
    """Photos with their label maps, decoded when asked for.

    ``source`` is a folder of parquet shards (laid out like the Hub's, or flat), a glob of shards, a folder with images/
    and annotations/, "scene_parse_150" or another dataset on the Hub ("owner/name", see data/sources/hub.py), or "toy"
    for generated scenes. ``split`` is an expression as in ``datasets``: "train", "train[:50]", "validation[10%:]",
    "train+validation". Of shards on the Hub only what the split needs is fetched.

    An item is (image, label_map): PIL RGB, upright, and PIL L at the same size with raw values as ``label_rule`` has
    them, or None where a row has no annotation, as in the test split. ``open_photo`` reads the photos, see
    data/decoding.py; without one, only those of 8 bits are read. Columns of tables are found, see
    data/sources/columns.py, unless they are named. ``about`` says what was found, where that is not plain.

    Raises FileNotFoundError for a source without rows, OSError for a Hub out of reach, and ValueError for a split,
    shard or row that breaks a rule, naming it.
    """

    def __init__(
        self,
        source: str | Path,
        split: str = "train",
        label_rule: LabelRule = SCENE_PARSE_LABELS,
        open_photo: OpenPhoto | None = None,
        image_column: str | None = None,
        label_column: str | None = None,
    ) -> None:
        self.source = str(source)
        self.split = split
        self.label_rule = label_rule
        self.open_photo = open_photo
        parts = parse_split(split)
        asked = Asked(image_column, label_column)
        sources = {
            name: open_rows(self.source, name, asked, label_rule.binary)
            for name in dict.fromkeys(part.name for part in parts)
        }
        known = [rows.known for some in sources.values() for rows in some]
        self.about = "; ".join(dict.fromkeys(each.about for each in known if each.about))
        self.class_names = next((each.class_names for each in known if each.class_names), ())
        self.values = next((each.values for each in known if each.values), ())
        self._rows: list[tuple[Rows, int]] = []
        for part in parts:
            self._rows += _places(part, sources[part.name])
        if not self._rows:
            raise EmptySplitError(f"split {split!r} of {source} is empty; it selects no row")
        wanted: dict[Rows, set[int]] = {}
        for rows, row in self._rows:
            wanted.setdefault(rows, set()).add(row)
        ready = {rows: rows.ready(some) for rows, some in wanted.items()}
        self._rows = [(ready[rows], row) for rows, row in self._rows]

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Pair:
        encoded = self.encoded(index)
        return decode_pair(*encoded, self.where(index), self.label_rule, self.open_photo)

    def __repr__(self) -> str:
        return f"SceneParse150({self.source!r}, {self.split!r}: {counted(len(self), 'row')})"

    def classes(self) -> tuple[Classes | None, list[str]]:
        """The classes that files beside the data name, or its own metadata; and what to say of files passed over."""
        classes, passed_over = classes_beside(self.source)
        if classes is None and self.class_names:
            classes = Classes(f"the features of {self.source}", self.class_names, None, 0)
        return classes, passed_over

    @property
    def is_scene_parse(self) -> bool:
        """Whether the source is SceneParse150 itself, or the scenes that are labelled like it."""
        return self.source in ("toy", SCENE_PARSE_150, HOME)

    def with_rule(self, label_rule: LabelRule) -> SceneParse150:
        """The same rows, whose label maps are read by another rule."""
        again = copy(self)
        again.label_rule = label_rule
        return again

    def encoded(self, index: int) -> tuple[bytes | None, bytes | None]:
        """The bytes of an item's two files."""
        row = self._row(index)
        image, annotation = (row[column] or {} for column in ("image", "annotation"))
        return image.get("bytes"), annotation.get("bytes")

    def where(self, index: int) -> str:
        """Row and file of an item, for messages."""
        rows, row = self._place(index)
        return rows.where(row)

    def name(self, index: int) -> str:
        """The image's file name without its ending, such as ADE_val_00000001, or its place here if it has none."""
        path = (self._row(index)["image"] or {}).get("path")
        return Path(path).stem if path else f"{self.split}_{index:08d}"

    def scene_category(self, index: int) -> str | None:
        """The name of the scene, such as "bedroom"; None where the shard does not tell."""
        category = self._row(index).get("scene_category")
        names = self._rows[index][0].scene_categories
        return names[category] if category is not None and 0 <= category < len(names) else None

    def _row(self, index: int) -> dict[str, Any]:
        rows, row = self._place(index)
        return rows.row(row)

    def _place(self, index: int) -> tuple[Rows, int]:
        if isinstance(index, slice):
            raise TypeError(
                f"{self!r} takes one index at a time; for some of its rows open a split such as "
                f"{self.split.split('[')[0]}[:3], or torch.utils.data.Subset(dataset, range(3))"
            )
        try:
            return self._rows[index]
        except IndexError:
            raise IndexError(f"no row {index} in {self!r}; indices are {-len(self)} to {len(self) - 1}") from None


def _places(part: SplitPart, sources: list[Rows]) -> list[tuple[Rows, int]]:
    """The source of every row that a part of a split takes, and its number in there."""
    ends = list(accumulate(rows.num_rows for rows in sources))
    starts = [0, *ends]
    found = ((bisect_right(ends, row), row) for row in part.rows(ends[-1]))
    return [(sources[i], row - starts[i]) for i, row in found]


def whole_and_rows(part: SceneParse150 | Subset[Any]) -> tuple[SceneParse150, Sequence[int]]:
    """The dataset that a part is of, which may be itself, and the part's rows in it."""
    if not isinstance(part, Subset):
        return part, range(len(part))
    above = cast("SceneParse150 | Subset[Any]", part.dataset)
    whole, rows = whole_and_rows(above)
    return whole, part.indices if whole is above else [rows[row] for row in part.indices]


def train_test_split(
    dataset: SceneParse150, test_size: float = 0.2, seed: int | None = None
) -> tuple[Subset[Pair], Subset[Pair]]:
    """Part a dataset at random into (train, test), the very rows that ``train_test_split`` of ``datasets`` picks.

    ``test_size`` is a share below 1 or a number of rows. Without a seed every call parts differently.
    """
    count = len(dataset)
    if isinstance(test_size, float) and not 0 < test_size < 1:
        raise ValueError(f"test_size is {test_size}; a share lies between 0 and 1, a number of rows is an int")
    test_count = math.ceil(test_size * count) if isinstance(test_size, float) else test_size
    if not 0 < test_count < count:
        of_rows = f"{test_count} of {counted(count, 'row')}"
        raise ValueError(f"test_size is {test_size}, {of_rows}; both parts need at least one row")
    order = np.random.default_rng(seed).permutation(count).tolist()
    return Subset(dataset, order[test_count:]), Subset(dataset, order[:test_count])
