"""Rows as tensors and tensors as batches: what happens to a photo and its label map on their way to the model.

The image processor belongs to the model, so it is handed in: anything that turns a photo and its raw label map into
images (3, H, W) float32 and labels (H, W) int64.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from operator import methodcaller
from typing import Any, Protocol, cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset

from data.augmentation.jitter import ColorJitter, sample_generator
from data.augmentation.paper import PAPER_SCALE, PaperAugmentation, evaluation_size, pad_to
from data.classes import IGNORE_INDEX
from data.order import NO_ROW, Place, StepSampler
from data.sceneparse import SceneParse150

_MOST_WORKERS = 16  # chosen unasked; each holds a few batches

_CPU = torch.device("cpu")
Places = StepSampler | Sequence[list[Place]]
Process = Callable[[Image.Image, Image.Image], tuple[Tensor, Tensor | None]]
Sample = dict[str, Any]


class Prepare(Protocol):
    """One row's way to tensors: ``images`` (3, H, W), ``labels`` (H, W), and what else an evaluation needs."""

    def __call__(self, image: Image.Image, label_map: Image.Image, place: Place) -> Sample:
        """Prepare the row that stands at a place of the run."""


@dataclass(frozen=True)
class Resized:
    """As the processor makes them; for training with jittered colours."""

    process: Process
    jitter: ColorJitter | None = None
    seed: int = 0

    def __call__(self, image: Image.Image, label_map: Image.Image, place: Place) -> Sample:
        if self.jitter is not None:
            image = self.jitter(image, sample_generator(self.seed, *place))
        images, labels = self.process(image, label_map)
        return {"images": images, "labels": labels}


@dataclass(frozen=True)
class PaperCrop:
    """As the published recipe trains: a random crop of the photo at a random size, padded where it is smaller.

    ``process`` must not resize.
    """

    process: Process
    augment: PaperAugmentation
    seed: int

    def __call__(self, image: Image.Image, label_map: Image.Image, place: Place) -> Sample:
        images, labels = self.process(*self.augment(image, label_map, sample_generator(self.seed, *place)))
        images, labels = pad_to(images, cast(Tensor, labels), self.augment.crop_size, IGNORE_INDEX)
        return {"images": images, "labels": labels}


@dataclass(frozen=True)
class Unprocessed:
    """At most resized, as uint8, for a device that does the rest: ``images`` (3, H, W) and raw ``labels`` (H, W)."""

    size: tuple[int, int] | None  # height, width; None leaves both as they are
    resample: int = Image.Resampling.BILINEAR.value

    def __call__(self, image: Image.Image, label_map: Image.Image, place: Place) -> Sample:
        if self.size is not None:
            image = image.resize(self.size[::-1], self.resample)
            label_map = label_map.resize(self.size[::-1], Image.Resampling.NEAREST)
        photo, raw = torch.from_numpy(np.array(image)), torch.from_numpy(np.array(label_map))
        return {"images": photo.permute(2, 0, 1), "labels": raw, "place": place}


@dataclass(frozen=True)
class OriginalLabels:
    """As the processor makes them, and ``original_labels`` as ``keep_size`` does, which must not resize."""

    process: Process
    keep_size: Process

    def __call__(self, image: Image.Image, label_map: Image.Image, place: Place) -> Sample:
        images, labels = self.process(image, label_map)
        return {"images": images, "labels": labels, "original_labels": self.keep_size(image, label_map)[1]}


@dataclass(frozen=True)
class KeepRatio:
    """As the paper scores: ``views`` of the photo that keep its shape, one for each of ``scales``, labels as they are.

    ``process`` must not resize. A scale multiplies the limits of ``evaluation_size``.
    """

    process: Process
    scales: tuple[float, ...] = (1.0,)

    def __call__(self, image: Image.Image, label_map: Image.Image, place: Place) -> Sample:
        return {
            "views": [self._view(image, scale) for scale in self.scales],
            "original_labels": self.process(image, label_map)[1],
        }

    def _view(self, image: Image.Image, scale: float) -> Tensor:
        limits = int(PAPER_SCALE[0] * scale), int(PAPER_SCALE[1] * scale)
        height, width = evaluation_size(*image.size, scale=limits)
        view = image.resize((width, height), Image.Resampling.BILINEAR)
        return self.process(view, Image.new("L", view.size))[0]


