"""The rows of ``python -m benchmarks``: what each measures and what it is to reach, the most telling first.

A row is a function that a process of its own can be asked for, and returns what it measured under the names that all
benchmarks use. Two sides are compared before they are timed.
"""

from __future__ import annotations

import gc
import importlib.util
import statistics
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks import loader, measure, parts, peers, throughput
from benchmarks.runs import of_steps, train_once
from benchmarks.shards import scene_shards
from data import SceneParse150
from data.augmentation.jitter import ColorJitter
from data.augmentation.on_device import AugmentOnDevice
from data.batches import Resized, Samples, Unprocessed, count_workers, for_training
from data.classes import ID2LABEL
from segformer import VARIANTS, ImageProcessor, Segformer, fullres
from segformer.fullres import cells
from segformer.training.graphs import STEPS_BEFORE, StepGraphs
from segformer.training.precision import autocast
from train import configure

PAPER_STEPS, PAPER_BATCH = 160_000, 16
_TRIED_BATCH = 1024  # beyond which no larger batch is tried
_KEPT_RATE = 0.97  # a batch that reaches so much of the highest rate is as good


@dataclass(frozen=True)
class Scope:
    """What all rows of a machine share: where they compute, their size and repeats, a folder for what is generated."""

    device: str
    folder: Path
    size: int = 512
    repeats: int = 7

    @property
    def on_cuda(self) -> bool:
        return self.device.startswith("cuda")

    @property
    def low(self) -> str:
        """The low precision that the device is made for."""
        return "fp16" if self.on_cuda and torch.cuda.get_device_capability(self.device) < (8, 0) else "bf16"

    @property
    def batch_size(self) -> int:
        return PAPER_BATCH if self.on_cuda else 2

    def words(self) -> list[str]:
        """The flags that benchmarks understand."""
        return ["--device", self.device, "--repeats", str(self.repeats)]


class Goal(NamedTuple):
    """What a column of a row must reach at least, and better would; at most, where less is better."""

    column: str
    at_least: float
    aim: float


class Row(NamedTuple):
    """Something to measure: about how many seconds it takes, and whether in a process that has compiled nothing yet."""

    name: str
    group: str  # of rows with the same columns
    seconds: float
    work: Callable[[], dict[str, Any]]
    fresh: bool = False
    goals: tuple[Goal, ...] = ()


def plan(scope: Scope) -> list[Row]:
    """All rows of a machine, those first that say most."""
    return _plan_of_gpu(scope) if scope.on_cuda else _plan_of_cpu(scope)


def _plan_of_gpu(scope: Scope) -> list[Row]:
    low, others = scope.low, [name for name in VARIANTS if name != "b0"]
    step, photo = partial(_step, scope), partial(_photo, scope)
    return [
        step("b0", 16, low, 40, goals=(Goal("ratio", 2.5, 4.0), Goal("memory_ratio", 0.35, 0.2))),
        step("b0", 16, low, 200, compile=True, goals=(Goal("ratio", 1.5, 2.5),)),
        _loss(scope, 16, "compiled", 90, Goal("ratio", 2.0, 5.0)),
        Row(
            "B0 step, batch 2, as a CUDA graph",
            "step",
            30,
            partial(graphed_step, scope, 2, low),
            True,
            (Goal("ratio", 2.0, 4.0),),
        ),
        Row("prediction, batch 8", "photo", 40, partial(prediction, scope, 8, low), goals=(Goal("ratio", 3.0, 6.0),)),
        Row(
            "precision, 100 steps", "precision", 150, partial(precisions, scope), goals=(Goal("difference", 0.02, 0.0),)
        ),
        _loss(scope, 16, "kernels", 60, Goal("ratio", 1.3, 1.3)),
        _run(scope, "guide", 300, 60),
        _data(scope, "on-device", 40),
        Row("B0 batches", "batch", 60, partial(batches, scope, "b0", low)),
        step("b0", 16, "off", 40),
        step("b0", 2, low, 20),
        _loss(scope, 16, "eager", 30),
        photo("b0", low, 20),
        *(step(variant, 16, low, 50) for variant in others),
        _run(scope, "paper", 200, 90),
        _data(scope, "as the guide", 40),
        _data(scope, "paper", 40),
        *(photo(variant, low, 20) for variant in others),
        Row("profile of a B0 step", "profile", 20, partial(profile, scope, "b0", 16, low)),
        *(step(variant, 16, low, 300, compile=True) for variant in others),
    ]


