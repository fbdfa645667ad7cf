"""What shows a photo and the classes in it, on the page of ``infer.py`` and on that of an exported model.

Its markup is ``web/viewer.html`` and ``web/help.html``, its script ``web/viewer.js``, its style ``web/photos.css``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segformer.pages.page import Html, asset, colour_code, joined, readable_ink
from segformer.pictures import is_untinted

MOST_CLASSES = 255  # a byte has room for one more, which means none
STYLES = ("report.css", "photos.css")

_ORDER = Html('<option value="{value}">{text}</option>')
_PANES = {"truth": "Truth", "prediction": "Prediction", "errors": "Errors"}
_PANE = Html("""<figure class="pane" data-layer="{layer}">
<div class="frame"><canvas role="img" aria-label="{title}"></canvas>
<div class="divider" role="slider" tabindex="0" aria-label="Divider between photo and {title}" \
aria-orientation="horizontal" aria-valuemin="0" aria-valuemax="100" aria-valuenow="50" hidden></div>
<p class="note" role="status" hidden></p>
<div class="ring" hidden></div><div class="tag" aria-hidden="true" hidden><b></b> <small></small></div></div>
<figcaption>{title} <small></small></figcaption>
</figure>""")
_KEY = Html("<div><dt>{keys}</dt><dd>{does}</dd></div>")
_KEYS = {
    "\N{LEFTWARDS ARROW} \N{RIGHTWARDS ARROW}": "previous and next photo",
    "1 2 3": "photo, overlay, map",
    "S": "swipe: photo on the left, classes on the right",
    "+ \N{MINUS SIGN} 0": "zoom in, zoom out, whole photo; or wheel, pinch, double click",
    "drag": "move the photo once zoomed in",
    "Shift + arrows": "move the marker",
    "Esc": "show all classes again",
    "?": "this help",
}
_TRUTH_KEYS = {"B T P E": "side by side, truth, prediction, errors"}
_TOUCHES = {
    "tap": "name what is there",
    "pinch": "zoom in and out",
    "double tap": "zoom in, or back to the whole photo",
    "drag": "move the photo once zoomed in",
    "name of a class": "highlight the class; tap it again to show all",
    "Swipe": "photo on the left, classes on the right; drag the line",
    "\N{SINGLE LEFT-POINTING ANGLE QUOTATION MARK} \N{SINGLE RIGHT-POINTING ANGLE QUOTATION MARK}": (
        "previous and next photo"
    ),
}
_FACT = Html("<div><dt>{name}</dt><dd>{value}</dd></div>")
_FACTS = Html("""<section aria-labelledby="about">
<h2 id="about">About</h2>
<dl class="facts">
{facts}
</dl>
</section>""")


def viewer(orders: Mapping[str, str], photos: Html) -> Html:
    """The list of photos, in orders to choose from, and the viewer of one of them."""
    return asset("viewer.html").fill(
        orders=joined(_ORDER.fill(value=value, text=text) for value, text in orders.items()),
        photos=photos,
        panes=joined(_PANE.fill(layer=layer, title=text) for layer, text in _PANES.items()),
    )


def help_dialog(truth: bool) -> Html:
    """How to use the viewer, whose photos may have a ``truth``."""
    return asset("help.html").fill(
        keys=joined(_KEY.fill(keys=keys, does=does) for keys, does in (_KEYS | (_TRUTH_KEYS if truth else {})).items()),
        touches=joined(_KEY.fill(keys=keys, does=does) for keys, does in _TOUCHES.items()),
    )


def facts_section(facts: Mapping[str, str]) -> Html:
    """What there is to know of the model, name by name."""
    rows = joined(_FACT.fill(name=name, value=value) for name, value in facts.items())
    return _FACTS.fill(facts=rows) if facts else Html("")


def class_entries(names: Sequence[str], colours: NDArray[np.uint8]) -> list[dict[str, Any]]:
    """What the script is told of every class."""
    return [
        {"name": name, "colour": colour_code(colour), "ink": readable_ink(colour), "untinted": bool(untinted)}
        for name, colour, untinted in zip(names, colours, is_untinted(colours), strict=True)
    ]
