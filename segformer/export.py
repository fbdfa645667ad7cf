"""``python -m segformer.export RUN OUT``: a model for other runtimes, or as a page that needs nothing but a browser.

python -m segformer.export runs/toy-1 model.onnx
python -m segformer.export runs/toy-1 model.pt2 --compile
python -m segformer.export runs/toy-1 site/
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from segformer.console import FlagParser, one_line, speak_plainly
from segformer.pages.model_page import find_runtime, page_folder, write_model_page
from segformer.predictions import Segmented
from segformer.provenance import told_of
from segformer.segmenter import Prediction, Segmenter
from segformer.weights.export import ENDINGS, RESIZES, Exported, export
from segformer.weights.graphs import OnnxModel
from segformer.weights.int8 import Examples, Truths

__all__ = ["export", "export_page"]

MODEL_NAME = "model.onnx"  # in the folder of a page


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line: which model, to where, and as what."""
    parser = FlagParser(prog="python -m segformer.export", description="Write a model for other runtimes.")
    add = parser.add_argument
    add("source", metavar="RUN", help="run folder, Hub id or weights file")
    add("out", metavar="OUT", help="file in .onnx, in .pt2 for torch.export, or a folder for a page that runs it")
    add("--whole", action="store_true", help="from uint8 photos (B, H, W, 3) to label maps (B, H, W)")
    add("--resize", choices=RESIZES, default="processor", help="at which size a whole graph sees photos")
    add("--photo", help="compare graph and model on this photo; else on a made one")
    add("--int8", metavar="FOLDER", help="8 bits for 32, and what that costs on the photos of a folder")
    add("--annotations", type=Path, help="folder of label maps named like those photos, for the mean IoU of both")
    add("--compile", action="store_true", help="machine code in a .pt2, for machines like this one")
    add("--runtime", type=Path, help="folder of onnxruntime-web's files for a page; else that of an npm package")
    add("--overwrite", action="store_true", help="replace OUT if it is there")
    options = parser.parse_args(arguments)
    path = Path(options.out)
    options.is_page = path.suffix == "" or options.out.endswith(("/", "\\"))
    kind = "page" if options.is_page else path.suffix
    for flag, given, kinds in (
        ("--compile", options.compile, (".pt2",)),
        ("--int8", options.int8, (".onnx",)),
        ("--runtime", options.runtime, ("page",)),
        ("--whole", options.whole, ENDINGS),
    ):
        if given and kind not in kinds:
            takes = " or ".join("a folder" if each == "page" else each for each in kinds)
            parser.error(f"{flag} goes with an OUT that is {takes}, and {options.out} is not")
    if options.resize != "processor" and not options.whole:
        parser.error("--resize says how a whole graph sees photos; pass --whole, too")
    if options.annotations and not options.int8:
        parser.error("--annotations says what --int8 costs; pass --int8, too")
    return options


def export_page(
    source: str | Path,
    folder: str | Path,
    runtime: str | Path | None = None,
    overwrite: bool = False,
    photo: str | Path | None = None,
) -> Exported:
    """Write a folder with a page that segments photos in a browser, and the graph in it as a file of its own.

    The graph is of 32 bits: of 8, a browser and Python would round differently, and one pixel in a hundred turn over.
    ``runtime`` is a folder with onnxruntime-web's files; left out, that of an npm package within reach. Raises
    ValueError or OSError, and leaves ``folder`` as it was, where that or ``export`` fails.
    """
    found = find_runtime(None if runtime is None else Path(runtime))
    with page_folder(Path(folder), overwrite) as unfinished:
        graph = unfinished / MODEL_NAME
        done = export(source, graph, photo=photo)
        segmenter = Segmenter.from_pretrained(graph)
        origin = cast(OnnxModel, segmenter.model).provenance
        facts = told_of(origin) | {
            "Graph": f"{MODEL_NAME}, {graph.stat().st_size / 2**20:.1f} MiB; with the model, {done.compared}"
        }
        title = f"Segment photos with {origin.get('checkpoint') or 'a model'}"
        write_model_page(unfinished, segmenter, graph, found, title, facts)
    return Exported(Path(folder) / MODEL_NAME, done.inputs, done.outputs, done.compared)


def examples_of(options: argparse.Namespace) -> Examples | None:
    """The photos of ``--int8``, and what ``--annotations`` knows of them."""
    if options.int8 is None:
        return None
    examples = Examples.of_folder(options.int8)
    if options.annotations is None:
        return examples
    try:
        from infer import LABEL_MAPS  # which a clone has: it knows what they mean
    except ImportError as error:
        raise ValueError("--annotations needs a clone, whose code reads label maps; run this in its folder") from error
    photos, label_maps = LABEL_MAPS.pair(options.annotations, examples.photos)

    def open_truths(segmenter: Segmenter) -> Truths:
        truths = LABEL_MAPS.open(label_maps, options.source, segmenter, False)

        def truth_of(path: Path, photo: Image.Image) -> NDArray[np.uint8] | None:
            nothing = Prediction(np.zeros((photo.height, photo.width), np.uint8))
            return truths(Segmented(path, path.stem, photo, nothing, {}))

        return truth_of

    return Examples(photos, open_truths)


def run(options: argparse.Namespace) -> str:
    """Write what is asked for; what to say of it."""
    if options.is_page:
        done = export_page(options.source, options.out, options.runtime, options.overwrite, options.photo)
        page = done.path.with_name("index.html")
        return f"{done}\n{page}: opens in a browser, from the disk or any web server"
    whole = (options.whole, options.resize, options.photo, options.overwrite)
    return str(export(options.source, options.out, *whole, options.compile, examples_of(options)))


def main() -> int:
    """Run from the command line; what cannot be written is told in one line."""
    speak_plainly()
    try:
        print(run(parse_arguments()))
    except (ValueError, OSError) as error:
        print(f"error: {one_line(str(error))}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
