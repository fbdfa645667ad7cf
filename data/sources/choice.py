"""Where the rows of a split come from: shards on disk or on the Hub, folders of images, or generated scenes."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath

from data.class_files import CLASS_FILES, Classes, agree, class_files_in, read_classes
from data.layouts import class_files_beside
from data.pairing import list_files, remedy
from data.sources.cache import cache_folder, make_once
from data.sources.columns import NOT_ASKED, Asked
from data.sources.hub import HOME, SCENE_PARSE_150, HubFile, HubSource, find_class_file
from data.sources.saved import open_saved, saved_splits
from data.sources.shards import Rows, Shard, write_shard
from data.splits import SPLIT_NAMES, NoSplitError, split_named
from data.toy import scenes


def open_rows(source: str, split: str, asked: Asked = NOT_ASKED, lossy: bool = False) -> list[Rows]:
    """The parts that make up one split of a source, in order. What a source is, ``SceneParse150`` says.

    ``asked`` names columns of tables, where they are not to be found out; ``lossy`` lets label maps in folders be JPEG.
    Raises FileNotFoundError for a source without shards, and ValueError for a split that it does not have and for
    shards of which one is missing or contradicts its folder.
    """
    if source == "toy":
        return [Shard(_toy_shard(split))]
    from data.folders import Folder, is_folder_dataset  # here, or `python -m data.folders` would find it loaded already

    path = Path(source)
    if not source.strip():
        raise ValueError("the dataset is named ''; it takes a folder, a glob, a dataset on the Hub, or 'toy'")
    if is_folder_dataset(path):
        if asked != NOT_ASKED:
            raise ValueError(f"{source} is a folder of images, which has no columns; leave out --image-column and such")
        return [Folder(path, split, lossy)]
    if saved_splits(path):
        return list(open_saved(path, split, asked))
    named = HubSource.parse(source)
    if named is None:
        return _open_local(path, source, split, None, asked)
    files = named.list_files()
    if isinstance(files, Path):
        return _open_local(files, source, split, named.configuration, asked)
    paths = _of_configuration([PurePosixPath(file) for file in files.paths], named.name, named.configuration)
    return [files.open(str(file), asked) for file in _of_split(paths, source, split)]


def classes_beside(source: str) -> tuple[Classes | None, list[str]]:
    """The classes that files beside the data name, if any, and what to say of files that were passed over.

    Raises ValueError for files that contradict each other, or whose name leaves no doubt that they are class files and
    that are none.
    """
    found: list[Classes] = []
    passed_over: list[str] = []
    for file in _class_files(source):
        try:
            path = file.fetch() if isinstance(file, HubFile) else file
            found.append(replace(read_classes(path), source=str(file)))
        except ValueError as error:
            if Path(str(file)).name in CLASS_FILES:
                raise
            passed_over.append(f"{file} is passed over: {error}")
    return agree(found), passed_over


def named_classes(name: str) -> Classes:
    """The classes of a class file, or of a dataset repository on the Hub: owner/name or owner/name/file.json.

    Raises ValueError for one that is none, FileNotFoundError for one that is not there, OSError for a Hub out of reach.
    """
    path = Path(name)
    if path.is_dir():
        inside = class_files_in(path)
        hint = f", as {inside[0]}" if inside else ""
        raise ValueError(f"--label-names {name} is a folder; name a file of classes{hint}")
    file = find_class_file(name)
    if file is None:
        return read_classes(path)
    return replace(read_classes(file.fetch()), source=str(file))


def _class_files(source: str) -> Sequence[Path | HubFile]:
    if source == "toy" or source in (SCENE_PARSE_150, HOME):
        return []
    named = HubSource.parse(source)
    if named is not None:
        files = named.list_class_files()
        return [file for file in files if file.path.count("/") < 2]
    return class_files_beside(Path(source))


def _open_local(path: Path, source: str, split: str, configuration: str | None, asked: Asked) -> list[Rows]:
    """The shards of a folder, a single one, or those of a glob, of which only name and last folder tell the split."""
    if path.is_dir():
        below = [PurePosixPath(found.relative_to(path).as_posix()) for found in _shards_below(path)]
        files = _of_configuration(below, source, configuration)
        return [Shard(path / file, asked) for file in _of_split(files, source, split)]
    if not (path.is_file() or glob.has_magic(source)):
        raise FileNotFoundError(f"there is no file or folder {source}, nor can a dataset on the Hub be called that")
    found = [path] if path.is_file() else [Path(each) for each in glob.glob(source, recursive=True)]
    files = [PurePosixPath(each.as_posix()) for each in found if _is_shard(each)]
    return [Shard(Path(file), asked) for file in _of_split(files, source, split, by_last_folder=True)]


def _shards_below(folder: Path) -> list[Path]:
    found = (Path(root) / name for root, _, names in os.walk(folder, followlinks=True) for name in names)
    return [path for path in found if _is_shard(path)]


def _is_shard(path: Path) -> bool:
    return path.suffix == ".parquet" and not path.name.startswith(".") and path.is_file()


def _of_split(
    paths: Sequence[PurePosixPath], source: str, split: str, by_last_folder: bool = False
) -> list[PurePosixPath]:
    """The files of a split in order: those whose name or folders say so, or all, as "train", where none says anything.

    Raises ValueError for files that belong to no split beside others that do: they might be anybody's.
    """
    if not paths:
        local = Path(source)
        files = list_files(local) if local.is_dir() else [local.name]
        raise FileNotFoundError(
            f"no *.parquet under {source}; a dataset is a folder of shards or a glob of them, a folder with images/ "
            "and annotations/ or of another layout that data/layouts.py lists, a CSV of pairs under image,mask, "
            f"{SCENE_PARSE_150!r} or another dataset on the Hub, or 'toy'{remedy(files)}"
        )
    by_split: dict[str, list[PurePosixPath]] = {}
    for path in sorted(paths, key=_by_number):
        by_split.setdefault(_split_of(path, by_last_folder) or "", []).append(path)
    strays = by_split.pop("", [])
    if strays and by_split:
        known = ", ".join(SPLIT_NAMES)
        raise ValueError(f"{source}: {strays[0]} belongs to no split that is known; name it or its folder {known}")
    if strays:
        by_split["train"] = strays
    chosen = split if split in by_split else split_named(split)
    if chosen not in by_split:
        raise _no_split(source, split, by_split)
    _check_whole(by_split[chosen], source)
    return by_split[chosen]


def _split_of(path: PurePosixPath, by_last_folder: bool) -> str | None:
    """What the words of a file's name and of its folders say, such as train in train2017 or in partial-train."""
    in_name = _splits_in(re.split(r"[-_.]", path.stem))
    if by_last_folder:
        found = in_name or _splits_in(_folder_words(path.parent.parts[-1:]))
    else:
        found = in_name | _splits_in(_folder_words(path.parent.parts))
    if len(found) > 1:
        raise ValueError(f"{path} is named after two splits, {' and '.join(sorted(found))}; move or rename it")
    return next(iter(found), None)


