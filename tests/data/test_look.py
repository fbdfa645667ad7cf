"""A look at a dataset: every fault planted in a copy is found with its row, and a clean one has none."""

from __future__ import annotations

import io
import shutil
from collections.abc import Callable
from pathlib import Path

import forms
import numpy as np
import pytest
from markup import Markup
from PIL import Image

from data import look
from data.batches import Samples, for_evaluation
from data.folders import folders_to_shards
from data.parts import open_parts
from data.sceneparse import SceneParse150, train_test_split
from data.shares import ClassShares, class_shares
from data.sources.shards import write_shard
from segformer import ImageProcessor
from segformer.photos import decode_photo
from segformer.training.recipes import RECIPES, TrainConfig

NAMES = (*forms.NAMES, "kerb")
COLOURS = np.array([*forms.COLOURS, (220, 20, 60)], np.uint8)
TRAIN, VALIDATION = 40, 4
Plant = Callable[[Path, Path], None]  # of a row's photo and its label map


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)


def labels(number: int) -> forms.Array:
    """Five classes in every label map, the last a curb of a few pixels."""
    held = forms.labels(number)
    held[-4:, -8:] = 4
    return held


def clean(root: Path) -> Path:
    """Folders of photos and label maps that nothing is wrong with."""
    for split, numbers in (("training", range(TRAIN)), ("validation", range(100, 100 + VALIDATION))):
        for number in numbers:
            forms.save(root / f"images/{split}/{forms.name(number)}.png", forms.photo(number))
            forms.save(root / f"annotations/{split}/{forms.name(number)}.png", labels(number))
    (root / "classes.txt").write_text("\n".join(NAMES))
    return root


def config(source: Path, *flags: str) -> TrainConfig:
    return look.parse_arguments([str(source), "--no-html", *flags])[0]


def found(source: Path, *flags: str) -> dict[str, set[str]]:
    """The kinds of fault, and of each the names of the rows at fault."""
    findings = look.look(config(source, *flags)).findings
    return {kind: {Path(fault.where).stem for fault in finding.faults} for kind, finding in findings.items()}


def files_of(root: Path, number: int) -> tuple[Path, Path]:
    """The photo and the label map of a row to train on."""
    name = f"training/{forms.name(number)}.png"
    return root / "images" / name, root / "annotations" / name


# What may be wrong with a row


def changed(path: Path, change: Callable[[forms.Array], forms.Array], form: str = "PNG") -> None:
    picture = np.array(Image.open(path))
    path.write_bytes(forms.encoded(change(picture), form))


def with_stray(value: int) -> Callable[[forms.Array], forms.Array]:
    def change(held: forms.Array) -> forms.Array:
        held = held.astype(np.uint16 if value > 255 else np.uint8)
        held[:3, :3] = value
        return held

    return change


def as_jpeg(path: Path) -> None:
    path.write_bytes(forms.encoded(np.array(Image.open(path)), "JPEG"))


def two_pages(path: Path) -> None:
    stream, page = io.BytesIO(), Image.open(path)
    page.save(stream, "TIFF", save_all=True, append_images=[page.copy()])
    path.write_bytes(stream.getvalue())


def turned(path: Path, orientation: int, degrees: int) -> None:
    exif = Image.Exif()
    exif[forms.ORIENTATION] = orientation
    Image.open(path).rotate(degrees, expand=True).save(path, exif=exif)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def both(first: Callable[[Path], object], second: Callable[[Path], object]) -> Plant:
    def plant(photo: Path, label_map: Path) -> None:
        first(photo)
        second(label_map)

    return plant


def photo_of(change: Callable[[Path], object]) -> Plant:
    return lambda photo, _: void(change(photo))


def map_of(change: Callable[[Path], object]) -> Plant:
    return lambda _, label_map: void(change(label_map))


def void(_: object) -> None:
    """Nothing, of whatever a plant returns."""


def resized(width: int, height: int) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        Image.open(path).resize((width, height), Image.Resampling.NEAREST).save(path)

    return change


def neighbour(photo: Path) -> Path:
    """The file of row 0, which stays as it is."""
    return photo.with_name(f"{forms.name(0)}.png")


