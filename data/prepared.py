"""A copy of rows from which any single one can be read at once: an Arrow file, mapped into memory.

A parquet shard gives nothing smaller than a row group of about 5 MB. The copy is made once, lies beside the Hub's
cache, and all worker processes share it through the page cache of the system.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Collection, Iterable
from itertools import accumulate
from pathlib import Path
from typing import Any

import pyarrow as pa
from tqdm import tqdm

from data.cache import cache_folder, make_once

_ENDING = ".arrow"


def prepare(shard: Path, parts: Iterable[pa.Table], num_parts: int, needed_bytes: int) -> Path:
    """The copy of a shard, written from ``parts`` unless there is one of the shard as it is now; a changed shard, told
    by its size and time, has its old copy deleted.

    Raises OSError, with the space that it takes, where the disk is full.
    """
    shard = shard.resolve()
    status = shard.stat()
    place = hashlib.sha256(str(shard).encode()).hexdigest()[:16]
    copy = cache_folder() / "prepared" / place / f"{status.st_size}-{status.st_mtime_ns}{_ENDING}"

    def make(path: Path) -> None:
        for stale in copy.parent.glob(f"*{_ENDING}"):
            stale.unlink()
        write_rows(path, tqdm(parts, f"preparing {shard.name}", num_parts, leave=False, disable=None))

    return make_once(copy, make, needed_bytes)


def write_rows(path: Path, parts: Iterable[pa.Table]) -> None:
    """Write tables of one schema to an Arrow file."""
    parts = iter(parts)
    first = next(parts)
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, first.schema) as writer:
        writer.write_table(first)
        for part in parts:
            writer.write_table(part)


class PreparedRows:
    """The rows of an Arrow file, mapped into memory.

    ``name`` is what they were copied from, for messages, and ``first_row`` the number of its first row in there. Raises
    ValueError, naming the file, for one that is damaged.
    """

    def __init__(self, path: Path, name: str, scene_categories: list[str], first_row: int = 0) -> None:
        self.path = path
        self.name = name
        self.scene_categories = scene_categories
        self.first_row = first_row
        self._batches = self._map()
        self._ends = list(accumulate(batch.num_rows for batch in self._batches))
        self.num_rows = self._ends[-1] if self._ends else 0

    def ready(self, rows: Collection[int]) -> PreparedRows:
        """Itself: every row lies ready."""
        return self

    def row(self, row: int) -> dict[str, Any]:
        """The columns of one row; nothing but its own bytes is read."""
        if not self._batches:
            self._batches = self._map()
        batch = bisect_right(self._ends, row)
        first = self._ends[batch - 1] if batch else 0
        values: dict[str, Any] = self._batches[batch].slice(row - first, 1).to_pylist()[0]
        return values

    def where(self, row: int) -> str:
        """Row and file, for messages."""
        return f"row {self.first_row + row} in {self.name}"

    def _map(self) -> list[pa.RecordBatch]:
        try:
            reader = pa.ipc.open_file(pa.memory_map(str(self.path)))
            batches = [reader.get_batch(i) for i in range(reader.num_record_batches)]
            for batch in batches:
                batch.validate()
        except (OSError, pa.ArrowException) as error:
            raise ValueError(f"{self.path} is damaged ({error}); delete it, and it is made anew") from error
        return batches

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_batches": []}  # mapped again in a spawned process; a forked one shares the mapping
