"""The files that say what classes are called and which colours they are drawn in, as tools and data sets write them.

names.txt           a name a line, an id and a name, a name and its id, or r g b and a name
id2label.json       a list of names, {"0": "wall"}, {"wall": 0}, {"wall": [120, 120, 120]}, or a list of objects with
                    name, id and color
labelmap.txt        name:r,g,b:parts:actions (CVAT, Pascal VOC)
class_dict.csv      a table with a header: name, r, g, b, or Idx, Ratio, Name (objectInfo150), in any delimiter

Ids may have holes, as 0, 50, 100 or 7, 11, 26; classes are then numbered in their order.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from data.classes import CLASS_NAMES, IGNORE_INDEX

Colour = tuple[int, int, int]

# In a folder of data. The first ones are of no other use; a file called like one of the others may be.
CLASS_FILES = ("id2label.json", "labelmap.txt", "class_dict.csv", "objectInfo150.csv", "objectInfo150.txt")
MAYBE_CLASS_FILES = (
    "labels.json", "classes.json", "classes.txt", "class_names.txt", "names.txt", "labels.txt", "_classes.csv",
)  # fmt: skip

_MOST_NAMES = IGNORE_INDEX
_ID_HEADS = {"idx", "id", "index", "pixelvalue", "value", "classid", "labelid"}
_MAYBE_ID_HEADS = {  # where all in the column are numbers that a label map of 8 bits can hold
    "ids", "number", "no", "code", "dn", "pixel", "maskvalue", "gray", "grey", "grayvalue", "greyvalue", "classnumber",
    "classindex", "labelvalue", "labelindex", "categoryid", "trainid", "color", "colour",
}  # fmt: skip
_HEADS_OF_NOTHING = {"", "unnamed", "order", "nr", "num", "nummer", "numero", "key"}
_NAME_HEADS = {"name", "class", "label", "classname", "labelname", "category", "classes", "names"}
_KOREAN_NAME_HEADS = {"이름", "클래스", "클래스명", "클래스이름", "라벨", "라벨명"}
_CHANNEL_HEADS = (("r", "red"), ("g", "green"), ("b", "blue"))


class Entry(NamedTuple):
    """What a file says of one class."""

    name: str
    number: int | None = None
    colour: Colour | None = None


@dataclass(frozen=True)
class Classes:
    """The classes of a file, in its order, or in that of the ids that it gives.

    ``first_id`` is the lowest of these ids, 0 or 1, and None where the file has none. ``ids`` are all of them where
    they have holes, and then ``first_id`` says nothing. ``source`` is its name.
    """

    source: str
    names: tuple[str, ...]
    colours: tuple[Colour, ...] | None = None
    first_id: int | None = None
    ids: tuple[int, ...] = ()

    @property
    def numbers(self) -> tuple[int, ...]:
        """The id of every class, as the file gives it; nothing where it gives none."""
        if self.ids or self.first_id is None:
            return self.ids
        return tuple(range(self.first_id, self.first_id + len(self.names)))


def class_files_in(folder: Path) -> list[Path]:
    """The files in a folder of data that may say what classes are called, the surest first."""
    return [folder / name for name in (*CLASS_FILES, *MAYBE_CLASS_FILES) if (folder / name).is_file()]


def read_label_names(path: Path) -> list[str]:
    """The names of classes 0, 1, ... from a class file. Raises what ``read_classes`` does, and for ids from 1 on."""
    classes = read_classes(path)
    if missing := [k for k in range(len(classes.names)) if classes.numbers and k not in classes.numbers]:
        raise ValueError(f"label names in {path}: {_no_name(missing[0], len(classes.names))}")
    return list(classes.names)


def read_classes(path: Path) -> Classes:
    """The classes of a file of one of the forms above; JSON is told by its ending .json.

    Raises ValueError, naming the file, for an id, a name or a colour that is there twice, a name that is blank, a
    colour that is none, and for none or more than 255 classes; OSError where it cannot be read.
    """
    return parse_classes(read_text(Path(path)), str(path))


def parse_classes(text: str, source: str) -> Classes:
    """The classes in the text of a file; see ``read_classes``."""
    try:
        is_json = source.lower().endswith(".json") or text.lstrip()[:1] in ("[", "{")
        entries = _from_json(text) if is_json else _from_lines(text)
        return _checked(entries, source)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"label names in {source}: {error}") from error


def read_text(path: Path) -> str:
    """The text of a UTF-8 file. Raises ValueError, naming it, for a folder and for what is no such text."""
    if path.is_dir():
        raise ValueError(f"{path} is a folder; name a file in it")
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        raise FileNotFoundError(f"there is no file {path}") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text (byte {error.start}); save it as UTF-8") from error
    if "\0" in text:
        raise ValueError(f"{path} is no text (byte {text.encode().index(0)} is 0); name a file of text")
    return text


def agree(several: Sequence[Classes]) -> Classes | None:
    """What class files of one set say together: the same names, and colours where one of them has any.

    Raises ValueError, naming two that contradict each other.
    """
    together: Classes | None = None
    for each in several:
        if together is None:
            together = each
            continue
        names = [[name.strip().casefold() for name in found.names] for found in (together, each)]
        numbers = together.numbers, each.numbers
        if names[0] == [name.casefold() for name in CLASS_NAMES]:
            numbers = (), ()  # SceneParse150's, which its own table counts from 1 and models from 0
        for what, first, second in (("names", *names), ("colours", together.colours, each.colours), ("ids", *numbers)):
            if first and second and list(first) != list(second):
                place = next((i for i, (a, b) in enumerate(zip(first, second, strict=False)) if a != b), -1)
                which = f"class {place} is {first[place]!r} and {second[place]!r}" if place >= 0 else (
                    f"{len(first)} and {len(second)} of them"
                )  # fmt: skip
                raise ValueError(
                    f"{together.source} and {each.source} contradict each other in their {what}: {which}; remove one, "
                    "or name the right one as --label-names"
                )
        numbered = together if together.numbers else each
        colours = together.colours or each.colours
        together = replace(together, colours=colours, first_id=numbered.first_id, ids=numbered.ids)
    return together


def ready_made(colours: Iterable[Colour], names: Sequence[str] = ()) -> str:
    """A class_dict.csv of these colours, to be given the names of the classes; black comes first, as background.

    A line named void is ignored.
    """
    lines = ["name,r,g,b"]
    for i, colour in enumerate(sorted(colours)):
        usual = "background" if colour == (0, 0, 0) else f"class_{i}"
        lines.append(",".join(map(str, (names[i] if i < len(names) else usual, *colour))))
    return "\n".join([*lines, ""])


# Text


def _from_lines(text: str) -> list[Entry]:
    lines = [line.strip() for line in text.rstrip().split("\n")] if text.strip() else []
    bare = [line for line in lines if line and not line.startswith("#")]
    if bare and all(re.fullmatch(r"[^:]+:\s*(\d+\s*,\s*\d+\s*,\s*\d+)?\s*(:.*)?", line) for line in bare):
        parts = [line.split(":") for line in bare]
        return [Entry(name.strip(), None, _colour(colour.strip())) for name, colour, *_ in parts if colour.strip()]
    if bare and (table := _table(bare)):
        return table
    if any(re.match(r"(names|nc|classes|labels)\s*:", line) for line in bare):
        raise ValueError(f"{bare[0]!r} looks like YAML, which is not read; write a name a line, or JSON")
    headless = bare[1:] if bare and re.fullmatch(r"[^\d,;\t]+([,;\t][^\d,;\t]+)+", bare[0]) else []
    for form, make in _LINES:
        for rows in filter(None, (bare, headless)):
            matches = [match for line in rows if (match := re.fullmatch(form, line))]
            if len(matches) == len(rows):
                entries = [make(match) for match in matches]
                if form is not _NAME_AND_ID or _are_numbered(entries):
                    return entries
    if len(bare) == 1 and "," in bare[0]:
        return [Entry(name.strip()) for name in bare[0].split(",")]
    has_head = len(bare) > 1 and re.sub(r"[\s_-]", "", bare[0].lower()) in _NAME_HEADS | _KOREAN_NAME_HEADS
    if has_head or bare[:2] == _LABELME:
        return [Entry(line) for line in bare[1:]]
    return [Entry(line) for line in lines if not line.startswith("#")]


_LABELME = ["__ignore__", "_background_"]  # how its labels.txt begins, whose ids count from -1
_RGB = r"\d+[\s,;]+\d+[\s,;]+\d+"
_NAME_AND_ID = r"(.*[^\d\s,:;=])[\s,:;=]+(\d+)"
_LINES: tuple[tuple[str, Callable[[re.Match[str]], Entry]], ...] = (
    (r"(\d+)[\s,:;]+([^\d\s].*)", lambda found: Entry(found[2], int(found[1]))),
    (rf"({_RGB})[\s,;]+([^\d\s].*)", lambda found: Entry(found[2], None, _triple(found[1]))),
    (rf"([^,;\t]*[^\d\s,;])\s*[,;\t]\s*({_RGB})", lambda found: Entry(found[1], None, _triple(found[2]))),
    (_NAME_AND_ID, lambda found: Entry(found[1].strip(), int(found[2]))),
)  # fmt: skip


def _are_numbered(entries: list[Entry]) -> bool:
    """Whether numbers at the ends of lines are ids, and no part of names such as zone 1 and zone 2."""
    numbers = [entry.number or 0 for entry in entries]
    rise = numbers[0] < 2 and numbers == sorted(numbers) and _are_ids(numbers)
    return len({entry.name for entry in entries}) == len(entries) and (rise or _count_up(numbers))


def _are_ids(numbers: Sequence[int]) -> bool:
    """Whether numbers can be those of classes in a label map of 8 bits, each once."""
    return len(set(numbers)) == len(numbers) and all(0 <= number <= IGNORE_INDEX for number in numbers)


def _count_up(numbers: Iterable[int]) -> bool:
    """Whether numbers are 0 to n - 1 or 1 to n, in any order, as ids are and what else is counted is not."""
    found = sorted(numbers)
    return len(found) > 1 and found in (list(range(len(found))), list(range(1, len(found) + 1)))


def _table(lines: list[str]) -> list[Entry]:
    """The classes of a table whose header names a column of names; none if it has no such header."""
    delimiter = next((sign for sign in "\t,;|" if sign in lines[0]), None)
    if delimiter is None:
        return []
    rows = [[cell.strip() for cell in row] for row in csv.reader(lines, delimiter=delimiter, skipinitialspace=True)]
    heads = [re.sub(r"[^a-z]", "", head.lower()) for head in rows[0]]
    place = {head: i for i, head in reversed(list(enumerate(heads)))}
    numeric = [
        i for i in range(len(heads)) if rows[1:] and all(row[i : i + 1] and row[i].isdigit() for row in rows[1:])
    ]
    names = [place[head] for head in heads if head in _NAME_HEADS]
    name = next((i for i in names if i not in numeric), names[0] if names else None)
    if name is None:
        return []
    number = next((place[head] for head in heads if head in _ID_HEADS and place[head] != name), None)
    if number is None:  # or the numbers of what is called class or label beside a name
        maybe = [i for i in numeric if i != name and heads[i] in _MAYBE_ID_HEADS | _NAME_HEADS]
        maybe = [i for i in maybe if _are_ids([int(row[i]) for row in rows[1:]])]
        if len({tuple(row[i] for row in rows[1:]) for i in maybe}) > 1:
            shown = " and ".join(rows[0][i] for i in maybe)
            raise ValueError(f"the columns {shown} both number the classes, each otherwise; call the right one id")
        number = maybe[0] if maybe else None
    if number is None:
        _check_uncalled(rows, [i for i in numeric if i != name and heads[i] in _HEADS_OF_NOTHING])
    channels = [next((place[head] for head in heads if head in names), None) for names in _CHANNEL_HEADS]
    whole = [i for i, head in enumerate(heads) if head.startswith(("color", "colour", "rgb"))]
    entries = []
    for line, row in enumerate(rows[1:], 2):
        if len(row) < len(heads):
            raise ValueError(f"line {line} has {len(row)} cells, its header {len(heads)}")
        cells = [row[i] for i in channels if i is not None]
        colour = (
            _colour(",".join(cells)) if len(cells) == 3 else next((c for i in whole if (c := _triple(row[i]))), None)
        )
        if number is not None and not row[number].isdigit():
            raise ValueError(f"line {line} has {row[number]!r} for an id; it must be a whole number")
        entries.append(Entry(row[name], None if number is None else int(row[number]), colour))
    short = [entry._replace(name=entry.name.split(";")[0].split(",")[0].strip()) for entry in entries]
    return short if len({entry.name for entry in short}) == len(entries) else entries


def _check_uncalled(rows: list[list[str]], numeric: list[int]) -> None:
    """Refuse a column that numbers the classes in another order than the lines, under a head that says nothing."""
    for i in numeric:
        numbers = [int(row[i]) for row in rows[1:]]
        if _count_up(numbers) and numbers != sorted(numbers):
            raise ValueError(
                f"the column {rows[0][i]!r} numbers the classes in another order than the lines; call it id if these "
                "are their ids, or take it out"
            )


def _triple(cell: str) -> Colour | None:
    """A colour that is written in one cell, as (120, 120, 120) or #787878."""
    found = re.fullmatch(r"[(\[]?\s*(\d+)[,;\s]+(\d+)[,;\s]+(\d+)\s*[)\]]?", cell)
    if found:
        return _colour(",".join(found.groups()))
    return _colour(cell) if re.fullmatch(r"#[0-9a-fA-F]{6}", cell) else None