FAULTS: dict[str, tuple[str, Plant]] = {
    "a photo that is cut off": ("photo", photo_of(cut)),
    "a photo that is text": ("photo", photo_of(lambda path: path.write_text("not found"))),
    "a photo without a byte": ("photo", photo_of(lambda path: path.write_bytes(b""))),
    "a photo of fractions": (
        "photo",
        photo_of(lambda path: changed(path, lambda held: np.float32(held[..., 0] / 255), "TIFF")),
    ),
    "a photo of 12 bits in 16": (
        "photo",
        photo_of(lambda path: changed(path, lambda held: held[..., 0].astype(np.uint16) * 16)),
    ),
    "a label map that is cut off": ("label map", map_of(cut)),
    "a label map that is a JPEG": ("label map", map_of(as_jpeg)),
    "a label map with clear pixels": (
        "label map",
        map_of(lambda path: changed(path, lambda held: np.dstack([held, np.uint8(held > 0)]))),
    ),
    "a label map of two pages": ("label map", map_of(two_pages)),
    "a label map of fractions": (
        "label map",
        map_of(lambda path: changed(path, lambda held: np.float32(held), "TIFF")),
    ),
    "a value without a class": ("value", map_of(lambda path: changed(path, with_stray(9)))),
    "a value beyond 8 bits": ("value", map_of(lambda path: changed(path, with_stray(1000)))),
    "a colour among values": ("colour", map_of(lambda path: changed(path, lambda held: COLOURS[held]))),
    "a label map of half the size": ("size", map_of(resized(32, 24))),
    "a label map on its side": ("size", map_of(lambda path: changed(path, np.rot90))),
    "a photo and a label map on their sides": (
        "turned",
        both(lambda path: turned(path, 6, 90), lambda path: changed(path, np.rot90)),
    ),
    "a photo on its head": ("turned", photo_of(lambda path: turned(path, 3, 180))),
    "a label map of one class": ("constant", map_of(lambda path: changed(path, np.zeros_like))),
    "a label map that is all ignored": (
        "ignored",
        map_of(lambda path: changed(path, lambda held: np.full_like(held, 255))),
    ),
    "a photo that is there twice": (
        "duplicate",
        both(lambda path: shutil.copy(neighbour(path), path), lambda path: shutil.copy(neighbour(path), path)),
    ),
    "a photo that is labelled otherwise": (
        "contradicted",
        photo_of(lambda path: shutil.copy(neighbour(path), path)),
    ),
    "another photo's label map": ("paired", map_of(lambda path: shutil.copy(neighbour(path), path))),
    "a photo of one colour": ("blank", photo_of(lambda path: changed(path, np.zeros_like))),
    "a very small photo": ("small", both(resized(20, 15), resized(20, 15))),
    "a photo a hundred times as large": ("unlike", both(resized(640, 480), resized(640, 480))),
}


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    return clean(tmp_path / "data")


def test_nothing_is_found_in_a_clean_dataset(dataset: Path) -> None:
    assert found(dataset) == {}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_found_and_it_alone(dataset: Path, fault: str) -> None:
    kind, plant = FAULTS[fault]
    plant(*files_of(dataset, 3))
    assert found(dataset) == {kind: {forms.name(3)}}


def with_palette(path: Path, *colours: tuple[int, int, int]) -> None:
    picture = Image.open(path)
    picture.putpalette([level for colour in colours for level in colour])
    picture.save(path)


COLOURED = [(0, 0, 0), (1, 2, 3), (4, 5, 6), (7, 8, 9), (9, 9, 9)]


def test_a_row_whose_palette_differs_is_found(dataset: Path) -> None:
    for path in (dataset / "annotations").rglob("*.png"):
        with_palette(path, *COLOURED)
    assert found(dataset) == {}
    with_palette(files_of(dataset, 30)[1], *COLOURED[:1], *COLOURED[:0:-1])
    assert found(dataset) == {"palette": {forms.name(30)}}


def test_palettes_of_white_and_black_in_either_order_are_one(dataset: Path) -> None:
    for number, path in enumerate(sorted((dataset / "annotations").rglob("*.png"))):
        held = np.uint8(np.array(Image.open(path)) > 1)
        picture = Image.fromarray(held if number % 2 else 1 - held)
        picture.putpalette([0, 0, 0, 255, 255, 255] if number % 2 else [255, 255, 255, 0, 0, 0])
        picture.save(path)
    (dataset / "classes.txt").write_text("background\nobject\n")
    assert found(dataset) == {}


