"""How much of a dataset each class has: counted once, and kept in the cache under a key of the rows and their rule."""

from __future__ import annotations

import hashlib
import json
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Subset

from data.decoding import decode_label_map
from data.labels import LabelRule
from data.sceneparse import SceneParse150, whole_and_rows
from data.sources.cache import cache_folder, make_once

_VERSION = 1  # of what a kept file means
_MOST_WORKERS = 16

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class ClassShares:
    """Of some rows together: the pixels of every class, the photos that hold it, and the pixels that are ignored."""

    pixels: tuple[int, ...]
    photos: tuple[int, ...]
    ignored: int
    rows: int

    @property
    def of_pixels(self) -> list[float]:
        """The share of every class in the pixels that are not ignored; 0 where all are."""
        return [count / max(1, sum(self.pixels)) for count in self.pixels]

    @property
    def of_photos(self) -> list[float]:
        """The share of photos that hold the class."""
        return [count / max(1, self.rows) for count in self.photos]

    @property
    def ignored_share(self) -> float:
        """The share of ignored pixels among all."""
        return self.ignored / max(1, self.ignored + sum(self.pixels))


class Tally:
    """Counts over normalised label maps, one after the other: how often each of the 256 values occurs, and where."""

    def __init__(self, rule: LabelRule) -> None:
        self.rule = rule
        self.rows = 0
        self.pixels = np.zeros(256, np.int64)
        self.photos = np.zeros(256, np.int64)

    def add(self, histogram: NDArray[np.int64]) -> None:
        """Count one more label map."""
        self.rows += 1
        self.pixels += histogram
        self.photos += histogram > 0

    def shares(self) -> ClassShares:
        """What has been counted, by class."""
        raw = [value + self.rule.reduce_labels for value in range(self.rule.num_labels)]
        pixels, photos = (tuple(counts[raw].tolist()) for counts in (self.pixels, self.photos))
        return ClassShares(pixels, photos, int(self.pixels.sum()) - sum(pixels), self.rows)


class RowsKey:
    """What tells some rows and their rule from any others: the label maps themselves, as they are stored."""

    def __init__(self, rule: LabelRule) -> None:
        meant = {name: value for name, value in rule.to_dict().items() if name != "palette"}
        self._digest = hashlib.sha256(json.dumps([_VERSION, meant], sort_keys=True).encode())

    def add(self, annotation: bytes) -> None:
        """Take in one more label map."""
        self._digest.update(len(annotation).to_bytes(8, "little"))
        self._digest.update(annotation)

    @property
    def path(self) -> Path:
        """Where the shares of these rows are kept."""
        return cache_folder() / "shares" / f"{self._digest.hexdigest()[:32]}.json"


def class_shares(dataset: SceneParse150 | Subset[Any], rule: LabelRule) -> ClassShares:
    """The shares of the classes in all rows, as they were kept, or counted now, for which every label map is decoded.

    Raises ValueError for a row without a label map, and for one that the rule does not allow.
    """
    key = RowsKey(rule)
    for _, annotation in _annotations(dataset):
        key.add(annotation)
    kept = _read(key.path, rule)
    if kept is not None:
        return kept
    tally = Tally(rule)

    def count(row: tuple[str, bytes]) -> NDArray[np.int64]:
        where, annotation = row
        return np.array(decode_label_map(annotation, where, rule).histogram(), np.int64)

    for histogram in in_order(count, _annotations(dataset)):
        tally.add(histogram)
    keep_shares(tally.shares(), key)
    return tally.shares()


def keep_shares(shares: ClassShares, key: RowsKey) -> None:
    """Keep the shares of some rows; a cache that cannot be written to is no reason to stop."""

    def write(path: Path) -> None:
        path.write_text(json.dumps(asdict(shares)), encoding="utf-8")

    with suppress(OSError):
        make_once(key.path, write)


def in_order(work: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """What ``work`` makes of every item, in their order, with threads for all cores and a few items ahead."""
    workers = min(os.cpu_count() or 1, _MOST_WORKERS)  # Pillow and hashlib let go of the interpreter while they work
    ahead: deque[Future[Result]] = deque()
    with ThreadPoolExecutor(workers) as pool:
        try:
            for item in items:
                ahead.append(pool.submit(work, item))
                if len(ahead) > 2 * workers:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)


def _annotations(dataset: SceneParse150 | Subset[Any]) -> Iterator[tuple[str, bytes]]:
    """Where every label map lies, and its bytes."""
    rows, chosen = whole_and_rows(dataset)
    for row in chosen:
        annotation = rows.encoded(row)[1]
        if annotation is None:
            raise ValueError(f"{rows.where(row)} has no annotation; take an annotated split")
        yield rows.where(row), annotation


def _read(path: Path, rule: LabelRule) -> ClassShares | None:
    """What is kept, unless the file is damaged, which is made anew."""
    try:
        held = json.loads(path.read_text(encoding="utf-8"))
        shares = ClassShares(tuple(held["pixels"]), tuple(held["photos"]), held["ignored"], held["rows"])
        counts = [*shares.pixels, *shares.photos, shares.ignored, shares.rows]
        if len(shares.pixels) == len(shares.photos) == rule.num_labels and all(type(each) is int for each in counts):
            return shares
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError):
        pass
    with suppress(OSError):
        path.unlink()
    return None
