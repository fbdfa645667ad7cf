"""A model as a graph for other runtimes: ``.onnx``, or ``.pt2`` of torch.export; batch, height and width stay open.

There are two graphs. One takes what a processor makes, images (B, 3, H, W), to logits (B, K, ceil(H/4), ceil(W/4)).
The ``whole`` one takes photos, (B, H, W, 3) uint8, to label maps (B, H, W): it resizes as the processor does, which is
as Pillow does, normalises, enlarges the logits to the photo and takes the most likely class; its enlarged logits exist,
K numbers for every pixel of a photo. Both hold the decoder at half its price, with BatchNorm multiplied in. Names of
the classes, palette, mean, standard deviation and origin travel along.

A file is written under another name, read back by the runtime that it is for, and compared with this package's own
label maps. It appears only where they agree.
"""

from __future__ import annotations

import argparse
import copy
import importlib
import io
import json
import logging
import sys
import warnings
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from segformer import fullres
from segformer.console import FlagParser, one_line, speak_plainly
from segformer.decoder import AllMLPDecoder, fuse
from segformer.model import Segformer
from segformer.photos import Photo, as_photo
from segformer.pictures import palette
from segformer.processor import ImageProcessor
from segformer.provenance import provenance
from segformer.segmenter import Segmenter
from segformer.views import Views
from segformer.weights.publish import shareable

OPSET = 18  # which every runtime of today reads; later ones bring nothing that this graph has
LEAST_AGREEMENT = 0.9999  # of pixels; the rest are near ties that rounding decides
# Where the graph resizes, a level may round to its neighbour: Pillow has weights of 22 bits, and goes down first and
# then across where its release finds that quicker.
LEAST_AGREEMENT_RESIZED = 0.999
METADATA_NAME = "metadata.json"  # in a .pt2

_NEEDED = ("onnx", "onnxscript", "onnxruntime")
_ENDINGS = (".onnx", ".pt2")
_RESIZES = ("processor", "original")
_TRACED_SIZE = (70, 94)  # no multiples of anything, so that no size is taken for granted

Run = Callable[[NDArray[Any]], NDArray[Any]]


@dataclass(frozen=True)
class Compared:
    """What a graph and the model make of the same photos."""

    equal_pixels: int
    pixels: int
    classes: int

    @property
    def agreement(self) -> float:
        """The share of pixels that both give the same class."""
        return self.equal_pixels / self.pixels

    def __str__(self) -> str:
        alike = "one class, which proves little" if self.classes == 1 else f"{self.classes} classes"
        return f"label maps agree on {self.agreement:.4%} of {self.pixels:,} pixels of {alike}"


@dataclass(frozen=True)
class Exported:
    """A graph that was written, and how it compared with the model."""

    path: Path
    inputs: str
    outputs: str
    compared: Compared

    def __str__(self) -> str:
        size = self.path.stat().st_size / 2**20
        opset = f", opset {OPSET}" if self.path.suffix == ".onnx" else ""
        return f"{self.path}: {size:.1f} MiB{opset}, {self.inputs} -> {self.outputs}; {self.compared}"


class FoldedDecoder(nn.Module):
    """``AllMLPDecoder`` in eval mode, with all that depends on its weights alone worked out beforehand."""

    def __init__(self, decoder: AllMLPDecoder) -> None:
        super().__init__()
        weights, bias = decoder.folded_weights()
        self.weights = nn.ParameterList(weights)
        self.bias = nn.Parameter(bias)
        self.classifier = decoder.classifier

    def forward(self, features: list[Tensor]) -> Tensor:
        return self.classifier(fuse(features, list(self.weights), self.bias).relu())


