"""infer.py: what it writes for every photo, and that one bad photo spoils only itself."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from infer import check_output_dir, find_photos, infer, output_names, parse_arguments
from segformer import ImageProcessor, Segformer, Segmenter
from segformer.pictures import class_shares, overlay, palette

REPOSITORY = Path(__file__).resolve().parents[1]
ORIENTATION = 0x0112


def random_photo(seed: int = 0, height: int = 50, width: int = 70) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.fixture
def checkpoint(tiny_model: Segformer, tmp_path: Path) -> Path:
    """The folder of a tiny model whose classes are balanced on a random photo; the second one's name has a space."""
    processor = ImageProcessor(size=(64, 64))
    with torch.no_grad():
        logits = tiny_model(processor.image_to_tensor(random_photo())[None])
        tiny_model.decoder.classifier.bias -= logits.mean((0, 2, 3))
    folder = tmp_path / "model"
    tiny_model.save_pretrained(folder)
    processor.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    names = ["wall", "bed ", "sky", "천장", "tree", "road", "sea"]
    config["id2label"] = {str(k): name for k, name in enumerate(names)}
    config["label2id"] = {name: k for k, name in enumerate(names)}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    return folder


@pytest.fixture
def run(checkpoint: Path, tmp_path: Path) -> Callable[..., tuple[list[str], Path]]:
    """infer.py on photos and flags: the failures it reports and the folder it wrote."""

    def run_infer(*arguments: str | Path) -> tuple[list[str], Path]:
        output = tmp_path / "out"
        fixed = ["--checkpoint", str(checkpoint), "--output-dir", str(output), "--device", "cpu"]
        return infer(parse_arguments([*map(str, arguments), *fixed])), output

    return run_infer


@pytest.fixture
def segmenter(checkpoint: Path) -> Segmenter:
    return Segmenter.from_pretrained(checkpoint, device="cpu")


def entries(output: Path) -> list[dict[str, Any]]:
    return json.loads((output / "segments.json").read_text(encoding="utf-8"))


Run = Callable[..., tuple[list[str], Path]]


def test_every_photo_gets_its_two_pictures_and_there_is_one_segments_file(run: Run, photos: Path) -> None:
    for seed, name in enumerate(["a.png", "b.png"]):
        random_photo(seed).save(photos / name)
    failures, output = run(photos / "a.png", photos / "b.png")
    assert failures == []
    pictures = ["a_labels.png", "a_overlay.png", "b_labels.png", "b_overlay.png"]
    assert sorted(path.name for path in output.iterdir()) == [*pictures, "segments.json"]


def test_the_values_of_the_palette_png_are_the_label_map(run: Run, photos: Path, segmenter: Segmenter) -> None:
    random_photo().save(photos / "a.png")
    _, output = run(photos / "a.png")
    with Image.open(output / "a_labels.png") as stored:
        assert stored.mode == "P"
        assert np.array_equal(np.asarray(stored), segmenter.label_map(random_photo()))
        assert len(np.unique(np.asarray(stored))) > 3


@pytest.mark.parametrize("opacity", [0.0, 0.3, 1.0])
def test_the_overlay_has_the_opacity_asked_for(opacity: float, run: Run, photos: Path, segmenter: Segmenter) -> None:
    photo = random_photo()
    photo.save(photos / "a.png")
    _, output = run(photos / "a.png", "--opacity", str(opacity))
    expected = overlay(photo, segmenter.label_map(photo), palette(7), opacity)
    with Image.open(output / "a_overlay.png") as stored:
        assert np.array_equal(np.asarray(stored)[: photo.height, : photo.width], np.asarray(expected))
        assert stored.width > photo.width  # the legend


def test_segments_tell_file_size_and_classes_largest_first(run: Run, photos: Path, segmenter: Segmenter) -> None:
    random_photo().save(photos / "a.png")
    _, output = run(photos / "a.png")
    names = segmenter.model.config.id2label
    shares = class_shares(segmenter.label_map(random_photo()), 7)
    segments = [{"label": names[k], "id": k, "share": round(share, 6)} for k, share in shares]
    pictures = {"labels": "a_labels.png", "overlay": "a_overlay.png"}
    size = {"width": 70, "height": 50}
    assert entries(output) == [{"file": str(photos / "a.png"), **size, **pictures, "segments": segments}]
    assert [share for _, share in shares] == sorted((share for _, share in shares), reverse=True)


