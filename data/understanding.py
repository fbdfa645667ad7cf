"""What the label maps of a dataset mean: by what is said, by what lies beside them, and by what the first rows hold.

Nothing is guessed in silence. What cannot be wrong is taken and said; where two readings are left, both are spelled out
with the flags that choose.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data.class_files import Classes, Colour, ready_made
from data.classes import CLASS_NAMES, ID2LABEL, IGNORE_INDEX, NUM_LABELS
from data.decoding import StoredMap, decode_label_map
from data.labels import OBJECT_VALUES, SCENE_PARSE_LABELS, LabelRule, colour_of
from data.sceneparse import SceneParse150
from data.words import counted

FIRST_ROWS = 20
MOST_COLOURS = 32  # that are listed
_MOST_NAMES = 4  # of classes in a line
_FEWEST_OF_SCENES = 4  # values in the first rows of SceneParse150, of which a single photo has more
_ENOUGH_ROWS = 5  # in which SceneParse150 has more values than rows
_FEWEST_BLURRED = 3  # values between 0 and 255
_FEWEST_EDGES = 100  # by which a label map is judged
_MOST_BETWEEN = 0.06  # of the edges: sharp maps of streets, rooms and scenes have at most 0.02, blended ones 0.1 to 0.5
_MOST_OWN_VALUES = (
    100  # below which label maps are somebody's own rather than SceneParse150's, where nothing else tells
)
_VOID = {"void", "unlabeled", "unlabelled", "ignore", "ignored", "unknown", "unannotated", "undefined", "dont care"}
_BACKGROUND = {"background", "_background_", "bg"}
_BINARY_NAMES = ("background", "object")


@dataclass(frozen=True)
class KnownLabels:
    """The classes of a model, and the rule by which its training read label maps; ``source`` is the model."""

    source: str
    names: tuple[str, ...]
    rule: LabelRule


@dataclass(frozen=True)
class Flags:
    """What the user says of the labels; None where nothing is said. ``classes`` are those of --label-names.

    ``known`` is what the model that is scored was trained on, for all that neither the user nor the data says.
    """

    classes: Classes | None = None
    num_labels: int | None = None
    reduce_labels: bool | None = None
    ignore_index: int | tuple[int, ...] | None = None
    binary: bool = False
    known: KnownLabels | None = None


NOTHING_SAID = Flags()


@dataclass
class Held:
    """What the first label maps hold, in pixels: the stored values and, where there are any, the colours."""

    rows: int = 0
    values: Counter[int] = field(default_factory=Counter)
    colours: Counter[Colour] = field(default_factory=Counter)
    bilevel: bool = True  # while no label map has more than one bit
    coloured: str = ""  # where the first row of colours lies
    kinds: set[tuple[int, ...]] = field(default_factory=set)  # what single label maps hold, of three values at most
    palette: dict[int, Colour] = field(default_factory=dict)
    clash: str = ""  # of two palettes
    black_second: str = ""  # where a palette first has black after another colour

    def add(self, stored: StoredMap, where: str) -> None:
        """Count one more label map. Raises ValueError for one that has neither numbers nor colours."""
        self.bilevel &= stored.mode == "1"
        if stored.is_coloured:
            codes, counts = np.unique(stored.colours(), return_counts=True)
            self.colours.update(dict(zip(map(colour_of, codes.tolist()), counts.tolist(), strict=True)))
            self.coloured = self.coloured or where
            return
        found, counts = np.unique(stored.values(), return_counts=True)
        values = dict(zip(map(int, found), counts.tolist(), strict=True))  # of one bit, they are True and False
        self.values.update(values)
        if len(values) < 4:
            self.kinds.add(tuple(values))
        palette = stored.palette
        if stored.is_black_second:
            self.black_second = self.black_second or where
        for value, count in values.items():
            shade = min(max(int(value), 0), 255)
            colour = (shade, shade, shade) if palette is None else palette[value] if value < len(palette) else (0, 0, 0)
            self.colours[colour] += count
            if palette is not None:
                known = self.palette.setdefault(value, colour)
                if known != colour and not self.clash:
                    self.clash = f"palette index {value} is {known} in one and {colour} in {where}"


@dataclass(frozen=True)
class Understanding:
    """The rule of the label maps, the names of the classes, and what a run says of both before its first step."""

    rule: LabelRule
    id2label: dict[int, str]
    lines: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    held: Held = field(default_factory=Held, compare=False, repr=False)  # by the first label maps


def understand(dataset: SceneParse150, flags: Flags = NOTHING_SAID, rows: int = FIRST_ROWS) -> Understanding:
    """What the label maps of a dataset mean, held to its first rows.

    Raises ValueError, in one line, where flags, class files and rows contradict each other or leave two readings, and
    for a row that the rule does not allow.
    """
    held = look(dataset, rows, flags.binary)
    beside, passed_over = (None, []) if flags.classes else dataset.classes()
    classes = flags.classes or beside
    known = _known(dataset, classes, flags)
    if known:
        classes = Classes(known.source, known.names)
    try:
        found = _read_as(dataset, held, classes, replace(flags, known=known), beside is not None)
    except ValueError as error:
        raise ValueError("; ".join([str(error), *passed_over])) from error
    _check_that_there_is_a_choice(found)
    about = f"; {dataset.about}" if dataset.about else ""
    lines = [f"{dataset.source}, {dataset.split}: {counted(len(dataset), 'row')}{about}"]
    names = [name.strip() for name in found.id2label.values()]
    trained = ", which was trained on them" if known else ""
    origin = f" by {classes.source}{trained} (--label-names)" if classes else ""
    lines += [f"{counted(len(names), 'class')}{origin}: {_few(names)}", f"labels: {found.rule.describe()}"]
    lines += found.lines
    if held.black_second:
        lines.append(f"palettes of a colour and then black, as in {held.black_second}, are read as seen: black is 0")
    found = replace(found, rule=replace(found.rule, palette=_palette_of(found.rule, held)))
    warnings = [*passed_over, *found.warnings, *_check_rows(dataset, found, held)]
    return replace(found, lines=lines, warnings=warnings, held=held)


def _read_as(
    dataset: SceneParse150, held: Held, classes: Classes | None, flags: Flags, is_beside: bool
) -> Understanding:
    """The rule and the names, by whoever has the first say."""
    known = flags.known
    if known and flags == Flags(known=known) and _are_stored_alike(known.rule, held):
        found = Understanding(known.rule, dict(enumerate(known.names)))
    elif _is_scene_parse(dataset, held, classes, flags):
        found = Understanding(_scene_parse_rule(flags), ID2LABEL)
    elif held.coloured or _by_palette(dataset, held, classes, flags):
        return _by_colour(dataset, held, classes, flags)
    else:
        if not flags.binary:
            check_palettes(dataset.source, held)
        return _by_value(dataset, held, classes, flags, is_beside)
    if not found.rule.colours:
        _check_values(dataset, held, found.rule)
        if not found.rule.binary:
            check_palettes(dataset.source, held)
    return found


def understand_alike(dataset: SceneParse150, found: Understanding) -> Understanding:
    """What was ``found`` of the rows to train on, held to the first of those to score as well.

    Raises ValueError for a palette that numbers colours otherwise, and for a row that the rule does not allow.
    """
    held = look(dataset, FIRST_ROWS, found.rule.binary)
    if not (found.rule.colours or found.rule.binary):
        check_palettes(f"{dataset.source}, {dataset.split},", held)
    said = _check_rows(dataset, found, held, f" of {dataset.split}")
    trained, scored = (set(each.values) - {IGNORE_INDEX} for each in (found.held, held))
    if trained and scored in ({value + 1 for value in trained}, {value - 1 for value in trained}):
        said.append(
            f"label maps of {dataset.split} hold {_listed(scored)} where those to train on hold {_listed(trained)}: if "
            "they are numbered otherwise, every class is scored as its neighbour"
        )
    return replace(found, warnings=[*found.warnings, *said])


def without_greys(palette: dict[int, Colour]) -> dict[int, Colour]:
    """A palette that gives colours; none of one that gives every number its own grey, and so no colours."""
    return {} if all(colour == (index,) * 3 for index, colour in palette.items()) else palette


def check_palettes(source: str, held: Held) -> None:
    """Raise ValueError for palettes that differ, where indices are to be class ids."""
    if held.clash:
        raise ValueError(
            f"label maps of {source} have palettes that differ, so that indices are no class ids: {held.clash}; give "
            "the colours of the classes in a class_dict.csv beside the data, or as --label-names"
        )


def write_class_file(dataset: SceneParse150, path: Path, rows: int = FIRST_ROWS) -> Path:
    """Write a class_dict.csv of the colours in the first label maps, whose names are to be filled in."""
    path.write_text(ready_made(look(dataset, rows).colours), encoding="utf-8")
    return path


def look(dataset: SceneParse150, rows: int = FIRST_ROWS, binary: bool = False) -> Held:
    """What the first label maps hold, and further ones as long as that is 0 alone, which tells nothing.

    Raises ValueError for one that does not decode.
    """
    held = Held()
    for row in range(len(dataset)):
        if row >= rows and (held.coloured or set(held.values) != {0}):
            break
        encoded = dataset.encoded(row)[1]
        if encoded is not None:
            held.rows += 1
            held.add(StoredMap(encoded, dataset.where(row), binary), dataset.where(row))
    return held


def _known(dataset: SceneParse150, classes: Classes | None, flags: Flags) -> KnownLabels | None:
    """What the model was trained on, where neither flags nor the data name the classes."""
    is_said = classes or dataset.values or flags.binary or flags.num_labels is not None
    return None if is_said else flags.known


def _are_stored_alike(rule: LabelRule, held: Held) -> bool:
    """Whether label maps have colours, in their palettes if not in their pixels, where a rule is one of colours."""
    return bool(rule.colours) == bool(held.coloured or (rule.colours and without_greys(held.palette)))


def _palette_of(rule: LabelRule, held: Held) -> tuple[tuple[int, Colour], ...]:
    """The colours of the classes: those that are known to the rule, and those that the first label maps add."""
    if rule.colours or rule.binary:
        return ()
    drawn = {value: colour for value, colour in without_greys(held.palette).items() if value not in rule.ignored}
    return tuple(sorted((drawn | dict(rule.palette)).items()))


def _check_that_there_is_a_choice(found: Understanding) -> None:
    """Refuse a rule by which every pixel is of one class, or ignored."""
    left = found.rule.classes_left
    if len(left) > 1:
        return
    only = f"{found.id2label[min(left)].strip()!r} is the only class that is left" if left else "no class is left"
    raise ValueError(
        f"{only}, as {found.rule.describe()}: there is nothing to learn; name two classes or more (--label-names or "
        "--num-labels), with --no-reduce-labels or --binary-masks where 0 is one of them"
    )


# SceneParse150


def _is_scene_parse(dataset: SceneParse150, held: Held, classes: Classes | None, flags: Flags) -> bool:
    """Whether these are the 150 classes of SceneParse150, by the data itself or by their names.

    Photos of ADE20K that somebody labelled anew have its names, and few values.
    """
    if flags.binary or flags.num_labels not in (None, NUM_LABELS):
        return False
    if classes is not None:
        return tuple(name.strip() for name in classes.names) == CLASS_NAMES
    is_called_so = dataset.name(0).startswith("ADE_") and (held.rows < _ENOUGH_ROWS or len(held.values) > held.rows)
    return (dataset.is_scene_parse or is_called_so or dataset.scene_category(0) is not None) and not dataset.values


def _scene_parse_rule(flags: Flags) -> LabelRule:
    if flags.reduce_labels is False:
        ignored = IGNORE_INDEX if flags.ignore_index is None else flags.ignore_index
        return LabelRule(NUM_LABELS, False, ignored)
    return replace(SCENE_PARSE_LABELS, ignore_index=flags.ignore_index)


# Colours


def _by_palette(dataset: SceneParse150, held: Held, classes: Classes | None, flags: Flags) -> bool:
    """Whether palettes hold the colours of a class file, whatever the indices are.

    Raises ValueError where they hold some of them, beside others.
    """
    if flags.binary or classes is None or classes.colours is None or not held.values:
        return False
    known = set(classes.colours)
    used = {value: held.palette.get(value, (value,) * 3) for value in held.values if value != IGNORE_INDEX}
    lacking = {value: colour for value, colour in used.items() if colour not in known}
    if lacking and without_greys(held.palette) and not known.isdisjoint(set(used.values()) - {(0, 0, 0)}):
        value, colour = min(lacking.items())
        raise ValueError(
            f"label maps of {dataset.source} have palettes of colours in {classes.source}, which lacks {colour} of "
            f"index {value}: add a line for it, as a class or as void, or take the colours out if indices are the ids"
        )
    return not lacking


def _by_colour(dataset: SceneParse150, held: Held, classes: Classes | None, flags: Flags) -> Understanding:
    if flags.binary:
        raise ValueError(
            f"label map of {held.coloured} holds colours, and --binary-masks takes one channel; leave it out"
        )
    if classes is None or classes.colours is None:
        raise ValueError(_colours_without_names(dataset, held, classes))
    if flags.ignore_index not in (None, IGNORE_INDEX):
        raise ValueError(
            f"--ignore-index is {flags.ignore_index}, a number, but these label maps are read by their colours: call "
            f"what is to be ignored void in {classes.source}, and leave the flag out"
        )
    names, colours = list(classes.names), list(classes.colours)
    left_out = [flags.reduce_labels is True and i == 0 for i in range(len(names))]
    ignored = [_is_void(name) or out for name, out in zip(names, left_out, strict=True)]
    kept = [name for name, out in zip(names, ignored, strict=True) if not out]
    _check_count(flags, len(kept), classes)
    if not kept:
        raise ValueError(f"{classes.source} has no class but ignored ones ({_few(names)}); name one")
    raw = {name: k for k, name in enumerate(kept)}
    table = [
        (colour, IGNORE_INDEX if out else raw[name]) for name, colour, out in zip(names, colours, ignored, strict=True)
    ]
    if classes.first_id == 1 and (0, 0, 0) not in colours:
        table.append(((0, 0, 0), IGNORE_INDEX))  # what a value of 0 would be
    void = held.palette.get(IGNORE_INDEX)
    if void is not None and void not in dict(table):
        table.append((void, IGNORE_INDEX))  # Pascal VOC's border
    return Understanding(LabelRule(len(kept), False, None, colours=tuple(table)), dict(enumerate(kept)))


def _colours_without_names(dataset: SceneParse150, held: Held, classes: Classes | None) -> str:
    total = sum(held.colours.values())
    if len(held.colours) > MOST_COLOURS:
        what = f"{len(held.colours)} colours, more than the {MOST_COLOURS} of label maps: blended edges, or a photo"
        return f"label map of {held.coloured} and others hold {what}; save masks without smoothing, as PNG"
    shown = ", ".join(f"{colour} {count / total:.1%}" for colour, count in held.colours.most_common())
    lacking = f", and {classes.source} gives none" if classes else ""
    colours = counted(len(held.colours), "colour")
    return (
        f"label maps of {dataset.source} hold {colours} ({shown}), first in {held.coloured}{lacking}"
        ": put a class_dict.csv beside the data, or name it as --label-names, with a line name,r,g,b for each; "
        "data.understanding.write_class_file writes one to fill in"
    )


# Values


def _by_value(
    dataset: SceneParse150, held: Held, classes: Classes | None, flags: Flags, is_beside: bool
) -> Understanding:
    if dataset.values and (flags.classes is None and flags.num_labels in (None, len(dataset.class_names))):
        return _by_table(dataset, flags)
    if _are_binary(dataset, held, classes, flags):
        two = _two_names(classes)
        if flags.binary:
            rule = LabelRule(flags.num_labels or 2, bool(flags.reduce_labels), flags.ignore_index, True)
        else:  # and a row further on that holds anything else is refused
            rule = LabelRule(2, False, values=((0, 0), (max(held.values), 1)))
        return Understanding(rule, dict(enumerate(two)), warnings=_blurred(held))
    if classes is None and flags.num_labels is None:
        return _from_one(dataset, held, flags) or _as_scene_parse(dataset, held, flags)
    if classes is not None and classes.ids:
        return _by_ids(dataset, held, classes, flags)
    names = list(classes.names) if classes else [f"LABEL_{k}" for k in range(flags.num_labels or 0)]
    reduced = _is_reduced(dataset, held, classes, names, flags, is_beside)
    is_other = _is_void(names[0]) or (_is_background(names[0]) and len(names) not in held.values)
    if reduced and is_other and (classes is None or classes.first_id != 1):
        names = names[1:]  # of the 0 that is left out
    ignored = _ignored(names, reduced, flags)
    if len(names) == 2 and ignored == IGNORE_INDEX and flags.ignore_index is None:
        ignored = ignored_beside_an_object(dataset.source, held)
    while len(names) > 1 and flags.ignore_index is None and _is_void(names[-1]):
        names.pop()  # ignored, and no other id moves
    _check_count(flags, len(names), classes)
    rule = LabelRule(len(names), reduced, ignored)
    _check_values(dataset, held, rule)
    found = Understanding(rule, dict(enumerate(names)))
    _check_background(dataset, held, found)
    return found


def _by_table(dataset: SceneParse150, flags: Flags) -> Understanding:
    if flags.reduce_labels:
        raise ValueError(f"--reduce-labels contradicts {dataset.about}; leave it out")
    names = dataset.class_names
    return Understanding(
        LabelRule(len(names), False, flags.ignore_index, values=dataset.values), dict(enumerate(names))
    )


def _check_background(dataset: SceneParse150, held: Held, found: Understanding) -> None:
    """Refuse palettes that draw the background in a colour and a class in black, as those made by counting have it."""
    rule, black = found.rule, [value for value, colour in held.palette.items() if colour == (0, 0, 0)]
    for value, colour in held.palette.items():
        name = found.id2label.get(rule.class_of(value), "")
        if _is_background(name) and black and value not in black and colour != (255, 255, 255):
            raise ValueError(
                f"label maps of {dataset.source} have a palette that draws {name!r} in {colour} and index {black[0]} "
                "in black, as tools do that number the colours anew in every file: give the colours of the classes in "
                "a class_dict.csv beside the data, or as --label-names"
            )


def _two_names(classes: Classes | None) -> tuple[str, ...]:
    """What background and object of a mask are called; an only name is the object's."""
    names = classes.names if classes else _BINARY_NAMES
    if len(names) == 1 and not _is_background(names[0]):
        return (_BINARY_NAMES[0], *names)
    source = classes.source if classes else ""
    if len(names) != 2:
        raise ValueError(f"masks of an object and its background have two classes, and {source} names {len(names)}")
    if _is_background(names[1]) and not _is_background(names[0]):
        raise ValueError(
            f"{source} names {names[0]!r} first and {names[1]!r} second, and in masks 0 is the background; name the "
            "background first"
        )
    return names


