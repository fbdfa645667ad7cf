"""A graph in ``.onnx`` in the place of the model that it was made of, and what travels in such a file.

Names of the classes, palette, and what a photo goes through before it is seen are metadata of the file, a JSON text
each. Opening one runs operators of ONNX and nothing else, and no other file that it may name is looked for. A ``.pt2``
is a program: torch reads it by pickle and calls the functions that it names, so that it is not opened here.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from segformer.config import SegformerConfig
from segformer.pictures import palette
from segformer.processor import ImageProcessor
from segformer.weights.pretrained import LoadReport

INT8 = "int8"  # the metadata of a quantised graph: how it was made, and how it compared

_SIZES = ("id2label", "label2id", "architectures", "torch_dtype")  # of config.json, but for these
_STEPS = (
    *("resize_mode", "resample", "rescale_factor", "image_mean", "image_std"),
    *("do_reduce_labels", "label_rule", "keep_ratio_scale"),
)

Run = Callable[[NDArray[Any]], NDArray[Any]]


def metadata(
    config: SegformerConfig, processor: ImageProcessor, whole: bool, resize: str, provenance: Mapping[str, Any]
) -> dict[str, str]:
    """What travels with a graph; all but input and output is JSON."""
    seen = list(processor.size) if processor.do_resize and (not whole or resize == "processor") else None
    ids = "uint8" if config.num_labels <= 256 else "int32"
    told = {
        "id2label": config.id2label,
        "palette": palette(config.num_labels, config.id2label.values()).tolist(),
        "image_mean": processor.image_mean if processor.do_normalize else None,
        "image_std": processor.image_std if processor.do_normalize else None,
        "rescale_factor": processor.rescale_factor if processor.do_rescale else None,
        "size": seen,  # height and width at which the model is meant to see a photo; None is its own
        "resize_mode": processor.resize_mode,  # how it comes to that size
        "resample": processor.resample,
        "do_reduce_labels": processor.do_reduce_labels,
        "label_rule": None if processor.label_rule is None else dict(processor.label_rule),
        "keep_ratio_scale": processor.keep_ratio_scale,
        "keep_ratio_multiple": processor.keep_ratio_multiple,
        "config": {name: value for name, value in config.to_dict().items() if name not in _SIZES},
        "provenance": provenance,
    }
    return {
        "input": "photos (batch, height, width, 3) uint8" if whole else "images (batch, 3, height, width) float32",
        "output": f"label_maps (batch, height, width) {ids}" if whole else "logits (batch, classes, height/4, width/4)",
        **{name: json.dumps(value) for name, value in told.items()},
    }


class OnnxModel(nn.Module):
    """A graph that onnxruntime runs on the CPU: images (B, 3, H, W) -> logits (B, K, ceil(H / 4), ceil(W / 4)).

    One that ``takes_photos`` has the processor and the last step in it, and nothing of it but ``label_map`` is of use.
    Raises ValueError, naming the file, for what is no graph of ours and where onnxruntime is missing.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        if not path.is_file():
            raise FileNotFoundError(f"no graph {path}")
        session = open_session(path.read_bytes(), path)
        told = session.get_modelmeta().custom_metadata_map
        source, result = session.get_inputs()[0], session.get_outputs()[0]
        try:
            self.takes_photos = {"images": False, "photos": True}[source.name]
            self.config, self.processor, self.palette = _understand(told)
            provenance = json.loads(told["provenance"])
            if not self.takes_photos and result.shape[1] not in (self.config.num_labels, None):
                raise ValueError(f"gives {result.shape[1]} logits for {self.config.num_labels} classes")
        except KeyError as error:
            raise ValueError(
                f"{path} is none that python -m segformer.export wrote: it says nothing of {error}; export the run or "
                "checkpoint that it was made from"
            ) from None
        except (ValueError, TypeError, RecursionError) as error:
            raise ValueError(f"{path}: {error}") from error
        self.provenance: dict[str, Any] = provenance if isinstance(provenance, dict) else {}
        self.load_report = LoadReport(path=path, classes=dict(self.config.id2label))
        self._session, self._source = session, source.name

    def forward(self, images: Tensor) -> Tensor:
        logits = torch.from_numpy(self._run(images.cpu().numpy()))
        if not logits.isfinite().all():
            raise ValueError(f"{self.load_report.path} gives logits that are not finite")
        return logits

    def label_map(self, photo: NDArray[np.uint8]) -> NDArray[Any]:
        """The (H, W) class ids of a (H, W, 3) photo, of a graph that ``takes_photos``."""
        found = self._run(photo[None])[0]
        if found.shape != photo.shape[:2] or int(found.max()) >= self.config.num_labels or int(found.min()) < 0:
            raise ValueError(f"{self.load_report.path} gives what is no label map of {self.config.num_labels} classes")
        return found

    def _run(self, values: NDArray[Any]) -> NDArray[Any]:
        try:
            return self._session.run(None, {self._source: values})[0]
        except Exception as error:  # of onnxruntime's own kinds
            raise RuntimeError(f"{self.load_report.path}: {_first_line(error)}") from error

    def save_pretrained(self, folder: str | Path) -> None:
        """Refuse: a graph has no weights under their names."""
        raise ValueError(f"{self.load_report.path} is a graph, which has no model to save in {folder}; copy the file")


