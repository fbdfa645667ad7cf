"""Photos in; label maps, overlays, masks and segments out.

    python infer.py photo.jpg holiday/ 'trips/**/*.jpg' --checkpoint runs/toy-1 --output-dir predictions

For every photo: ``<name>_labels.png``, a palette PNG whose values are the class ids, ``<name>_overlay.png`` with a
legend of the classes and their shares, with ``--masks`` a ``<name>_mask_<id>.png`` for each of its classes, and an
entry in ``segments.json``. That file keeps the entries of earlier runs into the same folder.

Photos are worked on side by side, each from its file to its results by one thread: on a CPU, where a model runs photo
by photo as fast as in batches, that keeps all cores busy while others read and write; a GPU takes turns and batches.
"""

from __future__ import annotations

import argparse
import glob
import json
import logging
import os
import re
import sys
import unicodedata
import warnings
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from threading import Semaphore
from typing import Any

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from segformer import Segmenter
from segformer.console import speak_plainly
from segformer.files import CONFIG_NAME, PROCESSOR_NAME, WEIGHTS_NAME, write_atomically
from segformer.pages.photo_page import PagePhoto, PhotoPage
from segformer.photos import open_photo
from segformer.pictures import class_shares, label_map_picture, overlay, palette, with_legend
from segformer.processor import ImageProcessor
from segformer.segmenter import Prediction
from segformer.views import Views

DEFAULT_CHECKPOINT = "nvidia/segformer-b0-finetuned-ade-512-512"
SEGMENTS_NAME = "segments.json"

