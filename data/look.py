"""Look at a dataset before a model is trained on it: a table, a page to look at, and what looks wrong.

    python -m data.look DATASET --html look.html     with the flags of train.py that say what data is and means

The rows are opened and read as train.py does it, all of them, and none that is at fault stops it: the faults are listed
together. The exit status is 1 if training would stop on one of them.
"""

from __future__ import annotations

import argparse
import logging
import sys
import textwrap
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from data.classes import IGNORE_INDEX
from data.decoding import StoredMap, decode_pair
from data.labels import LabelRule, code_of
from data.parts import hold_out, open_splits, said_of
from data.sceneparse import SceneParse150
from data.survey import KINDS, Fault, Findings, Survey, compare_splits, judge_classes
from data.understanding import FIRST_ROWS, Flags, Understanding, understand, understand_alike
from data.words import noun
from segformer.console import FlagParser, one_line, speak_plainly
from segformer.files import write_atomically
from segformer.pages.look_page import STRAY, Example, LookedAt, Problem, SplitShares, render_look, share_text
from segformer.photos import decode_photo
from segformer.training.arguments import settle
from segformer.training.faults import explain
from segformer.training.recipes import GROUPS, RECIPES, TrainConfig, configure
from segformer.training.settings import add_flags

_GROUPS = ("dataset", "num_labels")  # of train.py's flags, by their first fields: what is data, and what it means
_MOST_SIZES = 3  # that are told
_WIDTH = 80  # columns of the terminal
_MOST_TOLD = 5  # rows of one kind on the terminal
_SHOWN, _SHOWN_AT_FAULT = 8, 3  # photos of a split on the page, and of a kind of fault

# -------------------------------------------------------------------------------------------------------------- rows


class SomeRows(SceneParse150):
    """Some rows of a dataset."""

    def __init__(self, dataset: SceneParse150, rows: Sequence[int]) -> None:
        self.__dict__.update(dataset.__dict__)
        self._rows = [dataset._rows[row] for row in rows]


@dataclass
class Looked:
    """The splits as they were read, what their label maps mean, and what is wrong."""

    surveys: list[Survey]
    labels: Understanding
    findings: Findings

    @property
    def stops(self) -> bool:
        """Whether training would stop."""
        return any(finding.stops for finding in self.findings.values())


def look(config: TrainConfig) -> Looked:
    """Read all rows that a run with these settings would train on or score.

    Raises ValueError and OSError for what cannot even be opened.
    """
    splits, findings = [split for split in open_splits(config, decode_photo) if split is not None], Findings()
    if len(splits) == 1:
        try:
            hold_out(splits[0], config)
        except ValueError as error:
            findings.say("start", str(error))
    labels, refusal, is_guess = understand_most(splits[0], said_of(config))
    if not refusal:
        for split in splits[1:]:
            with suppress(ValueError, OSError):  # the rows at fault are told of below
                labels = understand_alike(split.with_rule(labels.rule), labels)
    by_numbers = replace(labels.rule, palette=())  # every palette that differs is told of, not refused
    surveys = [Survey(split.with_rule(by_numbers), findings) for split in splits]
    with tqdm(None, "looking", sum(map(len, splits)), unit="row", leave=False, disable=None) as bar:
        for survey in surveys:
            for _ in survey.run():
                bar.update()
    if refusal and (is_guess or not any(finding.stops for finding in findings.values())):
        findings.say("start", refusal)
    for number, survey in enumerate(surveys):
        for other in surveys[:number]:
            compare_splits(survey, other)
        if not is_guess:
            judge_classes(survey, labels)
    return Looked(surveys, labels, findings)


