"""Where the rows of a split come from: shards on disk or on the Hub, folders of images, or generated scenes."""

from __future__ import annotations

import glob
import re
from collections.abc import Iterable
from pathlib import Path

from data import toy
from data.cache import cache_folder, make_once
from data.hub import SCENE_PARSE_150, HubFiles, HubSource
from data.shards import Rows, Shard, write_shard
from data.splits import SPLIT_NAMES


def open_rows(source: str, split: str) -> list[Rows]:
    """The parts that make up one split of a source, in order. What a source is, ``SceneParse150`` says.

    Raises FileNotFoundError for a source without shards, and ValueError for a split that it does not have and for
    shards of which one is missing or contradicts its folder.
    """
    if source == "toy":
        return [Shard(_toy_shard(split))]
    from data.folders import Folder, is_folder_dataset  # here, or `python -m data.folders` would find it loaded already

    if is_folder_dataset(Path(source)):
        return [Folder(Path(source), split)]
    if not Path(source).exists() and (named := HubSource.parse(source)):
        files = named.list_files()
        if isinstance(files, HubFiles):
            paths = _of_configuration(map(Path, files.paths), named)
            return [files.open(str(path)) for path in _of_split(paths, source, split)]
        return _open_shards(_of_configuration(_shards_below(files), named, files), source, split, files)
    folder = Path(source)
    paths = _shards_below(folder) if folder.is_dir() else [Path(path) for path in glob.glob(source, recursive=True)]
    return _open_shards(paths, source, split, folder)


def _open_shards(paths: Iterable[Path], source: str, split: str, folder: Path) -> list[Rows]:
    relative = {path.relative_to(folder) if folder.is_dir() else path: path for path in paths}
    return [Shard(relative[path]) for path in _of_split(relative, source, split)]


def _shards_below(folder: Path) -> list[Path]:
    return list(folder.rglob("*.parquet"))


def _of_split(paths: Iterable[Path], source: str, split: str) -> list[Path]:
    """The files of a split in order: those whose name or folder says so, or "train" where none says anything."""
    by_split: dict[str, list[Path]] = {}
    for path in sorted((path for path in paths if path.suffix == ".parquet"), key=_by_number):
        by_split.setdefault(_split_of(path), []).append(path)
    if not by_split:
        raise FileNotFoundError(
            f"no *.parquet under {source}; a dataset is a folder of shards or a glob of them, a folder with images/ "
            f"and annotations/, {SCENE_PARSE_150!r} or another dataset on the Hub, or 'toy'"
        )
    if split not in by_split:
        raise _no_split(source, split, by_split)
    _check_whole(by_split[split], source)
    return by_split[split]


def _split_of(path: Path) -> str:
    """What the beginning of a file's name or the folder that it lies in says."""
    begins = re.match(r"[a-z]+(?=[-_.])", path.name)
    named = SPLIT_NAMES.get(begins[0]) if begins else None
    folder = SPLIT_NAMES.get(path.parent.name)
    if named and folder and named != folder:
        raise ValueError(f"{path} is named after the split {named!r} but lies among {folder!r}; move or rename it")
    return named or folder or "train"


def _check_whole(paths: list[Path], source: str) -> None:
    """Refuse shards named like train-00000-of-00002 unless all of them are there."""
    numbers: dict[tuple[Path, str, int], set[int]] = {}
    for path in paths:
        if match := re.fullmatch(r"(.*)-(\d+)-of-(\d+)", path.stem):
            numbers.setdefault((path.parent, match[1], int(match[3])), set()).add(int(match[2]))
    for (_, name, count), found in numbers.items():
        if missing := set(range(count)) - found:
            raise ValueError(
                f"{source} lacks {name}-{min(missing):05d}-of-{count:05d}; it holds {len(found)} of {count}"
            )


def _of_configuration(paths: Iterable[Path], named: HubSource, root: Path = Path()) -> list[Path]:
    """The files of the configuration that was asked for, or of the only one: <configuration>/<split>/0000.parquet."""
    by_configuration: dict[str, list[Path]] = {}
    for path in paths:
        parts = path.relative_to(root).parts
        by_configuration.setdefault(parts[0] if len(parts) == 3 else "", []).append(path)
    if named.configuration is not None:
        if named.configuration not in by_configuration:
            have = ", ".join(filter(None, by_configuration)) or "none"
            raise ValueError(f"{named.name} has no configuration {named.configuration!r}; it has {have}")
        return by_configuration[named.configuration]
    if len(by_configuration) > 1:
        have = ", ".join(f"{named.name}:{name}" for name in by_configuration if name)
        raise ValueError(f"{named.name} has several configurations; name one: {have}")
    return [path for paths in by_configuration.values() for path in paths]


def _no_split(source: str, split: str, splits: Iterable[str]) -> ValueError:
    return ValueError(f"{source} has no split {split!r}; it has {', '.join(sorted(splits))}")


def _by_number(path: Path) -> list[tuple[int, str]]:
    """A sort key in which shard 2 comes before shard 10, whether or not the names are padded with zeros."""
    return [(int(run), "") if run.isdigit() else (-1, run) for run in re.split(r"(\d+)", str(path))]


def _toy_shard(split: str) -> Path:
    """The shard of the toy scenes, drawn on first use and kept."""

    rows = toy.toy_rows(split)
    path = cache_folder() / f"toy-{toy.VERSION}" / f"{split}.parquet"
    return make_once(path, lambda unfinished: write_shard(unfinished, rows, toy.SCENE_CATEGORIES))
