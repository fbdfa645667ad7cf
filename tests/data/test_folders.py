"""Folders of photos and label maps: every layout, every mistake named, and the way to shards and back."""

from __future__ import annotations

import io
import os
import pickle
import pty
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import termios
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import programs
import pyarrow.parquet as pq
import pytest
from libraries import datasets
from PIL import Image
from torch.utils.data import DataLoader

from data import SceneParse150
from data.folders import Folder, folder_splits, folders_to_shards, is_folder_dataset, main
from data.labels import SCENE_PARSE_LABELS, LabelRule
from data.sources.choice import open_rows
from data.understanding import understand

ROOT = Path(__file__).resolve().parents[2]
ADE20K = "ADEChallengeData2016"
UNREADABLE = "/proc/self/mem"  # a file that opens but fails to be read


def encode(picture: Image.Image, form: str = "PNG", **options: Any) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, form, **options)
    return stream.getvalue()


def photo(number: int, form: str = "JPEG") -> bytes:
    return encode(Image.fromarray(np.random.default_rng(number).integers(0, 256, (5, 7, 3), dtype=np.uint8)), form)


def labels(number: int, highest: int = 150) -> bytes:
    return encode(Image.fromarray(np.random.default_rng(number).integers(0, highest + 1, (5, 7), dtype=np.uint8)))


