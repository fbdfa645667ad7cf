"""Photos in, their classes out: what the image-segmentation pipeline does, in the open, and what applications need."""

from __future__ import annotations

import difflib
import logging
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, cast, overload

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from segformer import fullres, pictures
from segformer.files import check_finite
from segformer.geometry import Placement, unpadded
from segformer.machine import out_of_memory
from segformer.model import Segformer, evaluating
from segformer.photos import Photo, as_photo
from segformer.processor import ImageProcessor
from segformer.views import Box, SlidingLogits, Views, mirrored_logits
from segformer.weights.graphs import OnnxModel, open_graph

Logits = Tensor | fullres.LogitRows
Places = tuple[Placement, ...]  # of a photo in each of its views
Result = TypeVar("Result")

_BATCH_SIZE = {"cpu": 1, "cuda": 8}  # on a CPU photos run fastest one by one: their maps stay in cache
_CHUNK_PIXELS = 2**20  # summed at once in float64

logger = logging.getLogger(__name__)


class Prediction(NamedTuple):
    """What the model sees in a photo, at the photo's own size."""

    label_map: NDArray[Any]  # (H, W) class ids: uint8, or uint16 for more than 256 classes
    probability: NDArray[np.float32] | None = None  # (H, W), of the class in ``label_map``, 0 to 1

    def scores(self) -> dict[int, float] | None:
        """The mean probability of the pixels of every class in the label map, in ascending class id."""
        if self.probability is None:
            return None
        size = int(self.label_map.max()) + 1
        total, count = np.zeros(size), np.zeros(size, dtype=np.int64)
        labels, weights = self.label_map.ravel(), self.probability.ravel()
        for first in range(0, labels.size, _CHUNK_PIXELS):
            chunk = slice(first, first + _CHUNK_PIXELS)
            total += np.bincount(labels[chunk], weights[chunk], size)
            count += np.bincount(labels[chunk], minlength=size)
        return {int(k): float(total[k] / count[k]) for k in np.flatnonzero(count)}


class Batch(NamedTuple):
    """Photos that the model sees at one size, with their numbers and where each lies in its views."""

    numbers: list[int]
    photos: list[Image.Image]
    places: list[Places]


