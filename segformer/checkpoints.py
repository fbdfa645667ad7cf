"""Training checkpoints: folders that appear whole or not at all, of which a few are kept.

``checkpoint-{step}/`` is a model folder with ``training_state.pt`` beside the weights: what a run needs to go on and
nothing that a generator state would have to be saved for.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

STATE_NAME = "training_state.pt"
_STATE_ENTRIES = {"config", "progress", "optimizer", "scaler", "rows_per_step"}
_CHECKPOINT = re.compile(r"checkpoint-(\d+)")

logger = logging.getLogger(__name__)


def save_checkpoint(
    output_dir: Path, step: int, save_model_files: Callable[[Path], None], training_state: dict[str, Any]
) -> Path:
    """Write ``checkpoint-{step}``: everything goes to a folder of another name, to the disk, and only then in place."""
    final = output_dir / f"checkpoint-{step}"
    unfinished = output_dir / f"unfinished-checkpoint-{step}"
    shutil.rmtree(unfinished, ignore_errors=True)
    try:
        unfinished.mkdir(parents=True)
        save_model_files(unfinished)
        torch.save(training_state, unfinished / STATE_NAME)
        for path in [*unfinished.iterdir(), unfinished]:
            _flush(path)
    except Exception as error:  # a full disk looks different in every library
        shutil.rmtree(unfinished, ignore_errors=True)
        raise OSError(f"cannot save {final} ({error}); the checkpoints before it are whole. Free some space") from error
    if final.exists():  # a resumed run writes the same step again
        shutil.rmtree(final)
    unfinished.rename(final)
    _flush(output_dir)
    return final


def find_checkpoints(output_dir: Path) -> dict[int, Path]:
    """The whole checkpoints of a run by their step, oldest first."""
    found = {}
    for path in output_dir.glob("checkpoint-*"):
        match = _CHECKPOINT.fullmatch(path.name)
        if match and (path / STATE_NAME).is_file():
            found[int(match[1])] = path
    return dict(sorted(found.items()))


def rotate_checkpoints(output_dir: Path, limit: int | None, newest_step: int, best_step: int | None) -> None:
    """Delete checkpoints beyond ``limit``: steps that a resumed run has gone back behind, then the oldest.

    Never the one that was just written, nor the best.
    """
    if limit is None:
        return
    steps = sorted(find_checkpoints(output_dir), key=lambda step: (step <= newest_step, step))
    surplus = max(0, len(steps) - limit)
    for step in [step for step in steps if step not in (newest_step, best_step)][:surplus]:
        shutil.rmtree(output_dir / f"checkpoint-{step}")


def read_training_state(folder: Path) -> dict[str, Any]:
    """What ``save_checkpoint`` was given, on the CPU. Raises ValueError, naming the file, for anything damaged."""
    path = folder / STATE_NAME
    if not path.is_file():
        raise FileNotFoundError(f"{folder} is not a checkpoint of a run: it has no {STATE_NAME}")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # the unpickler raises what it likes
        raise ValueError(f"{path} is damaged ({type(error).__name__}); resume from another checkpoint") from error
    lacking = _STATE_ENTRIES - set(state) if isinstance(state, dict) else _STATE_ENTRIES
    if lacking:
        raise ValueError(f"{path} is not the state of a training run: it lacks {', '.join(sorted(lacking))}")
    return dict(state)


def _flush(path: Path) -> None:
    """Ask the disk to keep what was written to a file or a folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
