"""What label maps mean: taken where it cannot be wrong, else refused with both readings, and said in any case."""

from __future__ import annotations

import io
import json
import os
import re
import time
from pathlib import Path
from typing import Any

import numpy as np
import programs
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hub_server import HubServer, Repository
from PIL import Image
from test_photos import tiff

from data import SceneParse150
from data.class_files import Classes, agree, parse_classes, read_classes, ready_made
from data.classes import ID2LABEL
from data.decoding import decode_label_map
from data.labels import SCENE_PARSE_LABELS, LabelRule
from data.understanding import Flags, KnownLabels, Understanding, understand, write_class_file

ROOT = Path(__file__).resolve().parents[2]
COLOURS = {"background": (0, 0, 0), "car": (64, 0, 128), "road": (128, 64, 128)}
NAMED = Classes("names.txt", ("sky", "road", "car", "tree"))


def encode(picture: Image.Image, form: str = "PNG", **options: Any) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, form, **options)
    return stream.getvalue()


def folder(root: Path, *maps: Any) -> Path:
    """Photos with these label maps: arrays of values or colours, or pictures."""
    for place in ("images", "annotations"):
        (root / place).mkdir(parents=True, exist_ok=True)
    for number, held in enumerate(maps):
        picture = held if isinstance(held, Image.Image) else Image.fromarray(np.asarray(held))
        Image.new("RGB", picture.size).save(root / f"images/{number}.png")
        picture.save(root / f"annotations/{number}.png")
    return root


def values(*held: int) -> np.ndarray:
    return np.array([held], np.uint8)


def about(root: Path, **flags: Any) -> Understanding:
    return understand(SceneParse150(root), Flags(**flags))


def refusal(root: Path, **flags: Any) -> str:
    with pytest.raises(ValueError, match=r"\w") as refused:
        about(root, **flags)
    assert "\n" not in str(refused.value)
    return str(refused.value)


# SceneParse150 itself