def test_a_split_whose_palette_differs_is_found_and_refused_before_it_is_scored(dataset: Path) -> None:
    for split, colours in (("training", COLOURED), ("validation", COLOURED[::-1])):
        for path in (dataset / f"annotations/{split}").iterdir():
            with_palette(path, *colours)
    assert set(found(dataset)) == {"palette"}
    assert look.look(config(dataset)).stops
    with pytest.raises(
        ValueError, match=r"validation.* draws 0 in \(9, 9, 9\), which is \(0, 0, 0\) in the label maps"
    ):
        open_parts(config(dataset), decode_photo)


def test_label_maps_that_were_resized_as_photos_are_found_and_warned_of(dataset: Path) -> None:
    scenes = np.random.default_rng(0).integers(0, 5, (3, 4), np.uint8).repeat(70, 0).repeat(75, 1)[5:, 9:]
    (dataset / "classes.txt").write_text("\n".join(f"class {k}" for k in range(12)))
    flags = ("--no-reduce-labels",)

    def redrawn(how: Image.Resampling) -> None:
        for path in (dataset / "annotations").rglob("*.png"):
            changed(path, lambda held: np.array(Image.fromarray(scenes).resize(held.shape[::-1], how)))

    redrawn(Image.Resampling.NEAREST)
    assert "blended" not in found(dataset, *flags)
    redrawn(Image.Resampling.BILINEAR)
    looked = look.look(config(dataset, *flags))
    assert looked.findings["blended"].count == sum(len(survey.dataset) for survey in looked.surveys)
    assert any("edges in the first 20 rows go through a number between" in said for said in looked.labels.warnings)


def test_what_training_says_of_the_rows_to_score_is_said(dataset: Path) -> None:
    for path in (dataset / "annotations/validation").iterdir():
        changed(path, lambda held: held + 1)
    (dataset / "classes.txt").write_text("\n".join(f"class {k}" for k in range(12)))
    flags = ("--no-reduce-labels",)
    looked = look.look(config(dataset, *flags))
    assert looked.labels.warnings == open_parts(config(dataset, *flags), decode_photo).labels.warnings
    assert any("every class is scored as its neighbour" in warning for warning in looked.labels.warnings)


def test_label_maps_of_one_value_are_not_taken_for_each_other(dataset: Path) -> None:
    for number in (3, 4):
        changed(files_of(dataset, number)[1], np.zeros_like)
    assert found(dataset) == {"constant": {forms.name(3), forms.name(4)}}


def test_photos_that_differ_in_a_pixel_are_two(dataset: Path) -> None:
    photo = files_of(dataset, 3)[0]
    shutil.copy(neighbour(photo), photo)
    changed(photo, lambda held: np.concatenate([held[:-1], 255 - held[-1:]]))
    assert found(dataset) == {}


def test_a_label_map_that_does_not_decode_contradicts_no_other(dataset: Path) -> None:
    photo, label_map = files_of(dataset, 3)
    shutil.copy(neighbour(photo), photo)
    cut(label_map)
    assert found(dataset) == {"duplicate": {forms.name(3)}, "label map": {forms.name(3)}}


def test_photos_that_do_not_decode_are_not_the_same_photo(dataset: Path) -> None:
    photos = [files_of(dataset, 3)[0], files_of(dataset, 4)[0], dataset / f"images/validation/{forms.name(101)}.png"]
    for photo in photos:
        cut(photo)
    assert found(dataset) == {"photo": {photo.stem for photo in photos}}


@pytest.mark.parametrize("form", ["folder", "shards"])
def test_all_faults_are_found_together(dataset: Path, tmp_path: Path, form: str) -> None:
    expected: dict[str, set[int]] = {}
    for number, (kind, plant) in enumerate(FAULTS.values(), 5):
        plant(*files_of(dataset, number))
        expected.setdefault(kind, set()).add(number)
    source, flags = dataset, []
    if form == "shards":
        folders_to_shards(dataset, tmp_path / "shards")
        source, flags = tmp_path / "shards", ["--label-names", str(dataset / "classes.txt")]
    findings = look.look(config(source, *flags)).findings
    rows = {kind: {fault.row for fault in finding.faults} for kind, finding in findings.items()}
    assert {kind: rows.get(kind, set()) & numbers for kind, numbers in expected.items()} == expected
    assert not set(range(5)) & set().union(*rows.values())


