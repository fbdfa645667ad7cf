"""Which photo and which label map belong together, by their names or by the list that names them.

Their names are alike but for the ending, or made after one another as tools make them: a.jpg and a_mask.png.
"""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from data.lists import Pairs
from data.words import counted, shortened

IMAGE_ENDINGS = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".jfif", ".gif", ".avif")
EXACT_ENDINGS = (".png", ".bmp", ".tif", ".tiff")  # JPEG and WebP blur class ids, GIF numbers them anew
_PACKED_ENDINGS = (".zip", ".tar", ".tgz", ".gz", ".7z", ".rar")
_OUTLINE_ENDINGS = (".json", ".xml", ".txt")
_OUTLINES_OF_ALL = re.compile(r"(^|[^a-z])(instances|coco|annotations|via|labels)[^/]*[.]json$", re.IGNORECASE)
JPEG_ENDINGS = (".jpg", ".jpeg", ".jfif")
_MOST_COMPARED = 200  # of label maps, to see how they are called
_NOBODYS = {"__macosx", "@eadir"}  # folders that archives and storage leave beside


class Naming(NamedTuple):
    """What stands around the name that a photo and its label map share."""

    photo: str = "{}"
    label: str = "{}"


PLAIN_NAMING = Naming()
_CITYSCAPES = tuple(
    Naming("{}_leftImg8bit", "{}_" + kind + ids)
    for kind in ("gtFine", "gtCoarse")
    for ids in ("_labelTrainIds", "_labelIds")
)
_WORDS = (
    "mask",
    "masks",
    "label",
    "labels",
    "L",
    "gt",
    "seg",
    "segmentation",
    "annotation",
    "labelTrainIds",
    "labelIds",
)
_NAMINGS = (
    *_CITYSCAPES,
    *(Naming(photo, f"{{}}{sign}{word}") for photo in ("{}", "{}_image", "{}_img", "{}_sat", "{}_rgb")
      for sign in "_-." for word in _WORDS),
    *(Naming(photo, f"{word}{sign}{{}}") for photo in ("{}", "image_{}", "img_{}", "image-{}", "photo_{}")
      for sign in "_-" for word in _WORDS[:-2]),
)  # fmt: skip


@dataclass(frozen=True)
class Split:
    """The folders of one split, and the files that belong to it, where a list names them."""

    images: Path
    annotations: Path | None
    names: tuple[Path, list[tuple[int, str]]] | None = None  # a list, and its lines with their numbers
    listed: Pairs | None = None  # pairs that a list names, below ``images``


@dataclass
class Files:
    """The files of a split in pairs, relative to its two folders, in the order of the images."""

    pairs: Pairs
    naming: Naming = field(default_factory=Naming)


def pair_files(split: Split, lossy: bool = False) -> Files:
    """The files of a split, paired by name, or by its list.

    ``lossy`` lets label maps be JPEG, which keeps none but masks. Raises FileNotFoundError for a folder without any
    image, and ValueError, naming files, for those that do not pair up and for a list that names others.
    """
    if split.listed is not None:
        return Files(split.listed)
    files = _pair(split, (*EXACT_ENDINGS, *JPEG_ENDINGS, ".gif") if lossy else EXACT_ENDINGS)
    if split.names is not None:
        files.pairs = _chosen(files, split)
    return files