@pytest.mark.parametrize("flags", [{}, {"ignore_index": 255}, {"reduce_labels": True}, {"num_labels": 150}])
def test_scene_parse_150_is_read_as_ever(
    flags: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    found = understand(SceneParse150("toy", "validation"), Flags(**flags))
    assert found.rule == LabelRule(ignore_index=flags.get("ignore_index"))
    assert found.id2label == ID2LABEL
    assert found.warnings == []


def test_maps_of_scene_parse_150_that_were_reduced_before_are_refused_with_both_readings(tmp_path: Path) -> None:
    names = Classes("ade.json", tuple(ID2LABEL.values()))
    said = refusal(folder(tmp_path, values(0, 149, 255)), classes=names)
    assert "hold 255 in the first row, but 150 classes are 0 (ignored) and 1 to 150: --ignore-index 255" in said
    assert "where 0 is a class already and 255 what is ignored, --no-reduce-labels" in said


def test_other_maps_that_hold_high_values_are_taken_for_scene_parse_150_aloud(tmp_path: Path) -> None:
    found = about(folder(tmp_path, values(0, 3, 17, 140)))
    assert found.rule == SCENE_PARSE_LABELS
    assert "nothing names the classes, so they are SceneParse150's 150, where 0 is other" in found.warnings[0]


@pytest.mark.parametrize("held", [(0, 50, 100, 150), (0, 128, 255), (0, 254), (0, 3, 140), (0, 85, 170, 255)])
def test_greys_that_are_drawn_to_be_seen_are_not_taken_for_scene_parse_150(
    held: tuple[int, ...], tmp_path: Path
) -> None:
    said = refusal(folder(tmp_path, values(*held)))
    assert "with a line id,name for each" in said
    assert ("--binary-masks" in said) == (held[1] >= 128)


def test_a_class_file_gives_such_greys_their_names(tmp_path: Path) -> None:
    root = folder(tmp_path, values(0, 50, 100, 150, 255))
    (root / "class_dict.csv").write_text("id,name\n100,road\n0,background\n50,car\n150,void\n")
    found = about(root)
    assert found.id2label == {0: "background", 1: "car", 2: "road"}
    assert list(SceneParse150(root, "train", found.rule)[0][1].tobytes()) == [0, 1, 2, 255, 255]


def test_a_zero_that_ids_with_holes_lack_is_asked_about(tmp_path: Path) -> None:
    root = folder(tmp_path, values(0, 7, 11))
    (root / "class_dict.csv").write_text("id,name\n7,road\n11,car\n")
    assert "--reduce-labels ignores it, and a line of its own makes it a class" in refusal(root)
    assert about(root, reduce_labels=True).rule.values == ((0, 255), (7, 0), (11, 1), (255, 255))
    assert about(root, ignore_index=0).rule.meaning(0) == 255


def test_photos_of_ade20k_that_were_labelled_anew_are_asked_about(tmp_path: Path) -> None:
    root = folder(tmp_path, *(values(0, 1, 2, 3) for _ in range(6)))
    for path in root.rglob("*.png"):
        path.rename(path.with_name(f"ADE_train_{path.name}"))
    assert "hold 0 to 3 in the first 6 rows, and nothing names the classes" in refusal(root)


# One's own classes


@pytest.mark.parametrize("flags", [{"classes": NAMED}, {"num_labels": 4}])
@pytest.mark.parametrize("held", [(0, 1, 2, 3), (0, 2), (1, 2, 3), (0, 1, 4), (0, 3, 255)])
def test_own_classes_leave_two_readings_and_both_are_spelled_out(
    held: tuple[int, ...], flags: dict[str, Any], tmp_path: Path
) -> None:
    said = refusal(folder(tmp_path, values(*held)), **flags)
    first, last = ("'sky'", "'tree'") if "classes" in flags else ("'LABEL_0'", "'LABEL_3'")
    assert f"with --no-reduce-labels 0 is {first} and 3 is {last}" in said
    assert f"with --reduce-labels 0 is ignored, 1 is {first} and 4 is {last}; give one of them" in said


@pytest.mark.parametrize("reduce_labels", [False, True])
def test_own_classes_are_read_as_is_said(reduce_labels: bool, tmp_path: Path) -> None:
    found = about(folder(tmp_path, values(0, 1, 2, 3)), classes=NAMED, reduce_labels=reduce_labels)
    assert found.rule == LabelRule(4, reduce_labels, None if reduce_labels else 255)
    assert list(found.id2label.values()) == list(NAMED.names)


@pytest.mark.parametrize(
    ("held", "names", "reduced"),
    [
        ((1, 2, 3, 4), NAMED.names, True),  # 0 occurs nowhere and 4 does
        ((0, 1, 2), ("background", "car", "road"), False),
        ((0, 1, 2), ("unlabeled", "car", "road"), False),
    ],
)
def test_a_rule_that_cannot_be_wrong_is_taken(
    held: tuple[int, ...], names: tuple[str, ...], reduced: bool, tmp_path: Path
) -> None:
    assert about(folder(tmp_path, values(*held)), classes=Classes("n", names)).rule.reduce_labels is reduced


def test_a_value_one_beyond_the_names_is_refused_with_both_ways_out(tmp_path: Path) -> None:
    said = refusal(folder(tmp_path, values(0, 1, 4)), classes=NAMED, reduce_labels=False)
    assert "hold 4 in the first row, but 4 classes are 0 to 3" in said
    assert "--reduce-labels makes 0 ignored and moves every class down by one; --ignore-index 4 ignores it" in said


@pytest.mark.parametrize("held", [(0, 1, 2, 3), (0, 2, 5, 15, 255), (1, 3), (2, 3)])
def test_low_values_that_nothing_names_are_not_taken_for_scene_parse_150(held: tuple[int, ...], tmp_path: Path) -> None:
    said = refusal(folder(tmp_path, values(*held)))
    assert "nothing names the classes; give --label-names, or --num-labels" in said


def test_ids_from_1_say_that_0_is_none(tmp_path: Path) -> None:
    root = folder(tmp_path, values(0, 1, 2))
    (root / "labels.json").write_text('{"1": "sky", "2": "road"}')
    found = about(root)
    assert (found.rule, found.id2label) == (LabelRule(2), {0: "sky", 1: "road"})
    assert "begin at 1: leave the flag out, and 0 is ignored and 1 is 'sky'" in refusal(root, reduce_labels=False)


def test_a_name_for_unlabeled_is_ignored_and_keeps_its_id(tmp_path: Path) -> None:
    root = folder(tmp_path, values(0, 1, 2))
    (root / "id2label.json").write_text('{"0": "unlabeled", "1": "sky", "2": "road"}')
    found = about(root)
    assert found.rule == LabelRule(3, False, (0, 255))
    assert "0 is ignored (--ignore-index decides)" in found.lines[2]
    assert found.warnings == []
    reduced = about(root, reduce_labels=True)
    assert (reduced.rule, reduced.id2label) == (LabelRule(2), {0: "sky", 1: "road"})


def test_void_as_the_last_name_is_no_class(tmp_path: Path) -> None:
    root = folder(tmp_path, values(0, 1, 2))
    (root / "id2label.json").write_text('["sky", "road", "void"]')
    found = about(root, reduce_labels=False)
    assert (found.rule, found.id2label) == (LabelRule(2, False, (2, 255)), {0: "sky", 1: "road"})


@pytest.mark.parametrize("number", [3, 5])
def test_a_number_that_contradicts_the_names_is_refused(number: int, tmp_path: Path) -> None:
    said = refusal(folder(tmp_path, values(0, 1)), classes=NAMED, num_labels=number, reduce_labels=False)
    assert f"--num-labels is {number}, but names.txt names 4 classes" in said


@pytest.mark.parametrize("held", [(1, 2, 3), (1, 2, 3, 255)])
def test_trimaps_without_names_are_three_classes_aloud(held: tuple[int, ...], tmp_path: Path) -> None:
    found = about(folder(tmp_path, values(*held)))
    assert found.rule == LabelRule(3, False, 255, values=((1, 0), (2, 1), (3, 2)))
    assert list(found.id2label.values()) == ["LABEL_0", "LABEL_1", "LABEL_2"]
    assert "1 to 3 stand for them and 0 is refused (--reduce-labels ignores it, --num-labels 4" in found.lines[2]
    assert found.warnings[0].startswith(
        "nothing names the classes; the label maps hold 1 to 3 in the first row, and no 0"
    )


def test_trimaps_with_names_are_read_by_them(tmp_path: Path) -> None:
    found = about(folder(tmp_path, values(1, 2, 3)), classes=Classes("n", ("pet", "ground", "border")))
    assert (found.rule, found.id2label) == (LabelRule(3, True), {0: "pet", 1: "ground", 2: "border"})


def test_a_0_further_on_is_never_ignored_unasked(tmp_path: Path) -> None:
    maps = [values(1, 2, 3)] * 21
    maps[9] = values(0, 1)  # the last of the names in order
    root = folder(tmp_path, *maps)
    dataset = SceneParse150(root)
    with pytest.raises(ValueError, match=r"9.png holds 0; its classes are those of its table, 1, 2, 3"):
        dataset.with_rule(understand(dataset).rule)[20]
    asked = dataset.with_rule(about(root, reduce_labels=True).rule)
    assert asked.label_rule == LabelRule(3, True)
    assert np.asarray(asked[20][1]).tolist() == [[0, 1]]


def test_a_void_that_is_numbered_last_is_ignored_where_ids_begin_at_1(tmp_path: Path) -> None:
    root = folder(tmp_path, values(1, 2, 3))
    (root / "classes.txt").write_text("sky\nroad\nvoid\n")
    found = about(root)
    assert found.id2label == {0: "sky", 1: "road"}
    assert [found.rule.class_of(found.rule.meaning(value)) for value in (1, 2, 3)] == [0, 1, 255]


def test_255_is_ignored_where_a_file_of_ids_with_holes_names_it(tmp_path: Path) -> None:
    root = folder(tmp_path, values(0, 1, 255))
    (root / "classes.json").write_text('{"0": "background", "1": "cat", "255": "border"}')
    found = about(root)
    assert (found.id2label, found.rule.meaning(255)) == ({0: "background", 1: "cat"}, 255)
    assert any("ignored by" in line and line.endswith("border") for line in found.lines)


@pytest.mark.parametrize("file", ["labels.txt", "c.csv"])
def test_numbers_beside_names_are_ids_even_with_holes(file: str) -> None:
    text = {"labels.txt": "background 0\nroad 1\ntree 4\n", "c.csv": "class,name\n0,background\n1,road\n4,tree\n"}
    found = parse_classes(text[file], file)
    assert (found.names, found.ids) == (("background", "road", "tree"), (0, 1, 4))


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("names.txt", "name\nbackground\nroad\ncar\n"),
        ("names.csv", "Class Name\nbackground\nroad\ncar\n"),
        ("names.txt", "클래스 이름\nbackground\nroad\ncar\n"),
        ("names.txt", "번호,이름\n0,background\n1,road\n2,car\n"),
        ("names.txt", "Nr;Klasse\n0;background\n1;road\n2;car\n"),
        ("names.txt", '[\n  "background",\n  "road",\n  "car"\n]\n'),
        ("names.txt", '{"0": "background", "1": "road", "2": "car"}'),
    ],
)
def test_a_header_is_no_class_and_json_is_json_under_any_name(file: str, text: str) -> None:
    assert parse_classes(text, file).names == ("background", "road", "car")


