"""Measure this machine: training, prediction, losses, data, memory, whole runs, most of it beside transformers.

    python -m benchmarks --minutes 20
    python -m benchmarks.tables

What says most comes first, and every row is kept as soon as it is measured, in results/NAME.json, with NAME.md to be
shown and NAME.svg to be looked at. What the minutes do not suffice for is named; the same command, given again, goes on
with it. A row that fails is kept with its reason, and the next one begins in a new process.
"""

from __future__ import annotations

import json
import re
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks import measure, page
from benchmarks.rows import Row, Scope, plan
from benchmarks.worker import Failed, Worker
from segformer.files import write_atomically

_OF_ONE_DAY = ("date", "changed_since_commit", "driver")  # what may differ between two sittings on one machine


class Results:
    """The rows of a machine by name, kept as three files; of another machine, version or commit none are taken over."""

    def __init__(self, folder: Path, name: str, card: dict[str, Any], again: bool = False) -> None:
        self._path, self._card = folder / f"{name}.json", card
        self.rows: dict[str, dict[str, Any]] = {}
        if self._path.exists() and not again:
            held = json.loads(self._path.read_text(encoding="utf-8"))
            if _lasting(held["machine"]) != _lasting(card):
                raise SystemExit(
                    f"error: {self._path} has rows of other versions or another machine; --again drops them"
                )
            self.rows = {row["row"]: row for row in held["rows"]}

    def has(self, name: str) -> bool:
        """Whether a row was measured."""
        return name in self.rows and page.is_measured(self.rows[name])

    def add(self, row: dict[str, Any], order: Sequence[str]) -> None:
        """Keep a row, in its place."""
        self.rows[row["row"]] = row
        self.rows = {name: self.rows[name] for name in [*order, *self.rows] if name in self.rows}
        self._path.parent.mkdir(parents=True, exist_ok=True)
        result = {"benchmark": "machine", "machine": self._card, "rows": list(self.rows.values())}
        write_atomically(self._path, json.dumps(result, indent=1) + "\n")
        write_atomically(self._path.with_suffix(".svg"), page.picture(result))
        write_atomically(self._path.with_suffix(".md"), page.text(result, self._path.stem))


def _lasting(card: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in card.items() if name not in _OF_ONE_DAY}


def measure_rows(rows: Sequence[Row], results: Results, seconds: float, log: Path | None = None) -> None:
    """Measure what is not measured yet, one row after the other, for so many seconds."""
    ends, order = time.monotonic() + seconds, [row.name for row in rows]
    worker = Worker(log)
    try:
        for row in rows:
            if results.has(row.name):
                continue
            began = time.monotonic()
            entry: dict[str, Any] = {"row": row.name, "group": row.group, "goals": [list(goal) for goal in row.goals]}
            if ends - began < row.seconds:
                entry["skipped"] = f"takes about {row.seconds:.0f} s; {max(0.0, ends - began):.0f} s were left"
            else:
                if row.fresh:
                    worker.end()
                try:
                    entry |= worker.ask(row.work, ends - began)
                except Failed as failed:
                    entry["failed"] = str(failed)
            entry["took_seconds"] = round(time.monotonic() - began, 1)
            results.add(entry, order)
            print(f"{entry['took_seconds']:>6.1f} s  {row.name}: {page.told(entry)}", flush=True)
    finally:
        worker.end()


def name_of(card: dict[str, Any]) -> str:
    """What the files of a machine are called."""
    threads = "" if "capability" in card else f" {card['threads']} threads"
    return re.sub(r"[^a-z0-9]+", "-", f"{card['device']}{threads}".lower()).strip("-")


def main() -> None:
    """Measure this machine for some minutes."""
    parser = measure.flags(__doc__, "machine", repeats=7)
    parser.add_argument("--minutes", type=float, default=20.0, help="after which nothing more is begun or waited for")
    parser.add_argument("--rows", metavar="TEXT", default="", help="only rows whose names have this in them")
    parser.add_argument("--size", type=int, default=512, help="side of photos in pixels")
    parser.add_argument("--again", action="store_true", help="drop the rows that are there already")
    parser.add_argument("--folder", type=Path, default=measure.RESULTS, help="where the files are kept")
    options = parser.parse_args()
    ends = time.monotonic() + 60 * options.minutes
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))  # so that the worker goes, too
    card = measure.machine_card(torch.device(options.device))
    print("  ".join(f"{key}={value}" for key, value in card.items()))
    results = Results(options.folder, name := options.save or name_of(card), card, options.again)
    with tempfile.TemporaryDirectory() as folder:
        scope = Scope(options.device, Path(folder) / "shards", options.size, options.repeats)
        rows = [row for row in plan(scope) if options.rows.lower() in row.name.lower()]
        try:
            measure_rows(rows, results, ends - time.monotonic(), Path(folder) / "log")
        except KeyboardInterrupt:
            print("interrupted; give the command again to go on")
    print(f"see {options.folder / name}.md")


if __name__ == "__main__":
    main()