def _understand(told: Mapping[str, str]) -> tuple[SegformerConfig, ImageProcessor, NDArray[np.uint8]]:
    """The model's sizes and classes, its processor and its colours. Raises KeyError for what is not told."""
    names = ("id2label", "palette", "size", *_STEPS, "keep_ratio_multiple", "config")
    found = {name: json.loads(told[name]) for name in names}
    config = SegformerConfig.from_dict({**found["config"], "id2label": found["id2label"]})
    size = found["size"]
    steps = {name: found[name] for name in _STEPS}
    processor = ImageProcessor.from_dict(
        {
            **steps,
            "do_resize": size is not None,
            "size": None if size is None else tuple(size),
            "do_rescale": steps["rescale_factor"] is not None,
            "do_normalize": steps["image_mean"] is not None,
            "keep_ratio_multiple": found["keep_ratio_multiple"],
        }
    )
    colours = np.asarray(found["palette"])
    is_whole = colours.shape == (config.num_labels, 3) and colours.dtype.kind == "i"
    if not is_whole or colours.min() < 0 or colours.max() > 255:
        raise ValueError("palette is none: it has three numbers of 0 to 255 for each class")
    return config, processor, colours.astype(np.uint8)


def open_graph(source: str | Path) -> OnnxModel | None:
    """The graph that a source names by its ending; None where it names something else."""
    path = Path(source)
    if path.suffix == ".pt2":
        raise ValueError(
            f"{path} is a program, which would run as whoever made it wished, so that it is not opened; export to "
            ".onnx, or load your own by torch.export.load, compiled by torch._inductor.aoti_load_package"
        )
    return OnnxModel(path) if path.suffix == ".onnx" else None


def open_session(content: bytes, path: Path) -> Any:
    """onnxruntime's session of a graph, on as many threads as torch has. Raises ValueError for what it does not run."""
    runtime = import_needed("onnxruntime", str(path), ("onnxruntime",))
    settings = runtime.SessionOptions()
    settings.intra_op_num_threads = torch.get_num_threads()
    settings.log_severity_level = 4  # what is wrong is raised
    try:
        return runtime.InferenceSession(content, settings, providers=["CPUExecutionProvider"])
    except Exception as error:  # of onnxruntime's own kinds
        raise ValueError(f"{path} is not a graph that onnxruntime runs: {_first_line(error)}") from error


def import_needed(name: str, what: str, packages: tuple[str, ...]) -> Any:
    """A package that graphs alone need. Raises ValueError, saying how it is had, where it is missing."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ValueError(
            f"{what} needs {name}, which is not there ({error}); pip install {' '.join(packages)}"
        ) from error


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
