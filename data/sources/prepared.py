"""A copy of rows from which any single one can be read at once: an Arrow file, mapped into memory.

A parquet shard gives nothing smaller than a row group of about 5 MB. The copy is made once, lies beside the Hub's
cache, and all worker processes share it through the page cache of the system.
"""

from __future__ import annotations

import hashlib
import re
from bisect import bisect_right
from collections.abc import Collection, Iterable, Sequence
from contextlib import suppress
from itertools import accumulate
from pathlib import Path
from typing import Any

import pyarrow as pa
from tqdm import tqdm

from data.sources.cache import cache_folder, make_once
from data.sources.columns import PLAIN, Known

_ENDING = ".arrow"


Version = tuple[int, int]  # of a file: its size and the time at which it became what it is


def version_of(path: Path) -> Version:
    """What tells a file from the one that it was before."""
    status = path.stat()
    return status.st_size, max(status.st_mtime_ns, status.st_ctime_ns)  # the former can be set to anything


def prepare(
    shard: Path, version: Version, parts: Iterable[pa.Table], num_parts: int, needed_bytes: int, key: str = ""
) -> Path:
    """The copy of a shard as it was at ``version``, written from ``parts`` unless it is there; older copies go.

    ``key`` tells copies of some columns from those of others.

    Raises ValueError if the shard has changed meanwhile, and OSError, with the space that the copy takes, where the
    disk is full.
    """
    shard = shard.resolve()
    place = hashlib.sha256(str(shard).encode()).hexdigest()[:16]
    stamp = f"{version[0]}-{version[1]}"
    copy = cache_folder() / "prepared" / place / f"{stamp}{key and '-' + key}{_ENDING}"
    for stale in copy.parent.glob(f"*{_ENDING}*"):
        if not re.match(rf"{stamp}[-.]", stale.name):
            with suppress(PermissionError):  # Windows deletes nothing that a program has open
                stale.unlink(missing_ok=True)

    def make(path: Path) -> None:
        write_rows(path, tqdm(parts, f"preparing {shard.name}", num_parts, leave=False, disable=None))
        if version_of(shard) != version:
            raise ValueError(f"{shard} changed while it was read; start again")

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

    ``name`` is what they were copied from, for messages. Raises ValueError, naming the file, for one that is damaged.
    """

    _remedy = "delete it, and it is made anew"

    def __init__(
        self,
        path: Path,
        name: str,
        scene_categories: Sequence[str] = (),
        known: Known = PLAIN,
    ) -> None:
        self.path = path
        self.name = name
        self.scene_categories = list(scene_categories)
        self.known = known
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
        try:
            values: dict[str, Any] = self._batches[batch].slice(row - first, 1).to_pylist()[0]
        except (IndexError, UnicodeDecodeError, pa.ArrowException) as error:
            raise ValueError(f"{self.path} is damaged ({error}); {self._remedy}") from error
        return values

    def where(self, row: int) -> str:
        """Row and file, for messages."""
        return f"row {row} in {self.name}"

    def _map(self) -> list[pa.RecordBatch]:
        try:
            batches = self._read_batches(pa.memory_map(str(self.path)))
            for batch in batches:
                batch.validate(full=True)  # or an offset that is wrong reads beyond the file
            if batches and not {"image", "annotation"} <= set(batches[0].schema.names):
                raise pa.ArrowInvalid(f"it has the columns {', '.join(batches[0].schema.names)}")
        except FileNotFoundError as error:
            raise ValueError(f"{self.path} is gone, for {self.name} has changed since; start again") from error
        except (OSError, pa.ArrowException) as error:
            raise ValueError(f"{self.path} is damaged ({error}); {self._remedy}") from error
        return batches

    def _read_batches(self, file: pa.NativeFile) -> list[pa.RecordBatch]:
        reader = pa.ipc.open_file(file)
        return [reader.get_batch(i) for i in range(reader.num_record_batches)]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_batches": []}  # mapped again in a spawned process; a forked one shares the mapping
