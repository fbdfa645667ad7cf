"""Photos in; label maps, overlays, masks and segments out.

    python infer.py photo.jpg holiday/ 'trips/**/*.jpg' --checkpoint runs/toy-1 --output-dir predictions

For every photo: ``<name>_labels.png``, a palette PNG whose values are the class ids, ``<name>_overlay.png`` with a
legend of the classes and their shares, with ``--masks`` a ``<name>_mask_<id>.png`` for each of its classes, and an
entry in ``segments.json``. That file keeps the entries of earlier runs into the same folder.
segformer/command.py is the command, which also comes with an installed package; here it learns to read label maps.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data.class_files import Classes
from data.classes import IGNORE_INDEX
from data.decoding import StoredMap, decode_pair
from data.labels import Colour, LabelRule
from data.truths import classes_of, pair_photos
from data.understanding import FIRST_ROWS, Held, check_palettes, ignored_beside_an_object, without_greys
from segformer import Segmenter, command
from segformer.command import DEFAULT_CHECKPOINT, newest_run, parse_arguments
from segformer.predictions import Segmented
from segformer.training.recorded import recorded_rule, run_of

logger = logging.getLogger(__name__)

__all__ = ["DEFAULT_CHECKPOINT", "infer", "newest_run", "parse_arguments"]


def infer(options: argparse.Namespace) -> list[str]:
    """Segment every photo; return a line for each that could not be. The others are written all the same."""
    return command.infer(options, LABEL_MAPS)


def open_truths(label_maps: Mapping[Path, Path], source: str, segmenter: Segmenter, binary: bool = False) -> Truths:
    """The label maps of photos as the training of a model reads them, or as ``binary`` masks.

    Raises ValueError where a class file beside them has the model's classes in another order.
    """
    if binary:
        if segmenter.model.config.num_labels != 2:
            raise ValueError(f"--binary-masks has two classes, and {source} {segmenter.model.config.num_labels}")
        return Truths(label_maps, LabelRule(2, False, binary=True))
    rule = label_rule_of(source, segmenter)
    if label_maps:
        folder, held = next(iter(label_maps.values())).parent, _first_held(label_maps, rule)
        if not rule.colours:
            check_palettes(str(folder), held)
        if rule in (LabelRule(2, False), LabelRule(2, False, IGNORE_INDEX)):
            ignored = ignored_beside_an_object(str(folder), held)
            if ignored is None and IGNORE_INDEX in held.values:
                raise ValueError(
                    f"label maps of {folder} hold 0 and 255 alone; if 255 is the object, give --binary-masks"
                )
            rule = replace(rule, ignore_index=ignored)
        if classes := classes_of(folder):
            check_classes(classes, segmenter.model.config.id2label, rule, without_greys(held.palette))
    return Truths(label_maps, rule)


def _first_held(label_maps: Mapping[Path, Path], rule: LabelRule) -> Held:
    held = Held()
    for path in islice(label_maps.values(), FIRST_ROWS):
        with suppress(ValueError, OSError):  # which is told with its photo
            held.add(StoredMap(path.read_bytes(), str(path), rule.binary), str(path))
    return held


def check_classes(
    classes: Classes, id2label: Mapping[int, str], rule: LabelRule, palette: Mapping[int, Colour] | None = None
) -> None:
    """Raise ValueError where a class file means other classes than a model by the same numbers or colours.

    ``palette`` has the colours of the numbers that label maps hold, where they are drawn in some.
    """
    held = {name.strip().casefold() for name in id2label.values()}
    by_colour = dict(zip(classes.colours or (), classes.names, strict=False))
    said: list[tuple[Any, str]]
    if rule.colours:
        said, raw_of = list(by_colour.items()), dict[Any, int | None](rule.colours)
    else:
        said = [(value, by_colour[colour]) for value, colour in (palette or {}).items() if colour in by_colour]
        if not said and (classes.numbers or not classes.colours):  # a list of names is in the order of its numbers
            said = list(zip(classes.numbers or range(rule.reduce_labels, 256), classes.names, strict=False))
        raw_of = {value: rule.meaning(value) for value, _ in said}
    for value, name in said:
        raw = raw_of.get(value)
        k = IGNORE_INDEX if raw is None else rule.class_of(raw)
        if k != IGNORE_INDEX and name.strip().casefold() in held - {id2label[k].strip().casefold()}:
            raise ValueError(
                f"{classes.source} calls {value} {name!r}, and to the model it is {id2label[k]!r}; give label maps as "
                "those of its training"
            )


@dataclass(frozen=True)
class Truths:
    """The label maps of photos, read by the rule by which training read them."""

    files: Mapping[Path, Path]
    rule: LabelRule

    def __call__(self, done: Segmented) -> NDArray[np.uint8] | None:
        """The (H, W) truth of a photo, class ids and 255 where nothing is labelled; None without a label map."""
        path = self.files.get(done.path)
        if path is None:
            return None
        stored = (done.path.read_bytes(), path.read_bytes())
        _, label_map = decode_pair(*stored, str(path), self.rule, lambda *_: done.photo)
        raw = np.array(label_map)  # of its own, as torch warns of what cannot be written
        return np.where(raw == IGNORE_INDEX, raw, raw - np.uint8(1)) if self.rule.reduce_labels else raw  # 0 wraps


def label_rule_of(source: str, segmenter: Segmenter) -> LabelRule:
    """What label maps mean to a model: as its training recorded it, else by its classes, and that is logged."""
    num_labels, reduced = segmenter.model.config.num_labels, segmenter.processor.do_reduce_labels
    if rule := recorded_rule(source, segmenter.processor):
        return LabelRule.from_dict(rule)
    if settings := run_of(source).settings:  # of a run that kept its settings only
        binary, ignored = bool(settings.get("binary_masks")), settings.get("ignore_index")
        return LabelRule(num_labels, reduced, 255 if ignored is None and not binary else ignored, binary)
    logger.warning(
        "nothing beside %s tells how its training read label maps: 255 is ignored, and 0 is %s",
        *(source, "ignored too, as its processor reduces labels" if reduced else "a class"),
    )
    return LabelRule(num_labels, reduced, IGNORE_INDEX)


LABEL_MAPS = command.LabelMaps(pair_photos, open_truths)


def main() -> int:
    """Run from the command line; the exit status is 1 if any photo could not be read."""
    return command.main(LABEL_MAPS)


if __name__ == "__main__":
    sys.exit(main())
