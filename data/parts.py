"""The rows that a run trains on and those that it scores, opened together, and what their label maps mean."""

from __future__ import annotations

import hashlib
import logging
import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, NamedTuple, Protocol

import numpy as np
from torch.utils.data import Subset

from data.decoding import OpenPhoto
from data.labels import SCENE_PARSE_LABELS, LabelRule
from data.sceneparse import SceneParse150, train_test_split, whole_and_rows
from data.shares import class_shares
from data.sources.choice import named_classes
from data.splits import EmptySplitError, NoSplitError
from data.understanding import FIRST_ROWS, Flags, KnownLabels, Understanding, understand, understand_alike
from data.words import counted, shortened

logger = logging.getLogger(__name__)

Pairs = SceneParse150 | Subset[Any]


class Settings(Protocol):
    """What is said of the data; None where it is to be found out."""

    @property
    def dataset(self) -> str: ...
    @property
    def image_column(self) -> str | None: ...
    @property
    def label_column(self) -> str | None: ...
    @property
    def split(self) -> str: ...
    @property
    def eval_split(self) -> str | None: ...
    @property
    def test_size(self) -> float: ...
    @property
    def seed(self) -> int: ...
    @property
    def eval_only(self) -> bool: ...
    @property
    def num_labels(self) -> int | None: ...
    @property
    def label_names(self) -> str | None: ...
    @property
    def reduce_labels(self) -> bool | None: ...
    @property
    def ignore_index(self) -> int | None: ...
    @property
    def binary_masks(self) -> bool | None: ...


class Parts(NamedTuple):
    """The rows to train on and to evaluate on, one and the same if there is nothing to train, and what they mean."""

    train: Pairs
    evaluation: Pairs
    labels: Understanding

    def marks(self) -> dict[str, str]:
        """What tells the rows to train on and to score from others, and from what they were before a change."""
        return {"train": mark_of(self.train), "scored": mark_of(self.evaluation)}

    def class_pixels(self) -> tuple[int, ...]:
        """The pixels of every class in all rows to train on, counted once and kept; says which occur in none."""
        pixels = class_shares(self.train, self.labels.rule).pixels
        absent = [name.strip() for k, name in self.labels.id2label.items() if not pixels[k]]
        if absent:
            logger.warning("no row to train on holds %s; as a class that never occurs it weighs 0", ", ".join(absent))
        return pixels


class RecordedLabels(Protocol):
    """What a model that is only scored knows of the label maps it was trained on."""

    @property
    def source(self) -> str: ...
    @property
    def class_names(self) -> tuple[str, ...]: ...
    @property
    def rule(self) -> dict[str, Any]: ...


def open_parts(settings: Settings, open_photo: OpenPhoto, recorded: RecordedLabels | None = None) -> Parts:
    """Open the rows that the settings name, and read the first of them; what is ``recorded`` fills in what they leave.

    Raises ValueError where settings and label maps leave two readings, and for a first row that cannot be read, or has
    no label map.
    """
    rows, scored = open_splits(settings, open_photo)
    for split, flag in ((scored, "--eval-split"), (rows, "--split")):
        if split is not None:
            _check_annotated(split, flag)
    said = said_of(settings)
    if recorded:
        rule = LabelRule.from_dict(recorded.rule)
        said = replace(said, known=KnownLabels(recorded.source, recorded.class_names, rule))
    labels = understand(rows, said)
    are_one = scored is rows
    rows = rows.with_rule(labels.rule)
    rows[0]  # a photo that cannot be read is told of before anything is made
    if scored is None:
        return _warned(Parts(*hold_out(rows, settings), labels))
    if are_one:
        return Parts(rows, rows, labels)
    scored = scored.with_rule(labels.rule)
    scored[0]
    return _warned(Parts(rows, scored, understand_alike(scored, labels)))


def mark_of(rows: Pairs) -> str:
    """A digest of some of the label maps, from the first row to the last, and of the names of their photos."""
    whole, chosen = whole_and_rows(rows)
    digest = hashlib.sha256(str(len(chosen)).encode())
    for place in np.unique(np.linspace(0, len(chosen) - 1, FIRST_ROWS).round().astype(int)).tolist():
        for part in (whole.name(chosen[place]).encode(), whole.encoded(chosen[place])[1] or b""):
            digest.update(hashlib.sha256(part).digest())
    return digest.hexdigest()[:16]


