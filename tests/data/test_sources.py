"""Which files make up a split: nothing is mixed in silence, whatever the layout."""

from __future__ import annotations

import io
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from data import SceneParse150
from data.sources.shards import Shard, write_shard


def encoded(image: Image.Image, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


def make_shard(path: Path, count: int = 2, kind: str = "PNG", label_kind: str = "PNG") -> Path:
    photo, label_map = encoded(Image.new("RGB", (8, 8), (9, 9, 9)), kind), Image.new("L", (8, 8), 1)
    files = {"bytes": photo, "path": "a"}, {"bytes": encoded(label_map, label_kind), "path": "a"}
    write_shard(path, ({"image": files[0], "annotation": files[1], "scene_category": 0} for _ in range(count)), [])
    return path


@pytest.mark.parametrize(
    ("train", "validation"),
    [
        ("train/0000.parquet", "valid/0000.parquet"),
        ("train.parquet", "dev.parquet"),
        ("Train/0000.parquet", "Validation/0000.parquet"),
        ("train2017.parquet", "val2017.parquet"),
        ("ade-train.parquet", "ade-val.parquet"),
        ("train/part-0/0.parquet", "validation/part-0/0.parquet"),
        ("default/partial-train/0000.parquet", "default/partial-validation/0000.parquet"),
        ("train-00000-of-00001.parquet", "eval-00000-of-00001.parquet"),
    ],
)
def test_no_layout_mixes_validation_rows_into_training(train: str, validation: str, tmp_path: Path) -> None:
    make_shard(tmp_path / train, 3)
    make_shard(tmp_path / validation, 2)
    assert len(SceneParse150(tmp_path, "train")) == 3
    assert len(SceneParse150(tmp_path, "validation")) == 2


@pytest.mark.parametrize("stray", ["held_out/0000.parquet", "extra.parquet"])
def test_files_of_no_known_split_beside_others_are_refused(stray: str, tmp_path: Path) -> None:
    make_shard(tmp_path / "train/0000.parquet")
    make_shard(tmp_path / stray)
    with pytest.raises(ValueError, match=rf"{stray} belongs to no split that is known"):
        SceneParse150(tmp_path, "train")


def test_a_name_that_contradicts_its_folder_is_refused(tmp_path: Path) -> None:
    make_shard(tmp_path / "train/validation-0.parquet")
    with pytest.raises(ValueError, match="named after two splits, train and validation"):
        SceneParse150(tmp_path, "train")


@pytest.mark.parametrize("below", ["{}/train/0000.parquet", "{}/train-00000-of-00001.parquet"])
def test_configurations_are_not_mixed(below: str, tmp_path: Path) -> None:
    for name in ("large", "small"):
        make_shard(tmp_path / below.format(name))
    with pytest.raises(ValueError, match=r"several configurations \(large, small\)"):
        SceneParse150(tmp_path, "train")
    assert len(SceneParse150(tmp_path / "small", "train")) == 2


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["train-00000-of-00002", "train-00002-of-00003"], "lacks train-00001-of-00002"),
        (["train-00001-of-00002"], "lacks train-00000-of-00002"),
        (["train/0001"], "lacks train/0000.parquet; it holds 1 of 2"),
        (["train-00000-of-00001", "train-00000-of-00002", "train-00001-of-00002"], "two sets of shards named train"),
    ],
)
def test_a_missing_or_doubled_shard_is_named(names: list[str], message: str, tmp_path: Path) -> None:
    for name in names:
        make_shard(tmp_path / f"{name}.parquet")
    with pytest.raises(ValueError, match=message):
        SceneParse150(tmp_path, "train")


def test_hidden_files_and_folders_called_like_shards_are_passed_over_and_links_followed(tmp_path: Path) -> None:
    make_shard(tmp_path / "elsewhere/0000.parquet")
    root = tmp_path / "data"
    (root / "x.parquet").mkdir(parents=True)
    (root / "train").symlink_to(tmp_path / "elsewhere")
    (root / "._train.parquet").write_bytes(b"of another system")
    assert len(SceneParse150(root, "train")) == 2


def test_a_file_with_signs_of_a_glob_in_its_name_is_a_source(tmp_path: Path) -> None:
    assert len(SceneParse150(make_shard(tmp_path / "train[1].parquet"), "train")) == 2


def test_a_source_without_a_name_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    make_shard(tmp_path / "train.parquet")
    with pytest.raises(ValueError, match="the dataset is named ''"):
        SceneParse150("", "train")


# Files that must not be opened


@pytest.mark.parametrize("kind", ["EPS", "PDF", "ICO"])
def test_photos_of_other_formats_are_not_opened(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "gs").write_text(f"#!/bin/sh\ntouch {tmp_path}/ran\n")
    (tmp_path / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    make_shard(tmp_path / "train.parquet", kind=kind)
    with pytest.raises(ValueError, match=r"image of row 0 in .*train.parquet does not decode"):
        SceneParse150(tmp_path, "train")[0]
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("kind", ["JPEG", "GIF", "WEBP"])
def test_label_maps_in_formats_that_change_class_ids_are_refused(kind: str, tmp_path: Path) -> None:
    make_shard(tmp_path / "train.parquet", label_kind=kind)
    with pytest.raises(ValueError, match=r"annotation of row 0 .* does not decode .* it must be PNG or BMP or TIFF"):
        SceneParse150(tmp_path, "train")[0]


# Shards that change or weigh too much


def test_a_shard_that_is_replaced_while_it_is_read_is_not_mixed_with_the_new_one(tmp_path: Path) -> None:
    path = make_shard(tmp_path / "train.parquet")
    shard = Shard(path)
    make_shard(tmp_path / "other.parquet", 3).replace(path)
    shard._file = None  # as in a worker, which opens it for itself
    with pytest.raises(ValueError, match="has changed since it was opened; start again"):
        shard.row(0)


def test_heavy_row_groups_are_prepared_however_few(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    weight = {"bytes": bytes(2**20), "path": "a"}
    rows = [{"image": weight, "annotation": None, "scene_category": 0} for _ in range(70)]
    table = pa.Table.from_pylist(rows, pq.read_schema(make_shard(tmp_path / "schema.parquet")))
    pq.write_table(table, tmp_path / "train.parquet", compression="zstd", use_dictionary=False)
    SceneParse150(tmp_path / "train.parquet", "train[:1]")
    assert len(list((tmp_path / "home").rglob("*.arrow"))) == 1


@pytest.mark.parametrize("broken", ["two columns", "text for bytes"])
def test_shards_of_another_form_are_refused_by_name(broken: str, tmp_path: Path) -> None:
    file = pa.array([{"bytes": b"a", "path": "a"}])
    if broken == "two columns":
        table = pa.Table.from_arrays([file, file, file], names=["image", "image", "annotation"])
    else:
        text = pa.array([{"bytes": "a", "path": "a"}])
        table = pa.Table.from_arrays([text, file], names=["image", "annotation"])
    pq.write_table(table, tmp_path / "train.parquet")
    with pytest.raises(ValueError, match=r"train.parquet has the columns .* a shard needs image and annotation"):
        SceneParse150(tmp_path, "train")
