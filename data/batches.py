"""Rows as tensors and tensors as batches: what happens to a photo and its label map on their way to the model.

The image processor belongs to the model, so it is handed in, and decides where a photo lies in what the model sees.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from operator import methodcaller
from typing import Any, Protocol, cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset

from data.augmentation.jitter import ColorJitter, mix, sample_generator
from data.augmentation.paper import PaperAugmentation, pad_to
from data.classes import IGNORE_INDEX
from data.order import NO_ROW, Place, StepSampler
from data.sceneparse import SceneParse150, whole_and_rows

_MOST_WORKERS = 16  # chosen unasked; each holds a few batches

_CPU = torch.device("cpu")
Places = StepSampler | Sequence[list[Place]]
Sample = dict[str, Any]
_CROP = 1  # tells the draws of a crop from those of the colours


class Placement(Protocol):
    """Where a photo lies in what the model sees of it; sizes are (height, width)."""

    @property
    def shown(self) -> tuple[int, int]: ...
    @property
    def view(self) -> tuple[int, int]: ...
    def resize(self, picture: Image.Image, resample: int) -> Image.Image:
        """A photo or a label map as far as it is seen, without padding."""

    def part_of(self, photo: Image.Image) -> Image.Image:
        """The part of a photo that is seen, at the photo's own scale."""


class Processor(Protocol):
    """Photos to images (3, H, W) float32 and raw label maps to labels (H, W) int64, as they are placed."""

    @property
    def resample(self) -> int: ...
    def place(self, width: int, height: int, whole: bool = ..., at: tuple[float, float] | None = ...) -> Any:
        """The ``Placement`` of a photo of so many pixels: its usual one, as a whole, or cropped at shares of 0 to 1."""

    def image_to_tensor(self, image: Image.Image, placement: Any = ...) -> Tensor: ...
    def labels_to_tensor(self, label_map: Image.Image, placement: Any = ...) -> Tensor: ...


class Prepare(Protocol):
    """One row's way to tensors: ``images`` (3, H, W), ``labels`` (H, W), and what else an evaluation needs."""

    def __call__(self, image: Image.Image, label_map: Image.Image, place: Place) -> Sample:
        """Prepare the row that stands at a place of the run."""


@dataclass(frozen=True)
class Resized:
    """As the processor makes them, with jittered colours; where it crops, that is at a place drawn at random."""

    processor: Processor
    jitter: ColorJitter | None = None
    seed: int = 0

    def __call__(self, image: Image.Image, label_map: Image.Image, place: Place) -> Sample:
        if self.jitter is not None:
            image = self.jitter(image, sample_generator(self.seed, *place))
        placement = drawn_placement(self.processor, image, self.seed, place)
        return {
            "images": self.processor.image_to_tensor(image, placement),
            "labels": self.processor.labels_to_tensor(label_map, placement),
        }


@dataclass(frozen=True)
class PaperCrop:
    """As the published recipe trains: a random crop of the photo at a random size, padded where it is smaller.

    ``processor`` must not resize.
    """

    processor: Processor
    augment: PaperAugmentation
    seed: int

    def __call__(self, image: Image.Image, label_map: Image.Image, place: Place) -> Sample:
        image, label_map = self.augment(image, label_map, sample_generator(self.seed, *place))
        images, labels = self.processor.image_to_tensor(image), self.processor.labels_to_tensor(label_map)
        images, labels = pad_to(images, labels, self.augment.crop_size, IGNORE_INDEX)
        return {"images": images, "labels": labels}


@dataclass(frozen=True)
class Unprocessed:
    """At most resized and cropped, as uint8, for a device that does the rest: ``images`` (3, H, W), raw ``labels``."""

    processor: Processor
    seed: int = 0

    def __call__(self, image: Image.Image, label_map: Image.Image, place: Place) -> Sample:
        placement = drawn_placement(self.processor, image, self.seed, place)
        photo = np.array(placement.resize(image, self.processor.resample))
        raw = np.array(placement.resize(label_map, Image.Resampling.NEAREST.value))
        return {"images": torch.from_numpy(photo).permute(2, 0, 1), "labels": torch.from_numpy(raw), "place": place}


def drawn_placement(processor: Processor, image: Image.Image, seed: int, place: Place) -> Placement:
    """Where a photo to train on lies, a function of seed, epoch and row."""
    down, across = torch.rand(2, generator=sample_generator(mix(seed, _CROP), *place)).tolist()
    placement: Placement = processor.place(*image.size, at=(down, across))
    return placement


