"""The confusion matrix as a table: a row for every class of the labels, a column for what its pixels were taken for.

Classes that are confused stand together: chains of them are joined end to end, those first whose pixels are, on
average, most often taken for one another.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product

import numpy as np
from numpy.typing import NDArray

from segformer.pages.page import Html, joined, swatch
from segformer.pages.record import percent_text

_MOST_CLASSES = 40  # of more, those with the most wrong pixels
_LEAST_SHARE = 0.005  # of a row, below which a cell stays empty

_SECTION = Html("""<section aria-labelledby="confusion">
<h2 id="confusion">Confusion matrix</h2>
<p class="soft">A row has the pixels of one class, in percent, by the class that they were taken for{of_all}.</p>
<div class="wide"><table class="matrix">
<caption class="unseen">Classes that are confused stand together</caption>
<thead><tr><td></td>{columns}</tr></thead>
<tbody>
{rows}
</tbody>
</table></div>
</section>""")
_COLUMN = Html('<th scope="col"><span>{name}</span></th>')
_ROW = Html('<tr><th scope="row">{swatch}<span>{name}</span></th>{cells}</tr>')
_EMPTY = Html("<td></td>")
_CELL = Html('<td{kind} style="--share:{share:.3f}" title="{title}">{text}</td>')
_RIGHT = Html(' class="right"')
_LINK = Html('<a href="#photo-{number}" data-light="{k}">{text}</a>')


def confusion_section(
    counts: NDArray[np.int64],
    names: Sequence[str],
    colours: NDArray[np.uint8],
    photo_of: Mapping[tuple[int, int], int] | None = None,
) -> Html:
    """The table of ``counts[label, prediction]``, (K, K); nothing where fewer than two classes occur.

    A pair of classes with an entry in ``photo_of`` links to the photo of that number, which shows it best.
    """
    wrong = counts - np.diag(counts.diagonal())
    occurring = np.flatnonzero(counts.sum(0) + counts.sum(1))
    if len(occurring) < 2:
        return Html("")
    most = np.argsort(-(wrong.sum(0) + wrong.sum(1))[occurring], kind="stable")[:_MOST_CLASSES]
    shown = occurring[np.sort(most)]
    shown = shown[order_by_likeness(counts[np.ix_(shown, shown)])]
    shares = counts / np.maximum(1, counts.sum(1, keepdims=True))

    def cell(truth: int, prediction: int) -> Html:
        share = float(shares[truth, prediction])
        if share < _LEAST_SHARE:
            return _EMPTY
        number, text = (photo_of or {}).get((truth, prediction)), f"{100 * share:.0f}"
        taken = "found" if truth == prediction else f"taken for {names[prediction]}"
        return _CELL.fill(
            kind=_RIGHT if truth == prediction else Html(""),
            share=share,
            title=f"{names[truth]}: {percent_text(share)} {taken}",
            text=Html(text) if number is None else _LINK.fill(number=number, k=truth, text=text),
        )

    return _SECTION.fill(
        of_all=f"; the {len(shown)} classes with the most wrong pixels of {len(occurring)}"
        if len(shown) < len(occurring)
        else "",
        columns=joined(_COLUMN.fill(name=names[k]) for k in shown),
        rows=joined(
            _ROW.fill(swatch=swatch(colours[t]), name=names[t], cells=joined(cell(int(t), int(p)) for p in shown))
            for t in shown
        ),
    )


def order_by_likeness(counts: NDArray[np.int64]) -> list[int]:
    """An order of the classes of a confusion matrix, (K, K), in which those stand together that are confused."""
    total = np.maximum(1, counts.sum(0) + counts.sum(1)).astype(np.float64)
    likeness = (counts + counts.T) / np.sqrt(np.outer(total, total))
    chains, sums = [[k] for k in range(len(counts))], likeness.copy()
    while len(chains) > 1:
        sizes = np.array([len(chain) for chain in chains])
        means = np.where(np.eye(len(chains), dtype=bool), -1, sums / np.outer(sizes, sizes))
        a, b = sorted(int(place) for place in np.unravel_index(means.argmax(), means.shape))
        ways = product((chains[a], chains[a][::-1]), (chains[b], chains[b][::-1]))
        left, right = max(ways, key=lambda way: likeness[way[0][-1], way[1][0]])
        chains[a] = left + right
        del chains[b]
        sums[a] += sums[b]
        sums[:, a] += sums[:, b]
        sums = np.delete(np.delete(sums, b, 0), b, 1)
    return chains[0]
