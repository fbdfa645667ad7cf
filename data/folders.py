"""Folders of photos and label maps as rows like those of a shard, and a command that turns them into shards.

    images/kitchen.jpg                         annotations/kitchen.png             one split, "train"
    images/training/ADE_train_00000001.jpg     annotations/training/...png         the splits of ADEChallengeData2016
    images/{training,validation,test}/...      annotations/{training,validation}   folders may nest below a split

What other tools write, data/layouts.py knows.
``python -m data.folders IN OUT`` writes OUT/<split>/0000.parquet and so on, with the files' own bytes in them.
"""

from __future__ import annotations

import argparse
import errno
import os
import shutil
import sys
import unicodedata
from collections.abc import Collection, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
from tqdm import tqdm

from data.class_files import Classes, read_classes, read_text
from data.classes import CITYSCAPES_NAMES, CITYSCAPES_VALUES, IGNORE_INDEX, NUM_LABELS
from data.decoding import StoredMap, decode_pair
from data.labels import SCENE_PARSE_LABELS, LabelRule
from data.layouts import (
    IMAGES,
    MACHINE_MASKS,
    Layout,
    class_files_beside,
    find_layout,
    is_layout,
    list_layout,
)
from data.lists import LIST_ENDINGS
from data.pairing import Files, Naming, ending, pair_files
from data.sources.cache import FULL
from data.sources.columns import Known
from data.sources.saved import saved_splits
from data.sources.shards import write_shard
from data.splits import NoSplitError, split_named
from data.words import counted

ROWS_PER_SHARD = 10_000
_SCENE_CATEGORIES = "sceneCategories.txt"
_SUPERVISELY_COLOURS = "obj_class_to_machine_color.json"
_MOST_PROBLEMS = 10


class Folder:
    """The rows of one split of a folder, in the lexicographic order of the images' relative paths, read when asked for.

    An image and its annotation have the same path below their split, but for the ending. A split without any
    annotation, such as "test", has None for each. Pairs are found by name alone: until a row is asked for, no file is
    read but ``sceneCategories.txt``, if there is one.

    Raises FileNotFoundError for a folder without images/, annotations/ or any image, PermissionError for one that
    cannot be listed, and ValueError, naming files, for a split that is not there and for files that do not pair up.
    """

    def __init__(self, root: Path, split: str, lossy: bool = False) -> None:
        layout = list_layout(Path(root)) if is_list(Path(root)) else find_layout(Path(root))
        chosen = split if split in layout.splits else split_named(split)
        if chosen not in layout.splits:
            raise NoSplitError(f"{root} has no split {split!r}; it has {', '.join(layout.splits)}")
        self.split = chosen
        place = layout.splits[chosen]
        self.path, self._annotations = place.images, place.annotations
        files = pair_files(place, lossy)
        self._pairs = files.pairs
        self.num_rows = len(self._pairs)
        self.known = _known(layout, files, place.annotations)
        self.scene_categories, category_of = _read_scene_categories(layout.base / _SCENE_CATEGORIES)
        stems = [unicodedata.normalize("NFC", os.path.splitext(image)[0]) for image, _ in self._pairs]
        self._categories = [category_of.get(stem, category_of.get(os.path.basename(stem))) for stem in stems]

    def ready(self, rows: Collection[int]) -> Folder:
        """Itself: every row lies ready."""
        return self

    def row(self, row: int) -> dict[str, Any]:
        """The two files of one row, each its bytes and its path below the split, and its scene category, if known."""
        image, annotation = self._pairs[row]
        return {
            "image": _read(self.path, image),
            "annotation": _read(self._annotations, annotation) if self._annotations and annotation else None,
            "scene_category": self._categories[row],
        }

    def where(self, row: int) -> str:
        """The image's file, for messages."""
        return str(self.path / self._pairs[row][0])

    def total_bytes(self) -> int:
        """What all files of the split weigh together."""
        total = 0
        for image, annotation in self._pairs:
            total += (self.path / image).stat().st_size
            if self._annotations and annotation:
                total += (self._annotations / annotation).stat().st_size
        return total


def is_folder_dataset(root: Path) -> bool:
    """Whether a folder is one of images, of any layout, and not one of parquet files; or a list of pairs."""
    root = Path(root)
    if is_list(root):
        return True
    if not root.is_dir() or saved_splits(root):
        return False
    if is_layout(root):
        return True
    return (root / IMAGES).is_dir() and next(root.rglob("*.parquet"), None) is None


def is_list(path: Path) -> bool:
    """Whether a path is a file that lists pairs."""
    return ending(path.name) in LIST_ENDINGS and path.is_file()


def folder_splits(root: Path) -> list[str]:
    """The splits of a folder, in the order train, validation, test. Raises what ``Folder`` raises for its layout."""
    return list(find_layout(Path(root)).splits)


