"""The parquet shards of SceneParse150, as the Hub has them: what one must hold, how to read a row, how to write one.

A row is ``image`` and ``annotation``, each the encoded bytes of a file and its name, and ``scene_category``. The schema
metadata that ``datasets`` reads rides along, so what is written here opens there with its features.
"""

from __future__ import annotations

import json
import os
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from itertools import accumulate, islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

_FILE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
_FILE_COLUMNS = ("image", "annotation")
_ROWS_PER_GROUP = 100  # as on the Hub
_CACHED_GROUPS = 8  # of about 5 MB each
_DAMAGE = (OSError, pa.ArrowException, IndexError)  # what pyarrow raises for damaged files


class Shard:
    """One parquet file, opened by each process for itself, with its latest row groups kept in memory.

    Raises ValueError, naming the file, for one that is no parquet file, lacks a column, or breaks off.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._process = os.getpid()
        self._file: pq.ParquetFile | None = None
        self._groups: OrderedDict[int, pa.Table] = OrderedDict()
        metadata = self._open().metadata
        self._ends = list(accumulate(metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)))
        self.num_rows: int = metadata.num_rows
        schema = metadata.schema.to_arrow_schema()
        self.scene_categories = _scene_categories(schema)
        for column in _FILE_COLUMNS:
            if column not in schema.names or not _holds_files(schema.field(column).type):
                raise ValueError(
                    f"{path} has the columns {', '.join(schema.names)}; "
                    "a shard needs image and annotation, each a struct of bytes and path"
                )

    def row(self, row: int) -> dict[str, Any]:
        """The columns of one row; its row group is read unless it was read lately."""
        if self._process != os.getpid():
            # A forked worker must not share the file handle of its parent.
            self._process, self._file, self._groups = os.getpid(), None, OrderedDict()
        group = bisect_right(self._ends, row)
        if group not in self._groups:
            self._groups[group] = self._read(group)
            if len(self._groups) > _CACHED_GROUPS:
                self._groups.popitem(last=False)
        self._groups.move_to_end(group)
        first = self._ends[group - 1] if group else 0
        values: dict[str, Any] = self._groups[group].slice(row - first, 1).to_pylist()[0]
        return values

    def _read(self, group: int) -> pa.Table:
        try:
            return self._open().read_row_group(group)
        except _DAMAGE as error:
            raise ValueError(f"{self.path} breaks off or is damaged in row group {group}: {error}") from error

    def _open(self) -> pq.ParquetFile:
        if self._file is None:
            try:
                self._file = pq.ParquetFile(self.path)
            except _DAMAGE as error:
                raise ValueError(f"{self.path} is not a whole parquet file: {error}") from error
        return self._file

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_file": None, "_groups": OrderedDict()}


def write_shard(path: Path, rows: Iterable[dict[str, Any]], scene_categories: Sequence[str]) -> None:
    """Write rows to one parquet file, a row group at a time; image bytes stay as they are, compressed already."""
    features = {
        "image": {"_type": "Image"},
        "annotation": {"_type": "Image"},
        "scene_category": {"names": list(scene_categories), "_type": "ClassLabel"},
    }
    columns = [("image", _FILE), ("annotation", _FILE), ("scene_category", pa.int64())]
    schema = pa.schema(columns, metadata={"huggingface": json.dumps({"info": {"features": features}})})
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = iter(rows)
    with pq.ParquetWriter(path, schema, compression="none", use_dictionary=False) as writer:
        while group := list(islice(rows, _ROWS_PER_GROUP)):
            writer.write_table(pa.Table.from_pylist(group, schema=schema))


def _holds_files(kind: pa.DataType) -> bool:
    return pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0


def _scene_categories(schema: pa.Schema) -> list[str]:
    """The names behind the ``scene_category`` numbers, as far as the metadata has them."""
    try:
        entries = json.loads((schema.metadata or {})[b"huggingface"])
        return [str(name) for name in entries["info"]["features"]["scene_category"]["names"]]
    except (KeyError, TypeError, ValueError):
        return []