def _colour(value: Any) -> Colour:
    """(r, g, b) from three numbers, "r,g,b" or "#rrggbb"."""
    if isinstance(value, str) and re.fullmatch(r"#[0-9a-fA-F]{6}", value):
        channels = [int(value[i : i + 2], 16) for i in (1, 3, 5)]
    elif isinstance(value, str) and re.fullmatch(r"\s*\d+\s*(,\s*\d+\s*){2}", value):
        channels = [int(channel) for channel in value.split(",")]
    else:
        channels = value if isinstance(value, list) else []
    if len(channels) != 3 or not all(is_integer(channel) and 0 <= channel <= 255 for channel in channels):
        raise ValueError(f"{value!r} is no colour; it must be three numbers, each 0 to 255")
    red, green, blue = channels
    return red, green, blue


# JSON


def _from_json(text: str) -> list[Entry]:
    try:
        entries = json.loads(text, object_pairs_hook=_without_repeats)
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON: {error}") from error
    if isinstance(entries, dict):
        for key in ("id2label", "classes", "labels", "categories", "label2id"):
            if isinstance(entries.get(key), list | dict):
                entries = entries[key]
                break
    if isinstance(entries, list):
        keys = _id_keys(entries)
        return [_from_object(each, number, keys) for number, each in enumerate(entries)]
    if not isinstance(entries, dict):
        raise ValueError(f"JSON holds a {type(entries).__name__}; it must be a list of names, or ids with names")
    numbers = [_number(value) for value in entries.values()]
    are_names = all(isinstance(value, str) for value in entries.values()) and all(key.isdigit() for key in entries)
    if entries and None not in numbers and not are_names:
        return [Entry(name, number) for name, number in zip(entries, numbers, strict=True)]
    if entries and all(isinstance(value, list) and len(value) == 3 for value in entries.values()):
        return [Entry(name, None, _colour(value)) for name, value in entries.items()]
    for key in entries:
        if not (key.isascii() and key.isdigit()):
            raise ValueError(f"key {key!r} is not a class id; give ids with names, or names with ids")
    return [_from_object(each, int(key))._replace(number=int(key)) for key, each in entries.items()]


