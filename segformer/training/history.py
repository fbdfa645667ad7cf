"""The history of a run: where it is, its log, its clock and memory."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import Any, Protocol

from segformer.files import write_atomically
from segformer.machine import peak_memory_mib as peak_memory_mib  # which the log holds, too

LOG_NAME = "log.jsonl"


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
