"""Training checkpoints: folders that appear whole or not at all, of which a few are kept.

``checkpoint-{step}/`` is a model folder with ``training_state.pt`` beside the weights: what a run needs to go on and
nothing that a generator state would have to be saved for. ``SHA256SUMS`` tells a file that a disk or a copy has changed
by so much as a bit; ``sha256sum --check SHA256SUMS`` in the folder reads it, too.
"""

from __future__ import annotations

import errno
import hashlib
import logging
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from segformer.files import CONFIG_NAME, PROCESSOR_NAME, WEIGHTS_NAME, flush, is_plain

STATE_NAME = "training_state.pt"
SUMS_NAME = "SHA256SUMS"
_FILES = (STATE_NAME, WEIGHTS_NAME, CONFIG_NAME, PROCESSOR_NAME, SUMS_NAME)
_STATE_ENTRIES: dict[str, type] = {
    "config": dict,
    "progress": dict,
    "optimizer": dict,
    "scaler": dict,
    "rows_per_step": int,
    "rows": dict,
    "unlogged": list,
}
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_UNFINISHED, _REMOVED = "unfinished-", "removed-"
_CHECKPOINT = re.compile(r"checkpoint-(\d+)")

logger = logging.getLogger(__name__)


def save_checkpoint(
    output_dir: Path, step: int, save_model_files: Callable[[Path], None], training_state: dict[str, Any]
) -> Path:
    """Write ``checkpoint-{step}``: everything goes to a folder of another name, to the disk, and only then in place."""
    final = output_dir / f"checkpoint-{step}"
    unfinished = output_dir / f"{_UNFINISHED}checkpoint-{step}"
    shutil.rmtree(unfinished, ignore_errors=True)
    try:
        unfinished.mkdir(parents=True)
        save_model_files(unfinished)
        torch.save(training_state, unfinished / STATE_NAME)
        _write_sums(unfinished)
        for path in [*unfinished.iterdir(), unfinished]:
            flush(path)
    except Exception as error:  # a full disk looks different in every library
        shutil.rmtree(unfinished, ignore_errors=True)
        needed, free = _tensor_bytes(training_state) * 1.5, shutil.disk_usage(output_dir).free  # AdamW: two per weight
        remedy = "free some" if free < needed or getattr(error, "errno", None) in _FULL else "mend what is wrong there"
        raise OSError(
            f"cannot save {final} ({error}); the checkpoints before it are whole. It takes about "
            f"{needed / 2**20:.0f} MiB, {free / 2**20:.0f} are free: {remedy}, then --resume-from-checkpoint"
        ) from error
    replaced = final.with_name(_REMOVED + final.name)
    if final.exists():  # a resumed run writes the same step again
        final.rename(replaced)
    unfinished.rename(final)
    flush(output_dir)
    shutil.rmtree(replaced, ignore_errors=True)
    return final


def find_checkpoints(output_dir: Path) -> dict[int, Path]:
    """The checkpoints of a run by their step, oldest first: the folders that hold all that one is made of."""
    folders = _checkpoint_folders(output_dir)
    return {step: path for step, path in folders.items() if all((path / name).is_file() for name in _FILES)}


def rotate_checkpoints(output_dir: Path, limit: int | None, newest_step: int, best_step: int | None) -> None:
    """Delete the oldest checkpoints beyond ``limit``, but neither the one that was just written nor the best."""
    if limit is None:
        return
    steps = list(find_checkpoints(output_dir))
    surplus = max(0, len(steps) - limit)
    for step in [step for step in steps if step not in (newest_step, best_step)][:surplus]:
        _remove(output_dir / f"checkpoint-{step}")


def newest_checkpoint(output_dir: Path) -> Path | None:
    """The checkpoint of the last step whose files are as they were written; others are passed over with a warning.

    None where there is no checkpoint; ValueError where all are damaged, rather than to start over.
    """
    problems = []
    for path in reversed(_checkpoint_folders(output_dir).values()):
        try:
            check_whole(path)
            read_training_state(path)
        except (ValueError, OSError) as error:
            logger.warning("passing over %s: %s", path, error)
            problems.append(str(error))
        else:
            return path
    if problems:
        raise ValueError(f"no checkpoint in {output_dir} can be read; the newest: {problems[0]}")
    return None


def check_whole(checkpoint: Path) -> None:
    """Raise ValueError, naming the file, unless every file of a checkpoint is as it was written."""
    if not (checkpoint / STATE_NAME).is_file():
        raise FileNotFoundError(f"{checkpoint} is not a checkpoint of a run: it has no {STATE_NAME}")
    for name in _FILES:
        if not (checkpoint / name).is_file():
            raise ValueError(f"{checkpoint / name} is missing; resume from another checkpoint")
    lines = (checkpoint / SUMS_NAME).read_text(encoding="utf-8", errors="replace").splitlines()
    expected = {name: digest for digest, _, name in (line.partition("  ") for line in lines)}
    for name in _FILES[:-1]:
        if expected.get(name) != _sha256(checkpoint / name):
            raise ValueError(
                f"{checkpoint / name} is damaged: it is not what was written there, by {SUMS_NAME}; resume from "
                "another checkpoint"
            )


