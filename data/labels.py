"""What the numbers in a label map mean, and what the classes are called."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data.classes import IGNORE_INDEX, NUM_LABELS

_MOST_LABELS = IGNORE_INDEX  # class ids 0 to 254; 255 stands for ignored


@dataclass(frozen=True)
class LabelRule:
    """Which raw values a label map may hold; the defaults are SceneParse150's.

    With ``reduce_labels`` raw 0 is "other", which is ignored, and raw k is class k - 1; without it raw k is class k.
    ``ignore_index`` is one more raw value that is ignored, often 255; it may be that of a class, which then never
    occurs. With ``binary`` every value above 0 is class 1, as in masks of 0 and 255.

    Raises ValueError naming the field, its value and the rule.
    """

    num_labels: int = NUM_LABELS
    reduce_labels: bool = True
    ignore_index: int | None = None
    binary: bool = False

    def __post_init__(self) -> None:
        for name in ("reduce_labels", "binary"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name} is {getattr(self, name)!r}; it must be true or false")
        most = _MOST_LABELS - self.reduce_labels
        if not _is_integer(self.num_labels) or not 1 <= self.num_labels <= most:
            kept = " and 0 for other" if self.reduce_labels else ""
            raise ValueError(
                f"num_labels is {self.num_labels!r}; it must be 1 to {most}, as a label map has 8 bits and keeps "
                f"{IGNORE_INDEX} for ignored pixels{kept}"
            )
        if self.ignore_index is not None and not (_is_integer(self.ignore_index) and 0 <= self.ignore_index <= 255):
            raise ValueError(f"ignore_index is {self.ignore_index!r}; it must be a raw value, 0 to 255, or None")
        if self.binary:
            self._check_binary()

    def _check_binary(self) -> None:
        if self.reduce_labels:
            raise ValueError("reduce_labels is True but binary masks have no other: 0 is class 0; set it to False")
        if self.num_labels != 2:
            raise ValueError(f"num_labels is {self.num_labels} but binary masks have two classes; set it to 2")
        if self.ignore_index in (0, 255):
            raise ValueError(
                f"ignore_index is {self.ignore_index} but in binary masks 0 is the background and 255 the object; set "
                "it to None, or for masks of 0, 1 and 255 leave binary out"
            )

    def normalise(self, labels: NDArray[Any], where: str) -> NDArray[np.uint8]:
        """Check the raw values of a label map: ignored ones become 255, those of binary masks 0 or 1, others stay.

        Shapes: (H, W) of uint8 or bool -> (H, W). ``where`` names the map in the ValueError for a stray value.
        """
        labels = labels.astype(np.uint8)
        ignored = None if self.ignore_index is None else labels == self.ignore_index
        strays = labels > (255 if self.binary else self._highest)
        if self.binary:
            labels = (labels > 0).astype(np.uint8)
        if ignored is not None:
            strays &= ~ignored
            labels[ignored] = IGNORE_INDEX
        if strays.any():
            raise ValueError(self._stray(int(labels[strays].max()), where))
        return labels

    @property
    def _highest(self) -> int:
        return self.num_labels if self.reduce_labels else self.num_labels - 1

    def _stray(self, value: int, where: str) -> str:
        lowest = "0 (other)" if self.reduce_labels else "0"
        ignored = "" if self.ignore_index is None else f", and {self.ignore_index} is ignored"
        message = f"label map of {where} holds {value}; its classes are {lowest} to {self._highest}{ignored}"
        if value == 255 and self.ignore_index is None:
            return f"{message}; if 255 means ignored, set ignore_index; if it means the object of a mask, set binary"
        return message


def read_label_names(path: Path) -> list[str]:
    """The names of classes 0, 1, ... from a file.

    JSON, told by its ending .json, is a list of names, {"0": "wall", ...} or {"wall": 0, ...}; any other file has a
    name per line. Raises ValueError, naming the file, for ids that are not 0 to n - 1, for a name that is blank or
    there twice, and for none or more than 255; OSError for a file that cannot be read.
    """
    path = Path(path)
    text = read_text(path)
    try:
        names = _from_json(text) if path.suffix.lower() == ".json" else _from_lines(text)
        _check_names(names)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"label names in {path}: {error}") from error
    return names


def read_text(path: Path) -> str:
    """The text of a UTF-8 file; ValueError, naming it, for one in another encoding."""
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text (byte {error.start}); save it as UTF-8") from error


def _from_lines(text: str) -> list[str]:
    return [line.strip() for line in text.rstrip().split("\n")] if text.strip() else []


def _from_json(text: str) -> list[str]:
    try:
        entries = json.loads(text, object_pairs_hook=_without_repeats)
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON: {error}") from error
    if isinstance(entries, list):
        return _all_names(entries)
    if not isinstance(entries, dict):
        raise ValueError(f"JSON holds a {type(entries).__name__}; it must be a list of names, or ids with names")
    if entries and all(map(_is_integer, entries.values())):
        return _in_order({number: name for name, number in entries.items()}, len(entries))
    for key in entries:
        if not (key.isascii() and key.isdigit()):
            raise ValueError(f"key {key!r} is not a class id; give ids with names, or names with ids")
    return _in_order({int(key): name for key, name in entries.items()}, len(entries))


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    _refuse_repeats("key", (key for key, _ in pairs))
    return dict(pairs)


def _in_order(names: dict[int, Any], count: int) -> list[str]:
    """The names by class id; ``count`` is that of the entries, of which two may have had the same id."""
    missing = [k for k in range(count) if k not in names]
    if missing:
        raise ValueError(
            f"no name for class {missing[0]}; the ids of {count} names must be 0 to {count - 1}, each once"
        )
    return _all_names([names[k] for k in range(count)])


def _all_names(entries: list[Any]) -> list[str]:
    for number, entry in enumerate(entries):
        if not isinstance(entry, str):
            raise ValueError(f"class {number} has {entry!r} for a name; it must be text")
    return entries


def _check_names(names: list[str]) -> None:
    if not 1 <= len(names) <= _MOST_LABELS:
        raise ValueError(f"{len(names)} names; there must be 1 to {_MOST_LABELS}")
    for number, name in enumerate(names):
        if not name.strip():
            raise ValueError(f"class {number} has a blank name; name every class")
    _refuse_repeats("name", names)


def _refuse_repeats(what: str, names: Iterable[str]) -> None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise ValueError(f"{what} {name!r} is there twice; each must be there once")
        seen.add(name)


def _is_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


SCENE_PARSE_LABELS = LabelRule()