def write(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def write_pairs(root: Path, *names: str, split: str = "") -> Path:
    """Pairs below images/ and annotations/; every name has pixels of its own."""
    for name in names:
        number = sum(map(ord, split + name))
        write(root / "images" / split / f"{name}.jpg", photo(number))
        write(root / "annotations" / split / f"{name}.png", labels(number))
    return root


def write_ade20k(root: Path) -> Path:
    """The folder as the archive of the challenge unpacks."""
    write_pairs(root, "ADE_train_00000001", "ADE_train_00000002", "ADE_train_00000003", split="training")
    write_pairs(root, "ADE_val_00000001", "ADE_val_00000002", split="validation")
    write(root / "objectInfo150.txt", b"Idx Ratio Train Val Name\n")
    lines = ["train_00000001 airport_terminal", "train_00000002 abbey", "val_00000001 abbey", "val_00000002 zoo"]
    write(root / "sceneCategories.txt", "".join(f"ADE_{line}\n" for line in lines).encode())
    return root


def write_test_split(root: Path) -> Path:
    write(root / "images/test/ADE_test_00000001.jpg", photo(70))
    return root


def paths(folder: Folder) -> list[tuple[str, str | None]]:
    rows = [folder.row(i) for i in range(folder.num_rows)]
    return [(row["image"]["path"], row["annotation"] and row["annotation"]["path"]) for row in rows]


def same_pixels(picture: Image.Image, encoded: bytes) -> bool:
    return np.array_equal(np.asarray(picture), np.asarray(Image.open(io.BytesIO(encoded))))


# Layouts


def test_a_row_is_the_bytes_of_its_two_files(tmp_path: Path) -> None:
    folder = Folder(write_pairs(tmp_path, "b", "a"), "train")
    assert folder.num_rows == 2
    assert folder.path == tmp_path / "images"
    for row, name in enumerate(("a", "b")):
        assert folder.row(row) == {
            "image": {"bytes": (tmp_path / f"images/{name}.jpg").read_bytes(), "path": f"{name}.jpg"},
            "annotation": {"bytes": (tmp_path / f"annotations/{name}.png").read_bytes(), "path": f"{name}.png"},
            "scene_category": None,
        }
        assert folder.where(row) == str(tmp_path / f"images/{name}.jpg")


def test_images_without_split_folders_are_the_split_train(tmp_path: Path) -> None:
    write_pairs(tmp_path, "a", "b")
    assert folder_splits(tmp_path) == ["train"]
    assert Folder(tmp_path, "train").num_rows == 2


@pytest.mark.parametrize("inside", ["", ADE20K])
def test_the_folder_of_the_challenge_opens_from_itself_and_from_the_one_around_it(inside: str, tmp_path: Path) -> None:
    write_ade20k(tmp_path / inside)
    assert is_folder_dataset(tmp_path)
    assert folder_splits(tmp_path) == ["train", "validation"]
    assert paths(Folder(tmp_path, "train")) == [(f"ADE_train_{i:08d}.jpg", f"ADE_train_{i:08d}.png") for i in (1, 2, 3)]
    assert paths(Folder(tmp_path, "validation")) == [(f"ADE_val_{i:08d}.jpg", f"ADE_val_{i:08d}.png") for i in (1, 2)]
    assert Folder(tmp_path, "train").path == tmp_path / inside / "images/training"


@pytest.mark.parametrize(
    ("folder", "split"),
    [
        ("train", "train"),
        ("training", "train"),
        ("val", "validation"),
        ("validation", "validation"),
        ("test", "test"),
        ("Training", "train"),
    ],
)
def test_every_name_of_a_split_folder_is_known(folder: str, split: str, tmp_path: Path) -> None:
    write_pairs(tmp_path, "a", "b", split=folder)
    assert folder_splits(tmp_path) == [split]
    assert paths(Folder(tmp_path, split)) == [("a.jpg", "a.png"), ("b.jpg", "b.png")]


def test_images_and_annotations_may_name_the_same_split_differently(tmp_path: Path) -> None:
    write_pairs(tmp_path, "a", split="training")
    (tmp_path / "annotations/training").rename(tmp_path / "annotations/train")
    assert paths(Folder(tmp_path, "train")) == [("a.jpg", "a.png")]


@pytest.mark.parametrize("empty_folder", [False, True])
def test_a_split_without_any_annotation_has_none_for_each(empty_folder: bool, tmp_path: Path) -> None:
    write_test_split(write_ade20k(tmp_path))
    if empty_folder:
        (tmp_path / "annotations/test").mkdir()
        (tmp_path / "annotations/test/.DS_Store").touch()
    assert folder_splits(tmp_path) == ["train", "validation", "test"]
    assert Folder(tmp_path, "test").row(0)["annotation"] is None
    assert SceneParse150(tmp_path, "test")[0][1] is None


@pytest.mark.parametrize("split", ["", "training"])
def test_folders_below_a_split_pair_by_their_path(split: str, tmp_path: Path) -> None:
    write_pairs(tmp_path, "kitchen/old/1", "kitchen/1", "bath/1", "1", split=split)
    assert [image for image, _ in paths(Folder(tmp_path, "train"))] == [
        "1.jpg",
        "bath/1.jpg",
        "kitchen/1.jpg",
        "kitchen/old/1.jpg",
    ]
    for image, annotation in paths(Folder(tmp_path, "train")):
        assert annotation == image.replace(".jpg", ".png")


def test_rows_are_in_the_lexicographic_order_of_their_paths(tmp_path: Path) -> None:
    names = ["10", "9", "a/2", "a-1", "B", "a", "ab"]
    write_pairs(tmp_path, *names)
    assert [image for image, _ in paths(Folder(tmp_path, "train"))] == sorted(f"{name}.jpg" for name in names)


@pytest.mark.parametrize("ending", ["jpg", "jpeg", "png", "bmp", "webp", "tif", "tiff", "JPG", "Png", "TIFF"])
def test_images_may_have_every_ending_in_any_case(ending: str, tmp_path: Path) -> None:
    form = {"jpg": "JPEG", "tif": "TIFF"}.get(ending.lower(), ending.upper())
    write(tmp_path / f"images/a.b.{ending}", photo(1, form))
    write(tmp_path / "annotations/a.b.png", labels(1))
    image, label_map = SceneParse150(tmp_path)[0]
    assert same_pixels(image, photo(1, form))
    assert same_pixels(label_map, labels(1))


@pytest.mark.parametrize("ending", ["png", "bmp", "tif", "tiff", "PNG"])
def test_annotations_may_have_every_ending_that_keeps_class_ids(ending: str, tmp_path: Path) -> None:
    label_map = Image.open(io.BytesIO(labels(1)))
    form = "TIFF" if "tif" in ending else ending.upper()
    write(tmp_path / "images/a.jpg", photo(1))
    write(tmp_path / f"annotations/a.{ending}", encode(label_map, form))
    assert same_pixels(SceneParse150(tmp_path)[0][1], labels(1))


def test_hidden_files_and_files_that_are_no_images_are_left_out(tmp_path: Path) -> None:
    write_pairs(tmp_path, "a", "sub/b", split="train")
    for name in (
        "._a.jpg",
        ".hidden.jpg",
        ".DS_Store",
        "sub/._b.jpg",
        ".ipynb_checkpoints/c.jpg",
        "Thumbs.db",
        "READ.me",
    ):
        write(tmp_path / "images/train" / name, b"")
        write(tmp_path / "annotations/train" / name.replace("jpg", "png"), b"")
    write(tmp_path / "images/.DS_Store", b"")
    write(tmp_path / "images/list.txt", b"")
    assert [image for image, _ in paths(Folder(tmp_path, "train"))] == ["a.jpg", "sub/b.jpg"]


def test_names_pair_whether_accents_are_composed_or_not(tmp_path: Path) -> None:
    write(tmp_path / "images/caf\u00e9.jpg", photo(1))
    write(tmp_path / "annotations/cafe\u0301.png", labels(1))
    assert paths(Folder(tmp_path, "train")) == [("caf\u00e9.jpg", "cafe\u0301.png")]


def test_links_to_folders_and_files_are_followed(tmp_path: Path) -> None:
    elsewhere = write_pairs(tmp_path / "elsewhere", "deep/b", "a")
    for name, ending in (("images", "jpg"), ("annotations", "png")):
        write(tmp_path / name / "train" / f"c.{ending}", (elsewhere / name / f"a.{ending}").read_bytes())
        (tmp_path / name / "train/linked").symlink_to(elsewhere / name / "deep")
        (tmp_path / name / "train" / f"a.{ending}").symlink_to(elsewhere / name / f"a.{ending}")
    assert [image for image, _ in paths(Folder(tmp_path, "train"))] == ["a.jpg", "c.jpg", "linked/b.jpg"]


def test_scene_categories_come_from_their_file_in_its_order(tmp_path: Path) -> None:
    write_ade20k(tmp_path)
    train, validation = Folder(tmp_path, "train"), Folder(tmp_path, "validation")
    assert train.scene_categories == validation.scene_categories == ["airport_terminal", "abbey", "zoo"]
    assert [train.row(i)["scene_category"] for i in range(3)] == [0, 1, None]
    assert [validation.row(i)["scene_category"] for i in range(2)] == [1, 2]
    dataset = SceneParse150(tmp_path, "train+validation")
    assert [dataset.scene_category(i) for i in range(5)] == ["airport_terminal", "abbey", None, "abbey", "zoo"]


def test_nested_images_have_the_scene_category_of_their_path_or_name(tmp_path: Path) -> None:
    write_pairs(tmp_path, "x/1", "y/1", "y/2")
    write(tmp_path / "sceneCategories.txt", b"1 bath\ny/1 kitchen\n\n2 street\n")
    folder = Folder(tmp_path, "train")
    assert [folder.scene_categories[folder.row(i)["scene_category"]] for i in range(3)] == ["bath", "kitchen", "street"]


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (["images/a.jpg", "annotations/a.png"], True),
        (["images/a.jpg"], True),
        ([f"{ADE20K}/images/training/a.jpg", f"{ADE20K}/annotations/training/a.png"], True),
        (["annotations/a.png"], False),
        (["train/0000.parquet"], False),
        (["images/logo.png", "data/train-00000-of-00001.parquet"], False),
        (["images/a.jpg", "annotations/a.png", "old/0000.parquet"], True),
        (["images"], False),
        ([], False),
    ],
)
def test_a_folder_of_images_is_told_from_one_of_shards(files: list[str], expected: bool, tmp_path: Path) -> None:
    for name in files:
        write(tmp_path / "source" / name, b"")
    assert is_folder_dataset(tmp_path / "source") is expected