@pytest.mark.parametrize("head", ["", "order"])
def test_a_column_that_numbers_classes_in_another_order_is_not_passed_over(head: str) -> None:
    with pytest.raises(ValueError, match=f"the column '{head}' numbers the classes in another order than the lines"):
        parse_classes(f"{head},name\n2,car\n0,background\n1,road\n", "c.csv")
    assert parse_classes(f"{head},name\n0,background\n1,road\n2,car\n", "c.csv").names[0] == "background"


def test_the_table_of_sceneparse_150_and_the_names_of_a_model_agree() -> None:
    table = "Idx,Name\n" + "\n".join(f"{k + 1},{name}" for k, name in ID2LABEL.items())
    names = [parse_classes(json.dumps(ID2LABEL), "a.json"), parse_classes(table, "b.csv")]
    assert agree(names)
    own = [parse_classes("0 sky\n1 road", "a.txt"), parse_classes("1 sky\n2 road", "b.txt")]
    with pytest.raises(ValueError, match=r"contradict each other in their ids: class 0 is 0 and 1"):
        agree(own)


# Masks


@pytest.mark.parametrize("flags", [{}, {"classes": Classes("n", ("air", "cell"))}, {"num_labels": 2}, {"binary": True}])
def test_masks_of_0_and_255_are_binary_where_nothing_contradicts(flags: dict[str, Any], tmp_path: Path) -> None:
    found = about(folder(tmp_path, values(0, 255), values(0, 0)), **flags)
    assert found.rule.is_binary
    assert found.rule.normalise(values(0, 255), "here").tolist() == [[0, 1]]
    assert "masks: 0 is the background, " in found.lines[2]


@pytest.mark.parametrize("number", [1, 2])
def test_masks_of_which_one_class_is_left_are_refused_before_training(number: int, tmp_path: Path) -> None:
    said = refusal(folder(tmp_path, values(0, 255)), num_labels=number, reduce_labels=False)
    assert "hold 0 and 255 and nothing else in the first row" in said
    assert "if 255 is the object, give --binary-masks; if 255 is ignored, as without it, only one class is left" in said


def test_one_class_is_too_few_for_masks_whatever_else_is_said(tmp_path: Path) -> None:
    assert "--binary-masks" in refusal(folder(tmp_path, values(0, 255)), num_labels=1)
    assert "--binary-masks" in refusal(folder(tmp_path, values(0, 255)), num_labels=2, ignore_index=255)


def test_masks_of_one_bit_are_binary(tmp_path: Path) -> None:
    found = about(folder(tmp_path, Image.fromarray(values(0, 1) > 0)))
    assert found.rule == LabelRule(2, False, values=((0, 0), (1, 1)))


def test_masks_that_are_seen_as_binary_are_held_to_it_in_every_row(tmp_path: Path) -> None:
    root = folder(tmp_path, values(0, 255), values(0, 255), values(0, 3, 255))
    dataset = SceneParse150(root)
    dataset = dataset.with_rule(understand(dataset, rows=2).rule)
    assert np.asarray(dataset[1][1]).tolist() == [[0, 1]]
    with pytest.raises(ValueError, match=r"2.png holds 3; .*if every value above 0 is the object, give --binary-masks"):
        dataset[2]


@pytest.mark.parametrize(
    ("held", "flags", "only"),
    [
        ((0, 1), {"num_labels": 1, "reduce_labels": True}, "'LABEL_0' is the only class that is left"),
        ((0,), {"num_labels": 1, "reduce_labels": False}, "'LABEL_0' is the only class that is left"),
        ((0, 1), {"classes": Classes("n", ("car",)), "reduce_labels": True}, "'car' is the only class that is left"),
        ((0, 1), {"classes": Classes("n", ("unlabeled", "car"))}, "'car' is the only class that is left"),
        ((0, 1), {"num_labels": 2, "reduce_labels": False, "ignore_index": 0}, "'LABEL_1' is the only class"),
        ((0, 1, 2), {"num_labels": 3, "reduce_labels": False, "ignore_index": (0, 2)}, "'LABEL_1' is the only class"),
        ((0,), {"num_labels": 1, "reduce_labels": False, "ignore_index": 0}, "no class is left"),
    ],
)
def test_a_rule_that_leaves_nothing_to_tell_apart_is_refused(
    held: tuple[int, ...], flags: dict[str, Any], only: str, tmp_path: Path
) -> None:
    said = refusal(folder(tmp_path, values(*held)), **flags)
    assert said.startswith(only)
    assert "there is nothing to learn; name two classes or more (--label-names or --num-labels)" in said


def test_a_class_file_that_leaves_one_colour_is_refused(tmp_path: Path) -> None:
    root = class_dict(folder(tmp_path, painted("road", "car")), {"void": COLOURS["road"], "car": COLOURS["car"]})
    assert refusal(root).startswith("'car' is the only class that is left")


@pytest.mark.parametrize("rule", [LabelRule(2, False), LabelRule(2, False, binary=True), LabelRule(3, False, (0, 255))])
def test_two_classes_are_enough(rule: LabelRule) -> None:
    assert len(rule.classes_left) == 2


def test_first_rows_of_one_class_alone_are_warned_of(tmp_path: Path) -> None:
    found = about(folder(tmp_path, values(1, 255), values(1, 1)), num_labels=2, reduce_labels=False)
    assert found.warnings[0].startswith("1 of 2 classes does not occur in the first 2 rows: LABEL_0")
    assert "LABEL_1 alone, from which nothing can be learnt" in found.warnings[1]


def test_0_and_255_among_more_classes_are_no_masks(tmp_path: Path) -> None:
    assert about(folder(tmp_path, values(0, 1, 255)), num_labels=2, reduce_labels=False).rule == LabelRule(
        2, False, 255
    )