@dataclass(frozen=True)
class Edges:
    """Of three pixels in a row, how often the outer two differ, and how often the middle one then lies between."""

    places: int = 0
    count: int = 0
    between: int = 0

    def __add__(self, other: Edges) -> Edges:
        return Edges(self.places + other.places, self.count + other.count, self.between + other.between)

    @property
    def share(self) -> float:
        """Of the edges, those that go through a number between, 0 to 1."""
        return self.between / max(1, self.count)

    @property
    def are_blended(self) -> bool:
        """Whether so many do that numbers were blended, as is meant for photos; noise, which is all edges, is not."""
        return _FEWEST_EDGES <= self.count < self.places / 2 and self.share > _MOST_BETWEEN


def edges_of(label_map: NDArray[np.uint8], rule: LabelRule) -> Edges:
    """The edges of a normalised (H, W) label map along both axes; none where stored numbers were made other ones."""
    found = Edges()
    if rule.values or rule.colours or rule.binary:
        return found
    for lines in (label_map, label_map.T):
        before, here, after = lines[:, :-2], lines[:, 1:-1], lines[:, 2:]
        known = (before != IGNORE_INDEX) & (here != IGNORE_INDEX) & (after != IGNORE_INDEX)
        between = ((before < here) & (here < after)) | ((before > here) & (here > after))
        kinds = (known, known & (before != after), known & between)
        found += Edges(*(int(np.count_nonzero(kind)) for kind in kinds))
    return found


