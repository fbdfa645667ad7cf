"""Curves: whatever the log, few points that were logged, axes that hold them, and lines where they belong."""

import math
import re
from typing import Any

import numpy as np
import pytest
from markup import Markup

from segformer.pages.curves import (
    MOST_POINTS,
    Chart,
    Series,
    as_number,
    draw,
    noisy,
    number_text,
    readings,
    series_of,
    step_axis,
    thinned,
    value_axis,
)


def history_of(values: list[Any], key: str = "loss") -> list[dict[str, Any]]:
    return [{"step": step, key: value} for step, value in enumerate(values, start=1)]


def curve(steps: list[int], values: list[float], kind: str = "training") -> Series:
    return Series("training", kind, np.array(steps, np.int64), np.array(values, np.float64))


# Thinning


@pytest.mark.parametrize("count", [0, 1, 999, 1000])
def test_a_short_curve_keeps_every_point(count: int) -> None:
    steps, values = np.arange(count), np.random.default_rng(0).normal(size=count)
    assert [each.tolist() for each in thinned(steps, values)] == [steps.tolist(), values.tolist()]


@pytest.mark.parametrize("count", [1001, 1500, 100_000, 123_457])
def test_a_long_curve_keeps_few_of_its_points_and_both_ends(count: int) -> None:
    steps, values = np.arange(count) * 3 + 7, np.random.default_rng(count).normal(size=count)
    few, kept = thinned(steps, values)
    assert 0.9 * MOST_POINTS <= len(few) <= MOST_POINTS
    assert (few[0], few[-1]) == (steps[0], steps[-1])
    assert np.array_equal(kept, values[(few - 7) // 3])
    assert (np.diff(few) > 0).all()


@pytest.mark.parametrize("place", [0, 1, 50_000, 99_998, 99_999])
@pytest.mark.parametrize("spike", [1e6, -1e6])
def test_thinning_keeps_every_spike(place: int, spike: float) -> None:
    values = np.sin(np.arange(100_000) / 1000)
    values[place] = spike
    steps, kept = thinned(np.arange(100_000), values)
    assert kept[steps == place].tolist() == [spike]


def test_a_gap_wider_than_a_stretch_stays_a_gap() -> None:
    values = np.ones(100_000)
    values[40_000:60_000] = math.nan
    steps, kept = thinned(np.arange(100_000), values)
    assert np.isnan(kept[(steps > 40_300) & (steps < 59_700)]).all()
    assert np.isfinite(kept[(steps < 39_700) | (steps > 60_300)]).all()
    assert np.isnan(kept).any()


def test_the_running_mean_is_that_of_adding_up_neighbours() -> None:
    values = np.random.default_rng(1).normal(size=500).tolist()
    _, series = noisy(history_of(values), "loss", "training", share=0.02)
    reach = [min(5, k, 499 - k) for k in range(500)]
    expected = [float(np.mean(values[k - n : k + n + 1])) for k, n in enumerate(reach)]
    assert np.abs(series.values - expected).max() < 1e-12
    assert series.steps.tolist() == list(range(1, 501))


def test_the_running_mean_passes_over_what_is_no_number() -> None:
    _, series = noisy(history_of([1.0, None, 3.0] * 100), "loss", "training")
    assert np.isfinite(series.values).all()
    assert set(series.steps.tolist()) == {step for step in range(1, 301) if step % 3 != 2}


def test_a_long_curve_and_its_running_mean_are_read_at_the_same_steps() -> None:
    values = np.random.default_rng(2).normal(size=100_000).tolist()
    raw, mean = noisy(history_of(values), "loss", "training")
    assert np.array_equal(raw.steps, mean.steps)
    assert len(raw.steps) <= MOST_POINTS
    assert (mean.values[0], mean.values[-1]) == pytest.approx((values[0], values[-1]), abs=1e-9)


def test_few_entries_need_no_running_mean() -> None:
    assert [series.kind for series in noisy(history_of([1.0] * 100), "loss", "training")] == ["training"]
    assert [series.kind for series in noisy(history_of([1.0] * 500), "loss", "training")] == ["faint", "mean"]


# The log


@pytest.mark.parametrize("value", [None, "0.5", True, [], {}, math.nan, math.inf, -math.inf, 10**400, 1e308])
def test_what_is_no_number_to_draw_is_nan(value: Any) -> None:
    assert math.isnan(as_number(value))


def test_of_two_entries_for_a_step_the_later_counts() -> None:
    series = series_of([{"step": 5, "loss": 1.0}, {"step": 5, "loss": 2.0}, {"step": 5}], "loss", "", "training")
    assert (series.steps.tolist(), series.values.tolist()) == ([5], [2.0])


# Axes

RANGES = [
    (low * scale, (low + span) * scale)
    for low in (0.0, 0.3, 1.0, -2.0, 17.0)
    for span in (0.01, 0.7, 1.0, 3.3, 95.0)
    for scale in (1e-7, 6e-5, 1e-2, 1.0, 123.0, 1e6)
]


@pytest.mark.parametrize(("low", "high"), RANGES)
def test_an_axis_holds_its_values_and_its_texts_say_its_ticks(low: float, high: float) -> None:
    axis = value_axis(np.array([low, high]))
    tolerance = 1e-9 * max(abs(low), abs(high))
    assert axis.low <= low + tolerance
    assert axis.high >= high - tolerance
    assert 3 <= len(axis.ticks) <= 8
    assert len(set(axis.texts)) == len(axis.texts)
    power = axis.unit.translate(str.maketrans("⁻⁰¹²³⁴⁵⁶⁷⁸⁹", "-0123456789"))
    factor = 10.0 ** int(power[4:]) if power else 1.0
    said = [float(text) * factor for text in axis.texts]
    assert said == pytest.approx(axis.ticks, rel=1e-9, abs=tolerance)
    assert all(len(text.lstrip("-")) <= 8 for text in axis.texts)


@pytest.mark.parametrize("value", [0.0, 1e-9, 0.5, -3.0, 1e200, -1e-200])
def test_a_curve_that_does_not_move_has_an_axis(value: float) -> None:
    axis = value_axis(np.array([value, value]))
    assert axis.low <= value <= axis.high
    assert axis.low < axis.high
    assert 0 <= axis.position(np.array([value]))[0] <= 1


def test_an_axis_starts_at_0_unless_its_values_lie_far_from_it() -> None:
    assert value_axis(np.array([0.2, 0.9])).low == 0
    assert value_axis(np.array([0.90, 0.91])).low > 0.8


def test_a_few_huge_losses_turn_the_axis_logarithmic() -> None:
    values = np.array([0.3] * 50 + [400.0])
    axis = value_axis(values, may_be_logarithmic=True)
    assert axis.logarithmic
    assert (axis.low, axis.high, axis.texts) == (0.1, 1000, ["0.1", "1", "10", "100", "1000"])
    assert axis.position(np.array([0.1, 10, 1000])).tolist() == pytest.approx([0, 0.5, 1])
    assert not value_axis(values).logarithmic


def test_a_loss_of_0_keeps_the_axis_linear() -> None:
    assert not value_axis(np.array([0.0, 0.1, 0.1, 0.1, 900.0]), may_be_logarithmic=True).logarithmic


@pytest.mark.parametrize("last_step", [0, 1, 3, 7, 60, 1400, 160_000, 10**12])
def test_ticks_of_steps_are_whole_and_within_the_run(last_step: int) -> None:
    axis = step_axis(last_step)
    assert 1 <= len(axis.ticks) <= 7
    assert [int(text.replace(",", "")) for text in axis.texts] == axis.ticks
    assert axis.ticks[-1] <= last_step


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (0.42134, "0.4213"),
        (1.23, "1.230"),
        (1234.4, "1234"),
        (-0.5, "\N{MINUS SIGN}0.5000"),
        (6e-5, "6.000 \N{MULTIPLICATION SIGN} 10⁻⁵"),
        (2.5e7, "2.500 \N{MULTIPLICATION SIGN} 10⁷"),
        (math.nan, "\N{EN DASH}"),
        (math.inf, "\N{EN DASH}"),
    ],
)
def test_numbers_have_four_digits(value: float, text: str) -> None:
    assert number_text(value) == text