# Reading


def test_opening_reads_no_image(tmp_path: Path) -> None:
    for name in ("images/a.jpg", "annotations/a.png"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).symlink_to(tmp_path / "nowhere")
    folder = Folder(tmp_path, "train")
    with pytest.raises(FileNotFoundError, match=re.escape(str(tmp_path / "images/a.jpg"))):
        folder.row(0)


def test_reading_keeps_no_file_open(tmp_path: Path) -> None:
    write_pairs(tmp_path, "a", "sub/b")
    before = len(os.listdir("/proc/self/fd"))
    folder = Folder(tmp_path, "train")
    rows = [folder.row(i) for i in range(2)]
    assert len(os.listdir("/proc/self/fd")) == before
    assert len(rows) == 2


def test_a_pickled_folder_gives_the_same_rows(tmp_path: Path) -> None:
    folder = Folder(write_ade20k(tmp_path), "train")
    again = pickle.loads(pickle.dumps(folder))
    assert [again.row(i) for i in range(3)] == [folder.row(i) for i in range(3)]
    assert again.where(2) == folder.where(2)
    assert again.scene_categories == folder.scene_categories


@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_loader_workers_give_the_rows_of_a_folder(start: str, tmp_path: Path) -> None:
    dataset = SceneParse150(write_pairs(tmp_path, *"abcdef"))
    loader = DataLoader(dataset, batch_size=2, num_workers=2, collate_fn=list, multiprocessing_context=start)
    loaded = [image.tobytes() + label_map.tobytes() for batch in loader for image, label_map in batch]
    assert loaded == [image.tobytes() + label_map.tobytes() for image, label_map in dataset]
    assert len(set(loaded)) == 6


def test_a_dataset_over_a_folder_has_slices_names_and_places(tmp_path: Path) -> None:
    dataset = SceneParse150(write_ade20k(tmp_path), "train[1:]+validation[:1]")
    assert [dataset.name(i) for i in range(3)] == ["ADE_train_00000002", "ADE_train_00000003", "ADE_val_00000001"]
    assert str(tmp_path / "images/training/ADE_train_00000003.jpg") in dataset.where(1)


def test_a_row_that_breaks_the_rule_is_named_by_its_file(tmp_path: Path) -> None:
    write_pairs(tmp_path, "a", "b")
    write(tmp_path / "annotations/b.png", encode(Image.new("L", (7, 5), 151)))
    dataset = SceneParse150(tmp_path)
    with pytest.raises(ValueError, match=rf"label map of {tmp_path / 'images/b.jpg'} holds 151; its classes are 0"):
        dataset[1]


# Mistakes


def named(tmp_path: Path, kind: str, names: list[str], count: int) -> str:
    kind = kind.replace(" ", "s ", 1) if count > 1 else kind
    return re.escape(f"{count} {kind} ({', '.join(names)}{', ...' if count > len(names) else ''})")


@pytest.mark.parametrize("count", [1, 3, 4, 20])
def test_images_without_annotation_are_counted_and_the_first_named(count: int, tmp_path: Path) -> None:
    write_pairs(tmp_path, *(f"{i:02d}" for i in range(count)), "pair")
    for i in range(count):
        (tmp_path / f"annotations/{i:02d}.png").unlink()
    first = [f"{i:02d}.jpg" for i in range(min(count, 3))]
    with pytest.raises(ValueError, match=named(tmp_path, "image without annotation", first, count)) as refusal:
        Folder(tmp_path, "train")
    assert str(tmp_path / "images") in str(refusal.value)
    assert str(tmp_path / "annotations") in str(refusal.value)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("count", [1, 3, 4, 20])
def test_annotations_without_image_are_counted_and_the_first_named(count: int, tmp_path: Path) -> None:
    write_pairs(tmp_path, *(f"s/{i:02d}" for i in range(count)), "pair", split="val")
    for i in range(count):
        (tmp_path / f"images/val/s/{i:02d}.jpg").unlink()
    first = [f"s/{i:02d}.png" for i in range(min(count, 3))]
    with pytest.raises(ValueError, match=named(tmp_path, "annotation without image", first, count)):
        Folder(tmp_path, "validation")