class Segmenter:
    """A model, its processor and a device, ready for photos of any form, size and mode (see ``photos.as_photo``).

    ``views`` says at which size photos are shown to the model, in windows or not, mirrored, scaled. ``batch_size`` is
    how many photos, or windows, run at once; left out, one on a CPU and 8 elsewhere. Everything that comes out has the
    photo's own size, upright, and no logits of that size are ever made. Raises ValueError, naming the tensor, for
    weights that are not finite.
    """

    no_probabilities: str | None = None  # why it gives none, where it gives label maps alone

    def __init__(
        self,
        model: Segformer | OnnxModel,
        processor: ImageProcessor,
        device: torch.device | str | None = None,
        views: Views | None = None,
        batch_size: int | None = None,
    ) -> None:
        if batch_size is not None and batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}; it must be above 0")
        model.config.check_takes_photos()
        check_finite(model)
        if model.config.num_labels == 1:
            logger.warning("the model has one class, %r, which is all it can see in a photo", model.config.id2label[0])
        self.device = choose_device(device)
        self.model = model.eval().to(self.device)
        self.processor = processor
        self.views = views or Views()
        self.batch_size = batch_size or _BATCH_SIZE.get(self.device.type, _BATCH_SIZE["cuda"])

    def __repr__(self) -> str:
        """The model, where it runs, and how photos are shown to it."""
        return f"Segmenter({self.model.config!r}, on {self.device}, {self.views}, {self.processor!r})"

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the model's files and its processor's, so that ``from_pretrained`` and transformers open the folder."""
        self.model.save_pretrained(folder)
        self.processor.save_pretrained(folder)

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        device: torch.device | str | None = None,
        revision: str | None = None,
        token: str | bool | None = None,
        local_files_only: bool = False,
        views: Views | None = None,
        batch_size: int | None = None,
    ) -> Segmenter:
        """Load model and processor from a Hub id or folder, a weights file with what stands beside it, or an ``.onnx``.

        Raises ValueError for an encoder without a decoder and for a model of other bands than a photo's.
        """
        if graph := open_graph(source):
            return _of_graph(graph, device, views, batch_size)
        model = Segformer.from_pretrained(source, revision=revision, token=token, local_files_only=local_files_only)
        model.load_report.check_whole(source)
        processor = ImageProcessor.from_pretrained(source, revision, token, local_files_only)
        try:
            model.config.check_takes_photos()
        except ValueError as error:
            raise ValueError(f"{source}: {error}") from error
        return cls(model, processor, device, views, batch_size)

    @overload
    def __call__(self, photo: list[Photo] | tuple[Photo, ...], scores: bool = False) -> list[list[dict[str, Any]]]: ...

    @overload
    def __call__(self, photo: Photo, scores: bool = False) -> list[dict[str, Any]]: ...

    def __call__(self, photo: Any, scores: bool = False) -> list[Any]:
        """The photo's segments in ascending class id, as transformers' pipeline gives them; for a list, of each photo.

        Each is ``{"label": name, "score": None, "mask": PIL image}``; masks are mode L at the photo's own size, 255 on
        the class, do not overlap and cover the photo. With ``scores`` the score is the class's mean probability over
        the pixels of its mask.
        """
        several = isinstance(photo, list | tuple)
        found = self.predict(photo if several else [photo], probability=scores)
        segments = [self.segments(each.label_map, each.scores()) for each in found]
        return segments if several else segments[0]

    def segments(self, label_map: NDArray[Any], scores: Mapping[int, float] | None = None) -> list[dict[str, Any]]:
        """The segments of a (H, W) label map, with the scores of its classes if there are any."""
        return [
            {
                "label": self.model.config.id2label[int(k)],
                "score": None if scores is None else scores[int(k)],
                "mask": Image.fromarray(np.where(label_map == k, 255, 0).astype(np.uint8)),
            }
            for k in np.unique(label_map)
        ]

    def label_map(self, photo: Photo) -> NDArray[Any]:
        """The class of every pixel, (H, W) at the photo's own size: uint8, or uint16 for more than 256 classes."""
        return self.predict([photo])[0].label_map

    def overlay(self, photo: Photo, opacity: float = 0.5) -> Image.Image:
        """The photo, upright, with every pixel tinted in the colour of its class; ``opacity`` from 0 to 1."""
        upright = as_photo(photo)
        return pictures.overlay(upright, self.label_map(upright), self.colours, opacity)

    @property
    def colours(self) -> NDArray[np.uint8]:
        """A colour for every class, (K, 3): the palette that a graph carries, or that of so many classes."""
        if isinstance(self.model, OnnxModel):
            return self.model.palette
        return pictures.palette(self.model.config.num_labels, self.model.config.id2label.values())

    def label_maps(self, photos: Sequence[Photo]) -> list[NDArray[Any]]:
        """The label map of every photo; photos that the model sees at one size run ``batch_size`` at a time."""
        return [found.label_map for found in self.predict(photos)]

    def predict(self, photos: Sequence[Photo], probability: bool = False) -> list[Prediction]:
        """The label map of every photo and, if asked for, the probability of the class at every pixel."""
        _check_several(photos)
        return self._reduce(photos, partial(self._predict_one, probability=probability))

    def probabilities(self, photo: Photo, classes: Sequence[int | str]) -> NDArray[np.float32]:
        """How likely every pixel is each of the classes, (len(classes), H, W), 0 to 1.

        Classes are ids or names; spaces around a name do not count. Raises ValueError for one that the model lacks.
        """
        ids = self.class_ids(classes)
        found = self._reduce([photo], lambda views, size: fullres.probabilities(views, size, ids)[0].cpu().numpy())
        return found[0]

    def class_ids(self, classes: Sequence[int | str]) -> list[int]:
        """The ids of classes that are given as ids or names."""
        if isinstance(classes, str):
            raise ValueError(f"classes is {classes!r}; it must be a list of ids or names")
        return [self._class_id(each) for each in classes]

    def _class_id(self, wanted: int | str) -> int:
        names = self.model.config.id2label
        if not isinstance(wanted, str):
            if wanted not in names:
                raise ValueError(f"class {wanted!r} is none of the model's, 0 to {len(names) - 1}")
            return int(wanted)
        found = [k for k, name in names.items() if name.strip() == wanted.strip()]
        if len(found) == 1:
            return found[0]
        if found:
            raise ValueError(f"classes {', '.join(map(str, found))} are all named {wanted!r}; give an id")
        close = difflib.get_close_matches(wanted, [name.strip() for name in names.values()])
        raise ValueError(f"no class is named {wanted!r}" + (f"; did you mean {' or '.join(close)}?" if close else ""))

    def _predict_one(self, views: Sequence[Logits], size: tuple[int, int], probability: bool) -> Prediction:
        kind = np.min_scalar_type(self.model.config.num_labels - 1)
        if not probability:
            return Prediction(fullres.argmax_of_mean(views, size)[0].cpu().numpy().astype(kind))
        label_map, sure = fullres.argmax_with_probability(views, size)
        return Prediction(label_map[0].cpu().numpy().astype(kind), sure[0].cpu().numpy())

    def _reduce(
        self, photos: Sequence[Photo], reduce: Callable[[Sequence[Logits], tuple[int, int]], Result]
    ) -> list[Result]:
        """What ``reduce`` makes of each photo's views, (1, K, h, w) each, and its (H, W), in the photos' order."""
        results: dict[int, Result] = {}
        for numbers, batch, places in self._batches(photos):
            try:
                found = self._reduce_batch(batch, places, reduce)
            except NotImplementedError as error:
                if self.device.type == "cpu":
                    raise
                logger.warning("%s lacks an operation (%s); going on on the CPU", self.device, error)
                self.device = torch.device("cpu")
                self.model.to(self.device)
                found = self._reduce_batch(batch, places, reduce)
            results.update(zip(numbers, found, strict=True))
        return [results[number] for number in range(len(photos))]

    @torch.inference_mode()
    def _reduce_batch(
        self,
        photos: Sequence[Image.Image],
        places: Sequence[Places],
        reduce: Callable[[Sequence[Logits], tuple[int, int]], Result],
    ) -> list[Result]:
        results = []
        with evaluating(self.model):  # which somebody may be training
            seen = list(self._look(photos, places))
            for n, photo in enumerate(photos):
                views = [
                    unpadded(logits[n : n + 1], places[n][view].shown) if isinstance(logits, Tensor) else logits
                    for view, logits in seen
                ]
                results.append(reduce(views, (photo.height, photo.width)))
        return results

    def _batches(self, photos: Sequence[Photo]) -> Iterator[Batch]:
        """Photos that the model sees at one size; one photo alone if it is seen in windows."""
        waiting: dict[Any, Batch] = {}
        for number, each in enumerate(photos):
            photo = as_photo(each)
            places = self.views.places(self.processor, photo.width, photo.height)
            sizes = tuple(placement.view for placement in places)
            batch = waiting.setdefault(sizes, Batch([], [], []))
            for held, new in zip(batch, (number, photo, places), strict=True):
                held.append(new)  # type: ignore[attr-defined]
            if len(batch.photos) == self.batch_size or any(self.views.window_for(p.shown) for p in places):
                yield waiting.pop(sizes)
        yield from waiting.values()

    def _look(self, photos: Sequence[Image.Image], places: Sequence[Places]) -> Iterator[tuple[int, Logits]]:
        """The number of every view of photos that the model sees at one size, and its logits."""
        for view, (first, *_) in enumerate(zip(*places, strict=True)):
            if window := self.views.window_for(first.shown):
                self.model.config.check_image_size(window, window)
                (photo,) = photos
                yield from ((view, logits) for logits in self._slide(photo, first, window))
                continue
            self.model.config.check_image_size(*first.view)
            placed = zip(photos, places, strict=True)
            tensors = [self.processor.image_to_tensor(photo, of_photo[view]) for photo, of_photo in placed]
            images = self._for_model(tensors)
            yield view, self.model(images)
            if self.views.flip:
                yield view, mirrored_logits(self.model, images)

    def _for_model(self, tensors: Sequence[Tensor]) -> Tensor:
        """Images as one batch where the model is, in its precision, of which that of autocast has no part."""
        weight = next(self.model.parameters(), tensors[0])  # a graph has none
        return torch.stack(list(tensors)).to(self.device, weight.dtype)

    def _slide(self, photo: Image.Image, placement: Placement, window: int) -> Iterator[SlidingLogits]:
        """The logits of what is seen of one photo, in windows, and of its mirror image."""
        resized, size = placement.resize(photo, self.processor.resample), placement.shown
        as_it_is = replace(self.processor, do_resize=False)

        def look(boxes: Sequence[Box], flip: bool) -> Tensor:
            images = self._for_model([as_it_is.image_to_tensor(resized.crop(box)) for box in boxes])
            return mirrored_logits(self.model, images) if flip else self.model(images)

        for flip in (False, True)[: 1 + self.views.flip]:
            yield SlidingLogits(
                partial(look, flip=flip),
                size,
                window,
                self.views.chosen_overlap,
                self.model.config.num_labels,
                self.batch_size,
                self.device,
            )