def test_255_beside_two_classes_is_ignored_only_where_it_lies_beside_their_object(tmp_path: Path) -> None:
    with_object, with_255 = values(0, 1), values(0, 255)
    two = {"num_labels": 2, "reduce_labels": False}
    found = about(folder(tmp_path / "void", with_object, values(0, 1, 255), with_255), **two)
    assert found.rule.meaning(255) == 255
    both = refusal(folder(tmp_path / "mixed", with_object, with_255), **two)
    assert "give --binary-masks; if 255 is ignored, --ignore-index 255" in both
    assert about(tmp_path / "mixed", ignore_index=255, **two).rule.meaning(255) == 255
    later = folder(tmp_path / "later", *[with_object] * 20)
    rule = about(later, **two).rule
    Image.fromarray(with_255).save(later / "annotations/9.png")  # the last
    with pytest.raises(ValueError, match="--ignore-index 255; if it means the object of a mask, give --binary-masks"):
        SceneParse150(later, label_rule=rule)[19]


def test_a_negative_number_can_be_what_is_ignored(tmp_path: Path) -> None:
    wide = Image.fromarray(np.array([[-1, 0, 1, 2]], np.int32))
    (tmp_path / "annotations").mkdir()
    (tmp_path / "images").mkdir()
    Image.new("RGB", (4, 1)).save(tmp_path / "images/0.png")
    wide.save(tmp_path / "annotations/0.tif")
    rule = about(tmp_path, num_labels=3, reduce_labels=False, ignore_index=-1).rule
    assert np.asarray(SceneParse150(tmp_path, label_rule=rule)[0][1]).tolist() == [[255, 0, 1, 2]]


# What is said


def test_a_class_that_occurs_nowhere_is_said_with_the_flags(tmp_path: Path) -> None:
    found = about(folder(tmp_path, values(0, 1, 3)), classes=NAMED, reduce_labels=False)
    assert len(found.warnings) == 1
    assert found.warnings[0].startswith("1 of 4 classes does not occur in the first row: car (--reduce-labels or")


@pytest.mark.parametrize(("count", "said"), [(2, False), (3, True)])
def test_more_than_half_of_the_pixels_ignored_is_said(count: int, said: bool, tmp_path: Path) -> None:
    found = about(folder(tmp_path, values(0, 1, *[255] * count)), num_labels=2, reduce_labels=False)
    assert [line.split(" are ignored")[0] for line in found.warnings] == (
        ["60% of the pixels in the first row"] if said else []
    )


def test_the_lines_tell_rows_classes_and_labels(tmp_path: Path) -> None:
    found = about(folder(tmp_path, values(0, 1, 2, 3)), classes=NAMED, reduce_labels=False)
    assert found.lines == [
        f"{tmp_path}, train: 1 row",
        "4 classes by names.txt (--label-names): sky, road, car, tree",
        "labels: 4 classes; 0 is a class (--reduce-labels makes it ignored); 255 ignored (--ignore-index decides)",
    ]


def test_a_row_that_the_rule_does_not_allow_is_named(tmp_path: Path) -> None:
    root = folder(tmp_path, values(0, 1), np.array([[0, 300]], np.uint16))
    said = refusal(root, num_labels=2, reduce_labels=False)
    assert "hold 300 in the first 2 rows" in said


# Colours


def painted(*names: str) -> np.ndarray:
    return np.array([[COLOURS[name] for name in names]], np.uint8)


def class_dict(root: Path, colours: dict[str, Any] | None = None) -> Path:
    lines = [f"{name},{r},{g},{b}" for name, (r, g, b) in (colours or COLOURS).items()]
    (root / "class_dict.csv").write_text("\n".join(["name,r,g,b", *lines]))
    return root


def classes_of(root: Path, found: Understanding) -> list[list[int]]:
    dataset = SceneParse150(root).with_rule(found.rule)
    return [np.asarray(dataset[i][1])[0].tolist() for i in range(len(dataset))]


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P"])
def test_colours_become_the_ids_of_their_class_file(mode: str, tmp_path: Path) -> None:
    maps = [Image.fromarray(painted(*names)) for names in (("road", "background"), ("car", "road"))]
    maps = [each.quantize(4) if mode == "P" else each.convert(mode) for each in maps]
    root = class_dict(folder(tmp_path, *maps))
    found = about(root)
    assert list(found.id2label.values()) == list(COLOURS)
    assert classes_of(root, found) == [[2, 0], [1, 2]]


def test_a_colour_called_void_is_ignored_and_the_others_count_on(tmp_path: Path) -> None:
    root = folder(tmp_path, painted("road", "car", "background"))
    found = about(class_dict(root, {"Void": COLOURS["background"], "car": COLOURS["car"], "road": COLOURS["road"]}))
    assert list(found.id2label.values()) == ["car", "road"]
    assert classes_of(root, found) == [[1, 0, 255]]
    assert "ignored: (0, 0, 0) (the class file decides" in found.lines[2]


def test_colours_without_a_class_file_are_listed_with_their_shares_and_the_way_out(tmp_path: Path) -> None:
    root = folder(tmp_path / "data", painted("road", "road", "car"), painted("background"))
    said = refusal(root)
    assert "hold 3 colours ((128, 64, 128) 50.0%, (64, 0, 128) 25.0%, (0, 0, 0) 25.0%)" in said
    assert "put a class_dict.csv beside the data" in said
    written = read_classes(write_class_file(SceneParse150(root), root / "class_dict.csv"))
    assert written.names == ("background", "class_1", "class_2")
    assert set(written.colours or ()) == set(COLOURS.values())
    assert classes_of(root, about(root)) == [[2, 2, 1], [0]]


def test_more_colours_than_can_be_classes_are_refused_as_blended(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (9, 9, 3), dtype=np.uint8)
    assert "hold 81 colours, more than the 32 of label maps: blended edges, or a photo" in refusal(
        folder(tmp_path, noise)
    )


def test_a_colour_that_the_class_file_lacks_is_refused_with_row_share_and_remedy(tmp_path: Path) -> None:
    root = class_dict(folder(tmp_path, painted("road"), np.array([[(1, 2, 3), (0, 0, 0)]], np.uint8)))
    said = refusal(root)
    assert said.startswith(f"label map of {root / 'images/1.png'} holds the colour (1, 2, 3) in 50.00% of its pixels")
    assert "add a line for it, as a class or as void" in said


