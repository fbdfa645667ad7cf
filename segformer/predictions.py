"""Photos named on a command line, and a folder of predictions of them: its files, ``segments.json``, scores.

Photos are worked on side by side, each from its file to its results by one thread: on a CPU, where a model runs photo
by photo as fast as in batches, that keeps all cores busy while others read and write; a GPU takes turns and batches.
"""

from __future__ import annotations

import glob
import json
import logging
import math
import os
import re
import unicodedata
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from segformer.console import counted, one_line
from segformer.detail import DetailedConfusionMatrix
from segformer.files import write_atomically
from segformer.machine import out_of_memory
from segformer.metrics import class_table
from segformer.photos import open_photo
from segformer.pictures import class_shares, label_map_picture, overlay, tints, with_legend
from segformer.segmenter import Prediction, Segmenter

SEGMENTS_NAME = "segments.json"
SCORES_NAME = "scores.json"
# Of an overlay of 683 x 512, level 1 takes 8 ms and 189 KB, the default 6 takes 27 ms and 173 KB, 9 takes 105 ms.
COMPRESS_LEVEL = 1
_PHOTO_ENDINGS = {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".webp", ".avif", ".tif", ".tiff", ".gif"}
_OTHER_PHOTOS = {
    ".heic", ".heif", ".jxl", ".jp2", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".raf", ".rw2", ".orf", ".psd",
}  # fmt: skip
_VIDEO_ENDINGS = {".mp4", ".mov", ".avi", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg", ".wmv"}
_MOST_NAME_BYTES = 235  # what most file systems allow, less the longest ending and a number
_FORBIDDEN = re.compile(r'[<>:"/\\|?*\x00-\x1f]')  # in names on Windows, also on its disks in other systems
_DEVICE = re.compile(r"(con|prn|aux|nul|conin\$|conout\$|(com|lpt)[0-9¹²³])(?= *(\.|$))", re.IGNORECASE)
_MOST_WORKERS = 8

logger = logging.getLogger(__name__)


def find_photos(sources: Iterable[str]) -> list[Path]:
    """The photos named, those in the folders named (not in folders inside), and those that globs find, each once.

    Raises FileNotFoundError for what finds nothing, and ValueError for addresses and videos.
    """
    found: list[Path] = []
    for source in sources:
        path = Path(source)
        if path.is_dir():
            entries = sorted(path.iterdir())
            inside = [each for each in entries if _is_photo(each)]
            if not inside:
                below = any(each.is_dir() for each in entries)
                hint = f"; those in the folders inside are '{path}/**/*'" if below else ""
                raise FileNotFoundError(
                    f"no photo in {source}; photos end in {', '.join(sorted(_PHOTO_ENDINGS))}{hint}"
                )
            _tell_of_others(source, entries)
            found += inside
        elif re.match(r"[a-z][a-z0-9+.-]*://", source, re.IGNORECASE):
            raise ValueError(f"{source} is an address; download the photo and name its file, or a folder of several")
        elif path.suffix.lower() in _VIDEO_ENDINGS:
            raise ValueError(f"{source} is a video; name its frames: ffmpeg -i VIDEO frames/%05d.png takes them out")
        elif path.is_file():
            found.append(path)
        elif glob.has_magic(source):
            found += _matches(source)
        else:
            raise FileNotFoundError(f"no photo or folder {source}")
    return list(dict.fromkeys(found))


def _matches(pattern: str) -> list[Path]:
    found = [Path(each) for each in glob.glob(pattern, recursive=True)]
    matches = sorted(path for path in found if _is_photo(path))
    if not matches:
        raise FileNotFoundError(f"no photo matches {pattern}; photos end in {', '.join(sorted(_PHOTO_ENDINGS))}")
    _tell_of_others(pattern, found)
    once = {path.resolve(): path for path in reversed(matches)}  # a link to a folder above would find all again
    return list(reversed(once.values()))


def _tell_of_others(source: str, paths: Iterable[Path]) -> None:
    """Say how many pictures and videos were passed over, by their endings."""
    others = Counter(ending for path in paths if (ending := path.suffix.lower()) in _OTHER_PHOTOS | _VIDEO_ENDINGS)
    if others:
        listed = ", ".join(f"{count} {ending}" for ending, count in sorted(others.items()))
        logger.warning(
            "%s: passed over %s (%s); save photos as JPEG or PNG, and name the frames of a video",
            *(source, counted(others.total(), "file"), listed),
        )


def _is_photo(path: Path) -> bool:
    is_hidden = path.name.startswith("._")  # what macOS leaves beside every file on a foreign disk
    return path.suffix.lower() in _PHOTO_ENDINGS and not is_hidden and path.is_file()


def output_names(photos: Sequence[Path], earlier: Mapping[str, str] | None = None) -> dict[Path, str]:
    """A name for the results of each photo: its own without the ending, numbered where two photos share one.

    ``earlier`` are the names that photos, by ``photo_key``, had in earlier runs: they keep them, and nobody else gets
    them. Names too long for the endings of the results are cut, and what Windows forbids in names becomes ``_``.
    """
    earlier = earlier or {}
    bases = {photo: _base_name(photo) for photo in photos}
    sharing = Counter(map(_name_key, bases.values()))
    reserved = set(map(_name_key, earlier.values()))
    names: dict[Path, str] = {}
    taken = set(sharing) | reserved
    for photo, base in bases.items():
        if (name := earlier.get(photo_key(shown_path(photo)))) is None:
            name, number = base, 1
            contested = sharing[_name_key(base)] > 1 or _name_key(base) in reserved
            while contested and _name_key(name) in taken:
                name, number = f"{base}_{number}", number + 1
        taken.add(_name_key(name))
        names[photo] = name
    return names


def _base_name(photo: Path) -> str:
    name = _FORBIDDEN.sub("_", os.fsencode(photo.stem).decode("utf-8", "replace"))
    if device := _DEVICE.match(name):
        name = f"{device[0]}_{name[device.end() :]}"
    return name.encode()[:_MOST_NAME_BYTES].decode("utf-8", "ignore")


def _name_key(name: str) -> str:
    """What two names share that some file systems take for one."""
    return unicodedata.normalize("NFC", name).casefold()


def shown_path(path: PurePath) -> str:
    """A path as text that any file can hold and any system reads; bytes that are no UTF-8 are written out."""
    return os.fsencode(path.as_posix()).decode("utf-8", "backslashreplace")


def photo_key(file: str) -> str:
    """What tells a photo, by its ``file`` in ``segments.json``, from others."""
    return os.path.normcase(os.path.abspath(file))


def check_output_dir(photos: Sequence[Path], folder: Path) -> None:
    """Raise ValueError if results would land among the photos, to replace one or to be segmented the next time."""
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"--output-dir {folder} is a file; name a folder")
    if folder.resolve() in {photo.resolve().parent for photo in photos}:
        raise ValueError(f"--output-dir {folder} holds photos to segment; name another folder")


