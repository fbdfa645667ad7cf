"""The label maps of photos that are segmented: which belongs to which, in the namings that data/pairing.py knows."""

from __future__ import annotations

import logging
import os
import unicodedata
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from data.class_files import Classes, class_files_in, read_classes
from data.layouts import IMAGE_FOLDERS, LABEL_FOLDERS
from data.pairing import EXACT_ENDINGS, IMAGE_ENDINGS, PLAIN_NAMING, ending, find_naming, key_of, list_files, stem_of
from data.splits import split_named
from data.words import counted

SEGMENTS_NAME = "segments.json"  # beside which infer.py writes label maps of its own

logger = logging.getLogger(__name__)


class Paired(NamedTuple):
    """The photos, without what turned out to be a label map among them, and the label maps of those that have one."""

    photos: list[Path]
    label_maps: dict[Path, Path]


def pair_photos(folder: Path, photos: Sequence[Path]) -> Paired:
    """Find the label map of every photo that has one in a folder or below it.

    A label map is called like its photo, or after it as in one of the layouts, and the folders that it lies in below
    ``folder`` are those that its photo lies in, but for what kinds and splits are called.

    Raises FileNotFoundError for a folder that is not there or holds none, ValueError where one belongs to two photos,
    or two to one.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"--annotations {folder} is no folder")
    places = {photo: Path(os.path.abspath(photo)) for photo in photos}
    listed = list_files(folder)
    results = {os.path.dirname(file) for file in listed if os.path.basename(file) == SEGMENTS_NAME}  # of earlier runs
    listed = [file for file in listed if ending(file) in IMAGE_ENDINGS and os.path.dirname(file) not in results]
    files = {Path(os.path.abspath(folder / file)): file for file in listed}
    if exact := {path: file for path, file in files.items() if ending(file) in EXACT_ENDINGS}:
        files = exact
    elif not files.keys().isdisjoint(places.values()):  # photos alone; else masks as JPEG, which --binary-masks reads
        files = {}
    stems = {stem_of(photo.name) for photo in photos}
    others = {path: file for path, file in files.items() if path not in places.values()}
    together = len(others) < len(files) and stems.isdisjoint(stem_of(path.name) for path in others)
    files = files if together else others
    naming = find_naming(stems, (stem_of(path.name) for path in files), folder, together, known_only=True)
    if together:  # some of the photos are label maps
        of_labels = {path for path in files if key_of(stem_of(path.name), naming.label) is not None}
        if naming == PLAIN_NAMING:  # which only their endings tell
            of_photos = {stem_of(path.name) for path in places.values() if path not in files}
            of_labels = {path for path in files if stem_of(path.name) in of_photos}
        files = {path: file for path, file in files.items() if path in of_labels}
        photos = [photo for photo in photos if places[photo] not in of_labels]
    by_name: dict[str, list[tuple[tuple[str, ...], Path]]] = {}
    for path, file in files.items():
        if (name := key_of(stem_of(path.name), naming.label)) is not None:
            by_name.setdefault(name, []).append((_folders(Path(file).parent, LABEL_FOLDERS), folder / file))
    found: dict[Path, Path] = {}
    owners: dict[Path, Path] = {}
    for photo in photos:
        name = key_of(stem_of(photo.name), naming.photo)
        above = _folders(places[photo].parent, IMAGE_FOLDERS)
        fitting = [each for each in by_name.get(name or "", []) if above[len(above) - len(each[0]) :] == each[0]]
        if not fitting:
            continue
        depth = max(len(folders) for folders, _ in fitting)
        best, *more = sorted(path for folders, path in fitting if len(folders) == depth)
        if more:
            raise ValueError(f"{photo.name} has two label maps, {best} and {more[0]}; name the folder of one")
        if (owner := owners.setdefault(best, photo)) != photo:
            raise ValueError(
                f"{best} is called like both {owner} and {photo}; name the photos of one folder, or keep the label "
                "maps in folders like theirs"
            )
        found[photo] = best
    if not found:
        elsewhere = next((path for photo in photos for _, path in by_name.get(stem_of(photo.name), [])), None)
        near = f"; {elsewhere} lies in another folder than its photo, which takes the name of that" if elsewhere else ""
        raise FileNotFoundError(
            f"--annotations {folder} has no PNG, BMP or TIFF named like {(photos or [folder])[0].name}{near}"
        )
    if alone := [photo for photo in photos if photo not in found]:
        logger.warning("%s without a label map, which no score counts: %s", counted(len(alone), "photo"), alone[0])
    return Paired(list(photos), found)


def classes_of(folder: Path) -> Classes | None:
    """The classes that a file in a folder of label maps, or in one of the two above it, names; None of none."""
    for place in (folder, *list(folder.absolute().parents)[:2]):
        for file in class_files_in(place):
            with suppress(ValueError):
                return read_classes(file)
    return None


def _folders(path: Path, kinds: tuple[str, ...]) -> tuple[str, ...]:
    """The folders of a path, by what tells photos apart: not the kinds, and splits by their own word."""
    parts = [unicodedata.normalize("NFC", part) for part in path.parts if part.lower() not in kinds]
    return tuple(split_named(part) or part for part in parts)
