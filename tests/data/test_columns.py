"""Columns of photos and label maps under any names, found or refused with the candidates; class names beside them."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from libraries import datasets
from PIL import Image

from data import SceneParse150
from data.labels import LabelRule

FILE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
RULE = LabelRule(35, reduce_labels=False, ignore_index=(0, 255))


def encode(picture: Image.Image, form: str = "PNG") -> bytes:
    stream = io.BytesIO()
    picture.save(stream, form)
    return stream.getvalue()


def photo(number: int = 1) -> bytes:
    return encode(Image.fromarray(np.random.default_rng(number).integers(0, 256, (9, 12, 3), dtype=np.uint8)))


def labels(number: int = 1) -> bytes:
    return encode(Image.fromarray(np.random.default_rng(number).integers(0, 35, (9, 12), dtype=np.uint8)))


def write(path: Path, columns: dict[str, bytes], features: dict[str, Any] | None = None, binary: bool = False) -> Path:
    """A parquet file of one row with these files in its columns."""
    kind = pa.binary() if binary else FILE
    table = pa.table(
        {name: pa.array([file if binary else {"bytes": file, "path": "x"}], kind) for name, file in columns.items()}
    )
    if features is not None:
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path)
    return path


def opened(path: Path, **options: Any) -> tuple[np.ndarray, np.ndarray]:
    image, label_map = SceneParse150(path, "train", RULE.__class__(35, False), **options)[0]
    assert label_map is not None
    return np.asarray(image), np.asarray(label_map)


def is_the_pair(found: tuple[np.ndarray, np.ndarray]) -> bool:
    image, label_map = (np.asarray(Image.open(io.BytesIO(file))) for file in (photo(), labels()))
    return np.array_equal(found[0], image) and np.array_equal(found[1], label_map)


@pytest.mark.parametrize("binary", [False, True], ids=["files", "bytes"])
@pytest.mark.parametrize(
    ("image", "label"),
    [
        ("pixel_values", "label"),
        ("image", "mask"),
        ("image", "semantic_segmentation"),
        ("img", "labels"),
        ("Photo", "Ground Truth"),
        ("image", "annotation"),
        ("label_image", "photo_of_it"),
    ],
)
def test_columns_are_found_by_their_names_in_any_order(image: str, label: str, binary: bool, tmp_path: Path) -> None:
    if image == "label_image":  # names that say nothing: the files do
        image, label = "x", "y"
    for order in ((image, label), (label, image)):
        files = {image: photo(), label: labels()}
        path = write(tmp_path / "train.parquet", {name: files[name] for name in order}, binary=binary)
        assert is_the_pair(opened(path))


def test_a_column_of_numbers_called_label_is_none_of_files(tmp_path: Path) -> None:
    table = pa.table(
        {
            "image": pa.array([{"bytes": photo(), "path": "x"}], FILE),
            "label": pa.array([3]),
            "mask": pa.array([{"bytes": labels(), "path": "x"}], FILE),
        }
    )
    pq.write_table(table, tmp_path / "train.parquet")
    assert is_the_pair(opened(tmp_path))


def test_the_metadata_tells_which_two_of_several_columns_are_images(tmp_path: Path) -> None:
    features = {"image": {"_type": "Image"}, "classes": {"_type": "Image"}, "model": {"_type": "Value"}}
    path = write(tmp_path / "train.parquet", {"image": photo(), "classes": labels(), "model": b"x"}, features)
    assert is_the_pair(opened(path))


@pytest.mark.parametrize("form", ["JPEG", "PNG"])
def test_the_first_files_tell_columns_whose_names_say_nothing(form: str, tmp_path: Path) -> None:
    encoded = encode(Image.open(io.BytesIO(photo())), form)
    path = write(tmp_path / "train.parquet", {"b": labels(), "a": encoded})
    image, label_map = opened(path)
    assert np.array_equal(image, np.asarray(Image.open(io.BytesIO(encoded))))
    assert np.array_equal(label_map, np.asarray(Image.open(io.BytesIO(labels()))))


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"image": 0, "label": 1, "mask": 1}, "several columns that may be meant: label, mask; --label-column names"),
        ({"photo": 0, "img": 0, "mask": 1}, "several columns that may be meant: photo, img; --image-column names"),
        ({"a": 0, "b": 0}, r"columns of files a, b, .*cannot be told; --image-column and --label-column name them"),
        ({"a": 1, "b": 1}, r"columns of files a, b, .*cannot be told"),
        ({"image": 0, "depth": 1}, "columns of files image, depth, .*cannot be told"),
        ({"image": 0, "instance_map": 1}, "columns of files image, instance_map, .*cannot be told"),
        ({"image": 0, "x": 1, "y": 1}, "columns of files image, x, y, .*cannot be told"),
        ({"image": 0}, "has the columns image; a shard needs image and annotation, or two under other names"),
    ],
)
def test_columns_that_cannot_be_told_are_refused_with_the_candidates(
    columns: dict[str, int], message: str, tmp_path: Path
) -> None:
    path = write(tmp_path / "train.parquet", {name: (photo(), labels())[kind] for name, kind in columns.items()})
    with pytest.raises(ValueError, match=rf"^{path} .*{message}"):
        opened(path)


def test_columns_that_are_named_decide(tmp_path: Path) -> None:
    files = {"image": photo(2), "view": photo(), "label": labels(2), "mask": labels()}
    path = write(tmp_path / "train.parquet", files)
    assert is_the_pair(opened(path, image_column="view", label_column="mask"))
    with pytest.raises(ValueError, match=r"--label-column is 'masks'; the columns of .* are image, view, label, mask$"):
        opened(path, label_column="masks")


def test_what_was_found_is_said(tmp_path: Path) -> None:
    path = write(tmp_path / "train.parquet", {"pixel_values": photo(), "label": labels()})
    assert SceneParse150(path).about.startswith(
        "photos from column pixel_values, label maps from label (--image-column"
    )
    assert SceneParse150(write(path, {"image": photo(), "annotation": labels()})).about == ""


def test_a_prepared_copy_of_some_columns_is_not_taken_for_that_of_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    rows = {"image": [photo()] * 20, "label": [labels(1)] * 20, "mask": [labels(2)] * 20}
    table = pa.table({name: pa.array(files, pa.binary()) for name, files in rows.items()})
    pq.write_table(table, tmp_path / "train.parquet", row_group_size=1)
    for _ in range(2):
        for column, number in (("label", 1), ("mask", 2)):
            dataset = SceneParse150(tmp_path / "train.parquet", "train", LabelRule(35, False), label_column=column)
            assert encode(dataset[19][1]) == encode(Image.open(io.BytesIO(labels(number))))
    assert len(list((tmp_path / "home").rglob("*.arrow"))) == 2


# What datasets saved


def dataset_of(count: int) -> datasets.Dataset:
    features = datasets.Features({"pixel_values": datasets.Image(), "label": datasets.Image()})
    columns = {
        "pixel_values": [Image.open(io.BytesIO(photo(i))) for i in range(count)],
        "label": [Image.open(io.BytesIO(labels(i))) for i in range(count)],
    }
    return datasets.Dataset.from_dict(columns, features=features)


def numbers(dataset: SceneParse150) -> list[int]:
    known = {np.asarray(Image.open(io.BytesIO(photo(i)))).tobytes(): i for i in range(9)}
    return [known[dataset[i][0].tobytes()] for i in range(len(dataset))]


@pytest.mark.parametrize("shards", [1, 3])
def test_a_dataset_that_was_saved_to_disk_opens(shards: int, tmp_path: Path) -> None:
    dataset_of(5).save_to_disk(tmp_path / "saved", num_shards=shards)
    assert numbers(SceneParse150(tmp_path / "saved", "train", LabelRule(35, False))) == list(range(5))


def test_the_splits_of_a_saved_dataset_open(tmp_path: Path) -> None:
    splits = {"train": dataset_of(3), "test2017": dataset_of(5).select([4, 2])}
    datasets.DatasetDict(splits).save_to_disk(tmp_path / "saved")
    rule = LabelRule(35, False)
    assert numbers(SceneParse150(tmp_path / "saved", "train[1:]", rule)) == [1, 2]
    assert numbers(SceneParse150(tmp_path / "saved", "test", rule)) == [4, 2]
    with pytest.raises(ValueError, match="has no split 'validation'; it has test, train"):
        SceneParse150(tmp_path / "saved", "validation")


def test_a_saved_dataset_that_lacks_a_file_or_is_damaged_is_refused(tmp_path: Path) -> None:
    dataset_of(5).save_to_disk(tmp_path / "saved")
    (file,) = (tmp_path / "saved").glob("*.arrow")
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=rf"{file} is damaged .*; save the dataset again"):
        SceneParse150(tmp_path / "saved")
    file.unlink()
    with pytest.raises(FileNotFoundError, match=rf"lacks {file.name}, which its state.json names"):
        SceneParse150(tmp_path / "saved")


# Names beside the data

NAMES = {str(k): ("unlabeled" if k == 0 else f"flat-{k}") for k in range(35)}


@pytest.mark.parametrize("place", ["id2label.json", "labels.json", "id2label.json and labels.json"])
def test_names_beside_the_shards_are_found(place: str, tmp_path: Path) -> None:
    write(tmp_path / "data/train-00000-of-00001.parquet", {"pixel_values": photo(), "label": labels()})
    for name in place.split(" and "):
        (tmp_path / name).write_text(json.dumps(NAMES))
    classes, said = SceneParse150(tmp_path).classes()
    assert classes is not None
    assert (list(classes.names), classes.first_id, said) == (list(NAMES.values()), 0, [])


def test_class_files_that_contradict_each_other_are_refused_by_name_and_class(tmp_path: Path) -> None:
    write(tmp_path / "train.parquet", {"image": photo(), "label": labels()})
    (tmp_path / "id2label.json").write_text(json.dumps(["sky", "road"]))
    (tmp_path / "labels.json").write_text(json.dumps(["road", "sky"]))
    with pytest.raises(
        ValueError, match=r"id2label.json and .*labels.json contradict .* names: class 0 is 'sky' and 'road'"
    ):
        SceneParse150(tmp_path).classes()


def test_a_file_that_only_may_be_one_of_classes_is_passed_over_aloud(tmp_path: Path) -> None:
    write(tmp_path / "train.parquet", {"image": photo(), "label": labels()})
    (tmp_path / "labels.json").write_text('{"images": [1, 2]}')
    classes, said = SceneParse150(tmp_path).classes()
    assert classes is None
    assert len(said) == 1
    assert "labels.json is passed over" in said[0]


def test_the_list_of_classes_in_the_features_names_them(tmp_path: Path) -> None:
    names = {"_type": "ClassLabel", "names": ["sky", "road"]}
    for feature in ({"_type": "Sequence", "feature": names}, {"_type": "List", "feature": names}, [names]):
        features = {"image": {"_type": "Image"}, "mask": {"_type": "Image"}, "classes": feature}
        path = write(tmp_path / "train.parquet", {"image": photo(), "mask": labels()}, features)
        classes, _ = SceneParse150(path).classes()
        assert classes is not None
        assert classes.names == ("sky", "road")
    features["classes"] = names  # of the whole photo
    assert SceneParse150(write(path, {"image": photo(), "mask": labels()}, features)).classes() == (None, [])