def for_training(processor: Any, augmentation: str, seed: int, on_device: bool = False) -> Prepare:
    """The way of training rows: "none", "jitter" or "paper"; of the jitter, some may be left to the device.

    ``processor`` is a dataclass with the fields of transformers' processors, of which a changed copy may be made.
    """
    if augmentation == "paper":
        ignored = (0, IGNORE_INDEX) if processor.do_reduce_labels else (IGNORE_INDEX,)
        short = min(processor.size)  # of the paper 512: a photo is scaled around the crop's size
        crop = PaperAugmentation(processor.size, (4 * short, short), ignored=ignored)
        return PaperCrop(replace(processor, do_resize=False), crop, seed)
    if on_device:
        return Unprocessed(processor.size if processor.do_resize else None, processor.resample)
    return Resized(processor, ColorJitter() if augmentation == "jitter" else None, seed)


def for_evaluation(processor: Any, resolution: str, scales: tuple[float, ...] = (1.0,)) -> Prepare:
    """The way of rows to score, by what is scored: "processed", "original", "keep-ratio" or "window"."""
    as_it_is = replace(processor, do_resize=False)
    if resolution == "keep-ratio":
        return KeepRatio(as_it_is, scales)
    if resolution == "window":
        return AsItIs(as_it_is)
    return OriginalLabels(processor, as_it_is) if resolution == "original" else Resized(processor)


@dataclass(frozen=True)
class AsItIs:
    """One view, the photo at its own size, and its labels. ``process`` must not resize."""

    process: Process

    def __call__(self, image: Image.Image, label_map: Image.Image, place: Place) -> Sample:
        pixels, labels = self.process(image, label_map)
        return {"views": [pixels], "original_labels": labels}


class Samples(Dataset[Sample]):
    """Rows of a dataset, prepared, asked for as (epoch, row). The place that is no row holds a photo without labels."""

    def __init__(self, dataset: SceneParse150 | Subset[Any], prepare: Prepare) -> None:
        self.dataset = dataset
        self.prepare = prepare

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, place: Place) -> Sample:
        epoch, row = place
        if row == NO_ROW:
            sample = self[epoch, 0]
            return {**sample, "labels": torch.full_like(sample["labels"], IGNORE_INDEX)}
        image, label_map = self.pair(row)
        return self.prepare(image, label_map, place)

    def pair(self, row: int) -> tuple[Image.Image, Image.Image]:
        """The photo of a row and its raw label map. Raises ValueError for a row without one."""
        image, label_map = self.dataset[row]
        if label_map is None:
            raise ValueError(
                f"row {row}, {self.name(row)}, has no annotation; train and evaluate on an annotated split"
            )
        return image, label_map

    def name(self, row: int) -> str:
        """The file name of a row's photo."""
        if isinstance(self.dataset, Subset):
            return cast(SceneParse150, self.dataset.dataset).name(self.dataset.indices[row])
        return self.dataset.name(row)

    def identity(self) -> dict[str, Any]:
        """What tells these rows from others, wherever they lie; two of them are read for it."""
        return {"count": len(self), "first": self.name(0), "last": self.name(len(self) - 1)}


def collate(samples: list[Sample]) -> dict[str, Any]:
    """Stack what has one size into (B, ...) tensors; what follows the photos' own sizes, and places, stay lists."""
    batch: dict[str, Any] = {}
    for name in samples[0]:
        values = [sample[name] for sample in samples]
        if name in ("images", "labels") and len({value.shape for value in values}) > 1:
            sizes = ", ".join(sorted({f"{value.shape[-1]} x {value.shape[-2]}" for value in values}))
            raise ValueError(
                f"{name} of {sizes} pixels do not fit in one batch; have them resized by --image-size, or take "
                "one image in a forward pass"
            )
        batch[name] = torch.stack(values) if name in ("images", "labels") else values
    return batch


