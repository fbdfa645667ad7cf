"""Split expressions select the rows that datasets selects, and malformed ones are refused by name."""

import re

import pytest
from libraries import datasets

from data.splits import parse_split

LENGTHS = (1, 2, 7, 50, 99, 100, 101, 250, 2000, 20210)

SLICES = (
    "train",
    "train[:]",
    "train[:50]",
    "train[10:20]",
    "train[10:]",
    "train[0:0]",
    "train[20:10]",
    "train[:-10]",
    "train[-10:]",
    "train[-20:-10]",
    "train[-5:3]",
    "train[:99999]",
    "train[99999:]",
    "train[-99999:]",
    "train[:-99999]",
)
PERCENTAGES = (
    "train[:10%]",
    "train[10%:]",
    "train[33%:66%]",
    "train[-10%:]",
    "train[:-10%]",
    "train[-50%:-25%]",
    "train[:0%]",
    "train[:1%]",
    "train[99%:]",
    "train[0%:100%]",
    "train[-100%:]",
    "train[50%:25%]",
    "train[7%:93%]",
    "train[12%:13%]",
)
SUMS = (
    "train+validation",
    "train[:50]+validation",
    "train[:10%]+validation[-5:]+train[90%:]",
    "train[:2] + train[:2]",
    "validation+train[-1:]",
)


def rows_of(expression: str, train: int, validation: int = 31) -> list[tuple[str, int]]:
    counts = {"train": train, "validation": validation}
    return [(part.name, row) for part in parse_split(expression) for row in part.rows(counts[part.name])]


def rows_of_datasets(expression: str, train: int, validation: int = 31) -> list[tuple[str, int]]:
    terms = datasets.ReadInstruction.from_spec(expression).to_absolute({"train": train, "validation": validation})
    return [(term.splitname, row) for term in terms for row in range(term.from_, term.to)]


@pytest.mark.parametrize("expression", [*SLICES, *PERCENTAGES, *SUMS])
def test_expressions_select_the_rows_that_datasets_selects(expression: str) -> None:
    for count in LENGTHS:
        assert rows_of(expression, count) == rows_of_datasets(expression, count), count


def test_every_percentage_rounds_as_datasets_rounds_it() -> None:
    for percent in range(-100, 101):
        for count in (3, 50, 150, 2000):
            expression = f"train[:{percent}%]"
            assert rows_of(expression, count) == rows_of_datasets(expression, count), (percent, count)


@pytest.mark.parametrize("expression", ["train[10:50%]", "train[10%:50]", "train[-20:90%]"])
def test_one_percent_sign_never_selects_other_rows_than_in_datasets(expression: str) -> None:
    # datasets reads both bounds as percent when one is. To refuse the expression would be as good.
    try:
        selected = rows_of(expression, 200)
    except ValueError:
        return
    assert selected == rows_of_datasets(expression, 200)


@pytest.mark.parametrize(
    "expression",
    [
        "",
        "+",
        "train+",
        "+train",
        "train[",
        "train]",
        "train[]",
        "train[5]",
        "train[:50",
        "train[:5.5]",
        "train[:5%%]",
        "train[:%]",
        "train[a:b]",
        "train[1:2:3]",
        "train[:50]x",
        "train[:50][:10]",
        "train[ :10]",
        "train validation",
        "train-validation",
        "train,validation",
        "train[:--5]",
        "train/0000",
    ],
)
def test_a_malformed_expression_is_refused_by_name(expression: str) -> None:
    with pytest.raises(ValueError, match=re.escape(f"split {expression!r} is not of the form")):
        parse_split(expression)


@pytest.mark.parametrize("bound", ["101%", "-101%", "150%"])
def test_more_than_a_hundred_percent_is_refused_by_name(bound: str) -> None:
    for expression in (f"train[:{bound}]", f"train[{bound}:]"):
        with pytest.raises(ValueError, match=bound):
            rows_of(expression, 200)
        with pytest.raises(ValueError, match="100"):
            rows_of_datasets(expression, 200)
