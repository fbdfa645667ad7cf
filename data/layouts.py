"""The layouts in which tools and data sets keep photos and their label maps; data/pairing.py pairs the files of one.

images/ annotations/                   or masks/, labels/ and the like, each with train/, val/ below or without
train/images/ train/masks/             the splits above the kinds
train/ train_labels/                   or trainannot/, train_masks/; train_images/ train_masks/
JPEGImages/ SegmentationClass/         with lists in ImageSets/Segmentation/ (Pascal VOC, CVAT)
leftImg8bit/ gtFine/                   Cityscapes
img/ masks_machine/                    Supervisely, exported as masks
0001.jpg 0001_mask.png                 side by side, in one folder or in one for each split, also 0001.jpg 0001.png
train/x/images/ train/x/masks/         folders in which only the kind differs, whatever lies above or below it
train.csv, train.txt                   lists of names or of pairs (data/lists.py)
"""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass
from pathlib import Path

from data.class_files import class_files_in
from data.lists import LIST_ENDINGS, Pairs, listed_by_split, listed_names, names_files
from data.pairing import (
    EXACT_ENDINGS,
    IMAGE_ENDINGS,
    JPEG_ENDINGS,
    PLAIN_NAMING,
    Split,
    ending,
    find_naming,
    list_files,
    list_folder,
    stem_of,
)
from data.splits import SPLIT_NAMES, split_named
from data.words import shortened

logger = logging.getLogger(__name__)

IMAGES, ANNOTATIONS = "images", "annotations"
MACHINE_MASKS = "masks_machine"  # of Supervisely
_MAYBE_IMAGES = ("original_images", "original", "camerargb")  # where there is no plainer name
IMAGE_FOLDERS = (
    IMAGES, "image", "imgs", "img", "photos", "photo", "jpegimages", "leftimg8bit", "rgb", "inputs", "input",
    "image_2", "img_dir", "image_dir", "images_png", *_MAYBE_IMAGES,
)  # fmt: skip
LABEL_FOLDERS = (
    ANNOTATIONS, "annotation", "masks", "mask", "labels", "label", "segmentationclass", "segmentationclassraw",
    "segmentationclasspng", "gtfine", "gtcoarse", "gt", "gts", "ground_truth", "groundtruth", "segmentation",
    "segmentations", "targets", "target", "label_maps", "labelmaps", "semantic", MACHINE_MASKS,
    "ann_dir", "label_dir", "mask_dir", "masks_png", "label_images_semantic", "ground truth", "cameraseg", "1st_manual",
)  # fmt: skip
_LABEL_FOLDER_OF_SPLIT = ("_labels", "_label", "_masks", "_mask", "_annotations", "_annot", "annot", "_gt", "labels")
_LIST_FOLDERS = ("ImageSets/Segmentation", "ImageSets", "splits", "")
_LIST_NAMES = ("trainval", "default", "all")  # beside those of splits


@dataclass(frozen=True)
class Layout:
    """What lies where below a folder: ``about`` is what a run says of it, nothing where it is plain."""

    base: Path
    about: str
    splits: dict[str, Split]


def find_layout(root: Path) -> Layout:
    """What lies where in a folder, or in the only one in it.

    Raises FileNotFoundError for one of no known layout, PermissionError for one that cannot be listed, and ValueError
    for folders and lists that contradict each other.
    """
    base = _base(root)
    images, labels = _kind(base, IMAGE_FOLDERS), _kind(base, LABEL_FOLDERS)
    if images and labels:
        return _by_kind(base, images, _only_label_maps(images, labels))
    for find in (_by_split, _by_pair_lists, lambda base: _side_by_side(images or base), _by_ending, _by_component):
        layout = find(base)
        if layout is not None:
            return layout
    _refuse_supervisely(base)
    missing = IMAGES if images is None else ANNOTATIONS
    raise FileNotFoundError(
        f"{base} has no {missing}/; a folder of images has {IMAGES}/ and {ANNOTATIONS}/, with the same names in both, "
        "or another layout that data/layouts.py lists, or its pairs stand in a train.csv under image,mask"
    )