def _known(layout: Layout, files: Files, annotations: Path | None) -> Known:
    """What a run says of where photos and label maps lie and how they are called, and what the latter tells."""
    called = files.naming.label.format("...")
    about = layout.about if files.naming == Naming() else f"{layout.about}; label maps are called {called}".lstrip("; ")
    if called.endswith("_labelTrainIds"):
        return Known(about, CITYSCAPES_NAMES)
    if called.endswith("_labelIds"):
        return Known(f"{about}, whose values stand for the 19 train ids", CITYSCAPES_NAMES, CITYSCAPES_VALUES)
    if annotations is not None and annotations.name == MACHINE_MASKS:
        return Known(about, _supervisely_names(layout.base))
    return Known(about)


def _supervisely_names(base: Path) -> tuple[str, ...]:
    """The classes of machine masks, after what has none; nothing where no file tells, or not ids from 1 on."""
    files = [folder / _SUPERVISELY_COLOURS for folder in (base, base.parent)]
    file = next((file for file in files if file.is_file()), None)
    classes = read_classes(file) if file else None
    by_grey = {grey: name for name, grey in zip(classes.names, classes.colours or (), strict=False)} if classes else {}
    if set(by_grey) != {(k, k, k) for k in range(1, len(by_grey) + 1)}:
        return ()
    return ("background", *(by_grey[k, k, k] for k in range(1, len(by_grey) + 1)))


# Reading


def _read(folder: Path, name: str) -> dict[str, Any]:
    shown = os.fsencode(name).decode("utf-8", "replace")  # a parquet file holds no other names
    return {"bytes": (folder / name).read_bytes(), "path": shown}


def _read_scene_categories(path: Path) -> tuple[list[str], dict[str, int]]:
    """The categories in the order of the file, and the number of each image's, by its name without ending.

    A line is an image and its category: "ADE_train_00000001 airport_terminal". Without the file there are none.
    """
    lines = [line.split() for line in read_text(path).splitlines()] if path.exists() else []
    for number, words in enumerate(lines, 1):
        if len(words) not in (0, 2):
            raise ValueError(
                f"line {number} of {path} has {counted(len(words), 'word')}; it takes an image's name and its category"
            )
    category_of = dict(words for words in lines if words)
    categories = list(dict.fromkeys(category_of.values()))
    numbers = {category: number for number, category in enumerate(categories)}
    return categories, {image: numbers[category] for image, category in category_of.items()}


# To shards


def folders_to_shards(
    source: Path, out: Path, rule: LabelRule | None = None, rows_per_shard: int = ROWS_PER_SHARD, check: bool = False
) -> dict[str, int]:
    """Write every split of a folder to ``out``/<split>/0000.parquet and so on; returns the number of rows of each.

    To ``check``, and with a ``rule`` in any case, every pair is decoded before anything is written. The shards hold the
    files' own bytes, so whoever reads them needs the same rule, and files that name the classes go along. Shards get
    their names when the last one is whole; on any error none is left.

    Raises what ``Folder`` raises; ValueError for an ``out`` that is not empty, and for rows that break the rule, with a
    line for each of the first ten; OSError, with the space that it takes, for a disk that is too full.
    """
    if rows_per_shard < 1:
        raise ValueError(f"rows_per_shard is {rows_per_shard}; a shard has at least one row")
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise ValueError(f"{out} is there and not an empty folder; name another one for the shards")
    folders = [Folder(source, split) for split in folder_splits(source)]
    needed_bytes = sum(folder.total_bytes() for folder in folders)
    free_bytes = shutil.disk_usage(next(folder for folder in (out, *out.absolute().parents) if folder.exists())).free
    if needed_bytes > free_bytes:
        raise _too_full(out, needed_bytes, f"{_mebibytes(free_bytes)} are free")
    if (check or rule is not None) and (problems := _find_problems(folders, rule)):
        raise ValueError("\n".join(problems))
    try:
        _write_shards(folders, out, rows_per_shard, list(class_files(source)))
    except OSError as error:
        if error.errno in FULL:
            raise _too_full(out, needed_bytes, os.strerror(error.errno)) from error
        raise
    return {folder.split: folder.num_rows for folder in folders}


def class_files(source: Path) -> dict[Path, Classes]:
    """The files beside the data that name the classes, as far as they can be read."""
    found = {}
    for file in class_files_beside(source):
        with suppress(ValueError):
            found[file] = read_classes(file)
    return found


def _find_problems(folders: list[Folder], rule: LabelRule | None) -> list[str]:
    """A line for each of the first rows that cannot be used, whatever their values mean where no rule says that."""
    problems: list[str] = []
    places = [(folder, row) for folder in folders for row in range(folder.num_rows)]
    for folder, row in tqdm(places, "checking", unit="row", disable=None):
        try:
            columns = folder.row(row)
            image, annotation = (columns[name] or {} for name in ("image", "annotation"))
            stored = image.get("bytes"), annotation.get("bytes")
            if rule is None and stored[1] is not None:
                StoredMap(stored[1], folder.where(row))
            decode_pair(stored[0], stored[1] if rule else None, folder.where(row), rule or SCENE_PARSE_LABELS)
        except (ValueError, OSError) as error:
            problems.append(" ".join(str(error).splitlines()))
        if len(problems) == _MOST_PROBLEMS:
            return [*problems, f"these are the first {_MOST_PROBLEMS}; there may be more"]
    return problems


