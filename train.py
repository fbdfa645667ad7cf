"""Fine-tune SegFormer: the whole run in one file, top to bottom, with nothing behind it but PyTorch.

    python train.py                         generated scenes, from scratch, no network
    python train.py --recipe guide          Hugging Face's guide: nvidia/mit-b0 on 50 images of SceneParse150
    torchrun --nproc-per-node 4 train.py    a run on four GPUs; any recipe

Settings, data, model, step, evaluation and the loop follow in this order. Every random draw is a function of
where the run is (seed, epoch, row, step), so a resumed run repeats an uninterrupted one and no generator is ever saved.
"""

from __future__ import annotations

import argparse
import glob
import json
import logging
import math
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from itertools import chain, repeat, takewhile
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import Subset
from tqdm import tqdm

from data import SceneParse150, train_test_split
from data.augmentation.jitter import ColorJitter, mix
from data.augmentation.on_device import AugmentOnDevice
from data.augmentation.paper import PAPER_SCALE, PaperAugmentation
from data.batches import (
    KeepRatio,
    Loader,
    OriginalLabels,
    PaperCrop,
    Resized,
    Samples,
    Unprocessed,
    collate,
    explain_lost_worker,
    is_lost_worker,
)
from data.classes import ID2LABEL, IGNORE_INDEX
from data.labels import LabelRule, read_label_names
from data.order import NO_ROW, Place, StepSampler
from data.sources.hub import HubSource
from segformer import VARIANTS, ConfusionMatrix, ImageProcessor, Segformer, fullres
from segformer.config import variant_of
from segformer.console import speak_plainly
from segformer.files import write_atomically
from segformer.pages.record import RESULTS_NAME, RunDescription, class_table
from segformer.pages.report import REPORT_NAME, build_report
from segformer.pages.samples import Shown, save_shown
from segformer.pictures import palette
from segformer.segmenter import choose_device, processor_of
from segformer.training.checkpoints import (
    STATE_NAME,
    check_whole,
    copy_checkpoint,
    find_checkpoints,
    read_training_state,
    remove_leftovers,
    rotate_checkpoints,
    save_checkpoint,
    set_aside_later,
)
from segformer.training.history import Clock, Log, peak_memory_mib, without_nan
from segformer.training.interrupts import Interrupted, StopRequest
from segformer.training.output import RunLock, claim_output_dir, empty_output_dir
from segformer.training.ranks import (
    ALONE,
    Ranks,
    compute_deterministically,
    distribute,
    is_lost_rank,
    join_ranks,
    leave_ranks,
    sum_over_ranks,
    take_writers_buffers,
)
from segformer.training.resume import find_resumed
from segformer.training.settings import (
    FlagParser,
    add_flags,
    changeable,
    check_resumable,
    check_settings,
    per_start,
    setting,
)
from segformer.views import mirrored_logits
from segformer.weights.card import write_card
from segformer.weights.publish import check_login, full_id, publish_run, shareable

logger = logging.getLogger("train")

# ---------------------------------------------------------------------------------------------------------- settings