def understand_most(dataset: SceneParse150, flags: Flags) -> tuple[Understanding, str, bool]:
    """What label maps mean, with what training would say against it, and whether values stand for themselves for now.

    Rows at fault are left out of the first rows until the others make sense: those with values that few others hold
    go first.
    """
    try:
        return understand(dataset, flags), "", False
    except (ValueError, OSError) as error:
        refusal = str(error)
    rows = _by_commonness(dataset, flags.binary)
    for count in range(len(rows), len(rows) // 2, -1):
        try:
            return understand(SomeRows(dataset, sorted(rows[:count])), flags), refusal, False
        except (ValueError, OSError):
            continue
    names = {k: f"value {k}" for k in range(IGNORE_INDEX)}
    return Understanding(LabelRule(IGNORE_INDEX, False, IGNORE_INDEX), names), refusal, True


def _by_commonness(dataset: SceneParse150, binary: bool) -> list[int]:
    """The first rows whose label maps decode, those in front whose values most others hold too."""
    held: dict[int, set[int]] = {}
    for row in range(min(FIRST_ROWS, len(dataset))):
        try:
            encoded = dataset.encoded(row)[1]
            if encoded is not None:
                stored = StoredMap(encoded, dataset.where(row), binary)
                codes = stored.colours() if stored.is_coloured else stored.values()
                held[row] = set(np.unique(codes).tolist())
        except (ValueError, OSError):
            continue
    rows_with = Counter(value for values in held.values() for value in values)
    return sorted(held, key=lambda row: -min(rows_with[value] for value in held[row]))


# ------------------------------------------------------------------------------------------------------- what is told


def table_of(looked: Looked) -> str:
    """Rows, sizes and ignored pixels of every split, the classes with their shares, and what looks wrong."""
    warnings = (f"training will warn: {warning}" for warning in looked.labels.warnings)
    lines = [looked.surveys[0].dataset.source, *looked.labels.lines[1:], *warnings, ""]
    lines += [f"{'':<24}{'rows':>10}{'ignored':>10}  width x height"]
    for survey in looked.surveys:
        ignored = share_text(survey.tally.shares().ignored_share)
        lines.append(f"{survey.split:<24.24}{len(survey.dataset):>10,}{ignored:>10}  {sizes_of(survey)}")
    heads = "".join(f"{survey.split:>20.18}" for survey in looked.surveys)
    lines += ["", f"{'':<24}{heads}", f"{'class':<24}{'pixels    photos'.rjust(20) * len(looked.surveys)}"]
    shares = shares_of(looked)
    names = names_of(looked)
    occurring = [k for k in names if any(split.of_photos[k] for split in shares)]
    for k in sorted(occurring, key=lambda k: -shares[0].of_pixels[k]):
        cells = (f"{share_text(s.of_pixels[k]):>10}{share_text(s.of_photos[k]):>10}" for s in shares)
        lines.append(f"{names[k]:<24.24}{''.join(cells)}")
    if nowhere := ", ".join(name for k, name in names.items() if k not in occurring):
        lines += textwrap.wrap(f"in no split: {nowhere}", _WIDTH, subsequent_indent="  ")
    return "\n".join([*lines, *_problem_lines(looked)])


def _problem_lines(looked: Looked) -> list[str]:
    lines = []
    for finding in looked.findings.ordered():
        rows = f": {finding.counted}" if finding.count else ""
        weight = "stops training" if finding.stops else "worth a look"
        said = (f"  {one_line(text)}" for text in finding.said)
        lines += ["", f"{KINDS[finding.kind].title}{rows} ({weight})", *said]
        told = (short(looked, fault) for fault in finding.faults[:_MOST_TOLD])
        lines += [f"  {said}" if where in said else f"  {where}: {said}" for where, said in told]
        if finding.count > _MOST_TOLD:
            lines.append(f"  ... {finding.count - _MOST_TOLD:,} more")
    return lines or ["", "nothing looks wrong"]


def short(looked: Looked, fault: Fault) -> tuple[str, str]:
    """Where a row at fault lies and what is wrong, without the folder of the data, which is told once."""
    folder = f"{looked.surveys[0].dataset.source.rstrip('/')}/"
    told = (text if folder == "./" else text.replace(folder, "") for text in (fault.where, fault.said))
    where, said = map(one_line, told)
    return where, said


def sizes_of(survey: Survey) -> str:
    """The commonest sizes, and the range of them all where there are others."""
    found, counts = np.unique(survey.sizes[survey.sizes[:, 0] > 0], axis=0, return_counts=True)
    if not len(found):
        return "none that decodes"
    common = [found[i] for i in np.argsort(-counts, kind="stable")[:_MOST_SIZES]]
    told = ", ".join(f"{width} x {height}" for width, height in common)
    if len(found) <= _MOST_SIZES:
        return told
    areas = found.prod(axis=1, dtype=np.int64)
    (w, h), (wide, high) = found[areas.argmin()], found[areas.argmax()]
    return f"{len(found)} sizes, {w} x {h} to {wide} x {high}, most often {common[0][0]} x {common[0][1]}"


def names_of(looked: Looked) -> dict[int, str]:
    """The classes to tell: those with a name, and of values that stand for themselves those that occur."""
    rule, names = looked.labels.rule, {k: one_line(name) for k, name in looked.labels.id2label.items()}
    ignored = {rule.class_of(value) for value in rule.ignored}
    if rule.num_labels < IGNORE_INDEX:
        return {k: name for k, name in names.items() if k not in ignored}
    occurring = {k for split in shares_of(looked) for k, share in enumerate(split.of_photos) if share}
    return {k: names[k] for k in sorted(occurring)}


def shares_of(looked: Looked) -> list[SplitShares]:
    """The shares of all classes in every split."""
    counted = ((survey.split, survey.tally.shares()) for survey in looked.surveys)
    return [SplitShares(split, shares.of_pixels, shares.of_photos) for split, shares in counted]


# ---------------------------------------------------------------------------------------------------------- the page


def page_of(looked: Looked, seconds: float) -> LookedAt:
    """What the page shows; of the rows that it shows, photos and label maps are read once more."""
    names, labels = names_of(looked), looked.labels
    first = looked.surveys[0]
    count, stops = len(looked.findings), sum(finding.stops for finding in looked.findings.values())
    kinds = noun(count, "kind") + " of fault" + (f", {stops} of which would stop training" if stops else "")
    headline = {kinds: f"{count}"}
    photos = {survey.split: len(survey.dataset) for survey in looked.surveys}
    headline |= {f"{noun(count, 'photo')} in {split}": f"{count:,}" for split, count in photos.items()}
    headline |= {noun(len(names), "class"): f"{len(names)}", "ignored": share_text(first.tally.shares().ignored_share)}
    facts = {"Data": first.dataset.source, "Sizes": "; ".join(f"{s.split}: {sizes_of(s)}" for s in looked.surveys)}
    facts |= {"Labels": "; ".join(labels.lines[1:]) or "values stand for themselves, for now"}
    facts |= {"At start": f"training will warn: {'; '.join(labels.warnings)}"} if labels.warnings else {}
    facts |= {"Took": f"{seconds:.1f} seconds"}
    return LookedAt(
        Path(first.dataset.source).name or first.dataset.source,
        headline,
        facts,
        [names.get(k, "") for k in range(max(names, default=-1) + 1)],
        shares_of(looked),
        problems_of(looked),
        {survey.split: [example(survey, row) for row in spread(survey)] for survey in looked.surveys},
    )


def problems_of(looked: Looked) -> list[Problem]:
    """What looks wrong, each kind with its first rows and pictures of them."""
    by_split = {survey.split: survey for survey in looked.surveys}
    problems = []
    for finding in looked.findings.ordered():
        kind, faults = KINDS[finding.kind], finding.faults
        shown = [fault for fault in faults if finding.kind != "row"][:_SHOWN_AT_FAULT]
        examples = [example(by_split[fault.split], fault.row, fault.split) for fault in shown]
        rows = [short(looked, fault) for fault in faults]
        count = finding.counted + (f", the first {len(rows)}" if len(rows) < finding.count else "")
        problems.append(Problem(kind.title, kind.advice, kind.stops, finding.said, count, rows, examples))
    return problems


def spread(survey: Survey) -> list[int]:
    """A few rows, evenly over the split."""
    last = len(survey.dataset) - 1
    return sorted({round(place) for place in np.linspace(0, last, min(_SHOWN, last + 1)).tolist()})


def example(survey: Survey, row: int, said: str = "") -> Example:
    """A row to be shown, as training sees it or, where it is at fault, as far as it decodes."""
    dataset, where = survey.dataset, survey.dataset.where(row)
    try:
        name, (image, annotation) = dataset.name(row), dataset.encoded(row)
        try:
            photo, label_map = decode_pair(image, annotation, where, dataset.label_rule, dataset.open_photo)
            return Example(name, photo, None if label_map is None else _classes_of(label_map, dataset.label_rule), said)
        except (ValueError, OSError, MemoryError):
            return Example(name, _photo_alone(image), _map_alone(dataset, annotation), said)
    except (ValueError, OSError):
        return Example(where, None, None, said)


def _classes_of(label_map: Image.Image, rule: LabelRule) -> NDArray[np.uint8]:
    return np.array([rule.class_of(raw) for raw in range(256)], np.uint8)[np.asarray(label_map)]


def _photo_alone(image: bytes | None) -> Image.Image | None:
    try:
        return decode_photo(image or b"", "the photo")
    except (ValueError, OSError, MemoryError):
        return None


def _map_alone(dataset: SceneParse150, annotation: bytes | None) -> NDArray[np.uint8] | None:
    """The classes of a label map, and where it holds what no class has."""
    rule = dataset.label_rule
    try:
        stored = StoredMap(annotation or b"", "the row", rule.binary)
        codes = stored.colours() if rule.colours or stored.is_coloured else stored.values()
    except (ValueError, OSError, MemoryError):
        return None
    by_code = {code_of(colour): raw for colour, raw in rule.colours}
    found, places = np.unique(codes, return_inverse=True)
    raw = [by_code.get(code) if rule.colours else rule.meaning(code) for code in found.tolist()]
    meanings = [STRAY if each is None else rule.class_of(each) for each in raw]
    return np.array(meanings, np.uint8)[places].reshape(codes.shape)


# ------------------------------------------------------------------------------------------------------- the command


def parse_arguments(arguments: Sequence[str] | None = None) -> tuple[TrainConfig, Path | None]:
    """The settings of the run that would come of it, and where to write the page."""
    parser = FlagParser(
        prog="python -m data.look",
        usage="python -m data.look DATASET [--split SPLIT] [--html FILE | --no-html] [flags]",
        description="Look at a dataset before a model is trained on it; the flags are those of train.py.",
        argument_default=argparse.SUPPRESS,
    )
    parser.add_argument("dataset", metavar="DATASET", help=_FIELDS["dataset"].metadata["help"])
    pages = parser.add_mutually_exclusive_group()
    pages.add_argument("--html", metavar="FILE", help="the page to write (default: look.html)")
    pages.add_argument("--no-html", action="store_const", const=None, dest="html", help="write no page")
    parser.add_argument("--recipe", choices=tuple(RECIPES), help="the settings to start from, as in train.py")
    add_flags(parser, TrainConfig, _other_flags(), configure("own"), {first: GROUPS[first] for first in _GROUPS})
    given = vars(parser.parse_args(arguments))
    html = given.pop("html", "look.html")
    page = None if html is None else Path(html)
    if page is not None and (page.is_dir() or not page.parent.is_dir()):  # better now than after all rows
        parser.error(f"--html {page} cannot be written; name a file in a folder that is there")
    try:
        return settle(given), page
    except (ValueError, OSError) as error:
        parser.error(str(error))


_FIELDS = {each.name: each for each in fields(TrainConfig)}


def _other_flags() -> list[str]:
    """The settings that are of no matter here, and the dataset, which stands without a flag."""
    group, others = "", ["dataset"]
    for name in _FIELDS:
        group = name if name in GROUPS else group
        if group not in _GROUPS:
            others.append(name)
    return others


def main(arguments: Sequence[str] | None = None) -> int:
    """Run from the command line; 1 if training would stop on what was found, or if nothing can be read."""
    speak_plainly()
    config, page = parse_arguments(arguments)
    started = time.perf_counter()
    decoding = logging.getLogger("data.decoding")
    heard = decoding.level
    decoding.setLevel(logging.ERROR)  # what it says of one row stands in the table of all
    try:
        looked = look(config)
        print(table_of(looked))
        if page is not None:
            write_atomically(page, render_look(page_of(looked, time.perf_counter() - started)))
            print(f"\n{page} shows it")
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except Exception as error:
        told = explain(error)
        if told is None:
            raise
        print(f"error: {told}", file=sys.stderr)
        return 1
    finally:
        decoding.setLevel(heard)
    return int(looked.stops)


if __name__ == "__main__":
    sys.exit(main())