def _write_shards(folders: list[Folder], out: Path, rows_per_shard: int, beside: Sequence[Path]) -> None:
    out_is_new = not out.exists()
    shards: list[Path] = []
    copies = [out / file.name for file in beside]
    try:
        with tqdm(None, "writing", sum(folder.num_rows for folder in folders), unit="row", disable=None) as progress:
            for folder in folders:
                for first in range(0, folder.num_rows, rows_per_shard):
                    shards.append(out / folder.split / f"{first // rows_per_shard:04d}.parquet")
                    rows = range(first, min(first + rows_per_shard, folder.num_rows))
                    write_shard(_unfinished(shards[-1]), _rows(folder, rows, progress), folder.scene_categories)
        for file, copy in zip(beside, copies, strict=True):
            shutil.copyfile(file, copy)
        for shard in shards:
            _unfinished(shard).replace(shard)
    except BaseException:  # an interrupt, too
        for copy in copies:
            copy.unlink(missing_ok=True)
        _remove(shards, out if out_is_new else None)
        raise


def _rows(folder: Folder, rows: Sequence[int], progress: tqdm[Any]) -> Iterator[dict[str, Any]]:
    for row in rows:
        yield folder.row(row)
        progress.update()


def _unfinished(shard: Path) -> Path:
    return shard.with_suffix(".unfinished")


def _remove(shards: list[Path], out: Path | None) -> None:
    """Remove shards, finished or not, and the folders that were made for them."""
    for shard in shards:
        shard.unlink(missing_ok=True)
        _unfinished(shard).unlink(missing_ok=True)
    with suppress(OSError):  # what else lies in there stays, and the error that led here goes on
        for folder in [*dict.fromkeys(shard.parent for shard in shards), *([out] if out else [])]:
            folder.rmdir()


def _too_full(out: Path, needed_bytes: int, reason: str) -> OSError:
    needed = f"its files take {_mebibytes(needed_bytes)} and a little more"
    return OSError(errno.ENOSPC, f"cannot write {out}: {reason}, and {needed}; make room or name another disk")


def _mebibytes(count: int) -> str:
    return f"{count / 2**20:.1f} MiB"


# The command


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the flags of the command."""
    parser = argparse.ArgumentParser(prog="python -m data.folders", description="Turn folders of images into shards.")
    parser.add_argument("source", metavar="IN", type=Path, help="folder with images/ and annotations/")
    parser.add_argument("out", metavar="OUT", type=Path, help="folder for the shards, new or empty")
    parser.add_argument("--rows-per-shard", type=int, default=ROWS_PER_SHARD, help="(default: %(default)s)")
    parser.add_argument("--num-labels", type=int, help=f"classes (default: {NUM_LABELS}, or 2 with --binary-masks)")
    parser.add_argument("--no-reduce-labels", action="store_true", help="raw value k is class k, and 0 is no other")
    parser.add_argument(
        "--ignore-index", type=int, help=f"raw value to ignore (default: {IGNORE_INDEX}, or none with --binary-masks)"
    )
    parser.add_argument("--binary-masks", action="store_true", help="every value above 0 is class 1")
    parser.add_argument("--no-check", action="store_true", help="write without decoding every file first")
    return parser.parse_args(arguments)


def label_rule(options: argparse.Namespace) -> LabelRule:
    """The rule that the flags mean. Raises ValueError for flags that contradict each other."""
    binary: bool = options.binary_masks
    return LabelRule(
        num_labels=(2 if binary else NUM_LABELS) if options.num_labels is None else options.num_labels,
        reduce_labels=not (binary or options.no_reduce_labels),
        ignore_index=(None if binary else IGNORE_INDEX) if options.ignore_index is None else options.ignore_index,
        binary=binary,
    )


def main() -> int:
    """Run from the command line; every mistake in the flags or the data is one line, not a traceback."""
    options = parse_arguments()
    try:
        rule: LabelRule | None = label_rule(options)
        flags = options.num_labels, options.ignore_index
        is_said = options.no_reduce_labels or options.binary_masks or any(flag is not None for flag in flags)
        if options.no_check or (not is_said and any(each.colours for each in class_files(options.source).values())):
            rule = None  # the classes of colours are told by these files, when a model is trained
        sizes = options.rows_per_shard, not options.no_check
        counts = folders_to_shards(options.source, options.out, rule, *sizes)
    except (ValueError, OSError, MemoryError, pa.ArrowException) as error:
        for line in str(error).splitlines() or [type(error).__name__]:
            print(f"error: {line}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; no shard was kept", file=sys.stderr)
        return 130
    for split, count in counts.items():
        print(f"{split}: {counted(count, 'row')} in {options.out / split}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