_PHOTO_ENDINGS = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif"}
_VIDEO_ENDINGS = {".mp4", ".mov", ".avi", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg", ".wmv"}
# Of an overlay of 683 x 512, level 1 takes 8 ms and 189 KB, the default 6 takes 27 ms and 173 KB, 9 takes 105 ms.
COMPRESS_LEVEL = 1
_MOST_NAME_BYTES = 235  # what most file systems allow, less the longest ending and a number
_MOST_WORKERS = 8

logger = logging.getLogger(__name__)


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line: photos, how the model sees them (also put together as ``views``), and what is written where."""
    parser = argparse.ArgumentParser(description="Segment photos.")
    add = parser.add_argument
    add("photos", nargs="+", metavar="PHOTO", help="file, folder, or a glob such as 'trips/**/*.jpg'")
    add("--checkpoint", help=f"run folder, Hub id or weights file; else {DEFAULT_CHECKPOINT}, or the newest run")
    add("--output-dir", type=Path, default=Path("predictions"), help="where results are written")
    add("--opacity", type=float, default=0.5, help="of the colours on the overlay, 0 to 1")
    add("--html", type=Path, help="also write a page to explore, one file that opens anywhere")
    add("--annotations", type=Path, help="folder of label maps named like the photos, for the page's errors and IoU")
    add("--masks", action="store_true", help="also write a mask for every class in a photo")
    add("--scores", action="store_true", help="also the mean probability of every class's pixels")
    add("--resize", type=_resize, help="processor, keep-ratio, original or a side in pixels; else as the processor")
    add("--window", type=int, help="look at large photos in windows of so many pixels, at their original size")
    add("--overlap", type=int, help="pixels that windows share; else a quarter of the window")
    add("--flip", action="store_true", help="average with the mirror image")
    add("--scales", type=_scales, default=(1.0,), help="average over scales, such as 0.75,1,1.25")
    add("--batch-size", type=int, help="photos or windows that run at once; else 1 on a CPU and 8 on a GPU")
    add("--workers", type=int, help="photos worked on side by side; else one for each core, or one with windows")
    add("--device", help="device to run on; else CUDA, MPS or the CPU, the first there is")
    options = parser.parse_args(arguments)
    if not 0 <= options.opacity <= 1:
        parser.error(f"--opacity is {options.opacity}; it is from 0 (photo) to 1 (colours)")
    for name in ("batch_size", "workers"):
        if getattr(options, name) is not None and getattr(options, name) < 1:
            parser.error(f"--{name.replace('_', '-')} is {getattr(options, name)}; it must be above 0")
    try:
        options.views = Views(options.resize, options.window, options.overlap, options.flip, options.scales)
    except ValueError as error:
        parser.error(f"--{error}")
    return options


def _resize(text: str) -> int | str:
    return int(text) if text.isdecimal() else text


def _scales(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(scale) for scale in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no list of numbers with commas between") from None


def find_photos(sources: Iterable[str]) -> list[Path]:
    """The photos named, those in the folders named (not in folders inside), and those that globs find, each once.

    Raises FileNotFoundError for what finds nothing, and ValueError for addresses and videos.
    """
    found: list[Path] = []
    for source in sources:
        path = Path(source)
        if path.is_dir():
            inside = sorted(each for each in path.iterdir() if _is_photo(each))
            if not inside:
                raise FileNotFoundError(f"no photo in {source}; photos end in {', '.join(sorted(_PHOTO_ENDINGS))}")
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
    matches = sorted(path for path in map(Path, glob.glob(pattern, recursive=True)) if _is_photo(path))
    if not matches:
        raise FileNotFoundError(f"no photo matches {pattern}; photos end in {', '.join(sorted(_PHOTO_ENDINGS))}")
    return matches


def _is_photo(path: Path) -> bool:
    return path.suffix.lower() in _PHOTO_ENDINGS and path.is_file()


def output_names(photos: Sequence[Path], earlier: Mapping[str, str] | None = None) -> dict[Path, str]:
    """A name for the results of each photo: its own without the ending, numbered where two photos share one.

    ``earlier`` are the names that photos, by their absolute paths, had in earlier runs: they keep them, and nobody else
    gets them. Names too long for the endings of the results are cut.
    """
    earlier = earlier or {}
    bases = {photo: _base_name(photo) for photo in photos}
    sharing = Counter(map(_name_key, bases.values()))
    reserved = set(map(_name_key, earlier.values()))
    names: dict[Path, str] = {}
    taken = set(sharing) | reserved
    for photo, base in bases.items():
        if (name := earlier.get(os.path.abspath(_shown_path(photo)))) is None:
            name, number = base, 1
            contested = sharing[_name_key(base)] > 1 or _name_key(base) in reserved
            while contested and _name_key(name) in taken:
                name, number = f"{base}_{number}", number + 1
        taken.add(_name_key(name))
        names[photo] = name
    return names


def _base_name(photo: Path) -> str:
    return os.fsencode(photo.stem).decode("utf-8", "replace").encode()[:_MOST_NAME_BYTES].decode("utf-8", "ignore")


def _name_key(name: str) -> str:
    """What two names share that some file systems take for one."""
    return unicodedata.normalize("NFC", name).casefold()


def _shown_path(path: Path) -> str:
    """A path as text that any file can hold; bytes that are no UTF-8 are written out."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def one_line(text: str) -> str:
    """A message without line breaks and other control characters, which the name of a file may hold."""
    unseen = {"Cc", "Cs", "Zl", "Zp"}
    return "".join(ascii(letter)[1:-1] if unicodedata.category(letter) in unseen else letter for letter in text.strip())


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


def load_segmenter(options: argparse.Namespace) -> Segmenter:
    """The segmenter of ``--checkpoint``; of none, the default's, or where it cannot be had, the newest run's."""

    def load(source: str | Path) -> Segmenter:
        return Segmenter.from_pretrained(
            source, device=options.device, views=options.views, batch_size=options.batch_size
        )

    if options.checkpoint is not None:
        return load(options.checkpoint)
    try:
        return load(DEFAULT_CHECKPOINT)
    except OSError as error:
        run = newest_run(Path("runs"))
        if run is None:
            raise OSError(f"{error}; pass --checkpoint, or train a model first: python train.py") from error
        logger.warning("%s; taking the newest run instead: %s", one_line(str(error)), run)
        return load(run)


def newest_run(runs: Path) -> Path | None:
    """The folder in ``runs`` whose model was written last, or None if there is none with all its files."""
    wanted = (WEIGHTS_NAME, CONFIG_NAME, PROCESSOR_NAME)
    finished = [run for run in runs.glob("*") if all((run / name).is_file() for name in wanted)]
    return max(finished, key=lambda run: (run / WEIGHTS_NAME).stat().st_mtime, default=None)


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
            if len(photos) > 1:
                return [self.segment([path])[0] for path in paths]
            done.update((path, _failure(path, error)) for path in photos)
        return [done[path] for path in paths]

    def write(self, path: Path, photo: Image.Image, prediction: Prediction) -> Segmented:
        """Write the pictures of one photo."""
        labels = self.segmenter.model.config.id2label
        colours = palette(len(labels))
        label_map, name = prediction.label_map, self.names[path]
        shares = class_shares(label_map, len(labels))
        pictures = {"labels": f"{name}_labels.png", "overlay": f"{name}_overlay.png"}
        self._save(label_map_picture(label_map, colours), pictures["labels"])
        tinted = overlay(photo, label_map, colours, self.opacity)
        self._save(with_legend(tinted, shares, labels, colours), pictures["overlay"])
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
        entry = {"file": _shown_path(path), **size, **pictures, "segments": segments}
        return Segmented(path, name, photo, prediction, entry)

    def _save(self, picture: Image.Image, name: str) -> None:
        picture.save(self.folder / name, compress_level=COMPRESS_LEVEL)


def _failure(path: Path, error: Exception) -> str:
    message = str(error) or type(error).__name__
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


def infer(options: argparse.Namespace) -> list[str]:
    """Segment every photo; return a line for each that could not be. The others are written all the same."""
    photos = find_photos(options.photos)
    folder: Path = options.output_dir
    check_output_dir(photos, folder)
    earlier = {os.path.abspath(entry["file"]): entry for entry in earlier_entries(folder)}
    names = output_names(photos, {file: entry["labels"][: -len("_labels.png")] for file, entry in earlier.items()})
    segmenter = load_segmenter(options)
    folder.mkdir(parents=True, exist_ok=True)
    turn = nullcontext() if segmenter.device.type == "cpu" else Semaphore(2)  # one prepares while the other computes
    worker = Worker(segmenter, names, folder, options.opacity, options.masks, options.scores, turn)
    labels = segmenter.model.config.id2label
    page = PhotoPage(list(labels.values()), palette(len(labels)), len(photos)) if options.html else None
    results: dict[str, dict[str, Any]] = {}
    failures: list[str] = []
    bar = tqdm(total=len(photos), unit="image", disable=None if len(photos) > 1 else True)
    try:
        with bar, logging_redirect_tqdm():
            for done in segment_files(worker, photos, options.workers):
                bar.update()
                if isinstance(done, str):
                    failures.append(done)
                    continue
                file = os.path.abspath(done.entry["file"])
                results[file] = done.entry
                remove_stale_masks(folder, earlier.get(file, {}), done.entry)
                tqdm.write(summary(done.name, done.entry["segments"]), file=sys.stdout)
                if page:
                    failures += add_to_page(page, done, options.annotations, segmenter.processor)
    finally:  # what was done is told even if something stops the rest
        kept = [entry for file, entry in earlier.items() if file not in results]
        write_segments(folder, [*kept, *results.values()])
    if page:
        page.write(options.html, "Predictions", {"Checkpoint": options.checkpoint or DEFAULT_CHECKPOINT})
    others = f", which has {len(kept)} from before" if kept else ""
    print(f"{len(results)} photo{'' if len(results) == 1 else 's'} in {folder}{others}")
    return failures


def remove_stale_masks(folder: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Delete the masks that an earlier run wrote of a photo and that this one did not write again."""
    for name in _mask_names(before) - _mask_names(now):
        (folder / name).unlink(missing_ok=True)


def _mask_names(entry: Mapping[str, Any]) -> set[str]:
    names = {segment["mask"] for segment in entry.get("segments", []) if "mask" in segment}
    if not all(re.fullmatch(r"[^/\\]+_mask_\d+\.png", name) for name in names):
        raise ValueError("a mask has a name that no mask is given")
    return names


def add_to_page(page: PhotoPage, done: Segmented, annotations: Path | None, processor: ImageProcessor) -> list[str]:
    """Show a photo on the page, with its truth if there is one; return what is wrong with it, if anything."""
    found = sorted(annotations.glob(f"{glob.escape(done.path.stem)}.*")) if annotations else []
    try:
        truth = None
        if found:
            with Image.open(found[0]) as stored:
                truth = processor.reduce_labels(np.array(stored)).astype(np.uint8)
        page.add(PagePhoto(done.name, done.photo, done.prediction.label_map, done.prediction.scores(), truth))
    except (ValueError, OSError) as error:
        return [one_line(f"{done.path}: not on the page: {error}")]
    return []


def write_segments(folder: Path, entries: Sequence[dict[str, Any]]) -> None:
    """Write ``segments.json``, replacing the one before at once."""
    write_atomically(folder / SEGMENTS_NAME, json.dumps(entries, indent=2, ensure_ascii=False) + "\n")


def main() -> int:
    """Run from the command line; the exit status is 1 if any photo could not be read."""
    speak_plainly()
    warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # Pillow refuses what is really too large
    options = parse_arguments()
    try:
        failures = infer(options)
    except (ValueError, OSError) as error:
        failures = [one_line(str(error))]
    except KeyboardInterrupt:
        failures = [f"interrupted; what was done is in {options.output_dir}"]
    for failure in failures:
        print(f"error: {failure}", file=sys.stderr)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