def is_layout(root: Path) -> bool:
    """Whether a folder has one of the layouts, whatever may be wrong with it; with parquet files, only by its kinds."""
    try:
        base = _base(root)
        if _kind(base, IMAGE_FOLDERS) and _kind(base, LABEL_FOLDERS):
            return True
        if next(root.rglob("*.parquet"), None) is not None:
            return False
        find_layout(root)
    except FileNotFoundError:
        return False
    except (ValueError, PermissionError):
        return True
    return True


def class_files_beside(source: Path) -> list[Path]:
    """The files beside the photos of a folder, or beside a list or shard, that may say what classes are called."""
    folder = source if source.is_dir() else source.parent
    folders = [folder]
    if source.is_dir() and is_layout(folder):
        layout = find_layout(folder)
        folders += [layout.base, *(split.images for split in layout.splits.values())]
    return [file for each in dict.fromkeys(folders) for file in class_files_in(each)]


def _base(root: Path) -> Path:
    """The folder itself or, as archives unpack, the only folder in it, and in that, that has one of the kinds."""
    base = root
    for _ in range(3):
        if not base.is_dir() or _is_base(base):
            break
        inner = base / "ADEChallengeData2016"
        entries = [Path(entry) for entry in list_folder(base)]
        folders = [inner] if inner.is_dir() else [entry for entry in entries if entry.is_dir()]
        if len(folders) != 1 or split_named(folders[0].name) or any(ending(e.name) in IMAGE_ENDINGS for e in entries):
            break
        base = folders[0]
    return base if base.is_dir() and (_is_base(base) or _has_splits(base)) else root


def _is_base(base: Path) -> bool:
    """Whether a folder has one of the kinds, by a name that means nothing else."""
    images = _kind(base, IMAGE_FOLDERS)
    return bool(_kind(base, LABEL_FOLDERS) or (images and images.name.lower() not in _MAYBE_IMAGES))


def _has_splits(base: Path) -> bool:
    return any(entry.is_dir() and split_named(entry.name) for entry in list_folder(base))


def _kind(base: Path, names: tuple[str, ...]) -> Path | None:
    """The folder in here that is called like a kind; of several the one that has images in it.

    Raises ValueError where several have.
    """
    if not base.is_dir():
        return None
    found = sorted(
        (Path(entry) for entry in list_folder(base) if entry.is_dir() and entry.name.lower() in names),
        key=lambda folder: names.index(folder.name.lower()),
    )
    if any(folder.name.lower() not in _MAYBE_IMAGES for folder in found):
        found = [folder for folder in found if folder.name.lower() not in _MAYBE_IMAGES]
    if len(found) < 2:
        return found[0] if found else None
    filled = [folder for folder in found if any(ending(file) in IMAGE_ENDINGS for file in list_files(folder))]
    if len(filled) > 1:
        raise ValueError(
            f"{base} has {' and '.join(f'{folder.name}/' for folder in filled)}, each with images, and which one is "
            "meant cannot be told; move the others elsewhere"
        )
    return filled[0] if filled else found[0]


def _only_label_maps(images: Path, labels: Path) -> Path:
    """The folder of label maps, or the one in it that alone has any, as trimaps/ beside xmls/ (Oxford-IIIT-Pet)."""

    def holds_maps(folder: Path) -> bool:
        return any(ending(entry.name) in EXACT_ENDINGS for entry in list_folder(folder))

    if holds_maps(labels):
        return labels
    inner = [Path(entry) for entry in list_folder(labels) if entry.is_dir() and not split_named(entry.name)]
    inner = [folder for folder in inner if holds_maps(folder)]
    return inner[0] if len(inner) == 1 and not (images / inner[0].name).exists() else labels


