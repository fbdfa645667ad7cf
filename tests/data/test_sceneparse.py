"""SceneParse150: the rows that datasets reads, from any layout and any shard, lazily, with faults named."""

from __future__ import annotations

import io
import os
import pickle
import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import programs
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from libraries import datasets
from orientations import ORIENTATION, UPRIGHT
from PIL import Image
from torch.utils.data import DataLoader

from data import SceneParse150, decoding, train_test_split
from data.labels import LabelRule
from data.sceneparse import whole_and_rows
from data.sources.shards import write_shard
from data.toy.scenes import SCENE_CATEGORIES as TOY_CATEGORIES
from data.toy.scenes import TOY_SPLITS

REPOSITORY = Path(__file__).resolve().parents[2]
SCENES = ("bathroom", "street", "zoo")
WIDTH, HEIGHT = 6, 4
STRUCT = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def encode(picture: Image.Image, form: str = "PNG", **options: Any) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, form, **options)
    return stream.getvalue()


def photo_array(number: int) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)


def label_array(number: int) -> np.ndarray:
    return np.random.default_rng((number, 1)).integers(0, 151, (HEIGHT, WIDTH), dtype=np.uint8)


def make_row(number: int, photo: bytes | None = None, annotation: bytes | None = None) -> dict[str, Any]:
    return {
        "image": {"bytes": photo or encode(Image.fromarray(photo_array(number))), "path": f"ADE_{number:08d}.png"},
        "annotation": {"bytes": annotation or encode(Image.fromarray(label_array(number))), "path": "label.png"},
        "scene_category": number % len(SCENES),
    }


def make_shard(path: Path, numbers: Sequence[int]) -> Path:
    write_shard(path, [make_row(number) for number in numbers], SCENES)
    return path


def one_row(folder: Path, photo: bytes | None = None, annotation: bytes | None = None) -> SceneParse150:
    write_shard(folder / "train.parquet", [make_row(0), make_row(1, photo, annotation)], SCENES)
    return SceneParse150(folder, "train[1:]")


def numbers_of(dataset: SceneParse150) -> list[int]:
    """The numbers that ``make_row`` was given for the rows of a dataset, read from their pixels."""
    known = {photo_array(number).tobytes(): number for number in range(40)}
    return [known[dataset[i][0].tobytes()] for i in range(len(dataset))]


# Against datasets


@pytest.mark.real_data
@pytest.mark.parametrize("split", ["train", "validation"])
def test_real_rows_are_those_of_datasets_to_the_pixel(split: str, real_shards: Path, tmp_path: Path) -> None:
    path = str(real_shards / f"scene_parsing/{split}/0000.parquet")
    expected = datasets.load_dataset("parquet", data_files={split: path}, split=split, cache_dir=str(tmp_path))
    names = expected.features["scene_category"].names
    raw = expected.cast_column("image", datasets.Image(decode=False))
    dataset = SceneParse150(real_shards, split)
    assert len(dataset) == len(expected) > 0
    for i, row in enumerate(expected):
        image, label_map = dataset[i]
        assert (image.mode, label_map.mode) == ("RGB", "L")
        assert np.array_equal(np.asarray(image), np.asarray(row["image"].convert("RGB"))), i
        assert np.array_equal(np.asarray(label_map), np.asarray(row["annotation"])), i
        assert dataset.name(i) == Path(raw[i]["image"]["path"]).stem
        assert dataset.scene_category(i) == names[row["scene_category"]]


@pytest.mark.real_data
@pytest.mark.parametrize("split", ["train[3:9]", "validation[50%:]+train[-2:]"])
def test_a_slice_of_the_real_shards_is_the_slice_of_datasets(split: str, real_shards: Path, tmp_path: Path) -> None:
    files = {part: str(real_shards / f"scene_parsing/{part}/0000.parquet") for part in ("train", "validation")}
    expected = datasets.load_dataset("parquet", data_files=files, split=split, cache_dir=str(tmp_path))
    paths = [row["image"]["path"] for row in expected.cast_column("image", datasets.Image(decode=False))]
    dataset = SceneParse150(real_shards, split)
    assert [dataset.name(i) for i in range(len(dataset))] == [Path(path).stem for path in paths]