def test_a_fault_of_the_first_row_does_not_hide_what_label_maps_mean(dataset: Path) -> None:
    changed(files_of(dataset, 0)[1], with_stray(9))
    cut(files_of(dataset, 1)[1])
    looked = look.look(config(dataset))
    assert looked.labels.rule.num_labels == len(NAMES)
    assert set(looked.findings) == {"value", "label map"}


# Colours


def coloured_copy(dataset: Path, root: Path) -> Path:
    shutil.copytree(dataset / "images", root / "images")
    for path in sorted((dataset / "annotations").rglob("*.png")):
        forms.save(root / path.relative_to(dataset), COLOURS[np.array(Image.open(path))])
    lines = [f"{name},{r},{g},{b}" for name, (r, g, b) in zip(NAMES, COLOURS.tolist(), strict=True)]
    (root / "class_dict.csv").write_text("\n".join(["name,r,g,b", *lines]))
    return root


def test_nothing_is_found_in_clean_colour_masks(dataset: Path, tmp_path: Path) -> None:
    assert found(coloured_copy(dataset, tmp_path / "colours")) == {}


def test_faults_of_colour_masks_are_found(dataset: Path, tmp_path: Path) -> None:
    root = coloured_copy(dataset, tmp_path / "colours")

    def with_stray_colour(held: forms.Array) -> forms.Array:
        held[:3, :3] = (1, 2, 3)
        return held

    changed(files_of(root, 2)[1], with_stray_colour)
    cut(files_of(root, 7)[1])
    changed(files_of(root, 9)[1], np.zeros_like)
    resized(32, 24)(files_of(root, 11)[1])
    rows = {"colour": 2, "label map": 7, "constant": 9, "size": 11}
    assert found(root) == {kind: {forms.name(number)} for kind, number in rows.items()}


# What is only seen in all of a dataset


def everywhere(dataset: Path, change: Callable[[forms.Array], forms.Array]) -> None:
    for path in (dataset / "annotations").rglob("*.png"):
        changed(path, change)


def test_a_photo_of_two_splits_is_named_in_both(dataset: Path) -> None:
    photo = dataset / f"images/validation/{forms.name(101)}.png"
    Image.open(neighbour(files_of(dataset, 3)[0])).save(photo, compress_level=1)  # other bytes, the same pixels
    finding = look.look(config(dataset)).findings["shared"]
    assert [(fault.split, fault.row) for fault in finding.faults] == [("validation", 1)]
    assert f"{forms.name(0)}.png, of train" in finding.faults[0].said


def test_a_class_that_never_occurs_is_named(dataset: Path) -> None:
    everywhere(dataset, lambda held: np.where(held == 4, 3, held).astype(np.uint8))
    finding = look.look(config(dataset)).findings["never"]
    assert finding.said == ["train: 1 of 5: kerb", "validation: 1 of 5: kerb"]


def test_a_class_of_one_photo_is_named_with_it(dataset: Path) -> None:
    kept = files_of(dataset, 3)[1].read_bytes()
    everywhere(dataset, lambda held: np.where(held == 4, 3, held).astype(np.uint8))
    files_of(dataset, 3)[1].write_bytes(kept)
    finding = look.look(config(dataset)).findings["rare"]
    assert [(fault.row, fault.said.split(":")[0]) for fault in finding.faults] == [(3, "kerb")]


def test_a_class_of_hardly_a_pixel_is_named_with_its_photos(dataset: Path) -> None:
    everywhere(dataset, lambda held: np.where(held == 4, 3, held).astype(np.uint8))
    for number in (3, 6):
        changed(files_of(dataset, number)[1], one_pixel)
    (fault,) = look.look(config(dataset)).findings["rare"].faults
    assert fault.row == 3
    assert "in 2 of 40 photos" in fault.said
    assert forms.name(6) in fault.said


def one_pixel(held: forms.Array) -> forms.Array:
    held[5, 5] = 4
    return held