def test_blended_edges_are_told_from_a_missing_class(tmp_path: Path) -> None:
    edge = np.array([[(i, i // 2, 9) for i in range(20)]], np.uint8)
    said = refusal(class_dict(folder(tmp_path, painted("road"), edge)))
    assert "20 such colours look blended at edges: save masks without smoothing" in said


def test_palettes_that_differ_from_row_to_row_are_no_class_ids(tmp_path: Path) -> None:
    maps = [
        Image.fromarray(painted(*names)).quantize(4)
        for names in (("road", "road", "background"), ("car", "car", "road"))
    ]
    said = refusal(folder(tmp_path, *maps), num_labels=3, reduce_labels=False)
    assert "have palettes that differ, so that indices are no class ids: palette index " in said


def test_palette_indices_are_class_ids_where_no_file_names_colours(tmp_path: Path) -> None:
    palette = Image.fromarray(values(0, 1, 2, 255))
    palette.putpalette(bytes(range(256)) * 3)
    found = about(folder(tmp_path, palette), num_labels=3, reduce_labels=False)
    assert found.rule == LabelRule(3, False, 255)


def test_the_border_of_pascal_voc_is_ignored_by_its_index(tmp_path: Path) -> None:
    palette = Image.fromarray(values(0, 1, 2, 255))
    palette.putpalette([*COLOURS["background"], *COLOURS["car"], *COLOURS["road"], *[9] * 756, 224, 224, 192])
    root = class_dict(folder(tmp_path, palette))
    found = about(root)
    assert ((224, 224, 192), 255) in found.rule.colours
    assert classes_of(root, found) == [[0, 1, 2, 255]]


def test_colours_are_looked_up_in_under_3_ms(tmp_path: Path) -> None:
    table = tuple(((i * 11 % 256, i * 7 % 256, i), i) for i in range(32))
    rule = LabelRule(32, False, colours=table)
    ids = np.random.default_rng(0).integers(0, 32, (512, 512))
    codes = np.array([r | g << 8 | b << 16 for (r, g, b), _ in table], np.uint32)[ids]
    assert np.array_equal(rule.normalise_colours(codes, "here"), ids)
    times = []
    for _ in range(15):
        started = time.perf_counter()
        rule.normalise_colours(codes, "here")
        times.append(1e3 * (time.perf_counter() - started))
    assert min(times) < 3


# The rule, saved


@pytest.mark.parametrize(
    "rule",
    [
        SCENE_PARSE_LABELS,
        LabelRule(2, False, None, True),
        LabelRule(3, False, (0, 255)),
        LabelRule(2, False, values=((7, 0), (8, 1), (9, 255))),
        LabelRule(3, False, colours=tuple((colour, k) for k, colour in enumerate(COLOURS.values()))),
    ],
    ids=lambda rule: rule.describe(),
)
def test_a_rule_comes_back_from_json(rule: LabelRule) -> None:
    assert LabelRule.from_dict(json.loads(json.dumps(rule.to_dict()))) == rule


def test_stored_values_stand_for_others() -> None:
    rule = LabelRule(2, False, values=((7, 0), (8, 1), (9, 255), (300, 1)))
    assert rule.normalise(values(7, 8, 9), "here").tolist() == [[0, 1, 255]]
    assert rule.normalise(np.array([[7, 300]], np.int32), "here").tolist() == [[0, 1]]
    with pytest.raises(
        ValueError, match="label map of here holds 10; its classes are those of its table, 7, 8, 9, 300"
    ):
        rule.normalise(values(7, 10), "here")


# Masks


@pytest.mark.parametrize("held", [(0, 255), (0, 1)])
def test_an_only_name_is_that_of_the_object(held: tuple[int, ...], tmp_path: Path) -> None:
    root = folder(tmp_path, values(*held))
    (root / "classes.txt").write_text("crack\n")
    found = about(root)
    assert found.id2label == {0: "background", 1: "crack"}
    assert [found.rule.meaning(value) for value in held] == [0, 1]


def test_masks_of_16_bits_are_masks(tmp_path: Path) -> None:
    rule = about(folder(tmp_path, np.array([[0, 65535]], np.uint16))).rule
    assert (rule.meaning(65535), rule.is_binary) == (1, True)


@pytest.mark.parametrize("flags", [{}, {"binary": True}])
def test_a_background_that_is_named_second_is_refused_for_masks(flags: dict[str, Any], tmp_path: Path) -> None:
    root = folder(tmp_path, values(0, 255))
    (root / "classes.txt").write_text("crack\nbackground\n")
    assert "names 'crack' first and 'background' second" in refusal(root, **flags)


@pytest.mark.parametrize("flags", [{"binary": True}, {"classes": Classes("c.txt", ("background", "crack"))}])
def test_a_palette_of_white_and_then_black_is_read_as_seen(flags: dict[str, Any], tmp_path: Path) -> None:
    mask = np.zeros((4, 6), np.uint8)
    mask[:, 2:] = 255
    quantized = Image.fromarray(mask).convert("RGB").quantize(2)
    assert quantized.getpalette()[:3] == [255, 255, 255]  # or this tests nothing
    root = folder(tmp_path, quantized)
    found = about(root, **flags)
    assert np.array_equal(np.asarray(SceneParse150(root, "train", found.rule)[0][1]), mask // 255)
    assert any("are read as seen: black is 0" in line for line in found.lines)


def test_a_mask_that_is_all_white_is_all_object(tmp_path: Path) -> None:
    white = Image.fromarray(np.full((4, 6), 255, np.uint8)).convert("RGB").quantize(2)
    assert not any(white.getpalette()[3:])  # or this tests nothing
    root = folder(tmp_path, white)
    found = about(root, binary=True)
    assert np.asarray(SceneParse150(root, "train", found.rule)[0][1]).all()


def drawn(held: np.ndarray, *palette: tuple[int, int, int]) -> Image.Image:
    picture = Image.fromarray(held)
    picture.putpalette([level for colour in palette for level in colour])
    return picture


MASK = np.zeros((4, 6), np.uint8)
MASK[:, 2:] = 1
RED, BLACK, GREEN, BLUE = (200, 0, 0), (0, 0, 0), (0, 200, 0), (0, 0, 200)


def test_masks_whose_palettes_begin_with_any_colour_are_read_as_seen(tmp_path: Path) -> None:
    pictures = [drawn(1 - MASK, RED, BLACK), drawn(MASK, BLACK, RED), drawn(1 - MASK, (254, 254, 254), BLACK)]
    root = folder(tmp_path, *pictures, drawn(0 * MASK, RED))
    dataset = SceneParse150(root, "train", about(root, binary=True).rule)
    for row, expected in enumerate([MASK, MASK, MASK, np.ones_like(MASK)]):
        assert np.array_equal(np.asarray(dataset[row][1]), expected)


def test_a_background_that_is_drawn_in_a_colour_is_refused(tmp_path: Path) -> None:
    root = folder(tmp_path / "two", drawn(1 - MASK, RED, BLACK))
    assert "a palette that draws 'background' in (200, 0, 0) and index 1 in black" in refusal(
        root, classes=Classes("c.txt", ("background", "crack"))
    )
    mixed = np.arange(24, dtype=np.uint8).reshape(4, 6) % 3
    root = folder(tmp_path / "three", drawn(mixed, RED, BLACK, GREEN))
    assert "draws 0, the background, in (200, 0, 0) and 1 in black" in refusal(root, binary=True)


@pytest.mark.parametrize(
    ("held", "said"),
    [
        (np.zeros((2, 3, 2), np.uint8), "more than one band, as LX; save the one that holds the class ids"),
        (np.zeros((2, 3, 1), np.int64), "a TIFF of a form that Pillow does not know, such as numbers of 64 bits"),
    ],
)
def test_tiffs_that_are_no_label_maps_are_told_what_they_are(held: np.ndarray, said: str, tmp_path: Path) -> None:
    root = folder(tmp_path, values(0, 1, 1))
    (root / "annotations/0.png").unlink()
    (root / "annotations/0.tif").write_bytes(tiff(held, 1, (0,) * (held.shape[2] - 1)))
    assert said in refusal(root, num_labels=2, reduce_labels=False)


def test_masks_of_which_the_first_are_empty_are_still_told_from_what_is_ignored(tmp_path: Path) -> None:
    root = folder(tmp_path, *[values(0, 255 * (number == 9)) for number in range(26)])  # 9.png comes last
    said = refusal(root, classes=Classes("c.txt", ("background", "tumor")), reduce_labels=False)
    assert "hold 0 and 255 and nothing else in the first 26 rows: if 255 is the object, give --binary-masks" in said


def test_a_colour_that_the_class_file_lacks_does_not_make_ids_of_indices(tmp_path: Path) -> None:
    mixed = np.arange(24, dtype=np.uint8).reshape(4, 6) % 4
    root = folder(tmp_path, drawn(mixed, BLACK, BLUE, RED, GREEN))
    lines = "name,r,g,b\nbackground,0,0,0\na,200,0,0\nb,0,200,0\nc,0,0,{}\n"
    (root / "class_dict.csv").write_text(lines.format(201))
    assert "which lacks (0, 0, 200) of index 1: add a line for it" in refusal(root)
    (root / "class_dict.csv").write_text(lines.format(200))
    label = np.asarray(SceneParse150(root, "train", about(root).rule)[0][1])
    assert np.array_equal(label, np.array([0, 3, 1, 2])[mixed])
    assert "--ignore-index is 0, a number, but these label maps are read by their colours" in refusal(
        root, ignore_index=0
    )


def test_a_model_that_was_trained_on_colours_scores_palettes_by_them(tmp_path: Path) -> None:
    mixed = np.arange(24, dtype=np.uint8).reshape(4, 6) % 3
    root = folder(tmp_path, drawn(mixed, BLACK, BLUE, RED))
    rule = LabelRule(3, False, None, colours=((BLACK, 0), (RED, 1), (BLUE, 2)))
    found = about(root, known=KnownLabels("run", ("a", "b", "c"), rule))
    assert found.rule == rule
    label = np.asarray(SceneParse150(root, "train", found.rule)[0][1])
    assert np.array_equal(label, np.array([0, 2, 1])[mixed])


def test_palettes_that_differ_are_refused_to_a_model_of_ids_as_well(tmp_path: Path) -> None:
    root = folder(tmp_path, drawn(MASK, BLACK, BLUE), drawn(MASK, BLACK, RED))
    known = KnownLabels("run", ("a", "b"), LabelRule(2, False, 255))
    assert "palettes that differ, so that indices are no class ids" in refusal(root, known=known)


def test_a_palette_is_held_to_in_every_row_and_wherever_the_model_is_scored(tmp_path: Path) -> None:
    pictures = [drawn(MASK, BLACK, BLUE, RED) for _ in range(29)]  # of which RED is never used
    names = {"num_labels": 3, "reduce_labels": False}
    root = folder(tmp_path / "train", *pictures, drawn(MASK * 2, BLACK, GREEN, RED), drawn(MASK, BLACK, RED))
    dataset = SceneParse150(root)
    rule = about(root, **names).rule
    assert rule.palette == ((0, BLACK), (1, BLUE))
    rows = {dataset.name(row): row for row in range(31)}
    for name in ("0", "29"):  # in the latter, an index that is not used has another colour
        assert dataset.with_rule(rule)[rows[name]][1] is not None
    with pytest.raises(ValueError, match=r"30\.png draws 1 in \(200, 0, 0\), which is \(0, 0, 200\) in the label maps"):
        dataset.with_rule(rule)[rows["30"]]
    again = LabelRule.from_dict(json.loads(json.dumps(rule.to_dict())))
    assert (again.palette, again) == (rule.palette, LabelRule(3, False, 255))
    other = folder(tmp_path / "other", drawn(MASK, BLACK, RED))
    assert "draws 1 in (200, 0, 0)" in refusal(other, known=KnownLabels("run", ("a", "b", "c"), again))
    grey = folder(tmp_path / "grey", Image.fromarray(MASK))
    assert about(grey, known=KnownLabels("run", ("a", "b", "c"), again)).rule.palette == rule.palette


def test_a_model_of_masks_of_255_names_the_flag_that_reads_others(tmp_path: Path) -> None:
    rule = LabelRule(2, False, values=((0, 0), (255, 1)))
    root = folder(tmp_path, Image.fromarray(MASK.astype(bool)))
    said = refusal(root, known=KnownLabels("run", ("background", "object"), rule))
    assert "hold 1 in the first row, but 2 classes are 0 to 1: --binary-masks takes every value above 0" in said
    assert json.dumps(about(root).rule.to_dict()["values"]) == "[[0, 0], [1, 1]]"


def test_a_value_to_ignore_is_one_more_than_what_has_a_name_for_that(tmp_path: Path) -> None:
    names = Classes("c.txt", ("void", "road", "car", "tree"))
    root = folder(tmp_path, values(0, 1, 2, 3, 255))
    assert about(root, classes=names).rule.ignored == (0, 255)
    assert about(root, classes=names, ignore_index=255).rule.ignored == (0, 255)
    assert "hold 255 in the first row" in refusal(root, classes=names, ignore_index=3)


@pytest.mark.parametrize("flags", [{}, {"reduce_labels": True}])
def test_names_that_begin_with_a_background_of_1_are_all_kept(flags: dict[str, Any], tmp_path: Path) -> None:
    names = Classes("c.txt", ("background", "building", "road"))  # LoveDA's way: 0 is no data
    without = about(folder(tmp_path / "without", values(1, 2, 3)), classes=names, **flags)
    assert list(without.id2label.values()) == ["background", "building", "road"]
    with_zero = about(folder(tmp_path / "with", values(0, 1, 2, 3)), classes=names, reduce_labels=True)
    assert (with_zero.rule, with_zero.id2label) == (without.rule, without.id2label)


def test_the_names_of_labelme_begin_below_zero(tmp_path: Path) -> None:
    root = folder(tmp_path, values(0, 1, 2))
    (root / "labels.txt").write_text("__ignore__\n_background_\ncat\ndog\n")
    assert list(about(root).id2label.values()) == ["_background_", "cat", "dog"]


def test_comments_in_a_class_file_are_no_classes(tmp_path: Path) -> None:
    root = folder(tmp_path, values(0, 1, 2))
    (root / "classes.txt").write_text("background\n# animals\ncat\ndog\n")
    assert list(about(root).id2label.values()) == ["background", "cat", "dog"]


def test_a_class_file_that_was_passed_over_is_named_in_the_refusal(tmp_path: Path) -> None:
    root = folder(tmp_path, values(0, 1, 2))
    (root / "classes.txt").write_text("background\n\ncat\ndog\n")
    said = refusal(root)
    assert "nothing names the classes" in said
    assert "classes.txt is passed over: " in said


def test_the_colours_of_a_class_file_are_nothing_to_binary_masks(tmp_path: Path) -> None:
    root = folder(tmp_path, values(0, 255))
    (root / "class_dict.csv").write_text("name,r,g,b\nbackground,0,0,0\nroad,255,255,255\n")
    found = about(root, binary=True)
    assert (found.rule.binary, found.id2label[1]) == (True, "road")


def test_palettes_of_masks_that_are_said_to_be_masks_may_differ(tmp_path: Path) -> None:
    pictures = [Image.fromarray(np.eye(3, dtype=np.uint8)) for _ in range(2)]
    for picture, colour in zip(pictures, [(200, 0, 0), (0, 200, 0)], strict=True):
        picture.putpalette([0, 0, 0, *colour])
    assert about(folder(tmp_path, *pictures), binary=True).rule.binary


def test_blurred_masks_are_said_to_be_so(tmp_path: Path) -> None:
    blurred = folder(tmp_path / "blurred", values(0, 1, 2, 200, 254, 255))
    (said,) = about(blurred, binary=True).warnings
    assert said.startswith("the masks hold 4 values between 0 and 255, in 66.7% of their pixels in the first row")
    every = folder(tmp_path / "every", values(*range(256)))
    assert "hold 254 values between 0 and 255, in 99.2% of their pixels" in about(every, binary=True).warnings[0]
    objects = folder(tmp_path / "objects", values(0, 1, 2, 3, 4, 5))
    assert about(objects, binary=True).warnings == []


# Class files


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("labelmap.txt", "# label:color_rgb:parts:actions\nbackground:0,0,0::\ncar:64,0,128::\nroad:128,64,128::\n"),
        ("class_dict.csv", "name,r,g,b\nbackground,0,0,0\ncar,64,0,128\nroad,128,64,128\n"),
        ("class_dict.csv", "name; red; green; blue\nbackground; 0; 0; 0\ncar; 64; 0; 128\nroad; 128; 64; 128\n"),
        ("c.csv", "background,0,0,0\ncar,64,0,128\nroad,128,64,128\n"),
        ("label_colors.txt", "0 0 0\tbackground\n64 0 128\tcar\n128 64 128\troad\n"),
        ("c.txt", "r\tg\tb\tName\n0\t0\t0\tbackground\n64\t0\t128\tcar\n128\t64\t128\troad\n"),
        ("c.csv", 'Idx,Color_Code (R,Name\n0,"(0, 0, 0)",background\n1,"(64, 0, 128)",car\n2,#804080,road\n'),
        ("c.json", '{"background": [0, 0, 0], "car": [64, 0, 128], "road": [128, 64, 128]}'),
        ("c.json", '[{"name": "background", "color": "#000000"}, {"name": "car", "color": [64, 0, 128]}, '
                   '{"name": "road", "color": "128,64,128"}]'),
        ("c.json", '{"classes": [{"id": 2, "name": "road", "rgb": [128, 64, 128]}, {"id": 0, "name": "background", '
                   '"rgb": [0, 0, 0]}, {"id": 1, "name": "car", "rgb": [64, 0, 128]}]}'),
    ],
)  # fmt: skip
def test_class_files_of_every_form_give_names_and_colours(file: str, text: str) -> None:
    found = parse_classes(text, file)
    assert dict(zip(found.names, found.colours or (), strict=True)) == COLOURS


@pytest.mark.parametrize(
    ("file", "text", "first_id"),
    [
        (
            "objectInfo150.txt",
            "Idx\tRatio\tTrain\tVal\tName\n1\t0.1\t10\t2\twall\n2\t0.1\t9\t3\tbuilding, edifice\n",
            1,
        ),
        ("objectInfo150.csv", "Idx,Ratio,Train,Val,Stuff,Name\n1,0.1,10,2,1,wall\n2,0.1,9,3,0,building;edifice\n", 1),
        ("_classes.csv", "Pixel Value, Class\n0, wall\n1, building\n", 0),
        ("names.txt", "0 wall\n1 building\n", 0),
        ("names.txt", "1: wall\n2: building\n", 1),
        ("config.json", '{"id2label": {"0": "wall", "1": "building"}, "depths": [2]}', 0),
        ("names.txt", "wall\nbuilding\n", None),
        ("names.txt", "wall, building", None),
        ("names.txt", "building: 1\nwall: 0\n", 0),
        ("names.txt", "building 2\nwall 1\n", 1),
        ("c.csv", "class,label\nbuilding,1\nwall,0\n", 0),
        ("c.csv", "label,class\n2,building\n1,wall\n", 1),
        *(("c.csv", f"name,{head}\nbuilding,1\nwall,0\n", 0)
          for head in ("number", "Gray Value", "pixel", "mask_value", "color", "DN")),
        ("c.csv", "name,priority\nwall,1\nbuilding,0\n", None),
        ("c.csv", "name,code\nwall,W1\nbuilding,B2\n", None),
        ("c.csv", "name,number\nwall,523\nbuilding,1200\n", None),
        ("c.csv", "name,trainId\nwall,0\nbuilding,-1\n", None),
        ("c.csv", "name,count\nwall,1203\nbuilding,77\n", None),
        *(("c.json", json.dumps([{"name": "building", key: "1"}, {"name": "wall", key: "0"}]), 0)
          for key in ("id", "class_id", "trainId")),
        ("c.json", '{"building": "1", "wall": "0"}', 0),
    ],
)  # fmt: skip
def test_tables_and_lists_of_names_give_names_and_the_first_id(file: str, text: str, first_id: int | None) -> None:
    assert parse_classes(text, file) == Classes(file, ("wall", "building"), None, first_id)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name,r,g,b\na,1,2,3\nb,1,2,3", r"colour '\(1, 2, 3\)' is there twice"),
        ("name,r,g,b\na,1,2,3\na,3,2,1", "name 'a' is there twice"),
        ("name,r,g,b\na,1,2,300", "'1,2,300' is no colour; it must be three numbers, each 0 to 255"),
        ("name,r,g,b\na,1,2", "line 2 has 3 cells, its header 4"),
        ("Idx,Name\n0,a\n0,b", "id '0' is there twice"),
        ("Name,number,code\na,0,1\nb,1,0", "the columns number and code both number the classes, each otherwise"),
        ("names:\n- a\n- b", "'names:' looks like YAML"),
        ("Idx,Name\nx,a", "line 2 has 'x' for an id"),
    ],
)
def test_class_files_that_contradict_themselves_are_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=f"^label names in c.csv: {message}"):
        parse_classes(text, "c.csv")