def _plan_of_cpu(scope: Scope) -> list[Row]:
    others = [name for name in VARIANTS if name != "b0"]
    step, photo = partial(_step, scope), partial(_photo, scope)
    return [
        step("b0", 2, "off", 90),
        step("b0", 2, "bf16", 50, memory=False),
        _loss(scope, 2, "eager", 20),
        Row("prediction, batch 2", "photo", 30, partial(prediction, scope, 2, "off")),
        photo("b0", "off", 20),
        _run(scope, "guide", 10, 60),
        _data(scope, "as the guide", 40),
        _data(scope, "on-device", 30),
        Row("precision, 100 steps", "precision", 150, partial(precisions, scope)),
        *(step(variant, 1, "off", 60, memory=False) for variant in others),
        *(photo(variant, "off", 20) for variant in others),
        Row("profile of a B0 step", "profile", 30, partial(profile, scope, "b0", 2, "off")),
        step("b0", 2, "off", 600, compile=True, memory=False),
    ]


def _step(
    scope: Scope,
    variant: str,
    batch_size: int,
    amp: str,
    seconds: float,
    compile: bool = False,
    memory: bool = True,
    goals: tuple[Goal, ...] = (),
) -> Row:
    name = f"{variant.upper()} step, batch {batch_size}, {amp}" + ", compiled" * compile
    work = partial(training_step, scope, variant, batch_size, amp, compile, memory)
    return Row(name, "step", seconds, work, compile, goals)


def _photo(scope: Scope, variant: str, amp: str, seconds: float) -> Row:
    return Row(f"{variant.upper()} photo, {amp}", "photo", seconds, partial(photo_to_label_map, scope, variant, amp))


def _loss(scope: Scope, batch_size: int, how: str, seconds: float, *goals: Goal) -> Row:
    name = f"loss, batch {batch_size}, {how}"
    return Row(name, "loss", seconds, partial(loss, scope, batch_size, how), how != "eager", goals)


def _run(scope: Scope, recipe: str, steps: int, seconds: float) -> Row:
    return Row(f"train.py, {recipe}", "run", seconds, partial(whole_run, scope, recipe, steps))


def _data(scope: Scope, path: str, seconds: float) -> Row:
    return Row(f"data path, {path}", "data", seconds, partial(data_path, scope, path))


# ---------------------------------------------------------------------------------------------------- what they measure


def _against() -> list[str]:
    """The peer, where it is installed."""
    return ["--against", "transformers"] if importlib.util.find_spec("transformers") else []


def training_step(
    scope: Scope, variant: str, batch_size: int, amp: str, compile: bool = False, memory: bool = False
) -> dict[str, Any]:
    """``train_step``, perhaps with its memory, and the hours that the paper's steps of that batch would take."""
    asked = [*["--compile"] * compile, *["--memory"] * memory]
    words = [*scope.words(), *_against(), "--mode", "train", *asked]
    row = throughput.Case(throughput.parse_arguments(words), variant, scope.size, batch_size, amp).run()
    return row | ({"paper_hours": PAPER_STEPS * row["ms"] / 3.6e6} if batch_size == PAPER_BATCH else {})


def photo_to_label_map(scope: Scope, variant: str, amp: str) -> dict[str, Any]:
    """A photo to its label map, one at a time, preprocessing included."""
    options = throughput.parse_arguments([*scope.words(), *_against(), "--mode", "infer"])
    return throughput.Case(options, variant, scope.size, 1, amp).run()


def loss(scope: Scope, batch_size: int, how: str) -> dict[str, Any]:
    """The loss with its gradient, of logits as a step in low precision has them on a GPU.

    The kernels' peer is what they would stand in for: our compiled loss.
    """
    compiled = partial(fullres.cross_entropy, compiled=True)
    sides: dict[str, tuple[parts.LossOf, parts.LossOf]] = {
        "eager": (fullres.cross_entropy, peers.plain_loss),
        "compiled": (compiled, torch.compile(peers.plain_loss, dynamic=False)),
        "kernels": (_loss_by_kernels, compiled),
    }
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}[scope.low] if scope.on_cuda else torch.float32
    words = [*scope.words(), "--batch-size", str(batch_size), "--size", str(scope.size)]
    options = parts.parse_arguments(words)
    ways = parts.loss_sides(options, *sides[how], dtype)
    limit = 1e-5 if dtype == torch.float32 else 2.5 * torch.finfo(dtype).eps  # both round their gradients
    return parts.measure_part("loss", options, ways, limit)


def _loss_by_kernels(logits: Tensor, labels: Tensor) -> Tensor:
    cells.IN_USE = True
    try:
        if not cells.can_run(logits):
            raise SystemExit("the kernels cannot run here, which takes a GPU of capability 7.0 and Triton")
        return fullres.cross_entropy(logits, labels)
    finally:
        cells.IN_USE = False


