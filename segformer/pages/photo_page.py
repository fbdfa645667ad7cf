"""Photos and what a model sees in them, as one page to look through: ``infer.py --html``.

The page holds each photo as a JPEG and each label map as a palette PNG of class ids; ``web/photos.js`` decodes those
of the photo shown and draws them. Every number is counted here, from the maps at their own size, before any is made
smaller.
"""

from __future__ import annotations

import base64
import io
import math
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from segformer.console import noun
from segformer.detail import DetailedConfusionMatrix, DetailedScores
from segformer.files import write_atomically
from segformer.metrics import ConfusionMatrix
from segformer.pages.classes import Column, class_table
from segformer.pages.confusion import confusion_section
from segformer.pages.page import (
    Html,
    asset,
    data_uri,
    embedded_json,
    joined,
    render_page,
    swatch,
)
from segformer.pages.record import percent_text, score_text, sizes_text
from segformer.pages.samples import NO_CLASS
from segformer.pages.viewer import MOST_CLASSES, STYLES, class_entries, facts_section, help_dialog, viewer
from segformer.pictures import class_shares, label_map_picture, overlay

_PHOTO_QUALITY, _THUMBNAIL_QUALITY = 85, 70
_THUMBNAIL_SIZE = (216, 144)
_SMALLEST_SIDE = 64  # of a picture, however little room there is
_FRAME_BYTES, _ITEM_BYTES = 200_000, 600  # style, script, totals; the markup of a photo
_NAME_END = 8  # characters of a name that are always shown: its number and its kind
_MOST_NAMED = 5  # classes named in the text of a thumbnail
_MOST_MISTAKES = 8  # of a photo
_MOST_TOTAL_MISTAKES = 15


@dataclass(frozen=True)
class PagePhoto:
    """A photo, upright, and what was found in it; map and truth are (H, W) of class ids.

    ``scores`` is the mean probability of the pixels of a class. ``truth`` is 255 where nothing is labelled. The maps
    cover the photo but need not have its size. Raises ValueError for maps that are not of integers or not of one size.
    """

    name: str
    photo: Image.Image
    label_map: NDArray[Any]
    scores: Mapping[int, float] | None = None
    truth: NDArray[Any] | None = None

    def __post_init__(self) -> None:
        for what, ids in (("label map", self.label_map), ("truth", self.truth)):
            if ids is not None and (ids.ndim != 2 or not ids.size or not np.issubdtype(ids.dtype, np.integer)):
                raise ValueError(
                    f"{self.name}: the {what} is {list(ids.shape)} {ids.dtype}; it must be (H, W) integers"
                )
        if self.truth is not None and self.truth.shape != self.label_map.shape:
            raise ValueError(
                f"{self.name}: the truth is {list(self.truth.shape)}, the label map {list(self.label_map.shape)}; "
                "they must be of one size"
            )


def write_photo_page(
    path: Path,
    photos: Iterable[PagePhoto],
    count: int,
    class_names: Sequence[str],
    colours: NDArray[np.uint8],
    title: str,
    facts: Mapping[str, str],
    max_side: int = 1024,
    max_bytes: int = 40_000_000,
) -> None:
    """Write the page of ``photos``, about ``count`` of them, taken one at a time. An old page is replaced at once."""
    page = PhotoPage(class_names, colours, count, max_side, max_bytes)
    for photo in photos:
        page.add(photo)
    page.write(path, title, facts)