def test_a_ready_made_class_file_is_one() -> None:
    assert parse_classes(ready_made(COLOURS.values()), "c.csv").colours == ((0, 0, 0), (64, 0, 128), (128, 64, 128))


# The Hub

SIDEWALK = """
import json, sys
from data import SceneParse150
from data.sources.choice import named_classes
from data.understanding import Flags, understand
names = sys.argv[2] if len(sys.argv) > 2 else None
try:
    dataset = SceneParse150(sys.argv[1])
    found = understand(dataset, Flags(named_classes(names)) if names else Flags())
    pair = dataset.with_rule(found.rule)[0]
    print(json.dumps([found.rule.to_dict(), list(found.id2label.values()), found.lines, max(pair[1].tobytes())]))
except Exception as error:
    print(json.dumps([type(error).__name__, str(error)]))
"""


def start(hub: HubServer, home: Path, *arguments: str, **variables: str) -> list[Any]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING_FACE_"))}
    kept |= {"HF_HOME": str(home), "HF_ENDPOINT": hub.url, "PYTHONPATH": str(ROOT), "NO_PROXY": "127.0.0.1"}
    done = programs.run("-c", SIDEWALK, *arguments, environment=kept | variables)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def sidewalk(columns: tuple[str, str] = ("pixel_values", "label")) -> bytes:
    label_map = encode(Image.fromarray(np.array([[0, 1, 34]], np.uint8)))
    files = [{"bytes": file, "path": None} for file in (encode(Image.new("RGB", (3, 1))), label_map)]
    table = pa.table({name: pa.array([file] * 3) for name, file in zip(columns, files, strict=True)})
    stream = io.BytesIO()
    pq.write_table(table, stream)
    return stream.getvalue()