def _check_several(photos: object) -> None:
    """Raise ValueError for one photo in place of several, of whose letters or rows photos would be made."""
    if isinstance(photos, str | os.PathLike | bytes | bytearray | Image.Image | np.ndarray | Tensor):
        raise ValueError(f"photos is one {type(photos).__name__}; it must be a list of photos, such as [photo]")


class WholeSegmenter(Segmenter):
    """A graph that takes photos as they are: it has one view of them, its own, and gives label maps alone."""

    def predict(self, photos: Sequence[Photo], probability: bool = False) -> list[Prediction]:
        """The label map of every photo. Raises ValueError where a probability is asked for."""
        _check_several(photos)
        if probability:
            raise ValueError(self.no_probabilities)
        kind = np.min_scalar_type(self.model.config.num_labels - 1)
        graph = cast(OnnxModel, self.model)
        return [Prediction(graph.label_map(np.asarray(as_photo(photo))).astype(kind)) for photo in photos]

    def probabilities(self, photo: Photo, classes: Sequence[int | str]) -> NDArray[np.float32]:
        """Refuse: a label map has none."""
        raise ValueError(self.no_probabilities)

    @property
    def no_probabilities(self) -> str:  # type: ignore[override]
        """What to do for them."""
        return f"{self.model.load_report.path} gives label maps and no probabilities; export it without --whole"


