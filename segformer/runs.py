"""The output folder of a run: claimed without overwriting anything unasked, and its log."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

LOG_NAME = "log.jsonl"


def check_output_dir(folder: Path, overwrite: bool) -> None:
    """Raise ValueError, before any work begins, if a new run in this folder would lose what it holds."""
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file; --output-dir names a folder")
    if not folder.is_dir() or not any(folder.iterdir()):
        return
    if not overwrite:
        raise ValueError(
            f"{folder} is not empty; pass --overwrite-output-dir to delete what it holds, "
            "--resume-from-checkpoint to go on, or another --output-dir"
        )
    if not (folder / LOG_NAME).exists():
        raise ValueError(f"{folder} holds files but no run (no {LOG_NAME}); it will not be overwritten")


def make_output_dir(folder: Path, overwrite: bool) -> None:
    """Make the folder of a new run, which replaces the run it held if ``overwrite`` says so."""
    check_output_dir(folder, overwrite)
    if folder.is_dir() and any(folder.iterdir()):
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)


def new_run_folder(recipe: str) -> Path:
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
        unfinished = self.path.with_name(f"{LOG_NAME}.unfinished")
        unfinished.write_text("".join(line + "\n" for line in kept), encoding="utf-8")
        unfinished.replace(self.path)

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
