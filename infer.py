"""Photos in; label maps, overlays and segments out.

    python infer.py photo.jpg holiday/ --checkpoint runs/toy-1 --output-dir predictions

For every photo: ``<name>_labels.png``, a palette PNG whose values are the class ids, ``<name>_overlay.png`` with a
legend of the classes and their shares, and an entry in ``segments.json``.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from tqdm import tqdm

from segformer import Segmenter
from segformer.pictures import class_shares, label_map_picture, overlay, palette, with_legend
from segformer.processor import open_photo

DEFAULT_CHECKPOINT = "nvidia/segformer-b0-finetuned-ade-512-512"
_PHOTO_ENDINGS = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif"}


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line: photos and where to put what was found in them."""
    parser = argparse.ArgumentParser(description="Segment photos.")
    parser.add_argument("photos", nargs="+", metavar="IMAGE_OR_FOLDER")
    parser.add_argument("--checkpoint", default=DEFAULT_CHECKPOINT, help="Hub id, run folder or weights file")
    parser.add_argument("--output-dir", type=Path, default=Path("predictions"), help="where results are written")
    parser.add_argument("--opacity", type=float, default=0.5, help="of the colours on the overlay, 0 to 1")
    parser.add_argument("--device", help="device to run on; else CUDA, MPS or the CPU, the first there is")
    options = parser.parse_args(arguments)
    if not 0 <= options.opacity <= 1:
        parser.error(f"--opacity is {options.opacity}; it is from 0 (photo) to 1 (colours)")
    return options


def find_photos(sources: Sequence[str]) -> list[Path]:
    """The photos named, and those in the folders named, in order and each once."""
    found: list[Path] = []
    for source in map(Path, sources):
        if source.is_dir():
            inside = sorted(path for path in source.iterdir() if _is_photo(path))
            if not inside:
                raise FileNotFoundError(f"no photo in {source}; photos end in {', '.join(sorted(_PHOTO_ENDINGS))}")
            found += inside
        elif source.is_file():
            found.append(source)
        else:
            raise FileNotFoundError(f"no photo or folder {source}")
    return list(dict.fromkeys(found))


def _is_photo(path: Path) -> bool:
    return path.suffix.lower() in _PHOTO_ENDINGS and path.is_file()


def output_names(photos: Sequence[Path]) -> dict[Path, str]:
    """A name for the results of each photo: its own without the ending, numbered where two photos share one."""
    stems = Counter(photo.stem for photo in photos)
    names: dict[Path, str] = {}
    taken = set(stems)
    for photo in photos:
        name, number = photo.stem, 1
        while stems[photo.stem] > 1 and name in taken:
            name, number = f"{photo.stem}_{number}", number + 1
        taken.add(name)
        names[photo] = name
    return names


def write_photo(segmenter: Segmenter, photo: Image.Image, folder: Path, name: str, opacity: float) -> list[Any]:
    """Segment one photo and write its two pictures; return its classes, largest first."""
    names = segmenter.model.config.id2label
    colours = palette(len(names))
    label_map = segmenter.label_map(photo)
    shares = class_shares(label_map, len(names))
    # The fastest level: the default one takes as long as half a forward pass and saves little.
    label_map_picture(label_map, colours).save(folder / f"{name}_labels.png", compress_level=1)
    picture = with_legend(overlay(photo, label_map, colours, opacity), shares, names, colours)
    picture.save(folder / f"{name}_overlay.png", compress_level=1)
    return [{"label": names[k], "id": k, "share": round(share, 6)} for k, share in shares]


def check_output_dir(photos: Sequence[Path], folder: Path) -> None:
    """Raise ValueError if results would land among the photos, to replace one or to be segmented the next time."""
    if folder.resolve() in {photo.resolve().parent for photo in photos}:
        raise ValueError(f"--output-dir {folder} holds photos to segment; name another folder")


def summary(name: str, segments: Sequence[dict[str, Any]], most: int = 5) -> str:
    """One line of the table on the terminal: a photo and its largest classes."""
    listed = ", ".join(f"{segment['label'].strip()} {segment['share']:.0%}" for segment in segments[:most])
    return f"{name:<28} {listed}" + (f" and {len(segments) - most} more" if len(segments) > most else "")


def infer(options: argparse.Namespace) -> list[str]:
    """Segment every photo; return a line for each that could not be read. The others are written all the same."""
    photos = find_photos(options.photos)
    names = output_names(photos)
    check_output_dir(photos, options.output_dir)
    segmenter = Segmenter.from_pretrained(options.checkpoint, device=options.device)
    options.output_dir.mkdir(parents=True, exist_ok=True)
    results: list[dict[str, Any]] = []
    failures = []
    try:
        for path in tqdm(photos, unit="image", disable=None if len(photos) > 1 else True):
            try:
                photo = open_photo(path)
                segments = write_photo(segmenter, photo, options.output_dir, names[path], options.opacity)
            except (ValueError, OSError) as error:
                failures.append(str(error))
                continue
            pictures = {"labels": f"{names[path]}_labels.png", "overlay": f"{names[path]}_overlay.png"}
            size = {"width": photo.width, "height": photo.height}
            results.append(
                {
                    "file": os.fsencode(path).decode("utf-8", "backslashreplace"),
                    **size,
                    **pictures,
                    "segments": segments,
                }
            )
            tqdm.write(summary(names[path], segments), file=sys.stdout)
    finally:  # what was done is told even if something stops the rest
        text = json.dumps(results, indent=2, ensure_ascii=False)
        (options.output_dir / "segments.json").write_text(text + "\n", encoding="utf-8")
    print(f"{len(results)} photos in {options.output_dir}")
    return failures


def main() -> int:
    """Run from the command line; the exit status is 1 if any photo could not be read."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    options = parse_arguments()
    try:
        failures = infer(options)
    except (ValueError, OSError) as error:
        failures = [str(error)]
    for failure in failures:
        print(f"error: {failure}", file=sys.stderr)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