def _blurred(held: Held) -> list[str]:
    """What to say of masks that hold values between their two, up to 255, where numbers of objects end earlier."""
    between = [value for value in held.values if 0 < value < IGNORE_INDEX]
    if IGNORE_INDEX not in held.values or len(between) < _FEWEST_BLURRED:
        return []
    share = sum(held.values[value] for value in between) / sum(held.values.values())
    return [
        f"the masks hold {len(between)} values between 0 and 255, in {share:.1%} of their pixels in "
        f"{_first(held.rows)}, as blurred edges and JPEG leave them: all above 0 are the object; save them cut at half "
        "if that makes it too large"
    ]


def _by_ids(dataset: SceneParse150, held: Held, classes: Classes, flags: Flags) -> Understanding:
    """Classes whose ids have holes: numbered in their order, and what has a name for that ignored."""
    left_out = {
        name
        for number, name in zip(classes.ids, classes.names, strict=True)
        if _is_void(name) or (number == IGNORE_INDEX and flags.ignore_index is None and len(classes.names) > 2)
    }
    kept = [name for name in classes.names if name not in left_out]
    _check_count(flags, len(kept), classes)
    raw = {name: k for k, name in enumerate(kept)}
    values = {number: raw.get(name, IGNORE_INDEX) for number, name in zip(classes.ids, classes.names, strict=True)}
    if flags.reduce_labels and values.setdefault(0, IGNORE_INDEX) != IGNORE_INDEX:
        raise ValueError(f"--reduce-labels ignores 0, which {classes.source} calls {kept[values[0]]!r}; leave it out")
    if flags.ignore_index is None:
        values.setdefault(IGNORE_INDEX, IGNORE_INDEX)
    rule = LabelRule(len(kept), False, flags.ignore_index, values=tuple(sorted(values.items())))
    if 0 in held.values and rule.meaning(0) is None:
        raise ValueError(
            f"label maps of {dataset.source} hold 0, and {classes.source} has no class of that id, but "
            f"{_listed(classes.ids)}: --reduce-labels ignores it, and a line of its own makes it a class"
        )
    _check_values(dataset, held, rule)
    said = [f"ignored by {classes.source}: {', '.join(sorted(left_out))}"] if left_out else []
    return Understanding(rule, dict(enumerate(kept)), said)