def test_datasets_reads_what_write_shard_writes(tmp_path: Path) -> None:
    path = make_shard(tmp_path / "train.parquet", range(3))
    rows = datasets.load_dataset("parquet", data_files=str(path), split="train", cache_dir=str(tmp_path / "cache"))
    assert rows.features["scene_category"].names == list(SCENES)
    assert np.array_equal(np.asarray(rows[2]["image"]), photo_array(2))
    assert np.array_equal(np.asarray(rows[2]["annotation"]), label_array(2))


@pytest.mark.parametrize(
    ("count", "test_size", "seed"), [(50, 0.2, 42), (50, 0.2, 0), (7, 0.34, 1), (100, 0.07, 3), (23, 5, 9), (2, 0.1, 8)]
)
def test_train_test_split_picks_the_rows_that_datasets_picks(
    count: int, test_size: float, seed: int, tmp_path: Path
) -> None:
    write_shard(tmp_path / "train.parquet", [make_row(0)] * count, SCENES)
    train, test = train_test_split(SceneParse150(tmp_path), test_size, seed)
    expected = datasets.Dataset.from_dict({"row": range(count)}).train_test_split(test_size=test_size, seed=seed)
    assert list(train.indices) == expected["train"]["row"][:]
    assert list(test.indices) == expected["test"]["row"][:]


def test_a_part_of_a_part_knows_the_names_of_its_rows(tmp_path: Path) -> None:
    make_shard(tmp_path / "train.parquet", range(9))
    rows = SceneParse150(tmp_path)
    rest, _ = train_test_split(rows, 2, 0)
    train, _ = train_test_split(rest, 2, 1)
    whole, places = whole_and_rows(train)
    assert whole is rows
    assert [np.asarray(whole[place][0]).tolist() for place in places] == [
        np.asarray(photo).tolist() for photo, _ in train
    ]


def test_train_test_split_of_fifty_rows_with_seed_42_is_the_guides(tmp_path: Path) -> None:
    write_shard(tmp_path / "train.parquet", [make_row(0)] * 50, SCENES)
    _, test = train_test_split(SceneParse150(tmp_path), 0.2, 42)
    assert list(test.indices) == [5, 25, 20, 49, 39, 27, 47, 45, 46, 17]


def test_train_test_split_without_a_seed_differs_from_call_to_call(tmp_path: Path) -> None:
    write_shard(tmp_path / "train.parquet", [make_row(0)] * 50, SCENES)
    dataset = SceneParse150(tmp_path)
    assert train_test_split(dataset)[1].indices != train_test_split(dataset)[1].indices


@pytest.mark.parametrize("test_size", [0, -0.2, 4, 9, 1.0, 0.9, 2.5])
def test_a_test_size_that_datasets_refuses_is_refused_by_value(test_size: float, tmp_path: Path) -> None:
    dataset = SceneParse150(make_shard(tmp_path / "train.parquet", range(4)))
    with pytest.raises(ValueError, match="test_size"):
        datasets.Dataset.from_dict({"row": range(4)}).train_test_split(test_size=test_size)
    with pytest.raises(ValueError, match=f"test_size is {test_size}"):
        train_test_split(dataset, test_size)


# Shards


@pytest.mark.parametrize("row_group_size", [1, 2, 3, 100])
@pytest.mark.parametrize("compression", ["none", "snappy", "zstd", "gzip"])
def test_any_row_groups_and_compression_give_the_same_rows(
    row_group_size: int, compression: str, tmp_path: Path
) -> None:
    table = pq.read_table(make_shard(tmp_path / "plain.parquet", range(7)))
    path = tmp_path / "again" / "train.parquet"
    path.parent.mkdir()
    pq.write_table(table, path, row_group_size=row_group_size, compression=compression)
    dataset = SceneParse150(path.parent)
    assert numbers_of(dataset) == list(range(7))
    assert [dataset.scene_category(i) for i in range(7)] == [SCENES[i % 3] for i in range(7)]


def test_more_row_groups_than_are_kept_in_memory_are_served_in_any_order(tmp_path: Path) -> None:
    table = pq.read_table(make_shard(tmp_path / "train.parquet", range(40)))
    pq.write_table(table, tmp_path / "train.parquet", row_group_size=2)
    dataset = SceneParse150(tmp_path)
    order = [i * 17 % 40 for i in range(40)]
    assert [dataset[i][0].tobytes() for i in order] == [photo_array(i).tobytes() for i in order]