@dataclass(frozen=True)
class TrainConfig:
    """Every setting of a run, under the guide's names; the defaults are the guide's. Raises ValueError by name."""

    recipe: str = setting("guide", "the settings to start from")
    dataset: str = changeable("scene_parse_150", "folder or glob of parquet shards, scene_parse_150 (Hub), or toy")
    split: str = setting("train[:50]", "rows to train on, such as train or train[:50]")
    eval_split: str | None = setting(None, "rows to evaluate on; without it, --test-size of --split is held out")
    test_size: float = setting(0.2, "share of --split to hold out when there is no --eval-split", at_least=0, below=1)
    checkpoint: str | None = setting("nvidia/mit-b0", "Hub id, folder or file to start from; 'none' to start anew")
    variant: str | None = setting(None, "b0 to b5: size of a model that starts anew, b0 if not given", tuple(VARIANTS))
    image_size: int | None = setting(
        None, "side in pixels that photos are resized to; else the checkpoint's, or 512", at_least=1
    )
    num_labels: int | None = setting(
        None, "number of classes; else as many as named, or SceneParse150's 150", at_least=1
    )
    label_names: str | None = setting(None, "file that names the classes: JSON, or a name a line")
    reduce_labels: bool = setting(True, "raw label 0 is 'other', and label k class k - 1; without, label k is class k")
    ignore_index: int | None = setting(None, "one more raw label to ignore; 255 if labels are not reduced")
    binary_masks: bool = setting(False, "any raw label above 0 is the object; takes --no-reduce-labels")
    augmentation: str = setting("jitter", "of training images: the guide's or the paper's", ("none", "jitter", "paper"))
    augment_on_device: bool = setting(False, "jitter and normalise there; workers only decode and resize")
    drop_path_rate: float | None = setting(
        None, "rate of dropped residual branches; else the checkpoint's", at_least=0, below=1
    )
    classifier_dropout: float | None = setting(
        None, "dropout before the classifier; else the checkpoint's", at_least=0, below=1
    )
    learning_rate: float = setting(6e-5, "peak learning rate of AdamW", at_least=0)
    head_learning_rate_factor: float = setting(1.0, "times as high a learning rate for the decoder", at_least=0)
    weight_decay: float = setting(0.0, "weight decay of AdamW; norms and biases are spared", at_least=0)
    decay_biases: bool = setting(False, "decay biases too; norms are still spared")
    lr_scheduler_type: str = setting(
        "linear", "shape of the schedule after warm-up", ("linear", "poly", "cosine", "constant")
    )
    warmup_steps: int = setting(0, "steps of linear warm-up", at_least=0)
    num_train_epochs: float = setting(50, "passes over the training rows", at_least=0)
    max_steps: int = setting(-1, "steps to train for, if above 0, instead of --num-train-epochs")
    per_device_train_batch_size: int = changeable(2, "images in one forward pass", at_least=1)
    per_device_eval_batch_size: int = changeable(2, "images in one forward pass of the evaluation", at_least=1)
    gradient_accumulation_steps: int = changeable(1, "forward passes behind one optimiser step", at_least=1)
    max_grad_norm: float = setting(1.0, "gradients are clipped to this norm; 0 to leave them", at_least=0)
    eval_steps: int = setting(20, "steps between evaluations", at_least=1)
    save_steps: int = changeable(20, "steps between checkpoints", at_least=1)
    save_total_limit: int | None = changeable(3, "checkpoints to keep", at_least=1)
    logging_steps: int = changeable(1, "steps between log entries", at_least=1)
    eval_on_start: bool = per_start(False, "also evaluate before the first step")
    eval_resolution: str = setting(
        "processed",
        "what is scored: labels resized with the photo; the photo's own labels; those, the photo's shape kept",
        ("processed", "original", "keep-ratio"),
    )
    eval_flip: bool = setting(False, "score the mean of each photo and its mirror image")
    eval_scales: str = setting("1", "score the mean over these scales, such as 0.5,1,1.5; takes keep-ratio")
    load_best_model_at_end: bool = changeable(False, "leave the best evaluated checkpoint in the output folder")
    seed: int = setting(42, "seed of order, augmentation, new weights and dropout", at_least=0, below=2**63)
    amp: str = changeable("auto", "mixed precision", ("auto", "bf16", "fp16", "off"))
    compile: bool = changeable(False, "compile the model with torch.compile")
    device: str | None = changeable(None, "device to run on; else CUDA, MPS or the CPU, the first there is")
    deterministic: bool = changeable(False, "the same bits in every run on CUDA too, where that is slower")
    dataloader_num_workers: int = changeable(0, "processes that prepare batches", at_least=0)
    output_dir: str | None = per_start(None, "folder of the run; else runs/<recipe>-<n>")
    overwrite_output_dir: bool = per_start(False, "delete the run that the output folder holds")
    resume_from_checkpoint: str | None = per_start(None, "a checkpoint folder, or 'last' of the output folder")
    eval_only: bool = setting(False, "evaluate the checkpoint and stop")
    push_to_hub: bool = changeable(False, "upload the finished run to the Hub")
    hub_model_id: str | None = changeable(None, "repository to upload to; else the name of the output folder")

    def __post_init__(self) -> None:
        check_settings(self)
        self._check_evaluation()
        if self.augment_on_device and self.augmentation == "paper":
            raise ValueError("augment_on_device is for the jitter; the paper's crops are made where photos are decoded")
        if self.max_steps < 1 and self.num_train_epochs <= 0:
            raise ValueError(f"max_steps is {self.max_steps} and num_train_epochs {self.num_train_epochs}: no steps")
        if self.eval_only and self.checkpoint is None:
            raise ValueError("eval_only needs a --checkpoint to score")
        if self.eval_only and self.push_to_hub:
            raise ValueError("eval_only leaves scores and no model; there is nothing for push_to_hub to upload")
        if self.eval_only and self.resume_from_checkpoint is not None:
            raise ValueError("eval_only scores --checkpoint, in a folder of its own; it goes on with no run")
        if self.load_best_model_at_end and math.lcm(self.eval_steps, self.save_steps) != self.save_steps:
            raise ValueError(
                f"load_best_model_at_end needs save_steps ({self.save_steps}) to be a multiple of "
                f"eval_steps ({self.eval_steps}), or no saved step has a score"
            )

    def _check_evaluation(self) -> None:
        try:
            scales = self.scales
        except ValueError:
            scales = ()
        if not scales or not all(0.1 <= scale <= 4 for scale in scales):
            raise ValueError(
                f"eval_scales is {self.eval_scales!r}; it must be numbers of 0.1 to 4, with commas between"
            )
        if scales != (1.0,) and self.eval_resolution != "keep-ratio":
            raise ValueError(f"eval_scales is {self.eval_scales!r}, which takes eval_resolution keep-ratio")
        if self.eval_resolution == "keep-ratio" and self.per_device_eval_batch_size != 1:
            raise ValueError(
                f"per_device_eval_batch_size is {self.per_device_eval_batch_size}; photos that keep their shape "
                "(eval_resolution keep-ratio) are scored one by one: set it to 1"
            )

    @property
    def scales(self) -> tuple[float, ...]:
        """The scales that ``eval_scales`` lists."""
        return tuple(float(scale) for scale in self.eval_scales.split(","))


_RESUME_HELP = TrainConfig.__dataclass_fields__["resume_from_checkpoint"].metadata["help"]

RECIPES: dict[str, dict[str, Any]] = {
    # Generated scenes, from scratch.
    "toy": {
        "dataset": "toy",
        "split": "train",
        "eval_split": "validation",
        "checkpoint": None,
        "variant": "b0",
        "image_size": 128,
        "drop_path_rate": 0.0,
        "classifier_dropout": 0.0,
        "learning_rate": 2e-3,
        "lr_scheduler_type": "cosine",
        "warmup_steps": 50,
        "weight_decay": 0.01,
        "per_device_train_batch_size": 8,
        "per_device_eval_batch_size": 16,
        "num_train_epochs": 14,
        "augmentation": "none",
        "eval_steps": 200,
        "save_steps": 200,
        "logging_steps": 20,
    },
    # https://huggingface.co/docs/transformers/tasks/semantic_segmentation
    "guide": {},
    # https://arxiv.org/abs/2105.15203, section 4.1. A batch has 16 images over all GPUs. Published for B0 on
    # validation, at the photos' own size: mean IoU 0.374.
    "paper": {
        "split": "train",
        "eval_split": "validation",
        "augmentation": "paper",
        "head_learning_rate_factor": 10.0,
        "weight_decay": 0.01,
        "decay_biases": True,
        "lr_scheduler_type": "poly",
        "warmup_steps": 1500,
        "max_steps": 160_000,
        "max_grad_norm": 0.0,
        "drop_path_rate": 0.1,
        "classifier_dropout": 0.1,
        "per_device_train_batch_size": 16,
        "per_device_eval_batch_size": 1,
        "eval_resolution": "keep-ratio",
        "eval_steps": 16_000,
        "save_steps": 16_000,
        "logging_steps": 50,
        "dataloader_num_workers": 4,
    },
}


def configure(recipe: str, **settings: Any) -> TrainConfig:
    """The settings of a recipe with some of them changed."""
    if recipe not in RECIPES:
        raise ValueError(f"recipe is {recipe!r}; it is one of {', '.join(RECIPES)}")
    return TrainConfig(recipe=recipe, **{**RECIPES[recipe], **settings})


