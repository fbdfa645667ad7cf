"""Which label map belongs to which photo that is segmented: as in training, and never a photo of its own."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import pytest

from data.truths import classes_of, pair_photos
from segformer.predictions import find_photos


def write(root: Path, *files: str) -> Path:
    for file in files:
        path = root / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    return root


def paired(root: Path, photos: str, folder: str) -> dict[str, str | None]:
    """Every photo that is segmented, and its label map, below ``root``."""
    found = pair_photos(root / folder, find_photos([str(root / place) for place in photos.split()]))
    maps = {photo: found.label_maps.get(photo) for photo in found.photos}
    return {
        photo.relative_to(root).as_posix(): path.relative_to(root).as_posix() if path else None
        for photo, path in maps.items()
    }


def test_masks_as_jpeg_are_found_where_there_are_no_others(tmp_path: Path) -> None:
    write(tmp_path, "images/1.jpg", "images/2.jpg", "masks/1.jpg", "masks/2.gif")
    assert paired(tmp_path, "images", "masks") == {"images/1.jpg": "masks/1.jpg", "images/2.jpg": "masks/2.gif"}
    with pytest.raises(FileNotFoundError, match=r"has no PNG, BMP or TIFF named like 1\.jpg"):
        paired(tmp_path, "images", "images")


@pytest.mark.parametrize(
    ("photo", "label_map", "photos", "folder"),
    [
        ("images/1.jpg", "annotations/1.png", "images", "annotations"),
        ("images/val/1.jpg", "annotations/validation/1.png", "images/val", "annotations"),
        ("images/val/1.png", "masks/val/1.tif", "images/val", "masks"),
        ("images/1.png", "masks/1.png", "images", "."),
        ("valid/1.jpg", "valid/1_mask.png", "valid", "valid"),
        ("valid/1.png", "valid/1_mask.png", "valid", "valid"),
        ("valid/1_sat.jpg", "valid/1_mask.png", "valid", "valid"),
        ("valid/1.jpg", "valid/1.png", "valid", "valid"),
        ("valid/1.jpg", "valid/1.png", "valid/1.jpg", "valid"),
        ("img/1.jpg", "gt/1_L.png", "img", "gt"),
        ("leftImg8bit/val/bonn/b_1_leftImg8bit.png", "gtFine/val/bonn/b_1_gtFine_labelIds.png",
         "leftImg8bit/val/bonn", "gtFine"),
        ("day1/1.jpg", "maps/day1/1.png", "day1", "maps"),
        ("x/day1/images/1.jpg", "x/day1/masks/1.png", "x/day1/images", "x/day1"),
        (unicodedata.normalize("NFD", "é.jpg"), unicodedata.normalize("NFC", "m/é.png"), ".", "m"),
    ],
)  # fmt: skip
def test_a_photo_has_the_label_map_that_training_would_give_it(
    photo: str, label_map: str, photos: str, folder: str, tmp_path: Path
) -> None:
    assert paired(write(tmp_path, photo, label_map), photos, folder) == {photo: label_map}


def test_photos_of_one_name_have_the_label_maps_of_their_own_folders(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write(tmp_path, "day1/1.jpg", "day2/1.jpg", "day2/2.jpg", "maps/day1/1.png", "maps/day2/1.png")
    found = paired(tmp_path, "day1 day2", "maps")
    assert found == {"day1/1.jpg": "maps/day1/1.png", "day2/1.jpg": "maps/day2/1.png", "day2/2.jpg": None}
    assert "1 photo without a label map, which no score counts" in caplog.text
    assert paired(tmp_path, "day1", "maps") == {"day1/1.jpg": "maps/day1/1.png"}


@pytest.mark.parametrize(
    ("files", "photos", "folder", "kind", "said"),
    [
        (["day1/1.jpg", "day2/1.jpg", "m/1.png"], "day1 day2", "m", ValueError, "1.png is called like both .*day1"),
        (["day2/1.jpg", "m/day1/1.png"], "day2", "m", FileNotFoundError, "day1/1.png lies in another folder than its"),
        (["p/1.jpg", "m/1.png", "m/1.tif"], "p", "m", ValueError, "1.jpg has two label maps"),
        (["p/1.jpg", "p/2_mask.png"], "p", "p", FileNotFoundError, "has no PNG, BMP or TIFF named like"),
        (["p/street.jpg", "m/street_2.png"], "p", "m", FileNotFoundError, "has no PNG, BMP or TIFF named like street"),
        (["p/1.jpg", "out/1_labels.png", "out/segments.json"], "p", "out", FileNotFoundError, "has no PNG, BMP or"),
        (["p/1.jpg"], "p", "q", FileNotFoundError, "--annotations .*q is no folder"),
    ],
)
def test_what_leaves_a_doubt_is_refused(
    files: list[str], photos: str, folder: str, kind: type[Exception], said: str, tmp_path: Path
) -> None:
    write(tmp_path, *files)
    with pytest.raises(kind, match=said):
        paired(tmp_path, photos, folder)


def test_a_class_file_is_found_beside_label_maps_and_above_them(tmp_path: Path) -> None:
    (tmp_path / "masks/val").mkdir(parents=True)
    assert classes_of(tmp_path / "masks/val") is None
    (tmp_path / "classes.txt").write_text("sky\nroad\n")
    for folder in ("masks/val", "masks", "."):
        found = classes_of(tmp_path / folder)
        assert found
        assert found.names == ("sky", "road")
