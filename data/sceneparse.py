"""SceneParse150 (ADE20K's 150-class benchmark) as a Dataset over parquet shards, read lazily and row by row."""

from __future__ import annotations

import glob
import math
import os
import re
from bisect import bisect_right
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
from huggingface_hub import snapshot_download
from PIL import Image
from torch.utils.data import Dataset, Subset

from data import toy
from data.classes import NUM_LABELS
from data.decoding import decode_pair
from data.shards import Shard, write_shard
from data.splits import SplitPart, parse_split

_HUB_NAMES = ("scene_parse_150", "zhoubolei/scene_parse_150")
_HUB_REVISION = "refs/convert/parquet"
_HUB_FOLDER = "scene_parsing"
_SPLITS = {"train": "train", "training": "train", "val": "validation", "validation": "validation", "test": "test"}

Pair = tuple[Image.Image, Image.Image | None]


class SceneParse150(Dataset[Pair]):
    """Photos with their label maps, decoded when asked for.

    ``source`` is a folder of parquet shards (laid out like the Hub's, or flat), a glob of shards, "scene_parse_150" for
    the Hub, or "toy" for generated scenes. ``split`` is an expression as in ``datasets``: "train", "train[:50]",
    "validation[10%:]", "train+validation".

    An item is (image, label_map): PIL RGB, upright, and PIL L with raw values 0 (other) to ``num_labels`` at the same
    size, or None where a row has no annotation, as in the test split. Raises FileNotFoundError for a source without
    shards and ValueError for a split, shard or row that breaks a rule, naming it.
    """

    def __init__(self, source: str | Path, split: str = "train", num_labels: int = NUM_LABELS) -> None:
        self.source = str(source)
        self.split = split
        self.num_labels = num_labels
        parts = parse_split(split)
        names = dict.fromkeys(part.name for part in parts)
        self._shards = {name: [Shard(path) for path in find_shards(self.source, name)] for name in names}
        self._rows = [place for part in parts for place in self._places(part)]
        if not self._rows:
            raise ValueError(f"split {split!r} of {source} is empty; it selects no row")

    def _places(self, part: SplitPart) -> list[tuple[Shard, int]]:
        """The shard of every selected row, and its number in there."""
        shards = self._shards[part.name]
        ends = list(accumulate(shard.num_rows for shard in shards))
        starts = [0, *ends]
        found = ((bisect_right(ends, row), row) for row in part.rows(ends[-1]))
        return [(shards[i], row - starts[i]) for i, row in found]

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Pair:
        row = self._row(index)
        image, annotation = (row[column] or {} for column in ("image", "annotation"))
        return decode_pair(image.get("bytes"), annotation.get("bytes"), self.where(index), self.num_labels)

    def where(self, index: int) -> str:
        """Row and file of an item, for messages."""
        shard, row = self._rows[index]
        return f"row {row} in {shard.path}"

    def name(self, index: int) -> str:
        """The image's file name without its ending, such as ADE_val_00000001, or its shard and row if it has none."""
        shard, row = self._rows[index]
        path = (self._row(index)["image"] or {}).get("path")
        return Path(path).stem if path else f"{shard.path.stem}_{row:08d}"

    def scene_category(self, index: int) -> str | None:
        """The name of the scene, such as "bedroom"; None where the shard does not tell."""
        category = self._row(index).get("scene_category")
        names = self._rows[index][0].scene_categories
        return names[category] if category is not None and 0 <= category < len(names) else None

    def _row(self, index: int) -> dict[str, Any]:
        shard, row = self._rows[index]
        return shard.row(row)


def find_shards(source: str, split: str) -> list[Path]:
    """The parquet files of one split, in order, from any kind of source.

    A shard belongs to the split that the start of its file name or its folder says; files that say none are "train".
    """
    if source == "toy":
        return [_toy_shard(split)]
    if source in _HUB_NAMES and not Path(source).exists():
        pattern = f"{_HUB_FOLDER}/{split}/*.parquet"
        source = snapshot_download(_HUB_NAMES[-1], repo_type="dataset", revision=_HUB_REVISION, allow_patterns=pattern)
    folder = Path(source)
    found = folder.rglob("*.parquet") if folder.is_dir() else map(Path, glob.glob(source, recursive=True))
    by_split: dict[str, list[Path]] = {}
    for path in sorted((path for path in found if path.suffix == ".parquet"), key=_by_number):
        by_split.setdefault(_split_of(path, folder), []).append(path)
    if not by_split:
        raise FileNotFoundError(
            f"no *.parquet under {source}; a dataset is a folder of shards, a glob of shards, "
            f"{_HUB_NAMES[0]!r} on the Hub, or 'toy'"
        )
    if split not in by_split:
        raise ValueError(f"{source} has no split {split!r}; it has {', '.join(sorted(by_split))}")
    return by_split[split]


def _split_of(path: Path, source: Path) -> str:
    """What the file's name begins with or, failing that, what its folder below the source is called."""
    begins = re.match(r"[a-z]+(?=[-_.])", path.name)
    folders = path.relative_to(source).parts[:-1] if source.is_dir() else path.parts[:-1]
    for word in ([begins[0]] if begins else []) + list(folders[-1:]):
        if word in _SPLITS:
            return _SPLITS[word]
    return "train"


def _by_number(path: Path) -> list[tuple[int, str]]:
    """A sort key in which shard 2 comes before shard 10, whether or not the names are padded with zeros."""
    return [(int(run), "") if run.isdigit() else (-1, run) for run in re.split(r"(\d+)", str(path))]


def _toy_shard(split: str) -> Path:
    """The shard of the toy scenes, drawn on first use and kept in the user's cache folder."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    path = cache / "segformer" / f"toy-{toy.VERSION}" / f"{split}.parquet"
    if not path.exists():
        unfinished = path.with_name(f"{split}.{os.getpid()}.unfinished")
        write_shard(unfinished, toy.toy_rows(split), toy.SCENE_CATEGORIES)
        unfinished.replace(path)
    return path


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
        raise ValueError(f"test_size is {test_size}, {test_count} of {count} rows; both parts need at least one row")
    order = np.random.default_rng(seed).permutation(count).tolist()
    return Subset(dataset, order[test_count:]), Subset(dataset, order[:test_count])
