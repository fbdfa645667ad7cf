"""The same seed on the same machine gives the same numbers, whatever else differs from one start to the next."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cache
from pathlib import Path

import programs
import pytest
from programs import ROOT
from test_stopping import log_of

Run = Callable[..., tuple[bytes, list[object]]]


@pytest.fixture(scope="module")
def run(small_shards: Path, small_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The weights and the log of a run in a process with this hash seed, and with flags; each is made once.

    Without a hash seed Python draws one.
    """

    @cache
    def trained(hash_seed: str | None, *flags: str) -> tuple[bytes, list[object]]:
        folder = tmp_path_factory.mktemp("runs") / "run"
        words = (
            f"--recipe guide --device cpu --dataset {small_shards} --checkpoint {small_checkpoint} --split train "
            f"--eval-split validation --max-steps 12 --eval-steps 5 --save-steps 12 --output-dir {folder}"
        ).split()
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONHASHSEED"}
        environment |= {} if hash_seed is None else {"PYTHONHASHSEED": hash_seed}
        done = programs.run(ROOT / "train.py", *words, *flags, environment=environment)
        assert done.returncode == 0, done.stderr
        return (folder / "model.safetensors").read_bytes(), log_of(folder)

    return trained


@pytest.mark.parametrize("flags", [(), ("--augment-on-device",), ("--dataloader-num-workers", "2")], ids=" ".join)
def test_two_processes_train_to_the_same_bits(flags: tuple[str, ...], run: Run) -> None:
    assert run(None, *flags) == run("2", *flags)


def test_the_number_of_workers_is_not_seen_in_the_log(run: Run) -> None:
    assert run(None) == run(None, "--dataloader-num-workers", "1") == run(None, "--dataloader-num-workers", "2")