class LabelMaps(nn.Module):
    """Photos (B, H, W, 3) uint8 -> label maps (B, H, W), uint8 or beyond 256 classes int32.

    ``size`` is the (height, width) at which the model sees them; None leaves them as they are.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, model: nn.Module, processor: ImageProcessor, size: tuple[int, int] | None, num_labels: int):
        super().__init__()
        self.model, self.size = model, size
        self.kind = torch.uint8 if num_labels <= 256 else torch.int32
        ramp = Image.fromarray(np.arange(256, dtype=np.uint8)[None, :, None].repeat(3, 2))
        levels = replace(processor, do_resize=False).image_to_tensor(ramp)[:, 0]  # (3, 256)
        self.register_buffer("shift", levels[:, 0, None, None])
        self.register_buffer("scale", ((levels[:, 255] - levels[:, 0]) / 255)[:, None, None])

    def forward(self, photos: Tensor) -> Tensor:
        images = photos.permute(0, 3, 1, 2).float()  # (B, 3, H, W)
        size = images.shape[-2:]
        if self.size is not None:
            images = resize(images, self.size)
        logits = self.model(images * self.scale + self.shift)
        enlarged = F.interpolate(logits, size, mode="bilinear", align_corners=False)  # (B, K, H, W)
        return enlarged.argmax(1).to(self.kind)


def resize(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Pillow's bilinear filter, first across and then down, each rounded to whole levels: (B, 3, H, W) -> ``size``.

    Within one level of what Pillow gives. Written as two products with matrices, which every runtime has; not all
    have a filter that shrinks this way.
    """
    across, down = (_filter(length, side) for length, side in zip(images.shape[:1:-1], size[::-1], strict=True))
    images = (images @ across.T + 0.5).floor()  # (B, 3, H, width)
    return (down @ images + 0.5).floor()  # (B, 3, height, width)


def _filter(length: int, side: int) -> Tensor:
    """How much each of ``length`` pixels has of each of ``side``: (side, length), rows sum to 1."""
    places = torch.arange(length) + 0.5
    length_there = places[-1] + 0.5  # a tensor: the length is open in a graph
    centres = (2 * torch.arange(side) + 1) * length_there / (2 * side)  # the product is exact
    reach = (length_there / side).clamp(min=1)
    weights = (1 - (places - centres[:, None]).abs() / reach).clamp(min=0)
    return weights / weights.sum(1, keepdim=True)


def export(
    source: str | Path,
    out: str | Path,
    whole: bool = False,
    resize: str = "processor",
    photo: Photo | None = None,
    overwrite: bool = False,
) -> Exported:
    """Write a model, a Hub id, folder or weights file, as the graph that the ending of ``out`` names.

    ``resize`` says at which size the ``whole`` graph sees photos: "processor" or "original". It is compared with the
    model on ``photo``, or on a made one. Raises ValueError or OSError, and leaves ``out`` as it was, for an encoder
    without a decoder, for an ``out`` that is there already unless ``overwrite`` is set, for packages that are missing,
    and where the graph does not agree with the model.
    """
    path = Path(out)
    _check_out(path, overwrite)
    if path.suffix == ".onnx":
        _check_packages()
    segmenter = Segmenter.from_pretrained(source, "cpu", views=Views(resize=resize))
    graph, example = _graph(segmenter, whole, resize)
    told = _metadata(segmenter, str(source), whole, resize)
    picture = made_photo() if photo is None else as_photo(photo)
    unfinished = path.with_name(f"{path.name}.unfinished")
    try:
        run = _WRITERS[path.suffix](graph, example, told, unfinished)
        compared = _compare(run, segmenter, picture, whole)
        resizes = isinstance(graph, LabelMaps) and graph.size is not None
        least = LEAST_AGREEMENT_RESIZED if resizes else LEAST_AGREEMENT
        if compared.agreement < least:
            raise ValueError(
                f"{path} was not written, for {compared}; at least {least:.2%} must. Try --photo with one of "
                "the kind that it was trained on"
            )
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
    return Exported(path, told["input"], told["output"], compared)


def _check_out(path: Path, overwrite: bool) -> None:
    if path.suffix not in _ENDINGS:
        raise ValueError(f"{path} ends in {path.suffix or 'nothing'}; a graph is a file in {' or '.join(_ENDINGS)}")
    if path.is_dir():
        raise ValueError(f"{path} is a folder; name a file")
    if path.exists() and not overwrite:
        raise ValueError(f"{path} is there already; pass --overwrite, or name another file")
    if not path.absolute().parent.is_dir():
        raise FileNotFoundError(f"no folder {path.absolute().parent} to write {path.name} to; make it first")


def _check_packages() -> None:
    for name in _NEEDED:
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise ValueError(
                f"a graph in .onnx needs {name}, which is not there ({error}); pip install {' '.join(_NEEDED)}"
            ) from error


