"""Every row of a dataset read once, as training would read it, and what looks wrong with them.

A row at fault stops nothing: it is noted, and the next one is read. However many rows there are, a few numbers are kept
of each, and of those at fault the first ones of every kind.
"""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from data.classes import IGNORE_INDEX
from data.decoding import (
    COPIED_TURN,
    StoredMap,
    decode_label_map,
    decode_pair,
    orientation_of,
    palette_of,
    read_strictly,
)
from data.labels import Colour, LabelRule
from data.sceneparse import SceneParse150
from data.shares import RowsKey, Tally, in_order, keep_shares
from data.understanding import Understanding, edges_of, without_greys
from data.words import counted

MOST_ROWS = 20  # that are named of one kind
_MOST_HOLDERS = 3  # rows that are remembered of a class
_MOST_STRAYS = 256  # different ones that are remembered
_SMALL = 32  # pixels of the shorter side
_TIMES_THE_AREA, _TIMES_AS_LONG = 16, 4  # beyond which a photo is unlike the median one
_NEXT_TO_NOTHING = 1e-4  # share of the labelled pixels
_ENOUGH_ROWS = 10  # of which a class should be in more than one
_MUCH_IGNORED = 0.05  # share of pixels that makes one wonder whether they are a class
_EXIF_IN_PNG = (b"eXIf", b"Raw profile", b"tiff:Orientation")


class Kind(NamedTuple):
    """One way in which a dataset may be wrong, and what it leads to or what to do."""

    title: str
    advice: str
    stops: bool = False
    counts: str = "row"  # what there are many of


KINDS = {
    "start": Kind("Training would not start", "This is what it would say before its first step.", True),
    "row": Kind("Rows that cannot be read", "The file is gone, or may not be read, or its shard is damaged.", True),
    "photo": Kind("Photos that do not decode", "Fetch or save the file again, or leave the row out.", True),
    "label map": Kind("Label maps that do not decode", "A label map is one picture kept without loss, as PNG.", True),
    "missing": Kind("Rows without a label map", "Give them one, or leave them out of the split.", True),
    "value": Kind(
        "Values without a class", "Name the class, ignore the value (--ignore-index), or mend the map.", True
    ),
    "colour": Kind("Colours without a class", "Add them to the class file, or save masks without smoothing.", True),
    "size": Kind("Label maps of another size than their photo", "Export them at the photo's own size.", True),
    "palette": Kind(
        "Palettes that differ",
        "An index is another class in these rows; give the classes' colours in a class file.",
        True,
    ),
    "blended": Kind(
        "Label maps that were blended", "Where two classes meet there are others, which are not; resize by nearest."
    ),
    "shifted": Kind("Labels that seem shifted by one", "Every class would be called by its neighbour's name."),
    "turned": Kind(
        "Photos turned by EXIF where the label map is not",
        "See below whether they match; to be safe, save the photo upright and the label map as it lies on that.",
    ),
    "shared": Kind("Photos shared with another split", "Scores on photos that were trained on say nothing."),
    "contradicted": Kind("One photo, different label maps", "The model is told both; keep the right one."),
    "duplicate": Kind("One photo several times", "It weighs that much more, and may land on both sides of a hold-out."),
    "paired": Kind("One label map, different photos", "All but one of them have somebody else's labels."),
    "ignored": Kind("Label maps that are all ignored", "There is nothing to learn from them."),
    "constant": Kind("Label maps of one value", "Right for a photo of one thing; else the export went wrong."),
    "blank": Kind("Photos of one colour", "A camera's or an export's failure, most often."),
    "never": Kind("Classes that never occur", "They cannot be learned, or are not scored; are the names in order?"),
    "rare": Kind("Classes with next to nothing", "Too little to learn from, or slips of the pen.", counts="class"),
    "small": Kind("Very small photos", f"A side is below {_SMALL} pixels: little more than one feature of the model."),
    "unlike": Kind("Sizes unlike the others", "Thumbnails or scans among photos are resized to the same size."),
}