def _warned(parts: Parts) -> Parts:
    """The same, with a warning where rows that are trained on are scored, too.

    All rows are compared by their places; the first of two splits by their bytes as well, for copies.
    """
    places = set(_places(parts.train))
    again = [place for place in _places(parts.evaluation) if place in places]
    said = f"{len(again):,} of {counted(len(parts.evaluation), 'row')} to score"
    if not again:
        photos = dict(_first_photos(parts.train))
        again = [f"{place} is {photos[photo]}" for photo, place in _first_photos(parts.evaluation) if photo in photos]
        said = "copies of photos"
    if not again:
        return parts
    remedy = "such scores say what is remembered, not what is recognised; python -m data.look names all such photos"
    warnings = [*parts.labels.warnings, f"trained on as well as scored: {said} ({shortened(again)}); {remedy}"]
    return parts._replace(labels=replace(parts.labels, warnings=warnings))


def _places(rows: Pairs) -> Iterator[str]:
    whole, chosen = whole_and_rows(rows)
    return map(whole.where, chosen)


def _first_photos(rows: Pairs) -> Iterator[tuple[bytes, str]]:
    """The bytes of the first photos of a split, and their places; of parts of a split none."""
    if isinstance(rows, SceneParse150):
        for row in range(min(FIRST_ROWS, len(rows))):
            if photo := rows.encoded(row)[0]:
                yield photo, rows.where(row)


def hold_out(rows: SceneParse150, settings: Settings) -> tuple[Subset[Any], Subset[Any]]:
    """The rows of a split to train on and those held out of it. Raises ValueError where either would be none."""
    count = math.ceil(settings.test_size * len(rows))
    if 0 < count < len(rows):
        return train_test_split(rows, settings.test_size, settings.seed)
    left = f"leaves none of the {counted(len(rows), 'row')} of --split {settings.split} to train on"
    nothing = "--test-size 0 holds out no row to score" if not count else f"--test-size {settings.test_size:g} {left}"
    raise ValueError(f"{nothing}; name rows to score by --eval-split, or give more rows or another share")


def _is_annotated(rows: SceneParse150) -> bool:
    return any(rows.encoded(row)[1] for row in range(min(FIRST_ROWS, len(rows))))


def _check_annotated(rows: SceneParse150, flag: str) -> None:
    if not _is_annotated(rows):
        raise ValueError(f"{flag} {rows.split}: {rows.where(0)} has no label map; name a split whose rows have one")


def open_splits(settings: Settings, open_photo: OpenPhoto) -> tuple[SceneParse150, SceneParse150 | None]:
    """The split to train on, and the one to score, or None where part of the former is held out; not understood yet."""
    unread = LabelRule(2, False, binary=True) if settings.binary_masks else SCENE_PARSE_LABELS

    def open_split(name: str, flag: str) -> SceneParse150:
        columns = settings.image_column, settings.label_column
        try:
            return SceneParse150(settings.dataset, name, unread, open_photo, *columns)
        except EmptySplitError as error:
            raise ValueError(f"{flag}: {error}") from error
        except NoSplitError as error:
            raise NoSplitError(f"{flag}: {error}") from error

    scored: SceneParse150 | None = None
    if settings.eval_split is not None:
        try:
            scored = open_split("validation" if settings.eval_split == "auto" else settings.eval_split, "--eval-split")
        except NoSplitError:
            if settings.eval_split != "auto":
                raise
    if scored and settings.eval_split == "auto" and not settings.eval_only and not _is_annotated(scored):
        logger.warning("%s has no label maps; a share of %s is scored instead", scored.split, settings.split)
        scored = None
    return scored if scored and settings.eval_only else open_split(settings.split, "--split"), scored


def said_of(settings: Settings) -> Flags:
    """What the settings say of the labels."""
    classes = named_classes(settings.label_names) if settings.label_names else None
    numbers = settings.num_labels, settings.reduce_labels, settings.ignore_index
    return Flags(classes, *numbers, bool(settings.binary_masks))
