"""The output folder of a run: claimed without overwriting anything unasked, and its log."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

LOG_NAME = "log.jsonl"


def claim_output_dir(output_dir: str | None, recipe: str, resume: str | None, overwrite: bool) -> Path:
    """The folder of a run, made ready: a new one, or the named one if it is empty, resumed or may be overwritten.

    ``resume`` is a checkpoint folder or "last". Raises ValueError rather than lose what a folder holds.
    """
    if output_dir is None and resume == "last":
        raise ValueError("resume_from_checkpoint is 'last' but there is no output_dir to look in")
    if output_dir is None:
        return Path(resume).parent if resume is not None else _new_run_folder(recipe)
    folder = Path(output_dir)
    if resume is None and folder.is_dir() and any(folder.iterdir()):
        if not overwrite:
            raise ValueError(
                f"{folder} is not empty; pass --overwrite-output-dir to delete what it holds, "
                "--resume-from-checkpoint to go on, or another --output-dir"
            )
        if not (folder / LOG_NAME).exists():
            raise ValueError(f"{folder} holds files but no run (no {LOG_NAME}); it will not be overwritten")
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _new_run_folder(recipe: str) -> Path:
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
        kept = [line for line in lines if json.loads(line)["step"] <= last_step]
        self.path.write_text("".join(line + "\n" for line in kept), encoding="utf-8")

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