def _of_graph(
    graph: OnnxModel, device: torch.device | str | None, views: Views | None, batch_size: int | None
) -> Segmenter:
    """The segmenter of a graph, which runs on the CPU."""
    path = graph.load_report.path
    if device is not None and str(device).partition(":")[0] != "cpu":
        raise ValueError(f"device is {str(device)!r}; {path} runs on the CPU here, so leave it out")
    if graph.takes_photos and views not in (None, Views()):
        raise ValueError(f"{path} takes photos as they are, in one view; to choose views, export it without --whole")
    kind = WholeSegmenter if graph.takes_photos else Segmenter
    return kind(graph, graph.processor, "cpu", views, batch_size)


def choose_device(device: torch.device | str | None = None) -> torch.device:
    """The device asked for, or this machine's accelerator, or its CPU. Raises ValueError for one that is not there.

    A GPU that is there and cannot be used, such as one with an old driver, is told of.
    """
    if device is None:
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            if torch.cuda.is_available():
                return torch.device("cuda")
        for each in told:
            logger.warning("going on without a GPU: %s", _first_sentence(str(each.message)))
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        chosen = torch.device(device)
        torch.empty(1, device=chosen).cpu()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        if said := out_of_memory(error):
            raise ValueError(f"device is {str(device)!r}, which others have filled ({said}); use another") from error
        why = _why_no_gpu(error) if str(device).startswith("cuda") else ""
        raise ValueError(
            f"device is {str(device)!r}, which this machine does not have{why}; use cpu, or leave it out"
        ) from error
    return chosen


def _why_no_gpu(error: Exception) -> str:
    """Why a GPU that was asked for cannot be used, in brackets, as far as it can be told."""
    reason = _reason_against_a_gpu(error)
    return f" ({reason})" if reason else ""


def _reason_against_a_gpu(error: Exception) -> str | None:
    if torch.version.cuda is None and torch.version.hip is None:
        return "this torch is built without CUDA"
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
    count = torch.cuda.device_count()
    if count:
        return f"its GPUs are cuda:0 to cuda:{count - 1}" if count > 1 else "its only GPU is cuda:0"
    if hidden is not None and hidden.strip() in ("", "-1", "NoDevFiles"):
        return f"CUDA_VISIBLE_DEVICES is {hidden!r}, which hides them all"
    return _first_sentence(str(error)) if "driver" in str(error) else None


def _first_sentence(text: str) -> str:
    return text.removeprefix("CUDA initialization: ").partition(". ")[0].partition("\n")[0].rstrip(".")