def _refuse_supervisely(base: Path) -> None:
    """Raise ValueError for a project of Supervisely as it is stored, with what makes label maps of it."""
    folders = [base, *(Path(entry) for entry in list_folder(base) if entry.is_dir())] if base.is_dir() else []
    for folder in folders:
        annotations = folder / "ann"
        if not ((folder / "img").is_dir() and annotations.is_dir()):
            continue
        if any(ending(entry.name) == ".json" for entry in list_folder(annotations)):
            raise ValueError(
                f"{annotations} holds Supervisely's JSON and no label maps; export the project there with Export as "
                f"masks, which writes {MACHINE_MASKS}/ beside img/, and name its folder"
            )


def _by_kind(base: Path, images: Path, labels: Path) -> Layout:
    """Kinds above splits, or without any, or with lists."""
    plain = (images.name, labels.name) == (IMAGES, ANNOTATIONS)
    about = "" if plain else f"photos in {images.name}/, label maps in {labels.name}/"
    photos, label_maps = _split_folders(images), _split_folders(labels)
    if not photos:
        lists = _lists(base)
        if len(lists) == 1 and not names_files(next(iter(lists.values())), base, images, labels):
            logger.warning("%s names no file of this data, and is passed over", *lists.values())
            lists = {}
        if not lists:
            return Layout(base, about, {"train": Split(images, labels)})
        about = f"photos in {images.name}/, label maps in {labels.name}/, splits by {_called(lists, base)}"
        return Layout(base, about, _splits_of(lists, base, images, labels))
    if not label_maps or not set(label_maps) <= set(photos):
        raise ValueError(
            f"{images} has the splits {', '.join(photos)}, but {labels} has {', '.join(label_maps) or 'none'}; "
            "give both the same folders, of which annotations may lack some, as test"
        )
    annotated = {split: folder for split, folder in label_maps.items() if list_folder(folder)}
    return Layout(base, about, {split: Split(photos[split], annotated.get(split)) for split in photos})


def _by_split(base: Path) -> Layout | None:
    """Splits above kinds, beside folders of label maps that are called after them, or with both kinds in one folder."""
    splits: dict[str, Split] = {}
    said = []
    folders = {entry.name: Path(entry) for entry in list_folder(base) if entry.is_dir()} if base.is_dir() else {}
    for name, folder in sorted(folders.items()):
        if found := _split_in(name, IMAGE_FOLDERS):
            partners = [each for each in folders if _split_in(each, LABEL_FOLDERS) == found]
            if len(partners) == 1 and found not in splits:
                splits[found] = Split(folder, folders[partners[0]])
                said.append(f"{name}/ with {partners[0]}/")
        if not split_named(name):
            continue
        images, labels = _kind(folder, IMAGE_FOLDERS), _kind(folder, LABEL_FOLDERS)
        beside = [folders[name + word] for word in _LABEL_FOLDER_OF_SPLIT if name + word in folders]
        if images and labels:
            split, how = Split(images, labels), f"{name}/{images.name}/ with {name}/{labels.name}/"
        elif len(beside) == 1:
            split, how = Split(folder, beside[0]), f"{name}/ with {beside[0].name}/"
        elif alone := _side_by_side(images or folder) or _by_ending(images or folder):
            split, how = alone.splits["train"], f"{name}/ with both side by side"
        elif images or (splits and _holds_images(folder)):
            split, how = Split(images or folder, None), f"{name}/ without label maps"
        else:
            continue
        key = str(split_named(name))
        if key in splits:
            raise ValueError(f"{base} has {splits[key].images} and {name}, which mean the same split; make them one")
        splits[key] = split
        said.append(how)
    if all(split.annotations is None for split in splits.values()):
        return None
    strange = [name for name, folder in folders.items() if not split_named(name) and _has_kinds(folder)]
    if strange:
        said.append(f"{shortened(strange)} passed over: no name of a split, such as train, validation or test")
    return Layout(base, "; ".join(said), {s: splits[s] for s in ("train", "validation", "test") if s in splits})