class Fault(NamedTuple):
    """A row at fault: its split and number there, where it lies, and what is wrong."""

    split: str
    row: int
    where: str
    said: str


@dataclass
class Finding:
    """Faults of one kind: how many there are, and the first of them; ``said`` where they are of no single row."""

    kind: str
    count: int = 0
    faults: list[Fault] = field(default_factory=list)
    said: list[str] = field(default_factory=list)

    @property
    def stops(self) -> bool:
        """Whether training would stop on it."""
        return KINDS[self.kind].stops

    @property
    def counted(self) -> str:
        """How many there are, in words; nothing where they are of no row."""
        return counted(self.count, KINDS[self.kind].counts) if self.count else ""


class Findings(dict[str, Finding]):
    """What is wrong, by kind."""

    def add(self, kind: str, fault: Fault) -> None:
        """Note a row at fault."""
        finding = self.setdefault(kind, Finding(kind))
        finding.count += 1
        if len(finding.faults) < MOST_ROWS:
            finding.faults.append(fault)

    def say(self, kind: str, text: str) -> None:
        """Note what is no single row's."""
        self.setdefault(kind, Finding(kind)).said.append(text)

    def ordered(self) -> list[Finding]:
        """Those that training stops on first."""
        return [self[kind] for kind in KINDS if kind in self]


# One row


@dataclass
class Reading:
    """What is kept of a row: faults by kind, and of what could be read its size, marks and numbers."""

    faults: list[tuple[str, str]] = field(default_factory=list)
    size: tuple[int, int] = (0, 0)
    photo: int = 0  # a hash of its pixels
    label_map: int = 0  # the same
    histogram: NDArray[np.int64] | None = None
    palette: dict[int, Colour] = field(default_factory=dict)  # of the indices that are classes
    stored: list[int] = field(default_factory=list)  # values of a label map that breaks the rule


def read_row(dataset: SceneParse150, row: int, files: tuple[bytes | None, bytes | None]) -> Reading:
    """Read a row as training does; what it refuses is looked at more closely."""
    where, (image, annotation) = dataset.where(row), files
    reading = Reading()
    try:
        photo, label_map = decode_pair(image, annotation, where, dataset.label_rule, dataset.open_photo)
    except (ValueError, OSError, MemoryError) as error:
        return diagnose(dataset, where, files, str(error))
    _look_at_photo(reading, photo)
    if image is None or annotation is None or label_map is None:
        reading.faults.append(("missing", "it has a photo alone"))
        return reading
    reading.histogram = np.array(label_map.histogram(), np.int64)
    classes = _classes_in(reading.histogram, dataset.label_rule)
    values = np.count_nonzero(reading.histogram)
    if not classes:
        reading.faults.append(("ignored", "every pixel is ignored"))
    elif values == 1:
        reading.faults.append(("constant", f"every pixel is of class {classes[0]}"))
    reading.label_map = _hash(label_map)
    rule = dataset.label_rule
    if not (rule.values or rule.colours or rule.binary):
        reading.palette = _palette(annotation, reading.histogram)
    if (edges := edges_of(np.asarray(label_map), rule)).are_blended:
        reading.faults.append(("blended", f"{edges.share:.0%} of its edges go through a number between the two sides"))
    if said := _turned(image, annotation, photo.size):
        reading.faults.append(("turned", said))
    return reading


