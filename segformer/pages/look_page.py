"""The page that shows a dataset before a model is trained on it: what looks wrong, the classes, and some of its photos.

It is drawn from what ``python -m data.look`` found; nothing is read here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from segformer.pages.page import (
    Html,
    asset,
    distinct,
    joined,
    label_map_uri,
    photo_uri,
    render_page,
    swatch,
)
from segformer.pages.record import percent_text
from segformer.pictures import class_shares, palette

NO_CLASS, STRAY = 255, 254  # in the label maps of examples: ignored, and a value that no class has
_STRAY_COLOUR = (255, 255, 255)
_MOST_KEYS = 5  # classes named under a picture
_WIDTH = 400  # of a picture


@dataclass(frozen=True)
class Example:
    """A photo with its (H, W) uint8 label map of class ids, ``NO_CLASS`` or ``STRAY``; None for what does not decode.

    Where both have one size, the label map lies on the photo; else they stand side by side.
    """

    name: str
    photo: Image.Image | None
    label_map: NDArray[np.uint8] | None
    said: str = ""


@dataclass(frozen=True)
class Problem:
    """One kind of fault: ``rows`` are (where, what is wrong), ``count`` how many there are; ``said`` is of no row."""

    title: str
    advice: str
    stops: bool
    said: Sequence[str] = ()
    count: str = ""
    rows: Sequence[tuple[str, str]] = ()
    examples: Sequence[Example] = ()


@dataclass(frozen=True)
class SplitShares:
    """Of one split, the share of every class in its labelled pixels and in its photos."""

    name: str
    of_pixels: Sequence[float]
    of_photos: Sequence[float]


@dataclass(frozen=True)
class LookedAt:
    """A dataset as the page tells it; class k is called ``class_names[k]``, and left out where that is empty."""

    title: str
    headline: Mapping[str, str]
    facts: Mapping[str, str]
    class_names: Sequence[str]
    splits: Sequence[SplitShares]
    problems: Sequence[Problem] = ()
    examples: Mapping[str, Sequence[Example]] = field(default_factory=dict)  # by split


def render_look(looked: LookedAt) -> Html:
    """The page of a dataset."""
    colours = distinct(palette(len(looked.class_names)))
    painter = _Painter(looked.class_names, colours)
    body = asset("look.html").fill(
        title=looked.title,
        headline=joined(_HEADLINE.fill(name=name, value=value) for name, value in looked.headline.items()),
        facts=joined(_FACT.fill(name=name, value=value) for name, value in looked.facts.items()),
        problems=joined(_problem(each, painter) for each in looked.problems) if looked.problems else _NOTHING,
        examples=joined(
            _EXAMPLES.fill(split=split, pictures=joined(map(painter.figure, some)))
            for split, some in looked.examples.items()
        ),
        classes=_classes(looked, colours),
    )
    return render_page(f"{looked.title}: a look at the data", body, ["report.css", "look.css"], ["look.js"], None)


_HEADLINE = Html("<div><dd>{value}</dd><dt>{name}</dt></div>")
_FACT = Html("<div><dt>{name}</dt><dd>{value}</dd></div>")
_NOTHING = Html('<p class="nothing">Nothing looks wrong.</p>')
_EXAMPLES = Html('<h3 class="split">{split}</h3>\n<div class="cards">\n{pictures}\n</div>')

# ---------------------------------------------------------------------------------------------------------- problems

_PROBLEM = Html("""<article class="problem{kind}">
<h3>{title} <small>{weight}</small></h3>
<p class="soft">{advice}</p>
{said}
{rows}
{pictures}
</article>""")
_SAID = Html("<p>{text}</p>")
_ROWS = Html("""<details{opened}>
<summary>{count}</summary>
<ul class="rows">
{rows}
</ul>
</details>""")
_ROW_AT_FAULT = Html("<li>{where}{said}</li>")
_WHERE = Html("<b>{text}</b> ")
_CARDS = Html('<div class="cards">\n{pictures}\n</div>')
_FEW = 3  # rows that are shown without being asked for


def _problem(problem: Problem, painter: _Painter) -> Html:
    rows = [
        _ROW_AT_FAULT.fill(where=Html("") if where in said else _WHERE.fill(text=where), said=said)
        for where, said in problem.rows
    ]
    opened = Html(" open" if len(rows) <= _FEW else "")
    return _PROBLEM.fill(
        kind=Html(" stops" if problem.stops else ""),
        title=problem.title,
        weight="stops training" if problem.stops else "worth a look",
        advice=problem.advice,
        said=joined(_SAID.fill(text=text) for text in problem.said),
        rows=_ROWS.fill(opened=opened, count=problem.count, rows=joined(rows)) if rows else Html(""),
        pictures=_CARDS.fill(pictures=joined(map(painter.figure, problem.examples))) if problem.examples else Html(""),
    )


# ---------------------------------------------------------------------------------------------------------- pictures

_FIGURE = Html("""<figure class="card">
<div class="pictures">
{pictures}
</div>
<figcaption><b>{name}</b>{said}
<ul class="key">
{key}
</ul></figcaption>
</figure>""")
_TOGETHER = Html("""<div class="picture" style="--shape:{width}/{height}">\
<img src="{photo}" alt="Photo {name}"><img class="map" src="{label_map}" alt="Its label map: {classes}"></div>""")
_ALONE = Html(
    '<div class="picture" style="--shape:{width}/{height}"><img src="{picture}" alt="{alt}"></div>\n'
    '<small class="soft">{alt}, {width} x {height}</small>'
)
_BROKEN = Html('<p class="picture broken">{text}</p>')
_NOTE = Html('<span class="soft">{text}</span>')
_KEY = Html("<li>{swatch}{name} <small>{share}</small></li>")


class _Painter:
    """Draws examples in the colours of the classes."""

    def __init__(self, names: Sequence[str], colours: NDArray[np.uint8]) -> None:
        self.names = [*names, *[""] * (STRAY - len(names)), "no class", "ignored"]
        self.colours = np.zeros((256, 3), np.uint8)
        self.colours[: len(colours)], self.colours[STRAY] = colours, _STRAY_COLOUR

    def figure(self, example: Example) -> Html:
        """A photo with its label map on it, and the classes that this holds, largest first."""
        shares = class_shares(example.label_map, 256) if example.label_map is not None else []
        key = [
            _KEY.fill(swatch=swatch(self.colours[k]), name=self.names[k], share=percent_text(share))
            for k, share in sorted(shares, key=lambda each: each[0] != STRAY)[:_MOST_KEYS]
        ]
        if len(shares) > _MOST_KEYS:
            key.append(Html("<li>and {count} more</li>").fill(count=len(shares) - _MOST_KEYS))
        said = _NOTE.fill(text=f" {example.said}") if example.said else Html("")
        return _FIGURE.fill(pictures=self._pictures(example), name=example.name, said=said, key=joined(key))

    def _pictures(self, example: Example) -> Html:
        photo, label_map, name = example.photo, example.label_map, example.name
        if photo is not None and label_map is not None and photo.size == label_map.shape[::-1]:
            named = ", ".join(self.names[k] for k in np.unique(label_map).tolist()[:_MOST_KEYS])
            size = dict(zip(("width", "height"), photo.size, strict=True))
            uris = {"photo": _small_photo(photo), "label_map": self._drawn(label_map)}
            return _TOGETHER.fill(name=name, classes=named, **uris, **size)
        alone = _apart("Photo", _small_photo(photo), photo.size) if photo is not None else _BROKEN.fill(text="no photo")
        if label_map is None:
            return joined([alone, _BROKEN.fill(text="no label map")])
        return joined([alone, _apart("Label map", self._drawn(label_map), label_map.shape[::-1])])

    def _drawn(self, label_map: NDArray[np.uint8]) -> str:
        step = max(1, round(label_map.shape[1] / _WIDTH))
        return label_map_uri(np.ascontiguousarray(label_map[::step, ::step]), self.colours)


def _apart(what: str, uri: str, size: tuple[int, ...]) -> Html:
    """A picture of its own, with its size."""
    return _ALONE.fill(picture=uri, alt=what, width=size[0], height=size[1])


def _small_photo(photo: Image.Image) -> str:
    height = max(1, round(photo.height * _WIDTH / photo.width))
    return photo_uri(photo.resize((_WIDTH, height), Image.Resampling.BOX) if photo.width > _WIDTH else photo)


# ----------------------------------------------------------------------------------------------------------- classes

_CLASSES = Html("""<div class="wide"><table class="classes shares">
<caption class="unseen">Every class with its share of the labelled pixels and of the photos, largest first</caption>
<thead><tr><td></td><td class="bar"></td>{splits}</tr>
<tr><th scope="col" data-sort="name">Class</th><td class="bar"></td>{heads}</tr></thead>
<tbody>
{rows}
</tbody>
</table></div>""")
_SPLIT = Html('<th scope="colgroup" colspan="2">{split}</th>')
_HEADS = Html("""<th scope="col" data-sort="pixels{number}"{sorted}>pixels</th>\
<th scope="col" data-sort="photos{number}">photos</th>""")
_CLASS_ROW = Html("""<tr style="--iou:{length:.4f}" data-name="{name}" {values}><th scope="row">{swatch}\
<span>{name}</span></th><td class="bar"></td>{cells}</tr>""")
_VALUES = Html('data-pixels{number}="{pixels}" data-photos{number}="{photos}"')
_CELLS = Html("<td{never}>{pixels}</td><td>{photos}</td>")


def _classes(looked: LookedAt, colours: NDArray[np.uint8]) -> Html:
    """The classes as a table, those with most pixels first."""
    named = [k for k, name in enumerate(looked.class_names) if name]
    if not named or not looked.splits:
        return Html('<p class="nothing">No label map could be read.</p>')
    first = looked.splits[0].of_pixels
    heads = [
        _HEADS.fill(number=i, sorted=Html("" if i else ' aria-sort="descending"')) for i in range(len(looked.splits))
    ]
    rows = [
        _CLASS_ROW.fill(
            name=looked.class_names[k],
            length=first[k] / (max(first) or 1),
            swatch=swatch(colours[k]),
            values=joined(
                _VALUES.fill(number=i, pixels=split.of_pixels[k], photos=split.of_photos[k])
                for i, split in enumerate(looked.splits)
            ),
            cells=joined(_cells(split.of_pixels[k], split.of_photos[k]) for split in looked.splits),
        )
        for k in sorted(named, key=lambda k: -first[k])
    ]
    splits = joined(_SPLIT.fill(split=split.name) for split in looked.splits)
    return _CLASSES.fill(splits=splits, heads=joined(heads), rows=joined(rows))


def _cells(of_pixels: float, of_photos: float) -> Html:
    never = Html("" if of_photos else ' class="never"')
    return _CELLS.fill(never=never, pixels=share_text(of_pixels), photos=share_text(of_photos))


def share_text(share: float) -> str:
    """A share in percent; with more digits where it is small, and a word where it is none."""
    if not share:
        return "none"
    if share < 1e-4:
        return "< 0.01 %"
    return f"{100 * share:.{1 if share >= 0.01 else 2}f} %"