def test_all_that_is_wrong_with_the_names_is_said_at_once(tmp_path: Path) -> None:
    write_pairs(tmp_path, "a", "b", "c", "d")
    (tmp_path / "annotations/a.png").rename(tmp_path / "annotations/a_mask.png")
    write(tmp_path / "images/b.PNG", photo(2, "PNG"))
    write(tmp_path / "annotations/c.tif", b"")
    (tmp_path / "annotations/d.png").rename(tmp_path / "annotations/d.jpg")
    with pytest.raises(ValueError, match="images and ") as refusal:
        Folder(tmp_path, "train")
    for part in (
        "1 image in files that differ only in their ending (b.PNG and b.jpg)",
        "1 annotation in files that differ only in their ending (c.png and c.tif)",
        "1 image without annotation (a.jpg)",
        "1 annotation without image (a_mask.png)",
        "1 annotation in another form than PNG, BMP or TIFF, which alone keep class ids (d.jpg)",
        "an image and its annotation have the same path and name, but for the ending",
    ):
        assert part in str(refusal.value)


@pytest.mark.parametrize(
    ("files", "todo"),
    [
        (["images/a.jpg", "annotations/instances_train.json"], "(instances_train.json), must be drawn as PNG"),
        (["images/a.jpg", "annotations/a.xml"], "(a.xml), must be drawn as PNG label maps first"),
        (["images/a.jpg", "labels/a.txt"], "(a.txt), must be drawn as PNG label maps first"),
        (["a.jpg", "a.json"], "(a.json), must be drawn as PNG label maps first"),
        (["all.zip"], "; unpack all.zip first"),
    ],
)
def test_archives_and_outlines_are_refused_with_what_to_do_first(files: list[str], todo: str, tmp_path: Path) -> None:
    for file in files:
        write(tmp_path / file, photo(1) if file.endswith("jpg") else b"{}")
    with pytest.raises((ValueError, FileNotFoundError), match=re.escape(todo)):
        open_rows(str(tmp_path), "train")


@pytest.mark.parametrize("files", [["README.txt", "dataset_info.json"], ["images/a.jpg", "annotations/b.json"]])
def test_other_files_are_not_taken_for_archives_or_outlines(files: list[str], tmp_path: Path) -> None:
    for file in files:
        write(tmp_path / file, photo(1) if file.endswith("jpg") else b"{}")
    with pytest.raises((ValueError, FileNotFoundError)) as refusal:
        open_rows(str(tmp_path), "train")
    assert not re.search("drawn|unpack", str(refusal.value))


def test_images_that_differ_only_in_their_ending_are_refused_without_annotations_too(tmp_path: Path) -> None:
    write_test_split(write_ade20k(tmp_path))
    write(tmp_path / "images/test/ADE_test_00000001.png", photo(1, "PNG"))
    with pytest.raises(ValueError, match=r"ADE_test_00000001\.jpg and ADE_test_00000001\.png"):
        Folder(tmp_path, "test")


@pytest.mark.parametrize("ending", ["jpg", "webp", "gif", "npy"])
def test_annotations_in_a_form_that_loses_class_ids_are_refused_by_name(ending: str, tmp_path: Path) -> None:
    write_pairs(tmp_path, "a")
    (tmp_path / "annotations/a.png").rename(tmp_path / f"annotations/a.{ending}")
    with pytest.raises(
        ValueError, match=rf"another form than PNG, BMP or TIFF, which alone keep class ids \(a\.{ending}\)"
    ):
        Folder(tmp_path, "train")


def test_pictures_beside_the_label_maps_do_no_harm(tmp_path: Path) -> None:
    write_pairs(tmp_path, "a")
    write(tmp_path / "annotations/a.jpg", photo(1))
    write(tmp_path / "annotations/a.json", b"{}")
    assert paths(Folder(tmp_path, "train")) == [("a.jpg", "a.png")]


@pytest.mark.parametrize("missing", ["images", "annotations"])
@pytest.mark.parametrize("call", [folder_splits, lambda root: Folder(root, "train")])
def test_a_folder_without_images_or_annotations_is_refused_with_what_it_lacks(
    missing: str, call: Callable[[Path], object], tmp_path: Path
) -> None:
    shutil.rmtree(write_pairs(tmp_path, "a") / missing)
    with pytest.raises(FileNotFoundError, match=f"^{tmp_path} has no {missing}/; "):
        call(tmp_path)


def test_a_folder_that_is_not_there_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=re.escape(str(tmp_path / "nowhere"))):
        Folder(tmp_path / "nowhere", "train")


def test_a_folder_without_any_image_is_refused_with_the_endings_of_images(tmp_path: Path) -> None:
    write(tmp_path / "images/a.heic", b"")
    write(tmp_path / "annotations/a.png", labels(1))
    with pytest.raises(FileNotFoundError, match=rf"no image under {tmp_path / 'images'}; .*\.jpg \.jpeg \.png"):
        Folder(tmp_path, "train")


def test_images_without_splits_need_annotations(tmp_path: Path) -> None:
    write_pairs(tmp_path, "a")
    (tmp_path / "annotations/a.png").unlink()
    with pytest.raises(ValueError, match=r"1 image without annotation \(a\.jpg\)"):
        Folder(tmp_path, "train")


def test_a_split_that_is_not_there_is_refused_with_those_that_are(tmp_path: Path) -> None:
    write_ade20k(tmp_path)
    for opened in (Folder, SceneParse150):
        with pytest.raises(ValueError, match=f"{tmp_path} has no split 'test'; it has train, validation"):
            opened(tmp_path, "test")