def _has_kinds(folder: Path) -> bool:
    """Whether there are folders of photos and of label maps in here."""
    names = {entry.name.lower() for entry in list_folder(folder) if entry.is_dir()}
    return not (names.isdisjoint(IMAGE_FOLDERS) or names.isdisjoint(LABEL_FOLDERS))


def _holds_images(folder: Path) -> bool:
    return any(ending(file) in IMAGE_ENDINGS for file in list_files(folder))


def _split_in(name: str, kinds: tuple[str, ...]) -> str | None:
    """The split of a folder that is called after it and a kind, as train_images or masks-val; None of any other."""
    words = re.split("[-_]", name.lower(), maxsplit=1)
    for word, kind in ((words[0], words[-1]), (words[-1], words[0])):
        if len(words) == 2 and kind in kinds and (split := split_named(word)):
            return split
    return None


def _side_by_side(folder: Path) -> Layout | None:
    """Photos and label maps in one folder, or in several below it, told apart by the names of the latter."""
    files = list_files(folder) if folder.is_dir() else []
    if any(map(_is_told_apart, {part for file in files for part in file.split("/")[:-1]})):
        return None
    stems = [stem_of(file) for file in files if ending(file) in IMAGE_ENDINGS]
    if find_naming(stems, stems, folder, one_folder=True) == PLAIN_NAMING:
        return None
    return Layout(folder, f"photos and label maps side by side in {folder.name}/", {"train": Split(folder, folder)})


def _is_told_apart(folder: str) -> bool:
    return bool(split_named(folder)) or folder.lower() in (*IMAGE_FOLDERS, *LABEL_FOLDERS)


def _by_ending(base: Path) -> Layout | None:
    """Photos as JPEG and label maps as PNG of the same names, in one folder."""
    files = [file for file in list_files(base) if ending(file) in IMAGE_ENDINGS] if base.is_dir() else []
    if any("/" in file for file in files):
        return None
    photos = {stem_of(file): file for file in files if ending(file) in JPEG_ENDINGS}
    label_maps = {stem_of(file): file for file in files if ending(file) == ".png"}
    if not files or len(photos) * 2 != len(files) or photos.keys() != label_maps.keys():
        return None
    pairs: Pairs = [(photos[stem], label_maps[stem]) for stem in sorted(photos)]
    about = f"photos and label maps side by side in {base.name}/, JPEG and PNG"
    return Layout(base, about, {"train": Split(base, base, None, pairs)})


def _by_component(base: Path) -> Layout | None:
    """Files whose paths differ only in the folder that is called like a kind, as x/Images/1.png and x/Labels/1.png."""
    if not base.is_dir():
        return None
    kinds: dict[tuple[str, ...], dict[str, list[str]]] = {}
    for file in list_files(base):
        *folders, name = file.split("/")
        places = [i for i, folder in enumerate(folders) if folder.lower() in (*IMAGE_FOLDERS, *LABEL_FOLDERS)]
        if ending(name) not in IMAGE_ENDINGS or len(places) != 1:
            continue
        (place,) = places
        kind = IMAGES if folders[place].lower() in IMAGE_FOLDERS else ANNOTATIONS
        key = (*folders[:place], "", *folders[place + 1 :], stem_of(name))
        kinds.setdefault(key, {}).setdefault(kind, []).append(file)
    pairs: dict[str, Pairs] = {}
    for key, files in kinds.items():
        photos, label_maps = files.get(IMAGES, []), files.get(ANNOTATIONS, [])
        splits = {split for folder in key[:-1] if (split := split_named(folder))}
        if len(photos) != 1 or len(label_maps) > 1 or len(splits) > 1:
            return None
        if label_maps and ending(label_maps[0]) not in EXACT_ENDINGS:
            return None
        pairs.setdefault(next(iter(splits), "train"), []).append((photos[0], label_maps[0] if label_maps else None))
    annotated = {split: {label is not None for _, label in found} for split, found in pairs.items()}
    if {True} not in annotated.values() or any(len(has) > 1 for has in annotated.values()):
        return None
    splits_found = {split: pairs[split] for split in ("train", "validation", "test") if split in pairs}
    about = "photos and label maps in folders that differ in their kind alone"
    return Layout(base, about, {split: Split(base, base, None, found) for split, found in splits_found.items()})