def diagnose(dataset: SceneParse150, where: str, files: tuple[bytes | None, bytes | None], refusal: str) -> Reading:
    """Which of a row's two files training refuses, and why; ``refusal`` is what it says of the row first."""
    image, annotation = files
    reading = Reading()
    try:
        if not image:
            raise ValueError(refusal)
        _look_at_photo(reading, (dataset.open_photo or read_strictly)(image, f"image of {where}"))
    except (ValueError, OSError, MemoryError) as error:
        reading.faults.append(("photo", str(error)))
    if annotation is None:
        reading.faults.append(("missing", "it has a photo alone"))
        return reading
    rule, kind = dataset.label_rule, "label map"
    try:
        stored = StoredMap(annotation, where, rule.binary)
        kind = "colour" if rule.colours or stored.is_coloured else kind
        if kind != "colour":
            values = stored.values()
            reading.stored, kind = np.unique(values).tolist(), "value"
        decode_label_map(annotation, where, rule)
        if not reading.faults:
            reading.faults.append(("size", refusal))
    except (ValueError, OSError, MemoryError) as error:
        reading.faults.append((kind, str(error)))
    return reading


def _look_at_photo(reading: Reading, photo: Image.Image) -> None:
    reading.size, reading.photo = photo.size, _hash(photo)
    if all(low == high for low, high in np.reshape(photo.getextrema(), (-1, 2)).tolist()):
        reading.faults.append(("blank", f"every pixel is {photo.getpixel((0, 0))}"))
    if min(photo.size) < _SMALL:
        reading.faults.append(("small", f"{photo.width} x {photo.height} pixels"))


def _hash(picture: Image.Image) -> int:
    digest = blake2b(repr(picture.size).encode(), digest_size=8)
    digest.update(picture.tobytes())
    return int.from_bytes(digest.digest(), "little") or 1


def _classes_in(histogram: NDArray[np.int64], rule: LabelRule) -> list[int]:
    """The classes that a label map holds."""
    found = (rule.class_of(raw) for raw in np.flatnonzero(histogram).tolist())
    return [k for k in found if k < rule.num_labels]


def _palette(annotation: bytes, histogram: NDArray[np.int64]) -> dict[int, Colour]:
    """The colours of the indices that a label map holds, where it has a palette."""
    with Image.open(io.BytesIO(annotation)) as stored:
        palette = palette_of(stored) if stored.mode == "P" else []
    used = np.flatnonzero(histogram[: len(palette)]).tolist()
    return without_greys({index: palette[index] for index in used if index != IGNORE_INDEX})


def _turned(image: bytes, annotation: bytes, size: tuple[int, int]) -> str:
    """What is doubtful where a photo is turned by its EXIF orientation and its label map has none; else nothing."""
    orientation, _ = _orientation_and_size(image)
    if orientation not in range(2, 9):
        return ""
    of_map, map_size = _orientation_and_size(annotation)
    if of_map in range(2, 9):
        is_copied = of_map >= 5 and size[0] != size[1] and map_size == size
        return f"orientation {of_map}: the label map has the photo's size as {COPIED_TURN}" if is_copied else ""
    if map_size != size:
        return f"orientation {orientation}: the label map has the photo's size as stored, and is turned with it"
    if orientation >= 5 and size[0] != size[1]:
        return ""  # only upright does it fit
    return f"orientation {orientation}: the label map fits either way, and is taken to be upright already"


def _orientation_and_size(encoded: bytes) -> tuple[int, tuple[int, int]]:
    with Image.open(io.BytesIO(encoded)) as stored:
        if stored.format == "PNG" and not any(word in encoded for word in _EXIF_IN_PNG):
            return 1, stored.size  # looking for what is not there would decode it once more
        return orientation_of(stored), stored.size


# All rows of a split


