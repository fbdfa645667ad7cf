"""The log once more as event files, which TensorBoard shows."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

EVENTS_NAME = "tensorboard"


class EventFiles:
    """Event files in the folder ``tensorboard`` of a run; what lies beyond ``last_step`` is not shown again."""

    def __init__(self, output_dir: Path, last_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter  # of an extra; the settings have asked whether it is there

        folder = str(output_dir / EVENTS_NAME)
        self._writer = SummaryWriter(folder, purge_step=last_step + 1)

    def add(self, step: int, entries: Mapping[str, Any]) -> None:
        """The numbers of an entry, those of an evaluation under ``eval/``, others under ``train/``."""
        for name, value in entries.items():
            if isinstance(value, int | float):
                place = f"eval/{name.removeprefix('eval_')}" if name.startswith("eval_") else f"train/{name}"
                self._writer.add_scalar(place, value, step)
        self._writer.flush()
