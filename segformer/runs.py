"""A run as such: its output folder, claimed without overwriting anything unasked, its log, its clock and memory."""

from __future__ import annotations

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

from segformer.checkpoints import newest_checkpoint
from segformer.files import write_atomically
from segformer.hub import WEIGHTS_NAME

LOG_NAME = "log.jsonl"

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
    if not folder.is_dir() or not any(folder.iterdir()):
        return
    if not overwrite:
        raise ValueError(
            f"{folder} is not empty; pass --overwrite-output-dir to delete what it holds, "
            "--resume-from-checkpoint to go on, or another --output-dir"
        )
    if not (folder / LOG_NAME).exists():
        raise ValueError(f"{folder} holds files but no run (no {LOG_NAME}); it will not be overwritten")


def make_output_dir(output_dir: str | None, recipe: str, overwrite: bool) -> Path:
    """Make the folder of a new run, runs/<recipe>-<n> if none is named; ``overwrite`` replaces the run that it held."""
    if output_dir is None:
        return _new_run_folder(recipe)
    folder = Path(output_dir)
    check_output_dir(folder, overwrite)
    if folder.is_dir() and any(folder.iterdir()):
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


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
        return checkpoint
    if output_dir is None:
        raise ValueError("resume_from_checkpoint is 'last' but there is no output_dir to look in")
    newest = newest_checkpoint(Path(output_dir))
    if newest is None:
        if (Path(output_dir) / WEIGHTS_NAME).exists():
            raise ValueError(f"{output_dir} holds a model but no checkpoint to go on from; name another --output-dir")
        logger.warning("no checkpoint in %s: starting at step 0", output_dir)
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


class Log:
    """A run's history, one JSON object a line, with the keys of Trainer's log. What lies beyond ``last_step`` goes."""

    def __init__(self, folder: Path, last_step: int) -> None:
        self.path = folder / LOG_NAME
        lines = self.path.read_text(encoding="utf-8").splitlines() if self.path.exists() else []
        kept = [line for number, line in enumerate(lines, start=1) if self._step(line, number, lines) <= last_step]
        write_atomically(self.path, "".join(line + "\n" for line in kept))

    def _step(self, line: str, number: int, lines: list[str]) -> float:
        try:
            return float(json.loads(line)["step"])
        except (ValueError, KeyError, TypeError) as error:
            if number == len(lines):  # a run that was killed while it wrote leaves half a line
                return math.inf
            raise ValueError(f"line {number} of {self.path} is no log entry; mend or remove it") from error

    def add(self, step: int, epoch: float, entries: dict[str, Any]) -> None:
        """Append one entry."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, "epoch": round(epoch, 4), **without_nan(entries)}) + "\n")


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
