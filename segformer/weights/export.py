"""A model as a graph for other runtimes: ``.onnx``, or ``.pt2`` of torch.export; batch, height and width stay open.

There are two graphs. One takes what a processor makes, images (B, 3, H, W), to logits (B, K, ceil(H/4), ceil(W/4)).
The ``whole`` one takes photos, (B, H, W, 3) uint8, to label maps (B, H, W). Names of the classes, palette, mean,
standard deviation and origin travel along.

A file is written under another name, read back by the runtime that it is for, and compared with this package's own
label maps. It appears only where they agree. With ``int8`` a second file is made of it, whose disagreement is measured
and told, in it and on the console.
"""

from __future__ import annotations

import importlib
import io
import json
import logging
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from segformer import fullres
from segformer.model import Segformer
from segformer.photos import Photo, as_photo
from segformer.provenance import provenance
from segformer.segmenter import Segmenter
from segformer.views import Views
from segformer.weights.graphs import INT8, Run, import_needed, metadata, open_session
from segformer.weights.int8 import Examples, Loss, judge, quantise
from segformer.weights.publish import shareable
from segformer.weights.tracing import LabelMaps, graph_of, trace

OPSET = 18  # which every runtime of today reads; later ones bring nothing that this graph has
LEAST_AGREEMENT = 0.9999  # of pixels; the rest are near ties that rounding decides
# Where the graph resizes, a level may round to its neighbour: Pillow has weights of 22 bits, and goes down first and
# then across where its release finds that quicker.
LEAST_AGREEMENT_RESIZED = 0.999
LEAST_AGREEMENT_INT8 = 0.9  # with less, it is another model
METADATA_NAME = "metadata.json"  # in a .pt2
ENDINGS = (".onnx", ".pt2")
RESIZES = ("processor", "original")

_PACKAGES = ("onnx", "onnxscript", "onnxruntime")


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
    compared: Compared | Loss

    def __str__(self) -> str:
        size = self.path.stat().st_size / 2**20
        opset = f", opset {OPSET}" if self.path.suffix == ".onnx" else ""
        return f"{self.path}: {size:.1f} MiB{opset}, {self.inputs} -> {self.outputs}; {self.compared}"


def export(
    source: str | Path,
    out: str | Path,
    whole: bool = False,
    resize: str = "processor",
    photo: Photo | None = None,
    overwrite: bool = False,
    compiled: bool = False,
    int8: Examples | None = None,
) -> Exported:
    """Write a model, a Hub id, folder or weights file, as the graph that the ending of ``out`` names.

    ``resize`` says at which size the ``whole`` graph sees photos: "processor" or "original". It is compared with the
    model on ``photo``, or on a made one. ``compiled`` makes a ``.pt2`` machine code for a machine like this one;
    ``int8`` an ``.onnx`` whose products are of 8 bits, measured on those photos. Raises ValueError or OSError, and
    leaves ``out`` as it was, for an encoder without a decoder, for an ``out`` that is there already unless
    ``overwrite`` is set, for packages that are missing, and where the graph does not agree with the model.
    """
    path = Path(out)
    check_out(path, overwrite)
    for asked, what, ending in ((compiled, "machine code", ".pt2"), (int8 is not None, "an int8 graph", ".onnx")):
        if asked and path.suffix != ending:
            raise ValueError(f"{path} ends in {path.suffix}; {what} goes with {ending} alone")
    if path.suffix == ".onnx":
        for name in _PACKAGES:
            import_needed(name, "a graph in .onnx", _PACKAGES)
    segmenter = Segmenter.from_pretrained(source, "cpu", views=Views(resize=resize))
    if not isinstance(segmenter.model, Segformer):
        raise ValueError(f"{source} is a graph already; export the run or checkpoint that it was made from")
    graph, example = graph_of(segmenter.model, segmenter.processor, whole, resize)
    origin = provenance(shareable({"checkpoint": str(source)})["checkpoint"], segmenter.model.load_report.path)
    told = metadata(segmenter.model.config, segmenter.processor, whole, resize, origin)
    picture = made_photo() if photo is None else as_photo(photo)
    unfinished = path.with_name(f"{path.stem}.unfinished{path.suffix}")
    compared: Compared | Loss
    try:
        write = _write_compiled if compiled else {".onnx": _write_onnx, ".pt2": _write_pt2}[path.suffix]
        run = write(graph, example, told, unfinished)
        compared = _compare(run, segmenter, picture, whole)
        resizes = isinstance(graph, LabelMaps) and graph.size is not None
        _check_agreement(path, compared, LEAST_AGREEMENT_RESIZED if resizes else LEAST_AGREEMENT)
        if int8 is not None:
            compared = _write_int8(segmenter, told, unfinished, int8)
            _check_agreement(path, compared, LEAST_AGREEMENT_INT8)
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
    return Exported(path, told["input"], told["output"], compared)


def check_out(path: Path, overwrite: bool) -> None:
    """Raise ValueError or FileNotFoundError for a place that takes no graph."""
    if path.suffix not in ENDINGS:
        raise ValueError(f"{path} ends in {path.suffix or 'nothing'}; a graph is a file in {' or '.join(ENDINGS)}")
    if path.is_dir():
        raise ValueError(f"{path} is a folder; name a file")
    if path.exists() and not overwrite:
        raise ValueError(f"{path} is there already; pass --overwrite, or name another file")
    check_parent(path)