NAMES = {str(k): ("unlabeled" if k == 0 else f"flat-{k}") for k in range(35)}


@pytest.mark.parametrize("revision", ["main", "refs/convert/parquet"])
def test_the_form_of_sidewalk_semantic_needs_nothing_but_its_name(revision: str, tmp_path: Path) -> None:
    name = "data/train-00000-of-00001.parquet" if revision == "main" else "default/train/0000.parquet"
    with HubServer() as hub:
        names = {"id2label.json": json.dumps(NAMES).encode(), "README.md": b"."}
        revisions = {"main": dict(names), revision: {}}
        revisions["main"] |= names
        revisions[revision] |= {name: sidewalk()}
        hub.repositories["datasets/segments/sidewalk-semantic"] = Repository(revisions)
        found = start(hub, tmp_path, "segments/sidewalk-semantic")
        assert LabelRule.from_dict(found[0]) == LabelRule(35, False, (0, 255))
        assert found[1] == list(NAMES.values())
        assert "photos from column pixel_values, label maps from label (--image-column, --label-column)" in found[2][0]
        assert (
            "35 classes by segments/sidewalk-semantic/id2label.json (--label-names): unlabeled, flat-1" in found[2][1]
        )
        assert found[3] == 255
        hub.log.clear()
        assert start(hub, tmp_path, "segments/sidewalk-semantic", HF_HUB_OFFLINE="1") == found
        assert hub.log == []


