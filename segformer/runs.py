"""A run as such: its output folder, claimed without overwriting anything unasked, its log, its clock and memory."""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import math
import os
import platform
import resource
import shutil
import time
from pathlib import Path
from typing import Any, Protocol

import torch

from segformer.checkpoints import check_whole, newest_checkpoint
from segformer.files import write_atomically
from segformer.hub import WEIGHTS_NAME

LOG_NAME = "log.jsonl"
_LOCK_NAME = ".lock"

logger = logging.getLogger(__name__)


def speak_plainly() -> None:
    """Have log messages appear as they are, but not every request of the Hub's client, whose addresses are signed."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    for client in ("httpx", "httpx2"):
        logging.getLogger(client).setLevel(logging.WARNING)


def check_output_dir(folder: Path, overwrite: bool) -> None:
    """Raise ValueError, before any work begins, if a new run in this folder would lose what it holds."""
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file; --output-dir names a folder")
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not os.access(there, os.W_OK):
        raise ValueError(f"{there} is not writable; name another --output-dir")
    if not _holds_files(folder):
        return
    if not overwrite:
        raise ValueError(
            f"{folder} is not empty; pass --overwrite-output-dir to delete what it holds, "
            "--resume-from-checkpoint to go on, or another --output-dir"
        )
    if not (folder / LOG_NAME).exists():
        raise ValueError(f"{folder} holds files but no run (no {LOG_NAME}); it will not be overwritten")


def claim_output_dir(output_dir: str | Path | None, recipe: str) -> tuple[Path, RunLock]:
    """Make the folder of a run if it is not there, runs/<recipe>-<n> if none is named, and take the right to it."""
    folder = _new_run_folder(recipe) if output_dir is None else Path(output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    return folder, RunLock(folder)


def empty_output_dir(folder: Path, overwrite: bool) -> None:
    """Delete the run that a folder holds, if ``overwrite`` allows it; only a run is ever deleted."""
    check_output_dir(folder, overwrite)
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.name != _LOCK_NAME:
            path.unlink()


def _holds_files(folder: Path) -> bool:
    return folder.is_dir() and any(path.name != _LOCK_NAME for path in folder.iterdir())


def find_resumed(output_dir: str | None, resume_from: str | None, overwrite: bool) -> Path | None:
    """The checkpoint to go on from, or None to start at the beginning; refuses to lose what the output folder holds.

    ``resume_from`` is a checkpoint's folder, "last" for the newest in ``output_dir``, or None.
    """
    if resume_from is None:
        if output_dir is not None:
            check_output_dir(Path(output_dir), overwrite)
        return None
    if resume_from != "last":
        checkpoint = Path(resume_from).resolve()  # its parent is the run's folder, also where it is named '.'
        if output_dir is not None and Path(output_dir).resolve() != checkpoint.parent:
            check_output_dir(Path(output_dir), overwrite=False)
        check_whole(checkpoint)
        return checkpoint
    if output_dir is None:
        raise ValueError("resume_from_checkpoint is 'last' but there is no output_dir to look in")
    newest = newest_checkpoint(Path(output_dir))
    if newest is None and (Path(output_dir) / WEIGHTS_NAME).exists():
        raise ValueError(f"{output_dir} holds a model but no checkpoint to go on from; name another --output-dir")
    return newest


def _new_run_folder(recipe: str) -> Path:
    """Make runs/<recipe>-<n> for the first n that is free."""
    number = 1
    while True:
        folder = Path("runs") / f"{recipe}-{number}"
        try:
            folder.mkdir(parents=True)
            return folder
        except FileExistsError:
            number += 1


class RunLock:
    """The right to write to a run's folder, which one process has at a time; it ends with the process, however it ends.

    Raises ValueError where another process has it.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / _LOCK_NAME
        self._file = self._path.open("a")
        try:
            fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._file.close()
            if error.errno in (errno.EACCES, errno.EAGAIN):
                raise ValueError(f"another run is writing to {folder}; wait for it, or name another folder") from error
            # A file system without locks: nothing can be known there, and nothing is refused.
            logger.warning("%s cannot be locked (%s); see that no other run writes there", folder, error)
        if not (
            self._path.exists() and os.path.samestat(self._path.stat(), os.fstat(self._file.fileno()))
        ):  # gone with the run that ended now
            self._file.close()
            raise ValueError(f"another run was writing to {folder} until now; start again")

    def __enter__(self) -> RunLock:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def release(self) -> None:
        """Let others write there; done twice, it does nothing."""
        if not self._file.closed:
            self._path.unlink(missing_ok=True)
            self._file.close()


class Log:
    """A run's history, one JSON object a line, with the keys of Trainer's log.

    What lies beyond ``last_step`` goes, and unless ``last_step`` was ``evaluated`` an evaluation of it, too, for there
    will be another.
    """

    def __init__(self, folder: Path, last_step: int, evaluated: bool = True) -> None:
        self.path = folder / LOG_NAME
        text = self.path.read_bytes().decode("utf-8", "replace") if self.path.exists() else ""
        lines = text.splitlines()
        kept = []
        for number, line in enumerate(lines, start=1):
            try:
                entry = json.loads(line)
                step = float(entry["step"])
            except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
                if number == len(lines):  # a run that was killed while it wrote leaves half a line
                    break
                raise ValueError(f"line {number} of {self.path} is no log entry; mend or remove it") from error
            if step < last_step or (step == last_step and (evaluated or "eval_loss" not in entry)):
                kept.append(line)
        write_atomically(self.path, "".join(line + "\n" for line in kept))

    def add(self, step: int, epoch: float, entries: dict[str, Any]) -> None:
        """Append one entry. Raises OSError, naming the file, where there is no room for it."""
        line = json.dumps({"step": step, "epoch": round(epoch, 4), **without_nan(entries)})
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(line + "\n")
        except OSError as error:
            raise OSError(f"cannot write to {self.path} ({error.strerror}); mend that, then resume") from error


def without_nan(entries: dict[str, Any]) -> dict[str, Any]:
    """The entries as strict JSON can hold them: null for what is not a number."""

    def plain(value: Any) -> Any:
        if isinstance(value, list):
            return [plain(each) for each in value]
        return None if isinstance(value, float) and not math.isfinite(value) else value

    return {name: plain(value) for name, value in entries.items()}


class _Waiting(Protocol):
    waited_seconds: float


class Clock:
    """The time of a run from its ``first_step`` on, and how much of it went by waiting for the loader's batches."""

    def __init__(self, loader: _Waiting, first_step: int) -> None:
        self.first_step = first_step
        self._loader = loader
        self._started = time.perf_counter()

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self._started

    @property
    def wait_share(self) -> float:
        """The share of the time that was spent waiting for data, 0 to 1."""
        return self._loader.waited_seconds / max(self.seconds, 1e-9)


def peak_memory_mib(device: torch.device) -> float:
    """The most memory that this process has held so far: on a GPU there, else in RAM."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if platform.system() == "Darwin" else 2**10)