def test_labels_stand_in_the_segments_file_as_the_checkpoint_spells_them(run: Run, photos: Path) -> None:
    random_photo().save(photos / "a.png")
    _, output = run(photos / "a.png")
    names = {segment["id"]: segment["label"] for segment in entries(output)[0]["segments"]}
    assert {1, 3} <= names.keys()
    assert (names[1], names[3]) == ("bed ", "천장")
    assert "천장" in (output / "segments.json").read_text(encoding="utf-8")


def test_a_folder_gives_its_photos_in_order_and_nothing_else(run: Run, photos: Path) -> None:
    for name in ("b.JPG", "a.png", "c.webp", "d.jpeg"):
        random_photo().save(photos / name)
    (photos / "notes.txt").write_text("no photo")
    (photos / "inside").mkdir()
    random_photo().save(photos / "inside" / "e.png")
    failures, output = run(photos)
    assert failures == []
    assert [Path(entry["file"]).name for entry in entries(output)] == ["a.png", "b.JPG", "c.webp", "d.jpeg"]


def test_a_folder_named_like_a_photo_is_no_photo(photos: Path) -> None:
    random_photo().save(photos / "a.png")
    (photos / "album.jpg").mkdir()
    assert find_photos([str(photos)]) == [photos / "a.png"]


def test_a_photo_named_twice_is_segmented_once(photos: Path) -> None:
    random_photo().save(photos / "a.png")
    assert find_photos([str(photos / "a.png"), str(photos)]) == [photos / "a.png"]


@pytest.mark.parametrize("names", [["x/a.png", "y/a.png"], ["x/a.png", "x/a.jpg"]], ids=str)
def test_two_photos_of_one_stem_are_both_written(
    names: list[str], run: Run, photos: Path, segmenter: Segmenter
) -> None:
    for seed, name in enumerate(names):
        (photos / name).parent.mkdir(exist_ok=True)
        random_photo(seed).save(photos / name)
    _, output = run(*(photos / name for name in names))
    for number, name in enumerate(names, start=1):
        with Image.open(output / f"a_{number}_labels.png") as stored:
            assert np.array_equal(np.asarray(stored), segmenter.label_map(photos / name))


@pytest.mark.parametrize(
    "paths",
    [["x/a.png", "y/a.png", "z/a_1.png"], ["z/a_2.png", "x/a.png", "y/a.png"], ["x/a.png", "x/b.png", "y/b.png"]],
    ids=str,
)
def test_no_two_photos_share_the_name_of_their_results(paths: list[str]) -> None:
    names = output_names([Path(path) for path in paths])
    assert len(set(names.values())) == len(paths)


@pytest.mark.parametrize(
    "name", ["with space.png", "사진 하나.png", "dots.in.name.png", "[brackets]*.png", "-dash.png"]
)
def test_a_photo_may_have_any_name(name: str, run: Run, photos: Path) -> None:
    random_photo().save(photos / name)
    failures, output = run(photos / name)
    assert failures == []
    assert (output / f"{Path(name).stem}_labels.png").is_file()
    assert entries(output)[0]["file"] == str(photos / name)


def test_a_photo_stored_on_its_side_comes_out_upright(run: Run, photos: Path, segmenter: Segmenter) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    random_photo().save(photos / "a.png", exif=exif)
    upright = random_photo().transpose(Image.Transpose.ROTATE_270)
    _, output = run(photos / "a.png")
    assert (entries(output)[0]["width"], entries(output)[0]["height"]) == upright.size == (50, 70)
    with Image.open(output / "a_labels.png") as stored:
        assert np.array_equal(np.asarray(stored), segmenter.label_map(upright))


@pytest.mark.parametrize("size", [(1, 1), (1, 400), (400, 1)])
def test_a_photo_may_have_any_size(size: tuple[int, int], run: Run, photos: Path) -> None:
    random_photo(0, *size).save(photos / "a.png")
    failures, output = run(photos / "a.png")
    assert failures == []
    with Image.open(output / "a_labels.png") as stored:
        assert (stored.height, stored.width) == size