def parse_arguments(arguments: Sequence[str] | None = None) -> TrainConfig:
    """Settings from the command line: one flag for every field of TrainConfig, over those of the recipe."""
    parser = FlagParser(description="Fine-tune SegFormer.", argument_default=argparse.SUPPRESS)
    parser.add_argument("--recipe", choices=tuple(RECIPES), default="toy", help="the settings to start from")
    parser.add_argument("--resume-from-checkpoint", nargs="?", const="last", metavar="PATH", help=_RESUME_HELP)
    add_flags(parser, TrainConfig, skip=("recipe", "resume_from_checkpoint"))
    given = vars(parser.parse_args(arguments))
    if given.get("checkpoint") == "none":
        given["checkpoint"] = None
    try:
        return configure(**given)
    except ValueError as error:
        parser.error(str(error))


# -------------------------------------------------------------------------------------------------------------- data


Pairs = SceneParse150 | Subset[Any]


def label_rule(config: TrainConfig) -> LabelRule:
    """What the raw values of the label maps mean."""
    ignored = config.ignore_index
    if ignored is None and not (config.reduce_labels or config.binary_masks):
        ignored = IGNORE_INDEX
    return LabelRule(len(id2label(config)), config.reduce_labels, ignored, config.binary_masks)


def id2label(config: TrainConfig) -> dict[int, str]:
    """The names of the classes."""
    if config.label_names is not None:
        names = read_label_names(Path(config.label_names))
    elif config.binary_masks:
        names = ["background", "object"]
    elif config.num_labels in (None, len(ID2LABEL)):
        return ID2LABEL
    else:
        names = [f"LABEL_{k}" for k in range(config.num_labels)]
    if config.num_labels not in (None, len(names)):
        raise ValueError(f"num_labels is {config.num_labels}, but there are names for {len(names)} classes")
    return dict(enumerate(names))


def training_samples(config: TrainConfig, rows: Pairs, processor: ImageProcessor) -> Samples:
    """Rows to train on, augmented as the settings say."""
    if config.augmentation == "paper":
        ignored = (0, IGNORE_INDEX) if config.reduce_labels else (IGNORE_INDEX,)
        crop = PaperAugmentation(processor.size, ignored=ignored)
        return Samples(rows, PaperCrop(replace(processor, do_resize=False), crop, config.seed))
    if config.augment_on_device:
        return Samples(rows, Unprocessed(processor.size if processor.do_resize else None, processor.resample))
    return Samples(rows, Resized(processor, ColorJitter() if config.augmentation == "jitter" else None, config.seed))


def evaluation_samples(config: TrainConfig, rows: Pairs, processor: ImageProcessor) -> Samples:
    """Rows to score, as they are."""
    as_it_is = replace(processor, do_resize=False)
    if config.eval_resolution == "keep-ratio":
        return Samples(rows, KeepRatio(as_it_is, config.scales))
    return Samples(
        rows, OriginalLabels(processor, as_it_is) if config.eval_resolution == "original" else Resized(processor)
    )


def build_samples(config: TrainConfig, processor: ImageProcessor) -> tuple[Samples, Samples]:
    """The rows to train on and the rows to evaluate on; one and the same rows if there is nothing to train."""
    rule = label_rule(config)
    if config.eval_split is not None:
        eval_rows: Pairs = SceneParse150(config.dataset, config.eval_split, rule)
        train_rows: Pairs = eval_rows if config.eval_only else SceneParse150(config.dataset, config.split, rule)
    else:
        rows = SceneParse150(config.dataset, config.split, rule)
        train_rows, eval_rows = train_test_split(rows, config.test_size, config.seed)
    return training_samples(config, train_rows, processor), evaluation_samples(config, eval_rows, processor)


def build_device_augmentation(
    config: TrainConfig, processor: ImageProcessor
) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """What is still to be done to a batch once it is on the device."""
    if not config.augment_on_device:
        return lambda batch: batch
    jitter = ColorJitter() if config.augmentation == "jitter" else None
    augment = AugmentOnDevice(
        jitter,
        config.seed,
        processor.rescale_factor if processor.do_rescale else 1.0,
        processor.image_mean if processor.do_normalize else (0.0, 0.0, 0.0),
        processor.image_std if processor.do_normalize else (1.0, 1.0, 1.0),
        processor.do_reduce_labels,
    )

    def finish(batch: dict[str, Any]) -> dict[str, Any]:
        images, labels = augment(batch["images"], batch["labels"], batch["place"])
        return {"images": images, "labels": labels}

    return finish


def build_loader(samples: Samples, places: Iterable[list[Place]], config: TrainConfig, device: torch.device) -> Loader:
    """The batches of these places, ready for the device."""
    return Loader(samples, places, config.dataloader_num_workers, pin_memory=device.type == "cuda")


# ------------------------------------------------------------------------------------------------------------- model


def build_model(config: TrainConfig, source: str | None) -> tuple[Segformer, ImageProcessor]:
    """The model to train and its processor, from ``source`` or anew, with the classes of the data."""
    rates = {"drop_path_rate": config.drop_path_rate, "classifier_dropout_prob": config.classifier_dropout}
    changes: dict[str, Any] = {name: rate for name, rate in rates.items() if rate is not None}
    names = id2label(config)
    torch.manual_seed(config.seed)
    if source is None:
        processor = ImageProcessor()
        model = Segformer(VARIANTS[config.variant or "b0"](id2label=names, **changes))
    else:
        model = Segformer.from_pretrained(source, id2label=names, config_changes=changes)
        held = variant_of(model.config)
        if config.variant not in (None, held):
            raise ValueError(
                f"checkpoint {source} holds variant {held or 'of another size'}, this run asks for {config.variant}; "
                "leave out --variant, or name another --checkpoint"
            )
        started_anew = model.load_report.missing + model.load_report.mismatched
        if config.eval_only and started_anew:
            raise ValueError(
                f"{source} lacks {started_anew[0]} for these {len(names)} classes, so there is nothing to score; "
                "give its own classes by --num-labels or --label-names"
            )
        processor = processor_of(source)
    size = processor.size if config.image_size is None else (config.image_size, config.image_size)
    scale = PAPER_SCALE if config.eval_resolution == "keep-ratio" else None
    return model, replace(
        processor,
        do_resize=processor.do_resize or config.image_size is not None,
        size=size,
        do_reduce_labels=config.reduce_labels,
        keep_ratio_scale=scale,
        keep_ratio_multiple=32,
    )


