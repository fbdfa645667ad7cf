"""Datasets that ``save_to_disk`` of ``datasets`` wrote: Arrow files, mapped into memory as they are.

dataset_info.json, state.json, data-00000-of-00001.arrow               one split
dataset_dict.json, train/, test/, each with the files above            several
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa

from data.sources.columns import NOT_ASKED, Asked, Columns, find_columns
from data.sources.prepared import PreparedRows
from data.splits import NoSplitError, split_named

_DICT, _STATE = "dataset_dict.json", "state.json"


class SavedRows(PreparedRows):
    """The rows of one of its files. Raises ValueError, naming it, for one that is damaged or lacks the two columns."""

    _remedy = "save the dataset again"

    def __init__(self, path: Path, asked: Asked = NOT_ASKED) -> None:
        self._asked = asked
        self._columns = Columns()
        super().__init__(path, str(path))
        self.scene_categories = list(self._columns.scene_categories)
        self.known = self._columns.known

    def _read_batches(self, file: pa.NativeFile) -> list[pa.RecordBatch]:
        table = pa.ipc.open_stream(file).read_all()

        def first_row(columns: list[str]) -> dict[str, Any]:
            row: dict[str, Any] = table.select(columns).slice(0, 1).to_pylist()[0] if len(table) else {}
            return dict.fromkeys(columns) | row

        self._columns = find_columns(table.schema, str(self.path), first_row, self._asked)
        return self._columns.arrange(table).to_batches()


def saved_splits(folder: Path) -> dict[str, Path]:
    """The folder of every split of a saved dataset; none where this is no such folder."""
    if (folder / _DICT).is_file():
        names = _entries(folder / _DICT).get("splits")
        return {str(name): folder / str(name) for name in names} if isinstance(names, list) else {}
    if (folder / _STATE).is_file() and (folder / "dataset_info.json").is_file():
        return {str(_entries(folder / _STATE).get("_split") or "train"): folder}
    return {}


def open_saved(folder: Path, split: str, asked: Asked) -> list[SavedRows]:
    """The files of one split. Raises ValueError for a split that it does not have, and FileNotFoundError for a file."""
    splits = {split_named(name) or name: each for name, each in saved_splits(folder).items()}
    chosen = splits.get(split) or splits.get(split_named(split) or "")
    if chosen is None:
        raise NoSplitError(f"{folder} has no split {split!r}; it has {', '.join(sorted(splits))}")
    files = [str(file["filename"]) for file in _entries(chosen / _STATE).get("_data_files", [])]
    for file in files:
        if not (chosen / file).is_file():
            raise FileNotFoundError(f"{chosen} lacks {file}, which its {_STATE} names; save the dataset again")
    return [SavedRows(chosen / file, asked) for file in files]


def _entries(path: Path) -> dict[str, Any]:
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
        return entries if isinstance(entries, dict) else {}
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}); save the dataset again") from error