def _are_binary(dataset: SceneParse150, held: Held, classes: Classes | None, flags: Flags) -> bool:
    """Whether 0 is the background and all else the object: said, or all that there is and nothing against it."""
    if flags.binary:
        return True
    count = flags.num_labels if classes is None else len(classes.names)
    is_one = classes is not None and count == 1 and not classes.numbers and not _is_background(classes.names[0])
    highest = max(held.values, default=0)
    objects = OBJECT_VALUES[:1] if held.bilevel else OBJECT_VALUES if is_one else OBJECT_VALUES[1:]
    if highest not in objects or not set(held.values) <= {0, highest}:
        return False
    if flags.reduce_labels is None and flags.ignore_index is None and (is_one or count in (None, 2)):
        return True
    if highest == IGNORE_INDEX and (count in (None, 1, 2) or flags.reduce_labels is not None):
        raise ValueError(
            f"label maps of {dataset.source} hold {_listed(held.values)} and nothing else in "
            f"{_first(held.rows)}: if 255 is the object, give --binary-masks; if 255 is ignored, as without it, only "
            "one class is left and there is nothing to learn"
        )
    return False


def _from_one(dataset: SceneParse150, held: Held, flags: Flags) -> Understanding | None:
    """Classes without names whose values are 1 to n, as in trimaps, and no 0; None where there are others."""
    values = set(held.values) - {IGNORE_INDEX}
    count, all_rows = len(values), held.rows >= min(FIRST_ROWS, len(dataset))
    are_own = 1 < count < _MOST_OWN_VALUES and values == set(range(1, count + 1)) and all_rows
    if not are_own or flags.reduce_labels is False:
        return None
    if flags.reduce_labels:
        rule = LabelRule(count, True, flags.ignore_index)
    else:  # and a row further on that holds 0 is refused
        ignored = IGNORE_INDEX if flags.ignore_index is None else flags.ignore_index
        rule = LabelRule(count, False, ignored, values=tuple((k + 1, k) for k in range(count)))
    _check_values(dataset, held, rule)
    said = (
        f"nothing names the classes; the label maps hold 1 to {count} in {_first(held.rows)}, and no 0, so these are "
        f"{count} classes: --label-names names them, in this order"
    )
    return Understanding(rule, {k: f"LABEL_{k}" for k in range(count)}, warnings=[said])


