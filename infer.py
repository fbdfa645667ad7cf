"""Photos in; label maps, overlays, masks and segments out.

    python infer.py photo.jpg holiday/ 'trips/**/*.jpg' --checkpoint runs/toy-1 --output-dir predictions

For every photo: ``<name>_labels.png``, a palette PNG whose values are the class ids, ``<name>_overlay.png`` with a
legend of the classes and their shares, with ``--masks`` a ``<name>_mask_<id>.png`` for each of its classes, and an
entry in ``segments.json``. That file keeps the entries of earlier runs into the same folder.
segformer/predictions.py names and writes them.
"""

from __future__ import annotations

import argparse
import glob
import logging
import os
import re
import sys
import warnings
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from pathlib import Path
from threading import Semaphore
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from segformer import Segmenter
from segformer.console import one_line, speak_plainly
from segformer.files import CONFIG_NAME, PROCESSOR_NAME, WEIGHTS_NAME
from segformer.pages.photo_page import PagePhoto, PhotoPage
from segformer.pictures import palette
from segformer.predictions import (
    Segmented,
    Worker,
    check_output_dir,
    earlier_entries,
    output_names,
    remove_stale_masks,
    segment_files,
    write_segments,
)
from segformer.processor import ImageProcessor
from segformer.views import Views

DEFAULT_CHECKPOINT = "nvidia/segformer-b0-finetuned-ade-512-512"

_PHOTO_ENDINGS = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif"}
_VIDEO_ENDINGS = {".mp4", ".mov", ".avi", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg", ".wmv"}

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
