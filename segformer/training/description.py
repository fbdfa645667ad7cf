"""What a run knows of itself before its first step, and what it scored: files that pages are made from."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from segformer.files import write_atomically
from segformer.training.history import without_nan

DESCRIPTION_NAME = "run.json"
RESULTS_NAME = "eval_results.json"
CLASSES_NAME = "classes.csv"
LAST_STEP = 2**53  # the last whole number that a script can count


@dataclass(frozen=True)
class RunDescription:
    """What a run knows before its first step, kept as ``run.json``; any of it may be missing."""

    settings: dict[str, Any] = field(default_factory=dict)
    class_names: list[str] = field(default_factory=list)
    model: str = ""  # such as "SegFormer-B0"
    parameters: int = 0
    train_images: int = 0
    eval_images: int = 0
    image_size: list[int] = field(default_factory=list)  # height and width that the model sees
    total_steps: int = 0
    scored_rows: str = ""  # the split that is scored; empty where part of the training rows is held out
    shortened: list[str] = field(default_factory=list)  # settings of which only the last folder or file is told
    understood: list[str] = field(default_factory=list)  # of the data, as it was said
    labels: dict[str, Any] = field(default_factory=dict)  # what the values of its label maps mean
    provenance: dict[str, Any] = field(default_factory=dict)
    resize_mode: str = "squash"  # how photos of another shape come to the model's size

    def save(self, output_dir: Path) -> None:
        """Write ``run.json``."""
        write_atomically(output_dir / DESCRIPTION_NAME, json.dumps(asdict(self), indent=2) + "\n")

    @classmethod
    def load(cls, output_dir: Path) -> RunDescription:
        """The description in a folder, without what is missing there or of another kind than it should be."""
        held, empty = read_object(output_dir / DESCRIPTION_NAME), cls()
        kinds = {each.name: type(getattr(empty, each.name)) for each in fields(cls)}
        return cls(**{name: held[name] for name, kind in kinds.items() if _is(held.get(name), kind)})


def write_results(output_dir: Path, step: int, results: Mapping[str, Any], about: RunDescription) -> None:
    """Write the scores of a step as ``eval_results.json``, and those of every class as ``classes.csv``."""
    told = {"step": step, **results, "settings": about.settings, "provenance": about.provenance}
    write_atomically(output_dir / RESULTS_NAME, json.dumps(without_nan(told), indent=2) + "\n")
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(["id", "class", "iou", "accuracy", "share"])
    columns = [results[f"eval_per_category_{name}"] for name in ("iou", "accuracy", "share")]
    for k, (name, *scores) in enumerate(zip(about.class_names, *columns, strict=True)):
        writer.writerow([k, name, *("" if math.isnan(score) else f"{score:.6f}" for score in scores)])
    write_atomically(output_dir / CLASSES_NAME, table.getvalue())


def read_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file; empty where there is none."""
    try:
        held = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return held if isinstance(held, dict) else {}


def _is(value: object, kind: type) -> bool:
    return isinstance(value, kind) and (not isinstance(value, int) or 0 <= value <= LAST_STEP)
