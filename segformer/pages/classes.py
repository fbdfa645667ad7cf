"""The table of classes in the pages that tell scores: a row for each class, a bar in it, columns to sort by."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segformer.pages.page import Html, joined, swatch

_TABLE = Html("""<div class="wide"><table class="classes {kind}" style="--mean:{mean}">
<caption class="unseen">{caption}</caption>
<thead><tr><th scope="col" data-sort="name">Class</th><td class="bar"><span>{mean_text}</span></td>\
{headings}</tr></thead>
<tbody>
{rows}
</tbody>
</table></div>""")
_HEADING = Html('<th scope="col" data-sort="{key}"{sorted}>{title}</th>')
_ROW = Html("""<tr style="--iou:{bar:.4f}" data-class="{k}" data-name="{name}"{values}><th scope="row">{swatch}\
<span>{name}</span></th><td class="bar"></td>{cells}</tr>""")
_VALUE = Html(' data-{key}="{value}"')
_CELL = Html("<td>{text}</td>")


@dataclass(frozen=True)
class Column:
    """Numbers of all classes under a title, and how they are told; what is no number sorts below all."""

    key: str
    title: str
    values: Sequence[float] | NDArray[Any]
    text: Callable[[float], str]

    def sortable(self, k: int) -> float:
        return self.values[k] if math.isfinite(self.values[k]) else -1.0


def class_table(
    classes: Sequence[int],
    names: Sequence[str],
    colours: NDArray[np.uint8],
    columns: Sequence[Column],
    caption: str,
    order: str = "descending",
    mean: tuple[float, str] = (0, ""),
    kind: str = "",
) -> Html:
    """The table of some ``classes``, sorted as they are by the first column, whose bars tell it against its mean.

    Bars of shares, which have no mean, tell them against the largest.
    """
    first = columns[0].values
    longest = 1.0 if mean[1] else max(first[k] for k in classes)
    rows = [
        _ROW.fill(
            bar=first[k] / longest,
            k=k,
            name=names[k],
            values=joined(_VALUE.fill(key=each.key, value=each.sortable(k)) for each in columns),
            swatch=swatch(colours[k]),
            cells=joined(_CELL.fill(text=each.text(float(each.values[k]))) for each in columns),
        )
        for k in classes
    ]
    headings = (
        _HEADING.fill(key=each.key, title=each.title, sorted="" if place else Html(f' aria-sort="{order}"'))
        for place, each in enumerate(columns)
    )
    return _TABLE.fill(
        kind=kind,
        mean=f"{mean[0]:.4f}",
        caption=caption,
        mean_text=mean[1],
        headings=joined(headings),
        rows=joined(rows),
    )
