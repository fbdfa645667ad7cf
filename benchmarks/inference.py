"""``infer.py`` over a folder of photos against a transformers pipeline that writes the same files.

    python -m benchmarks.inference --photos holiday --checkpoint nvidia/segformer-b0-finetuned-ade-512-512 --large

Both sides load the checkpoint, read every photo, and write its label map, its overlay with a legend and one JSON file,
with the same code and PNG level; the other side is the loop that one writes around a pipeline. Before anything is timed
the files are compared. ``--large`` adds a photo of 24 megapixels, seen in windows by ``infer.py`` in a process of its
own: its time, and the most memory that the whole process held.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

import infer
from benchmarks import measure, peers
from benchmarks.worker import alone
from data import SceneParse150
from segformer import predictions
from segformer.photos import open_photo
from segformer.pictures import class_shares, label_map_picture, overlay, palette, tints, with_legend

_COLUMNS = ["photos", "ms", "peer_ms", "ratio", "images_per_second", "peer_images_per_second", "pixel_agreement"]
_LARGE_COLUMNS = ["width", "height", "window", "seconds", "peak_memory_mib"]
_LARGE = (6000, 4000)
_LEAST_AGREEMENT = 0.9999


def make_photos(folder: Path, dataset: str, count: int) -> Path:
    """Write ``count`` photos of a dataset as JPEG files, again from the first where it has fewer."""
    scenes = SceneParse150(dataset, "validation")
    folder.mkdir()
    for number in range(count):
        scenes[number % len(scenes)][0].save(folder / f"{number:04d}.jpg", quality=92)
    return folder


def ours(photos: Path, checkpoint: str, output: Path) -> None:
    """``infer.py`` itself, without what it prints."""
    words = [str(photos), "--checkpoint", checkpoint, "--output-dir", str(output), "--device", "cpu"]
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        failures = infer.infer(infer.parse_arguments(words))
    if failures:
        raise SystemExit("\n".join(failures))


def pipeline_loop(photos: Path, checkpoint: str, output: Path) -> None:
    """The same files by transformers' image-segmentation pipeline, photo by photo."""
    from transformers import pipeline

    model = peers.transformers_model(checkpoint, torch.device("cpu"))
    processor = peers.transformers_processor(checkpoint)
    segment = pipeline("image-segmentation", model=model, image_processor=processor, device="cpu")
    names = model.config.id2label
    ids = {name: k for k, name in names.items()}
    colours = palette(len(names))
    output.mkdir(parents=True, exist_ok=True)
    entries = []
    for path in predictions.find_photos([str(photos)]):
        photo = open_photo(path)
        label_map = np.zeros((photo.height, photo.width), dtype=np.uint8)
        for segmented in segment(photo):
            label_map[np.asarray(segmented["mask"]) == 255] = ids[segmented["label"]]
        shares = class_shares(label_map, len(names))
        pictures = {"labels": f"{path.stem}_labels.png", "overlay": f"{path.stem}_overlay.png"}
        tinted = overlay(photo, label_map, colours)
        tinted = with_legend(tinted, shares, names, tints([tinted], [label_map], colours))
        for picture, name in zip((label_map_picture(label_map, colours), tinted), pictures.values(), strict=True):
            picture.save(output / name, compress_level=predictions.COMPRESS_LEVEL)
        segments = [{"label": names[k], "id": k, "share": round(share, 6)} for k, share in shares]
        size = {"width": photo.width, "height": photo.height}
        entries.append({"file": str(path), **size, **pictures, "segments": segments})
    predictions.write_segments(output, entries)


def agreement(one: Path, other: Path) -> float:
    """The share of pixels on which the label maps in two folders agree. Stops where the folders hold other files."""
    files, others = (sorted(path.name for path in folder.iterdir()) for folder in (one, other))
    if files != others:
        raise SystemExit(f"the two ways do not write the same files: {set(files) ^ set(others)}; nothing was timed")
    equal = pixels = 0
    for name in (name for name in files if name.endswith("_labels.png")):
        label_map, expected = (np.asarray(Image.open(folder / name)) for folder in (one, other))
        equal += int(np.count_nonzero(label_map == expected))
        pixels += label_map.size
    return equal / pixels


def row(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Compare and time both ways on the same photos."""
    photos = options.photos or make_photos(folder / "photos", options.dataset, options.count)
    count = len(predictions.find_photos([str(photos)]))
    ways: dict[str, Callable[[], None]] = {
        "ours": lambda: ours(photos, options.checkpoint, folder / "ours"),
        "peer": lambda: pipeline_loop(photos, options.checkpoint, folder / "peer"),
    }
    for way in ways.values():
        way()
    equal = agreement(folder / "ours", folder / "peer")
    if equal < _LEAST_AGREEMENT:
        raise SystemExit(f"the two ways agree on {equal:.4%} of the pixels only; nothing was timed")
    result: dict[str, Any] = {"photos": count, "pixel_agreement": equal}
    result |= measure.side_by_side(ways, torch.device("cpu"), options.repeats, per=count)
    return result | {f"{side}images_per_second": 1e3 / result[f"{side}ms"] for side in ("", "peer_")}


def large_row(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Segment one photo of 24 megapixels in a process of its own."""
    photo = folder / "large.jpg"
    scene = SceneParse150(options.dataset, "validation")[0][0]
    scene.resize(_LARGE, Image.Resampling.BILINEAR).save(photo, quality=92)
    measured = alone(partial(segment_large, photo, options.checkpoint, options.window))
    return {"width": _LARGE[0], "height": _LARGE[1], "window": options.window, **measured}


def segment_large(photo: Path, checkpoint: str, window: int) -> dict[str, float]:
    """Segment a large photo here; the memory is the most that this process ever held, libraries included (Linux)."""
    words = [str(photo), "--checkpoint", checkpoint, "--output-dir", str(photo.parent / "large")]
    started = time.perf_counter()
    with contextlib.redirect_stdout(io.StringIO()):
        failures = infer.infer(infer.parse_arguments([*words, "--device", "cpu", "--window", str(window)]))
    if failures:
        raise SystemExit("\n".join(failures))
    seconds = time.perf_counter() - started
    status = Path("/proc/self/status").read_text().splitlines()
    peak_kib = int(next(line for line in status if line.startswith("VmHWM:")).split()[1])
    return {"seconds": seconds, "peak_memory_mib": peak_kib / 1024}


def main() -> None:
    """Compare, measure, report."""
    parser = measure.flags(__doc__, "inference", repeats=3, on_device=False)
    parser.add_argument("--photos", type=Path, help="a folder of photos; else some are made from --dataset")
    parser.add_argument("--dataset", default="toy", help="where photos come from, as train.py's --dataset")
    parser.add_argument("--count", type=int, default=100, help="how many to make")
    parser.add_argument("--checkpoint", default=infer.DEFAULT_CHECKPOINT, help="Hub id or run folder")
    parser.add_argument("--large", action="store_true", help="also a photo of 24 megapixels, in windows")
    parser.add_argument("--window", type=int, default=512, help="pixels of such a window")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows = [row(options, folder)]
        if options.large:
            rows.append(large_row(options, folder))
    columns = _COLUMNS + _LARGE_COLUMNS if options.large else _COLUMNS
    measure.report("inference", measure.machine_card(torch.device("cpu")), rows, columns, options.save)


if __name__ == "__main__":
    main()