# Drawing


def path_of(chart: Chart, last_step: int) -> str:
    return Markup(draw(chart, last_step)).one("path", class_="line").attributes["d"]


def test_a_line_goes_where_its_values_lie() -> None:
    chart = Chart("loss", "Loss", [curve([0, 50, 100], [4.0, 1.0, 0.0])])
    assert path_of(chart, 100) == "M0.0 0.0L500.0 750.0L1000.0 1000.0"


def test_a_line_is_lifted_over_a_gap() -> None:
    chart = Chart("loss", "Loss", [curve([0, 25, 50, 75, 100], [4.0, 2.0, math.nan, 2.0, 4.0])])
    assert re.findall("[ML]", path_of(chart, 100)) == ["M", "L", "M", "L"]


def test_evaluations_are_dots_and_one_lonely_value_is_too() -> None:
    several = Chart("loss", "Loss", [curve([0, 50, 100], [4.0, math.nan, 0.0], "evaluation")])
    dots = Markup(draw(several, 100)).all("circle", class_="dot")
    assert [(dot.attributes["cx"], dot.attributes["cy"]) for dot in dots] == [
        ("0.00%", "0.00%"),
        ("100.00%", "100.00%"),
    ]
    assert len(Markup(draw(Chart("loss", "Loss", [curve([7], [4.0])]), 7)).all("circle")) == 1
    assert Markup(draw(Chart("loss", "Loss", [curve([7, 8], [4.0, 3.0])]), 8)).all("circle") == []


def test_readings_lie_on_the_line_and_say_the_values() -> None:
    chart = Chart("loss", "Loss", [curve([0, 50, 100], [4.0, math.nan, 0.42134])])
    assert readings(chart) == [
        {
            "name": "training",
            "steps": [0, 50, 100],
            "heights": [100.0, None, 10.53],
            "texts": ["4.000", "\N{EN DASH}", "0.4213"],
        }
    ]


def test_a_chart_is_told_to_those_who_do_not_see_it() -> None:
    figure = Markup(draw(Chart("loss", "Loss", [curve([10, 20, 1000], [4.0, 0.25, 0.5])]), 1000))
    told = figure.one("p", class_="unseen").text
    assert told == (
        "Training starts at 4.000 at step 10, ends at 0.5000 at step 1,000, "
        "is lowest with 0.2500 at step 20 and highest with 4.000 at step 10."
    )
    assert figure.all("svg")[0].attributes["aria-hidden"] == "true"


def test_the_legend_says_the_last_value_and_its_step_if_that_is_another() -> None:
    chart = Chart("loss", "Loss", [curve([10, 1000], [4.0, 0.5]), curve([10, 900, 1000], [4.0, 0.7, math.nan])])
    first, second = Markup(draw(chart, 1000)).all("li")
    assert "0.5000" in first.text
    assert "0.7000 step 900" in second.text
    steps = [
        element.attributes for element in Markup(draw(chart, 1000)).all("small") if "class" not in element.attributes
    ]
    assert ["hidden" in attributes for attributes in steps[-2:]] == [True, False]