def build_optimizer(model: Segformer, config: TrainConfig) -> torch.optim.AdamW:
    """AdamW that spares norms, and biases unless told otherwise, from decay, and may learn faster in the decoder."""
    norms = {
        weight
        for module in model.modules()
        if isinstance(module, nn.LayerNorm | nn.BatchNorm2d)
        for weight in module.parameters()
    }
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, weight in model.named_parameters():
        decays = weight not in norms and (weight.ndim > 1 or config.decay_biases)
        factor = config.head_learning_rate_factor if name.startswith("decoder.") else 1.0
        groups.setdefault((config.weight_decay if decays else 0.0, factor), []).append(weight)
    settings = [{"params": p, "weight_decay": decay, "lr_factor": factor} for (decay, factor), p in groups.items()]
    return torch.optim.AdamW(settings, lr=config.learning_rate, betas=(0.9, 0.999), eps=1e-8, fused=True)


_WARMUP_START = 1e-6  # the share of the rate at which the paper's warm-up begins


def learning_rate(step: int, total_steps: int, config: TrainConfig) -> float:
    """The rate of a step, counted from 1: linear warm-up, then down to 0 along a line or half a cosine.

    "poly" is the paper's: along a line from the first step on, which the warm-up multiplies.
    """
    done, warmup = step - 1, config.warmup_steps
    warmed = done / warmup if done < warmup else 1.0
    if config.lr_scheduler_type == "poly":
        return config.learning_rate * (1 - done / total_steps) * (warmed + (1 - warmed) * _WARMUP_START)
    if warmed < 1 or config.lr_scheduler_type == "constant":
        return config.learning_rate * warmed
    left = (total_steps - done) / max(1, total_steps - warmup)
    if config.lr_scheduler_type == "cosine":
        left = 0.5 * (1.0 - math.cos(math.pi * left))
    return config.learning_rate * left


def amp_dtype(amp: str, device: torch.device) -> torch.dtype | None:
    """The low precision to compute in, or None. Raises ValueError for fp16 where only CUDA can."""
    if amp == "fp16" and device.type != "cuda":
        raise ValueError(f"amp is fp16 but the device is {device.type}; fp16 needs CUDA, use bf16 or off")
    if amp == "bf16" and device.type not in ("cuda", "cpu"):
        raise ValueError(f"amp is bf16 but the device is {device.type}; bf16 needs CUDA or a CPU, use off")
    if amp == "auto" and device.type == "cuda":
        return torch.bfloat16 if torch.cuda.get_device_capability(device) >= (8, 0) else torch.float16
    return {"bf16": torch.bfloat16, "fp16": torch.float16}.get(amp)


def autocast(config: TrainConfig, device: torch.device) -> torch.autocast:
    """The context in which the model computes in low precision, or as it is."""
    dtype = amp_dtype(config.amp, device)
    return torch.autocast(device.type, dtype=dtype, enabled=dtype is not None)


# -------------------------------------------------------------------------------------------------------------- step


class StepResult(NamedTuple):
    """What one optimiser step measured, as scalars still on the device: reading them waits for it."""

    loss: Tensor
    grad_norm: Tensor


def train_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    batch: dict[str, Any],
    config: TrainConfig,
) -> StepResult:
    """One optimiser step on one batch: ``images`` (B, 3, H, W) and ``labels`` (B, H, W), already on the device.

    The batch is what all accumulation steps see together. The loss is the mean over all of its valid pixels, however
    many forward passes and ranks it takes: each pass adds its sum, divided by the count of them all.
    """
    images, labels = batch["images"], batch["labels"]
    valid_pixels = sum_over_ranks((labels != IGNORE_INDEX).sum()).clamp(min=1)
    loss = torch.zeros((), device=images.device)
    optimizer.zero_grad(set_to_none=True)
    size = config.per_device_train_batch_size
    parts = list(zip(images.split(size), labels.split(size), strict=True))
    # Ranks average their gradients, once, in the last backward pass; the loss is a sum over them.
    averaged = model if isinstance(model, DistributedDataParallel) else None
    num_ranks = averaged.process_group.size() if averaged else 1
    compiled = config.compile and images.is_cuda  # on CPUs the loss is faster as it is
    for part, (some_images, some_labels) in enumerate(parts, start=1):
        with averaged.no_sync() if averaged and part < len(parts) else nullcontext():
            with autocast(config, images.device):
                logits = model(some_images)
            share = fullres.cross_entropy(logits, some_labels, IGNORE_INDEX, "sum", compiled) / valid_pixels
            scaler.scale(share * num_ranks).backward()  # type: ignore[no-untyped-call]
        loss += share.detach()
    sum_over_ranks(loss)
    scaler.unscale_(optimizer)
    grad_norm = nn.utils.clip_grad_norm_(model.parameters(), config.max_grad_norm or math.inf)
    scaler.step(optimizer)
    scaler.update()
    return StepResult(loss, grad_norm)


