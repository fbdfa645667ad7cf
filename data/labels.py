"""What the numbers and colours in a label map mean: stated once, saved with a run, and used by all who read a truth."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data.class_files import Colour, is_integer, read_label_names
from data.classes import IGNORE_INDEX, NUM_LABELS
from data.words import counted

__all__ = ["SCENE_PARSE_LABELS", "Colour", "LabelRule", "read_label_names"]

OBJECT_VALUES = (1, 255, 2**16 - 1)  # of masks of 1, 8 and 16 bits
_MOST_LABELS = IGNORE_INDEX  # class ids 0 to 254; 255 stands for ignored
_HIGHEST_STORED = 2**16 - 1  # that a rule may name


@dataclass(frozen=True)
class LabelRule:
    """Which raw values a label map may hold, and what they mean; the defaults are SceneParse150's.

    With ``reduce_labels`` raw 0 is "other", which is ignored, and raw k is class k - 1; without it raw k is class k.
    ``ignore_index`` is one more raw value that is ignored, often 255, or several; it may be that of a class, which then
    never occurs. With ``binary`` every value above 0 is class 1, as in masks of 0 and 255.

    ``values`` and ``colours`` come before all that: pairs of what is stored, a number or an (r, g, b), and the raw
    value that it stands for, where 255 is ignored. With either, whatever it leaves out is refused.

    ``palette`` has the colours in which label maps draw their numbers, where they do: one that draws a number otherwise
    has other numbers for the classes. It is no part of what a number means, and two rules that differ in it are equal.

    Raises ValueError naming the field, its value and the rule.
    """

    num_labels: int = NUM_LABELS
    reduce_labels: bool = True
    ignore_index: int | tuple[int, ...] | None = None
    binary: bool = False
    values: tuple[tuple[int, int], ...] = ()
    colours: tuple[tuple[Colour, int], ...] = ()
    palette: tuple[tuple[int, Colour], ...] = field(default=(), compare=False)

    def __post_init__(self) -> None:
        for name in ("reduce_labels", "binary"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name} is {getattr(self, name)!r}; it must be true or false")
        most = _MOST_LABELS - self.reduce_labels
        if not is_integer(self.num_labels) or not 1 <= self.num_labels <= most:
            kept = " and 0 for other" if self.reduce_labels else ""
            raise ValueError(
                f"num_labels is {self.num_labels!r}; it must be 1 to {most}, as a label map has 8 bits and keeps "
                f"{IGNORE_INDEX} for ignored pixels{kept}"
            )
        if not all(is_integer(value) and -_HIGHEST_STORED <= value <= _HIGHEST_STORED for value in self.ignored):
            raise ValueError(
                f"ignore_index is {self.ignore_index!r}; it must be a raw value, at most {_HIGHEST_STORED} either way, "
                "or several, or None"
            )
        if self.binary:
            self._check_binary()
        self._check_tables()

    def _check_binary(self) -> None:
        if self.reduce_labels:
            raise ValueError("reduce_labels is True but binary masks have no other: 0 is class 0; set it to False")
        if self.num_labels != 2:
            raise ValueError(f"num_labels is {self.num_labels} but binary masks have two classes; set it to 2")
        if {0, 255} & set(self.ignored):
            raise ValueError(
                f"ignore_index is {self.ignore_index} but in binary masks 0 is the background and 255 the object; set "
                "it to None, or for masks of 0, 1 and 255 leave binary out"
            )

    def _check_tables(self) -> None:
        if bool(self.values) + bool(self.colours) + self.binary > 1:
            raise ValueError("a rule has values, colours or binary, not several of them")
        for name in ("values", "colours"):
            pairs = getattr(self, name)
            if len({stored for stored, _ in pairs}) < len(pairs):
                raise ValueError(f"{name} says of something twice what it stands for; say it once")
            for stored, raw in pairs:
                if not (raw == IGNORE_INDEX or (is_integer(raw) and 0 <= raw <= self.highest)):
                    raise ValueError(
                        f"{name} has {stored} stand for {raw!r}; it must be 0 to {self.highest}, or {IGNORE_INDEX}"
                    )

    @property
    def ignored(self) -> tuple[int, ...]:
        """The stored values that are ignored, beside the 0 of ``reduce_labels`` and what stands for 255."""
        if self.ignore_index is None or not isinstance(self.ignore_index, tuple):
            return () if self.ignore_index is None else (self.ignore_index,)
        return self.ignore_index

    @property
    def is_binary(self) -> bool:
        """Whether there are only background and object, the latter with whatever value, or with one alone."""
        return self.binary or self.values in [((0, 0), (value, 1)) for value in OBJECT_VALUES]

    @property
    def classes_left(self) -> set[int]:
        """The classes that a pixel can be: those whose value is not ignored instead."""
        if self.colours:
            raw = {raw for _, raw in self.colours if raw not in self.ignored}
        else:
            stored = {*range(256), *(value for value, _ in self.values)}
            raw = {meaning for value in stored if (meaning := self.meaning(value)) is not None}
        return {self.class_of(each) for each in raw} - {IGNORE_INDEX}

    @property
    def highest(self) -> int:
        """The highest raw value of a class."""
        return self.num_labels if self.reduce_labels else self.num_labels - 1

    def to_dict(self) -> dict[str, Any]:
        """As JSON holds it."""
        entries: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return entries

    @classmethod
    def from_dict(cls, entries: Mapping[str, Any]) -> LabelRule:
        """The rule that ``to_dict`` gave, or JSON made of that. Raises ValueError for entries that are none."""
        if unknown := set(entries) - {each.name for each in fields(cls)}:
            raise ValueError(f"a label rule has no {', '.join(sorted(unknown))}")
        try:
            return cls(**{name: _as_tuple(value) for name, value in entries.items()})
        except TypeError as error:
            raise ValueError(f"these are no entries of a label rule: {error}") from error

    def describe(self) -> str:
        """What a run says of it before it starts, with the flags that change it, in one line."""
        if self.binary:
            return "masks: 0 is the background, every other value the object, 255 too (--binary-masks says so)"
        if self.is_binary:
            objects = self.values[1][0]
            return f"masks: 0 is the background, {objects} the object; all else is refused (--binary-masks takes it)"
        count = counted(self.num_labels, "class")
        if self.colours:
            void = [colour for colour, raw in self.colours if self.class_of(raw) == IGNORE_INDEX]
            ignored = ", ".join(map(str, void)) if void else "none"
            return f"{count} by colour; ignored: {ignored} (the class file decides, --label-names names another)"
        zero = (
            "0 is other, ignored, and k is class k - 1 (--no-reduce-labels makes 0 a class)"
            if self.reduce_labels
            else "0 is ignored (--ignore-index decides)"
            if 0 in self.ignored
            else "0 is a class (--reduce-labels makes it ignored)"
        )
        others = [str(value) for value in self.ignored if value]
        if self.values == tuple((k + 1, k) for k in range(self.num_labels)):
            return (
                f"{count}; 1 to {self.num_labels} stand for them and 0 is refused (--reduce-labels ignores it, "
                f"--num-labels {self.num_labels + 1} --no-reduce-labels makes it a class)"
            )
        if self.values:
            known = f"{counted(len(self.values), 'stored value')} for 0 to {self.highest} or what is ignored"
            return f"{count}; {known} (the layout decides, --label-names and --num-labels read them as they are)"
        if others:
            return f"{count}; {zero}; {', '.join(others)} ignored (--ignore-index decides)"
        return f"{count}; {zero}; 255 is refused (--ignore-index 255 ignores it)"

    def class_of(self, raw: int) -> int:
        """The class id that a raw value of a normalised map stands for, where 255 is ignored."""
        if raw == IGNORE_INDEX or not self.reduce_labels:
            return raw
        return IGNORE_INDEX if raw == 0 else raw - 1

    def normalise(self, labels: NDArray[Any], where: str) -> NDArray[np.uint8]:
        """Check what a label map holds: ignored values become 255, those of binary masks 0 or 1, others stay.

        Shapes: (H, W) of integers or bool -> (H, W) uint8, after which ``class_of`` tells a pixel's class. ``where``
        names the map in the ValueError for a stray value.
        """
        if labels.dtype != np.uint8:
            if labels.dtype != bool and (labels.min() < 0 or labels.max() > 255):
                return self._normalise_wide(labels, where)
            labels = labels.astype(np.uint8)
        held = labels.tobytes()
        if strays := held.translate(None, self._allowed):
            raise ValueError(self._stray(max(strays), where))
        if self._meanings is not None:
            held = held.translate(self._meanings)
        return np.frombuffer(held, np.uint8).reshape(labels.shape)

    def normalise_colours(self, codes: NDArray[np.uint32], where: str) -> NDArray[np.uint8]:
        """The same for colours, r + 256 g + 65536 b at every pixel, (H, W)."""
        found = np.take(_colour_table(self), codes, mode="clip")  # 0 where the table has nothing
        if not found.all():
            raise ValueError(self._stray_colours(codes[found == 0], codes.size, where))
        return (found - 1).astype(np.uint8)

    @cached_property
    def _allowed(self) -> bytes:
        return bytes(value for value in range(256) if self.meaning(value) is not None)

    @cached_property
    def _meanings(self) -> bytes | None:
        """What each of the 256 values becomes; None if all of them stay."""
        becomes = [self.meaning(value) for value in range(256)]
        stays = all(after in (None, value) for value, after in enumerate(becomes))
        return None if stays else bytes(after or 0 for after in becomes)

    def meaning(self, stored: int) -> int | None:
        """What one stored value becomes in a normalised map; None if the rule has no place for it."""
        if stored in self.ignored:
            return IGNORE_INDEX
        if self.values:
            return dict(self.values).get(stored)
        if self.binary:
            return int(stored > 0) if stored >= 0 else None
        return stored if 0 <= stored <= self.highest else None

    def _normalise_wide(self, labels: NDArray[Any], where: str) -> NDArray[np.uint8]:
        """The same for values that 8 bits do not hold: nothing is cut off."""
        found, places = np.unique(labels, return_inverse=True)
        meanings = [self.meaning(stored) for stored in found.tolist()]
        if None in meanings:
            raise ValueError(
                self._stray(max(v for v, m in zip(found.tolist(), meanings, strict=True) if m is None), where)
            )
        return np.array(meanings, np.uint8)[places].reshape(labels.shape)

    def _stray(self, value: int, where: str) -> str:
        lowest = "0 (other)" if self.reduce_labels else "0"
        ignored = ""
        if self.ignored:
            ignored = f", and {', '.join(map(str, self.ignored))} {'is' if len(self.ignored) == 1 else 'are'} ignored"
        classes = f"{lowest} to {self.highest}" if not self.values else f"those of its table, {_few(self.values)}"
        message = f"label map of {where} holds {value}; its classes are {classes}{ignored}"
        if self.is_binary:
            return f"{message}; if every value above 0 is the object, give --binary-masks"
        if value == 255 and not self.ignored:
            cure = (
                "if 255 means ignored, give --ignore-index 255; if it means the object of a mask, give --binary-masks"
            )
            return f"{message}; {cure}"
        return message

    def _stray_colours(self, strays: NDArray[np.uint32], total: int, where: str) -> str:
        codes, counts = np.unique(strays, return_counts=True)
        commonest = int(codes[counts.argmax()])
        message = (
            f"label map of {where} holds the colour {colour_of(commonest)} in {counts.max() / total:.2%} of its "
            f"pixels, which the class file lacks; it has {counted(len(self.colours), 'colour')}"
        )
        if len(codes) > len(self.colours):
            return f"{message}. {len(codes)} such colours look blended at edges: save masks without smoothing, as PNG"
        return f"{message}; add a line for it, as a class or as void"


def colour_of(code: int) -> Colour:
    """The (r, g, b) of a packed colour."""
    return code & 255, code >> 8 & 255, code >> 16 & 255


def code_of(colour: Colour) -> int:
    """A colour packed into one number."""
    red, green, blue = colour
    return red | green << 8 | blue << 16


@lru_cache(maxsize=4)
def _colour_table(rule: LabelRule) -> NDArray[np.uint16]:
    """One more than what each of the 2**24 colours becomes; only the pages that are read ever take memory."""
    table = np.zeros(2**24, np.uint16)
    for colour, raw in rule.colours:
        table[code_of(colour)] = 1 + (IGNORE_INDEX if raw in rule.ignored else raw)
    return table


def _as_tuple(value: Any) -> Any:
    return tuple(map(_as_tuple, value)) if isinstance(value, list | tuple) else value


def _few(pairs: tuple[tuple[int, int], ...]) -> str:
    shown = ", ".join(str(stored) for stored, _ in pairs[:4])
    return f"{shown}, ..." if len(pairs) > 4 else shown


SCENE_PARSE_LABELS = LabelRule()
