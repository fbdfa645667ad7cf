"""Validation samples of a run, kept in its ``samples`` folder so that the report can show how it learned to see them.

    samples/0/photo.jpg  truth.png  step-000200.png  step-000400.png ...   a folder for each sample
    samples/names.json                                                     where they come from

Label maps are palette PNGs whose values are the class ids, 255 where there is none. The number of steps kept is
bounded however long the run is, more of them early on, when most changes.
"""

from __future__ import annotations

import io
import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from segformer.files import write_atomically
from segformer.metrics import ConfusionMatrix
from segformer.pages.page import encoded_photo
from segformer.pictures import SheetRow, contact_sheet, label_map_picture

SAMPLES_NAME = "samples"
SHEET_NAME = "samples.png"
MOST_STEPS = 12
NO_CLASS = 255
_STEP_NAME = re.compile(r"step-(\d+)\.png")


@dataclass(frozen=True)
class ReportSample:
    """A photo, its (H, W) uint8 truth, 255 where nothing is labelled, and a map of the same size for every step."""

    name: str
    photo: Image.Image
    truth: NDArray[np.uint8]
    predictions: dict[int, NDArray[np.uint8]]

    def __post_init__(self) -> None:
        for step, prediction in self.predictions.items():
            if prediction.shape != self.truth.shape:
                raise ValueError(
                    f"sample {self.name}: the prediction of step {step} is {list(prediction.shape)}, "
                    f"the truth {list(self.truth.shape)}; they must be of one size"
                )


class Shown(NamedTuple):
    """A sample as a run shows it: its photo, and the (H, W) maps of its truth and of what the model makes of it."""

    name: str
    photo: Image.Image
    truth: NDArray[np.uint8]
    prediction: NDArray[np.uint8]


def save_shown(
    output_dir: Path, step: int, shown: Sequence[Shown], class_names: Sequence[str], colours: NDArray[np.uint8]
) -> None:
    """Keep the samples as they look after a step, for the report, and draw them in ``samples.png``."""
    rows = [
        SheetRow(each.name, _score(each, len(colours)), each.photo, [each.truth, each.prediction]) for each in shown
    ]
    sheet = io.BytesIO()
    titles = ["photo", "truth", "prediction"]
    contact_sheet(rows, titles, dict(enumerate(class_names)), colours).save(sheet, "PNG")
    write_atomically(output_dir / SHEET_NAME, sheet.getvalue())
    names, photos, truths, predictions = (list(column) for column in zip(*shown, strict=True))
    save_samples(output_dir, names, photos, truths, colours)
    save_predictions(output_dir, step, predictions, colours)


def _score(shown: Shown, num_labels: int) -> str:
    matrix = ConfusionMatrix(num_labels, NO_CLASS)
    matrix.update(shown.prediction.astype(np.int64), shown.truth.astype(np.int64))
    mean_iou = matrix.scores().mean_iou
    return f"mean IoU {mean_iou:.3f}" if math.isfinite(mean_iou) else "nothing labelled"


def save_samples(
    output_dir: Path,
    names: Sequence[str],
    photos: Sequence[Image.Image],
    truths: Sequence[NDArray[Any]],
    colours: NDArray[np.uint8],
) -> None:
    """Write what stays the same in the whole run: each sample's name, photo and (H, W) truth."""
    folder = output_dir / SAMPLES_NAME
    for number, (photo, truth) in enumerate(zip(photos, truths, strict=True)):
        (folder / str(number)).mkdir(parents=True, exist_ok=True)
        write_atomically(folder / str(number) / "photo.jpg", encoded_photo(photo))
        write_atomically(folder / str(number) / "truth.png", _encoded_ids(truth, colours))
    if photos:
        write_atomically(folder / "names.json", json.dumps(list(names)))


def save_predictions(
    output_dir: Path, step: int, predictions: Sequence[NDArray[Any]], colours: NDArray[np.uint8]
) -> None:
    """Write the (H, W) prediction of every sample at this step, and let the least telling step go if they are many."""
    for number, prediction in enumerate(predictions):
        folder = output_dir / SAMPLES_NAME / str(number)
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / f"step-{step:06d}.png", _encoded_ids(prediction, colours))
        files = _prediction_files(folder)
        for kept in set(files) - set(_telling_steps(sorted(files), step)):
            files[kept].unlink()


def load_samples(output_dir: Path, last_step: int | None = None) -> list[ReportSample]:
    """The samples of a run, their steps ascending. What cannot be read, or lies beyond ``last_step``, is left out."""
    root = output_dir / SAMPLES_NAME
    folders = sorted((path for path in root.glob("*") if path.name.isdecimal()), key=lambda path: int(path.name))
    names = _names(root / "names.json")
    samples = []
    for folder in folders:
        photo, truth = _opened(folder / "photo.jpg"), _opened(folder / "truth.png")
        if photo is None or truth is None:
            continue
        ids = np.asarray(truth)
        if ids.ndim != 2 or ids.dtype != np.uint8:
            continue
        steps = {
            step: path for step, path in _prediction_files(folder).items() if last_step is None or step <= last_step
        }
        maps = {step: np.asarray(picture) for step, path in steps.items() if (picture := _opened(path))}
        predictions = {
            step: maps[step] for step in sorted(maps) if (maps[step].shape, maps[step].dtype) == (ids.shape, ids.dtype)
        }
        samples.append(ReportSample(names.get(int(folder.name), f"sample {folder.name}"), photo, ids, predictions))
    return samples


def _telling_steps(steps: Sequence[int], newest: int, most: int = MOST_STEPS) -> list[int]:
    """At most ``most`` steps, the first, the last and the newest among them, about even on a square root's scale."""
    kept = list(steps)
    while len(kept) > most:
        gaps = {b: c**0.5 - a**0.5 for a, b, c in zip(kept, kept[1:], kept[2:], strict=False) if b != newest}
        kept.remove(min(gaps, key=lambda step: gaps[step]))
    return kept


def _prediction_files(folder: Path) -> dict[int, Path]:
    return {int(match[1]): path for path in folder.glob("step-*.png") if (match := _STEP_NAME.fullmatch(path.name))}


def _encoded_ids(label_map: NDArray[Any], colours: NDArray[np.uint8]) -> bytes:
    if len(colours) > NO_CLASS:
        raise ValueError(f"samples of {len(colours)} classes; a palette PNG has room for 255 and 255 itself means none")
    buffer = io.BytesIO()
    label_map_picture(label_map, colours).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def _opened(path: Path) -> Image.Image | None:
    """A picture, or None if it is missing or only half there."""
    try:
        with Image.open(path) as picture:
            picture.load()
            return picture
    except Exception:  # Pillow's decoders raise what they like for damaged files
        return None


def _names(path: Path) -> dict[int, str]:
    try:
        names = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return {number: str(name) for number, name in enumerate(names)} if isinstance(names, list) else {}