def to_device(batch: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """The batch on the device; copies from pinned memory overlap with computation."""
    return cast(dict[str, Any], _each_tensor(batch, lambda values: values.to(device, non_blocking=True)))


def _each_tensor(values: Any, change: Callable[[Tensor], Any]) -> Any:
    """The same dictionaries and lists with every tensor changed."""
    if isinstance(values, Tensor):
        return change(values)
    if isinstance(values, dict):
        return {name: _each_tensor(value, change) for name, value in values.items()}
    return [_each_tensor(value, change) for value in values] if isinstance(values, list) else values


def count_workers(asked: int | None, device: torch.device) -> int:
    """How many processes are to prepare batches: as many as are asked for; else none, or for a GPU one for each core.

    Of the cores, one is left to the process that trains, and processes of ``torchrun`` share them.
    """
    if asked is not None or device.type != "cuda":
        return asked or 0
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(cores // int(os.environ.get("LOCAL_WORLD_SIZE", 1)) - 1, _MOST_WORKERS))


def on_device(batches: Iterable[dict[str, Any]], device: torch.device) -> Iterator[dict[str, Any]]:
    """The batches on the device, in their order; the next one is on its way to a GPU while it computes on one.

    It is copied on a stream of its own, so that neither the GPU nor the host waits for it. What goes wrong with a batch
    is raised when its turn has come.
    """
    if device.type != "cuda":
        yield from (to_device(batch, device) for batch in batches)
        return
    source, stream = iter(batches), torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def fetch() -> dict[str, Any] | Exception | None:
        try:
            batch = next(source, None)
        except Exception as error:
            return error
        with torch.cuda.stream(stream):
            return None if batch is None else to_device(batch, device)

    coming = fetch()
    while isinstance(coming, dict):
        batch, computing = coming, torch.cuda.current_stream(device)
        computing.wait_stream(stream)
        _each_tensor(batch, methodcaller("record_stream", computing))  # or its memory might be given away too early
        coming = fetch()
        yield batch
    if coming is not None:
        raise coming


class Loader:
    """Batches of the places that ``places`` lists, prepared ahead for a device by workers if there are any.

    ``num_workers`` is how many, ``count_workers`` if None; more than there are batches are never begun.
    ``waited_seconds`` is the time that whoever takes the batches has spent waiting for them. Raises OSError where a
    worker was ended from outside, as the system does when memory runs out.
    """

    def __init__(
        self, samples: Samples, places: Places, num_workers: int | None = None, device: torch.device = _CPU
    ) -> None:
        self.waited_seconds = 0.0
        self._loader = DataLoader(
            samples,
            batch_sampler=places,
            collate_fn=collate,
            num_workers=min(count_workers(num_workers, device), len(places)),
            pin_memory=device.type == "cuda",
            worker_init_fn=_leave_interrupts_to_the_run,
        )

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        batches = iter(self._loader)
        while True:
            started = time.perf_counter()
            try:
                batch = next(batches, None)
            except (RuntimeError, ConnectionError, EOFError) as error:
                if not (self._loader.num_workers and is_lost_worker(error)):
                    raise
                raise OSError(explain_lost_worker(error)) from error
            self.waited_seconds += time.perf_counter() - started
            if batch is None:
                return
            yield batch


def is_lost_worker(error: Exception) -> bool:
    """Whether an error says that a worker has ended, which torch may raise anywhere in the main thread.

    What a worker raised itself, and lived on, comes with its traceback in the text.
    """
    text = str(error)
    if isinstance(error, ConnectionError | EOFError):  # it ended while it handed over a batch
        return "Original Traceback" not in text or "in pin memory thread" in text
    return isinstance(error, RuntimeError) and text.startswith(("DataLoader worker", "Pin memory thread"))


def explain_lost_worker(error: Exception) -> str:
    """What to tell of it, and what to do."""
    reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip(". ")
    return (
        f"a process that prepares batches is gone ({reason}); if memory ran out, take fewer --dataloader-num-workers, "
        "then --resume-from-checkpoint"
    )


def _leave_interrupts_to_the_run(_: int) -> None:
    for each in (signal.SIGINT, signal.SIGTERM):  # both often go to every process of a terminal, job or container
        signal.signal(each, signal.SIG_IGN)