@pytest.mark.parametrize(
    ("change", "flags", "hint"),
    [
        (lambda held: held, ["--reduce-labels", "--num-labels", "5"], "--no-reduce-labels"),
        (lambda held: np.maximum(held, 1).astype(np.uint8), ["--no-reduce-labels"], "ids begin at 1"),
    ],
    ids=["from 0 read from 1", "without 0"],
)
def test_labels_that_are_shifted_by_one_are_told(
    dataset: Path, change: Callable[[forms.Array], forms.Array], flags: list[str], hint: str
) -> None:
    everywhere(dataset, change)
    names = "things\nsky\nroad\ncar\nkerb"
    (dataset / "classes.txt").write_text(names)
    finding = look.look(config(dataset, *flags)).findings["shifted"]
    assert finding.said[0].startswith("train: ")
    assert hint in finding.said[0]


def test_labels_from_1_that_are_read_from_0_are_told_with_their_rows(dataset: Path) -> None:
    everywhere(dataset, lambda held: np.minimum(held + 1, 4).astype(np.uint8))  # the last is not among the first rows
    changed(files_of(dataset, 30)[1], with_stray(5))
    findings = look.look(config(dataset, "--no-reduce-labels")).findings
    assert "0 never occurs and 5 does" in findings["shifted"].said[0]
    assert [fault.row for fault in findings["value"].faults] == [30]


def test_values_far_off_are_not_labels_shifted_by_one(dataset: Path) -> None:
    everywhere(dataset, lambda held: np.minimum(held + 1, 4).astype(np.uint8))
    for number, value in ((30, 5), (31, 9)):
        changed(files_of(dataset, number)[1], with_stray(value))
    said = look.look(config(dataset, "--no-reduce-labels")).findings["shifted"].said
    assert not any(text.startswith("train") for text in said)


def test_classes_of_reduced_labels_go_by_their_names(dataset: Path) -> None:
    kept = files_of(dataset, 3)[1].read_bytes()
    everywhere(dataset, lambda held: np.where(held == 4, 3, held).astype(np.uint8))
    files_of(dataset, 3)[1].write_bytes(kept)
    changed(files_of(dataset, 6)[1], lambda held: np.full_like(held, 2))
    findings = look.look(config(dataset, "--reduce-labels")).findings
    assert findings["rare"].faults[0].row == 3
    assert findings["rare"].faults[0].said.startswith("kerb")
    assert findings["constant"].faults[0].said == "every pixel is of class 1"  # road, after sky


def test_labels_from_1_that_are_read_from_0_stop_training(dataset: Path) -> None:
    everywhere(dataset, lambda held: held + np.uint8(1))
    assert "--reduce-labels" in look.look(config(dataset, "--no-reduce-labels")).findings["start"].said[0]


def test_rows_without_a_label_map_are_found(tmp_path: Path) -> None:
    def file(held: forms.Array) -> dict[str, object]:
        return {"bytes": forms.encoded(held), "path": None}

    rows = [{"image": file(forms.photo(i)), "annotation": file(labels(i)), "scene_category": None} for i in range(6)]
    rows[4]["annotation"] = None
    write_shard(tmp_path / "train.parquet", rows, [])
    findings = look.look(config(tmp_path, "--num-labels", "5", "--no-reduce-labels")).findings
    assert {kind: [fault.row for fault in finding.faults] for kind, finding in findings.items()} == {"missing": [4]}


def test_label_maps_that_leave_two_readings_stop_training_and_are_still_shown(dataset: Path) -> None:
    (dataset / "classes.txt").unlink()
    looked = look.look(config(dataset))
    assert looked.stops
    assert "--label-names" in looked.findings["start"].said[0]
    assert list(look.names_of(looked).values()) == [f"value {k}" for k in range(5)]


def test_more_rows_than_are_named_are_counted(dataset: Path) -> None:
    for number in range(10, TRAIN):
        changed(files_of(dataset, number)[0], np.zeros_like)
    finding = look.look(config(dataset)).findings["blank"]
    assert finding.count == 30
    assert len(finding.faults) == 20


# The command


