"""Checkpoints of a run: whole or not there, some of them kept, damaged ones noticed."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from segformer.training.checkpoints import (
    check_whole,
    copy_checkpoint,
    find_checkpoints,
    newest_checkpoint,
    rotate_checkpoints,
    save_checkpoint,
)


def _save_model_files(folder: Path) -> None:
    for name in ("config.json", "preprocessor_config.json"):
        (folder / name).write_text("{}")
    save_file({"weight": torch.ones(3)}, folder / "model.safetensors")


STATE: dict[str, Any] = {
    **{name: {} for name in ("config", "progress", "optimizer", "scaler", "rows")},
    "rows_per_step": 2,
    "unlogged": [],
}


def test_rotation_keeps_the_newest_and_the_best(tmp_path: Path) -> None:
    for step in (2, 4, 10, 12):
        save_checkpoint(tmp_path, step, _save_model_files, STATE)
    rotate_checkpoints(tmp_path, limit=2, newest_step=12, best_step=2)
    assert list(find_checkpoints(tmp_path)) == [2, 12]


@pytest.mark.parametrize(
    "name", ["training_state.pt", "model.safetensors", "config.json", "preprocessor_config.json", "SHA256SUMS"]
)
@pytest.mark.parametrize("damage", ["cut", "flipped", "gone"])
def test_a_damaged_checkpoint_is_passed_over_for_the_one_before_with_a_warning(
    name: str, damage: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for step in (2, 4):
        save_checkpoint(tmp_path, step, _save_model_files, STATE)
    path = tmp_path / "checkpoint-4" / name
    content = path.read_bytes()
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(content[: len(content) // 2] if damage == "cut" else bytes([content[0] ^ 1]) + content[1:])
    assert newest_checkpoint(tmp_path) == tmp_path / "checkpoint-2"
    assert name in caplog.text or damage == "cut"  # sums that are cut tell of the first file that they no longer have
    assert f"passing over {path.parent}" in caplog.text


@pytest.mark.parametrize("name", ["training_state.pt", "SHA256SUMS"])
def test_where_every_checkpoint_lacks_a_file_no_run_starts_over(name: str, tmp_path: Path) -> None:
    folder = save_checkpoint(tmp_path, 2, _save_model_files, STATE)
    (folder / name).unlink()
    with pytest.raises(ValueError, match=rf"no checkpoint in .* can be read; the newest: .*{name}"):
        newest_checkpoint(tmp_path)


def test_a_damaged_checkpoint_is_not_copied(tmp_path: Path) -> None:
    folder = save_checkpoint(tmp_path / "a", 2, _save_model_files, STATE)
    (tmp_path / "b").mkdir()
    copy_checkpoint(folder, tmp_path / "b", 2)
    check_whole(tmp_path / "b/checkpoint-2")
    (folder / "config.json").write_text("[]")
    with pytest.raises(ValueError, match=r"config.json is damaged"):
        copy_checkpoint(folder, tmp_path / "b", 3)
    assert [path.name for path in (tmp_path / "b").iterdir()] == ["checkpoint-2"]


def test_where_all_checkpoints_are_damaged_no_run_starts_over(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, 2, _save_model_files, STATE)
    (tmp_path / "checkpoint-2/training_state.pt").write_bytes(b"")
    with pytest.raises(
        ValueError, match=r"no checkpoint in .* can be read; the newest: .*training_state.pt is damaged"
    ):
        newest_checkpoint(tmp_path)


def test_the_sums_of_a_checkpoint_are_those_of_sha256sum(tmp_path: Path) -> None:
    folder = save_checkpoint(tmp_path, 2, _save_model_files, STATE)
    checked = subprocess.run(
        ["sha256sum", "--check", "--strict", "SHA256SUMS"], cwd=folder, capture_output=True, text=True, check=True
    )
    assert sorted(line.partition(":")[0] for line in checked.stdout.splitlines()) == sorted(
        path.name for path in folder.iterdir() if path.name != "SHA256SUMS"
    )
    check_whole(folder)


def test_a_save_that_fails_leaves_the_checkpoint_before_it_and_says_what_it_takes(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, 1, lambda folder: None, {})
    moments = {"state": {0: {"exp_avg": torch.zeros(2**20), "exp_avg_sq": torch.zeros(2**20)}}}

    def full_disk(folder: Path) -> None:
        (folder / "model.safetensors").write_bytes(b"half")
        raise OSError("No space left on device")

    with pytest.raises(
        OSError, match=r"No space left on device.*before it are whole. It takes about 12 MiB, \d+ are free"
    ):
        save_checkpoint(tmp_path, 2, full_disk, {"optimizer": moments})
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-1"]