def _graph(segmenter: Segmenter, whole: bool, resize: str) -> tuple[nn.Module, Tensor]:
    """The module to write, and what it is traced with."""
    model: Segformer = copy.deepcopy(segmenter.model)
    with torch.no_grad():
        model.decoder = cast(AllMLPDecoder, FoldedDecoder(model.decoder))
    if not whole:
        return model.eval(), torch.zeros(2, 3, *_TRACED_SIZE)
    processor = segmenter.processor
    resizes = processor.do_resize and resize == "processor"
    if resizes and processor.resample != Image.Resampling.BILINEAR:
        name = Image.Resampling(processor.resample).name.lower()
        raise ValueError(
            f"the processor resizes by {name}; a whole graph does so bilinearly, or with --resize original"
        )
    if resizes and processor.resize_mode != "squash":
        raise ValueError(
            f"the processor keeps the shape of photos (resize_mode {processor.resize_mode}), which a whole graph does "
            "not; export one without --whole, or with --resize original"
        )
    size = processor.size if resizes else None
    photos = torch.zeros(2, *_TRACED_SIZE, 3, dtype=torch.uint8)
    return LabelMaps(model, processor, size, model.config.num_labels).eval(), photos


def _metadata(segmenter: Segmenter, source: str, whole: bool, resize: str) -> dict[str, str]:
    """What travels with a graph; all but input and output is JSON."""
    config, processor = segmenter.model.config, segmenter.processor
    seen = list(processor.size) if processor.do_resize and (not whole or resize == "processor") else None
    ids = "uint8" if config.num_labels <= 256 else "int32"
    told = {
        "id2label": config.id2label,
        "palette": palette(config.num_labels).tolist(),
        "image_mean": processor.image_mean if processor.do_normalize else None,
        "image_std": processor.image_std if processor.do_normalize else None,
        "rescale_factor": processor.rescale_factor if processor.do_rescale else None,
        "size": seen,  # height and width at which the model is meant to see a photo; None is its own
        "resize_mode": processor.resize_mode if seen else None,  # how it comes to that size
        "provenance": provenance(shareable({"checkpoint": source})["checkpoint"], segmenter.model.load_report.path),
    }
    return {
        "input": "photos (batch, height, width, 3) uint8" if whole else "images (batch, 3, height, width) float32",
        "output": f"label_maps (batch, height, width) {ids}" if whole else "logits (batch, classes, height/4, width/4)",
        **{name: json.dumps(value) for name, value in told.items()},
    }


def _trace(graph: nn.Module, example: Tensor) -> torch.export.ExportedProgram:
    """The graph with the axes of batch, height and width left open."""
    first = 2 if example.shape[1] == 3 else 1
    axes = dict.fromkeys((0, first, first + 1), torch.export.Dim.DYNAMIC)
    with torch.no_grad():
        return torch.export.export(graph, (example,), dynamic_shapes=(axes,), strict=False)


def _write_onnx(graph: nn.Module, example: Tensor, told: dict[str, str], path: Path) -> Run:
    """Write the graph as ONNX; what runs it."""
    source, result = (told[kind].partition(" ")[0] for kind in ("input", "output"))
    settings: dict[str, Any] = {"dynamo": True, "opset_version": OPSET, "verbose": False}
    with _quiet():
        program = torch.onnx.export(
            _trace(graph, example), (example,), input_names=[source], output_names=[result], **settings
        )
    proto = cast(torch.onnx.ONNXProgram, program).model_proto
    grid = ("rows", "columns") if result == "logits" else ("height", "width")
    for value, names in ((proto.graph.input[0], ("height", "width")), (proto.graph.output[0], grid)):
        open_axes = [axis for axis in value.type.tensor_type.shape.dim if axis.dim_param]
        for axis, name in zip(open_axes, ("batch", *names), strict=True):  # strict: none has been fixed
            axis.dim_param = name
    del proto.graph.value_info[:]  # of what lies between, in other names
    for name, text in told.items():
        proto.metadata_props.add(key=name, value=text)
    _save(path, proto.SerializeToString())
    session = importlib.import_module("onnxruntime").InferenceSession(
        path.read_bytes(), providers=["CPUExecutionProvider"]
    )
    return lambda values: session.run(None, {source: values})[0]