def _id_keys(objects: Sequence[Any]) -> list[str]:
    """The keys beside id, index and value under which every object has a number of its own."""
    dicts = [each for each in objects if isinstance(each, dict)]
    if not dicts or len(dicts) < len(objects):
        return []
    known = _ID_HEADS | _MAYBE_ID_HEADS
    keys = [key for key in dicts[0] if re.sub(r"[^a-z]", "", key.lower()) in known]
    return [key for key in keys if all(_number(each.get(key)) is not None for each in dicts)]


def _from_object(each: Any, place: int, keys: Sequence[str] = ()) -> Entry:
    if not isinstance(each, dict):
        return Entry(_text(each, place))
    name = next((each[key] for key in ("name", "label", "class", "readable", "supercategory") if key in each), None)
    number = next((n for key in ("id", "index", "value", *keys) if (n := _number(each.get(key))) is not None), None)
    colour = next((each[key] for key in ("color", "colour", "rgb") if each.get(key) is not None), None)
    return Entry(_text(name, place), number, None if colour is None else _colour(colour))


def _number(value: Any) -> int | None:
    """An id, which some tools write as text."""
    if isinstance(value, str) and value.isascii() and value.isdigit():
        return int(value)
    return value if is_integer(value) and value >= 0 else None


def _text(name: Any, place: int) -> str:
    if not isinstance(name, str):
        raise ValueError(f"class {place} has {name!r} for a name; it must be text")
    return name


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    _refuse_repeats("key", (key for key, _ in pairs))
    return dict(pairs)


