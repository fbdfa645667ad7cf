"""Runs side by side: their curves over each other, the settings that differ, and the classes that gained or lost.

Everything is told against the first run. Lines differ in pattern as well as in colour. What makes two scores another
measure (data, size, views, classes) is said before any of them.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from segformer.pages.curves import NO_NUMBER, Chart, as_number, line_sample, noisy, readings, series_of
from segformer.pages.page import Html, asset, joined, render_page
from segformer.pages.record import RunRecord, headline, numbers_of, score_text
from segformer.pages.report import FILTER, drawn_charts, facts_list, nothing

MOST_RUNS = 6  # as many lines as can be told apart
_UNSAID, _UNUSED = "not recorded", "not used"
_ITS_OWN = ("output_dir",)  # settings that differ between any two runs
_SCORING = ("dataset", "eval_resolution", "resize_mode", "eval_scales", "eval_flip", "reduce_labels", "ignore_index")
_IN_WINDOWS = ("eval_window", "eval_stride")  # of --eval-resolution window
_HELD_OUT = ("split", "test_size", "seed")  # these choose the rows that are held out of the training's
_EVALUATING = {  # the settings that a run which trains nothing makes use of
    *("recipe", "split", "eval_split", "checkpoint", "image_size", "num_labels", "label_names", "binary_masks"),
    *("per_device_eval_batch_size", "amp", "compile", "device", "deterministic", "eval_only", *_SCORING),
    *_IN_WINDOWS,
}


def load_runs(folders: Sequence[Path]) -> dict[str, RunRecord]:
    """The runs by names that tell them apart. Raises ValueError for too many of them, or one that is named twice."""
    resolved = [folder.resolve() for folder in folders]
    if len(resolved) > MOST_RUNS:
        raise ValueError(
            f"{len(resolved)} runs; at most {MOST_RUNS} lines can be told apart, so compare fewer at a time"
        )
    for place, folder in enumerate(resolved):
        if folder in resolved[:place]:
            raise ValueError(f"{folders[place]} is named twice; a run is compared with others")
    return {name: RunRecord.load(folder) for name, folder in zip(_told_apart(resolved), resolved, strict=True)}


def _told_apart(folders: Sequence[Path]) -> list[str]:
    """The last parts of each path, as many as are needed for all to differ."""
    for length in range(1, max(len(folder.parts) for folder in folders)):
        names = ["/".join(folder.parts[-length:]) for folder in folders]
        if len(set(names)) == len(names):
            return names
    return [str(folder) for folder in folders]


def render_comparison(runs: Mapping[str, RunRecord]) -> Html:
    """The page of several runs, by name, the first of which the others are measured against."""
    last_step, charts = max(record.last_step for record in runs.values()), comparing_charts(runs)
    title = f"Comparison of {len(runs)} runs"
    headlines = {name: headline(record) for name, record in runs.items()}
    columns = list(dict.fromkeys(what for numbers in headlines.values() for what in numbers))
    body = asset("comparison.html").fill(
        title=title,
        warning=_warning(list(runs.values())),
        headings=joined(_HEADING.fill(text=what) for what in columns),
        runs=joined(_run_row(k, name, runs, headlines[name], columns) for k, name in enumerate(runs)),
        charts=drawn_charts(charts, last_step) if charts else nothing("Nothing has been logged yet."),
        settings=_settings(runs),
        classes=_classes(runs),
        about=joined(_ABOUT.fill(name=name, facts=facts_list(record)) for name, record in runs.items()),
    )
    curves = {chart.key: readings(chart) for chart in charts}
    data = {"lastStep": last_step, "charts": curves, "sampleSteps": [], "shown": -1, "classes": {}}
    return render_page(title, body, ["report.css", "comparison.css"], ["report.js"], data)


_HEADING = Html('<th scope="col">{text}</th>')
_CELL = Html("<td>{text}</td>")
_ROW = Html('<tr><th scope="row">{head}</th>{cells}</tr>')
_RUN = Html("{line}{name}")
_CHANGED = Html("{text} <small>{change}</small>")
_ABOUT = Html('<h3>{name}</h3>\n<dl class="facts">\n{facts}\n</dl>')
_WARNING = Html('<p class="warning" role="note">These scores may not be comparable. The runs differ in {what}.</p>')


def _run_row(
    place: int, name: str, runs: Mapping[str, RunRecord], told: Mapping[str, str], columns: Sequence[str]
) -> Html:
    """A run with the line it is drawn in, its numbers, and by how much its mean IoU differs from the first one's."""
    first, this = (as_number(record.results.get("eval_mean_iou")) for record in (next(iter(runs.values())), runs[name]))
    texts: dict[str, str] = {what: told.get(what, NO_NUMBER) for what in columns}
    if place and math.isfinite(this - first):
        texts["mean IoU"] = _CHANGED.fill(text=texts["mean IoU"], change=change_text(this - first))
    cells = joined(_CELL.fill(text=text) for text in texts.values())
    return _ROW.fill(head=_RUN.fill(line=line_sample(_kind(place)), name=name), cells=cells)