def _splits_in(words: Iterable[str]) -> set[str]:
    return {split for word in words if (split := split_named(word))}


def _folder_words(folders: Iterable[str]) -> list[str]:
    """Folders by the word that they are: test_images is not one of the test split, partial-test and test-00 are."""
    return [re.sub(r"^partial-|[-_.]\d+$", "", folder.lower()) for folder in folders]


def _check_whole(paths: Sequence[PurePosixPath], source: str) -> None:
    """Refuse shards named like train-00000-of-00002, or like 0001, unless all of them, or all before, are there."""
    numbers: dict[tuple[PurePosixPath, str, int], set[int]] = {}
    for path in paths:
        if match := re.fullmatch(r"(.*)-(\d+)-of-(\d+)", path.stem):
            numbers.setdefault((path.parent, match[1], int(match[3])), set()).add(int(match[2]))
        elif re.fullmatch(r"\d{4}", path.stem):
            numbers.setdefault((path.parent, "", 0), set()).add(int(path.stem))
    for (folder, name, count), found in numbers.items():
        if missing := set(range(count or max(found))) - found:
            first = min(missing)
            which = f"{name}-{first:05d}-of-{count:05d}" if name else f"{folder}/{first:04d}"
            raise ValueError(f"{source} lacks {which}.parquet; it holds {len(found)} of {count or max(found) + 1}")
    sets = [(folder, name) for folder, name, count in numbers if count]
    if len(set(sets)) < len(sets):
        raise ValueError(f"{source} holds two sets of shards named {sets[0][1]}; remove the older one")


def _of_configuration(
    paths: Sequence[PurePosixPath], source: str, configuration: str | None
) -> Sequence[PurePosixPath]:
    """The files of the configuration that was asked for, or of the only one.

    It is the first folder of a path, as in <configuration>/<split>/0000.parquet, unless that names a split itself.
    """
    by_configuration: dict[str, list[PurePosixPath]] = {}
    for path in paths:
        first = path.parts[0] if len(path.parts) > 1 else ""
        is_one = (
            first not in ("", "data") and not _splits_in(_folder_words([first])) and _split_of(path, False) is not None
        )
        by_configuration.setdefault(first if is_one else "", []).append(path)
    have = ", ".join(sorted(filter(None, by_configuration))) or "none"
    if configuration is not None:
        if configuration not in by_configuration:
            raise ValueError(f"{source} has no configuration {configuration!r}; it has {have}")
        return by_configuration[configuration]
    if len(by_configuration) > 1:
        raise ValueError(
            f"{source} has several configurations ({have}); name one, as owner/name:configuration or by its folder"
        )
    return paths


def _no_split(source: str, split: str, splits: Iterable[str]) -> ValueError:
    return NoSplitError(f"{source} has no split {split!r}; it has {', '.join(sorted(splits))}")


def _by_number(path: PurePosixPath) -> list[tuple[int, str]]:
    """A sort key in which shard 2 comes before shard 10, whether or not the names are padded with zeros."""
    return [(int(run), "") if run.isdigit() else (-1, run) for run in re.split(r"(\d+)", str(path))]


def _toy_shard(split: str) -> Path:
    """The shard of the toy scenes, drawn on first use and kept."""

    rows = scenes.toy_rows(split)
    path = cache_folder() / f"toy-{scenes.VERSION}" / f"{split}.parquet"
    return make_once(path, lambda unfinished: write_shard(unfinished, rows, scenes.SCENE_CATEGORIES))