def graphed_step(scope: Scope, batch_size: int, amp: str) -> dict[str, Any]:
    """Our step as a CUDA graph beside our step as it is, of equal losses."""
    options = throughput.parse_arguments([*scope.words(), "--mode", "train"])
    device = torch.device(scope.device)
    losses, ways = {}, {}
    for side in ("ours", "peer"):
        case = throughput.Case(options, "b0", scope.size, batch_size, amp)
        ways[side] = case.ours(StepGraphs(side == "ours", device))
        losses[side] = [float(ways[side]().loss) for _ in range(STEPS_BEFORE + 3)]
    if losses["ours"] != losses["peer"]:
        raise SystemExit(f"a graph gives the losses {losses['ours']}, not {losses['peer']}; nothing was timed")
    row: dict[str, Any] = {"variant": "b0", "batch_size": batch_size, "amp": amp}
    row |= measure.side_by_side(ways, device, scope.repeats, times=5)
    return row | {"images_per_second": 1e3 * batch_size / row["ms"]}


def prediction(scope: Scope, batch_size: int, amp: str) -> dict[str, Any]:
    """Pixels of photos to label maps in the host's memory, a batch at a time, preprocessing on the device."""
    device, size = torch.device(scope.device), (scope.size, scope.size)
    torch.manual_seed(0)
    model = Segformer(VARIANTS["b0"](id2label=ID2LABEL)).to(device).eval()
    torch.nn.init.normal_(model.decoder.classifier.weight)  # so that predictions are not all one class
    processor = ImageProcessor(size=size)
    coarse = torch.rand(batch_size, 3, 12, 12)
    photos = torch.nn.functional.interpolate(coarse, size, mode="bicubic").clamp(0, 1).mul(255).to(torch.uint8)
    photos = photos.pin_memory() if scope.on_cuda else photos
    prepare = AugmentOnDevice.in_place_of(processor, None, 0)
    no_labels = torch.zeros(batch_size, *size, dtype=torch.uint8, device=device)
    places = [(0, 0)] * batch_size

    def ours() -> Tensor:
        with torch.inference_mode(), autocast(amp, device):
            images, _ = prepare(photos.to(device, non_blocking=True), no_labels, places)
            return fullres.argmax(model(images), size).to(torch.uint8).cpu()

    ways = {"ours": ours}
    row: dict[str, Any] = {"batch_size": batch_size, "amp": amp, "variant": "b0", "size": scope.size}
    if _against():
        with tempfile.TemporaryDirectory() as folder:
            model.save_pretrained(folder)
            processor.save_pretrained(folder)
            ways["peer"] = peers.batch_prediction(folder, photos, autocast(amp, device), device)
        row["pixel_agreement"] = float((ours() == ways["peer"]()).double().mean())
        if row["pixel_agreement"] < (0.999 if amp == "off" else 0.98):
            raise SystemExit(f"the two sides agree on {row['pixel_agreement']:.2%} of the pixels; nothing was timed")
    row |= measure.side_by_side(ways, device, scope.repeats)
    return row | {"images_per_second": 1e3 * batch_size / row["ms"]}


def precisions(scope: Scope, steps: int = 100) -> dict[str, Any]:
    """The loss after some steps in every precision, a mean of the last twenty, beside that of float32 on the CPU."""
    shards = scene_shards(scope.folder)
    where = {"dataset": str(shards), "split": "train", "eval_split": "validation[:16]"}
    config = of_steps(configure("toy", **where, image_size=min(128, scope.size)), steps)
    ways = {"cpu_off": ("cpu", "off"), "off": (scope.device, "off"), "bf16": (scope.device, "bf16")}
    if scope.on_cuda:
        ways["fp16"] = (scope.device, "fp16")
    else:
        del ways["off"]
    row: dict[str, Any] = {"steps": steps}
    for name, (device, amp) in ways.items():
        losses = train_once(of_steps(config, steps, device=device, amp=amp)).losses[-20:]
        row[f"loss_{name}"] = statistics.mean(losses)
    exact = row["loss_cpu_off"]
    row["difference"] = max(abs(row[f"loss_{name}"] / exact - 1) for name in ways)
    return row


def whole_run(scope: Scope, recipe: str, steps: int) -> dict[str, Any]:
    """``train.py`` from files to weights, and the hours that the paper's images would take at this rate."""
    shards = scene_shards(scope.folder)
    batch_size = scope.batch_size
    settings: dict[str, Any] = {
        "dataset": str(shards),
        "split": "train",
        "eval_split": "validation",
        "checkpoint": None,
        "variant": "b0",
        "image_size": scope.size,
        "per_device_train_batch_size": batch_size,
        "warmup_steps": 0,
        "device": scope.device,
    }
    if recipe == "guide":
        settings |= {"augment_on_device": True, "per_device_eval_batch_size": batch_size}
    closing = (outcome := train_once(of_steps(configure(recipe, **settings), steps))).closing
    seconds = closing["train_runtime"] - outcome.results["eval_runtime"]
    images_per_second = closing["train_samples_per_second"] * closing["train_runtime"] / seconds
    return {
        "recipe": recipe,
        "batch_size": batch_size,
        "steps": steps,
        "images_per_second": images_per_second,
        "data_wait_share": closing["data_wait_share"],
        "eval_images_per_second": outcome.results["eval_samples_per_second"],
        "peak_memory_mib": closing["peak_memory_mib"],
        "paper_hours": PAPER_STEPS * PAPER_BATCH / images_per_second / 3600,
    }