# Whether it can be


def _checked(entries: list[Entry], source: str) -> Classes:
    if not 1 <= len(entries) <= _MOST_NAMES:
        raise ValueError(f"{len(entries)} names; there must be 1 to {_MOST_NAMES}")
    first_id: int | None = None
    ids: tuple[int, ...] = ()
    if any(entry.number is not None for entry in entries):
        if lacking := [entry.name for entry in entries if entry.number is None]:
            raise ValueError(f"class {lacking[0]!r} has no id, and others have; give every class one, or none")
        entries = sorted(entries, key=lambda entry: entry.number or 0)
        found = [entry.number or 0 for entry in entries]
        _refuse_repeats("id", map(str, found))
        if _count_up(found) or found in ([0], [1]):
            first_id = found[0]
        else:
            ids = tuple(found)
    for number, entry in enumerate(entries):
        if not entry.name.strip():
            raise ValueError(f"class {number} has a blank name; name every class")
    _refuse_repeats("name", (entry.name for entry in entries))
    colours = [entry.colour for entry in entries if entry.colour is not None]
    if colours and len(colours) < len(entries):
        bare = next(entry.name for entry in entries if entry.colour is None)
        raise ValueError(f"class {bare!r} has no colour, and others have; give every class one, or none")
    _refuse_repeats("colour", map(str, colours))
    return Classes(source, tuple(entry.name for entry in entries), tuple(colours) or None, first_id, ids)


def _no_name(number: int, count: int) -> str:
    return f"no name for class {number}; the ids of {count} names must be 0 to {count - 1}, each once"


def _refuse_repeats(what: str, names: Iterable[str]) -> None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise ValueError(f"{what} {name!r} is there twice; each must be there once")
        seen.add(name)


def is_integer(value: object) -> bool:
    """Whether something is a whole number, which True is not."""
    return isinstance(value, int) and not isinstance(value, bool)
