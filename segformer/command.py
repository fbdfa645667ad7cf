"""The command that segments photos, as ``segformer-infer``, ``python -m segformer`` and a clone's ``infer.py``.

It needs nothing but this package, except to read label maps: what their values mean is known to the code that trains,
which only a clone has and ``infer.py`` brings along.
"""

from __future__ import annotations

import argparse
import logging
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from threading import Semaphore
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from segformer.console import counted, one_line, speak_plainly
from segformer.files import CONFIG_NAME, PROCESSOR_NAME, WEIGHTS_NAME
from segformer.machine import keep_freed_memory, out_of_memory
from segformer.pages.photo_page import PagePhoto, PhotoPage
from segformer.predictions import (
    SCORES_NAME,
    Judgement,
    Segmented,
    Worker,
    check_output_dir,
    earlier_entries,
    find_photos,
    output_names,
    photo_key,
    remove_stale_masks,
    segment_files,
    summary,
    write_segments,
)
from segformer.provenance import provenance, told_of
from segformer.segmenter import Segmenter
from segformer.views import Views
from segformer.weights.publish import shareable

DEFAULT_CHECKPOINT = "nvidia/segformer-b0-finetuned-ade-512-512"

_NEEDS_A_CLONE = (
    "--annotations needs a clone: label maps are read by the code that trains, which is not installed; leave it out, "
    "or run the clone's python infer.py"
)

# The (H, W) truth of a photo, class ids and 255 where nothing is labelled; None without a label map.
Truths = Callable[[Segmented], NDArray[np.uint8] | None]
# Truths from the label maps of photos, for the model of a source, which may be said to be binary masks.
OpenTruths = Callable[[Mapping[Path, Path], str, Segmenter, bool], Truths]
# The photos that are none of the label maps in a folder, and the label map of each that has one.
PairPhotos = Callable[[Path, Sequence[Path]], tuple[list[Path], dict[Path, Path]]]


class LabelMaps(NamedTuple):
    """How label maps are found and how they are read."""

    pair: PairPhotos
    open: OpenTruths