def _as_scene_parse(dataset: SceneParse150, held: Held, flags: Flags) -> Understanding:
    """Nothing names the classes, so they are SceneParse150's, unless what the rows hold makes that doubtful."""
    values = set(held.values) - {IGNORE_INDEX}
    highest = max(values, default=0)
    if values and highest >= _MOST_OWN_VALUES and (math.gcd(*values) > 1 or len(values) < _FEWEST_OF_SCENES):
        alone = ", or --binary-masks if all above 0 is one object" if len(values - {0}) == 1 else ""
        raise ValueError(
            f"label maps of {dataset.source} hold {_listed(held.values)} in {_first(held.rows)}, as greys do that are "
            "drawn to be told apart, and nothing names the classes: name them in a class_dict.csv beside the data, or "
            f"as --label-names, with a line id,name for each{alone}; or, if they are SceneParse150's, give "
            f"--num-labels {NUM_LABELS} --reduce-labels"
        )
    if held.values and highest < _MOST_OWN_VALUES:
        zero = f"--num-labels {highest + 1} --no-reduce-labels if 0 is a class"
        other = f", or --num-labels {highest} --reduce-labels if 0 is to be ignored" if highest > 1 else ""
        raise ValueError(
            f"label maps of {dataset.source} hold {_listed(held.values)} in {_first(held.rows)}, and nothing "
            f"names the classes; give --label-names, or {zero}{other}"
            f"{', or --binary-masks' if highest == 1 else ''}"
        )
    rule = _scene_parse_rule(flags)
    _check_values(dataset, held, rule)
    said = (
        "nothing names the classes, so they are SceneParse150's 150, where 0 is other; own classes take --label-names "
        "or --num-labels, and --reduce-labels or --no-reduce-labels"
    )
    return Understanding(rule, ID2LABEL, warnings=[said])


