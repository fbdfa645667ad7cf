"""Layouts of folders and lists of pairs: what is recognised is said, and what contradicts itself is refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from data import SceneParse150
from data.labels import LabelRule
from data.layouts import class_files_beside
from data.understanding import Flags, understand

RULE = LabelRule(9, reduce_labels=False, ignore_index=255)


def write(root: Path, **files: int) -> Path:
    """Photos and label maps of one value each; a name says what it is, ``__`` a folder, ``_d_`` a dot."""
    for name, value in files.items():
        path = root / name.replace("__", "/").replace("_d_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (3, 2), value).save(path)
    return root


def lines(path: Path, *text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(text))
    return path


def found(root: Path, split: str = "train") -> list[tuple[int, int]]:
    """The values of every photo and its label map."""
    dataset = SceneParse150(root, split, RULE)
    return [
        (np.asarray(image)[0, 0, 0].item(), np.asarray(label)[0, 0].item())
        for image, label in map(dataset.__getitem__, range(len(dataset)))
    ]


def refusal(root: Path, split: str = "train", kind: type[Exception] = ValueError) -> str:
    with pytest.raises(kind, match=r"\w") as refused:
        SceneParse150(root, split, RULE)
    assert "\n" not in str(refused.value)
    return str(refused.value)


PAIR: dict[str, Any] = {"images__a_d_png": 50, "masks__a_d_png": 3}


@pytest.mark.parametrize(
    ("files", "about"),
    [
        ({"images__a_d_png": 50, "annotations__a_d_png": 3}, ""),
        (PAIR, "photos in images/, label maps in masks/"),
        (
            {"a_d_png": 50, "a_mask_d_png": 3},
            "photos and label maps side by side in data/; label maps are called ..._mask",
        ),
        ({"train__a_d_png": 50, "train_gt__a_L_d_png": 3}, "train/ with train_gt/; label maps are called ..._L"),
    ],
)
def test_what_was_recognised_is_said(files: dict[str, int], about: str, tmp_path: Path) -> None:
    root = write(tmp_path / "data", **files)
    assert SceneParse150(root, "train", RULE).about == about
    assert found(root) == [(50, 3)]


@pytest.mark.parametrize("head", ["image,mask\n", ""])
def test_lists_of_pairs_below_the_kinds_split_the_data(head: str, tmp_path: Path) -> None:
    root = write(tmp_path, **{f"{kind}__{i}_d_png": i for kind in ("images", "masks") for i in range(4)})
    for split, rows in (("train", (0, 1)), ("val", (2, 3))):
        (root / f"{split}.csv").write_text(head + "".join(f"{i}.png,{i}.png\n" for i in rows))
    assert found(root) == [(0, 0), (1, 1)]
    assert found(root, "validation") == [(2, 2), (3, 3)]


def test_a_table_of_something_else_is_passed_over_aloud_and_two_are_refused(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = write(tmp_path, **PAIR)
    (root / "train.csv").write_text("id,fold\n1,0\n2,1\n")
    assert found(root) == [(50, 3)]
    assert "names no file of this data, and is passed over" in caplog.text
    (root / "val.csv").write_text("id,fold\n3,0\n4,1\n")
    assert "has 0 columns of files that are there" in refusal(root)


@pytest.mark.parametrize("photo", ["{}/1.jpg", "data/{}/1.jpg", "{}/1.png", "data/{}/1.png"])
def test_splits_side_by_side_stay_splits(photo: str, tmp_path: Path) -> None:
    label = "_mask.png" if photo.endswith("png") else ".png"
    for split, value in (("train", 50), ("val", 60)):
        path = tmp_path / photo.format(split)
        path.parent.mkdir(parents=True)
        Image.new("RGB", (3, 2), (value,) * 3).save(path)
        Image.new("L", (3, 2), value // 10).save(path.with_name(f"1{label}"))
    rule = LabelRule(9, reduce_labels=False, ignore_index=255)
    for split, value in (("train", 5), ("validation", 6)):
        (row,) = (SceneParse150(tmp_path, split, rule)[i] for i in range(1))
        assert np.asarray(row[1])[0, 0] == value


def test_copies_in_a_folder_below_are_not_taken_along(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "old"):
        folder.mkdir(exist_ok=True)
        Image.new("RGB", (3, 2)).save(folder / "1.jpg")
        Image.new("L", (3, 2)).save(folder / "1.png")
    assert "a CSV of pairs under image,mask" in refusal(tmp_path, kind=FileNotFoundError)


@pytest.mark.parametrize("place", ["", "original__"])
def test_plain_names_come_before_original(place: str, tmp_path: Path) -> None:
    files = {f"{place}images__a_d_png": 50, f"{place}masks__a_d_png": 3}
    if not place:
        files["original__a_d_png"] = 70
    assert found(write(tmp_path, **files)) == [(50, 3)]


def test_a_list_of_pairs_has_nothing_to_do_with_what_lies_beside_it(tmp_path: Path) -> None:
    root = write(tmp_path, a_d_png=50, b_d_png=3, scans__1_d_png=1, scans__1_mask_d_png=1, scans__1_seg_d_png=1)
    (root / "pairs.csv").write_text("image,mask\na.png,b.png\n")
    assert class_files_beside(root / "pairs.csv") == []
    assert found(root / "pairs.csv") == [(50, 3)]


def test_a_folder_of_label_maps_without_images_in_it_is_passed_over(tmp_path: Path) -> None:
    root = write(tmp_path, **PAIR)
    lines(root / "annotations/instances.json", "{}")
    assert found(root) == [(50, 3)]


def test_two_folders_that_may_be_the_label_maps_are_refused(tmp_path: Path) -> None:
    root = write(tmp_path, **PAIR, labels__a_d_png=4)
    assert "has masks/ and labels/, each with images, and which one is meant cannot be told" in refusal(root)


def test_two_ways_of_calling_label_maps_are_refused(tmp_path: Path) -> None:
    root = write(tmp_path, images__a_d_png=50, masks__a_mask_d_png=3, masks__a_seg_d_png=4)
    assert "are called ..._mask and ..._seg, equally often" in refusal(root)


def test_years_name_two_sets_of_one_split_and_each_is_asked_for_in_full(tmp_path: Path) -> None:
    root = write(
        tmp_path,
        images__train2014__a_d_png=50,
        masks__train2014__a_d_png=3,
        images__train2017__a_d_png=60,
        masks__train2017__a_d_png=4,
    )
    assert found(root, "train2017") == [(60, 4)]
    assert "has no split 'train'; it has train2014, train2017" in refusal(root)


@pytest.mark.parametrize("asked", ["validation", "val", "val2017", "dev"])
def test_a_split_is_known_by_all_its_names(asked: str, tmp_path: Path) -> None:
    root = write(
        tmp_path, images__train__a_d_png=50, masks__train__a_d_png=3, images__val__b_d_png=60, masks__val__b_d_png=4
    )
    assert found(root, asked) == [(60, 4)]


@pytest.mark.parametrize("text", ["a", "a.png", "images/a.png", "/images/a.png", "a.jpg"])
def test_a_list_names_photos_in_any_way(text: str, tmp_path: Path) -> None:
    root = write(tmp_path, **PAIR, images__b_d_png=60, masks__b_d_png=4)
    lines(root / "train.txt", text)
    assert found(root) == [(50, 3)]


def test_a_name_that_begins_like_a_comment_is_a_name(tmp_path: Path) -> None:
    for place in ("images", "masks"):
        (tmp_path / place).mkdir()
        for name in ("#0", "#1", "a"):
            Image.new("L" if place == "masks" else "RGB", (2, 2)).save(tmp_path / place / f"{name}.png")
    (tmp_path / "train.txt").write_text("# of the first day\n#0\n#1\na\n")
    rows = SceneParse150(tmp_path, "train")
    assert [rows.name(row) for row in range(len(rows))] == ["#0", "#1", "a"]


def test_pairs_in_lists_of_voc_are_read(tmp_path: Path) -> None:
    root = write(tmp_path, **PAIR)
    lines(root / "ImageSets/Segmentation/train.txt", "/images/a.png /masks/a.png")
    assert found(root) == [(50, 3)]


def test_a_list_that_names_photos_that_are_gone_is_refused_by_line(tmp_path: Path) -> None:
    root = write(tmp_path, **PAIR)
    file = lines(root / "train.txt", "a", "gone", "lost")
    assert f"{file} has 2 names of no image in {root}/images (line 2: 'gone', line 3: 'lost')" in refusal(root)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (("image,mask", "a.png,b.png", "a.png,gone.png"), "names what is not there: 1 file (line 3: 'gone.png')"),
        (("a.png,b.png", "a.png"), "has 1 column of files that are there (a.png,b.png)"),
        (("x,y", "a,b"), "has 0 columns of files that are there (x, y)"),
        (("a.png,b.png,b.png",), "has 3 columns of files that are there"),
        ((), "lists nothing"),
        (
            ("image,mask", "a.png,b.png", "a.png,c.png", "a.png,b.png", "a.png,c.png"),
            "names another label map for the same photo than before in 2 lines (line 3: 'a.png', line 5: 'a.png')",
        ),
        (("image,photo,mask", "a.png,a.png,b.png"), "has 3 columns of files that are there (image, photo, mask)"),
    ],
)
def test_lists_of_pairs_that_cannot_be_read_are_refused_by_file(
    text: tuple[str, ...], said: str, tmp_path: Path
) -> None:
    write(tmp_path, a_d_png=50, b_d_png=3, c_d_png=4)
    file = lines(tmp_path / "pairs.csv", *text)
    message = refusal(file)
    assert message.startswith(str(file)) or f" of {file} " in message
    assert said in message


@pytest.mark.parametrize("sign", [",", ";", "\t", "|", ", "])
@pytest.mark.parametrize(
    "head", [("image", "label"), ("img_path", "mask_path"), ("Filename_image", "Ground Truth"), None]
)
def test_pairs_are_found_with_any_delimiter_and_header(sign: str, head: tuple[str, str] | None, tmp_path: Path) -> None:
    write(tmp_path, a_d_png=50, b_d_png=3)
    rows = [head] if head else []
    file = lines(tmp_path / "list.csv", *(sign.join(row) for row in [*rows, ("a.png", "b.png")]))
    assert found(file) == [(50, 3)]


def test_names_with_commas_are_quoted(tmp_path: Path) -> None:
    Image.new("L", (3, 2), 50).save(tmp_path / "a, b.png")
    Image.new("L", (3, 2), 3).save(tmp_path / "c.png")
    assert found(lines(tmp_path / "list.csv", "image,mask", '"a, b.png",c.png')) == [(50, 3)]


@pytest.mark.parametrize("kinds", [("photos", "maps"), ("images", "masks")])
def test_a_column_splits_a_list_that_a_folder_holds(kinds: tuple[str, str], tmp_path: Path) -> None:
    files = {f"{kind}__{name}_d_png": value for name, value in (("a", 3), ("b", 4), ("c", 5)) for kind in kinds}
    rows = [
        f"{kinds[0]}/{name}.png,{kinds[1]}/{name}.png,{split}"
        for name, split in zip("abc", ("train", "val", "train"), strict=True)
    ]
    lines(write(tmp_path, **files) / "all.csv", "image,mask,split", *rows)
    assert [label for _, label in found(tmp_path)] == [3, 5]
    assert [label for _, label in found(tmp_path, "validation")] == [4]
    lines(tmp_path / "train.csv", "image,mask,split", *rows)
    lines(tmp_path / "val.csv", "image,mask,split", rows[1])
    (tmp_path / "all.csv").unlink()
    assert "train.csv is the list of train, and its column of splits has validation" in refusal(tmp_path)


def test_a_folder_that_is_no_split_by_its_name_is_told_of(tmp_path: Path) -> None:
    files = {f"{split}__{kind}__a_d_png": 3 for split in ("train", "validacion") for kind in ("images", "masks")}
    dataset = SceneParse150(write(tmp_path, **files), "train", RULE)
    assert "validacion passed over: no name of a split, such as train, validation or test" in dataset.about


def test_a_list_of_one_split_is_not_taken_for_another(tmp_path: Path) -> None:
    write(tmp_path, a_d_png=50, b_d_png=3)
    file = lines(tmp_path / "val.csv", "a.png,b.png")
    assert found(file, "validation") == [(50, 3)]
    assert "has no split 'train'; it has validation" in refusal(file)


def test_a_list_beside_shards_does_not_make_a_folder_of_images_of_them(tmp_path: Path) -> None:
    lines(tmp_path / "train.csv", "id,caption", "1,a")
    (tmp_path / "train").mkdir()
    (tmp_path / "train/0000.parquet").write_bytes(b"PAR1")
    assert "0000.parquet is not a whole parquet file" in refusal(tmp_path)


def test_columns_are_not_for_folders(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is a folder of images, which has no columns"):
        SceneParse150(write(tmp_path, **PAIR), "train", RULE, label_column="mask")


def test_jpeg_masks_in_a_folder_open_by_a_binary_rule_alone(tmp_path: Path) -> None:
    root = write(tmp_path, images__a_d_png=50, masks__a_d_jpg=255)
    assert "another form than PNG, BMP or TIFF, which alone keep class ids (a.jpg)" in refusal(root)
    assert np.asarray(SceneParse150(root, "train", LabelRule(2, False, None, True))[0][1]).max() == 1


# Oxford-IIIT-Pet


def pets(root: Path) -> Path:
    """The folder as its two archives unpack: trimaps beside boxes and lists."""
    write(
        root, images__a_d_png=50, images__b_d_png=60, annotations__trimaps__a_d_png=1, annotations__trimaps__b_d_png=2
    )
    lines(root / "annotations/xmls/a.xml", "<annotation/>")
    lines(root / "annotations/list.txt", "a 1 1 1", "b 1 1 1")
    (root / "annotations/trimaps/._a.png").write_bytes(b"as macOS writes it")
    return root


def test_trimaps_are_found_in_the_folder_that_alone_has_label_maps(tmp_path: Path) -> None:
    root = pets(tmp_path)
    assert found(root) == [(50, 1), (60, 2)]
    assert SceneParse150(root).about == "photos in images/, label maps in trimaps/"
    known = understand(SceneParse150(root))
    assert known.rule == LabelRule(2, False, 255, values=((1, 0), (2, 1)))


def test_folders_below_a_split_are_still_the_same_on_both_sides(tmp_path: Path) -> None:
    assert found(write(tmp_path, images__x__a_d_png=50, masks__x__a_d_png=1)) == [(50, 1)]


# Supervisely


def supervisely(root: Path, *, masks: bool, folder: str = "ds") -> Path:
    """A project of two photos, exported with masks or as it is stored."""
    for number, name in enumerate(("a", "b")):
        write(root / folder, **{f"img__{name}_d_png": 50 + number})
        lines(root / folder / f"ann/{name}.png.json", '{"objects": [{"geometryType": "polygon"}]}')
        if masks:
            write(root / folder, **{f"masks_machine__{name}_d_png": number + 1, f"masks_human__{name}_d_png": 99})
    lines(root / "meta.json", '{"classes": [{"title": "car"}, {"title": "person"}]}')
    return root


@pytest.mark.parametrize("below", ["", "ds"])
def test_a_project_of_supervisely_with_its_masks_is_a_layout(below: str, tmp_path: Path) -> None:
    root = supervisely(tmp_path, masks=True)
    lines(root / "obj_class_to_machine_color.json", '{"person": [2, 2, 2], "car": [1, 1, 1]}')
    assert found(root / below) == [(50, 1), (51, 2)]
    known = understand(SceneParse150(root / below))
    assert known.rule == LabelRule(3, False, 255)
    assert list(known.id2label.values()) == ["background", "car", "person"]
    reduced = understand(SceneParse150(root / below), Flags(reduce_labels=True))
    assert (reduced.rule, list(reduced.id2label.values())) == (LabelRule(2), ["car", "person"])


def test_splits_of_supervisely_have_their_masks_too(tmp_path: Path) -> None:
    for name in ("train", "val"):
        supervisely(tmp_path, masks=True, folder=name)
    assert found(tmp_path, "validation") == [(50, 1), (51, 2)]


@pytest.mark.parametrize("text", ['{"car": [1, 1, 1], "person": [7, 7, 7]}', '{"car": [1, 2, 3], "person": [2, 2, 2]}'])
def test_machine_colours_that_are_no_ids_from_1_on_name_nothing(text: str, tmp_path: Path) -> None:
    root = supervisely(tmp_path, masks=True)
    lines(root / "obj_class_to_machine_color.json", text)
    assert "nothing names the classes" in understand(SceneParse150(root)).warnings[0]


@pytest.mark.parametrize("folders", [("ds",), ("one", "two"), ("train", "val")], ids=str)
def test_a_project_of_supervisely_without_masks_is_refused_with_the_way_to_them(
    folders: tuple[str, ...], tmp_path: Path
) -> None:
    for folder in folders:
        supervisely(tmp_path, masks=False, folder=folder)
    said = refusal(tmp_path)
    assert "holds Supervisely's JSON and no label maps; export the project there with Export as masks, which" in said
    assert "masks_machine/ beside img/" in said
