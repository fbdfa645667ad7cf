"""The same seed on the same machine gives the same numbers, whatever else differs from one start to the next."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from test_stopping import ROOT, log_of


def run(folder: Path, shards: Path, checkpoint: Path, hash_seed: str, *flags: str) -> tuple[bytes, list[object]]:
    """The weights and the log of a run in a process of its own."""
    words = (
        f"--recipe guide --device cpu --dataset {shards} --checkpoint {checkpoint} --split train "
        f"--eval-split validation --max-steps 12 --eval-steps 5 --save-steps 12 --output-dir {folder}"
    ).split()
    subprocess.run(
        [sys.executable, str(ROOT / "train.py"), *words, *flags],
        check=True,
        capture_output=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONHASHSEED": hash_seed},
    )
    return (folder / "model.safetensors").read_bytes(), log_of(folder)


@pytest.mark.parametrize("flags", [(), ("--augment-on-device",), ("--dataloader-num-workers", "2")], ids=" ".join)
def test_two_processes_train_to_the_same_bits(
    flags: tuple[str, ...], small_shards: Path, small_checkpoint: Path, tmp_path: Path
) -> None:
    first, second = (run(tmp_path / seed, small_shards, small_checkpoint, seed, *flags) for seed in ("1", "2"))
    assert first == second


def test_the_number_of_workers_is_not_seen_in_the_log(
    small_shards: Path, small_checkpoint: Path, tmp_path: Path
) -> None:
    alone = run(tmp_path / "alone", small_shards, small_checkpoint, "1")
    helped = run(tmp_path / "helped", small_shards, small_checkpoint, "1", "--dataloader-num-workers", "1")
    assert alone == helped