def _kind(place: int) -> str:
    return f"run-{place + 1}"


def change_text(change: float) -> str:
    """How far a score rose or fell, in three digits and with its sign."""
    text = f"{change:+.3f}"
    return "0.000" if float(text) == 0 else text.replace("-", "\N{MINUS SIGN}")


# ------------------------------------------------------------------------------------------------------ comparability


def _warning(records: Sequence[RunRecord]) -> Html:
    measures = [_measure(record) for record in records]
    differing = [what for what in measures[0] if any(measure[what] != measures[0][what] for measure in measures)]
    return _WARNING.fill(what=", ".join(differing)) if differing else Html("")


def _measure(record: RunRecord) -> dict[str, Any]:
    """What a score depends on beside the model."""
    about, settings = record.about, record.about.settings
    in_windows = settings.get("eval_resolution") == "window"
    sizes = about.image_size if settings.get("eval_resolution") == "processed" else None
    return {
        **{name: settings.get(name) for name in _SCORING},
        **{name: settings.get(name) if in_windows else None for name in _IN_WINDOWS},
        "resize_mode": about.resize_mode,  # as it was, where the settings leave it to the checkpoint
        "the rows evaluated": about.scored_rows or [settings.get(name) for name in _HELD_OUT],
        "what labels mean": about.labels or settings.get("binary_masks"),
        "the number of images evaluated": about.eval_images,
        "the size that labels are resized to": sizes,
        "their classes": list(record.class_names),
    }


# ------------------------------------------------------------------------------------------------- curves, settings


def comparing_charts(runs: Mapping[str, RunRecord]) -> list[Chart]:
    """The charts that any run has something for, a line for each run; where losses are many, their running mean."""
    titles = {
        "loss": "Training loss",
        "eval_loss": "Evaluation loss",
        "eval_mean_iou": "Mean IoU",
        "learning_rate": "Learning rate",
    }
    charts = []
    for key, title in titles.items():
        lines = []
        for place, (name, record) in enumerate(runs.items()):
            history = () if record.is_evaluation else record.history
            line = noisy(history, key, name)[-1] if key == "loss" else series_of(history, key, name, "")
            if np.isfinite(line.values).any():
                lines.append(line._replace(name=name, kind=_kind(place)))
        if lines:
            charts.append(Chart(key, title, lines, may_be_logarithmic="loss" in key))
    return charts


_SETTINGS = Html("""<div class="wide"><table class="differing">
<thead><tr><th scope="col">Setting</th>{runs}</tr></thead>
<tbody>
{rows}
</tbody>
</table></div>""")


def _settings(runs: Mapping[str, RunRecord]) -> Html:
    """The settings that are not the same in all runs."""
    settings = [record.about.settings for record in runs.values()]
    rows = []
    for name in dict.fromkeys(name for each in settings for name in each if name not in _ITS_OWN):
        values = [
            _UNUSED if record.is_evaluation and name not in _EVALUATING else record.about.settings.get(name, _UNSAID)
            for record in runs.values()
        ]
        used = [value for value in values if value != _UNUSED]
        if any(value != used[0] for value in used):
            texts = [NO_NUMBER if value is None else str(value) for value in values]
            rows.append(_ROW.fill(head=name, cells=joined(_CELL.fill(text=text) for text in texts)))
    if not rows:
        return nothing("All settings are the same." if any(settings) else "No settings are recorded.")
    return _SETTINGS.fill(runs=joined(_HEADING.fill(text=name) for name in runs), rows=joined(rows))