def to_device(batch: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """The batch on the device; copies from pinned memory overlap with computation."""

    def move(values: Any) -> Any:
        if isinstance(values, Tensor):
            return values.to(device, non_blocking=True)
        return [move(value) for value in values] if isinstance(values, list) else values

    return {name: move(values) for name, values in batch.items()}


# -------------------------------------------------------------------------------------------------------- evaluation


@torch.inference_mode()
def evaluate(
    model: Segformer,
    samples: Samples,
    config: TrainConfig,
    device: torch.device,
    ranks: Ranks = ALONE,
    stop: StopRequest | None = None,
) -> dict[str, Any]:
    """Loss and scores over all rows, one batch at a time, under the keys of Trainer's log.

    ``eval_loss`` is the mean over all valid pixels, of the first view where several are scored. Only the confusion
    matrix keeps what has been seen, and it does not grow. Each rank takes its share of the rows, and all have the
    scores of all of them. Asked to ``stop``, it returns nothing.
    """
    places = [(0, row) for row in range(ranks.rank, len(samples), ranks.count)]
    size = config.per_device_eval_batch_size
    batches = [places[first : first + size] for first in range(0, len(places), size)]
    matrix = ConfusionMatrix(model.config.num_labels, IGNORE_INDEX, device)
    precise = torch.float32 if device.type == "mps" else torch.float64  # MPS has no other
    total_loss = torch.zeros((), dtype=precise, device=device)
    valid_pixels = torch.zeros((), dtype=torch.int64, device=device)
    started = time.perf_counter()
    model.eval()
    loader = build_loader(samples, batches, config, device)
    rounds = math.ceil(math.ceil(len(samples) / ranks.count) / size)  # as many on every rank, so that all can agree
    bar = tqdm(total=rounds, desc="evaluating", leave=False, disable=None if ranks.is_writer else True)
    for prepared in chain(loader, repeat(None, rounds - len(batches))):
        if stop and ranks.any(stop.signal is not None):
            return {}
        bar.update()
        if prepared is None:
            continue
        for logits, labels in score_views(model, to_device(prepared, device), config):
            total_loss += fullres.cross_entropy(logits[0], labels, IGNORE_INDEX, reduction="sum")
            valid_pixels += (labels != IGNORE_INDEX).sum()
            matrix.update(fullres.argmax_of_mean(logits, labels.shape[-2:]), labels)
    matrix.all_reduce()
    total_loss, valid_pixels = sum_over_ranks(total_loss), sum_over_ranks(valid_pixels)
    scores = matrix.scores()
    seconds = time.perf_counter() - started
    return {
        "eval_loss": float(total_loss / valid_pixels),
        "eval_mean_iou": scores.mean_iou,
        "eval_mean_accuracy": scores.mean_accuracy,
        "eval_overall_accuracy": scores.overall_accuracy,
        "eval_per_category_iou": scores.per_category_iou.tolist(),
        "eval_per_category_accuracy": scores.per_category_accuracy.tolist(),
        "eval_per_category_share": (matrix.counts.sum(1) / matrix.counts.sum()).tolist(),
        "eval_runtime": seconds,
        "eval_samples_per_second": len(samples) / seconds,
    }


def score_views(model: nn.Module, batch: dict[str, Any], config: TrainConfig) -> Iterator[tuple[list[Tensor], Tensor]]:
    """What is scored at once, logits of all views (B, K, h, w) and labels (B, H, W): the batch, or each photo alone.

    A view is a batch of photos at one scale or, turned back, the logits of its mirror image.
    """
    views = [view[None] for view in batch["views"][0]] if "views" in batch else [batch["images"]]
    with autocast(config, views[0].device):
        seen = [model(view) for view in views]
        if config.eval_flip:
            seen += [mirrored_logits(model, view) for view in views]
    if "original_labels" not in batch:
        yield seen, batch["labels"]
        return
    for number, labels in enumerate(batch["original_labels"]):
        yield [logits[number : number + 1] for logits in seen], labels[None]


@torch.inference_mode()
def predict_samples(
    model: Segformer, samples: Samples, config: TrainConfig, device: torch.device, count: int = 4
) -> list[Shown]:
    """The first rows, each with what the model makes of it at the size that is scored."""
    model.eval()
    shown = []
    for row in range(min(count, len(samples))):
        logits, labels = next(score_views(model, to_device(collate([samples[0, row]]), device), config))
        prediction = fullres.argmax_of_mean(logits, labels.shape[-2:])
        truth, made = (each[0].to("cpu", torch.uint8).numpy() for each in (labels, prediction))
        shown.append(Shown(samples.name(row), samples.pair(row)[0], truth, made))
    return shown


# ---------------------------------------------------------------------------------------------------------- the loop


@dataclass
class Progress:
    """Where a run is, the last step that was evaluated, and the best evaluated step that was also saved."""

    step: int = 0
    evaluated_step: int | None = None
    best_step: int | None = None
    best_mean_iou: float = -1.0

    def __post_init__(self) -> None:
        for name in ("step", "evaluated_step", "best_step"):
            value = getattr(self, name)
            if not (value is None and name != "step") and (type(value) is not int or not 0 <= value < 2**53):
                raise ValueError(f"{name} is {value!r}; it must be the number of a step")
        if not isinstance(self.best_mean_iou, float):
            raise ValueError(f"best_mean_iou is {self.best_mean_iou!r}; it must be a number")


class Run:
    """One training run: its parts, built from the settings, and the loop over its steps."""

    def __init__(self, config: TrainConfig) -> None:
        self.config = config
        self.stop = StopRequest()
        if config.deterministic:
            compute_deterministically()
        self.ranks, self.device = join_ranks(choose_device(config.device))
        dtype = amp_dtype(config.amp, self.device)
        resumed = self.ranks.decide(self._find_resumed)
        if config.resume_from_checkpoint == "last" and resumed is None:
            logger.warning("no checkpoint in %s: starting at step 0", config.output_dir)
        source = str(resumed) if resumed else config.checkpoint
        if not self.ranks.is_writer:
            self.ranks.wait()  # the writer goes first, in case something has to be fetched or drawn
        state = read_training_state(resumed) if resumed else None
        if state:
            check_resumable(config, state["config"])
        self.model, self.processor = build_model(config, source)
        self.train_samples, self.eval_samples = build_samples(config, self.processor)
        if self.ranks.is_writer:
            self.ranks.wait()
        self.model.config.check_image_size(*self.processor.size)
        self.model.to(self.device)
        self.augment = build_device_augmentation(config, self.processor)
        self.optimizer = build_optimizer(self.model, config)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=dtype == torch.float16)
        self.progress = Progress()
        self.unlogged: list[StepResult] = []  # of the steps since the last entry of the log
        if resumed and state:
            self._resume(resumed, state)
        publishing = config.push_to_hub and self.ranks.is_writer
        account = check_login(config.hub_model_id) if publishing else None
        if config.compile:
            self.model.compile()
        self.distributed = distribute(self.model, self.ranks, self.device)
        # Only now, when nothing is left that could refuse to start, is the output folder touched.
        self.lock: RunLock | None = None
        self.output_dir: Path = self.ranks.decide(lambda: self._claim_output_dir(resumed))
        self.repository = full_id(config.hub_model_id, self.output_dir, account) if account else None
        at, evaluated = self.progress.step, self.progress.evaluated_step == self.progress.step
        self.log = Log(self.output_dir, at, evaluated) if self.ranks.is_writer else None
        self.results: dict[str, Any] = {}

    def _claim_output_dir(self, resumed: Path | None) -> Path:
        config = self.config
        if resumed is None:
            self._check_that_nothing_it_is_made_from_is_lost()
        folder, self.lock = claim_output_dir(config.output_dir or (resumed and resumed.parent), config.recipe)
        if self._find_resumed() != resumed:  # found before there was a lock
            raise ValueError(f"another run has written to {folder} meanwhile; start again")
        if resumed is None:
            # A run that ended before its first checkpoint has nothing to go on from, and nothing to lose.
            empty_output_dir(folder, config.overwrite_output_dir or config.resume_from_checkpoint == "last")
            return folder
        remove_leftovers(folder)
        set_aside_later(folder, self.progress.step)
        if folder.resolve() != resumed.resolve().parent:
            self._bring_along(resumed, folder)
        return folder

    def _find_resumed(self) -> Path | None:
        config = self.config
        return find_resumed(config.output_dir, config.resume_from_checkpoint, config.overwrite_output_dir)

    def _bring_along(self, resumed: Path, folder: Path) -> None:
        """Copy what a run in another folder needs to be gone on with: this checkpoint and the best."""
        copy_checkpoint(resumed, folder, self.progress.step)
        best = self.progress.best_step
        if best in (None, self.progress.step):
            return
        try:
            copy_checkpoint(resumed.parent / f"checkpoint-{best}", folder, best)
        except (ValueError, OSError) as error:
            logger.warning("the best checkpoint so far stays behind: %s", error)
            self.progress.best_step, self.progress.best_mean_iou = None, -1.0

    def _check_that_nothing_it_is_made_from_is_lost(self) -> None:
        folder = Path(self.config.output_dir or ".").resolve()
        for name in ("checkpoint", "dataset", "label_names"):
            parts = Path(getattr(self.config, name) or "/").parts
            source = Path(*takewhile(lambda part: not glob.has_magic(part), parts))  # of a glob, the folder
            if self.config.output_dir and source.exists() and source.resolve().is_relative_to(folder):
                raise ValueError(
                    f"{name} {source} lies in the output folder, which is emptied; name another --output-dir"
                )

    def _resume(self, checkpoint: Path, state: dict[str, Any]) -> None:
        if self.model.load_report.mismatched or self.model.load_report.missing:
            raise ValueError(f"{checkpoint} has other classes than the {self.model.config.num_labels} asked for")
        held, now = state["rows"], self.rows
        comparable = all(isinstance(value, str | int) for value in held.values())
        if not comparable or held != now:  # their folder may have moved, they may not have changed
            raise ValueError(
                f"the checkpoint was trained on {held.get('count')} rows of {state['config'].get('dataset')!r}, from "
                f"{held.get('first')}; this run has {now['count']} of {self.config.dataset!r}, from {now['first']}"
            )
        if state["rows_per_step"] != self.rows_per_step:
            raise ValueError(
                f"the checkpoint was trained with {state['rows_per_step']} rows a step over all ranks and passes, this "
                f"run asks for {self.rows_per_step}; change --per-device-train-batch-size or accumulation"
            )
        try:
            self._restore(state)
        except (TypeError, ValueError, LookupError, AttributeError, RuntimeError, OverflowError) as error:
            said = f"{type(error).__name__}: {error}"
            raise ValueError(f"{checkpoint / STATE_NAME} does not fit this run ({said})") from error
        if self.progress.best_step not in find_checkpoints(checkpoint.parent):
            self.progress.best_step, self.progress.best_mean_iou = None, -1.0
        logger.info("resuming from %s", checkpoint)

    def _restore(self, state: dict[str, Any]) -> None:
        settings = self.optimizer.state_dict()["param_groups"]  # of this run, whose settings were found the same
        self.optimizer.load_state_dict({"state": state["optimizer"]["state"], "param_groups": settings})
        num_moments = len(self.optimizer.state)  # none where a scaler has skipped every step so far
        if num_moments != sum(len(group["params"]) for group in settings) and (num_moments or not state["scaler"]):
            raise ValueError(f"optimiser moments for {num_moments} of its weights")
        for weight, moments in self.optimizer.state.items():  # fused AdamW would read beyond moments of other shapes
            shapes = {"step": torch.Size(), "exp_avg": weight.shape, "exp_avg_sq": weight.shape}
            if {name: moment.shape for name, moment in moments.items()} != shapes:
                raise ValueError(f"optimiser moments of another shape than {list(weight.shape)}")
            if not (moments["step"] > 0 and all(moment.dtype == torch.float32 for moment in moments.values())):
                raise ValueError("optimiser moments that no step has made")
        if state["scaler"] and self.scaler.is_enabled():
            self.scaler.load_state_dict(state["scaler"])
        self.progress = Progress(**state["progress"])
        self.unlogged = [
            StepResult(torch.tensor(float(loss)), torch.tensor(float(norm))) for loss, norm in state["unlogged"]
        ]

    @cached_property
    def rows(self) -> dict[str, Any]:
        """What tells the training rows from others; two of them are read for it."""
        count = len(self.train_samples)
        return {"count": count, "first": self.train_samples.name(0), "last": self.train_samples.name(count - 1)}

    @property
    def parameters(self) -> int:
        """How many there are in the model."""
        return sum(weight.numel() for weight in self.model.parameters())

    @property
    def rows_per_step(self) -> int:
        """The rows of one optimiser step, over all ranks and forward passes."""
        per_rank = self.config.per_device_train_batch_size * self.config.gradient_accumulation_steps
        return per_rank * self.ranks.count

    @property
    def steps_per_epoch(self) -> int:
        return math.ceil(len(self.train_samples) / self.rows_per_step)

    @property
    def total_steps(self) -> int:
        if self.config.max_steps > 0:
            return self.config.max_steps
        return math.ceil(self.steps_per_epoch * self.config.num_train_epochs)

    def train(self) -> None:
        """Every step to the end, with its logging, evaluations and checkpoints."""
        config, total = self.config, self.total_steps
        loader = build_loader(self.train_samples, self.sampler(self.progress.step + 1, total), config, self.device)
        clock = Clock(loader, self.progress.step)
        self.begin(clock)
        hidden = None if self.ranks.is_writer else True
        bar = tqdm(total=total, initial=self.progress.step, desc="training", unit="step", disable=hidden)
        for prepared in loader:
            step = self.progress.step = self.progress.step + 1
            rate = learning_rate(step, total, config)
            for group in self.optimizer.param_groups:
                group["lr"] = rate * group["lr_factor"]
            torch.manual_seed(mix(config.seed, step, self.ranks.rank))
            self.model.train()
            batch = self.augment(to_device(prepared, self.device))
            self.unlogged.append(train_step(self.distributed, self.optimizer, self.scaler, batch, config))
            bar.update()
            saving = self.is_saved(step)
            if step % config.logging_steps == 0 or saving:
                self.log_steps(rate, clock, bar)
            stopping = self.is_asked_to_stop()
            if not stopping and self.is_evaluated(step):
                self.evaluate()
                stopping = self.is_asked_to_stop()
            if step == total and self.progress.evaluated_step == step:
                self.log_closing(clock)  # before the last checkpoint, so that no run is saved without it
            if saving or stopping:
                self.save()
            if stopping and (step < total or self.progress.evaluated_step != step):
                bar.close()
                raise Interrupted(*self.how_to_go_on())
        bar.close()

    def score(self) -> None:
        """Only evaluate, and write what comes of it."""
        if self.log:
            self.describe()
        self.evaluate()
        if not self.results:
            message = "stopped before the evaluation was through; nothing was scored"
            raise Interrupted(message, self.stop.signal or signal.SIGTERM)
        if self.ranks.is_writer:
            self.write_results()

    def release(self) -> None:
        """Let other runs write to the output folder."""
        if self.lock:
            self.lock.release()

    def begin(self, clock: Clock) -> None:
        """What comes before the first step: a description, and an evaluation that is asked for or was cut off."""
        if self.log:
            self.describe()
        step = self.progress.step
        due = self.is_evaluated(step) if step else self.config.eval_on_start
        if due and self.progress.evaluated_step != step:
            self.evaluate()
            if step and self.progress.evaluated_step == step:
                if step == self.total_steps:
                    self.log_closing(clock)
                self.save()
        if self.is_asked_to_stop():
            raise Interrupted(*self.how_to_go_on())

    def is_evaluated(self, step: int) -> bool:
        return step % self.config.eval_steps == 0 or step == self.total_steps

    def is_saved(self, step: int) -> bool:
        return step % self.config.save_steps == 0 or step == self.total_steps

    def note_best(self) -> None:
        """Remember the step if none that the settings save was better; where a run is stopped changes nothing."""
        step, score = self.progress.step, self.results.get("eval_mean_iou", math.nan)
        if (
            step
            and self.is_saved(step)
            and self.progress.evaluated_step == step
            and score > self.progress.best_mean_iou
        ):
            self.progress.best_step, self.progress.best_mean_iou = step, score

    def is_asked_to_stop(self) -> bool:
        """Whether a signal came, to any rank."""
        return self.ranks.any(self.stop.signal is not None)

    def how_to_go_on(self) -> tuple[str, int]:
        """What to say of a run that was stopped, and the signal that stopped it."""
        number = self.stop.signal or signal.SIGTERM
        again = f"--resume-from-checkpoint last --output-dir {self.output_dir} and the same settings"
        return f"stopped by {signal.Signals(number).name} after step {self.progress.step}; go on with {again}", number

    def sampler(self, first_step: int, last_step: int) -> StepSampler:
        """The places of this rank in some of the steps."""
        num_rows, seed = len(self.train_samples), self.config.seed
        ranks = self.ranks
        return StepSampler(num_rows, self.rows_per_step, seed, first_step, last_step, ranks.rank, ranks.count)

    def log_closing(self, clock: Clock) -> None:
        """Log what all steps took, with evaluations and all checkpoints but the last, under Trainer's keys and more."""
        if not self.log:
            return
        steps = range(clock.first_step, self.progress.step)
        left = (len(self.train_samples) - step % self.steps_per_epoch * self.rows_per_step for step in steps)
        seconds = clock.seconds
        images_per_second = sum(min(self.rows_per_step, rows) for rows in left) / seconds
        measured = {
            "train_runtime": seconds,
            "train_samples_per_second": images_per_second,
            "train_samples_per_second_per_device": images_per_second / self.ranks.count,
            "train_steps_per_second": len(steps) / seconds,
            "data_wait_share": clock.wait_share,
            "peak_memory_mib": peak_memory_mib(self.device),
        }
        self.log.add(self.progress.step, self.epoch, measured)

    def read_steps(self) -> list[tuple[float, float]]:
        """Loss and gradient norm of every step since the last entry; reading them waits for the device."""
        return [(float(result.loss), float(result.grad_norm)) for result in self.unlogged]

    def log_steps(self, rate: float, clock: Clock, bar: Any) -> None:
        """Read the losses since the last entry, stop at one that is not finite, and log their mean."""
        step = self.progress.step
        losses, norms = zip(*self.read_steps(), strict=True)
        self.unlogged = []
        for each, (loss, norm) in enumerate(zip(losses, norms, strict=True), start=step - len(losses) + 1):
            # With a scaler a gradient may overflow: it skips that step and lowers its scale.
            if not math.isfinite(loss) or not (math.isfinite(norm) or self.scaler.is_enabled()):
                raise FloatingPointError(self._explain_non_finite(each, loss, norm))
        loss, grad_norm = sum(losses) / len(losses), norms[-1]
        if self.log:
            self.log.add(step, self.epoch, {"loss": loss, "grad_norm": grad_norm, "learning_rate": rate})
        images_per_second = (bar.format_dict["rate"] or 0.0) * self.rows_per_step
        mean_iou = self.results.get("eval_mean_iou", math.nan)
        bar.set_postfix_str(
            f"loss {loss:.3f}, mean IoU {mean_iou:.3f}, {images_per_second:.1f} images/s, "
            f"{clock.wait_share:.0%} waiting for data, {peak_memory_mib(self.device):.0f} MiB"
        )

    def _explain_non_finite(self, step: int, loss: float, norm: float) -> str:
        rate = learning_rate(step, self.total_steps, self.config)
        rows = [self.train_samples.name(row) for _, row in next(iter(self.sampler(step, step))) if row != NO_ROW]
        return (
            f"loss {loss:g}, gradient norm {norm:g} at step {step} (learning rate {rate:g}, rows {', '.join(rows)}); "
            "lower --learning-rate, or look at these rows"
        )

    @property
    def epoch(self) -> float:
        return self.progress.step / self.steps_per_epoch

    def evaluate(self, log: bool = True) -> None:
        """Score the model as it is now, say so and show it; log it, unless its step was logged before."""
        take_writers_buffers(self.model, self.ranks)
        results = evaluate(self.model, self.eval_samples, self.config, self.device, self.ranks, self.stop)
        if not results:  # asked to stop before it had seen all
            return
        self.results, self.progress.evaluated_step = results, self.progress.step
        if not self.log:
            return
        if log:
            self.log.add(self.progress.step, self.epoch, results)
        tqdm.write(
            f"step {self.progress.step:>6}  eval loss {results['eval_loss']:.4f}  "
            f"mean IoU {results['eval_mean_iou']:.4f}  pixel accuracy {results['eval_overall_accuracy']:.4f}  "
            f"{results['eval_samples_per_second']:.1f} images/s"
        )
        self.show()

    def save(self) -> None:
        """Write a checkpoint of this step and let old ones go."""
        step = self.progress.step
        self.note_best()
        if not self.ranks.is_writer:
            return
        self.require_finite_weights()
        state = {
            "rows_per_step": self.rows_per_step,
            "rows": self.rows,
            "config": asdict(self.config),
            "progress": asdict(self.progress),
            "unlogged": self.read_steps(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
        }
        save_checkpoint(self.output_dir, step, self.save_model_files, state)
        rotate_checkpoints(self.output_dir, self.config.save_total_limit, step, self.progress.best_step)

    def require_finite_weights(self) -> None:
        """Refuse to save a model that is broken; the last checkpoint stays what it was."""
        for name, weight in self.model.named_parameters():
            if not torch.isfinite(weight).all():
                raise FloatingPointError(
                    f"{name} is not finite after step {self.progress.step}; nothing was saved. Lower --learning-rate"
                )

    def save_model_files(self, folder: Path) -> None:
        """Write what makes a folder a model."""
        self.model.save_pretrained(folder)
        self.processor.save_pretrained(folder)

    def finish(self) -> None:
        """Leave the last weights, or the best if asked for, and everything that tells about them."""
        self.ranks.wait()
        if self.ranks.is_writer:
            self.save_model_files(self.output_dir)
        best = self.ranks.decide(self._find_best)
        if best is not None:
            self.model.load_state_dict(Segformer.from_pretrained(self.output_dir / f"checkpoint-{best}").state_dict())
            self.progress.step = best
            self.evaluate(log=False)
            if self.ranks.is_writer:
                self.save_model_files(self.output_dir)
        elif not self.results:  # resumed at the end
            self.evaluate(log=False)
        if self.ranks.is_writer:
            self.write_results()
            write_card(
                self.output_dir,
                self.model.config.num_labels,
                self.parameters,
                self.results,
                asdict(self.config),
                image_size=self.processor.size,
                dataset=HubSource.parse(self.config.dataset),
                repository=self.repository,
            )
            if self.repository:
                print(f"published as {publish_run(self.output_dir, self.repository)}")
        self.ranks.wait()  # all leave together

    def _find_best(self) -> int | None:
        """The step whose weights are to replace the last ones, if any."""
        best = self.progress.best_step
        if not self.config.load_best_model_at_end or best in (None, self.progress.step):
            return None
        try:
            check_whole(self.output_dir / f"checkpoint-{best}")
        except (ValueError, OSError) as error:
            logger.warning("the last weights stay, for the best are damaged: %s", error)
            return None
        return best

    def write_results(self) -> None:
        """The scores as a file, the report once more with them, and the table of classes on the terminal."""
        text = json.dumps(without_nan({"step": self.progress.step, **self.results}), indent=2)
        write_atomically(self.output_dir / RESULTS_NAME, text + "\n")
        build_report(self.output_dir)
        print(class_table(self.results, self.model.config.id2label))
        print(f"mean IoU {self.results['eval_mean_iou']:.4f} in {self.output_dir}, see {REPORT_NAME} there")

    def describe(self) -> None:
        """Keep what the report says of the run as a whole."""
        RunDescription(
            settings=shareable(asdict(self.config)),
            class_names=[name.strip() for name in self.model.config.id2label.values()],
            model=f"SegFormer-{(variant_of(self.model.config) or 'custom').upper()}",
            parameters=self.parameters,
            train_images=0 if self.config.eval_only else len(self.train_samples),
            eval_images=len(self.eval_samples),
            image_size=list(self.processor.size),
            total_steps=self.total_steps,
        ).save(self.output_dir)

    def show(self) -> None:
        """Add what the model makes of a few samples to the report, which no run ends for."""
        shown = predict_samples(self.model, self.eval_samples, self.config, self.device)
        try:
            save_shown(self.output_dir, self.progress.step, shown, palette(self.model.config.num_labels))
            build_report(self.output_dir)
        except (OSError, ValueError) as error:
            logger.warning("cannot write the report: %s", error)


def train(config: TrainConfig) -> Path:
    """Train, and return the output folder, which is a model; or only evaluate, and return where the scores are.

    Raises Interrupted, with the run saved, where SIGTERM or Ctrl-C asked it to stop.
    """
    run = Run(config)
    try:
        with run.stop:
            if config.eval_only:
                run.score()
            else:
                run.train()
        if not config.eval_only:
            run.stop.signal = None  # what is left takes seconds and is not cut off halfway
            run.finish()
    finally:
        run.release()
    return run.output_dir


def main() -> int:
    """Run from the command line; what ends a run is one line, not a traceback."""
    speak_plainly()
    config = parse_arguments()
    try:
        train(config)
    except Interrupted as stopped:
        print(stopped, file=sys.stderr)
        return 128 + stopped.signal
    except KeyboardInterrupt:
        print("interrupted; go on with --resume-from-checkpoint and the same --output-dir", file=sys.stderr)
        return 130
    except Exception as error:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # workers that end from now on are no news
        told = explain(error)
        if told is None:
            raise
        print(f"error: {told}", file=sys.stderr)
        return 1
    finally:
        leave_ranks()
    return 0


def explain(error: Exception) -> str | None:
    """One line about a mistake in the settings or the data, or about what the machine lacks; None for our own."""
    if is_lost_worker(error):
        return explain_lost_worker(error)
    if isinstance(error, ValueError | OSError | FloatingPointError | MemoryError):
        lines = str(error).strip().splitlines() or [type(error).__name__]
        from_worker = "Original Traceback" in str(error)  # then the last line is what went wrong
        return lines[-1] if from_worker else " ".join(lines)
    if isinstance(error, torch.OutOfMemoryError):
        return f"{str(error).partition('. ')[0]}; lower --per-device-train-batch-size and accumulate instead"
    if isinstance(error, RuntimeError) and is_lost_rank(error):  # torchrun, which has the last word, names it
        return "another rank has ended; go on with --resume-from-checkpoint last"
    return None


if __name__ == "__main__":
    sys.exit(main())
