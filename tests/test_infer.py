"""infer.py: what it writes for every photo, and that one bad photo spoils only itself."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import struct
import subprocess
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import programs
import pytest
import torch
from PIL import Image

from data import SceneParse150
from data.labels import LabelRule
from infer import infer, newest_run, parse_arguments
from segformer import ConfusionMatrix, ImageProcessor, Segformer, SegformerConfig, Segmenter
from segformer.console import one_line
from segformer.detail import DetailedConfusionMatrix
from segformer.pictures import class_shares, overlay, palette
from segformer.predictions import Segmented, Worker, check_output_dir, find_photos, output_names, segment_files
from segformer.training.description import RunDescription
from segformer.views import Views

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
    (entry,) = entries(output)
    assert entry.pop("provenance")["checkpoint"] == "model"
    assert entry == {"file": str(photos / "a.png"), **size, **pictures, "segments": segments}
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


def test_what_macos_leaves_beside_photos_is_no_photo(photos: Path) -> None:
    random_photo(0).save(photos / "0.png")
    before = find_photos([str(photos)])
    (photos / "._0.png").write_bytes(b"of another system")
    assert find_photos([str(photos)]) == before


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


@pytest.mark.parametrize("name", ["with space.png", "사진 하나.png", "dots.in.name.png", "[brackets].png", "-dash.png"])
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


def huge_header() -> bytes:
    """The beginning of a PNG that says to be 60,000 pixels wide and high."""
    stream = io.BytesIO()
    Image.new("L", (1, 1)).save(stream, "PNG")
    header = b"IHDR" + struct.pack(">II", 60_000, 60_000) + stream.getvalue()[24:29]
    return stream.getvalue()[:12] + header + struct.pack(">I", zlib.crc32(header)) + stream.getvalue()[33:]


def float_tiff() -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.linspace(0, 1, 3500, dtype=np.float32).reshape(50, 70)).save(stream, "TIFF")
    return stream.getvalue()


@pytest.mark.parametrize(
    "content",
    [b"", b"no picture", b"\x89PNG\r\n\x1a\n" + bytes(40), mistyped_exif(), huge_header(), float_tiff()],
    ids=["empty", "text", "broken png", "broken exif", "60,000 x 60,000", "float"],
)
@pytest.mark.parametrize("batch_size", ["1", "3"])
def test_one_bad_photo_does_not_stop_the_others(content: bytes, batch_size: str, run: Run, photos: Path) -> None:
    for name in ("a.png", "c.png"):
        random_photo().save(photos / name)
    (photos / "b.jpg").write_bytes(content)
    _, output = run(photos, "--batch-size", batch_size)
    assert {"a.png", "c.png"} <= {Path(entry["file"]).name for entry in entries(output)}
    assert (output / "c_labels.png").is_file()


@pytest.mark.parametrize(
    ("content", "message"),
    [(huge_header(), "3600000000 pixels"), (float_tiff(), "mode F, floating-point"), (b"", "is not a readable image")],
    ids=["60,000 x 60,000", "float", "empty"],
)
def test_a_bad_photo_is_refused_with_what_is_wrong(content: bytes, message: str, run: Run, photos: Path) -> None:
    (photos / "b.tif").write_bytes(content)
    failures, output = run(photos / "b.tif")
    assert len(failures) == 1
    assert message in failures[0]
    assert [path.name for path in output.iterdir()] == ["segments.json"]


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
    assert lines[-1] == f"1 photo in {output}"


def test_a_missing_photo_is_refused_by_name(run: Run, photos: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no photo or folder .*gone\.jpg"):
        run(photos / "gone.jpg")


def test_a_folder_without_photos_is_refused_by_name(run: Run, photos: Path) -> None:
    (photos / "notes.txt").write_text("no photo")
    with pytest.raises(FileNotFoundError, match=f"no photo in {photos}"):
        run(photos)


def test_folders_of_photos_in_a_folder_are_told_of(run: Run, photos: Path) -> None:
    (photos / "day1").mkdir()
    random_photo().save(photos / "day1/a.png")
    with pytest.raises(FileNotFoundError, match=r"those in the folders inside are '.*/\*\*/\*'"):
        run(photos)
    assert find_photos([f"{photos}/**/*"]) == [photos / "day1/a.png"]


def test_photos_and_videos_that_are_not_read_are_counted(photos: Path, caplog: pytest.LogCaptureFixture) -> None:
    random_photo().save(photos / "a.png")
    for name in ("b.HEIC", "c.heic", "d.mp4", "notes.txt"):
        (photos / name).write_bytes(b"none of ours")
    for source in (photos, photos / "*"):
        assert find_photos([str(source)]) == [photos / "a.png"]
    assert [message.partition(": ")[2] for message in caplog.messages] == [
        "passed over 3 files (2 .heic, 1 .mp4); save photos as JPEG or PNG, and name the frames of a video"
    ] * 2


def test_photos_that_a_link_to_a_folder_above_shows_again_are_found_once(photos: Path) -> None:
    random_photo().save(photos / "a.png")
    (photos / "again").symlink_to(photos, target_is_directory=True)
    assert find_photos([f"{photos}/**/*"]) == [photos / "a.png"]


@pytest.mark.parametrize("opacity", ["1.1", "-0.1", "nan", "much"])
def test_an_opacity_out_of_range_is_refused_by_flag(opacity: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        parse_arguments(["a.png", f"--opacity={opacity}"])
    assert end.value.code == 2
    assert "--opacity" in capsys.readouterr().err


def command_line(folder: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    variables = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONIOENCODING": "utf-8"}
    return programs.run(REPOSITORY / "infer.py", *arguments, environment=variables, folder=folder)


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


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("*.png", ["a.png", "b.png"]),
        ("**/*.*g", ["a.png", "b.png", "inside/c.jpg"]),
        ("[b-z]*", ["b.png"]),
        ("*", ["a.png", "b.png"]),
    ],
)
def test_a_glob_finds_photos(pattern: str, expected: list[str], photos: Path) -> None:
    (photos / "inside").mkdir()
    for name in ("b.png", "a.png", "inside/c.jpg"):
        random_photo().save(photos / name)
    (photos / "notes.txt").write_text("no photo")
    assert find_photos([str(photos / pattern)]) == [photos / name for name in expected]


def test_a_file_whose_name_looks_like_a_glob_is_taken_by_its_name(photos: Path) -> None:
    for name in ("[ab].png", "a.png"):
        random_photo().save(photos / name)
    assert find_photos([str(photos / "[ab].png")]) == [photos / "[ab].png"]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("https://example.org/a.jpg", "is an address; download the photo"),
        ("HTTP://example.org/a.jpg", "is an address"),
        ("file:///tmp/a.jpg", "is an address"),
        ("holiday.mp4", "is a video; name its frames"),
        ("holiday.MOV", "is a video"),
        ("*.jpg", r"no photo matches \*\.jpg"),
    ],
)
def test_what_cannot_be_a_photo_is_refused_with_a_hint(
    source: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        find_photos([source])


def test_masks_are_those_of_the_classes_and_are_named_in_the_segments_file(
    run: Run, photos: Path, segmenter: Segmenter
) -> None:
    random_photo().save(photos / "a.png")
    _, output = run(photos / "a.png", "--masks")
    label_map = segmenter.label_map(random_photo())
    segments = entries(output)[0]["segments"]
    assert {segment["mask"] for segment in segments} == {path.name for path in output.glob("a_mask_*")}
    assert len(segments) > 3
    for segment in segments:
        with Image.open(output / segment["mask"]) as stored:
            assert np.array_equal(np.asarray(stored), np.where(label_map == segment["id"], 255, 0))


def test_masks_of_an_earlier_run_do_not_stay_behind(run: Run, photos: Path) -> None:
    random_photo().save(photos / "a.png")
    random_photo().save(photos / "b.png")
    _, output = run(photos, "--masks")
    (output / "a_mask_999.png").write_bytes(b"not one of ours")
    run(photos / "a.png")
    assert [path.name for path in output.glob("a_mask_*")] == ["a_mask_999.png"]
    assert list(output.glob("b_mask_*"))


def test_a_segments_file_of_endless_brackets_is_refused(run: Run, photos: Path) -> None:
    random_photo().save(photos / "a.png")
    _, output = run(photos)
    (output / "segments.json").write_text("[" * 200_000)
    with pytest.raises(ValueError, match=r"segments.json is not one that infer.py wrote"):
        run(photos)


@pytest.mark.parametrize("name", ["../a_mask_001.png", "a.png", 7])
def test_a_segments_file_that_names_other_files_as_masks_is_refused(run: Run, photos: Path, name: Any) -> None:
    random_photo().save(photos / "a.png")
    _, output = run(photos, "--masks")
    written = entries(output)
    written[0]["segments"][0]["mask"] = name
    (output / "segments.json").write_text(json.dumps(written))
    with pytest.raises(ValueError, match=r"segments.json is not one that infer.py wrote"):
        run(photos)


def test_scores_are_those_of_the_segmenter(run: Run, photos: Path, segmenter: Segmenter) -> None:
    random_photo().save(photos / "a.png")
    _, output = run(photos / "a.png", "--scores")
    expected = segmenter.predict([random_photo()], probability=True)[0].scores()
    assert {segment["id"]: segment["score"] for segment in entries(output)[0]["segments"]} == {
        k: pytest.approx(score, abs=1e-6) for k, score in expected.items()
    }


@pytest.mark.parametrize(
    ("flags", "views"),
    [
        (["--resize", "96"], Views(resize=96)),
        (["--resize", "keep-ratio", "--flip"], Views(resize="keep-ratio", flip=True)),
        (["--window", "64", "--overlap", "32"], Views(window=64, overlap=32)),
        (["--scales", "0.5,1,2"], Views(scales=(0.5, 1.0, 2.0))),
    ],
    ids=str,
)
def test_flags_choose_how_the_model_sees_photos(
    flags: list[str], views: Views, run: Run, photos: Path, segmenter: Segmenter
) -> None:
    plain = segmenter.label_map(random_photo(0, 100, 140))
    random_photo(0, 100, 140).save(photos / "a.png")
    segmenter.views = views
    _, output = run(photos / "a.png", *flags)
    with Image.open(output / "a_labels.png") as stored:
        assert np.array_equal(np.asarray(stored), segmenter.label_map(random_photo(0, 100, 140)))
        assert not np.array_equal(np.asarray(stored), plain)


@pytest.mark.parametrize(
    "flags",
    [
        ["--resize", "huge"],
        ["--window", "100"],
        ["--overlap", "32"],
        ["--scales", "1,much"],
        ["--scales", "0"],
        ["--batch-size", "0"],
        ["--workers", "-1"],
    ],
    ids=str,
)
def test_a_wrong_flag_is_refused_by_name(flags: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        parse_arguments(["a.png", *flags])
    assert end.value.code == 2
    assert f"error: {flags[0]} is" in (text := capsys.readouterr().err) or f"argument {flags[0]}:" in text


@pytest.mark.parametrize("flags", [["--workers", "3"], ["--batch-size", "4"], ["--workers", "2", "--batch-size", "3"]])
def test_photos_side_by_side_or_in_batches_give_the_same_files_in_the_same_order(
    flags: list[str], run: Run, photos: Path, tmp_path: Path
) -> None:
    for seed in range(10):
        random_photo(seed, 40 + 7 * (seed % 3)).save(photos / f"{seed}.png")
    (photos / "5.png").write_bytes(b"no picture")
    _, output = run(photos, "--workers", "1", "--batch-size", "1")
    expected = output.rename(tmp_path / "one by one")
    failures, output = run(photos, *flags)
    assert len(failures) == 1
    assert [Path(entry["file"]).name for entry in entries(output)] == [f"{n}.png" for n in range(10) if n != 5]
    for path in expected.iterdir():
        made, before = (re.sub(rb'"date": .*', b"", each.read_bytes()) for each in (output / path.name, path))
        assert made == before, path.name


def threads_of_a_new_thread() -> int:
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(torch.get_num_threads).result()


def test_threads_have_as_many_cores_after_as_before(run: Run, photos: Path) -> None:
    for seed in range(3):
        random_photo(seed).save(photos / f"{seed}.png")
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        run(photos, "--workers", "2")
        assert (torch.get_num_threads(), threads_of_a_new_thread()) == (2, 2)
    finally:
        torch.set_num_threads(before)


def worker_of(segmenter: Segmenter, paths: list[Path], folder: Path) -> Worker:
    folder.mkdir()
    return Worker(segmenter, output_names(paths), folder, 0.5, False, False, nullcontext(), {})


@pytest.mark.parametrize(("limit", "failed"), [(1, []), (0, ["a.png", "b.png", "c.png"])])
def test_a_batch_too_large_for_the_memory_is_tried_photo_by_photo(
    limit: int, failed: list[str], segmenter: Segmenter, photos: Path, tmp_path: Path
) -> None:
    paths = [photos / name for name in ("a.png", "b.png", "c.png")]
    for seed, path in enumerate(paths):
        random_photo(seed).save(path)

    def refuse(module: torch.nn.Module, inputs: tuple[torch.Tensor]) -> None:
        if len(inputs[0]) > limit:
            raise RuntimeError("can't allocate memory")

    segmenter.batch_size = 3
    segmenter.model.register_forward_pre_hook(refuse)
    found = list(segment_files(worker_of(segmenter, paths, tmp_path / "found"), paths, workers=1))
    assert [one.path for one in found if isinstance(one, Segmented)] == [p for p in paths if p.name not in failed]
    assert [one for one in found if isinstance(one, str)] == [
        f"{photos / name}: can't allocate memory" for name in failed
    ]


def test_a_second_run_into_the_same_folder_keeps_what_the_first_one_found(
    run: Run, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for seed, name in enumerate(["a.png", "b.png"]):
        random_photo(seed).save(photos / name)
    run(photos / "a.png")
    first = capsys.readouterr().out
    _, output = run(photos / "b.png")
    assert [Path(entry["file"]).name for entry in entries(output)] == ["a.png", "b.png"]
    assert "from before" not in first
    assert capsys.readouterr().out.splitlines()[-1] == f"1 photo in {output}, which has 1 from before"


def test_a_photo_segmented_again_replaces_what_was_found(run: Run, photos: Path, segmenter: Segmenter) -> None:
    random_photo(0).save(photos / "a.png")
    run(photos / "a.png")
    random_photo(1).save(photos / "a.png")
    _, output = run(photos / "a.png")
    assert len(entries(output)) == 1
    with Image.open(output / entries(output)[0]["labels"]) as stored:
        assert np.array_equal(np.asarray(stored), segmenter.label_map(random_photo(1)))


def test_a_photo_does_not_overwrite_what_an_earlier_run_found_in_another_of_its_name(
    run: Run, photos: Path, segmenter: Segmenter
) -> None:
    for seed, folder in enumerate(["x", "y"]):
        (photos / folder).mkdir()
        random_photo(seed).save(photos / folder / "a.png")
        run(photos / folder / "a.png")
    _, output = run(photos / "y" / "a.png")  # again: it keeps its name
    named = {Path(entry["file"]).parent.name: entry["labels"] for entry in entries(output)}
    assert named == {"x": "a_labels.png", "y": "a_1_labels.png"}
    for seed, folder in enumerate(["x", "y"]):
        with Image.open(output / named[folder]) as stored:
            assert np.array_equal(np.asarray(stored), segmenter.label_map(random_photo(seed)))


@pytest.mark.parametrize(
    "text",
    ["{", "[1]", '{"a": 1}', '[{"file": "a.png"}]', '[{"file": "a.png", "labels": "../../a_labels.png"}]'],
)
def test_a_segments_file_of_another_kind_is_neither_used_nor_lost(text: str, run: Run, photos: Path) -> None:
    random_photo().save(photos / "a.png")
    output = photos.parent / "out"
    output.mkdir()
    (output / "segments.json").write_text(text)
    with pytest.raises(ValueError, match=r"segments\.json is not one that infer\.py wrote"):
        run(photos / "a.png")
    assert (output / "segments.json").read_text() == text


@pytest.mark.parametrize("stem", ["n" * 251, "사" * 83], ids=["ascii", "hangul"])
def test_names_as_long_as_the_file_system_allows_are_cut_and_stay_apart(stem: str, run: Run, photos: Path) -> None:
    names = [f"{stem}.png", f"{stem[:-1]}x.png"]
    for seed, name in enumerate(names):
        random_photo(seed).save(photos / name)
    failures, output = run(photos, "--masks")
    assert failures == []
    assert [entry["file"] for entry in entries(output)] == sorted(str(photos / name) for name in names)
    assert len(list(output.glob("*_labels.png"))) == 2


def test_a_name_that_is_no_text_is_written_as_one(run: Run, photos: Path) -> None:
    path = Path(os.fsdecode(os.fsencode(photos) + b"/a\xff.png"))
    random_photo().save(path)
    failures, output = run(path)
    assert failures == []
    (entry,) = entries(output)
    assert entry["file"] == str(photos) + "/a\\xff.png"
    assert (output / entry["labels"]).is_file()


@pytest.mark.parametrize("name", ["two\nlines", "bell\a", "escape\x1b[31m", "separator\u2028here"])
def test_a_message_is_one_line_whatever_the_name_of_the_photo(
    name: str, run: Run, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    random_photo().save(photos / f"{name}.png")
    (photos / f"{name}.jpg").write_bytes(b"no picture")
    failures, output = run(photos)
    assert len(failures[0].splitlines()) == len(failures) == 1
    assert name not in failures[0]
    assert len(capsys.readouterr().out.splitlines()) == 2
    assert len(list(output.glob("*_2_labels.png"))) == 1


def test_one_line_leaves_other_writing_as_it_is() -> None:
    assert one_line("사진 하나\u3000 é 👩‍👩‍👧") == "사진 하나\u3000 é 👩‍👩‍👧"
    assert one_line("a\nb\r\tc\n") == r"a\nb\r\tc"


def test_names_that_differ_in_case_or_accents_alone_stay_apart() -> None:
    names = output_names([Path(path) for path in ("x/A.png", "y/a.png", "x/é.png", "y/e\u0301.png")])
    assert list(names.values()) == ["A_1", "a_2", "é_1", "e\u0301_2"]


def test_weights_that_are_not_finite_are_refused_by_tensor(checkpoint: Path, photos: Path, tmp_path: Path) -> None:
    model = Segformer.from_pretrained(checkpoint)
    with torch.no_grad():
        model.decoder.fuse.weight[0] = torch.nan
    model.save_pretrained(checkpoint)
    random_photo().save(photos / "a.png")
    done = command_line(tmp_path, photos / "a.png", "--checkpoint", checkpoint, "--device", "cpu")
    assert done.returncode == 1
    assert "decoder.fuse.weight are not finite" in done.stderr
    assert not (tmp_path / "predictions").exists()


def offline(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No network, and a cache that holds nothing."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder / "cache"))
    monkeypatch.chdir(folder)


def test_without_checkpoint_and_network_the_newest_run_is_taken_and_that_is_said(
    checkpoint: Path,
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    segmenter: Segmenter,
) -> None:
    offline(tmp_path, monkeypatch)
    for number, name in enumerate(["toy-1", "guide-1", "toy-2"]):
        shutil.copytree(checkpoint, tmp_path / "runs" / name)
        os.utime(tmp_path / "runs" / name / "model.safetensors", (number, number))
    os.utime(tmp_path / "runs/guide-1/model.safetensors", (9, 9))
    (tmp_path / "runs/unfinished").mkdir()
    random_photo().save(photos / "a.png")
    assert infer(parse_arguments([str(photos), "--output-dir", "out", "--device", "cpu"])) == []
    assert f"taking the newest run instead: {Path('runs/guide-1')}" in caplog.text
    with Image.open("out/a_labels.png") as stored:
        assert np.array_equal(np.asarray(stored), segmenter.label_map(random_photo()))


def test_without_checkpoint_network_and_run_the_refusal_says_what_to_do(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    offline(tmp_path, monkeypatch)
    random_photo().save(photos / "a.png")
    with pytest.raises(OSError, match=r"pass --checkpoint, or train a model first: python train\.py"):
        infer(parse_arguments([str(photos)]))


def test_a_checkpoint_that_was_named_is_never_replaced_by_a_run(
    checkpoint: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    offline(tmp_path, monkeypatch)
    shutil.copytree(checkpoint, tmp_path / "runs/toy-1")
    random_photo().save(photos / "a.png")
    with pytest.raises(OSError, match="no-such/model"):
        infer(parse_arguments([str(photos), "--checkpoint", "no-such/model"]))


def test_a_weights_file_is_a_checkpoint_too(checkpoint: Path, run: Run, photos: Path, segmenter: Segmenter) -> None:
    random_photo().save(photos / "a.png")
    failures, output = run(photos / "a.png")
    expected = (output / "a_labels.png").read_bytes()
    words = [str(photos / "a.png"), "--checkpoint", str(checkpoint / "model.safetensors"), "--output-dir", str(output)]
    assert infer(parse_arguments([*words, "--device", "cpu"])) == failures == []
    assert (output / "a_labels.png").read_bytes() == expected


def test_there_is_no_newest_run_among_none(tmp_path: Path) -> None:
    assert newest_run(tmp_path / "runs") is None


def test_an_output_folder_that_is_a_file_is_refused(run: Run, photos: Path) -> None:
    random_photo().save(photos / "a.png")
    (photos.parent / "out").write_text("")
    with pytest.raises(ValueError, match="is a file; name a folder"):
        run(photos / "a.png")


def test_an_output_folder_inside_that_of_the_photos_is_not_searched_the_next_time(
    checkpoint: Path, photos: Path
) -> None:
    random_photo().save(photos / "a.png")
    words = [str(photos), "--checkpoint", str(checkpoint), "--output-dir", str(photos / "found"), "--device", "cpu"]
    for _ in range(2):
        assert infer(parse_arguments(words)) == []
        assert len(entries(photos / "found")) == 1


@pytest.mark.real_data
def test_the_page_shows_every_photo_and_scores_those_with_annotations(
    real_shards: Path, ade_checkpoint: Path, tmp_path: Path
) -> None:
    dataset, matrix = SceneParse150(real_shards, "validation"), ConfusionMatrix(150)
    for folder in ("photos", "annotations"):
        (tmp_path / folder).mkdir()
    segmenter = Segmenter.from_pretrained(ade_checkpoint)
    for number in range(2):
        image, label_map = dataset[number]
        image.save(tmp_path / f"photos/{number}.png")
        label_map.save(tmp_path / f"annotations/{number}.png")
        labels = ImageProcessor(do_resize=False).labels_to_tensor(label_map)
        matrix.update(torch.from_numpy(segmenter.label_map(image).astype(np.int64)), labels)
    command = [str(tmp_path / "photos"), "--checkpoint", str(ade_checkpoint), "--output-dir", str(tmp_path / "out")]
    command += ["--html", str(tmp_path / "page.html"), "--annotations", str(tmp_path / "annotations")]
    assert infer(parse_arguments(command)) == []
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert f"{matrix.scores().mean_iou:.3f}" in page
    assert "http://" not in page.replace("http://www.w3.org/", "")


# Truths


@pytest.fixture
def binary_run(tiny_config: SegformerConfig, tmp_path: Path) -> Path:
    """A model of two classes whose run read masks of 0 and 255, and recorded that."""
    torch.manual_seed(0)
    folder = tmp_path / "binary"
    Segformer(replace(tiny_config, id2label={0: "background", 1: "object"}, num_labels=2)).save_pretrained(folder)
    ImageProcessor(size=(64, 64), do_reduce_labels=False).save_pretrained(folder)
    RunDescription(labels=LabelRule(2, False, binary=True).to_dict()).save(folder)
    return folder


def annotated(folder: Path, photos: Path, values: tuple[int, int] = (0, 255)) -> list[np.ndarray]:
    """Two photos with masks whose left part is the object; the masks, 0 and 1."""
    folder.mkdir()
    truths = []
    for number in range(2):
        random_photo(number).save(photos / f"{number}.png")
        truth = np.zeros((50, 70), np.uint8)
        truth[:, : 20 + 10 * number] = 1
        Image.fromarray(np.where(truth, *reversed(values)).astype(np.uint8)).save(folder / f"{number}.png")
        truths.append(truth)
    return truths


def test_truths_are_read_as_training_read_them_and_scored_without_a_page(
    binary_run: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    truths = annotated(tmp_path / "masks", photos)
    words = [str(photos), "--checkpoint", str(binary_run), "--annotations", str(tmp_path / "masks"), "--device", "cpu"]
    assert infer(parse_arguments([*words, "--output-dir", str(tmp_path / "out")])) == []
    segmenter = Segmenter.from_pretrained(binary_run, device="cpu")
    matrix = DetailedConfusionMatrix(2)
    for number, truth in enumerate(truths):
        matrix.update(segmenter.label_map(random_photo(number)), truth)
    told = json.loads((tmp_path / "out/scores.json").read_text())
    assert told["mean_iou"] == pytest.approx(matrix.scores().mean_iou)
    assert told["boundary_iou"] == pytest.approx(matrix.scores().boundary.mean_iou)
    assert told["mean_iou_by_size"]["large"] == pytest.approx(matrix.scores().by_size["large"].mean_iou)
    assert [each["class"] for each in told["classes"]] == ["background", "object"]
    assert len(told["photos"]) == 2
    assert told["provenance"]["checkpoint"] == "binary"
    assert f"mean IoU {matrix.scores().mean_iou:.4f} over 2 photos" in capsys.readouterr().out


def test_scores_of_before_do_not_stay_beside_other_predictions(
    binary_run: Path, photos: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    annotated(tmp_path / "masks", photos)
    words = [str(photos), "--checkpoint", str(binary_run), "--device", "cpu", "--output-dir", str(tmp_path / "out")]
    infer(parse_arguments([*words, "--annotations", str(tmp_path / "masks")]))
    assert (tmp_path / "out/scores.json").exists()
    caplog.set_level("INFO")
    infer(parse_arguments(words))
    assert not (tmp_path / "out/scores.json").exists()
    assert "removing scores.json of before" in caplog.text


@pytest.mark.filterwarnings("error:The given NumPy array is not writable")
def test_the_page_scores_truths_by_the_same_rule(binary_run: Path, photos: Path, tmp_path: Path) -> None:
    annotated(tmp_path / "masks", photos)
    words = [str(photos), "--checkpoint", str(binary_run), "--annotations", str(tmp_path / "masks"), "--device", "cpu"]
    infer(parse_arguments([*words, "--output-dir", str(tmp_path / "out"), "--html", str(tmp_path / "page.html")]))
    told = json.loads((tmp_path / "out/scores.json").read_text())
    assert f"{told['mean_iou']:.3f}" in (tmp_path / "page.html").read_text()


def test_a_photo_is_never_scored_against_itself(binary_run: Path, photos: Path, tmp_path: Path) -> None:
    annotated(tmp_path / "masks", photos)
    for number in range(2):
        (tmp_path / f"masks/{number}.png").rename(photos / f"{number}_mask.png")
    words = [str(photos), "--checkpoint", str(binary_run), "--annotations", str(photos), "--device", "cpu"]
    assert infer(parse_arguments([*words, "--output-dir", str(tmp_path / "out")])) == []
    told = json.loads((tmp_path / "out/scores.json").read_text())
    assert sorted(Path(name).name for name in told["photos"]) == ["0.png", "1.png"]


@pytest.mark.parametrize(
    ("rule", "text", "said"),
    [
        (
            LabelRule(2, False, 255),
            "id,name\n0,object\n1,background\n",
            "calls 0 'object', and to the model it is 'back",
        ),
        (LabelRule(2, False, 255), "id,name\n1,background\n2,object\n", "calls 1 'background', and to the model it"),
        (
            LabelRule(2, False, colours=(((0, 0, 0), 0), ((9, 9, 9), 1))),
            "name,r,g,b\nobject,0,0,0\nbackground,9,9,9\n",
            r"calls \(0, 0, 0\) 'object', and to the model it is 'background'",
        ),
    ],
)
def test_label_maps_of_other_classes_than_the_models_are_refused(
    rule: LabelRule, text: str, said: str, binary_run: Path, photos: Path, tmp_path: Path
) -> None:
    RunDescription(labels=rule.to_dict()).save(binary_run)
    annotated(tmp_path / "masks", photos, (0, 1))
    (tmp_path / "class_dict.csv").write_text(text)
    words = [str(photos), "--checkpoint", str(binary_run), "--annotations", str(tmp_path / "masks"), "--device", "cpu"]
    with pytest.raises(ValueError, match=said):
        infer(parse_arguments([*words, "--output-dir", str(tmp_path / "out")]))


@pytest.mark.parametrize(
    ("palettes", "text", "said"),
    [
        (((0, 0, 0, 9, 9, 0), (0, 0, 0, 9, 0, 9)), "", r"masks have palettes that differ, .*index 1 is \(9, 9, 0\)"),
        (((9, 9, 0, 0, 0, 0),) * 2, "name,r,g,b\nbackground,0,0,0\nobject,9,9,0\n", "calls 0 'object', and to the mo"),
    ],
)
def test_label_maps_whose_palettes_mean_other_classes_are_refused(
    palettes: tuple[tuple[int, ...], ...], text: str, said: str, binary_run: Path, photos: Path, tmp_path: Path
) -> None:
    RunDescription(labels=LabelRule(2, False, 255).to_dict()).save(binary_run)
    annotated(tmp_path / "masks", photos, (0, 1))
    for number, levels in enumerate(palettes):
        with Image.open(tmp_path / f"masks/{number}.png") as mask:
            mask.putpalette(levels)
            mask.save(tmp_path / f"masks/{number}.png")
    if text:
        (tmp_path / "class_dict.csv").write_text(text)
    words = [str(photos), "--checkpoint", str(binary_run), "--annotations", str(tmp_path / "masks"), "--device", "cpu"]
    with pytest.raises(ValueError, match=said):
        infer(parse_arguments([*words, "--output-dir", str(tmp_path / "out")]))


def test_a_truth_of_16_bits_does_not_wrap_into_a_class(binary_run: Path, photos: Path, tmp_path: Path) -> None:
    RunDescription(labels=LabelRule(2, False, 255).to_dict()).save(binary_run)
    annotated(tmp_path / "masks", photos, (0, 1))
    Image.fromarray(np.full((50, 70), 256, np.uint16)).save(tmp_path / "masks/0.png")
    words = [str(photos), "--checkpoint", str(binary_run), "--annotations", str(tmp_path / "masks"), "--device", "cpu"]
    (failure,) = infer(parse_arguments([*words, "--output-dir", str(tmp_path / "out")]))
    assert "256" in failure
    assert len(json.loads((tmp_path / "out/scores.json").read_text())["photos"]) == 1


def test_the_rule_of_the_labels_travels_with_the_model(binary_run: Path, photos: Path, tmp_path: Path) -> None:
    annotated(tmp_path / "masks", photos)
    rule = json.loads((binary_run / "run.json").read_text())["labels"]
    (binary_run / "run.json").unlink()
    words = [str(photos), "--checkpoint", str(binary_run), "--annotations", str(tmp_path / "masks"), "--device", "cpu"]
    words += ["--output-dir", str(tmp_path / "out")]
    with pytest.raises(ValueError, match="masks hold 0 and 255 alone; if 255 is the object, give --binary-masks"):
        infer(parse_arguments(words))
    said = infer(parse_arguments([*words, "--binary-masks"]))
    scores = json.loads((tmp_path / "out/scores.json").read_text())
    replace(ImageProcessor.from_pretrained(binary_run), label_rule=rule).save_pretrained(binary_run)
    assert said == infer(parse_arguments(words)) == []
    again = json.loads((tmp_path / "out/scores.json").read_text())
    for told in (scores, again):
        del told["provenance"]["date"]
    assert again == scores


@pytest.mark.parametrize("ignored", [None, 255])
def test_255_in_truths_of_two_classes_is_ignored_only_beside_their_object(
    ignored: int | None, binary_run: Path, photos: Path, tmp_path: Path
) -> None:
    RunDescription(labels=LabelRule(2, False, ignored).to_dict()).save(binary_run)
    annotated(tmp_path / "masks", photos)
    words = [str(photos), "--checkpoint", str(binary_run), "--annotations", str(tmp_path / "masks"), "--device", "cpu"]
    words += ["--output-dir", str(tmp_path / "out")]
    with pytest.raises(ValueError, match="masks hold 0 and 255 alone; if 255 is the object, give --binary-masks"):
        infer(parse_arguments(words))
    for path in (tmp_path / "masks").iterdir():
        truth = np.array(Image.open(path))
        truth[:10] = 1
        Image.fromarray(truth).save(path)
    assert infer(parse_arguments(words)) == []
    assert len(json.loads((tmp_path / "out/scores.json").read_text())["photos"]) == 2


def test_masks_are_not_said_to_be_binary_where_they_are_not_or_nothing_is_read(
    checkpoint: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    annotated(tmp_path / "masks", photos)
    words = [str(photos), "--checkpoint", str(checkpoint), "--output-dir", str(tmp_path / "out"), "--binary-masks"]
    with pytest.raises(ValueError, match=r"--binary-masks has two classes, and .*model 7"):
        infer(parse_arguments([*words, "--annotations", str(tmp_path / "masks"), "--device", "cpu"]))
    with pytest.raises(SystemExit):
        parse_arguments(words)
    assert "--binary-masks says how label maps are read; name their folder as --annotations" in capsys.readouterr().err


COLOURED = np.random.default_rng(0).integers(0, 255, (50, 70, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    "rule", [None, LabelRule(7), LabelRule(7, False, 9), LabelRule(2, False, binary=True)], ids=str
)
@pytest.mark.parametrize(
    "mask",
    [
        Image.fromarray(COLOURED),
        Image.fromarray(np.where(COLOURED > 99, 255, 0).astype(np.uint8)),
        Image.fromarray(COLOURED[..., 0]),
        Image.fromarray(COLOURED[..., 0].astype(np.uint16) * 99),
        Image.fromarray(COLOURED[..., 0].astype(np.float32)),
        Image.fromarray(COLOURED[..., :2], "LA"),
        Image.fromarray(COLOURED[:9, :9, 0]),
    ],
    ids=lambda mask: f"{mask.mode}-{mask.width}",
)
def test_no_message_advises_a_flag_that_infer_lacks(
    mask: Image.Image, rule: LabelRule | None, checkpoint: Path, photos: Path, tmp_path: Path
) -> None:
    if rule is not None:
        RunDescription(labels=rule.to_dict()).save(checkpoint)
    (tmp_path / "masks").mkdir()
    random_photo().save(photos / "a.png")
    mask.save(tmp_path / "masks/a.tif" if mask.mode == "F" else tmp_path / "masks/a.png")
    words = [str(photos), "--checkpoint", str(checkpoint), "--annotations", str(tmp_path / "masks"), "--device", "cpu"]
    failures = infer(parse_arguments([*words, "--output-dir", str(tmp_path / "out")]))
    assert failures or (rule and rule.binary)
    flags = set(re.findall(r'add\("(--[a-z-]+)', (REPOSITORY / "segformer/command.py").read_text(encoding="utf-8")))
    assert "--annotations" in flags
    assert set(re.findall(r"--[a-z][a-z-]+", " ".join(failures))) <= flags


@pytest.mark.parametrize("folder", ["none", "empty"])
def test_annotations_that_are_not_there_are_not_passed_over(
    folder: str, checkpoint: Path, photos: Path, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    random_photo().save(photos / "a.png")
    words = [str(photos), "--checkpoint", str(checkpoint), "--annotations", str(tmp_path / folder)]
    with pytest.raises(FileNotFoundError, match=f"--annotations .*{folder}"):
        infer(parse_arguments([*words, "--output-dir", str(tmp_path / "out")]))


def test_the_page_names_the_model_that_was_taken_for_want_of_the_default(
    checkpoint: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("segformer.command.DEFAULT_CHECKPOINT", "nobody/has-this")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    shutil.copytree(checkpoint, tmp_path / "runs/mine-1")
    random_photo().save(photos / "a.png")
    words = [str(photos), "--output-dir", "out", "--html", "page.html", "--device", "cpu"]
    assert infer(parse_arguments(words)) == []
    assert "mine-1" in Path("page.html").read_text()
    assert "nobody/has-this" not in Path("page.html").read_text()