def unannotated_splits(root: Path) -> None:
    shutil.rmtree(root / "annotations")
    write(root / "annotations/ADE_train_00000001.png", labels(1))


@pytest.mark.parametrize(
    ("mistake", "message"),
    [
        (
            lambda root: write(root / "images/stray.jpg", b""),
            "images has the splits training, validation and .* stray.jpg;",
        ),
        (
            lambda root: write(root / "images/extra/a.jpg", b""),
            "images has the splits training, validation and .* extra;",
        ),
        (lambda root: write(root / "annotations/a.png", b""), "annotations has the splits training, .* and .* a.png;"),
        (
            lambda root: write(root / "images/train/a.jpg", b""),
            "images has train, training, validation, two of which mean",
        ),
        (lambda root: shutil.rmtree(root / "images/validation"), "has the splits train, but .* has train, validation;"),
        (unannotated_splits, "images has the splits train, validation, but .*annotations has none; give both the same"),
    ],
)
def test_split_folders_that_contradict_each_other_are_refused(
    mistake: Callable[[Path], object], message: str, tmp_path: Path
) -> None:
    mistake(write_ade20k(tmp_path))
    with pytest.raises(ValueError, match=message):
        folder_splits(tmp_path)
    with pytest.raises(ValueError, match=message):
        Folder(tmp_path, "train")


@contextmanager
def ordinary_user() -> Iterator[None]:
    """Without the rights of root, if this is root, for whom all folders are readable."""
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(user)


@pytest.mark.parametrize("locked", ["images", "images/sub", "annotations/sub"])
def test_a_folder_that_cannot_be_listed_is_refused_by_name(locked: str) -> None:
    with tempfile.TemporaryDirectory() as name:  # that of pytest is closed to other users
        root = write_pairs(Path(name), "a", "sub/b")
        for folder in [root, *filter(Path.is_dir, root.rglob("*"))]:
            folder.chmod(0o755)
        (root / locked).chmod(0o311)
        try:
            with ordinary_user(), pytest.raises(PermissionError, match=f"^folder {root / locked} cannot be listed"):
                Folder(root, "train")
        finally:
            (root / locked).chmod(0o755)


def test_a_link_to_the_folder_around_it_is_no_endless_walk(tmp_path: Path) -> None:
    write_pairs(tmp_path, "sub/a")
    (tmp_path / "images/sub/around").symlink_to(tmp_path / "images")
    assert len(SceneParse150(tmp_path)) == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a bath\nb\n", "line 2 of {} has 1 word; it takes an image's name and its category"),
        (b"a bath room\n", "line 1 of {} has 3 words"),
        (b"a b\xe9\n", "{} is not UTF-8 text"),
    ],
)
def test_scene_categories_that_break_a_rule_are_refused_by_line(content: bytes, message: str, tmp_path: Path) -> None:
    write_pairs(tmp_path, "a")
    path = write(tmp_path / "sceneCategories.txt", content)
    with pytest.raises(ValueError, match=message.format(path)):
        Folder(tmp_path, "train")


# To shards


def load(out: Path, cache: Path) -> datasets.DatasetDict:
    files = {folder.name: str(folder / "*.parquet") for folder in out.iterdir() if folder.is_dir()}
    return datasets.load_dataset("parquet", data_files=files, cache_dir=str(cache))