def _is_reduced(
    dataset: SceneParse150, held: Held, classes: Classes | None, names: list[str], flags: Flags, is_beside: bool
) -> bool:
    """Whether raw 0 is "other" and raw k class k - 1: as it is said, or as nothing else can be."""
    count, values = len(names), set(held.values) - {IGNORE_INDEX}
    first_id = classes.first_id if classes else None
    if flags.reduce_labels is not None:
        if first_id == 1 and not flags.reduce_labels:
            raise ValueError(
                f"--no-reduce-labels makes 0 a class, but the ids in {classes and classes.source} begin at 1: leave "
                f"the flag out, and 0 is ignored and 1 is {names[0]!r}; or begin the ids at 0, and 0 is {names[0]!r}"
            )
        return flags.reduce_labels
    all_from_1 = values == set(range(1, count + 1)) and held.rows >= min(FIRST_ROWS, len(dataset))
    if first_id == 1 or all_from_1:
        return True
    if (is_beside and first_id == 0) or _is_void(names[0]) or _is_background(names[0]):
        return False
    raise ValueError(
        f"{count} classes ({_few(names)}) and label maps of {dataset.source} that hold {_listed(values)} leave two "
        f"readings: with --no-reduce-labels 0 is {names[0]!r} and {count - 1} is {names[-1]!r}; with --reduce-labels 0 "
        f"is ignored, 1 is {names[0]!r} and {count} is {names[-1]!r}; give one of them"
    )