class PhotoPage:
    """A page in the making: ``add`` photos one by one, then ``write``. Only compressed pictures are kept.

    ``colours`` is (K, 3) uint8, a row for each of at most 255 names. No picture's longer side exceeds ``max_side``, and
    pictures are made smaller where ``count`` photos would not fit into ``max_bytes`` otherwise; what one photo leaves
    of its share goes to those after it. Raises ValueError for more classes.
    """

    def __init__(
        self,
        class_names: Sequence[str],
        colours: NDArray[np.uint8],
        count: int,
        max_side: int = 1024,
        max_bytes: int = 40_000_000,
    ) -> None:
        if not 1 <= len(class_names) <= MOST_CLASSES or colours.shape != (len(class_names), 3):
            raise ValueError(
                f"{len(class_names)} class names and colours of shape {list(colours.shape)}; a page has 1 to "
                f"{MOST_CLASSES} classes and a row of 3 for each"
            )
        if max_side < 1:
            raise ValueError(f"max_side is {max_side}; it must be at least 1")
        self.class_names = [name.strip() or f"class {k}" for k, name in enumerate(class_names)]
        self.colours = colours
        self.max_side = max_side
        self._photos_to_come = count
        self._bytes_left = max_bytes - _FRAME_BYTES
        self._entries: list[dict[str, Any]] = []
        self._thumbnails: list[str] = []
        self._pixels: list[str] = []
        self._totals = _Totals(len(class_names))

    def add(self, photo: PagePhoto) -> None:
        """Add a photo. Raises ValueError, naming it, for a value that is no class; the page then stays as it was."""
        try:
            if int(photo.label_map.max()) >= len(self.class_names) or int(photo.label_map.min()) < 0:
                raise ValueError(f"the label map holds a value outside the classes 0 to {len(self.class_names) - 1}")
            matrix = None
            if photo.truth is not None:
                matrix = DetailedConfusionMatrix(len(self.class_names), NO_CLASS)
                matrix.update(photo.label_map.astype(np.int64), photo.truth.astype(np.int64))
        except ValueError as error:
            raise ValueError(f"{photo.name}: {error}") from error
        entry = _entry(photo, matrix, len(self.class_names))
        thumbnail = _thumbnail(photo, self.colours)
        beside = len(thumbnail) + 2 * len(embedded_json(entry)) + _ITEM_BYTES
        room = self._bytes_left // max(1, self._photos_to_come) - beside
        pixels = _fitting_pixels(photo, self.colours, self.max_side, room)
        self._totals.add(photo, entry, matrix, len(self._entries))
        self._entries.append(entry)
        self._thumbnails.append(thumbnail)
        self._pixels.append(pixels)
        self._photos_to_come -= 1
        self._bytes_left -= len(pixels) + beside

    def write(self, path: Path, title: str, facts: Mapping[str, str]) -> None:
        """Write the page, replacing what was there at once; more photos may be added and the page written again."""
        write_atomically(path, self.render(title, facts))

    def render(self, title: str, facts: Mapping[str, str]) -> Html:
        """The page, photos of the worst mean IoU first where there is a truth."""
        judged = any(entry["iou"] is not None for entry in self._entries)
        order = list(range(len(self._entries)))
        if judged:
            order.sort(key=lambda number: _last_if_none(self._entries[number]["iou"]))
        body = asset("photos.html").fill(
            title=title,
            headline=joined(_HEADLINE.fill(name=name, value=value) for name, value in self._headline().items()),
            viewer=viewer(self._orders(judged), joined(self._item(number) for number in order)),
            totals=self._totals.section(self.class_names, self.colours, self._entries),
            facts=facts_section(facts),
            help=help_dialog(truth=judged),
            pixels=joined(_PIXELS.fill(number=k, pixels=Html(pixels)) for k, pixels in enumerate(self._pixels)),
        )
        data = {"classes": class_entries(self.class_names, self.colours), "photos": self._entries}
        return render_page(title, body, STYLES, ["viewer.js", "photos.js"], data)

    def _headline(self) -> dict[str, str]:
        count = {noun(len(self._entries), "photo"): f"{len(self._entries):,}"}
        if not self._totals.judged:
            return count | {"classes found": f"{np.count_nonzero(self._totals.pixels)}"}
        scores = self._totals.scores()
        return {
            "mean IoU": score_text(scores.mean_iou),
            "boundary IoU": score_text(scores.boundary.mean_iou),
            "pixel accuracy": score_text(scores.overall_accuracy),
        } | count

    def _orders(self, judged: bool) -> dict[str, str]:
        orders = {"worst": "Worst IoU first", "best": "Best IoU first"} if judged else {}
        orders["given"] = "As given"
        if any(entry["certainty"] is not None for entry in self._entries):
            orders["unsure"] = "Least sure first"
        return orders | {"name": "By name"}

    def _item(self, number: int) -> Html:
        entry = self._entries[number]
        found = [f"{self.class_names[k]} {percent_text(share)}" for k, share, *_ in entry["classes"] if share]
        return _ITEM.fill(
            number=number,
            thumbnail=self._thumbnails[number],
            alt=f"Overlay: {', '.join(found[:_MOST_NAMED])}",
            name=_name(entry["name"]),
            mark="" if entry["iou"] is None else f"IoU {score_text(entry['iou'])}",
            found=", ".join(found),
        )