def whole_checkpoint(output_dir: Path, step: int | None) -> Path | None:
    """The checkpoint of a step, or None, with a warning, where it is damaged."""
    folder = output_dir / f"checkpoint-{step}"
    try:
        check_whole(folder)
    except (ValueError, OSError) as error:
        logger.warning("the last weights stay, for the best are damaged: %s", error)
        return None
    return folder


def refuse_broken(model: nn.Module, step: int) -> None:
    """Refuse to save a model that is broken; the last checkpoint stays what it was."""
    for name, weight in model.named_parameters():
        if not torch.isfinite(weight).all():
            raise FloatingPointError(
                f"{name} is not finite after step {step}; nothing was saved. Lower --learning-rate"
            )


def copy_checkpoint(checkpoint: Path, output_dir: Path, step: int) -> None:
    """Copy a checkpoint to the folder of another run, where it appears whole or not at all. ValueError if damaged."""
    check_whole(checkpoint)
    final = output_dir / f"checkpoint-{step}"
    unfinished = output_dir / f"{_UNFINISHED}{final.name}"
    shutil.rmtree(unfinished, ignore_errors=True)
    shutil.copytree(checkpoint, unfinished, copy_function=shutil.copyfile)  # their content, not that none may write
    for path in [*unfinished.iterdir(), unfinished]:
        flush(path)
    unfinished.rename(final)
    flush(output_dir)


def set_aside_later(output_dir: Path, step: int) -> None:
    """Rename the checkpoints beyond a step that a run goes back to: what it saves from now on is another branch."""
    for later, path in find_checkpoints(output_dir).items():
        if later > step:
            aside = path.with_name(f"abandoned-{path.name}")
            shutil.rmtree(aside, ignore_errors=True)
            path.rename(aside)
            logger.warning("going on from step %d; %s is kept as %s", step, path.name, aside.name)


def remove_leftovers(output_dir: Path) -> None:
    """Delete what saves and rotations that were cut off have left."""
    for leftover in [*output_dir.glob(f"{_UNFINISHED}checkpoint-*"), *output_dir.glob(f"{_REMOVED}checkpoint-*")]:
        shutil.rmtree(leftover, ignore_errors=True)


def _checkpoint_folders(output_dir: Path) -> dict[int, Path]:
    """The folders that are called like checkpoints, whatever they hold, by their step, oldest first."""
    named = ((_CHECKPOINT.fullmatch(path.name), path) for path in output_dir.glob("checkpoint-*") if path.is_dir())
    return dict(sorted((int(match[1]), path) for match, path in named if match))


def _remove(checkpoint: Path) -> None:
    """Delete a checkpoint, under another name first: half of one must never look like a whole one."""
    removed = checkpoint.with_name(_REMOVED + checkpoint.name)
    shutil.rmtree(removed, ignore_errors=True)
    try:
        checkpoint.rename(removed)
        shutil.rmtree(removed)
    except PermissionError as error:  # Windows deletes nothing that a program has open
        logger.warning("%s stays, for it cannot be deleted: %s", checkpoint, error)


def read_training_state(folder: Path) -> dict[str, Any]:
    """What ``save_checkpoint`` was given, on the CPU. Raises ValueError, naming the file, for anything damaged."""
    path = folder / STATE_NAME
    if not path.is_file():
        raise FileNotFoundError(f"{folder} is not a checkpoint of a run: it has no {STATE_NAME}")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # the unpickler raises what it likes
        raise ValueError(f"{path} is damaged ({type(error).__name__}); resume from another checkpoint") from error
    held = state if isinstance(state, dict) else {}
    lacking = [name for name, kind in _STATE_ENTRIES.items() if not isinstance(held.get(name), kind)]
    if lacking:
        raise ValueError(f"{path} is not the state of a training run: it lacks {', '.join(lacking)}")
    if not all(map(is_plain, _tensors(held))):
        raise ValueError(f"{path} is not the state of a training run: it holds a tensor without all its values")
    return dict(held)


def _tensor_bytes(state: Any) -> int:
    return sum(tensor.nbytes for tensor in _tensors(state))


def _tensors(state: Any) -> Iterator[torch.Tensor]:
    """The tensors that are somewhere in nested dicts, lists and tuples."""
    if isinstance(state, torch.Tensor):
        yield state
    parts = state.values() if isinstance(state, dict) else state if isinstance(state, list | tuple) else ()
    for part in parts:
        yield from _tensors(part)


def _write_sums(folder: Path) -> None:
    lines = [f"{_sha256(path)}  {path.name}\n" for path in sorted(folder.iterdir())]
    (folder / SUMS_NAME).write_text("".join(lines), encoding="utf-8", newline="\n")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