class Survey:
    """The rows of one split, read one after the other; ``findings`` are those of single rows."""

    def __init__(self, dataset: SceneParse150, findings: Findings) -> None:
        self.dataset, self.split, self.findings = dataset, dataset.split, findings
        self.tally = Tally(dataset.label_rule)
        self.photos = np.zeros(len(dataset), np.uint64)
        self.label_maps = np.zeros(len(dataset), np.uint64)
        self.is_mixed = np.zeros(len(dataset), bool)  # of a label map: whether it holds several values
        self.sizes = np.zeros((len(dataset), 2), np.uint32)
        self.stored: Counter[int] = Counter()  # rows that hold a value, of those that the rule does not allow
        self.holders: dict[int, list[int]] = {}  # the first rows of every class
        self.palette: dict[int, Colour] = {}  # as the first row with an index has it
        self._key: RowsKey | None = RowsKey(dataset.label_rule)

    def run(self) -> Iterator[int]:
        """Read all rows, telling of each that it has been read, and keep the shares of the classes if none is bad."""
        dataset = self.dataset

        def read(item: tuple[int, tuple[bytes | None, bytes | None] | str]) -> Reading:
            row, files = item
            return Reading([("row", files)]) if isinstance(files, str) else read_row(dataset, row, files)

        for row, reading in enumerate(in_order(read, self._files())):
            self._add(row, reading)
            yield row
        if self._key is not None:
            keep_shares(self.tally.shares(), self._key)
        self._compare_sizes()
        self._compare_rows()

    def fault(self, kind: str, row: int, said: str) -> None:
        """Note a row at fault."""
        self.findings.add(kind, Fault(self.split, row, self.dataset.where(row), " ".join(said.split())))

    def _files(self) -> Iterator[tuple[int, tuple[bytes | None, bytes | None] | str]]:
        for row in range(len(self.dataset)):
            try:
                files = self.dataset.encoded(row)
            except (ValueError, OSError) as error:
                self._key = None
                yield row, str(error)
                continue
            if files[1] is None:
                self._key = None
            elif self._key is not None:
                self._key.add(files[1])
            yield row, files

    def _add(self, row: int, reading: Reading) -> None:
        for kind, said in reading.faults:
            self.fault(kind, row, said)
        self.sizes[row], self.photos[row], self.label_maps[row] = reading.size, reading.photo, reading.label_map
        if reading.histogram is None:
            self._key = None
            self.stored.update(value for value in reading.stored if value in self.stored or self._has_room)
            return
        self.tally.add(reading.histogram)
        if clash := _clash(self.palette, reading.palette):
            self.fault("palette", row, clash)
        self.palette = reading.palette | self.palette
        self.is_mixed[row] = np.count_nonzero(reading.histogram) > 1
        for k in _classes_in(reading.histogram, self.dataset.label_rule):
            rows = self.holders.setdefault(k, [])
            if len(rows) < _MOST_HOLDERS:
                rows.append(row)

    @property
    def _has_room(self) -> bool:
        return len(self.stored) < _MOST_STRAYS

    def _compare_sizes(self) -> None:
        known = self.sizes[self.sizes[:, 0] > 0].astype(np.float64)
        if len(known) < 2:
            return
        width, height = np.median(known, axis=0)
        usual = f"{width:g} x {height:g}"
        for row, (w, h) in enumerate(self.sizes.tolist()):
            if not w:
                continue
            area, shape = w * h / (width * height), max(w / h, h / w) / max(width / height, height / width)
            if not 1 / _TIMES_THE_AREA < area < _TIMES_THE_AREA or shape >= _TIMES_AS_LONG:
                self.fault("unlike", row, f"{w} x {h} pixels, where {usual} are usual")

    def _compare_rows(self) -> None:
        """Find photos that are there twice, and label maps that are there twice with different photos."""
        for row, first in _repeats(self.photos):
            other, maps = f"the same photo as {self.dataset.where(first)}", self.label_maps[[first, row]]
            if maps.all() and maps[0] != maps[1]:
                self.fault("contradicted", row, f"{other}, labelled otherwise")
            else:
                self.fault("duplicate", row, other)
        for row, first in _repeats(np.where(self.is_mixed, self.label_maps, np.uint64(0))):
            if self.photos[row] != self.photos[first]:
                self.fault("paired", row, f"the same label map as {self.dataset.where(first)}, for another photo")


