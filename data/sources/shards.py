"""The parquet shards of SceneParse150, as the Hub has them: what one must hold, how to read a row, how to write one.

A row is ``image`` and ``annotation``, each the encoded bytes of a file and its name, and ``scene_category``; what they
are called in a file, data/sources/columns.py finds. The schema metadata that ``datasets`` reads rides along, so what is
written here opens there with its features.
"""

from __future__ import annotations

import json
import os
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.parquet as pq

from data.sources.columns import ANNOTATION, IMAGE, NOT_ASKED, Asked, Known, find_columns
from data.sources.prepared import PreparedRows, prepare, version_of
from data.words import counted

# What pyarrow raises for damaged files; the last two for rows that a footer promises, and for paths that are no text.
DAMAGE = (OSError, pa.ArrowException, IndexError, UnicodeDecodeError)
_FILE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
_ROWS_PER_GROUP = 100  # as on the Hub
_GROUP_BYTES = 2**28
_CACHED_GROUPS, _CACHED_BYTES = 8, 2**26  # what a process keeps of a shard, on the Hub about 5 MB a group
_MOST_GROUP_BYTES = 2**31


class Rows(Protocol):
    """Rows as every kind of source gives them: a shard on disk or on the Hub, a prepared one, a folder of files."""

    num_rows: int
    scene_categories: list[str]
    known: Known

    def ready(self, rows: Collection[int]) -> Rows:
        """The same source, brought where each of these rows can be read at once and in any order."""

    def row(self, row: int) -> dict[str, Any]:
        """``image`` and ``annotation``, each None or {"bytes", "path"}, and ``scene_category``."""

    def where(self, row: int) -> str:
        """Row and file, for messages."""


class Shard:
    """One parquet file, opened by each process for itself, with its latest row groups kept in memory.

    Raises ValueError, naming the file, for one that is no parquet file, lacks a column, or breaks off.
    """

    def __init__(self, path: Path, asked: Asked = NOT_ASKED) -> None:
        self.path = path
        if not path.is_file():
            raise FileNotFoundError(f"no shard {path}; it may have been moved since it was found")
        self._version = version_of(path)
        self._process = os.getpid()
        self._file: pq.ParquetFile | None = None
        self._groups: OrderedDict[int, pa.Table] = OrderedDict()
        metadata = self._open().metadata
        self.groups = RowGroups(metadata, str(path), self._read_raw, asked)
        self.num_rows: int = metadata.num_rows
        self.scene_categories = list(self.groups.columns.scene_categories)
        self.known = self.groups.columns.known

    def ready(self, rows: Collection[int]) -> Rows:
        """Itself while the rows' groups are few and light; beyond that a copy on disk that gives single rows.

        A shard gives nothing smaller than a row group, so rows in random order would cost a hundred times their size.
        """
        wanted = self.groups.of(rows)
        if len(wanted) <= _CACHED_GROUPS and sum(self.groups.bytes[group] for group in wanted) <= _CACHED_BYTES:
            return self
        parts = (self._read(group) for group in range(len(self.groups.ends)))
        size = len(self.groups.ends), sum(self.groups.bytes)
        copy = prepare(self.path, self._version, parts, *size, self.groups.columns.key)
        return PreparedRows(copy, str(self.path), self.scene_categories, self.known)

    def row(self, row: int) -> dict[str, Any]:
        """The columns of one row; its row group is read unless it was read lately."""
        if self._process != os.getpid():
            # A forked worker must not share the file handle of its parent.
            self._process, self._file, self._groups = os.getpid(), None, OrderedDict()
        group, place = self.groups.place(row)
        if group not in self._groups:
            self._groups[group] = self._read(group)
            if len(self._groups) > _CACHED_GROUPS:
                self._groups.popitem(last=False)
        self._groups.move_to_end(group)
        try:
            values: dict[str, Any] = self._groups[group].slice(place, 1).to_pylist()[0]
        except DAMAGE as error:
            raise damaged(f"{self.where(row)} is not there or no file", error) from error
        return values

    def where(self, row: int) -> str:
        """Row and file, for messages."""
        return f"row {row} in {self.path}"

    def _read(self, group: int) -> pa.Table:
        return self.groups.columns.arrange(self._read_raw(group, self.groups.columns.names))

    def _read_raw(self, group: int, columns: list[str]) -> pa.Table:
        try:
            table = self._open().read_row_group(group, columns=columns)
            table.validate(full=True)  # paths that are no text, above all
            return table
        except DAMAGE as error:
            raise damaged(f"{self.path} breaks off or is damaged in row group {group}", error) from error

    def _open(self) -> pq.ParquetFile:
        if self._file is None:
            if not self.path.is_file():
                raise FileNotFoundError(f"{self.path} is gone; it was there when it was opened first")
            if version_of(self.path) != self._version:
                raise ValueError(f"{self.path} has changed since it was opened; start again")
            try:
                self._file = pq.ParquetFile(self.path)
            except DAMAGE as error:
                raise damaged(f"{self.path} is not a whole parquet file", error) from error
        return self._file

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_file": None, "_groups": OrderedDict()}