_HEADLINE = Html("<div><dd>{value}</dd><dt>{name}</dt></div>")
_PIXELS = Html('<script type="text/plain" id="pixels-{number}">{pixels}</script>')
_ITEM = Html("""<li id="photo-{number}"><a href="#photo-{number}"><img src="{thumbnail}" alt="{alt}" loading="lazy">
{name} <small>{mark}</small></a>
<p class="found soft">{found}</p></li>""")
_NAME = Html("<bdi>{name}</bdi>")
_LONG_NAME = Html('<bdi class="middle"><span>{start}</span><span>{end}</span></bdi>')


def _name(name: str) -> Html:
    """The name of a photo; where there is no room for a long one, it is its middle that is left out."""
    cut = len(name) - _NAME_END
    while cut > _NAME_END and unicodedata.category(name[cut])[0] == "M":  # a mark stays with its letter
        cut -= 1
    return _LONG_NAME.fill(start=name[:cut], end=name[cut:]) if cut > _NAME_END else _NAME.fill(name=name)


# ------------------------------------------------------------------------------------------------- numbers of a photo


def _entry(photo: PagePhoto, matrix: ConfusionMatrix | None, num_labels: int) -> dict[str, Any]:
    """What the script is told of a photo; classes are [id, share, score, share of the truth, IoU], largest first."""
    shares = dict(class_shares(photo.label_map, num_labels))
    given = photo.scores or {}
    labelled = np.zeros(num_labels) if matrix is None else matrix.counts.sum(1).numpy()
    labelled_shares = labelled / max(1, labelled.sum())
    only_labelled = [int(k) for k in np.argsort(-labelled, kind="stable") if labelled[k] and int(k) not in shares]
    scores = None if matrix is None else matrix.scores()
    classes = [
        [
            k,
            shares.get(k, 0.0),
            _number(given.get(k)),
            float(labelled_shares[k]),
            None if scores is None else _number(scores.per_category_iou[k]),
        ]
        for k in [*shares, *only_labelled]
    ]
    certain = [shares[k] * given[k] for k in shares if k in given]
    return {
        "name": photo.name,
        "shape": photo.photo.width / photo.photo.height,
        "classes": classes,
        "certainty": _number(sum(certain)) if len(certain) == len(shares) else None,
        "iou": None if scores is None else _number(scores.mean_iou),
        "accuracy": None if scores is None else _number(scores.overall_accuracy),
        "mistakes": []
        if matrix is None
        else [[*pair, n / labelled.sum()] for pair, n in _mistakes(matrix)[:_MOST_MISTAKES]],
    }


def _mistakes(matrix: ConfusionMatrix) -> list[tuple[tuple[int, int], int]]:
    """The pairs (truth, prediction) that differ and their pixels, most first."""
    counts = matrix.counts.numpy().copy()
    np.fill_diagonal(counts, 0)
    pairs = np.argwhere(counts)
    found = [((int(truth), int(prediction)), int(counts[truth, prediction])) for truth, prediction in pairs]
    return sorted(found, key=lambda mistake: -mistake[1])


def _number(value: float | None) -> float | None:
    """A number that JSON has a word for, or None."""
    return None if value is None or not math.isfinite(value) else float(value)


def _last_if_none(value: float | None) -> float:
    return math.inf if value is None else value


# ----------------------------------------------------------------------------------------------- numbers of all photos

