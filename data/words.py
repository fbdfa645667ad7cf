"""Numbers with the names of what they count, and lists of names, as messages have them."""

from __future__ import annotations

from collections.abc import Sequence

_MOST_NAMES = 3  # of files in a message


def counted(number: int, one: str, several: str = "") -> str:
    """A number and what there are so many of: "1 row", "2,000 rows", "3 classes"."""
    return f"{number:,} {noun(number, one, several)}"


def noun(number: int, one: str, several: str = "") -> str:
    """What so many things are called, where the number stands elsewhere."""
    return one if number == 1 else several or one + ("es" if one.endswith("s") else "s")


def shortened(names: Sequence[str]) -> str:
    """The first of many names: "a.png, b.png, c.png, ..."."""
    return ", ".join(names[:_MOST_NAMES]) + (", ..." if len(names) > _MOST_NAMES else "")