def test_two_shards_follow_each_other_in_the_order_of_their_names(tmp_path: Path) -> None:
    make_shard(tmp_path / "train-00001-of-00002.parquet", range(5, 9))
    make_shard(tmp_path / "train-00000-of-00002.parquet", range(5))
    dataset = SceneParse150(tmp_path)
    assert numbers_of(dataset) == list(range(9))
    assert numbers_of(SceneParse150(tmp_path, "train[4:6]")) == [4, 5]
    assert [dataset.name(i) for i in (4, 5)] == ["ADE_00000004", "ADE_00000005"]
    assert dataset.where(5) == f"row 0 in {tmp_path / 'train-00001-of-00002.parquet'}"


def test_splits_joined_by_plus_follow_each_other(tmp_path: Path) -> None:
    make_shard(tmp_path / "train.parquet", range(4))
    make_shard(tmp_path / "validation.parquet", range(10, 13))
    assert numbers_of(SceneParse150(tmp_path, "validation[1:]+train[:50%]+train[:1]")) == [11, 12, 0, 1, 0]


@pytest.mark.parametrize("decode", [True, False])
def test_a_shard_written_by_datasets_opens(decode: bool, tmp_path: Path) -> None:
    features = datasets.Features(
        {
            "image": datasets.Image(decode=decode),
            "annotation": datasets.Image(decode=decode),
            "scene_category": datasets.ClassLabel(names=list(SCENES)),
        }
    )
    columns: dict[str, list[Any]] = {
        "image": [Image.fromarray(photo_array(i)) for i in range(5)],
        "annotation": [Image.fromarray(label_array(i)) for i in range(5)],
        "scene_category": [i % 3 for i in range(5)],
    }
    datasets.Dataset.from_dict(columns, features=features).to_parquet(tmp_path / "train.parquet", batch_size=2)
    dataset = SceneParse150(tmp_path)
    assert numbers_of(dataset) == list(range(5))
    assert np.array_equal(np.asarray(dataset[4][1]), label_array(4))
    assert [dataset.scene_category(i) for i in range(5)] == [SCENES[i % 3] for i in range(5)]
    assert dataset.name(3) == "train_00000003"


def test_a_shard_without_metadata_opens_and_knows_no_scene(tmp_path: Path) -> None:
    table = pq.read_table(make_shard(tmp_path / "train.parquet", range(3))).replace_schema_metadata(None)
    pq.write_table(table, tmp_path / "train.parquet", store_schema=False)
    dataset = SceneParse150(tmp_path)
    assert numbers_of(dataset) == [0, 1, 2]
    assert dataset.scene_category(0) is None


def test_a_shard_of_only_image_and_annotation_opens(tmp_path: Path) -> None:
    table = pq.read_table(make_shard(tmp_path / "train.parquet", range(3))).select(["annotation", "image"])
    pq.write_table(table.replace_schema_metadata(None), tmp_path / "train.parquet")
    dataset = SceneParse150(tmp_path)
    assert numbers_of(dataset) == [0, 1, 2]
    assert dataset.scene_category(2) is None


@pytest.mark.parametrize("annotation", [None, {"bytes": None, "path": None}])
def test_a_row_without_annotation_gives_none_for_its_label_map(annotation: dict | None, tmp_path: Path) -> None:
    rows = [{**make_row(i), "annotation": annotation} for i in range(2)]
    write_shard(tmp_path / "test" / "0000.parquet", rows, SCENES)
    image, label_map = SceneParse150(tmp_path, "test")[1]
    assert image.tobytes() == photo_array(1).tobytes()
    assert label_map is None


# Where shards lie