_TOTALS = Html("""<section aria-labelledby="all-classes">
<h2 id="all-classes">Classes in all photos</h2>
<p class="hint" hidden>Choose a class to list the photos that contain it, {first} first.</p>
{table}
{sizes}
{absent}
</section>""")
_SIZES = Html('<p class="soft">By size: {text}.</p>')
_ABSENT = Html('<p class="soft">{count} in neither labels nor predictions.</p>')
_MISTAKES = Html("""<section aria-labelledby="all-mistakes">
<h2 id="all-mistakes">Most common mistakes</h2>
<div class="wide"><table class="confusions">
<caption class="unseen">Pairs of classes, those that take most of the wrong pixels first</caption>
<thead><tr><th scope="col">Truth</th><th scope="col">Taken for</th><th scope="col">Share of mistakes</th>\
<th scope="col">Worst photo</th></tr></thead>
<tbody>
{rows}
</tbody>
</table></div>
</section>""")
_MISTAKE = Html("""<tr><td>{truth_swatch}{truth}</td><td>{prediction_swatch}{prediction}</td><td>{share}</td>\
<td><a href="#photo-{number}" data-light="{k}"><bdi>{name}</bdi></a></td></tr>""")


class _Totals:
    """Counts over all photos added."""

    def __init__(self, num_labels: int) -> None:
        self.judged = False
        self.matrix = DetailedConfusionMatrix(num_labels, NO_CLASS)
        self.pixels = np.zeros(num_labels, np.int64)
        self.photos = np.zeros(num_labels, np.int64)
        self.worst: dict[tuple[int, int], tuple[int, int]] = {}  # of a mistake: its most pixels in one photo, and which

    def add(self, photo: PagePhoto, entry: dict[str, Any], matrix: DetailedConfusionMatrix | None, number: int) -> None:
        self.pixels += np.bincount(photo.label_map.ravel(), minlength=len(self.pixels))
        self.photos[[k for k, *_ in entry["classes"]]] += 1
        if matrix is None:
            return
        self.judged = True
        self.matrix.add(matrix)
        for pair, count in _mistakes(matrix):
            if count > self.worst.get(pair, (0, 0))[0]:
                self.worst[pair] = (count, number)

    def scores(self) -> DetailedScores:
        return self.matrix.scores()

    def section(self, names: Sequence[str], colours: NDArray[np.uint8], entries: Sequence[Mapping[str, Any]]) -> Html:
        """The tables below the photos."""
        if not self.judged:
            return self._shares(names, colours)
        matrix = confusion_section(
            self.matrix.counts.numpy(), names, colours, {pair: number for pair, (_, number) in self.worst.items()}
        )
        return joined([self._ious(names, colours), self._confusions(names, colours, entries), matrix])

    def _ious(self, names: Sequence[str], colours: NDArray[np.uint8]) -> Html:
        scores = self.scores()
        labelled = self.matrix.counts.sum(1).numpy()
        shares, ious = labelled / max(1, labelled.sum()), scores.per_category_iou
        scored = sorted((k for k in range(len(names)) if math.isfinite(ious[k])), key=lambda k: (ious[k], -shares[k]))
        missing = len(names) - len(scored)
        columns = [
            Column("iou", "IoU", ious, score_text),
            Column("boundary", "Boundary", scores.boundary.per_category_iou, score_text),
            Column("accuracy", "Accuracy", scores.per_category_accuracy, score_text),
            Column("share", "Pixels", shares, percent_text),
            Column("photos", "Photos", self.photos, _count_text),
        ]
        caption = f"{', '.join(each.title for each in columns)} of every class, worst IoU first"
        mean = (scores.mean_iou if scored else 0, f"mean {score_text(scores.mean_iou)}")
        return _TOTALS.fill(
            first="worst",
            table=class_table(scored, names, colours, columns, caption, "ascending", mean, "totals"),
            sizes=_SIZES.fill(text=sizes_text({size: each.mean_iou for size, each in scores.by_size.items()})),
            absent=_ABSENT.fill(count=f"{missing} class{'es occur' if missing > 1 else ' occurs'}")
            if missing
            else Html(""),
        )

    def _shares(self, names: Sequence[str], colours: NDArray[np.uint8]) -> Html:
        shares = self.pixels / max(1, self.pixels.sum())
        found = [int(k) for k in np.argsort(-shares, kind="stable") if shares[k]]
        if not found:
            return Html("")
        columns = [
            Column("share", "Pixels", shares, percent_text),
            Column("photos", "Photos", self.photos, _count_text),
        ]
        caption = "Share of all pixels and number of photos of every class, largest first"
        return _TOTALS.fill(
            first="largest",
            table=class_table(found, names, colours, columns, caption, kind="totals plain"),
            sizes="",
            absent="",
        )

    def _confusions(
        self, names: Sequence[str], colours: NDArray[np.uint8], entries: Sequence[Mapping[str, Any]]
    ) -> Html:
        mistakes = _mistakes(self.matrix)
        wrong = sum(count for _, count in mistakes)
        rows = []
        for (truth, prediction), count in mistakes[:_MOST_TOTAL_MISTAKES]:
            number = self.worst[truth, prediction][1]
            rows.append(
                _MISTAKE.fill(
                    truth_swatch=swatch(colours[truth]),
                    truth=names[truth],
                    prediction_swatch=swatch(colours[prediction]),
                    prediction=names[prediction],
                    share=percent_text(count / wrong),
                    number=number,
                    k=truth,
                    name=entries[number]["name"],
                )
            )
        return _MISTAKES.fill(rows=joined(rows)) if rows else Html("")