def data_path(scope: Scope, path: str) -> dict[str, Any]:
    """Images a second that reach the model's door, with as many workers as a run on a GPU would have here."""
    dataset = SceneParse150(str(scene_shards(scope.folder)), "train")
    processor = ImageProcessor(size=(scope.size, scope.size))
    prepare = {
        "as the guide": Resized(processor, ColorJitter(), 42),
        "on-device": Unprocessed(processor),
        "paper": for_training(processor, "paper", 42),
    }[path]
    workers = count_workers(None, torch.device("cuda"))
    count = min(len(dataset), 40 * max(1, workers))
    return loader.measure_path(path, Samples(dataset, prepare), count, workers, None, min(3, scope.repeats))


def batches(scope: Scope, variant: str, amp: str) -> dict[str, Any]:
    """The rate of every batch that fits, the smallest that is as good as any, and the largest; the peer's, too."""
    options = throughput.parse_arguments(["--device", scope.device, "--repeats", "3"])
    once = throughput.parse_arguments(["--device", scope.device, "--repeats", "1"])
    rates = {size: rate for size in _powers() if (rate := _rate(options, scope, variant, amp, size, "ours"))}
    best = min(size for size, rate in rates.items() if rate >= _KEPT_RATE * max(rates.values()))
    row: dict[str, Any] = {"variant": variant, "amp": amp, "rates": rates}
    row |= {"best_batch_size": best, "images_per_second": rates[best]}
    sides = ["ours", *(["transformers"] if _against() else [])]
    for side, name in zip(sides, ("largest_batch_size", "peer_largest_batch_size"), strict=False):
        row[name] = _largest(lambda size, side=side: bool(_rate(once, scope, variant, amp, size, side)))
    return row


def _powers() -> list[int]:
    return [2**n for n in range(_TRIED_BATCH.bit_length())]


def _largest(fits: Callable[[int], bool]) -> int:
    """The largest batch that fits, to an eighth, or the largest tried."""
    low = next((size for size in reversed(_powers()) if fits(size)), 0)
    if low in (0, _TRIED_BATCH):
        return low
    tried = low
    for eighth in (4, 2, 1):
        if fits(tried + eighth * low // 8):
            tried += eighth * low // 8
    return tried


def _rate(options: Any, scope: Scope, variant: str, amp: str, batch_size: int, side: str) -> float | None:
    """Images a second of one side; None where memory runs out."""
    device, step = torch.device(scope.device), None
    try:
        case = throughput.Case(options, variant, scope.size, batch_size, amp)
        step = case.ours() if side == "ours" else case.peer(side)
        seconds = measure.alternate({side: step}, device, options.repeats)[side]
        return batch_size / statistics.median(seconds)
    except torch.OutOfMemoryError:
        return None
    finally:
        case = step = None
        gc.collect()
        torch.cuda.empty_cache()


def profile(scope: Scope, variant: str, batch_size: int, amp: str, most: int = 15) -> dict[str, Any]:
    """The kernels, on a CPU the operators, that most of a step's time goes to."""
    from torch.autograd import DeviceType
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as record

    case = throughput.Case(throughput.parse_arguments(scope.words()), variant, scope.size, batch_size, amp)
    step, steps = case.ours(), 3
    for _ in range(2):
        step()
    kinds = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if scope.on_cuda else [])]
    with record(activities=kinds) as found:
        for _ in range(steps):
            step()
        if scope.on_cuda:
            torch.cuda.synchronize()
    kind, cost = ("CUDA", "self_device_time_total") if scope.on_cuda else ("CPU", "self_cpu_time_total")
    events = [event for event in found.key_averages() if event.device_type == getattr(DeviceType, kind)]
    costs = [(getattr(event, cost) / 1e3 / steps, event) for event in events]
    total = sum(ms for ms, _ in costs)
    top = sorted(costs, key=lambda cost: -cost[0])[:most]
    listed = [
        {"operation": event.key[:100], "calls": event.count / steps, "ms": ms, "share": ms / total} for ms, event in top
    ]
    return {"variant": variant, "batch_size": batch_size, "amp": amp, "busy_ms": total, "top": listed}