def test_the_exit_status_tells_whether_training_would_stop(dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    changed(files_of(dataset, 3)[1], np.zeros_like)
    assert look.main([str(dataset), "--no-html"]) == 0
    assert "worth a look" in capsys.readouterr().out
    changed(files_of(dataset, 4)[1], with_stray(9))
    assert look.main([str(dataset), "--no-html"]) == 1
    told = capsys.readouterr().out
    assert "stops training" in told
    assert f"{forms.name(4)}.png holds 9" in told


def test_a_page_that_cannot_be_written_is_told_before_rows_are_read(tmp_path: Path) -> None:
    with pytest.raises(SystemExit):
        look.main([str(tmp_path / "nothing"), "--html", str(tmp_path / "no folder" / "look.html")])


def test_a_name_with_a_line_break_stays_in_its_line(dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path in files_of(dataset, 3):
        resized(20, 15)(path)
        path.rename(path.with_name("a\nb.png"))
    look.main([str(dataset), "--no-html"])
    assert "  images/training/a\\nb.png: 20 x 15 pixels" in capsys.readouterr().out.splitlines()


def training_reads(settings: TrainConfig) -> bool:
    """Whether train.py opens the rows and reads every one."""
    try:
        rows = open_parts(settings, decode_photo)
        for some in (rows.train, rows.evaluation):
            samples = Samples(some, for_evaluation(ImageProcessor(), "processed"))
            assert all(samples.pair(row) for row in range(len(samples)))
    except (ValueError, OSError):
        return False
    return True


@pytest.mark.parametrize("row", [1, 30], ids=["a first row", "a later row"])
@pytest.mark.parametrize("fault", FAULTS)
def test_it_stops_where_training_does(dataset: Path, fault: str, row: int) -> None:
    FAULTS[fault][1](*files_of(dataset, row))
    assert look.look(config(dataset)).stops == (not training_reads(config(dataset)))


def test_a_row_that_leaves_none_to_score_stops_training(tmp_path: Path) -> None:
    forms.save(tmp_path / "images/a.png", forms.photo(0))
    forms.save(tmp_path / "annotations/a.png", labels(0))
    settings = config(tmp_path, "--num-labels", "5", "--no-reduce-labels")
    assert (
        "--test-size 0.2 leaves none of the 1 row of --split train to train on"
        in look.look(settings).findings["start"].said[0]
    )
    assert not training_reads(settings)


def test_what_cannot_be_opened_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert look.main([str(tmp_path / "nothing"), "--no-html"]) == 1
    assert capsys.readouterr().err.splitlines()[-1].startswith("error: ")


def test_the_table_tells_shares_as_they_are(dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    look.main([str(dataset), "--no-html"])
    maps = np.stack([labels(number) for number in range(TRAIN)])
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("kerb"))
    assert line.split()[1:5] == [f"{100 * np.mean(maps == 4):.1f}", "%", "100.0", "%"]


def test_classes_that_occur_nowhere_stand_together(dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    everywhere(dataset, lambda held: np.minimum(held, 2).astype(np.uint8))
    look.main([str(dataset), "--no-html"])
    assert "in no split: car, kerb" in capsys.readouterr().out.splitlines()


def test_its_flags_are_those_of_data_and_classes(dataset: Path) -> None:
    flags = ["--image-column", "a", "--label-column", "b", "--split", "train[:5]", "--eval-split", "test"]
    flags += ["--test-size", "0.5", "--num-labels", "7", "--reduce-labels", "--ignore-index", "9", "--label-names", "n"]
    settings = config(dataset, *flags, "--binary-masks")
    assert (settings.split, settings.eval_split, settings.num_labels, settings.ignore_index) == (
        "train[:5]",
        "test",
        7,
        9,
    )
    with pytest.raises(SystemExit):
        config(dataset, "--learning-rate", "1")


def test_the_recipe_of_train_is_taken(dataset: Path) -> None:
    assert config(dataset).split == RECIPES["own"]["split"]
    assert config(dataset, "--recipe", "guide").split == "train[:50]"


def test_the_page_tells_every_fault_and_asks_for_nothing(dataset: Path, tmp_path: Path) -> None:
    for number, (_, plant) in enumerate(FAULTS.values(), 5):
        plant(*files_of(dataset, number))
    page = tmp_path / "look.html"
    assert look.main([str(dataset), "--html", str(page)]) == 1
    markup = Markup(page.read_text("utf-8"))
    assert markup.faults == []
    titles = {each.text.split("  ")[0] for each in markup.all("h3")}
    for kind, _ in FAULTS.values():
        assert any(title.startswith(look.KINDS[kind].title) for title in titles), kind
    assert all(image.attributes["src"].startswith("data:image/") for image in markup.all("img"))


def test_two_looks_write_the_same_page(dataset: Path) -> None:
    pages = [look.render_look(look.page_of(look.look(config(dataset)), 1.0)) for _ in range(2)]
    assert pages[0] == pages[1]


# Shares that are kept


def counted(numbers: range | list[int]) -> ClassShares:
    """The shares, by counting."""
    maps = [labels(number) for number in numbers]
    pixels = tuple(sum(int((held == k).sum()) for held in maps) for k in range(5))
    photos = tuple(sum(bool((held == k).any()) for held in maps) for k in range(5))
    return ClassShares(pixels, photos, 0, len(maps))


def test_shares_are_counts(dataset: Path) -> None:
    rows = look.look(config(dataset)).surveys[0].dataset
    assert class_shares(rows, rows.label_rule) == counted(range(TRAIN))


def test_ignored_pixels_are_counted_apart(dataset: Path) -> None:
    everywhere(dataset, lambda held: np.where(held == 2, 255, held).astype(np.uint8))
    rows = look.look(config(dataset)).surveys[0].dataset
    shares, plain = class_shares(rows, rows.label_rule), counted(range(TRAIN))
    assert (shares.pixels[2], shares.ignored) == (0, plain.pixels[2])
    assert sum(shares.of_pixels) == pytest.approx(1)


def test_shares_of_reduced_labels_are_those_of_the_classes(dataset: Path) -> None:
    rows, plain = look.look(config(dataset)).surveys[0].dataset, counted(range(TRAIN))
    shares = class_shares(rows, look.LabelRule(4, True))
    assert (shares.pixels, shares.photos, shares.ignored) == (plain.pixels[1:], plain.photos[1:], plain.pixels[0])


def test_a_subset_has_shares_of_its_own(dataset: Path) -> None:
    rows = look.look(config(dataset)).surveys[0].dataset
    some, _ = train_test_split(rows, 0.25, 0)
    assert class_shares(some, rows.label_rule) == counted(list(some.indices))


def kept_files(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "cache").rglob("shares/*.json"))


def test_a_look_keeps_the_shares_that_are_asked_for_later(dataset: Path, tmp_path: Path) -> None:
    rows = look.look(config(dataset)).surveys[0].dataset
    kept = {path: path.read_bytes() for path in kept_files(tmp_path)}
    assert len(kept) == 2  # of two splits
    class_shares(rows, rows.label_rule)
    assert {path: path.read_bytes() for path in kept_files(tmp_path)} == kept


def test_kept_shares_are_taken_without_decoding(dataset: Path, tmp_path: Path) -> None:
    rows = SceneParse150(dataset, "validation").with_rule(look.look(config(dataset)).labels.rule)
    (path,) = [path for path in kept_files(tmp_path) if '"rows": 4}' in path.read_text()]
    path.write_text(path.read_text().replace('"ignored": 0', '"ignored": 7'))
    assert class_shares(rows, rows.label_rule).ignored == 7


def test_shares_of_changed_label_maps_are_counted_anew(dataset: Path) -> None:
    rows = look.look(config(dataset)).surveys[0].dataset
    label_map = files_of(dataset, 3)[1]
    changed(label_map, lambda held: held, "BMP")
    before, size = class_shares(rows, rows.label_rule), label_map.stat().st_size
    changed(label_map, np.zeros_like, "BMP")
    assert label_map.stat().st_size == size
    assert class_shares(rows, rows.label_rule) != before


def test_shares_by_another_rule_are_others(dataset: Path) -> None:
    rows = look.look(config(dataset)).surveys[0].dataset
    ignoring = look.LabelRule(5, False, 2)
    assert class_shares(rows, ignoring).pixels[2] == 0


def test_damaged_kept_shares_are_made_anew(dataset: Path, tmp_path: Path) -> None:
    rows = look.look(config(dataset)).surveys[0].dataset
    for path in kept_files(tmp_path):
        path.write_text("{")
    assert class_shares(rows, rows.label_rule) == counted(range(TRAIN))


def test_shares_of_rows_at_fault_are_not_kept(dataset: Path, tmp_path: Path) -> None:
    changed(files_of(dataset, 3)[1], with_stray(9))
    rows = look.look(config(dataset)).surveys[0].dataset
    assert len(kept_files(tmp_path)) == 1  # of validation
    with pytest.raises(ValueError, match="holds 9"):
        class_shares(rows, rows.label_rule)


def test_shares_are_counted_where_none_can_be_kept(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = look.look(config(dataset)).surveys[0].dataset
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "file"))
    assert class_shares(rows, rows.label_rule) == counted(range(TRAIN))