def _by_pair_lists(base: Path) -> Layout | None:
    """Lists of pairs alone."""
    lists = _lists(base) if base.is_dir() else {}
    if not lists:
        return None
    return Layout(base, f"pairs by {_called(lists, base)}", _splits_of(lists, base))


def list_layout(file: Path) -> Layout:
    """The layout that a list of pairs is by itself, with its splits if a column tells them."""
    split = split_named(file.stem) or "train"
    return Layout(file.parent, f"pairs by {file.name}", _splits_of({split: file}, file.parent))


def _lists(base: Path) -> dict[str, Path]:
    """The lists of splits below a folder, by split."""
    for name in _LIST_FOLDERS:
        folder = base / name
        if not folder.is_dir():
            continue
        files = [Path(entry) for entry in list_folder(folder) if ending(entry.name) in LIST_ENDINGS]
        found: dict[str, Path] = {}
        for file in sorted(files):
            split = split_named(file.stem) or (file.stem.lower() if file.stem.lower() in _LIST_NAMES else None)
            if split in found:
                raise ValueError(f"{folder} has {found[str(split)].name} and {file.name} for one split; remove one")
            if split:
                found[split] = file
        if found:
            only = next(iter(found.values()))
            return {"train": only} if len(found) == 1 and only.stem.lower() in _LIST_NAMES else found
    return {}


def _called(lists: dict[str, Path], base: Path) -> str:
    return ", ".join(str(file.relative_to(base)) for file in lists.values())


def _splits_of(lists: dict[str, Path], base: Path, *kinds: Path) -> dict[str, Split]:
    """The splits of lists, each by the file that is called after it or, in a list of all pairs, by a column.

    Raises ValueError for a list of one split that has rows of another.
    """
    found: dict[str, Split] = {}
    for split, file in lists.items():
        if kinds and (names := listed_names(file)) is not None:
            found[split] = Split(kinds[0], kinds[1], (file, names))
            continue
        by_split = listed_by_split(file, base, *kinds)
        if len(lists) > 1 and set(by_split) - {"", split}:
            others = ", ".join(sorted(set(by_split) - {"", split}))
            raise ValueError(
                f"{file} is the list of {split}, and its column of splits has {others}; keep one list of all pairs, or "
                "take that column out"
            )
        found |= {told or split: Split(base, base, None, pairs) for told, pairs in by_split.items()}
    return found


def _split_folders(folder: Path) -> dict[str, Path]:
    """The folders in here that are called like a split, by split; empty if none is, and then all is one split."""
    entries = [entry for entry in list_folder(folder) if entry.is_dir() or ending(entry.name) in IMAGE_ENDINGS]
    named = sorted(entry.name for entry in entries if entry.is_dir() and split_named(entry.name))
    others = sorted(entry.name for entry in entries if entry.name not in named)
    if named and others:
        raise ValueError(
            f"{folder} has the splits {', '.join(named)} and beside them {shortened(others)}; "
            "move all files into splits"
        )
    by_split = {str(split_named(name)): folder / name for name in named}
    if len(by_split) < len(named):
        if all(name.lower() in SPLIT_NAMES for name in named) or not any(name[-1:].isdigit() for name in named):
            raise ValueError(f"{folder} has {', '.join(named)}, two of which mean the same split; make them one")
        return {name.lower(): folder / name for name in named}  # train2014 and train2017, to be named in full
    return {split: by_split[split] for split in ("train", "validation", "test") if split in by_split}