logger = logging.getLogger(__name__)


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line: photos, how the model sees them (also put together as ``views``), and what is written where."""
    started_as_module = Path(sys.argv[0]).name == "__main__.py"
    program = "python -m segformer" if started_as_module else None
    parser = argparse.ArgumentParser(program, description="Segment photos.")
    add = parser.add_argument
    add("photos", nargs="+", metavar="PHOTO", help="file, folder, or a glob such as 'trips/**/*.jpg'")
    add("--checkpoint", help=f"run folder, Hub id, weights file or .onnx; else {DEFAULT_CHECKPOINT}, or the newest run")
    add("--output-dir", type=Path, default=Path("predictions"), help="where results are written")
    add("--opacity", type=float, default=0.5, help="of the colours on the overlay, 0 to 1")
    add("--html", type=Path, help="also write a page to explore, one file that opens anywhere")
    add("--annotations", type=Path, help="folder of label maps named like the photos, for the page's errors and IoU")
    add("--binary-masks", action="store_true", help="of --annotations, every value above 0 is the object, 255 too")
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
    if options.binary_masks and not options.annotations:
        parser.error("--binary-masks says how label maps are read; name their folder as --annotations")
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


def load_segmenter(options: argparse.Namespace) -> tuple[Segmenter, str]:
    """The segmenter of ``--checkpoint`` and its name; of none, the default's, or out of its reach the newest run's."""

    def load(source: str) -> tuple[Segmenter, str]:
        made = {"device": options.device, "views": options.views, "batch_size": options.batch_size}
        segmenter = Segmenter.from_pretrained(source, **made)
        if options.scores and segmenter.no_probabilities:
            raise ValueError(f"--scores: {segmenter.no_probabilities}")
        return segmenter, source

    if options.checkpoint is not None:
        return load(options.checkpoint)
    try:
        return load(DEFAULT_CHECKPOINT)
    except OSError as error:
        run = newest_run(Path("runs"))
        if run is None:
            raise OSError(f"{error}; pass --checkpoint, or train a model first: python train.py") from error
        logger.warning("%s; taking the newest run instead: %s", one_line(str(error)), run)
        return load(str(run))


def newest_run(runs: Path) -> Path | None:
    """The folder in ``runs`` whose model was written last, or None if there is none with all its files."""
    wanted = (WEIGHTS_NAME, CONFIG_NAME, PROCESSOR_NAME)
    finished = [run for run in runs.glob("*") if all((run / name).is_file() for name in wanted)]
    return max(finished, key=lambda run: (run / WEIGHTS_NAME).stat().st_mtime, default=None)


def infer(options: argparse.Namespace, annotated: LabelMaps | None = None) -> list[str]:
    """Segment every photo; return a line for each that could not be. The others are written all the same.

    Unless it is known how label maps are ``annotated``, ``--annotations`` is refused.
    """
    photos, label_maps = find_photos(options.photos), dict[Path, Path]()
    folder: Path = options.output_dir
    check_output_dir(photos, folder)
    if options.annotations:
        if annotated is None:
            raise ValueError(_NEEDS_A_CLONE)
        photos, label_maps = annotated.pair(options.annotations, photos)
    earlier = {photo_key(entry["file"]): entry for entry in earlier_entries(folder)}
    names = output_names(photos, {file: entry["labels"][: -len("_labels.png")] for file, entry in earlier.items()})
    segmenter, source = load_segmenter(options)
    origin = provenance(shareable({"checkpoint": source})["checkpoint"], segmenter.model.load_report.path)
    told = label_maps, source, segmenter, options.binary_masks
    truths = annotated.open(*told) if annotated and label_maps else lambda _: None
    folder.mkdir(parents=True, exist_ok=True)
    turn = nullcontext() if segmenter.device.type == "cpu" else Semaphore(2)  # one prepares while the other computes
    worker = Worker(segmenter, names, folder, options.opacity, options.masks, options.scores, turn, origin)
    labels = list(segmenter.model.config.id2label.values())
    page = PhotoPage(labels, segmenter.colours, len(photos)) if options.html else None
    judged = Judgement(labels)
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
                file = photo_key(done.entry["file"])
                results[file] = done.entry
                remove_stale_masks(folder, earlier.get(file, {}), done.entry)
                tqdm.write(summary(done.name, done.entry["segments"]), file=sys.stdout)
                failures += show(done, truths, judged, page)
    finally:  # what was done is told even if something stops the rest
        kept = [entry for file, entry in earlier.items() if file not in results]
        write_segments(folder, [*kept, *results.values()])
    if page:
        page.write(options.html, "Predictions", told_of(origin))
    if label_maps and judged:
        judged.write(folder, origin)
        print(judged)
    elif results and (folder / SCORES_NAME).exists():
        (folder / SCORES_NAME).unlink()
        logger.info("removing %s of before, whose label maps these replace; --annotations scores", SCORES_NAME)
    others = f", which has {len(kept)} from before" if kept else ""
    print(f"{counted(len(results), 'photo')} in {folder}{others}")
    return failures


def show(done: Segmented, truths: Truths, judged: Judgement, page: PhotoPage | None) -> list[str]:
    """Score a photo and put it on the page, if there is one; return what is wrong with it, if anything."""
    try:
        truth = truths(done)
        judged.add(done, truth)
        if page:
            page.add(PagePhoto(done.name, done.photo, done.prediction.label_map, done.prediction.scores(), truth))
    except (ValueError, OSError) as error:
        return [one_line(f"{done.path}: not scored: {error}")]
    return []


def main(annotated: LabelMaps | None = None) -> int:
    """Run from the command line; the exit status is 1 if any photo could not be read."""
    speak_plainly()
    keep_freed_memory()
    warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # Pillow refuses what is really too large
    options = parse_arguments()
    try:
        failures = infer(options, annotated)
    except (ValueError, OSError) as error:
        failures = [one_line(str(error))]
    except RuntimeError as error:
        if (said := out_of_memory(error)) is None:
            raise
        failures = [f"{said}, before the first photo; free it of other programs, or pass --device cpu"]
    except KeyboardInterrupt:
        failures = [f"interrupted; what was done is in {options.output_dir}"]
    for failure in failures:
        print(f"error: {failure}", file=sys.stderr)
    return 1 if failures else 0