def _ignored(names: list[str], reduced: bool, flags: Flags) -> int | tuple[int, ...] | None:
    """What has a name for that, and what is said, else 255, unless 0 is other, as in SceneParse150."""
    ignored = [k + reduced for k, name in enumerate(names) if _is_void(name)]
    if isinstance(flags.ignore_index, tuple):
        ignored += flags.ignore_index
    elif flags.ignore_index is not None or not reduced:
        ignored.append(IGNORE_INDEX if flags.ignore_index is None else flags.ignore_index)
    ignored = list(dict.fromkeys(ignored))
    return (tuple(ignored) if len(ignored) > 1 else ignored[0]) if ignored else None


def ignored_beside_an_object(source: str, held: Held) -> int | None:
    """255 of two classes 0 and 1, if it lies beside both; else it is refused, for masks may say 255 for their object.

    Raises ValueError where some label maps have 1 and others 255.
    """
    if not {1, IGNORE_INDEX} <= set(held.values):
        return None
    if (0, IGNORE_INDEX) in held.kinds and not any({1, IGNORE_INDEX} <= set(kind) for kind in held.kinds):
        raise ValueError(
            f"label maps of {source} hold 0 and 1, others 0 and 255, and none of {_first(held.rows)} 1 and "
            "255: if both are the object, give --binary-masks; if 255 is ignored, --ignore-index 255"
        )
    return IGNORE_INDEX


def _check_values(dataset: SceneParse150, held: Held, rule: LabelRule) -> None:
    """Refuse values without a place in the rule, with the readings that would give them one."""
    strays = sorted(value for value in held.values if rule.meaning(value) is None)
    if not strays:
        return
    lowest = "0 (ignored) and 1" if rule.reduce_labels else "0"
    readings = []
    if strays == [IGNORE_INDEX]:
        readings.append("--ignore-index 255 ignores it")
        if rule.reduce_labels:
            readings.append("or, where 0 is a class already and 255 what is ignored, --no-reduce-labels")
    elif rule.is_binary:
        readings.append("--binary-masks takes every value above 0 as the object")
    elif len(strays) == 1 and strays[0] == rule.num_labels and not rule.reduce_labels:
        readings.append("--reduce-labels makes 0 ignored and moves every class down by one")
        readings.append(f"--ignore-index {strays[0]} ignores it")
    else:
        readings.append("name as many classes as there are (--label-names or --num-labels)")
        readings.append("or the values to ignore (--ignore-index)")
        if rule == SCENE_PARSE_LABELS:
            readings.append("or --binary-masks, if all above 0 is one object")
    raise ValueError(
        f"label maps of {dataset.source} hold {_listed(strays)} in {_first(held.rows)}, but "
        f"{counted(rule.num_labels, 'class')} are {lowest} to {rule.highest}: {'; '.join(readings)}"
    )


