"""The report of a run, of a training or of an evaluation: one page, made from what lies in its folder and nothing else.

    python -m segformer.pages runs/toy-1

writes ``report.html`` there, at any time: while the run goes on, when it has ended, or when it was broken off. The same
files give the same page, byte for byte; a piece that is missing or half written leaves its place empty.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from segformer.console import counted
from segformer.files import write_atomically
from segformer.pages.classes import Column, class_table
from segformer.pages.confusion import confusion_section
from segformer.pages.curves import NO_NUMBER, Chart, Series, as_number, draw, noisy, readings, series_of
from segformer.pages.page import (
    Html,
    asset,
    colour_code,
    distinct,
    joined,
    label_map_uri,
    photo_uri,
    png_uri,
    render_page,
    swatch,
)
from segformer.pages.record import RunRecord, facts, headline, names_of_classes, numbers_of, percent_text, score_text
from segformer.pages.samples import NO_CLASS, ReportSample, Shown, save_shown
from segformer.pictures import palette
from segformer.training.description import RunDescription

REPORT_NAME = "report.html"
_MOST_TABLE_ROWS = 200
_MOST_KEYS = 12  # classes named under a sample
_MARKS = bytes((0, 0, 0, 217, 72, 34, 128, 128, 128))  # right, wrong, nothing labelled
_MARKS_OPACITY = bytes((0, 255, 110))

logger = logging.getLogger(__name__)


def build_report(output_dir: Path) -> Path:
    """Write the report of a run from the files in its folder, replacing the one before at once; return its path."""
    path = output_dir / REPORT_NAME
    write_atomically(path, render_report(RunRecord.load(output_dir)))
    return path


def refresh_report(output_dir: Path, step: int, shown: Sequence[Shown], num_labels: int) -> None:
    """Add what the model makes of a few samples after a step to the report, which no run ends for."""
    try:
        names = names_of_classes(output_dir, RunDescription.load(output_dir), num_labels)[:num_labels]
        save_shown(output_dir, step, shown, names, palette(num_labels, names))
        build_report(output_dir)
    except (OSError, ValueError) as error:
        logger.warning("cannot write the report: %s", error)


def render_report(record: RunRecord) -> Html:
    """The page that tells a run."""
    kind = "Evaluation report" if record.is_evaluation else "Training report"
    colours = distinct(palette(len(record.class_names), record.class_names))
    charts = [] if record.is_evaluation else charts_of(record.history)
    steps = sorted({step for sample in record.samples for step in sample.predictions})
    scored_step = record.results.get("step")
    shown = steps.index(scored_step) if scored_step in steps else len(steps) - 1
    body = asset("report.html").fill(
        kicker=kind,
        title=record.title,
        headline=joined(
            _HEADLINE.fill(name=name.removesuffix("s") if value == "1" else name, value=value)
            for name, value in headline(record).items()
        ),
        facts=facts_list(record),
        curves=_curves(record, charts),
        samples=_samples(record, steps, shown, colours),
        classes=_classes(record.results, record.class_names, colours),
        confusion=Html("")
        if record.confusion is None
        else confusion_section(record.confusion, record.class_names, colours),
        settings=_settings(record.about.settings),
    )
    data = {
        "lastStep": record.last_step,
        "charts": {chart.key: readings(chart) for chart in charts},
        "sampleSteps": steps,
        "shown": shown,
        "classes": {colour_code(colours[k]): name for k, name in enumerate(record.class_names)},
    }
    return render_page(f"{record.title}: {kind.lower()}", body, ["report.css"], ["report.js"], data)


_HEADLINE = Html("<div><dd>{value}</dd><dt>{name}</dt></div>")
_FACT = Html("<div><dt>{name}</dt><dd>{value}</dd></div>")
_NOTHING = Html('<p class="nothing">{text}</p>')
_CELL = Html("<td>{text}</td>")
_ROW = Html('<tr><th scope="row">{head}</th>{cells}</tr>')


def nothing(text: str) -> Html:
    """A line in place of what is not there."""
    return _NOTHING.fill(text=text)


def facts_list(record: RunRecord) -> Html:
    """What the numbers of a run are about, as the items of a list."""
    return joined(_FACT.fill(name=name, value=value) for name, value in facts(record).items())


_CURVES = Html("""<section aria-labelledby="curves">
<h2 id="curves">Curves</h2>
{charts}
{evaluations}
</section>""")
_CHARTS = Html("""<p class="hint" hidden>Point at a curve, tap it, or use the arrow keys to read all at one step.</p>
<div class="charts">
{charts}
</div>""")


def _curves(record: RunRecord, charts: Sequence[Chart]) -> Html:
    """What happened over the steps of a run; nothing for one that made none."""
    if record.is_evaluation:
        return Html("")
    drawn = drawn_charts(charts, record.last_step) if charts else nothing("Nothing has been logged yet.")
    return _CURVES.fill(charts=drawn, evaluations=_evaluations(record.evaluations))


def drawn_charts(charts: Sequence[Chart], last_step: int) -> Html:
    """The charts beside each other, with a word on how they are read."""
    return _CHARTS.fill(charts=joined(draw(chart, last_step) for chart in charts))


def charts_of(history: Sequence[Mapping[str, Any]]) -> list[Chart]:
    """The charts that the log has something for."""
    loss = [*noisy(history, "loss", "training"), series_of(history, "eval_loss", "evaluation", "evaluation")]
    scores = [
        series_of(history, "eval_mean_iou", "mean IoU", "evaluation"),
        series_of(history, "eval_overall_accuracy", "pixel accuracy", "second"),
    ]
    charts: list[tuple[str, str, list[Series], bool]] = [
        ("loss", "Loss", loss, True),
        ("scores", "Scores", scores, False),
        ("rate", "Learning rate", [series_of(history, "learning_rate", "learning rate", "training")], False),
        ("norm", "Gradient norm", noisy(history, "grad_norm", "before clipping"), True),
    ]
    told = []
    for key, title, curves, may_be_logarithmic in charts:
        series = [curve for curve in curves if np.isfinite(curve.values).any()]
        if series:
            told.append(Chart(key, title, series, may_be_logarithmic))
    return told


_EVALUATIONS = Html("""<details>
<summary>{count} as a table</summary>
<div class="wide"><table class="numbers">
<thead><tr><th scope="col">Step</th><th scope="col">Epoch</th><th scope="col">Loss</th><th scope="col">Mean IoU</th>\
<th scope="col">Mean accuracy</th><th scope="col">Pixel accuracy</th></tr></thead>
<tbody>
{rows}
</tbody>
</table></div>
</details>""")
_EVALUATION_KEYS = ("eval_loss", "eval_mean_iou", "eval_mean_accuracy", "eval_overall_accuracy")


def _evaluations(entries: Sequence[Mapping[str, Any]]) -> Html:
    """The evaluations as a table, evenly thinned if they are many."""
    if not entries:
        return Html("")
    shown = np.unique(np.linspace(0, len(entries) - 1, min(len(entries), _MOST_TABLE_ROWS)).round().astype(int))
    rows = []
    for entry in (entries[k] for k in shown):
        epoch = as_number(entry.get("epoch"))
        texts = [
            f"{epoch:.2f}" if math.isfinite(epoch) else NO_NUMBER,
            *(score_text(as_number(entry.get(key))) for key in _EVALUATION_KEYS),
        ]
        rows.append(_ROW.fill(head=f"{entry['step']:,}", cells=joined(_CELL.fill(text=text) for text in texts)))
    count = counted(len(entries), "evaluation")
    count = count if len(shown) == len(entries) else f"{len(shown)} of {count}"
    return _EVALUATIONS.fill(count=count, rows=joined(rows))


_SETTINGS = Html("""<section aria-labelledby="settings">
<h2 id="settings">Settings</h2>
<details>
<summary>Every setting of this run</summary>
<div class="wide"><table class="settings">
<tbody>
{rows}
</tbody>
</table></div>
</details>
</section>""")


def _settings(settings: Mapping[str, Any]) -> Html:
    rows = [
        _ROW.fill(head=str(name), cells=_CELL.fill(text=NO_NUMBER if value is None else str(value)))
        for name, value in settings.items()
    ]
    return _SETTINGS.fill(rows=joined(rows)) if rows else Html("")


# ----------------------------------------------------------------------------------------------------------- samples

_SAMPLES = Html("""<p class="soft">Mistakes are red, unlabelled pixels grey.\
<span class="hint" hidden> Point at a picture, tap it, or use the arrow keys to see its classes.</span></p>
{time}
{samples}""")
_TIME = Html("""<div class="control time" hidden>
<button type="button" id="play">Play</button>
<label for="time">Step</label>
<input type="range" id="time" min="0" max="{most}" value="0" step="1">
<output for="time" id="shown-step">{step}</output>
</div>""")
_SAMPLE = Html("""<article class="sample" style="--shape:{width}/{height}">
<h3>{name}</h3>
<div class="pictures">
<figure><div class="picture"><img class="photo" src="{photo}" alt="Photo {name}"></div>
<figcaption>Photo</figcaption></figure>
<figure><div class="picture"><img class="truth" src="{truth}" alt="Truth: {classes}"></div>
<figcaption>Truth</figcaption></figure>
{predictions}
</div>
<p class="under" aria-live="polite"></p>
<ul class="key">
{key}
</ul>
</article>""")
_PREDICTION = Html("""<figure data-step="{step}"{hidden}><div class="picture">\
<img class="prediction" src="{prediction}" alt="Prediction{after}, {right}"></div>
<figcaption>Prediction <small>{when}</small></figcaption></figure>
<figure data-step="{step}"{hidden}><div class="picture">\
<img class="mistakes" src="{mistakes}" alt="Where the prediction{after} differs from the truth"></div>
<figcaption>Mistakes <small>{right}</small></figcaption></figure>""")
_KEY = Html("<li>{swatch}{name}</li>")
_MORE = Html("<li>and {count} more</li>")


def _samples(record: RunRecord, steps: Sequence[int], shown: int, colours: NDArray[np.uint8]) -> Html:
    if not record.samples:
        return nothing("No samples have been saved yet.")
    step = steps[shown] if steps else None
    return _SAMPLES.fill(
        time=_TIME.fill(most=len(steps) - 1, step=f"{step:,}") if len(steps) > 1 else Html(""),
        samples=joined(_sample(record, sample, step, colours) for sample in record.samples),
    )


def _sample(record: RunRecord, sample: ReportSample, shown: int | None, colours: NDArray[np.uint8]) -> Html:
    class_names, predictions = record.class_names, sample.predictions
    present = _largest_first(
        [sample.truth, *(predictions[step] for step in sorted(predictions, key=lambda step: step != shown))]
    )
    present = [k for k in present if k < len(class_names)]
    key = [_KEY.fill(swatch=swatch(colours[k]), name=class_names[k]) for k in present[:_MOST_KEYS]]
    if len(present) > _MOST_KEYS:
        key.append(_MORE.fill(count=len(present) - _MOST_KEYS))
    named = [class_names[k] for k in _largest_first([sample.truth]) if k < len(class_names)]
    return _SAMPLE.fill(
        width=sample.photo.width,
        height=sample.photo.height,
        name=sample.name,
        photo=photo_uri(sample.photo),
        truth=label_map_uri(sample.truth, colours),
        classes=", ".join(named[:_MOST_KEYS]) or "nothing labelled",
        predictions=joined(
            _PREDICTION.fill(
                step=step,
                after="" if record.is_evaluation else f" after step {step}",
                when="" if record.is_evaluation else f"after step {step:,}",
                hidden=Html("" if step == shown else " hidden"),
                prediction=label_map_uri(prediction, colours),
                mistakes=_mistakes_uri(sample.truth, prediction),
                right=_right(sample.truth, prediction),
            )
            for step, prediction in sample.predictions.items()
        ),
        key=joined(key),
    )


def _largest_first(label_maps: Iterable[NDArray[np.uint8]]) -> list[int]:
    """The classes of some maps: those of the first by falling share, then those that only the next ones hold."""
    classes: dict[int, None] = {}
    for label_map in label_maps:
        counts = np.bincount(label_map.ravel(), minlength=NO_CLASS + 1)[:NO_CLASS]
        classes |= dict.fromkeys(k for k in np.argsort(-counts, kind="stable").tolist() if counts[k])
    return list(classes)


def _right(truth: NDArray[np.uint8], prediction: NDArray[np.uint8]) -> str:
    labelled = truth != NO_CLASS
    if not labelled.any():
        return "nothing labelled"
    return f"{percent_text(float((truth == prediction)[labelled].mean()))} right"


def _mistakes_uri(truth: NDArray[np.uint8], prediction: NDArray[np.uint8]) -> str:
    """Where the two differ, as a picture whose right pixels are clear and whose unlabelled ones are grey."""
    marks = np.where(truth == NO_CLASS, 2, truth != prediction).astype(np.uint8)
    picture = Image.fromarray(marks)
    picture.putpalette(_MARKS)
    return png_uri(picture, transparency=_MARKS_OPACITY, bits=2)


# ----------------------------------------------------------------------------------------------------------- classes

FILTER = Html("""<div class="control filter" hidden>
<label for="filter">Find a class</label>
<input type="search" id="filter" autocomplete="off" spellcheck="false">
<output for="filter" id="found"></output>
</div>""")
_ABSENT = Html("""<details class="absent">
<summary>{count} in neither labels nor predictions</summary>
<ul class="key">
{classes}
</ul>
</details>""")
_ABSENT_CLASS = Html('<li data-name="{name}">{swatch}{name}</li>')
_COLUMNS = (
    ("iou", "IoU", score_text),
    ("boundary_iou", "Boundary", score_text),
    ("accuracy", "Accuracy", score_text),
    ("share", "Pixels", percent_text),
)


def _classes(results: Mapping[str, Any], class_names: Sequence[str], colours: NDArray[np.uint8]) -> Html:
    """The classes as a table, best first, and apart from it those that were not there to score."""
    count = len(class_names)
    columns = [
        Column(kind, title, (numbers_of(results, f"eval_per_category_{kind}") + [math.nan] * count)[:count], text)
        for kind, title, text in _COLUMNS
    ]
    ious = columns[0].values
    scored = sorted((k for k in range(count) if math.isfinite(ious[k])), key=lambda k: -ious[k])
    if not scored:
        return nothing("No evaluation has been logged yet.")
    missing = [k for k in range(count) if not math.isfinite(ious[k])]
    absent = [_ABSENT_CLASS.fill(swatch=swatch(colours[k]), name=class_names[k]) for k in missing]
    mean = sum(ious[k] for k in scored) / len(scored)
    known = [each for each in columns if any(map(math.isfinite, each.values))]
    caption = f"{', '.join(each.title for each in known)} of every class, best IoU first"
    occurring = counted(len(missing), "class occurs", "classes occur")
    return joined(
        [
            FILTER,
            class_table(scored, class_names, colours, known, caption, mean=(mean, f"mean {score_text(mean)}")),
            _ABSENT.fill(count=occurring, classes=joined(absent)) if absent else Html(""),
        ]
    )