def damaged(what: str, error: Exception) -> Exception:
    """What to raise for what pyarrow raised: a ValueError that says what is damaged, or the system's own complaint."""
    if isinstance(error, OSError) and (error.errno is not None or type(error) is not OSError):
        return error
    return ValueError(f"{what}: {error}; fetch or write it again")


class RowGroups:
    """What the footer of a shard tells: where its row groups end, what they weigh, and whether it is a shard at all."""

    def __init__(
        self, metadata: pq.FileMetaData, name: str, read: Callable[[int, list[str]], pa.Table], asked: Asked
    ) -> None:
        try:
            schema = metadata.schema.to_arrow_schema()
        except DAMAGE as error:
            raise damaged(f"{name} has a damaged schema", error) from error
        self.columns = find_columns(schema, name, lambda columns: _first_row(read, metadata, columns), asked)
        groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
        self.ends = list(accumulate(group.num_rows for group in groups))
        self.bytes = [int(group.total_byte_size) for group in groups]
        if min([group.num_rows for group in groups], default=0) < 0 or metadata.num_rows != sum(
            group.num_rows for group in groups
        ):
            raise ValueError(
                f"{name} has {counted(metadata.num_rows, 'row')} by its footer, but others by its row groups"
            )
        if max(self.bytes, default=0) > _MOST_GROUP_BYTES:
            raise ValueError(
                f"{name} has a row group of {max(self.bytes)} bytes; write it with groups below {_MOST_GROUP_BYTES}"
            )

    def place(self, row: int) -> tuple[int, int]:
        """The row group that a row lies in, and its place in there."""
        group = bisect_right(self.ends, row)
        return group, row - (self.ends[group - 1] if group else 0)

    def of(self, rows: Collection[int]) -> list[int]:
        """The row groups that hold these rows, in order."""
        return sorted({self.place(row)[0] for row in rows})


def _first_row(
    read: Callable[[int, list[str]], pa.Table], metadata: pq.FileMetaData, columns: list[str]
) -> dict[str, Any]:
    for group in range(metadata.num_row_groups):
        if metadata.row_group(group).num_rows:
            row: dict[str, Any] = read(group, columns).slice(0, 1).to_pylist()[0]
            return row
    return dict.fromkeys(columns)


def write_shard(path: Path, rows: Iterable[dict[str, Any]], scene_categories: Sequence[str]) -> None:
    """Write rows to one parquet file, a row group at a time; image bytes stay as they are, compressed already.

    A row group has 100 rows, as on the Hub, or fewer of heavy ones: beyond 2 GiB it could not be read.
    """
    features = {
        "image": {"_type": "Image"},
        "annotation": {"_type": "Image"},
        "scene_category": {"names": list(scene_categories), "_type": "ClassLabel"},
    }
    columns = [("image", _FILE), ("annotation", _FILE), ("scene_category", pa.int64())]
    schema = pa.schema(columns, metadata={"huggingface": json.dumps({"info": {"features": features}})})
    path.parent.mkdir(parents=True, exist_ok=True)
    with pq.ParquetWriter(path, schema, compression="none", use_dictionary=False) as writer:
        for group in _row_groups(rows):
            writer.write_table(pa.Table.from_pylist(group, schema=schema))


def _row_groups(rows: Iterable[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    group: list[dict[str, Any]] = []
    weight = 0
    for row in rows:
        group.append(row)
        weight += sum(len((row[column] or {}).get("bytes") or b"") for column in (IMAGE, ANNOTATION))
        if len(group) == _ROWS_PER_GROUP or weight >= _GROUP_BYTES:
            yield group
            group, weight = [], 0
    if group:
        yield group