@dataclass(frozen=True)
class Scored:
    """A row to score: ``views`` of its photo, each placed as one of ``ways`` says by width and height, and its labels.

    These have their own size (``own_labels``), or are placed as the first view is, without its padding. They are
    ``labels`` where they fill the view of every photo (``filling``), which a batch stacks, else ``original_labels``.
    ``shown`` is (height, width) of what is no padding in each view.
    """

    processor: Processor
    as_it_is: Processor  # the same, which resizes nothing
    ways: Sequence[Callable[[int, int], Placement]]
    own_labels: bool
    filling: bool
    one_by_one: bool  # as views follow the sizes of photos

    def __call__(self, image: Image.Image, label_map: Image.Image, place: Place) -> Sample:
        places = [way(*image.size) for way in self.ways]
        labels = label_map if self.own_labels else places[0].resize(label_map, Image.Resampling.NEAREST.value)
        return {
            "views": [self.processor.image_to_tensor(image, placement) for placement in places],
            "shown": [placement.shown for placement in places],
            "labels" if self.filling else "original_labels": self.as_it_is.labels_to_tensor(labels),
        }

    def seen(self, photo: Image.Image) -> Image.Image:
        """The part of a photo that is scored."""
        return photo if self.own_labels else self.ways[0](*photo.size).part_of(photo)


def for_training(processor: Any, augmentation: str, seed: int, on_device: bool = False) -> Prepare:
    """The way of training rows: "none", "jitter" or "paper"; of the jitter, some may be left to the device.

    ``processor`` is a dataclass with the fields of transformers' processors, of which a changed copy may be made.
    Raises ValueError for photos that are to be padded and yet left to the device.
    """
    if augmentation == "paper":
        ignored = (0, IGNORE_INDEX) if processor.do_reduce_labels else (IGNORE_INDEX,)
        short = min(processor.size)  # of the paper 512: a photo is scaled around the crop's size
        crop = PaperAugmentation(processor.size, (4 * short, short), ignored=ignored)
        return PaperCrop(replace(processor, do_resize=False), crop, seed)
    if on_device and processor.resize_mode == "keep":
        raise ValueError(
            "augment_on_device changes whole photos, and those of resize_mode keep are padded; leave it out"
        )
    if on_device:
        return Unprocessed(processor, seed)
    return Resized(processor, ColorJitter() if augmentation == "jitter" else None, seed)


def for_evaluation(processor: Any, resolution: str, scales: tuple[float, ...] = (1.0,)) -> Scored:
    """The way of rows to score, by what is scored: "processed", "original", "keep-ratio" or "window"."""
    as_it_is = replace(processor, do_resize=False)
    ways: dict[str, list[Callable[[int, int], Placement]]] = {
        "processed": [processor.place],
        "original": [partial(processor.place, whole=True)],
        "keep-ratio": [partial(processor.place_keeping_ratio, scale=scale) for scale in scales],
        "window": [as_it_is.place],
    }
    mode = processor.resize_mode if processor.do_resize else None
    one_by_one = resolution in ("keep-ratio", "window") or mode is None or (resolution, mode) == ("original", "crop")
    own_labels = resolution != "processed"
    return Scored(processor, as_it_is, ways[resolution], own_labels, not own_labels and mode != "keep", one_by_one)


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
                f"row {row}, {self.name(row)}, has no annotation; take it out, or train and evaluate on an annotated "
                "split"
            )
        return image, label_map

    def name(self, row: int) -> str:
        """The file name of a row's photo."""
        whole, rows = whole_and_rows(self.dataset)
        return whole.name(rows[row])

    def seen(self, row: int) -> Image.Image:
        """The photo of a row, as far as it is scored."""
        photo, _ = self.pair(row)
        return self.prepare.seen(photo) if isinstance(self.prepare, Scored) else photo

    @property
    def one_by_one(self) -> bool:
        """Whether photos come to be scored in sizes of their own. Raises ValueError for rows prepared for training."""
        if not isinstance(self.prepare, Scored):
            raise ValueError(
                f"these samples are prepared by {type(self.prepare).__name__}, as for training; to be scored they are "
                "Samples(dataset, for_evaluation(processor, ...))"
            )
        return self.prepare.one_by_one

    def identity(self) -> dict[str, Any]:
        """What tells these rows from others, wherever they lie; two of them are read for it."""
        return {"count": len(self), "first": self.name(0), "last": self.name(len(self) - 1)}


def collate(samples: list[Sample]) -> dict[str, Any]:
    """Stack what has one size into (B, ...) tensors; what follows the photos' own sizes, and places, stay lists."""
    batch: dict[str, Any] = {}
    for name in samples[0]:
        values = [sample[name] for sample in samples]
        if name in ("images", "labels"):
            batch[name] = _stacked(name, values)
        elif name == "views":
            batch[name] = [_stacked("images", each) for each in zip(*values, strict=True)]
        else:
            batch[name] = values
    return batch


def _stacked(name: str, tensors: Sequence[Tensor]) -> Tensor:
    if len({tensor.shape for tensor in tensors}) > 1:
        sizes = ", ".join(sorted({f"{tensor.shape[-1]} x {tensor.shape[-2]}" for tensor in tensors}))
        raise ValueError(
            f"{name} of {sizes} pixels do not fit in one batch; have them resized by --image-size, or take one image "
            "in a forward pass"
        )
    return torch.stack(list(tensors))


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
