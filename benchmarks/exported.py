"""A model outside PyTorch: our graphs in onnxruntime against torch, and against transformers' model exported alike.

    python -m benchmarks.exported --checkpoint runs/toy-1 --int8 photos --compile --save cpu

The peer's graph is what exporters make of transformers' model: images to logits, by ``torch.onnx.export``, with batch,
height and width open. All take the same image on the same threads, and all label maps are compared with those of torch
before anything is timed; only the graph of 8 bits may differ, and its row says how much.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

import infer
from benchmarks import measure, peers
from segformer import Segmenter, fullres
from segformer.photos import as_photo
from segformer.weights.export import LEAST_AGREEMENT, OPSET, export, made_photo
from segformer.weights.graphs import open_session
from segformer.weights.int8 import Examples

_COLUMNS = ["form", "mib", "opset", "ms", "ratio", "torch_ratio", "pixel_agreement", "logits_difference"]


@dataclass(frozen=True)
class Form:
    """One form of the model: what runs it, and its file."""

    run: Callable[[], NDArray[Any]]
    path: Path | None = None
    is_exact: bool = True

    @property
    def mib(self) -> float | None:
        """The size of the file, and of what it keeps beside itself."""
        if self.path is None:
            return None
        beside = self.path.with_name(f"{self.path.name}.data")
        return sum(each.stat().st_size for each in (self.path, beside) if each.is_file()) / 2**20


class Logits(nn.Module):
    """transformers' model without the object that it answers with."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        return self.model(pixel_values=images).logits


def write_peer(checkpoint: str, path: Path) -> None:
    """transformers' model as a graph."""
    model = Logits(peers.transformers_model(checkpoint, torch.device("cpu"))).eval()
    axes = dict.fromkeys((0, 2, 3), torch.export.Dim.DYNAMIC)
    settings: dict[str, Any] = {"opset_version": OPSET, "external_data": False, "verbose": False}
    torch.onnx.export(
        model,
        (torch.zeros(2, 3, 512, 512),),
        path,
        input_names=["images"],
        output_names=["logits"],
        dynamo=True,
        dynamic_shapes=(axes,),
        **settings,
    )


def onnx_form(path: Path, images: NDArray[Any], is_exact: bool = True) -> Form:
    """A graph in onnxruntime, on as many threads as torch has."""
    session = open_session(path.read_bytes(), path)
    return Form(lambda: session.run(None, {"images": images})[0], path, is_exact)


def program_form(path: Path, images: Tensor, compiled: bool) -> Form:
    """A ``.pt2``, as torch.export or AOTInductor loads it."""
    program = torch._inductor.aoti_load_package(str(path)) if compiled else torch.export.load(path).module()
    return Form(lambda: program(images).numpy(), path)


def forms(options: argparse.Namespace, segmenter: Segmenter, images: Tensor, folder: Path) -> dict[str, Form]:
    """Every form that was asked for, torch's own and the peer's first."""
    values = images.numpy()
    write_peer(options.checkpoint, folder / "peer.onnx")
    export(options.checkpoint, folder / "ours.onnx")
    found = {
        "torch": Form(lambda: segmenter.model(images).numpy()),
        "peer, onnx": onnx_form(folder / "peer.onnx", values),
        "ours, onnx": onnx_form(folder / "ours.onnx", values),
    }
    if options.int8:
        export(options.checkpoint, folder / "int8.onnx", int8=Examples.of_folder(options.int8))
        found["ours, int8"] = onnx_form(folder / "int8.onnx", values, is_exact=False)
    for form, is_asked in (("ours, pt2", options.pt2), ("ours, compiled", options.compile)):
        if is_asked:
            path = folder / f"{form[6:]}.pt2"
            export(options.checkpoint, path, compiled=form == "ours, compiled")
            found[form] = program_form(path, images, form == "ours, compiled")
    return found


def rows(options: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """Compare all forms, then time them in turn."""
    segmenter = Segmenter.from_pretrained(options.checkpoint, "cpu")
    size = (options.size, options.size)
    photo = made_photo(*size) if options.photo is None else as_photo(options.photo).resize(size)
    images = replace(segmenter.processor, do_resize=False).image_to_tensor(photo)[None]
    found = forms(options, segmenter, images, folder)
    expected = found["torch"].run()
    label_map = fullres.argmax(torch.from_numpy(expected), size)
    differences: dict[str, dict[str, float]] = {}
    for name, form in found.items():
        logits = form.run()
        agreement = float((fullres.argmax(torch.from_numpy(logits), size) == label_map).float().mean())
        if form.is_exact and agreement < LEAST_AGREEMENT:
            raise SystemExit(f"{name} gives another label map on {1 - agreement:.4%} of the pixels; nothing was timed")
        differences[name] = {"pixel_agreement": agreement, "logits_difference": float(np.abs(logits - expected).max())}
    seconds = measure.alternate({name: form.run for name, form in found.items()}, torch.device("cpu"), options.repeats)
    ms = {name: measure.spread_ms(each) for name, each in seconds.items()}
    return [
        {
            "form": name,
            "size": options.size,
            "mib": form.mib,
            "opset": OPSET if form.path and form.path.suffix == ".onnx" else None,
            **ms[name],
            "ratio": ms["peer, onnx"]["ms"] / ms[name]["ms"],
            "torch_ratio": ms["torch"]["ms"] / ms[name]["ms"],
            **differences[name],
        }
        for name, form in found.items()
    ]


def main() -> None:
    """Compare, measure, report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", default=infer.DEFAULT_CHECKPOINT, help="Hub id or run folder")
    parser.add_argument("--photo", type=Path, help="the photo to compare and time on; else a made one")
    parser.add_argument("--size", type=int, default=512, help="side of the image in pixels")
    parser.add_argument("--int8", help="also 8 bits, measured on the photos of a folder")
    parser.add_argument("--pt2", action="store_true", help="also the program of torch.export")
    parser.add_argument("--compile", action="store_true", help="also AOTInductor's machine code")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--save", metavar="NAME", help="keep the rows as results/exported-NAME.json")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, torch.inference_mode():
        found = rows(options, Path(name))
    card = measure.machine_card(torch.device("cpu")) | {"onnxruntime": importlib.metadata.version("onnxruntime")}
    measure.report("exported", card, found, _COLUMNS, options.save)


if __name__ == "__main__":
    main()