def _pair(split: Split, endings: tuple[str, ...]) -> Files:
    """The relative paths of every image and its annotation, in the order of the images; None where there are none.

    Where a list names images, others need no annotation, nor annotations an image.
    """
    images, annotations = split.images, split.annotations
    pictures = [file for file in list_files(images) if ending(file) in IMAGE_ENDINGS]
    if not pictures:
        raise FileNotFoundError(f"no image under {images}; the endings of images are {' '.join(IMAGE_ENDINGS)}")
    files = list_files(annotations) if annotations else []
    exact = [file for file in files if ending(file) in endings]
    side_by_side = annotations == images
    naming = (
        find_naming(map(stem_of, pictures), map(stem_of, exact), images, side_by_side) if annotations else PLAIN_NAMING
    )
    if side_by_side:
        pictures = [file for file in pictures if key_of(stem_of(file), naming.label) is None]
    photos, label_maps = _by_key(pictures, naming.photo), _by_key(exact, naming.label)
    _prefer_exact(label_maps)
    if split.names is not None:
        listed = {stem for _, name in split.names[1] for stem in _stems_of(name, split)}
        photos = {key: files for key, files in photos.items() if {key, os.path.basename(key)} & listed}
        label_maps = {key: files for key, files in label_maps.items() if key in photos}
        pictures = []
    others = _by_key((file for file in files if ending(file) not in endings), naming.label)
    alone = [key for key in photos if annotations and key not in label_maps]
    problems = {
        "image in files that differ only in their ending": [" and ".join(x) for x in photos.values() if len(x) > 1],
        "annotation in files that differ only in their ending": [
            " and ".join(x) for x in label_maps.values() if len(x) > 1
        ],
        "image without annotation": [photos[key][0] for key in alone if key not in others]
        + [file for file in pictures if key_of(stem_of(file), naming.photo) is None],
        "annotation without image": [label_maps[key][0] for key in label_maps if key not in photos],
        "annotation in another form than PNG, BMP or TIFF, which alone keep class ids": [
            others[key][0] for key in alone if key in others
        ],
    }
    found = [f"{counted(len(some), *_of_kind(kind))} ({shortened(some)})" for kind, some in problems.items() if some]
    if found:
        rule = "an image and its annotation have the same path and name, but for the ending"
        todo = "" if exact else remedy([*pictures, *files])
        raise ValueError(f"{images} and {annotations or 'no annotations'}: {'; '.join(found)}; {rule}{todo}")
    return Files([(names[0], label_maps[key][0] if annotations else None) for key, names in photos.items()], naming)


def remedy(files: Sequence[str]) -> str:
    """What to do first with files among which data was looked for in vain, as the end of a message; "" if nothing."""
    photos = {os.path.basename(stem_of(name)) for name in files if ending(name) in IMAGE_ENDINGS}
    for name in files:
        if ending(name) in _PACKED_ENDINGS:
            return f"; unpack {name} first"
        is_photos = ending(name) in _OUTLINE_ENDINGS and os.path.basename(stem_of(name)) in photos
        if is_photos or _OUTLINES_OF_ALL.search(name):
            return f"; outlines, as those of COCO, Labelme or YOLO ({name}), must be drawn as PNG label maps first"
    return ""


def _chosen(files: Files, split: Split) -> Pairs:
    """The pairs whose names a list has, in its order. Raises ValueError for names that are no file's."""
    assert split.names is not None
    file, lines = split.names
    by_key = {key_of(stem_of(photo), files.naming.photo): (photo, label) for photo, label in files.pairs}
    by_name: dict[str, Pairs] = {}
    for key, each in by_key.items():
        by_name.setdefault(os.path.basename(str(key)), []).append(each)
    chosen: Pairs = []
    gone: list[str] = []
    for number, name in lines:
        stem, bare = _stems_of(name, split)
        named = by_name.get(bare, [])
        pair = by_key.get(stem) or (named[0] if len(named) == 1 else None)
        if pair is None:
            gone.append(f"line {number}: {name!r}")
        else:
            chosen.append(pair)
    if gone or not chosen:
        what = f"{counted(len(gone), 'name')} of no image in {split.images} ({shortened(gone)})" if gone else "no name"
        raise ValueError(
            f"{file} has {what}; a list has the name of an image in every line, with its ending or without"
        )
    return chosen


def _stems_of(name: str, split: Split) -> tuple[str, str]:
    """What a line of a list calls an image, below the folder of images and by itself."""
    stem = stem_of(name) if ending(name) in IMAGE_ENDINGS else unicodedata.normalize("NFC", name)
    stem = stem.replace("\\", "/").lstrip("./").removeprefix(f"{split.images.name}/")
    return stem, os.path.basename(stem)


