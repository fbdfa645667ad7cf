"""What a run knows of itself before its first step, and what it scored: files that pages are made from."""

from __future__ import annotations

import csv
import io
import json
import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from segformer.config import variant_of
from segformer.files import write_atomically
from segformer.model import Segformer
from segformer.processor import ImageProcessor
from segformer.provenance import provenance
from segformer.training.history import Plan, without_nan
from segformer.training.recipes import TrainConfig

DESCRIPTION_NAME = "run.json"
RESULTS_NAME = "eval_results.json"
CLASSES_NAME = "classes.csv"
CONFUSION_NAME = "confusion.csv"
PATHS = ("dataset", "checkpoint", "label_names")  # settings that may name what lies on this machine
LAST_STEP = 2**53  # the last whole number that a script can count


@dataclass(frozen=True)
class RunDescription:
    """What a run knows before its first step, kept as ``run.json``; any of it may be missing.

    Which split was scored, the settings of runs of before tell, unless they left it to the data.
    """

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
    marks: dict[str, str] = field(default_factory=dict)  # what tells its rows from others: of "train" and "scored"
    provenance: dict[str, Any] = field(default_factory=dict)
    resize_mode: str = "squash"  # how photos of another shape come to the model's size

    def __post_init__(self) -> None:
        named = self.settings.get("eval_split") or (self.settings.get("eval_only") and self.settings.get("split"))
        if not self.scored_rows and isinstance(named, str) and named != "auto":
            object.__setattr__(self, "scored_rows", named)

    def save(self, output_dir: Path) -> None:
        """Write ``run.json``."""
        write_atomically(output_dir / DESCRIPTION_NAME, json.dumps(asdict(self), indent=2) + "\n")

    @classmethod
    def load(cls, output_dir: Path) -> RunDescription:
        """The description in a folder, without what is missing there or of another kind than it should be."""
        held, empty = read_object(output_dir / DESCRIPTION_NAME), cls()
        kinds = {each.name: type(getattr(empty, each.name)) for each in fields(cls)}
        return cls(**{name: held[name] for name, kind in kinds.items() if _is(held.get(name), kind)})


class _Labels(Protocol):
    """What the data's label maps mean, and what was said of it."""

    @property
    def lines(self) -> list[str]: ...
    @property
    def warnings(self) -> list[str]: ...
    @property
    def rule(self) -> Any: ...


class _Rows(Protocol):
    """The rows that are scored, of which a whole split has a name, and what their labels mean."""

    @property
    def evaluation(self) -> Any: ...
    @property
    def labels(self) -> _Labels: ...
    def marks(self) -> dict[str, str]: ...


def describe(
    config: TrainConfig,
    settings: dict[str, Any],
    model: Segformer,
    processor: ImageProcessor,
    plan: Plan,
    rows: _Rows,
) -> RunDescription:
    """What a run knows of itself; ``settings`` are the configuration's without the paths of this machine."""
    understood = [*rows.labels.lines, *(f"WARNING: {warning}" for warning in rows.labels.warnings)]
    for name in reversed(PATHS):  # a file of names may lie in the dataset
        if getattr(config, name):
            understood = [line.replace(getattr(config, name), str(settings[name])) for line in understood]
    return RunDescription(
        settings=settings,
        class_names=[name.strip() for name in model.config.id2label.values()],
        model=f"SegFormer-{(variant_of(model.config) or 'custom').upper()}",
        parameters=model.num_parameters,
        train_images=0 if config.eval_only else plan.num_rows,
        eval_images=len(rows.evaluation),
        image_size=list(processor.size),
        resize_mode=processor.resize_mode,
        total_steps=plan.total_steps,
        labels=rows.labels.rule.to_dict(),
        understood=understood,
        shortened=[
            name for name, value in asdict(config).items() if settings[name] != value or _is_of_here(name, value)
        ],
        scored_rows=getattr(rows.evaluation, "split", ""),
        marks=rows.marks(),
        provenance=provenance(settings["checkpoint"], model.load_report.path),
    )


def _is_of_here(name: str, value: object) -> bool:
    """Whether a setting names what lies in the present folder, which elsewhere is nothing, or another's."""
    return name in PATHS and isinstance(value, str) and value != "toy" and os.path.exists(value)


def write_results(
    output_dir: Path,
    step: int,
    results: Mapping[str, Any],
    about: RunDescription,
    confusion: NDArray[np.int64] | None = None,
) -> None:
    """Write the scores of a step as ``eval_results.json``, those of every class as ``classes.csv``.

    ``confusion[label, prediction]``, (K, K), goes to ``confusion.csv``: pixels, a row for each label.
    """
    told = {"step": step, **results, "settings": about.settings, "provenance": about.provenance}
    write_atomically(output_dir / RESULTS_NAME, json.dumps(without_nan(told), indent=2) + "\n")
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    kinds = ("iou", "accuracy", "share", "boundary_iou")
    columns = {kind: results[key] for kind in kinds if (key := f"eval_per_category_{kind}") in results}
    writer.writerow(["id", "class", *columns])
    for k, (name, *scores) in enumerate(zip(about.class_names, *columns.values(), strict=True)):
        writer.writerow([k, name, *("" if math.isnan(score) else f"{score:.6f}" for score in scores)])
    write_atomically(output_dir / CLASSES_NAME, table.getvalue())
    if confusion is not None:
        table = io.StringIO()
        writer = csv.writer(table, lineterminator="\n")
        writer.writerow(["label", *about.class_names])
        writer.writerows([name, *row] for name, row in zip(about.class_names, confusion.tolist(), strict=True))
        write_atomically(output_dir / CONFUSION_NAME, table.getvalue())


def read_confusion(output_dir: Path, num_labels: int) -> NDArray[np.int64] | None:
    """What ``write_results`` wrote of so many classes; None where there is nothing of the kind."""
    try:
        with (output_dir / CONFUSION_NAME).open(encoding="utf-8", newline="") as file:
            counts = np.array([row[1:] for row in list(csv.reader(file))[1:]], np.int64)
    except (OSError, ValueError, OverflowError, csv.Error):
        return None
    return counts if counts.shape == (num_labels, num_labels) and (counts >= 0).all() else None


def read_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file; empty where there is none."""
    try:
        held = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return held if isinstance(held, dict) else {}


def _is(value: object, kind: type) -> bool:
    return isinstance(value, kind) and (not isinstance(value, int) or 0 <= value <= LAST_STEP)
