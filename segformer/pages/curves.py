"""Curves over the steps of a run, as inline SVG that needs no script to be read.

Every position is a percentage of the plot, so that one drawing fits a telephone and a screen while its text keeps its
size; only the lines lie in a stretched coordinate system. A curve of any length is thinned to entries of the log, the
lowest and the highest of each stretch: spikes stay, and whatever is read off the page was logged.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from segformer.pages.page import Html, joined

MOST_POINTS = 1000
_MOST_DOTS = 60
_HUGE = 1e300  # beyond it the arithmetic of an axis overflows, and below its inverse there are no more logarithms
NO_NUMBER = "\N{EN DASH}"
TIMES = "\N{MULTIPLICATION SIGN}"
_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")

_CHART = Html("""<figure class="chart" data-chart="{key}">
<figcaption>
<h3>{title}<small>{unit}</small><small class="at">step <b>{at}</b></small></h3>
<ul class="key">
{legend}
</ul>
<p class="unseen">{summary}</p>
</figcaption>
<div class="plot">
<svg aria-hidden="true">
{grid}
<svg viewBox="0 0 1000 1000" preserveAspectRatio="none" width="100%" height="100%">
{lines}
</svg>
{dots}
</svg>
</div>
</figure>""")
_LEGEND = Html('<li class="{kind}">{line}{name} <b>{value}</b> <small{hidden}>step <span>{step}</span></small></li>')
_SAMPLE = Html(
    '<svg class="dash {kind}" aria-hidden="true"><line class="line" x1="0" x2="100%" y1="50%" y2="50%"/></svg>'
)
_Y_TICK = Html('<line class="grid" x1="0" x2="100%" y1="{at:.2f}%" y2="{at:.2f}%"/>')
_Y_TEXT = Html('<text x="0" dx="-0.6em" y="{at:.2f}%" dy="0.32em" text-anchor="end">{text}</text>')
_X_TEXT = Html('<text x="{at:.2f}%" y="100%" dy="1.6em" text-anchor="middle">{text}</text>')
_X_TICK = Html('<svg x="{at:.2f}%" y="100%" overflow="visible"><path class="tick" d="M0 0V5"/></svg>')
_LINE = Html('<path class="line {kind}" d="{path}"/>')
_DOT = Html('<circle class="dot {kind}" cx="{x:.2f}%" cy="{y:.2f}%" r="{radius}"/>')


class Series(NamedTuple):
    """One curve: ascending steps (N,) and values (N,), NaN where it has a gap. ``kind`` is how it is drawn."""

    name: str
    kind: str
    steps: NDArray[np.int64]
    values: NDArray[np.float64]


class Axis(NamedTuple):
    """From where to where an axis runs, its ticks, their texts, and the power of ten that was taken out of them."""

    low: float
    high: float
    ticks: list[float]
    texts: list[str]
    unit: str = ""
    logarithmic: bool = False

    def position(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """How far up values lie, 0 to 1."""
        low, high = self.low, self.high
        if self.logarithmic:
            values, low, high = np.log10(values), math.log10(low), math.log10(high)
        return (values - low) / (high - low)


class Chart(NamedTuple):
    """Curves that share one axis. With ``may_be_logarithmic`` a few huge values turn it into a logarithmic one."""

    key: str
    title: str
    series: list[Series]
    may_be_logarithmic: bool = False

    @property
    def axis(self) -> Axis:
        values = np.concatenate([series.values for series in self.series])
        return value_axis(values[np.isfinite(values)], self.may_be_logarithmic)


def series_of(history: Sequence[Mapping[str, Any]], key: str, name: str, kind: str) -> Series:
    """The curve of one key of the log, thinned; of two entries for a step the later one counts."""
    by_step = {entry["step"]: as_number(entry[key]) for entry in history if key in entry}
    steps = np.array(sorted(by_step), dtype=np.int64)
    return Series(name, kind, *thinned(steps, np.array([by_step[step] for step in steps.tolist()], dtype=np.float64)))


def as_number(value: Any) -> float:
    """A finite number of the log, or NaN for anything else that may stand there."""
    if not isinstance(value, int | float) or isinstance(value, bool) or not abs(value) < _HUGE:
        return math.nan
    return float(value) if abs(value) > 1 / _HUGE else 0.0


def thinned(
    steps: NDArray[np.int64], values: NDArray[np.float64], most: int = MOST_POINTS
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """At most ``most`` of the points: the first, the last, and of each stretch between them the lowest and highest."""
    if len(steps) <= most:
        return steps, values
    kept = {0, len(steps) - 1}
    for stretch in np.array_split(np.arange(len(steps)), most // 2 - 1):
        if np.isnan(values[stretch]).all():
            kept.add(int(stretch[0]))  # a gap stays a gap
        else:
            kept |= {int(stretch[np.nanargmin(values[stretch])]), int(stretch[np.nanargmax(values[stretch])])}
    chosen = sorted(kept)
    return steps[chosen], values[chosen]


def noisy(history: Sequence[Mapping[str, Any]], key: str, name: str, share: float = 0.02) -> list[Series]:
    """The curve of a key of the log and, if its entries are many, the mean of the ``share`` of them around each."""
    raw = series_of(history, key, name, "training")
    entries = {entry["step"]: as_number(entry[key]) for entry in history if key in entry}
    finite = sorted((step, value) for step, value in entries.items() if math.isfinite(value))
    half = round(len(finite) * share / 2)
    if half < 2:
        return [raw]
    steps, places = np.array([step for step, _ in finite]), np.arange(len(finite))
    sums = np.concatenate([[0.0], np.cumsum([value for _, value in finite])])
    reach = np.minimum(half, np.minimum(places, places[::-1]))  # as far to one side as to the other, up to the ends
    means = (sums[places + reach + 1] - sums[places - reach]) / (2 * reach + 1)
    kept = np.isin(steps, raw.steps)
    return [raw._replace(kind="faint"), Series("its running mean", "mean", steps[kept], means[kept])]


# -------------------------------------------------------------------------------------------------------------- axes


def value_axis(values: NDArray[np.float64], may_be_logarithmic: bool = False) -> Axis:
    """An axis for finite values; it starts at 0 unless they lie far from it."""
    low, high = (float(values.min()), float(values.max())) if len(values) else (0.0, 1.0)
    if may_be_logarithmic and low > 0 and high > 30 * float(np.median(values)):
        return _logarithmic_axis(low, high)
    if 0 <= low < 0.6 * high:
        low = 0.0
    if low == high:
        low, high = (0.0, 1.0) if high == 0 else (low - 0.1 * abs(low), high + 0.1 * abs(high))
    return _linear_axis(low, high)


def step_axis(last_step: int) -> Axis:
    """The axis of steps, from 0 to the last; what they are is said once, so its numbers stay whole."""
    ticks = [tick for tick in _round_numbers(0, last_step, 5) if tick <= last_step and tick == int(tick)]
    return Axis(0, max(1, last_step), ticks, [f"{tick:,.0f}" for tick in ticks])


def _linear_axis(low: float, high: float) -> Axis:
    ticks = _round_numbers(low, high, 4)
    exponent = math.floor(math.log10(max(abs(ticks[0]), abs(ticks[-1]))) + 1e-9)
    if -3 < exponent < 5:
        exponent = 0
    scaled = [tick / 10**exponent for tick in ticks]
    digits = max(0, -math.floor(math.log10(scaled[1] - scaled[0]) + 1e-9))
    if any(abs(round(tick, digits) - tick) > 1e-6 for tick in scaled):  # steps of 2.5
        digits += 1
    unit = f"{TIMES} {_power(exponent)}" if exponent else ""
    return Axis(ticks[0], ticks[-1], ticks, [f"{tick:.{digits}f}" for tick in scaled], unit)


def _logarithmic_axis(low: float, high: float) -> Axis:
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    every = math.ceil((last - first) / 6)
    exponents = range(first, last + 1, every)
    texts = [f"{10.0**exponent:g}" if -3 <= exponent <= 4 else _power(exponent) for exponent in exponents]
    return Axis(10.0**first, 10.0**last, [10.0**exponent for exponent in exponents], texts, "logarithmic", True)


def _round_numbers(low: float, high: float, about: int) -> list[float]:
    """Round numbers at even distances, from the last below ``low`` to the first above ``high``."""
    rough = max(high - low, 1e-12 * abs(high), 1e-300) / about
    power = 10.0 ** math.floor(math.log10(rough))
    distance = power * min((factor for factor in (1, 2, 2.5, 5, 10) if factor * power >= 0.999 * rough), default=10)
    first, last = math.floor(low / distance + 1e-9), math.ceil(high / distance - 1e-9)
    return [place * distance for place in range(first, last + 1)]


def _power(exponent: int) -> str:
    return "10" + str(exponent).translate(_SUPERSCRIPTS)


def number_text(value: float) -> str:
    """A number in four digits, the tiny and the huge with a power of ten; a dash for none."""
    if not math.isfinite(value):
        return NO_NUMBER
    if value == 0:
        return "0"
    if not 1e-3 <= abs(value) < 1e5:
        digits, exponent = f"{value:.3e}".split("e")
        return f"{digits} {TIMES} {_power(int(exponent))}".replace("-", "\N{MINUS SIGN}")
    return f"{value:#.4g}".rstrip(".").replace("-", "\N{MINUS SIGN}")


# ----------------------------------------------------------------------------------------------------------- drawing


def draw(chart: Chart, last_step: int) -> Html:
    """The chart as a figure: title, legend with the last values, summary for those who cannot see it, and drawing."""
    axis, steps = chart.axis, step_axis(last_step)
    told_step = max(_last_point(series)[0] for series in chart.series)
    y_ticks = axis.position(np.array(axis.ticks))
    x_ticks = steps.position(np.array(steps.ticks, dtype=np.float64))
    grid = [_Y_TICK.fill(at=100 * (1 - y)) for y in y_ticks]
    grid += [_Y_TEXT.fill(at=100 * (1 - y), text=text) for y, text in zip(y_ticks, axis.texts, strict=True)]
    grid += [_X_TICK.fill(at=100 * x) for x in x_ticks]
    grid += [_X_TEXT.fill(at=100 * x, text=text) for x, text in zip(x_ticks, steps.texts, strict=True)]
    return _CHART.fill(
        key=chart.key,
        title=chart.title,
        unit=f" {axis.unit}" if axis.unit else "",
        at=f"{told_step:,}",
        legend=joined(_legend(series, told_step) for series in chart.series),
        summary=" ".join(_summary(series) for series in chart.series),
        grid=joined(grid),
        lines=joined(_line(series, axis, steps) for series in chart.series),
        dots=joined(_dots(series, axis, steps) for series in chart.series),
    )


def readings(chart: Chart) -> list[dict[str, Any]]:
    """What the page's script reads off each curve: steps, heights in percent of the plot, and values as text."""
    axis = chart.axis
    return [
        {
            "name": series.name,
            "steps": series.steps.tolist(),
            "heights": [
                round(100 * height, 2) if math.isfinite(height) else None
                for height in axis.position(series.values).tolist()
            ],
            "texts": [number_text(value) for value in series.values.tolist()],
        }
        for series in chart.series
    ]