# What is said


def _check_rows(dataset: SceneParse150, found: Understanding, held: Held, of_split: str = "") -> list[str]:
    """Read the first rows by the rule, and say what would make a night of training, or a score, useless.

    Of a split that is only scored, some classes may well be missing.
    """
    counts, edges = np.zeros(256, np.int64), Edges()
    looked = 0
    for row in range(len(dataset)):
        if looked == held.rows:
            break
        encoded = dataset.encoded(row)[1]
        if encoded is not None:
            looked += 1
            label_map = decode_label_map(encoded, dataset.where(row), found.rule)
            counts += np.array(label_map.histogram(), np.int64)
            edges += edges_of(np.asarray(label_map), found.rule)
    if not counts.sum():
        return []
    pixels = Counter({found.rule.class_of(raw): 0 for raw in range(256)})
    for raw in np.flatnonzero(counts).tolist():
        pixels[found.rule.class_of(raw)] += int(counts[raw])
    said = []
    rows = _first(looked) + of_split
    share = pixels[IGNORE_INDEX] / counts.sum()
    if share > 0.5:
        said.append(
            f"{share:.0%} of the pixels in {rows} are ignored (--ignore-index, --reduce-labels and "
            "--binary-masks decide which)"
        )
    if edges.are_blended:
        said.append(
            f"{edges.share:.0%} of the edges in {rows} go through a number between those of both sides, as in label "
            "maps that were resized by blending, where every such pixel is of a class that is not there; resize them "
            "by nearest neighbour"
        )
    ignored = {found.rule.class_of(value) for value in found.rule.ignored}
    never = [name.strip() for k, name in found.id2label.items() if not pixels[k] and k not in ignored]
    if never and found.id2label != ID2LABEL and not of_split:
        said.append(
            f"{len(never)} of {counted(len(found.id2label), 'class')} {'does' if len(never) == 1 else 'do'} not occur "
            f"in {rows}: {_few(never)} "
            "(--reduce-labels or --no-reduce-labels, --num-labels and --label-names decide which values they are)"
        )
    present = [name.strip() for k, name in found.id2label.items() if pixels[k]]
    if len(present) == 1:
        what = "which says nothing of the other classes" if of_split else "from which nothing can be learnt"
        said.append(f"{rows} hold{'s' * (looked == 1)} {present[0]} alone, {what}")
    return said


def _check_count(flags: Flags, count: int, classes: Classes | None) -> None:
    if flags.num_labels not in (None, count) and classes is not None:
        raise ValueError(
            f"--num-labels is {flags.num_labels}, but {classes.source} names {count} classes that are not ignored; "
            "leave it out, or name others as --label-names"
        )


def _is_void(name: str) -> bool:
    return name.lower().replace("'", "").replace("_", " ").replace("-", " ").strip() in _VOID


def _is_background(name: str) -> bool:
    return name.strip().lower() in _BACKGROUND


def _first(rows: int) -> str:
    return "the first row" if rows == 1 else f"the first {rows} rows"


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:_MOST_NAMES]) + (f", ... {names[-1]}" if len(names) > _MOST_NAMES else "")


def _listed(values: Mapping[int, int] | Sequence[int] | set[int]) -> str:
    """Numbers as people write them: 0 to 3, 7 and 255."""
    runs: list[list[int]] = []
    for value in sorted(values):
        if runs and value == runs[-1][-1] + 1:
            runs[-1].append(value)
        else:
            runs.append([value])
    shown = [str(run[0]) if len(run) == 1 else f"{run[0]} to {run[-1]}" for run in runs]
    if len(shown) > 6:
        shown = [*shown[:5], f"others up to {shown[-1]}"]
    return shown[0] if len(shown) == 1 else f"{', '.join(shown[:-1])} and {shown[-1]}" if shown else "nothing"