def _write_pt2(graph: nn.Module, example: Tensor, told: dict[str, str], path: Path) -> Run:
    """Write the graph as torch.export does; what runs it."""
    written = io.BytesIO()
    with _quiet():
        torch.export.save(_trace(graph, example), written, extra_files={METADATA_NAME: json.dumps(told)})
        _save(path, written.getvalue())
        module = torch.export.load(io.BytesIO(path.read_bytes())).module()
    return lambda values: cast(Tensor, module(torch.from_numpy(values))).numpy()


def _save(path: Path, content: bytes) -> None:
    try:
        path.write_bytes(content)
    except OSError as error:
        needed = f"{len(content) / 2**20:.0f} MiB"
        raise OSError(
            f"cannot write {path} ({error.strerror}); it takes {needed}, there or in another folder"
        ) from error


_WRITERS = {".onnx": _write_onnx, ".pt2": _write_pt2}


@contextmanager
def _quiet() -> Any:
    """Without what exporters say of their own passes."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


@torch.inference_mode()
def _compare(run: Run, segmenter: Segmenter, photo: Image.Image, whole: bool) -> Compared:
    """Compare on the photo and its mirror image, as a batch, and on the photo alone, turned: no axis may be fixed."""
    mirrored, turned = map(photo.transpose, (Image.Transpose.FLIP_LEFT_RIGHT, Image.Transpose.ROTATE_90))
    pairs = [_label_maps(run, segmenter, batch, whole) for batch in ([photo, mirrored], [turned])]
    equal, pixels = sum(int((a == b).sum()) for a, b in pairs), sum(ours.size for ours, _ in pairs)
    return Compared(equal, pixels, len(np.unique(np.concatenate([ours.ravel() for ours, _ in pairs]))))


def _label_maps(
    run: Run, segmenter: Segmenter, photos: Sequence[Image.Image], whole: bool
) -> tuple[NDArray[Any], NDArray[Any]]:
    """What the model makes of photos of one size, and what the graph does: (B, H, W) each."""
    if whole:
        return np.stack(segmenter.label_maps(photos)), run(np.stack([np.asarray(photo) for photo in photos]))
    as_it_is = replace(segmenter.processor, do_resize=False)
    images = torch.stack([as_it_is.image_to_tensor(photo) for photo in photos])
    ours, theirs = segmenter.model(images), torch.from_numpy(run(images.numpy()))
    size = (photos[0].height, photos[0].width)
    return fullres.argmax(ours, size).numpy(), fullres.argmax(theirs, size).numpy()


def made_photo(width: int = 400, height: int = 300) -> Image.Image:
    """A picture of soft waves and a little noise, always the same."""
    y, x = np.mgrid[:height, :width].astype(np.float32)
    waves = [np.sin(x / (17 + 20 * c) + c) * np.cos(y / (31 - 7 * c)) for c in range(3)]
    noise = np.random.default_rng(0).normal(0, 6, (height, width, 3))
    return Image.fromarray((128 + 100 * np.stack(waves, -1) + noise).clip(0, 255).astype(np.uint8))


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line: which model, to which file, and as which graph."""
    parser = FlagParser(prog="python -m segformer.export", description="Write a model as a graph for other runtimes.")
    add = parser.add_argument
    add("source", metavar="RUN", help="run folder, Hub id or weights file")
    add("out", metavar="OUT", type=Path, help="file in .onnx, or in .pt2 for torch.export")
    add("--whole", action="store_true", help="from uint8 photos (B, H, W, 3) to label maps (B, H, W)")
    add("--resize", choices=_RESIZES, default="processor", help="at which size a whole graph sees photos")
    add("--photo", help="compare graph and model on this photo; else on a made one")
    add("--overwrite", action="store_true", help="replace OUT if it is there")
    options = parser.parse_args(arguments)
    if options.resize != "processor" and not options.whole:
        parser.error("--resize says how a whole graph sees photos; pass --whole, too")
    return options


def main() -> int:
    """Run from the command line; what cannot be written is told in one line."""
    speak_plainly()
    options = parse_arguments()
    try:
        print(export(options.source, options.out, options.whole, options.resize, options.photo, options.overwrite))
    except (ValueError, OSError) as error:
        print(f"error: {one_line(str(error))}", file=sys.stderr)
        return 1
    return 0