@pytest.mark.parametrize(
    ("files", "source"),
    [
        (["scene_parsing/train/0000.parquet", "scene_parsing/train/0001.parquet"], ""),
        (["data/train-00000-of-00002.parquet", "data/train-00001-of-00002.parquet"], ""),
        (["train-00000-of-00002.parquet", "train-00001-of-00002.parquet"], ""),
        (["train/part-0.parquet", "train/part-1.parquet"], ""),
        (["0000.parquet", "0001.parquet"], ""),
        (["0000.parquet", "0001.parquet"], "*.parquet"),
        (["deep/a/0.parquet", "deep/b/1.parquet"], "**/*.parquet"),
        (["train/0000.parquet", "train/0001.parquet"], "train"),
        (["train/0000.parquet", "train/0001.parquet"], "train/*"),
    ],
)
@pytest.mark.parametrize("kind", [str, Path])
def test_every_layout_gives_the_rows_of_its_shards(
    files: list[str], source: str, kind: Callable[..., str | Path], tmp_path: Path
) -> None:
    for name, numbers in zip(files, (range(3), range(3, 5)), strict=True):
        make_shard(tmp_path / name, numbers)
    (tmp_path / "README.md").write_text("not a shard")
    assert numbers_of(SceneParse150(kind(tmp_path / source))) == list(range(5))


@pytest.mark.parametrize("layout", ["scene_parsing/{}/0000.parquet", "data/{}-00000-of-00001.parquet", "{}.parquet"])
def test_a_split_takes_only_its_own_shards(layout: str, tmp_path: Path) -> None:
    for split, numbers in (("train", range(3)), ("validation", range(3, 5)), ("test", range(5, 6))):
        make_shard(tmp_path / layout.format(split), numbers)
    chosen = {split: numbers_of(SceneParse150(tmp_path, split)) for split in ("train", "validation", "test")}
    assert chosen == {"train": [0, 1, 2], "validation": [3, 4], "test": [5]}


def test_one_shard_is_a_source(tmp_path: Path) -> None:
    path = make_shard(tmp_path / "some name.parquet", range(2))
    assert numbers_of(SceneParse150(path)) == [0, 1]


HUB_SCRIPT = """
from data import SceneParse150
for source in ("scene_parse_150", "zhoubolei/scene_parse_150"):
    dataset = SceneParse150(source, "train[1:]")
    print(*(dataset.name(i) for i in range(len(dataset))))
"""