def _count_text(count: float) -> str:
    return f"{count:,.0f}"


# ---------------------------------------------------------------------------------------------------------- pictures


def _fitting_pixels(photo: PagePhoto, colours: NDArray[np.uint8], max_side: int, room: int) -> str:
    """Photo, prediction and truth as base64, a line each, as large as ``max_side`` and ``room`` for them allow."""
    side = min(max_side, max(photo.photo.size + photo.label_map.shape))
    while True:
        pictures = [_jpeg(_shrunk(photo.photo, side), _PHOTO_QUALITY)]
        pictures += [_png(ids, colours, side) for ids in (photo.label_map, photo.truth) if ids is not None]
        pixels = "\n".join(base64.b64encode(picture).decode("ascii") for picture in pictures)
        if len(pixels) <= room or side <= _SMALLEST_SIDE:
            return pixels
        side = max(_SMALLEST_SIDE, min(side - 1, int(0.97 * side * math.sqrt(max(0, room) / len(pixels)))))


def _thumbnail(photo: PagePhoto, colours: NDArray[np.uint8]) -> str:
    """A small overlay in a ``data:`` address."""
    scale = min(1.0, *(limit / side for limit, side in zip(_THUMBNAIL_SIZE, photo.photo.size, strict=True)))
    width, height = (max(1, round(side * scale)) for side in photo.photo.size)
    small = photo.photo.convert("RGB").resize((width, height), Image.Resampling.LANCZOS, reducing_gap=2.0)
    ids = Image.fromarray(photo.label_map.astype(np.uint8)).resize((width, height), Image.Resampling.NEAREST)
    return data_uri("jpeg", _jpeg(overlay(small, np.asarray(ids), colours), _THUMBNAIL_QUALITY))


def _shrunk(photo: Image.Image, side: int) -> Image.Image:
    """The photo in RGB, its longer side at most ``side``."""
    scale = min(1.0, side / max(photo.size))
    width, height = (max(1, round(length * scale)) for length in photo.size)
    return photo.convert("RGB").resize((width, height), Image.Resampling.LANCZOS, reducing_gap=2.0)


def _jpeg(photo: Image.Image, quality: int) -> bytes:
    buffer = io.BytesIO()
    photo.save(buffer, "JPEG", quality=quality, optimize=True)
    return buffer.getvalue()


def _png(ids: NDArray[Any], colours: NDArray[np.uint8], side: int) -> bytes:
    """Class ids as a palette PNG, no id mixed. Of such a picture Pillow filters no row and writes a byte a pixel."""
    height, width = ids.shape
    scale = min(1.0, side / max(width, height))
    picture = label_map_picture(ids, colours)
    picture = picture.resize((max(1, round(width * scale)), max(1, round(height * scale))), Image.Resampling.NEAREST)
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", compress_level=9)
    return buffer.getvalue()