def mistyped_exif() -> bytes:
    """A sound photo stored on its side, with an EXIF entry that should be a number but is text."""
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    exif[0x010F] = "maker"
    stream = io.BytesIO()
    random_photo().save(stream, "JPEG", exif=exif)
    assert b"\x01\x0f\x00\x02" in stream.getvalue()
    return stream.getvalue().replace(b"\x01\x0f\x00\x02", b"\x01\x03\x00\x02")


@pytest.mark.parametrize(
    "content",
    [b"", b"no picture", b"\x89PNG\r\n\x1a\n" + bytes(40), mistyped_exif()],
    ids=["empty", "text", "broken png", "broken exif"],
)
def test_one_bad_photo_does_not_stop_the_others(content: bytes, run: Run, photos: Path) -> None:
    for name in ("a.png", "c.png"):
        random_photo().save(photos / name)
    (photos / "b.jpg").write_bytes(content)
    _, output = run(photos)
    assert {"a.png", "c.png"} <= {Path(entry["file"]).name for entry in entries(output)}
    assert (output / "c_labels.png").is_file()


def test_a_bad_photo_is_reported_by_name(run: Run, photos: Path) -> None:
    random_photo().save(photos / "a.png")
    (photos / "b.jpg").write_bytes(b"no picture")
    failures, _ = run(photos)
    assert len(failures) == 1
    assert str(photos / "b.jpg") in failures[0]


def test_each_photo_gets_a_line_with_its_largest_class(
    run: Run, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    random_photo().save(photos / "a.png")
    _, output = run(photos / "a.png")
    largest = entries(output)[0]["segments"][0]
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[:3] == ["a", largest["label"].strip(), f"{largest['share']:.0%},"]
    assert lines[-1] == f"1 photos in {output}"


def test_a_missing_photo_is_refused_by_name(run: Run, photos: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no photo or folder .*gone\.jpg"):
        run(photos / "gone.jpg")


def test_a_folder_without_photos_is_refused_by_name(run: Run, photos: Path) -> None:
    (photos / "notes.txt").write_text("no photo")
    with pytest.raises(FileNotFoundError, match=f"no photo in {photos}"):
        run(photos)


@pytest.mark.parametrize("opacity", ["1.1", "-0.1", "nan", "much"])
def test_an_opacity_out_of_range_is_refused_by_flag(opacity: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        parse_arguments(["a.png", f"--opacity={opacity}"])
    assert end.value.code == 2
    assert "--opacity" in capsys.readouterr().err


def command_line(folder: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(REPOSITORY / "infer.py"), *map(str, arguments)]
    variables = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONIOENCODING": "utf-8"}
    return subprocess.run(command, cwd=folder, env=variables, capture_output=True, text=True, timeout=120)


def test_the_command_writes_the_sound_photos_and_exits_with_1_for_a_broken_one(
    checkpoint: Path, photos: Path, tmp_path: Path
) -> None:
    random_photo().save(photos / "사진 하나.png")
    (photos / "broken.jpg").write_bytes(b"no picture")
    done = command_line(tmp_path, photos, "--checkpoint", checkpoint, "--device", "cpu")
    assert done.returncode == 1
    assert [line for line in done.stderr.splitlines() if line.startswith("error: ") and "broken.jpg" in line]
    assert "Traceback" not in done.stderr
    assert (tmp_path / "predictions" / "사진 하나_labels.png").is_file()


def test_the_command_exits_with_0_when_all_is_well(checkpoint: Path, photos: Path, tmp_path: Path) -> None:
    random_photo().save(photos / "a.png")
    done = command_line(tmp_path, photos / "a.png", "--checkpoint", checkpoint, "--device", "cpu")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "predictions" / "segments.json").is_file()


def test_the_command_names_a_missing_photo_without_a_traceback(tmp_path: Path) -> None:
    done = command_line(tmp_path, "gone.jpg")
    assert (done.returncode, done.stderr.strip()) == (1, "error: no photo or folder gone.jpg")


def test_results_are_kept_out_of_the_folder_of_the_photos(photos: Path) -> None:
    random_photo().save(photos / "a.png")
    with pytest.raises(ValueError, match="holds photos to segment"):
        check_output_dir([photos / "a.png"], photos)