def _line(series: Series, axis: Axis, steps: Axis) -> Html:
    """The curve as a path that is lifted at every gap."""
    xs = 1000 * steps.position(series.steps.astype(np.float64))
    ys = 1000 * (1 - axis.position(series.values))
    path, command = [], "M"
    for x, y in zip(xs.tolist(), ys.tolist(), strict=True):
        if math.isfinite(y):
            path.append(f"{command}{x:.1f} {y:.1f}")
        command = "L" if math.isfinite(y) else "M"
    return _LINE.fill(kind=series.kind, path="".join(path))


def _dots(series: Series, axis: Axis, steps: Axis) -> Html:
    """A dot for every value of a curve that has few; for one alone, which is no line, in any case."""
    finite = np.isfinite(series.values)
    if finite.sum() != 1 and (series.kind not in ("evaluation", "second") or finite.sum() > _MOST_DOTS):
        return Html("")
    xs = 100 * steps.position(series.steps[finite].astype(np.float64))
    ys = 100 * (1 - axis.position(series.values[finite]))
    return joined(_DOT.fill(kind=series.kind, x=x, y=y, radius=2.5) for x, y in zip(xs, ys, strict=True))


def _legend(series: Series, told_step: int) -> Html:
    """The curve's name and its last value, and the step of that if it is another than the one told above."""
    step, value = _last_point(series)
    return _LEGEND.fill(
        kind=series.kind,
        line=line_sample(series.kind),
        name=series.name,
        value=number_text(value),
        step=f"{step:,}",
        hidden=Html(" hidden" if step == told_step else ""),
    )


def line_sample(kind: str) -> Html:
    """A piece of the line that curves of a kind are drawn in."""
    return _SAMPLE.fill(kind=kind)


def _last_point(series: Series) -> tuple[int, float]:
    last = np.flatnonzero(np.isfinite(series.values))[-1]
    return int(series.steps[last]), float(series.values[last])


def _summary(series: Series) -> str:
    finite = np.flatnonzero(np.isfinite(series.values))
    first, last = int(finite[0]), int(finite[-1])
    low, high = int(np.nanargmin(series.values)), int(np.nanargmax(series.values))
    said = {
        "starts at": first,
        "ends at": last,
        "is lowest with": low,
        "highest with": high,
    }
    texts = [f"{verb} {number_text(float(series.values[k]))} at step {series.steps[k]:,}" for verb, k in said.items()]
    return f"{series.name[:1].upper()}{series.name[1:]} {', '.join(texts[:3])} and {texts[3]}."