def files_in(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("rule", [None, SCENE_PARSE_LABELS])
@pytest.mark.parametrize(("rows_per_shard", "train_shards"), [(1, 3), (2, 2), (3, 1), (10_000, 1)])
def test_shards_of_a_folder_open_in_datasets_with_its_pixels(
    rule: LabelRule | None, rows_per_shard: int, train_shards: int, tmp_path: Path
) -> None:
    root, out = write_test_split(write_ade20k(tmp_path / "in")), tmp_path / "deep/out"
    assert folders_to_shards(root, out, rule, rows_per_shard) == {"train": 3, "validation": 2, "test": 1}
    assert [file for file in files_in(out) if "train" in file] == [
        f"train/{i:04d}.parquet" for i in range(train_shards)
    ]
    loaded = load(out, tmp_path / "cache")
    assert {split: len(rows) for split, rows in loaded.items()} == {"train": 3, "validation": 2, "test": 1}
    for split in ("train", "validation", "test"):
        folder = Folder(root, split)
        assert loaded[split].features["scene_category"].names == folder.scene_categories
        for row, expected in enumerate(folder.row(i) for i in range(folder.num_rows)):
            found = loaded[split][row]
            assert same_pixels(found["image"], expected["image"]["bytes"])
            assert found["scene_category"] == expected["scene_category"]
            if expected["annotation"] is None:
                assert found["annotation"] is None
            else:
                assert same_pixels(found["annotation"], expected["annotation"]["bytes"])


def test_the_shards_give_the_items_that_the_folder_gives(tmp_path: Path) -> None:
    root, out = write_test_split(write_ade20k(tmp_path / "in")), tmp_path / "out"
    folders_to_shards(root, out, rows_per_shard=2)
    for split in ("train", "validation", "test"):
        there, here = SceneParse150(out, split), SceneParse150(root, split)
        assert len(there) == len(here)
        for i in range(len(here)):
            assert there[i] == here[i]
            assert (there.name(i), there.scene_category(i)) == (here.name(i), here.scene_category(i))


def test_the_shards_hold_the_bytes_of_the_files(tmp_path: Path) -> None:
    root = write_ade20k(tmp_path / "in")
    folders_to_shards(root, tmp_path / "out")
    rows = pq.read_table(tmp_path / "out/train/0000.parquet").to_pylist()
    assert rows == [Folder(root, "train").row(i) for i in range(3)]


@pytest.mark.real_data
def test_real_photos_go_through_a_folder_and_shards_unchanged(real_shards: Path, tmp_path: Path) -> None:
    shard = real_shards / "scene_parsing/validation/0000.parquet"
    expected = pq.read_table(shard).to_pylist()
    for row in expected:
        write(tmp_path / ADE20K / "images/validation" / row["image"]["path"], row["image"]["bytes"])
        write(tmp_path / ADE20K / "annotations/validation" / row["annotation"]["path"], row["annotation"]["bytes"])
    folders_to_shards(tmp_path, tmp_path / "out", SCENE_PARSE_LABELS, rows_per_shard=4)
    loaded = load(tmp_path / "out", tmp_path / "cache")["validation"]
    assert len(loaded) == len(expected) > 0
    for found, row in zip(loaded, sorted(expected, key=lambda row: row["image"]["path"]), strict=True):
        assert same_pixels(found["image"], row["image"]["bytes"])
        assert same_pixels(found["annotation"], row["annotation"]["bytes"])


def test_masks_and_palettes_go_into_shards_and_come_out_as_their_rule_says(tmp_path: Path) -> None:
    mask = np.random.default_rng(0).random((5, 7)) > 0.5
    palette = Image.fromarray(mask.astype(np.uint8))
    palette.putpalette([9, 9, 9, 200, 0, 0])
    pictures = (Image.fromarray(mask), Image.fromarray(mask.astype(np.uint8) * 255), palette)
    assert [picture.mode for picture in pictures] == ["1", "L", "P"]
    for number, picture in enumerate(pictures):
        write(tmp_path / f"in/images/{number}.jpg", photo(number))
        write(tmp_path / f"in/annotations/{number}.png", encode(picture))
    rule = LabelRule(num_labels=2, reduce_labels=False, binary=True)
    folders_to_shards(tmp_path / "in", tmp_path / "out", rule)
    for source in (tmp_path / "in", tmp_path / "out"):
        dataset = SceneParse150(source, label_rule=rule)
        assert [np.asarray(dataset[i][1]).tolist() for i in range(3)] == [mask.astype(np.uint8).tolist()] * 3


def test_a_folder_without_scene_categories_makes_shards_that_open_in_datasets(tmp_path: Path) -> None:
    folders_to_shards(write_pairs(tmp_path / "in", "a"), tmp_path / "out")
    assert load(tmp_path / "out", tmp_path / "cache")["train"][0]["scene_category"] is None


def test_a_name_that_is_not_utf8_does_not_stop_the_shard(tmp_path: Path) -> None:
    for folder, content in (("images", photo(1)), ("annotations", labels(1))):
        name = b"caf\xe9" + (b".jpg" if folder == "images" else b".png")
        write(Path(os.fsdecode(os.fsencode(tmp_path / "in" / folder) + b"/" + name)), content)
    folders_to_shards(tmp_path / "in", tmp_path / "out")
    assert SceneParse150(tmp_path / "out").name(0) == "caf\ufffd"


def spoil(root: Path, *numbers: int) -> list[str]:
    """Break rows in several ways; the message of each."""
    messages = []
    for number in numbers:
        image, annotation = root / f"images/{number:02d}.jpg", root / f"annotations/{number:02d}.png"
        if number % 4 == 0:
            image.write_bytes(b"no picture")
            formats = "JPEG or PNG or BMP or WEBP or TIFF or GIF"
            messages.append(f"image of {image} does not decode (UnidentifiedImageError); it must be {formats}")
        elif number % 4 == 1:
            annotation.write_bytes(encode(Image.new("L", (7, 5), 200)))
            messages.append(f"label map of {image} holds 200; its classes are 0 (other) to 150")
        elif number % 4 == 2:
            annotation.write_bytes(encode(Image.new("L", (5, 7))))
            sizes = "is (5, 7) but its image (7, 5) (width, height); bring them to one size"
            messages.append(f"annotation of {image} {sizes}, the label map by nearest neighbour")
        else:
            annotation.write_bytes(annotation.read_bytes()[:50])
            messages.append(f"annotation of {image} does not decode (OSError)")
    return messages


def test_the_check_names_every_bad_row_and_nothing_is_written(tmp_path: Path) -> None:
    root = write_pairs(tmp_path / "in", *(f"{i:02d}" for i in range(12)))
    messages = spoil(root, 0, 1, 6, 11)
    with pytest.raises(ValueError, match="does not decode") as refusal:
        folders_to_shards(root, tmp_path / "out", SCENE_PARSE_LABELS)
    assert str(refusal.value).splitlines() == messages
    assert not (tmp_path / "out").exists()


def test_the_check_stops_at_ten_bad_rows(tmp_path: Path) -> None:
    root = write_pairs(tmp_path / "in", *(f"{i:02d}" for i in range(14)))
    messages = spoil(root, *range(1, 13))
    with pytest.raises(ValueError, match="does not decode") as refusal:
        folders_to_shards(root, tmp_path / "out", SCENE_PARSE_LABELS)
    assert str(refusal.value).splitlines() == [*messages[:10], "these are the first 10; there may be more"]


def test_without_a_rule_nothing_is_decoded(tmp_path: Path) -> None:
    root = write_pairs(tmp_path / "in", *(f"{i:02d}" for i in range(4)))
    spoil(root, 0, 1, 2, 3)
    assert folders_to_shards(root, tmp_path / "out") == {"train": 4}


@pytest.mark.parametrize("kind", ["file", "full"])
def test_an_out_that_is_not_an_empty_folder_is_refused_and_stays(kind: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    kept = write(out if kind == "file" else out / "kept.txt", b"mine")
    with pytest.raises(ValueError, match=f"^{out} is there and not an empty folder; name another"):
        folders_to_shards(write_pairs(tmp_path / "in", "a"), out)
    assert kept.read_bytes() == b"mine"


def test_an_empty_out_is_filled(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    folders_to_shards(write_pairs(tmp_path / "in", "a"), tmp_path / "out")
    assert files_in(tmp_path / "out") == ["train/0000.parquet"]


def test_a_shard_of_no_rows_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="rows_per_shard is 0; a shard has at least one row"):
        folders_to_shards(write_pairs(tmp_path / "in", "a"), tmp_path / "out", rows_per_shard=0)


def test_a_disk_that_is_too_small_is_told_with_the_size_before_anything_is_read(tmp_path: Path) -> None:
    root, out = write_pairs(tmp_path / "in", "a", "b"), tmp_path / "out"
    (root / "images/a.jpg").unlink()
    (root / "images/a.jpg").symlink_to(UNREADABLE)
    needed = shutil.disk_usage(tmp_path).free + 2**36
    os.truncate(root / "images/b.jpg", needed)  # sparse: it takes no room here
    with pytest.raises(OSError, match=rf"cannot write {out}: [\d.]+ MiB are free, and its files take ") as refusal:
        folders_to_shards(root, out)
    told = re.search(r"files take ([\d.]+) MiB", str(refusal.value))
    assert told is not None
    assert float(told[1]) == pytest.approx(needed / 2**20, abs=0.1)
    assert not out.exists()


@pytest.mark.parametrize("out_was_there", [False, True])
def test_an_error_in_a_later_shard_leaves_none_of_the_earlier(out_was_there: bool, tmp_path: Path) -> None:
    root, out = write_pairs(tmp_path / "in", *"abcdef"), tmp_path / "out"
    (root / "images/f.jpg").unlink()
    (root / "images/f.jpg").symlink_to(UNREADABLE)
    if out_was_there:
        out.mkdir()
    with pytest.raises(OSError, match="Input/output error"):
        folders_to_shards(root, out, rows_per_shard=2)
    assert out.exists() is out_was_there
    assert not out_was_there or not any(out.iterdir())


def long_names(root: Path) -> Path:
    """Small files with long names, so that the shard is much larger than the files of which it is made."""
    return write_pairs(root, *(f"{i:0200d}" for i in range(600)))


MOUNTED = """
mount -t tmpfs -o size=700k tmpfs {disk} || exit 77
{python} -m data.folders {source} {disk}/out --no-check
code=$?
find {disk} -mindepth 1
exit $code
"""


@pytest.mark.skipif(shutil.which("unshare") is None, reason="needs unshare to mount a small disk")
def test_a_disk_that_fills_up_is_one_line_with_the_size_and_is_left_empty(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    source = long_names(tmp_path / "in")
    script = MOUNTED.format(disk=tmp_path / "disk", python=sys.executable, source=source)
    done = subprocess.run(["unshare", "-m", "sh", "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=120)
    if done.returncode == 77 or "unshare" in done.stderr:
        pytest.skip("mounting a small disk is not allowed here")
    assert done.returncode == 1
    assert re.search(r"cannot write .*/out: No space left on device, and its files take 0\.\d MiB", done.stderr)
    assert done.stdout == ""


# The command


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return programs.run("-m", "data.folders", *arguments)


def test_the_command_writes_shards_says_how_many_rows_and_nothing_else(tmp_path: Path) -> None:
    root, out = write_ade20k(tmp_path / "in"), tmp_path / "out"
    done = run(root, out, "--rows-per-shard", "2")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        f"train: 3 rows in {out / 'train'}",
        f"validation: 2 rows in {out / 'validation'}",
    ]
    assert files_in(out) == [
        "objectInfo150.txt", "train/0000.parquet", "train/0001.parquet", "validation/0000.parquet"
    ]  # fmt: skip
    assert done.stderr == ""


def test_files_that_name_the_classes_go_along(tmp_path: Path) -> None:
    colours = {"sky": (0, 0, 255), "road": (128, 64, 128)}
    for number in range(2):
        painted = np.array([[colours["sky"], colours["road"]]], np.uint8)
        write(tmp_path / f"in/images/{number}.png", encode(Image.new("RGB", (2, 1))))
        write(tmp_path / f"in/masks/{number}.png", encode(Image.fromarray(painted)))
    lines = [f"{name},{r},{g},{b}" for name, (r, g, b) in colours.items()]
    write(tmp_path / "in/class_dict.csv", "\n".join(["name,r,g,b", *lines]).encode())
    write(tmp_path / "in/id2label.json", b'["sky", "road"]')
    done = run(tmp_path / "in", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert files_in(tmp_path / "out") == ["class_dict.csv", "id2label.json", "train/0000.parquet"]
    before, after = (understand(SceneParse150(tmp_path / name)) for name in ("in", "out"))
    assert (before.rule, before.id2label) == (after.rule, after.id2label)
    assert list(after.id2label.values()) == ["sky", "road"]


def test_label_maps_that_a_class_file_explains_are_still_decoded_before_anything_is_written(tmp_path: Path) -> None:
    root = write_pairs(tmp_path / "in", "a", "b")
    write(root / "id2label.json", b'["sky", "road"]')
    write(root / "annotations/b.png", b"no picture")
    done = run(root, tmp_path / "out")
    assert done.returncode == 1
    assert "annotation of" in done.stderr
    assert not (tmp_path / "out").exists()


def test_a_terminal_sees_the_progress_of_checking_and_writing(tmp_path: Path) -> None:
    root = write_ade20k(tmp_path / "in")
    terminal, end = pty.openpty()
    termios.tcsetwinsize(end, (24, 100))
    assert programs.start("-m", "data.folders", root, tmp_path / "out", stderr=end).wait(120) == 0
    os.close(end)
    shown = os.read(terminal, 100_000).decode()
    os.close(terminal)
    assert re.search(r"checking: 100%.* 5/5 ", shown)
    assert re.search(r"writing: 100%.* 5/5 ", shown)


def test_the_command_ends_with_one_line_for_a_file_system_that_takes_no_more(tmp_path: Path) -> None:
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))

    root = long_names(tmp_path / "in")
    command = [sys.executable, "-m", "data.folders", str(root), str(tmp_path / "out"), "--no-check"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, preexec_fn=limit)
    assert done.returncode == 1
    assert re.search(r"^error: .*cannot write .*/out: File too large, and its files take 0\.\d MiB", done.stderr, re.M)
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


def test_an_interrupt_is_one_line_and_leaves_no_shard(tmp_path: Path) -> None:
    root, out = write_pairs(tmp_path / "in", "a"), tmp_path / "out"
    os.mkfifo(root / "images/b.jpg")  # reading it waits for ever
    write(root / "annotations/b.png", labels(1))
    process = programs.start("-m", "data.folders", root, out, "--no-check")
    try:
        deadline = time.monotonic() + 60
        while not list(out.rglob("*.unfinished")) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert files_in(out) == ["train/0000.unfinished"]
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130
    assert said.splitlines()[-1] == "interrupted; no shard was kept"
    assert "Traceback" not in said
    assert not out.exists()


def call(monkeypatch: pytest.MonkeyPatch, *arguments: str | Path) -> int:
    monkeypatch.setattr(sys, "argv", ["data.folders", *map(str, arguments)])
    return main()


def prepare_nothing(root: Path) -> None:
    shutil.rmtree(root)


def prepare_unpaired(root: Path) -> None:
    (root / "annotations/a.png").unlink()


@pytest.mark.parametrize(
    ("prepare", "flags", "message"),
    [
        (prepare_nothing, [], "error: {root} has no images/; "),
        (prepare_unpaired, [], "error: {root}/images and {root}/annotations: 1 image without annotation (a.jpg); "),
        (lambda root: None, ["--num-labels", "0"], "error: num_labels is 0; it must be 1 to 254"),
        (
            lambda root: None,
            ["--num-labels", "3", "--binary-masks"],
            "error: num_labels is 3 but binary masks have two",
        ),
        (lambda root: None, ["--binary-masks", "--ignore-index", "255"], "error: ignore_index is 255 but in binary"),
        (lambda root: None, ["--rows-per-shard", "0"], "error: rows_per_shard is 0; "),
        (lambda root: None, ["--num-labels", "2"], "error: label map of {root}/images/a.jpg holds "),
    ],
)
def test_every_mistake_is_one_line_and_exit_code_1(
    prepare: Callable[[Path], None],
    flags: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    root = write_pairs(tmp_path / "in", "a")
    prepare(root)
    assert call(monkeypatch, root, tmp_path / "out", *flags) == 1
    said = capsys.readouterr()
    assert said.err.startswith(message.format(root=root))
    assert len(said.err.splitlines()) == 1
    assert said.out == ""
    assert not (tmp_path / "out").exists()


def test_several_bad_rows_are_a_line_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root = write_pairs(tmp_path / "in", *(f"{i:02d}" for i in range(6)))
    messages = spoil(root, 0, 2, 3)
    assert call(monkeypatch, root, tmp_path / "out") == 1
    assert capsys.readouterr().err.splitlines() == [f"error: {message}" for message in messages]


@pytest.mark.parametrize(
    ("values", "flags", "fits"),
    [
        ([0, 150, 255], [], True),
        ([0, 151], [], False),
        ([0, 254], ["--ignore-index", "254"], True),
        ([255], ["--ignore-index", "254"], False),
        ([0, 5], ["--num-labels", "5"], True),
        ([0, 5], ["--num-labels", "5", "--no-reduce-labels"], False),
        ([0, 4, 255], ["--num-labels", "5", "--no-reduce-labels"], True),
        ([0, 4, 255], ["--binary-masks"], True),
        ([0, 151], ["--no-check"], True),
    ],
)
def test_the_flags_say_what_label_maps_may_hold(
    values: list[int],
    flags: list[str],
    fits: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    write(tmp_path / "in/images/a.png", encode(Image.new("RGB", (len(values), 1))))
    write(tmp_path / "in/annotations/a.png", encode(Image.fromarray(np.array([values], np.uint8))))
    assert call(monkeypatch, tmp_path / "in", tmp_path / "out", *flags) == (0 if fits else 1), capsys.readouterr().err