def test_the_hub_source_reads_the_parquet_revision_from_the_cache(tmp_path: Path) -> None:
    repository, commit = tmp_path / "home/hub/datasets--zhoubolei--scene_parse_150", "e" * 40
    make_shard(repository / f"snapshots/{commit}/scene_parsing/train/0000.parquet", range(3))
    (repository / "refs/refs/convert").mkdir(parents=True)
    (repository / "refs/refs/convert/parquet").write_text(commit)
    variables = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGINGFACE_"))}
    variables |= {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "home"), "PYTHONPATH": str(REPOSITORY)}
    done = programs.run("-c", HUB_SCRIPT, environment=variables, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["ADE_00000001 ADE_00000002"] * 2


def test_toy_scenes_are_written_on_first_use_and_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    first = SceneParse150("toy", "validation")
    (shard,) = tmp_path.rglob("*.parquet")
    written = shard.stat().st_mtime_ns, shard.stat().st_ino
    second = SceneParse150("toy", "validation[:3]")
    assert (shard.stat().st_mtime_ns, shard.stat().st_ino) == written
    assert sorted(path.name for path in shard.parent.iterdir()) == [shard.name, f"{shard.name}.lock"]
    assert len(first) == TOY_SPLITS["validation"]
    assert [second[i][0].tobytes() for i in range(3)] == [first[i][0].tobytes() for i in range(3)]
    assert [second.scene_category(i) for i in range(3)] == list(TOY_CATEGORIES[:3])


# Reading


def damage_second_row_group(path: Path) -> None:
    table = pq.read_table(path)
    pq.write_table(table, path, row_group_size=2, compression="snappy")
    group = pq.ParquetFile(path).metadata.row_group(1)
    columns = [group.column(i) for i in range(group.num_columns)]
    content = bytearray(path.read_bytes())
    for column in columns:
        first = column.dictionary_page_offset or column.data_page_offset
        content[first : first + column.total_compressed_size] = b"\xff" * column.total_compressed_size
    path.write_bytes(content)


def test_rows_before_damage_are_served_because_opening_reads_none(tmp_path: Path) -> None:
    damage_second_row_group(make_shard(tmp_path / "train.parquet", range(4)))
    dataset = SceneParse150(tmp_path)
    assert len(dataset) == 4
    assert dataset[1][0].tobytes() == photo_array(1).tobytes()


def test_a_damaged_row_group_is_refused_by_file(tmp_path: Path) -> None:
    path = make_shard(tmp_path / "train.parquet", range(4))
    damage_second_row_group(path)
    with pytest.raises(ValueError, match="row group 1") as refusal:
        SceneParse150(tmp_path)[2]
    assert str(path) in str(refusal.value)


def first_pixels(batch: list[tuple[Image.Image, Image.Image]]) -> list[bytes]:
    return [image.tobytes() + label_map.tobytes() for image, label_map in batch]


@pytest.mark.parametrize(("workers", "start"), [(0, None), (2, "fork"), (2, "spawn")])
def test_loader_workers_give_equal_rows_in_order(workers: int, start: str | None, tmp_path: Path) -> None:
    table = pq.read_table(make_shard(tmp_path / "train.parquet", range(12)))
    pq.write_table(table, tmp_path / "train.parquet", row_group_size=3)
    dataset = SceneParse150(tmp_path)
    first_row = dataset[0]  # so that a file is open and a row group in memory when the workers start
    loader = DataLoader(dataset, batch_size=2, num_workers=workers, collate_fn=list, multiprocessing_context=start)
    loaded = [row for batch in loader for row in first_pixels(batch)]
    assert loaded == [photo_array(i).tobytes() + label_array(i).tobytes() for i in range(12)]
    assert first_row[0].tobytes() == dataset[0][0].tobytes()


def test_a_pickled_dataset_gives_the_same_rows_and_carries_none(tmp_path: Path) -> None:
    write_shard(tmp_path / "train.parquet", [make_row(0), make_row(1)], SCENES)
    dataset = SceneParse150(tmp_path)
    unread = len(pickle.dumps(dataset))
    assert numbers_of(dataset) == [0, 1]
    assert len(pickle.dumps(dataset)) == unread
    assert numbers_of(pickle.loads(pickle.dumps(dataset))) == [0, 1]


@pytest.mark.parametrize("index", [3, 4, -4, 10**9])
def test_an_index_out_of_range_is_an_index_error(index: int, tmp_path: Path) -> None:
    make_shard(tmp_path / "train.parquet", range(3))
    with pytest.raises(IndexError, match=rf"no row {index} in SceneParse150\(.*'train': 3 rows\); indices are -3 to 2"):
        SceneParse150(tmp_path)[index]


def test_a_slice_is_refused_with_the_ways_that_there_are(tmp_path: Path) -> None:
    make_shard(tmp_path / "train.parquet", range(3))
    with pytest.raises(TypeError, match=r"one index at a time; .* a split such as train\[:3\], or .*Subset"):
        SceneParse150(tmp_path, "train[1:]")[:3]


def test_another_rule_reads_the_same_rows(tmp_path: Path) -> None:
    make_shard(tmp_path / "train.parquet", range(3))
    dataset = SceneParse150(tmp_path)
    again = dataset.with_rule(LabelRule(ignore_index=int(label_array(0)[0, 0])))
    assert np.asarray(again[0][1])[0, 0] == 255
    assert np.array_equal(np.asarray(dataset[0][1]), label_array(0))
    assert again[2][0].tobytes() == dataset[2][0].tobytes()


def test_negative_indices_count_from_the_end_as_in_a_list(tmp_path: Path) -> None:
    make_shard(tmp_path / "train.parquet", range(5))
    dataset = SceneParse150(tmp_path, "train[1:4]")
    assert [dataset[i][0].tobytes() for i in (-1, -3)] == [photo_array(i).tobytes() for i in (3, 1)]
    assert dataset.name(-1) == "ADE_00000003"


# Modes and orientations


def sixteen_bit() -> Image.Image:
    return Image.fromarray((label_array(0).astype(np.uint16) << 8) + 77)


@pytest.mark.parametrize(
    ("picture", "form"),
    [
        (Image.fromarray(photo_array(0)[:, :, 0]), "PNG"),
        (Image.fromarray(photo_array(0)).convert("LA"), "PNG"),
        (Image.fromarray(photo_array(0)).quantize(8), "PNG"),
        (Image.fromarray(photo_array(0)).convert("RGBA"), "PNG"),
        (Image.fromarray(photo_array(0)).convert("CMYK"), "TIFF"),
        pytest.param(
            Image.fromarray(photo_array(0)).convert("YCbCr"),
            "TIFF",
            marks=pytest.mark.skipif(int(PIL.__version__.split(".")[0]) < 13, reason="Pillow before 13 cannot read it"),
        ),
        (Image.fromarray(photo_array(0)).convert("1"), "PNG"),
    ],
    ids=lambda value: value.mode if isinstance(value, Image.Image) else value,
)
def test_images_of_every_mode_come_as_pil_turns_them_to_rgb(picture: Image.Image, form: str, tmp_path: Path) -> None:
    image, _ = one_row(tmp_path, encode(picture, form))[0]
    assert image.mode == "RGB"
    assert image.tobytes() == picture.convert("RGB").tobytes()


def test_photos_are_read_by_the_reader_that_is_handed_in(tmp_path: Path) -> None:
    one_row(tmp_path, encode(sixteen_bit()))
    asked: list[tuple[bytes, str]] = []

    def open_photo(encoded: bytes, what: str) -> Image.Image:
        asked.append((encoded, what))
        return Image.new("RGB", (WIDTH, HEIGHT), (1, 2, 3))

    image, _ = SceneParse150(tmp_path, "train[1:]", open_photo=open_photo)[0]
    assert image.getpixel((0, 0)) == (1, 2, 3)
    assert asked == [(encode(sixteen_bit()), f"image of row 1 in {tmp_path / 'train.parquet'}")]


@pytest.mark.parametrize(
    "photo",
    [
        encode(sixteen_bit()),
        encode(Image.new("F", (WIDTH, HEIGHT)), "TIFF"),
        encode(Image.new("RGBX", (WIDTH, HEIGHT)), "TIFF"),
        encode(Image.new("RGBA", (WIDTH, HEIGHT))),
    ],
    ids=["16 bits", "floats", "a fourth band", "transparent"],
)
def test_without_a_reader_only_plain_photos_of_8_bits_are_read(photo: bytes, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^image of row 1 in .*train.parquet does not decode \(.*; save it "):
        one_row(tmp_path, photo)[0]


@pytest.mark.parametrize("bits", ["1", "L", "P"])
def test_annotations_of_one_channel_and_at_most_8_bits_are_read_by_value(bits: str, tmp_path: Path) -> None:
    values = label_array(1) % (2 if bits == "1" else 151)
    annotation = Image.fromarray(values.astype(bool) if bits == "1" else values)
    if bits == "P":
        annotation.putpalette(np.random.default_rng(0).integers(0, 256, 768, dtype=np.uint8).tobytes())
    assert annotation.mode == bits
    _, label_map = one_row(tmp_path, annotation=encode(annotation))[0]
    assert label_map is not None
    assert label_map.mode == "L"
    assert np.array_equal(np.asarray(label_map), values)


def rotated_photo(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    return encode(Image.fromarray(photo_array(1)), "PNG", exif=exif)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_an_annotation_turns_by_an_orientation_of_its_own(orientation: int, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    for form in ("PNG", "TIFF"):
        annotation = encode(Image.fromarray(label_array(1)), form, exif=exif)
        image, label_map = one_row(tmp_path, rotated_photo(orientation), annotation)[0]
        assert np.array_equal(np.asarray(image), UPRIGHT[orientation](photo_array(1)))
        assert np.array_equal(np.asarray(label_map), UPRIGHT[orientation](label_array(1)))


@pytest.mark.parametrize("orientation", [1, 2, 3, 4])
def test_an_annotation_without_an_orientation_is_upright_already(orientation: int, tmp_path: Path) -> None:
    image, label_map = one_row(tmp_path, rotated_photo(orientation))[0]
    assert np.array_equal(np.asarray(image), UPRIGHT[orientation](photo_array(1)))
    assert np.array_equal(np.asarray(label_map), label_array(1))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_square_annotation_is_never_turned(orientation: int, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    labels = label_array(1)[:, :HEIGHT]
    photo = encode(Image.fromarray(np.ascontiguousarray(photo_array(1)[:, :HEIGHT])), exif=exif)
    _, label_map = one_row(tmp_path, photo, encode(Image.fromarray(np.ascontiguousarray(labels))))[0]
    assert np.array_equal(np.asarray(label_map), labels)


@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
def test_an_annotation_that_fits_only_the_stored_pixels_turns_and_that_is_said_once(
    orientation: int, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoding, "_said", set())
    dataset = one_row(tmp_path, rotated_photo(orientation))
    for _ in range(2):
        assert np.array_equal(np.asarray(dataset[0][1]), UPRIGHT[orientation](label_array(1)))
    (record,) = caplog.records
    assert "has the size of its photo as stored, on its side: it is turned upright with the photo" in record.message


@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
def test_an_annotation_drawn_on_the_upright_photo_stays(orientation: int, tmp_path: Path) -> None:
    upright = np.ascontiguousarray(label_array(1).T)  # of the size that the photo has once it stands
    image, label_map = one_row(tmp_path, rotated_photo(orientation), encode(Image.fromarray(upright)))[0]
    assert np.array_equal(np.asarray(image), UPRIGHT[orientation](photo_array(1)))
    assert np.array_equal(np.asarray(label_map), upright)


@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
def test_an_orientation_that_was_copied_from_the_photo_turns_no_upright_annotation(
    orientation: int, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoding, "_said", set())
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    upright = np.ascontiguousarray(label_array(1).T)
    _, label_map = one_row(tmp_path, rotated_photo(orientation), encode(Image.fromarray(upright), exif=exif))[0]
    assert np.array_equal(np.asarray(label_map), upright)
    assert "it is taken as stored" in caplog.text


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_an_orientation_that_exif_does_not_know_turns_nothing(orientation: int, tmp_path: Path) -> None:
    image, label_map = one_row(tmp_path, rotated_photo(orientation))[0]
    assert np.array_equal(np.asarray(image), photo_array(1))
    assert np.array_equal(np.asarray(label_map), label_array(1))


def test_a_photo_with_a_mistyped_exif_entry_still_comes_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    exif[0x010F] = "maker"
    photo = encode(Image.fromarray(photo_array(1)), "JPEG", exif=exif)
    assert b"\x01\x0f\x00\x02" in photo  # the entry and its type, text
    mistyped = photo.replace(b"\x01\x0f\x00\x02", b"\x01\x03\x00\x02")  # another entry, which should be a number
    image, _ = one_row(tmp_path, mistyped)[0]
    assert np.array_equal(np.asarray(image), UPRIGHT[6](np.asarray(Image.open(io.BytesIO(photo)))))


# Errors


def test_a_source_without_shards_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no \*\.parquet") as refusal:
        SceneParse150(tmp_path)
    assert str(tmp_path) in str(refusal.value)


def test_a_folder_that_does_not_exist_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as refusal:
        SceneParse150(tmp_path / "nowhere")
    assert str(tmp_path / "nowhere") in str(refusal.value)


def test_a_file_that_is_no_parquet_file_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "train.parquet").write_bytes(b"<html>not found</html>" * 50)
    with pytest.raises(ValueError, match=r"train\.parquet is not a whole parquet file"):
        SceneParse150(tmp_path)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.99])
def test_a_truncated_shard_is_refused_by_name(share: float, tmp_path: Path) -> None:
    path = make_shard(tmp_path / "train.parquet", range(4))
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(ValueError, match=r"train\.parquet is not a whole parquet file"):
        SceneParse150(tmp_path)


def test_the_fault_of_a_later_shard_shows_at_opening(tmp_path: Path) -> None:
    make_shard(tmp_path / "train-0.parquet", range(2))
    (tmp_path / "train-1.parquet").write_bytes(b"PAR1")
    with pytest.raises(ValueError, match=r"train-1\.parquet"):
        SceneParse150(tmp_path)


@pytest.mark.parametrize(
    "columns",
    [
        {"image": pa.array([], STRUCT)},
        {"image": pa.array([], pa.int64()), "annotation": pa.array([], STRUCT)},
        {"image": pa.array([], STRUCT), "annotation": pa.array([], pa.string())},
    ],
)
def test_a_shard_without_the_two_file_columns_is_refused_with_those_it_has(
    columns: dict[str, pa.Array], tmp_path: Path
) -> None:
    pq.write_table(pa.table(columns), tmp_path / "train.parquet")
    with pytest.raises(ValueError, match=r"train\.parquet has the columns " + ", ".join(columns)):
        SceneParse150(tmp_path)


def test_a_split_that_is_not_there_is_refused_with_those_that_are(tmp_path: Path) -> None:
    make_shard(tmp_path / "train.parquet", range(2))
    make_shard(tmp_path / "validation.parquet", range(2))
    with pytest.raises(ValueError, match=r"no split 'test'; it has train, validation"):
        SceneParse150(tmp_path, "train+test")


def test_an_unknown_toy_split_is_refused_and_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(ValueError, match="no toy split 'test'; there are train, validation"):
        SceneParse150("toy", "test")
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


@pytest.mark.parametrize("split", ["train[:0]", "train[5:]", "train[3:1]", "train[:1%]"])
def test_a_split_that_selects_no_row_is_refused_by_name(split: str, tmp_path: Path) -> None:
    make_shard(tmp_path / "train.parquet", range(3))
    with pytest.raises(ValueError, match=re.escape(f"split {split!r} of")):
        SceneParse150(tmp_path, split)


@pytest.mark.parametrize(
    ("photo", "annotation", "message"),
    [
        (None, encode(Image.new("L", (WIDTH, HEIGHT), 151)), "label map of {} holds 151"),
        (None, encode(Image.new("L", (WIDTH, HEIGHT), 255)), "label map of {} holds 255"),
        (None, encode(Image.new("L", (WIDTH, HEIGHT + 1))), r"annotation of {} is \(6, 5\) but its image \(6, 4\)"),
        (None, encode(Image.new("L", (HEIGHT, WIDTH))), r"annotation of {} is \(4, 6\) but its image \(6, 4\)"),
        (None, encode(sixteen_bit()), "label map of {} holds 38221"),
        (None, encode(Image.fromarray(photo_array(0))), "annotation of {} has mode RGB and 24 colours"),
        (None, encode(Image.new("LA", (WIDTH, HEIGHT))), "annotation of {} has mode LA"),
        (None, b"no picture", "annotation of {} does not decode"),
        (None, encode(Image.fromarray(label_array(1)))[:60], "annotation of {} does not decode"),
        (b"no picture", None, "image of {} does not decode"),
        (encode(Image.fromarray(photo_array(1)), "JPEG")[:150], None, "image of {} does not decode"),
        (encode(Image.fromarray(photo_array(1)))[:70], None, "image of {} does not decode"),
    ],
)
def test_a_row_that_breaks_a_rule_is_refused_by_row_and_file(
    photo: bytes | None, annotation: bytes | None, message: str, tmp_path: Path
) -> None:
    dataset = one_row(tmp_path, photo, annotation)
    with pytest.raises(ValueError, match=message.format(f"row 1 in {tmp_path / 'train.parquet'}")):
        dataset[0]


@pytest.mark.parametrize("image", [None, {"bytes": None, "path": "gone.jpg"}, {"bytes": b"", "path": "empty.jpg"}])
def test_a_row_without_image_bytes_is_refused_by_row_and_file(image: dict | None, tmp_path: Path) -> None:
    write_shard(tmp_path / "train.parquet", [{**make_row(0), "image": image}], SCENES)
    with pytest.raises(ValueError, match=rf"image of row 0 in {tmp_path / 'train.parquet'} holds no bytes"):
        SceneParse150(tmp_path)[0]


def test_num_labels_sets_the_highest_label(tmp_path: Path) -> None:
    annotation = encode(Image.new("L", (WIDTH, HEIGHT), 7))
    write_shard(tmp_path / "train.parquet", [make_row(0, annotation=annotation)], SCENES)
    assert SceneParse150(tmp_path, label_rule=LabelRule(num_labels=7))[0][1] is not None
    with pytest.raises(ValueError, match="holds 7; its classes are 0 \\(other\\) to 6"):
        SceneParse150(tmp_path, label_rule=LabelRule(num_labels=6))[0]


def test_a_moved_shard_is_refused_by_name(tmp_path: Path) -> None:
    path = make_shard(tmp_path / "train.parquet", range(2))
    dataset = pickle.loads(pickle.dumps(SceneParse150(tmp_path)))
    shutil.move(path, tmp_path / "elsewhere.parquet")
    with pytest.raises(FileNotFoundError, match=r"train\.parquet is gone"):
        dataset[0]
