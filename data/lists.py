"""Lists of photos, or of photos with their label maps: text or CSV, with any delimiter, with a header or without."""

from __future__ import annotations

import csv
import re
from pathlib import Path

from data.class_files import read_text
from data.sources.columns import IMAGE_NAMES, LABEL_NAMES
from data.splits import split_named
from data.words import counted, shortened

LIST_ENDINGS = (".txt", ".csv", ".tsv", ".lst")
_SPLIT_HEADS = {"split", "set", "subset", "partition", "fold"}
_PATH_HEADS = re.compile(r"_?(path|paths|file|files|filename|file_name|name|url)$")

Pairs = list[tuple[str, str | None]]
Row = tuple[int, list[str]]  # a line's number and its cells


def listed_names(file: Path) -> list[tuple[int, str]] | None:
    """The names in a list of one column, with the numbers of their lines; None for one of several columns."""
    rows = _rows(file)
    if any(len(cells) > 1 for _, cells in rows):
        return None
    is_header = _head(rows[0][1][0]) in IMAGE_NAMES | {"name"}
    return [(number, cells[0]) for number, cells in rows[is_header:]]


def names_files(file: Path, base: Path, *kinds: Path) -> bool:
    """Whether a list of names or pairs may be one of this data, and not a table of something else that lies there."""
    rows = _rows(file)
    is_table = file.suffix.lower() in (".csv", ".tsv") and all(len(cells) > 1 for _, cells in rows)
    return not is_table or any(_find(cell, file, base, *kinds) for _, cells in rows for cell in cells)


def listed_by_split(file: Path, base: Path, *kinds: Path) -> dict[str, Pairs]:
    """The pairs of paths in a list by the split that a column tells, or all of "" without such a column.

    They are paths from ``base`` or the folders of photos and of label maps in it, if there are any, and relative to
    ``base`` where they lie there. Raises ValueError for columns that cannot be told and, with their lines, for files
    that are gone.
    """
    rows = _rows(file)
    photo, label, split, has_header = _columns(rows, file, base, *kinds)
    of_each = ((photo, kinds[:1]), (label, kinds[1:]))
    found: dict[str, Pairs] = {}
    label_maps: dict[str, str] = {}
    gone, again = [], []
    for number, cells in rows[has_header:]:
        if len(cells) <= max(photo, label, split or 0):
            raise ValueError(
                f"line {number} of {file} has {counted(len(cells), 'cell')}; others have {len(rows[0][1])}"
            )
        paths = [_find(cells[place], file, base, *kind) for place, kind in of_each]
        gone += [f"line {number}: {cells[p]!r}" for p, path in zip((photo, label), paths, strict=True) if not path]
        word = "" if split is None else split_named(cells[split]) or cells[split]
        pair = paths[0] or "", paths[1] or ""
        if label_maps.setdefault(*pair) != pair[1]:
            again.append(f"line {number}: {cells[photo]!r}")
        found.setdefault(word, []).append(pair)
    if gone:
        raise ValueError(
            f"{file} names what is not there: {counted(len(gone), 'file')} ({shortened(gone)}); mend the list"
        )
    if again:
        raise ValueError(
            f"{file} names another label map for the same photo than before in {counted(len(again), 'line')} "
            f"({shortened(again)}); a photo has one label map: make one of the masks of its objects"
        )
    return found


def _columns(rows: list[Row], file: Path, base: Path, *kinds: Path) -> tuple[int, int, int | None, bool]:
    """The places of photo, label map and split, and whether the first line is a header."""
    heads = [_head(cell) for cell in rows[0][1]]
    split = next((i for i, head in enumerate(heads) if head in _SPLIT_HEADS), None)
    photos = [i for i, head in enumerate(heads) if head in IMAGE_NAMES]
    labels = [i for i, head in enumerate(heads) if head in LABEL_NAMES]
    if len(photos) == len(labels) == 1:
        return photos[0], labels[0], split, True
    has_header = not any(_find(cell, file, base, *kinds) for cell in rows[0][1])
    first = rows[1] if has_header and len(rows) > 1 else rows[0]
    places = [i for i, cell in enumerate(first[1]) if _find(cell, file, base, *kinds)]
    if len(photos) > 1 or len(labels) > 1 or len(places) != 2:
        shown = ", ".join(rows[0][1])
        raise ValueError(
            f"{file} has {counted(len(places), 'column')} of files that are there ({shown}); a list of pairs has two, "
            "of photos and of label maps, in this order or under a header such as image,mask"
        )
    return places[0], places[1], split if has_header else None, has_header


def _find(cell: str, file: Path, base: Path, *kinds: Path) -> str | None:
    """The path that a cell means, from the folder of the data or of the list; relative if it lies in the former."""
    if not cell:
        return None
    places = (base / cell, file.parent / cell, base / cell.lstrip("/"), *(kind / cell for kind in kinds))
    slashed = cell.replace("\\", "/")  # as Windows writes paths
    for path in (*places, base / slashed) if slashed != cell else places:
        if path.is_file():
            return str(path.relative_to(base)) if path.is_relative_to(base) else str(path)
    return None


def _rows(file: Path) -> list[Row]:
    """The lines that hold anything, each in cells. Raises ValueError for a list without any."""
    lines = [(number, line) for number, line in enumerate(read_text(file).splitlines(), 1) if line.strip()]
    lines = [(number, line) for number, line in lines if not re.match(r"#(\s|#|$)", line)]  # "#7" may be a name
    if not lines:
        raise ValueError(f"{file} lists nothing; it takes the name of an image, or a pair of paths, in every line")
    delimiter = _delimiter([line for _, line in lines])
    if delimiter is None:
        return [(number, [line.strip()]) for number, line in lines]
    rows = csv.reader((line for _, line in lines), delimiter=delimiter, skipinitialspace=True)
    return [(number, [cell.strip() for cell in cells]) for (number, _), cells in zip(lines, rows, strict=True)]


def _delimiter(lines: list[str]) -> str | None:
    """The sign between the cells: one that every line has equally often; None for lists of one column."""
    for sign in "\t;,| ":
        try:
            counts = {len(row) for row in csv.reader(lines[:50], delimiter=sign, skipinitialspace=True)}
        except csv.Error:
            continue
        if len(counts) == 1 and counts != {1} and (sign != " " or _are_paths(lines[0].split())):
            return sign
    return None


def _are_paths(words: list[str]) -> bool:
    """Whether several words are files, and not a name with spaces in it."""
    return sum(bool(re.search(r"\.\w{3,4}$|/", word)) for word in words) > 1


def _head(cell: str) -> str:
    """What the header of a column says, without words such as path; nothing of what is called like a file."""
    if re.search(r"\.\w{2,5}$", cell):
        return ""
    return _PATH_HEADS.sub("", re.sub(r"\W+", "_", cell.lower()).strip("_")) or "name"