# ------------------------------------------------------------------------------------------------------------ classes

_CLASSES = Html("""<ul class="soft tally">
{tallies}
</ul>
{filter}
<div class="wide"><table class="classes changes">
<caption class="unseen">IoU of every class in the first run, and how far it rose or fell in the others</caption>
<thead><tr><th scope="col" data-sort="name">Class</th><th scope="col" data-sort="iou">IoU in {first}</th>\
{headings}</tr></thead>
<tbody>
{rows}
</tbody>
</table></div>""")
_TALLY = Html("<li>{name}: {gained} gained, {lost} lost against {first}</li>")
_SORTED = Html('<th scope="col" data-sort="{key}"{sorted}>{name}</th>')
_CLASS = Html("""<tr data-name="{name}" data-iou="{iou}"{changes}><th scope="row"><span>{name}</span></th>\
<td>{iou_text}</td>{cells}</tr>""")
_CHANGE = Html(' data-{key}="{value}"')
_CHANGE_CELL = Html('<td class="{kind}">{text}</td>')


def _classes(runs: Mapping[str, RunRecord]) -> Html:
    """The classes that occur, those that gained most in the second run first."""
    (first, reference), *others = runs.items()
    before, after = _scores_by_class(reference), [_scores_by_class(record) for _, record in others]
    changes = {each: [round(scores.get(each, math.nan) - iou, 3) for scores in after] for each, iou in before.items()}
    changes = {each: told for each, told in changes.items() if any(map(math.isfinite, told))}
    if not changes:
        return nothing(f"No class was scored both in {first} and in another run.")
    columns = dict(zip((name for name, _ in others), zip(*changes.values(), strict=True), strict=True))
    return _CLASSES.fill(
        first=first,
        tallies=joined(_tally(name, first, column) for name, column in columns.items()),
        filter=FILTER,
        headings=joined(
            _SORTED.fill(key=_kind(1 + k), name=name, sorted=Html("" if k else ' aria-sort="descending"'))
            for k, name in enumerate(columns)
        ),
        rows=joined(
            _class_row(name, before[name, nth], changes[name, nth])
            for name, nth in sorted(changes, key=lambda each: -_sortable(changes[each][0]))
        ),
    )


def _scores_by_class(record: RunRecord) -> dict[tuple[str, int], float]:
    """The IoU of the classes that occur; of those of one name each is told by how many came before it."""
    ious, shares = (numbers_of(record.results, f"eval_per_category_{what}") for what in ("iou", "share"))
    seen: Counter[str] = Counter()
    scores = {}
    for k, (name, iou) in enumerate(zip(record.class_names, ious, strict=False)):
        if math.isfinite(iou) and (k >= len(shares) or shares[k] > 0):
            scores[name, seen[name]] = iou
        seen[name] += 1
    return scores


def _tally(name: str, first: str, changes: Sequence[float]) -> Html:
    gained, lost = (sum(sign * change > 0 for change in changes) for sign in (1, -1))
    return _TALLY.fill(name=name, first=first, gained=gained, lost=lost)


def _class_row(name: str, iou: float, changes: Sequence[float]) -> Html:
    return _CLASS.fill(
        name=name,
        iou=iou,
        iou_text=score_text(iou),
        changes=joined(_CHANGE.fill(key=_kind(1 + k), value=_sortable(change)) for k, change in enumerate(changes)),
        cells=joined(
            _CHANGE_CELL.fill(
                kind="gained" if change > 0 else "lost" if change < 0 else "",
                text=change_text(change) if math.isfinite(change) else NO_NUMBER,
            )
            for change in changes
        ),
    )


def _sortable(change: float) -> float:
    """A change, or less than any for what is no number, which comes last."""
    return change if math.isfinite(change) else -2.0