def check_parent(path: Path) -> None:
    """Raise FileNotFoundError where there is no folder to write to."""
    if not path.absolute().parent.is_dir():
        raise FileNotFoundError(f"no folder {path.absolute().parent} to write {path.name} to; make it first")


def _check_agreement(path: Path, compared: Compared | Loss, least: float) -> None:
    if compared.agreement < least:
        raise ValueError(
            f"{path} was not written, for {compared}; at least {least:.2%} must. Try it with photos of the kind that "
            "the model was trained on"
        )


def _write_onnx(graph: nn.Module, example: Tensor, told: dict[str, str], path: Path) -> Run:
    """Write the graph as ONNX; what runs it."""
    source, result = (told[kind].partition(" ")[0] for kind in ("input", "output"))
    settings: dict[str, Any] = {"dynamo": True, "opset_version": OPSET, "verbose": False}
    with _quiet():
        program = torch.onnx.export(
            trace(graph, example), (example,), input_names=[source], output_names=[result], **settings
        )
    proto = cast(torch.onnx.ONNXProgram, program).model_proto
    grid = ("rows", "columns") if result == "logits" else ("height", "width")
    for value, names in ((proto.graph.input[0], ("height", "width")), (proto.graph.output[0], grid)):
        open_axes = [axis for axis in value.type.tensor_type.shape.dim if axis.dim_param]
        for axis, name in zip(open_axes, ("batch", *names), strict=True):  # strict: none has been fixed
            axis.dim_param = name
    del proto.graph.value_info[:]  # of what lies between, in other names
    _fold_axes(proto.graph)
    return _save_onnx(proto, told, path)


def _fold_axes(graph: Any) -> None:
    """Give weights the axes of a convolution that a node would add to them each time, so that they lie ready."""
    held = {each.name: each for each in graph.initializer}
    users = Counter(name for node in graph.node for name in node.input)
    renamed: dict[str, str] = {}
    for node in [each for each in graph.node if each.op_type == "Unsqueeze"]:
        name, axes = node.input
        if name in held and axes in held and users[name] == 1:
            shape = np.empty(list(held[name].dims), np.bool_)
            axes = import_needed("onnx.numpy_helper", "a graph in .onnx", _PACKAGES).to_array(held[axes])
            held[name].dims[:] = np.expand_dims(shape, tuple(axes)).shape
            renamed[node.output[0]] = name
            graph.node.remove(node)
            users.update({node.input[1]: -1})
    for name in [each for each in held if users[each] == 0]:
        graph.initializer.remove(held[name])
    for node in graph.node:
        node.input[:] = [renamed.get(name, name) for name in node.input]


def _save_onnx(proto: Any, told: dict[str, str], path: Path) -> Run:
    """Write a graph with what it is told; what runs it."""
    source = proto.graph.input[0].name
    del proto.metadata_props[:]
    for name, text in told.items():
        proto.metadata_props.add(key=name, value=text)
    _save(path, proto.SerializeToString())
    session = open_session(path.read_bytes(), path)
    return lambda values: session.run(None, {source: values})[0]


def _write_int8(segmenter: Segmenter, told: dict[str, str], path: Path, examples: Examples) -> Loss:
    """Put a quantised graph in the place of the one in ``path``; what it lost."""
    with _quiet():
        proto = quantise(path)
    _save_onnx(proto, told, path)
    with _quiet():
        loss = judge(Segmenter.from_pretrained(path), segmenter, examples)
    _save_onnx(proto, told | {INT8: json.dumps(loss.to_dict())}, path)
    return loss


def _write_pt2(graph: nn.Module, example: Tensor, told: dict[str, str], path: Path) -> Run:
    """Write the graph as torch.export does; what runs it."""
    written = io.BytesIO()
    with _quiet():
        torch.export.save(trace(graph, example), written, extra_files={METADATA_NAME: json.dumps(told)})
        _save(path, written.getvalue())
        module = torch.export.load(io.BytesIO(path.read_bytes())).module()
    return lambda values: cast(Tensor, module(torch.from_numpy(values))).numpy()


def _write_compiled(graph: nn.Module, example: Tensor, told: dict[str, str], path: Path) -> Run:
    """Write the graph as machine code, which AOTInductor makes; what runs it."""
    inductor = importlib.import_module("torch._inductor")
    with _quiet(), tempfile.TemporaryDirectory() as folder:
        package = Path(folder) / path.name
        try:
            inductor.aoti_compile_and_package(
                trace(graph, example),
                package_path=str(package),
                inductor_configs={"aot_inductor.metadata": told},
            )
        except RuntimeError as error:  # a compiler that is missing or says no
            raise ValueError(f"{path.name} was not compiled: {str(error).strip().splitlines()[0]}") from error
        _save(path, package.read_bytes())
        module = inductor.aoti_load_package(str(path))
    return lambda values: cast(Tensor, module(torch.from_numpy(values))).numpy()


def _save(path: Path, content: bytes) -> None:
    try:
        path.write_bytes(content)
    except OSError as error:
        needed = f"{len(content) / 2**20:.0f} MiB"
        raise OSError(
            f"cannot write {path} ({error.strerror}); it takes {needed}, there or in another folder"
        ) from error


@contextmanager
def _quiet() -> Iterator[None]:
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