def earlier_entries(folder: Path) -> list[dict[str, Any]]:
    """The entries that earlier runs left in a folder. Raises ValueError for a ``segments.json`` of another kind."""
    path = folder / SEGMENTS_NAME
    if not path.exists():
        return []
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
        for entry in entries:
            labels = entry["labels"]
            if not (isinstance(entry["file"], str) and labels.endswith("_labels.png") and Path(labels).name == labels):
                raise ValueError("no photo, or no name of its label map")
            _mask_names(entry)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ValueError(f"{path} is not one that infer.py wrote; move it, or name another --output-dir") from error
    return list(entries)


def remove_stale_masks(folder: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Delete the masks that an earlier run wrote of a photo and that this one did not write again."""
    for name in _mask_names(before) - _mask_names(now):
        (folder / name).unlink(missing_ok=True)


def _mask_names(entry: Mapping[str, Any]) -> set[str]:
    names = {segment["mask"] for segment in entry.get("segments", []) if "mask" in segment}
    if not all(re.fullmatch(r"[^/\\]+_mask_\d+\.png", name) for name in names):
        raise ValueError("a mask has a name that no mask is given")
    return names


def write_segments(folder: Path, entries: Sequence[dict[str, Any]]) -> None:
    """Write ``segments.json``, replacing the one before at once."""
    write_atomically(folder / SEGMENTS_NAME, json.dumps(entries, indent=2, ensure_ascii=False) + "\n")


@dataclass(frozen=True)
class Segmented:
    """A photo, upright, what was found in it, and its entry in ``segments.json``, which names what was written."""

    path: Path
    name: str
    photo: Image.Image
    prediction: Prediction
    entry: dict[str, Any]


@dataclass(frozen=True)
class Worker:
    """Takes photos from their files to their results; several threads may use one at the same time."""

    segmenter: Segmenter
    names: Mapping[Path, str]
    folder: Path
    opacity: float
    masks: bool
    scores: bool
    turn: AbstractContextManager[Any]  # held while the model runs
    provenance: Mapping[str, Any]

    def segment(self, paths: Sequence[Path]) -> list[Segmented | str]:
        """Segment photos in one batch and write what was found; a line in place of each where that fails."""
        done: dict[Path, Segmented | str] = {}
        photos: dict[Path, Image.Image] = {}
        for path in paths:
            try:
                photos[path] = open_photo(path)
            except (ValueError, OSError) as error:
                done[path] = _failure(path, error)
        try:
            with self.turn:
                found = self.segmenter.predict(list(photos.values()), probability=self.scores)
            for (path, photo), prediction in zip(photos.items(), found, strict=True):
                done[path] = self.write(path, photo, prediction)
        except (ValueError, OSError, RuntimeError, MemoryError) as error:  # such as a photo too large for the memory
            if len(photos) == 1:
                done.update((path, _failure(path, error)) for path in photos)
        # Of several photos each alone, when the error, and with it the memory that ran out, is let go.
        done.update((path, self.segment([path])[0]) for path in photos if path not in done)
        return [done[path] for path in paths]

    def write(self, path: Path, photo: Image.Image, prediction: Prediction) -> Segmented:
        """Write the pictures of one photo."""
        labels, colours = self.segmenter.model.config.id2label, self.segmenter.colours
        label_map, name = prediction.label_map, self.names[path]
        shares = class_shares(label_map, len(labels))
        pictures = {"labels": f"{name}_labels.png", "overlay": f"{name}_overlay.png"}
        self._save(label_map_picture(label_map, colours), pictures["labels"])
        tinted = overlay(photo, label_map, colours, self.opacity)
        self._save(with_legend(tinted, shares, labels, tints([tinted], [label_map], colours)), pictures["overlay"])
        scores = prediction.scores()
        segments = []
        for k, share in shares:
            segment: dict[str, Any] = {"label": labels[k], "id": k, "share": round(share, 6)}
            if scores is not None:
                segment["score"] = round(scores[k], 6)
            if self.masks:
                segment["mask"] = f"{name}_mask_{k:03d}.png"
                self._save(Image.fromarray(np.where(label_map == k, 255, 0).astype(np.uint8)), segment["mask"])
            segments.append(segment)
        size = {"width": photo.width, "height": photo.height}
        entry = {"file": shown_path(path), **size, **pictures, "segments": segments, "provenance": self.provenance}
        return Segmented(path, name, photo, prediction, entry)

    def _save(self, picture: Image.Image, name: str) -> None:
        picture.save(self.folder / name, compress_level=COMPRESS_LEVEL)


def _failure(path: Path, error: Exception) -> str:
    message = str(error) or type(error).__name__
    if said := out_of_memory(error):
        message = f"{said}; lower --batch-size, take --window 512, or --device cpu"
    return one_line(message if str(path) in message else f"{path}: {message}")


def segment_files(worker: Worker, photos: Sequence[Path], workers: int | None) -> Iterator[Segmented | str]:
    """What ``worker`` makes of every photo, in their order, by several threads that share the cores."""
    size = worker.segmenter.batch_size
    # Windows are batched inside a photo.
    size = 1 if worker.segmenter.views.window else size
    batches = [photos[first : first + size] for first in range(0, len(photos), size)]
    threads = torch.get_num_threads()
    workers = min(workers or _usual_workers(worker.segmenter, threads), len(batches))
    pool = ThreadPoolExecutor(workers, initializer=lambda: torch.set_num_threads(max(1, threads // workers)))
    waiting: deque[Future[list[Segmented | str]]] = deque()
    try:
        for batch in batches:
            waiting.append(pool.submit(worker.segment, batch))
            if len(waiting) > 2 * workers:  # results hold pictures; no more of them than are soon wanted
                yield from waiting.popleft().result()
        while waiting:
            yield from waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(threads)


def _usual_workers(segmenter: Segmenter, threads: int) -> int:
    if segmenter.device.type != "cpu":
        return 4  # one is on the device while the others read and write
    return 1 if segmenter.views.window else min(threads, _MOST_WORKERS)


def summary(name: str, segments: Sequence[dict[str, Any]], most: int = 5) -> str:
    """One line of the table on the terminal: a photo and its largest classes."""
    listed = ", ".join(f"{segment['label'].strip()} {segment['share']:.0%}" for segment in segments[:most])
    return f"{one_line(name):<28} {listed}" + (f" and {len(segments) - most} more" if len(segments) > most else "")


class Judgement:
    """What the predictions of several photos are worth where their truth is known; prints as a table of the classes."""

    def __init__(self, class_names: Sequence[str]) -> None:
        self._names = [name.strip() for name in class_names]
        self._all = DetailedConfusionMatrix(len(class_names))
        self._photos: dict[str, dict[str, float | None]] = {}

    def add(self, done: Segmented, truth: NDArray[np.uint8] | None) -> None:
        """Add a photo with its (H, W) truth, 255 where nothing is labelled; one without truth is passed over."""
        if truth is None:
            return
        one = DetailedConfusionMatrix(len(self._names))
        one.update(done.prediction.label_map, truth)
        self._all.add(one)
        scores = one.scores()
        self._photos[done.entry["file"]] = _strict(mean_iou=scores.mean_iou, pixel_accuracy=scores.overall_accuracy)

    def __len__(self) -> int:
        return len(self._photos)

    def write(self, folder: Path, provenance: Mapping[str, Any]) -> None:
        """Write ``scores.json``: over all photos, of every class, and of every photo."""
        scores = self._all.scores()
        columns = {
            "iou": scores.per_category_iou,
            "accuracy": scores.per_category_accuracy,
            "boundary_iou": scores.boundary.per_category_iou,
        }
        told = {
            **_strict(mean_iou=scores.mean_iou, pixel_accuracy=scores.overall_accuracy),
            **_strict(boundary_iou=scores.boundary.mean_iou),
            "mean_iou_by_size": _strict(**{size: each.mean_iou for size, each in scores.by_size.items()}),
            "classes": [
                {"class": name, **_strict(**{kind: column[k] for kind, column in columns.items()})}
                for k, name in enumerate(self._names)
            ],
            "photos": self._photos,
            "provenance": dict(provenance),
        }
        write_atomically(folder / SCORES_NAME, json.dumps(told, indent=2, ensure_ascii=False) + "\n")

    def __str__(self) -> str:
        scores = self._all.scores()
        photos = counted(len(self._photos), "photo")
        share = scores.labelled / max(scores.labelled.sum(), 1)
        columns = (each.tolist() for each in (scores.per_category_iou, scores.per_category_accuracy, share))
        table = class_table(self._names, *columns)
        means = f"mean IoU {scores.mean_iou:.4f} over {photos}, boundary IoU {scores.boundary.mean_iou:.4f}"
        return f"{table}\n{means}, see {SCORES_NAME}"


def _strict(**scores: float) -> dict[str, float | None]:
    """Scores as strict JSON has them: null for what is not a number."""
    return {name: float(score) if math.isfinite(score) else None for name, score in scores.items()}
