"""What a checkpoint knows of the label maps it was trained on: beside its weights, or else in the folder of its run."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, NamedTuple

from segformer.config import read_config
from segformer.files import CONFIG_NAME
from segformer.processor import ImageProcessor
from segformer.training.description import RunDescription
from segformer.training.recipes import TrainConfig
from segformer.weights.hub import ModelFiles


class Recorded(NamedTuple):
    """The names of the classes, and the rule by which label maps were read, as data/labels.py writes it."""

    source: str
    class_names: tuple[str, ...]
    rule: dict[str, Any]


def recorded_labels(config: TrainConfig) -> Recorded | None:
    """What the checkpoint that is only scored says of its label maps; None where it says nothing, or is trained on."""
    source = config.checkpoint
    if source is None or not config.eval_only:
        return None
    rule = recorded_rule(source, ImageProcessor.from_pretrained(source))
    path = Path(source)
    found = path.with_name(CONFIG_NAME) if path.is_file() else ModelFiles(source).find(CONFIG_NAME)
    held = read_config(found) if found and found.is_file() else None
    if not rule or held is None:
        return None
    return Recorded(source, tuple(held.id2label.values()), rule)


def recorded_rule(source: str | Path, processor: ImageProcessor) -> dict[str, Any]:
    """How the training of a model read label maps; empty where neither its processor nor its run tells."""
    return dict(processor.label_rule or run_of(source).labels)


def run_of(source: str | Path) -> RunDescription:
    """The run that made a checkpoint, or a weights file in it, as far as its folder tells."""
    folder = Path(source) if Path(source).is_dir() else Path(source).parent
    places = [folder, folder.resolve().parent] if re.fullmatch(r"checkpoint-\d+", folder.resolve().name) else [folder]
    runs = [RunDescription.load(place) for place in places]
    return next((run for run in runs if run.settings or run.labels), runs[0])
