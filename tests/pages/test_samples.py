"""Samples of a run: what is saved comes back, what is broken is passed over, and a long run does not fill the disk."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from run_folders import NUM_LABELS, prediction_at, scene, write_samples

from segformer.pages.samples import MOST_STEPS, NO_CLASS, ReportSample, load_samples, save_predictions, save_samples
from segformer.pictures import palette


def saved_steps(folder: Path) -> list[int]:
    return sorted(int(path.stem.partition("-")[2]) for path in (folder / "samples/0").glob("step-*.png"))


def test_samples_come_back_as_they_were_saved(tmp_path: Path) -> None:
    write_samples(tmp_path, [100, 20, 1000000], 1000000, count=11)
    samples = load_samples(tmp_path)
    assert [sample.name for sample in samples] == [f"photo {number}" for number in range(11)]
    for number, sample in enumerate(samples):
        assert np.array_equal(sample.truth, scene(number))
        assert list(sample.predictions) == [20, 100, 1000000]
        for step, prediction in sample.predictions.items():
            assert np.array_equal(prediction, prediction_at(scene(number), step, 1000000))
        assert sample.photo.size == (96, 96)


def test_unlabelled_pixels_and_the_last_class_come_back(tmp_path: Path) -> None:
    truth = np.array([[0, 254, NO_CLASS]], np.uint8)
    save_samples(tmp_path, ["a"], [Image.new("RGB", (3, 1))], [truth], palette(255))
    assert load_samples(tmp_path)[0].truth.tolist() == truth.tolist()


def test_int64_maps_as_models_give_them_are_saved(tmp_path: Path) -> None:
    write_samples(tmp_path, [], 1, count=1)
    save_predictions(tmp_path, 5, [scene(0).astype(np.int64)], palette(NUM_LABELS))
    assert np.array_equal(load_samples(tmp_path)[0].predictions[5], scene(0))


def test_more_classes_than_a_file_can_tell_apart_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="256 classes"):
        save_predictions(tmp_path, 5, [scene(0)], palette(256))


def test_a_prediction_of_another_size_than_the_truth_is_refused() -> None:
    with pytest.raises(ValueError, match=r"step 7 is \[2, 3\], the truth \[3, 2\]"):
        ReportSample("a", Image.new("RGB", (1, 1)), np.zeros((3, 2), np.uint8), {7: np.zeros((2, 3), np.uint8)})


def test_steps_after_the_last_one_logged_are_left_out(tmp_path: Path) -> None:
    write_samples(tmp_path, [100, 200, 300], 300)
    assert list(load_samples(tmp_path, last_step=200)[0].predictions) == [100, 200]


@pytest.mark.parametrize("content", [b"", b"no picture", b"half"])
def test_a_broken_prediction_is_passed_over(tmp_path: Path, content: bytes) -> None:
    write_samples(tmp_path, [100, 200], 200, count=1)
    path = tmp_path / "samples/0/step-000100.png"
    path.write_bytes(path.read_bytes()[:60] if content == b"half" else content)
    assert list(load_samples(tmp_path)[0].predictions) == [200]


@pytest.mark.parametrize("name", ["photo.jpg", "truth.png"])
@pytest.mark.parametrize("missing", [True, False])
def test_a_sample_without_photo_or_truth_is_passed_over(tmp_path: Path, name: str, missing: bool) -> None:
    write_samples(tmp_path, [100], 100, count=3)
    path = tmp_path / "samples/1" / name
    path.unlink() if missing else path.write_bytes(b"")
    assert [sample.name for sample in load_samples(tmp_path)] == ["photo 0", "photo 2"]


def test_a_prediction_of_another_size_on_disk_is_passed_over(tmp_path: Path) -> None:
    write_samples(tmp_path, [100], 100, count=1)
    save_predictions(tmp_path, 200, [np.zeros((5, 5), np.uint8)], palette(NUM_LABELS))
    assert list(load_samples(tmp_path)[0].predictions) == [100]


@pytest.mark.parametrize("content", ["", "[", '{"0": "a"}', "3"])
def test_broken_names_leave_samples_with_numbers(tmp_path: Path, content: str) -> None:
    write_samples(tmp_path, [100], 100)
    (tmp_path / "samples/names.json").write_text(content)
    assert [sample.name for sample in load_samples(tmp_path)] == ["sample 0", "sample 1"]


def test_strange_files_among_the_samples_are_passed_over(tmp_path: Path) -> None:
    write_samples(tmp_path, [100], 100, count=1)
    for name in ("step-.png", "step-000007.png.unfinished", "step-1x.png", "notes.txt"):
        (tmp_path / "samples/0" / name).write_text("?")
    (tmp_path / "samples/x").mkdir()
    assert list(load_samples(tmp_path)[0].predictions) == [100]


def test_a_folder_without_samples_has_none(tmp_path: Path) -> None:
    assert load_samples(tmp_path) == []
    assert list(tmp_path.iterdir()) == []


def test_saving_leaves_nothing_unfinished(tmp_path: Path) -> None:
    write_samples(tmp_path, [100, 200], 200)
    assert list(tmp_path.rglob("*.unfinished")) == []


def test_a_long_run_keeps_a_bounded_number_of_steps_with_both_ends(tmp_path: Path) -> None:
    prediction = np.zeros((2, 2), np.uint8)
    for step in range(200, 80_001, 200):
        save_predictions(tmp_path, step, [prediction], palette(2))
        assert step in saved_steps(tmp_path)
    kept = saved_steps(tmp_path)
    assert len(kept) == MOST_STEPS
    assert (kept[0], kept[-1]) == (200, 80_000)
    gaps = np.diff(np.sqrt(kept))
    assert gaps.max() / gaps.min() < 3.5  # about even on the square root's scale, which favours early steps


def test_a_step_saved_late_is_kept(tmp_path: Path) -> None:
    for step in (*range(100, 5001, 100), 4900):  # the best step is evaluated once more at the end
        save_predictions(tmp_path, step, [np.zeros((2, 2), np.uint8)], palette(2))
    assert 4900 in saved_steps(tmp_path)
    assert 5000 in saved_steps(tmp_path)
    assert len(saved_steps(tmp_path)) <= MOST_STEPS