def _repeats(marks: NDArray[np.uint64]) -> Iterator[tuple[int, int]]:
    """The places of marks that stand further in front already, and the first place of each; 0 is no mark."""
    _, firsts, which = np.unique(marks, return_index=True, return_inverse=True)
    for place in np.flatnonzero((firsts[which] != np.arange(len(marks))) & (marks > 0)).tolist():
        yield place, int(firsts[which[place]])


# What is only seen in all of it


def compare_splits(survey: Survey, other: Survey) -> None:
    """Find photos of a split that another one has, and whether its palette differs."""
    if clash := _clash(other.palette, survey.palette):
        survey.findings.say("palette", f"{survey.split}, beside {other.split}: {clash}")
    order = np.argsort(other.photos, kind="stable")
    for row in np.flatnonzero(np.isin(survey.photos, other.photos) & (survey.photos > 0)).tolist():
        place = order[np.searchsorted(other.photos, survey.photos[row], sorter=order)]
        survey.fault("shared", row, f"the same photo as {other.dataset.where(int(place))}, of {other.split}")


def _clash(one: Mapping[int, Colour], other: Mapping[int, Colour]) -> str:
    """Where two palettes give an index that both use different colours; nothing where they do not."""
    index = next((index for index in sorted(one.keys() & other.keys()) if one[index] != other[index]), None)
    return "" if index is None else f"palette index {index} is {one[index]} elsewhere and {other[index]} here"


def judge_classes(survey: Survey, labels: Understanding) -> None:
    """Find classes that never or hardly occur in a split, and labels that would fit better one class further."""
    shares, rule = survey.tally.shares(), labels.rule
    ignored = {rule.class_of(value) for value in rule.ignored}
    names = {k: name.strip() for k, name in labels.id2label.items() if k not in ignored}
    if not shares.rows or not any(shares.pixels):
        return
    if never := [name for k, name in names.items() if not shares.pixels[k]]:
        survey.findings.say("never", f"{survey.split}: {len(never)} of {len(names)}: {_some(never)}")
    for k, name in names.items():
        share, photos = shares.of_pixels[k], shares.photos[k]
        if photos and (share < _NEXT_TO_NOTHING or (photos == 1 and shares.rows >= _ENOUGH_ROWS)):
            held = f"{100 * share:.2g} % of the labelled pixels, in {photos} of {counted(shares.rows, 'photo')}"
            others = [survey.dataset.where(row) for row in survey.holders[k][1:]]
            survey.fault("rare", survey.holders[k][0], f"{name}: {held}{', as ' * bool(others)}{', '.join(others)}")
    if said := _shifted(survey, rule, names):
        survey.findings.say("shifted", f"{survey.split}: {said}")


def _shifted(survey: Survey, rule: LabelRule, names: dict[int, str]) -> str:
    """Why the values would make more sense as those of ids that begin at 1, or at 0; nothing if they would not."""
    if rule.colours or rule.values or rule.binary or len(names) < 2:
        return ""
    counts, last = survey.tally.pixels, rule.num_labels
    occurs = {value for value in range(last + 1) if counts[value] or survey.stored[value]}
    strays = {value for value in survey.stored if rule.meaning(value) is None}
    if rule.reduce_labels:
        share = counts[0] / max(1, counts.sum())
        if share > _MUCH_IGNORED and occurs == set(range(last)):
            return (
                f"{last}, which would be {names.get(last - 1)!r}, never occurs, and {share:.1%} of the pixels are 0, "
                "which is ignored: if ids begin at 0, give --no-reduce-labels"
            )
        return ""
    if 0 in occurs or not occurs >= set(range(1, last)):
        return ""
    if strays == {last}:
        return (
            f"0 never occurs and {last} does: if ids begin at 1, give --reduce-labels, which makes 1 {names.get(0)!r}"
        )
    if not strays and last > 2:
        return (
            f"0, which would be {names.get(0)!r}, never occurs, and all others do: if ids begin at 1, the names do not "
            "belong to them"
        )
    return ""


def _some(names: Sequence[str], most: int = 12) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