def find_naming(
    photos: Iterable[str], label_maps: Iterable[str], folder: Path, one_folder: bool = False, known_only: bool = False
) -> Naming:
    """How label maps are called after photos, by the names without endings: alike, if any is, or as most of them are.

    Unless ``known_only``, an ending that all have is taken whatever it is.
    Raises ValueError where two ways fit equally many.
    """
    photo_stems, label_stems = set(photos), sorted(set(label_maps))
    if not one_folder and photo_stems.intersection(label_stems):
        return PLAIN_NAMING
    photo_keys = {form: {key_of(stem, form) for stem in photo_stems} for form in {naming.photo for naming in _NAMINGS}}
    counts: dict[Naming, int] = {}
    for naming in _NAMINGS:
        keys = {key for stem in label_stems[:_MOST_COMPARED] if (key := key_of(stem, naming.label)) is not None}
        if count := len(keys & photo_keys[naming.photo]):
            counts[naming] = count
    best = [naming for naming, count in counts.items() if count == max(counts.values())]
    if len({naming.label for naming in best}) > 1 and not set(best) <= {*_CITYSCAPES}:
        ways = " and ".join(naming.label.format("...") for naming in best[:2])
        raise ValueError(
            f"label maps of {folder} are called {ways}, equally often; move those elsewhere that are not meant"
        )
    return best[0] if best else PLAIN_NAMING if one_folder or known_only else _by_remainder(photo_stems, label_stems)


def _by_remainder(photo_stems: set[str], label_stems: list[str]) -> Naming:
    """The one ending of names that all photos have a label map with, as in a_instance_color_RGB for a."""
    first = min(photo_stems, default="")
    rests = [stem.removeprefix(first) for stem in label_stems if stem.startswith(first) and stem != first]
    known = set(label_stems)
    common = [rest for rest in rests if rest[0] in "_-. " and all(photo + rest in known for photo in photo_stems)]
    return Naming("{}", "{}" + common[0]) if len(common) == 1 and first else PLAIN_NAMING


def key_of(stem: str, form: str) -> str | None:
    """The name that a file shares with its partner, by its name without ending; None if it has not this form."""
    folder, name = os.path.split(stem)
    before, _, after = form.partition("{}")
    if not (name.startswith(before) and name.endswith(after) and len(name) > len(before) + len(after)):
        return None
    return os.path.join(folder, name[len(before) : len(name) - len(after)])


def _by_key(files: Iterable[str], form: str) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for file in files:
        if (key := key_of(stem_of(file), form)) is not None:
            found.setdefault(key, []).append(file)
    return found


def _prefer_exact(label_maps: dict[str, list[str]]) -> None:
    """Where JPEG is allowed, a PNG beside it is the label map."""
    for key, files in label_maps.items():
        if exact := [file for file in files if ending(file) in EXACT_ENDINGS]:
            label_maps[key] = exact


def stem_of(file: str) -> str:
    """A path without its ending; composed, as macOS writes an accent as a letter of its own."""
    return unicodedata.normalize("NFC", os.path.splitext(file)[0])


def ending(file: str) -> str:
    """The ending of a path, in lower case."""
    return os.path.splitext(file)[1].lower()


def _of_kind(kind: str) -> tuple[str, str]:
    """What is wrong with one file, and with several."""
    noun, rest = kind.split(" ", 1)
    return kind, f"{noun}s {rest}"


def list_files(folder: Path, above: tuple[str, ...] = ()) -> list[str]:
    """The paths of all files in here and deeper, relative, with "/", in lexicographic order.

    A link to one of the folders ``above``, in which it lies, leads nowhere new.
    """
    files: list[str] = []
    here = os.path.realpath(folder)
    if here in above:
        return files
    for entry in list_folder(folder):
        if entry.is_dir():
            files += [f"{entry.name}/{file}" for file in list_files(folder / entry.name, (*above, here))]
        else:
            files.append(entry.name)
    return sorted(files)


def list_folder(folder: Path) -> list[os.DirEntry[str]]:
    """What is in a folder and not hidden, as macOS hides a ._x beside each x, nor left there by archives."""
    try:
        with os.scandir(folder) as entries:
            return [entry for entry in entries if not (entry.name.startswith(".") or entry.name.lower() in _NOBODYS)]
    except PermissionError as error:
        raise PermissionError(f"folder {folder} cannot be listed; it must be readable to you") from error
