"""Split expressions as ``datasets`` has them: "train", "train[:50]", "validation[10%:]", "train+validation"."""

from __future__ import annotations

import re
from dataclasses import dataclass

# What files and folders call a split, and what it is called here.
SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "dev": "validation",
    "eval": "validation",
    "test": "test",
    "testing": "test",
}


def split_named(word: str) -> str | None:
    """The split that a word means, such as train2017 or 2012_val; None if it means none."""
    return SPLIT_NAMES.get(re.sub(r"^(partial-|\d+[-_.])|[-_.]?\d+$", "", word.lower()))


_BOUND = r"(-?\d+)(%?)"
_PART = re.compile(rf"(?P<name>\w+)(?:\[(?P<start>{_BOUND})?:(?P<stop>{_BOUND})?\])?")


class NoSplitError(ValueError):
    """A source does not have the split that was asked for."""


class EmptySplitError(ValueError):
    """An expression selects no row of the splits that it names."""


@dataclass(frozen=True)
class SplitPart:
    """One term of an expression: the split's name and the two ends of its slice, as written ("10%", "-5" or "")."""

    name: str
    start: str
    stop: str

    def rows(self, num_rows: int) -> range:
        """The rows that this term takes from a split of ``num_rows``; ends beyond it are cut off, as in a slice."""
        return range(num_rows)[slice(_to_row(self.start, num_rows), _to_row(self.stop, num_rows))]


def parse_split(expression: str) -> list[SplitPart]:
    """The terms of a split expression. Raises ValueError for one that is not of the forms above."""
    parts = []
    for term in expression.split("+"):
        match = _PART.fullmatch(term.strip())
        if match is None:
            raise ValueError(f"split {expression!r} is not of the form name, name[from:to] or name[from%:to%]")
        part = SplitPart(match["name"], match["start"] or "", match["stop"] or "")
        percents = [bound.endswith("%") for bound in (part.start, part.stop) if bound]
        if len(set(percents)) > 1:
            raise ValueError(f"split {expression!r} mixes rows and percent; give both ends in one of them")
        if any(abs(int(bound[:-1])) > 100 for bound in (part.start, part.stop) if bound.endswith("%")):
            raise ValueError(f"split {expression!r} goes beyond 100%")
        parts.append(part)
    return parts


def _to_row(bound: str, num_rows: int) -> int | None:
    if not bound.endswith("%"):
        return int(bound) if bound else None
    return round(int(bound[:-1]) * num_rows / 100)