def test_names_of_another_repository_are_fetched_and_kept(tmp_path: Path) -> None:
    files = {"a-id2label.json": json.dumps(NAMES).encode(), "b-id2label.json": b'["x"]', "train.txt": b""}
    with HubServer() as hub:
        hub.repositories["datasets/org/maps"] = Repository({"main": {"train.parquet": sidewalk(("image", "mask"))}})
        hub.repositories["datasets/org/label-files"] = Repository({"main": files})
        found = start(hub, tmp_path, "org/maps", "org/label-files/a-id2label.json")
        assert found[1] == list(NAMES.values())
        assert start(hub, tmp_path, "org/maps", "org/label-files/a-id2label.json", HF_HUB_OFFLINE="1") == found
        several = start(hub, tmp_path, "org/maps", "org/label-files")
        assert several[0] == "ValueError"
        assert "has several files of class names; name one: org/label-files/<a-id2label.json, b-id2l" in several[1]
        gone = start(hub, tmp_path, "org/maps", "org/label-files/c.json")
        assert gone[0] == "FileNotFoundError"
        assert "has no c.json; it has a-id2label.json, b-id2label.json" in gone[1]


def test_a_label_map_alone_is_read_by_the_rule() -> None:
    rule = LabelRule(3, False, (0, 255))
    assert np.asarray(decode_label_map(encode(Image.fromarray(values(0, 1, 2))), "here", rule)).tolist() == [
        [255, 1, 2]
    ]


@pytest.mark.parametrize("page", ["data.md", "data.ko.md"])
def test_the_lines_of_the_page_read_own_classes_as_they_are(page: str, tmp_path: Path) -> None:
    (folder(tmp_path, values(0, 1, 2)) / "names.txt").write_text("background\nroad\ncar\n")
    text = (Path(__file__).resolve().parents[2] / "docs" / page).read_text(encoding="utf-8")
    (lines,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    made: dict[str, Any] = {}
    exec(lines.replace("path/to/folder", tmp_path.as_posix()), made)
    assert made["found"].id2label == {0: "background", 1: "road", 2: "car"}
    assert made["processor"](*made["rows"][0])[1].unique().tolist() == [0, 1, 2]
