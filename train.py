"""Fine-tune SegFormer: the whole run in one file, top to bottom, with nothing behind it but PyTorch.

    python train.py                         generated scenes, from scratch, no network
    python train.py --recipe guide          Hugging Face's guide: nvidia/mit-b0 on 50 images of SceneParse150
    torchrun --nproc-per-node 4 train.py    a run on four GPUs; any recipe

Settings, data, model, step, evaluation, saving and the loop follow in this order. Every random draw is a function of
where the run is (seed, epoch, row, step), so a resumed run repeats an uninterrupted one and no generator is ever saved.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import sys
import time
import types
import typing
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Dataset, Subset
from tqdm import tqdm

from data import SceneParse150, train_test_split
from data.classes import CLASS_NAMES, ID2LABEL, IGNORE_INDEX
from data.order import NO_ROW, Place, StepSampler
from data.transforms import ColorJitter, mix, sample_generator
from segformer import VARIANTS, ConfusionMatrix, ImageProcessor, Segformer, SegformerConfig, fullres
from segformer.card import write_card
from segformer.checkpoints import find_checkpoints, read_training_state, rotate_checkpoints, save_checkpoint
from segformer.config import variant_of
from segformer.hub import WEIGHTS_NAME
from segformer.pictures import contact_sheet, label_map_picture, overlay, palette
from segformer.ranks import ALONE, Ranks, distribute, join_ranks, leave_ranks, sum_over_ranks, take_writers_buffers
from segformer.runs import Log, check_output_dir, make_output_dir, new_run_folder, without_nan
from segformer.segmenter import choose_device, processor_of

logger = logging.getLogger("train")

# ---------------------------------------------------------------------------------------------------------- settings


def _setting(default: Any, meaning: str, choices: Sequence[str] | None = None) -> Any:
    return field(default=default, metadata={"help": meaning, "choices": choices})


@dataclass(frozen=True)
class TrainConfig:
    """Every setting of a run, under the guide's names; the defaults are the guide's. Raises ValueError by name."""

    recipe: str = _setting("guide", "the settings to start from")
    dataset: str = _setting("scene_parse_150", "folder or glob of parquet shards, scene_parse_150 (Hub), or toy")
    split: str = _setting("train[:50]", "rows to train on, such as train or train[:50]")
    eval_split: str | None = _setting(None, "rows to evaluate on; without it, --test-size of --split is held out")
    test_size: float = _setting(0.2, "share of --split to hold out when there is no --eval-split")
    checkpoint: str | None = _setting("nvidia/mit-b0", "Hub id, folder or file to start from; 'none' to start anew")
    variant: str | None = _setting(None, "b0 to b5: size of a model that starts anew, b0 if not given", tuple(VARIANTS))
    image_size: int | None = _setting(None, "side in pixels that photos are resized to; else the checkpoint's, or 512")
    color_jitter: bool = _setting(True, "jitter the colours of training images")
    drop_path_rate: float | None = _setting(None, "rate of dropped residual branches; else the checkpoint's")
    classifier_dropout: float | None = _setting(None, "dropout before the classifier; else the checkpoint's")
    learning_rate: float = _setting(6e-5, "peak learning rate of AdamW")
    weight_decay: float = _setting(0.0, "weight decay of AdamW; norms and biases are spared")
    lr_scheduler_type: str = _setting("linear", "shape of the schedule after warm-up", ("linear", "cosine", "constant"))
    warmup_steps: int = _setting(0, "steps of linear warm-up")
    num_train_epochs: float = _setting(50, "passes over the training rows")
    max_steps: int = _setting(-1, "steps to train for, if above 0, instead of --num-train-epochs")
    per_device_train_batch_size: int = _setting(2, "images in one forward pass")
    per_device_eval_batch_size: int = _setting(2, "images in one forward pass of the evaluation")
    gradient_accumulation_steps: int = _setting(1, "forward passes behind one optimiser step")
    max_grad_norm: float = _setting(1.0, "gradients are clipped to this norm; 0 to leave them")
    eval_steps: int = _setting(20, "steps between evaluations")
    save_steps: int = _setting(20, "steps between checkpoints")
    save_total_limit: int | None = _setting(3, "checkpoints to keep")
    logging_steps: int = _setting(1, "steps between log entries")
    eval_on_start: bool = _setting(False, "also evaluate before the first step")
    eval_resolution: str = _setting(
        "processed", "size of the labels that are scored: as trained on, or the photo's own", ("processed", "original")
    )
    load_best_model_at_end: bool = _setting(False, "leave the best evaluated checkpoint in the output folder")
    seed: int = _setting(42, "seed of order, augmentation, new weights and dropout")
    amp: str = _setting("auto", "mixed precision", ("auto", "bf16", "fp16", "off"))
    compile: bool = _setting(False, "compile the model with torch.compile")
    device: str | None = _setting(None, "device to run on; else CUDA, MPS or the CPU, the first there is")
    dataloader_num_workers: int = _setting(0, "processes that prepare batches")
    output_dir: str | None = _setting(None, "folder of the run; else runs/<recipe>-<n>")
    overwrite_output_dir: bool = _setting(False, "delete the run that the output folder holds")
    resume_from_checkpoint: str | None = _setting(None, "a checkpoint folder, or 'last' of the output folder")
    eval_only: bool = _setting(False, "evaluate the checkpoint and stop")

    def __post_init__(self) -> None:
        for setting in fields(self):
            value, choices = getattr(self, setting.name), setting.metadata["choices"]
            if choices and value is not None and value not in choices:
                raise ValueError(f"{setting.name} is {value!r}; it is one of {', '.join(choices)}")
        for name in _AT_LEAST_ONE:
            value = getattr(self, name)
            if value is not None and not 1 <= value < 2**31:
                raise ValueError(f"{name} is {value}; it must be at least 1, below 2**31")
        for name in _NOT_NEGATIVE:
            value = getattr(self, name)
            if not 0 <= value < 2**63:
                raise ValueError(f"{name} is {value}; it must be a number of at least 0, below 2**63")
        if self.max_steps < 1 and self.num_train_epochs <= 0:
            raise ValueError(f"max_steps is {self.max_steps} and num_train_epochs {self.num_train_epochs}: no steps")
        if self.eval_only and self.checkpoint is None:
            raise ValueError("eval_only needs a --checkpoint to score")
        if self.eval_only and self.resume_from_checkpoint is not None:
            raise ValueError("eval_only scores --checkpoint, in a folder of its own; it goes on with no run")
        if self.load_best_model_at_end and math.lcm(self.eval_steps, self.save_steps) != self.save_steps:
            raise ValueError(
                f"load_best_model_at_end needs save_steps ({self.save_steps}) to be a multiple of "
                f"eval_steps ({self.eval_steps}), or no saved step has a score"
            )


_AT_LEAST_ONE = (
    "image_size",
    "per_device_train_batch_size",
    "per_device_eval_batch_size",
    "gradient_accumulation_steps",
    "eval_steps",
    "save_steps",
    "save_total_limit",
    "logging_steps",
)
_NOT_NEGATIVE = (
    "learning_rate",
    "weight_decay",
    "warmup_steps",
    "max_grad_norm",
    "num_train_epochs",
    "seed",
    "dataloader_num_workers",
)
# What a resumed run may do differently: where it runs, how precisely, and what it reports and keeps.
_MAY_CHANGE = {
    "amp",
    "compile",
    "device",
    "dataset",
    "dataloader_num_workers",
    "eval_on_start",
    "eval_only",
    "load_best_model_at_end",
    "logging_steps",
    "output_dir",
    "overwrite_output_dir",
    "per_device_eval_batch_size",
    "per_device_train_batch_size",  # these two as long as a step has as many rows
    "gradient_accumulation_steps",
    "resume_from_checkpoint",
    "save_steps",
    "save_total_limit",
}

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
        "color_jitter": False,
        "eval_steps": 200,
        "save_steps": 200,
        "logging_steps": 20,
    },
    # https://huggingface.co/docs/transformers/tasks/semantic_segmentation
    "guide": {},
}


def configure(recipe: str, **settings: Any) -> TrainConfig:
    """The settings of a recipe with some of them changed."""
    if recipe not in RECIPES:
        raise ValueError(f"recipe is {recipe!r}; it is one of {', '.join(RECIPES)}")
    return TrainConfig(recipe=recipe, **{**RECIPES[recipe], **settings})


def parse_arguments(arguments: Sequence[str] | None = None) -> TrainConfig:
    """Settings from the command line: one flag for every field of TrainConfig, over those of the recipe."""
    parser = argparse.ArgumentParser(description="Fine-tune SegFormer.", argument_default=argparse.SUPPRESS)
    kinds = typing.get_type_hints(TrainConfig)
    for setting in fields(TrainConfig):
        flag = "--" + setting.name.replace("_", "-")
        kind = kinds[setting.name]
        if isinstance(kind, types.UnionType):
            kind = next(part for part in kind.__args__ if part is not types.NoneType)
        meaning = f"{setting.metadata['help']} (guide: {setting.default})"
        if kind is bool:
            parser.add_argument(flag, action=argparse.BooleanOptionalAction, help=meaning)
        elif setting.name == "recipe":
            parser.add_argument(flag, choices=tuple(RECIPES), default="toy", help=setting.metadata["help"])
        elif setting.name == "resume_from_checkpoint":
            parser.add_argument(flag, nargs="?", const="last", metavar="PATH", help=meaning)
        else:
            parser.add_argument(flag, type=kind, choices=setting.metadata["choices"], help=meaning)
    given = vars(parser.parse_args(arguments))
    if given.get("checkpoint") == "none":
        given["checkpoint"] = None
    try:
        return configure(**given)
    except ValueError as error:
        parser.error(str(error))


# -------------------------------------------------------------------------------------------------------------- data


class Samples(Dataset[dict[str, Any]]):
    """Rows of a dataset as tensors, asked for as (epoch, row); a jitter draws from exactly these two and the seed.

    An item holds ``images`` (3, H, W) float32, ``labels`` (H, W) int64, and ``original_labels``, the class ids at the
    photo's own size, if asked for. The place that is no row holds a photo without any label.
    """

    def __init__(
        self,
        dataset: SceneParse150 | Subset[Any],
        processor: ImageProcessor,
        jitter: ColorJitter | None = None,
        seed: int = 0,
        with_original_labels: bool = False,
    ) -> None:
        self.dataset = dataset
        self.processor = processor
        self.jitter = jitter
        self.seed = seed
        self.with_original_labels = with_original_labels

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, place: Place) -> dict[str, Any]:
        epoch, row = place
        if row == NO_ROW:
            sample = self[epoch, 0]
            return {**sample, "labels": torch.full_like(sample["labels"], IGNORE_INDEX)}
        image, label_map = self.dataset[row]
        if label_map is None:
            raise ValueError(f"row {self.name(row)} has no annotation; train and evaluate on an annotated split")
        if self.jitter is not None:
            image = self.jitter(image, sample_generator(self.seed, epoch, row))
        images, labels = self.processor(image, label_map)
        sample = {"images": images, "labels": labels}
        if self.with_original_labels:
            sample["original_labels"] = replace(self.processor, do_resize=False).labels_to_tensor(label_map)
        return sample

    def name(self, row: int) -> str:
        """The file name of a row's photo."""
        if isinstance(self.dataset, Subset):
            return typing.cast(SceneParse150, self.dataset.dataset).name(self.dataset.indices[row])
        return self.dataset.name(row)


def build_samples(config: TrainConfig, processor: ImageProcessor) -> tuple[Samples, Samples]:
    """The training rows, jittered, and the rows to evaluate on, as they are."""
    rows = SceneParse150(config.dataset, config.split)
    train_rows: SceneParse150 | Subset[Any]
    eval_rows: SceneParse150 | Subset[Any]
    if config.eval_split is None:
        train_rows, eval_rows = train_test_split(rows, config.test_size, config.seed)
    else:
        train_rows, eval_rows = rows, SceneParse150(config.dataset, config.eval_split)
    jitter = ColorJitter() if config.color_jitter else None
    original = config.eval_resolution == "original"
    return (
        Samples(train_rows, processor, jitter, config.seed),
        Samples(eval_rows, processor, with_original_labels=original),
    )


def collate(samples: list[dict[str, Any]]) -> dict[str, Any]:
    """Stack samples into a batch; label maps of the photos' own sizes stay a list."""
    batch: dict[str, Any] = {name: torch.stack([s[name] for s in samples]) for name in ("images", "labels")}
    if "original_labels" in samples[0]:
        batch["original_labels"] = [sample["original_labels"] for sample in samples]
    return batch


def build_loader(samples: Samples, places: Any, config: TrainConfig, device: torch.device) -> DataLoader[Any]:
    """Batches of the places that ``places`` lists, prepared ahead by workers if there are any."""
    return DataLoader(
        samples,
        batch_sampler=places,
        collate_fn=collate,
        num_workers=config.dataloader_num_workers,
        pin_memory=device.type == "cuda",
    )


# ------------------------------------------------------------------------------------------------------------- model


def build_model(config: TrainConfig, source: str | None) -> tuple[Segformer, ImageProcessor]:
    """The model to train and its processor, from ``source`` or anew, with the 150 classes of SceneParse150."""
    rates = {"drop_path_rate": config.drop_path_rate, "classifier_dropout_prob": config.classifier_dropout}
    changes: dict[str, Any] = {name: rate for name, rate in rates.items() if rate is not None}
    torch.manual_seed(config.seed)
    if source is None:
        processor = ImageProcessor()
        model = Segformer(VARIANTS[config.variant or "b0"](id2label=ID2LABEL, **changes))
    else:
        model = Segformer.from_pretrained(source, id2label=ID2LABEL, config_changes=changes)
        held = variant_of(model.config)
        if config.variant not in (None, held):
            raise ValueError(
                f"checkpoint {source} holds variant {held or 'of another size'}, this run asks for {config.variant}; "
                "leave out --variant, or name another --checkpoint"
            )
        processor = processor_of(source)
    size = processor.size if config.image_size is None else (config.image_size, config.image_size)
    return model, replace(processor, size=size, do_reduce_labels=True)


def check_image_size(size: tuple[int, int], config: SegformerConfig) -> None:
    """Raise ValueError for a size at which a stage's map is smaller than what its attention reduces at once."""
    for side in size:
        left = side
        for stride, sr_ratio in zip(config.strides, config.sr_ratios, strict=True):
            left = math.ceil(left / stride)
            if left < sr_ratio:
                raise ValueError(f"image_size is {side}; a map of {left} pixels is too small for sr_ratio {sr_ratio}")


def build_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.AdamW:
    """AdamW that decays weights but neither norms nor biases, as Trainer does."""
    decayed = [weight for weight in model.parameters() if weight.ndim > 1]
    spared = [weight for weight in model.parameters() if weight.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": spared, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=(0.9, 0.999), eps=1e-8, fused=True)


def learning_rate(step: int, total_steps: int, config: TrainConfig) -> float:
    """The rate of a step, counted from 1: linear warm-up, then down to 0 along a line or half a cosine."""
    done = step - 1
    if done < config.warmup_steps:
        return config.learning_rate * (done / config.warmup_steps)
    if config.lr_scheduler_type == "constant":
        return config.learning_rate
    left = (total_steps - done) / max(1, total_steps - config.warmup_steps)
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
    for part, (some_images, some_labels) in enumerate(parts, start=1):
        with averaged.no_sync() if averaged and part < len(parts) else nullcontext():
            with autocast(config, images.device):
                logits = model(some_images)
            share = fullres.cross_entropy(logits, some_labels, IGNORE_INDEX, reduction="sum") / valid_pixels
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
    move = {name: batch[name].to(device, non_blocking=True) for name in ("images", "labels")}
    return {**batch, **move}


# -------------------------------------------------------------------------------------------------------- evaluation


@torch.inference_mode()
def evaluate(
    model: Segformer, samples: Samples, config: TrainConfig, device: torch.device, ranks: Ranks = ALONE
) -> dict[str, Any]:
    """Loss and scores over all rows, one batch at a time, under the keys of Trainer's log.

    ``eval_loss`` is the mean over all valid pixels. Only the confusion matrix keeps what has been seen, and it does not
    grow. Each rank takes its share of the rows, and all have the scores of all of them.
    """
    places = [(0, row) for row in range(ranks.rank, len(samples), ranks.count)]
    size = config.per_device_eval_batch_size
    batches = [places[first : first + size] for first in range(0, len(places), size)]
    matrix = ConfusionMatrix(model.config.num_labels, IGNORE_INDEX, device)
    total_loss = torch.zeros((), dtype=torch.float64, device=device)
    valid_pixels = torch.zeros((), dtype=torch.int64, device=device)
    started = time.perf_counter()
    model.eval()
    loader = build_loader(samples, batches, config, device)
    for prepared in tqdm(loader, desc="evaluating", leave=False, disable=None if ranks.is_writer else True):
        batch = to_device(prepared, device)
        images, labels = batch["images"], batch["labels"]
        with autocast(config, device):
            logits = model(images)
        total_loss += fullres.cross_entropy(logits, labels, IGNORE_INDEX, reduction="sum")
        valid_pixels += (labels != IGNORE_INDEX).sum()
        if "original_labels" in batch:
            for one, label_map in zip(logits, batch["original_labels"], strict=True):
                matrix.update(fullres.argmax(one[None], label_map.shape)[0], label_map)
        else:
            matrix.update(fullres.argmax(logits, labels.shape[-2:]), labels)
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
        "eval_runtime": seconds,
        "eval_samples_per_second": len(samples) / seconds,
    }


def class_table(results: dict[str, Any]) -> str:
    """IoU and accuracy of every class that was there to score, best first, as aligned lines."""
    ious, accuracies = results["eval_per_category_iou"], results["eval_per_category_accuracy"]
    scored = sorted((k for k in range(len(ious)) if not math.isnan(ious[k])), key=lambda k: -ious[k])
    lines = [f"{'class':<24}{'IoU':>8}{'accuracy':>10}"]
    return "\n".join(lines + [f"{CLASS_NAMES[k]:<24}{ious[k]:>8.3f}{accuracies[k]:>10.3f}" for k in scored])


@torch.inference_mode()
def sample_sheet(model: Segformer, samples: Samples, device: torch.device, count: int = 4) -> Image.Image:
    """Photo, truth and prediction of the first rows, side by side."""
    colours = palette(model.config.num_labels)
    model.eval()
    rows = []
    for row in range(min(count, len(samples))):
        sample = samples[0, row]
        truth, size = sample["labels"].numpy(), samples.processor.size
        prediction = fullres.argmax(model(sample["images"][None].to(device)), size)[0].cpu().numpy()
        photo = samples.dataset[row][0].resize(size[::-1])
        rows.append([photo, label_map_picture(truth, colours), overlay(photo, prediction, colours, 0.6)])
    return contact_sheet(rows, ["photo", "truth", "prediction"])


# ------------------------------------------------------------------------------------------------------------ saving


def claim_output_dir(config: TrainConfig) -> Path:
    """The output folder of these settings, made ready: as it is for a resumed run, empty for a new one."""
    if config.resume_from_checkpoint not in (None, "last") and config.output_dir is None:
        return Path(config.resume_from_checkpoint).parent
    if config.output_dir is None:
        return new_run_folder(config.recipe)
    folder = Path(config.output_dir)
    if config.resume_from_checkpoint is None:
        make_output_dir(folder, config.overwrite_output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def find_resumed(config: TrainConfig) -> Path | None:
    """The checkpoint to go on from, or None to start at the beginning; refuses to lose what the output folder holds."""
    if config.resume_from_checkpoint is None:
        if config.output_dir is not None:
            check_output_dir(Path(config.output_dir), config.overwrite_output_dir)
        return None
    if config.resume_from_checkpoint != "last":
        checkpoint = Path(config.resume_from_checkpoint)
        if config.output_dir is not None and Path(config.output_dir).resolve() != checkpoint.resolve().parent:
            check_output_dir(Path(config.output_dir), overwrite=False)
        return checkpoint
    if config.output_dir is None:
        raise ValueError("resume_from_checkpoint is 'last' but there is no output_dir to look in")
    output_dir = Path(config.output_dir)
    found = list(find_checkpoints(output_dir).values())
    if not found:
        if (output_dir / WEIGHTS_NAME).exists():
            raise ValueError(f"{output_dir} holds a model but no checkpoint to go on from; name another --output-dir")
        logger.warning("no checkpoint in %s: starting at step 0", output_dir)
        return None
    return found[-1]


def check_resumable(config: TrainConfig, saved: dict[str, Any]) -> None:
    """Refuse to go on with settings that would make another run of it, naming both values."""
    now = asdict(config)
    for name, value in saved.items():
        if name in now and name not in _MAY_CHANGE and now[name] != value:
            raise ValueError(f"the checkpoint was trained with {name} {value!r}, this run asks for {now[name]!r}")


# ---------------------------------------------------------------------------------------------------------- the loop


@dataclass
class Progress:
    """Where a run is, and the best evaluated step that was also saved."""

    step: int = 0
    best_step: int | None = None
    best_mean_iou: float = -1.0


class Run:
    """One training run: its parts, built from the settings, and the loop over its steps."""

    def __init__(self, config: TrainConfig) -> None:
        self.config = config
        self.ranks, self.device = join_ranks(choose_device(config.device))
        dtype = amp_dtype(config.amp, self.device)
        resumed = find_resumed(config)
        source = str(resumed) if resumed else config.checkpoint
        if not self.ranks.is_writer:
            self.ranks.wait()  # the writer goes first, in case something has to be fetched or drawn
        self.model, self.processor = build_model(config, source)
        self.train_samples, self.eval_samples = build_samples(config, self.processor)
        if self.ranks.is_writer:
            self.ranks.wait()
        check_image_size(self.processor.size, self.model.config)
        self.model.to(self.device)
        self.optimizer = build_optimizer(self.model, config)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=dtype == torch.float16)
        self.progress = Progress()
        if resumed:
            self._resume(resumed)
        if config.compile:
            self.model.compile()
        self.trained = distribute(self.model, self.ranks, self.device)
        # Only now, when nothing is left that could refuse to start, is the output folder touched.
        self.output_dir = self.ranks.share(claim_output_dir(config) if self.ranks.is_writer else None)
        self.log = Log(self.output_dir, self.progress.step) if self.ranks.is_writer else None
        self.results: dict[str, Any] = {}
        self.evaluated_step: int | None = None

    def _resume(self, checkpoint: Path) -> None:
        state = read_training_state(checkpoint)
        check_resumable(self.config, state["config"])
        if state["rows_per_step"] != self.rows_per_step:
            raise ValueError(
                f"the checkpoint was trained with {state['rows_per_step']} rows a step over all ranks and passes, this "
                f"run asks for {self.rows_per_step}; change --per-device-train-batch-size or accumulation"
            )
        self.optimizer.load_state_dict(state["optimizer"])
        for weight, moments in self.optimizer.state.items():  # fused AdamW would read beyond moments of other shapes
            if any(moments[name].shape != weight.shape for name in ("exp_avg", "exp_avg_sq")):
                raise ValueError(f"{checkpoint} holds optimiser moments of other shapes than its weights")
        if state["scaler"] and self.scaler.is_enabled():
            self.scaler.load_state_dict(state["scaler"])
        self.progress = Progress(**state["progress"])
        if self.progress.best_step not in find_checkpoints(checkpoint.parent):
            self.progress.best_step, self.progress.best_mean_iou = None, -1.0
        logger.info("resuming from %s", checkpoint)

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
        sampler = self.sampler(self.progress.step + 1, total)
        if config.eval_on_start and self.progress.step == 0:
            self.evaluate()
        hidden = None if self.ranks.is_writer else True
        bar = tqdm(total=total, initial=self.progress.step, desc="training", unit="step", disable=hidden)
        started, first_step = time.perf_counter(), self.progress.step
        unread: list[StepResult] = []
        for prepared in build_loader(self.train_samples, sampler, config, self.device):
            step = self.progress.step = self.progress.step + 1
            for group in self.optimizer.param_groups:
                group["lr"] = learning_rate(step, total, config)
            torch.manual_seed(mix(config.seed, step, self.ranks.rank))
            self.model.train()
            batch = to_device(prepared, self.device)
            unread.append(train_step(self.trained, self.optimizer, self.scaler, batch, config))
            bar.update()
            saving = step % config.save_steps == 0 or step == total
            if step % config.logging_steps == 0 or saving:
                self.log_steps(unread, bar)
                unread = []
            if step % config.eval_steps == 0 or step == total:
                self.evaluate()
            if saving:
                self.save()
        bar.close()
        if self.log and self.progress.step > first_step:
            self.log.add(self.progress.step, self.epoch, self.speed(time.perf_counter() - started, first_step))

    def sampler(self, first_step: int, last_step: int) -> StepSampler:
        """The places of this rank in some of the steps."""
        num_rows, seed = len(self.train_samples), self.config.seed
        ranks = self.ranks
        return StepSampler(num_rows, self.rows_per_step, seed, first_step, last_step, ranks.rank, ranks.count)

    def speed(self, seconds: float, first_step: int) -> dict[str, float]:
        """What the whole loop took, evaluations and checkpoints included, under Trainer's keys."""
        steps = range(first_step, self.progress.step)
        left = (len(self.train_samples) - step % self.steps_per_epoch * self.rows_per_step for step in steps)
        images_per_second = sum(min(self.rows_per_step, rows) for rows in left) / seconds
        return {
            "train_runtime": seconds,
            "train_samples_per_second": images_per_second,
            "train_samples_per_second_per_device": images_per_second / self.ranks.count,
            "train_steps_per_second": len(steps) / seconds,
        }

    def log_steps(self, results: list[StepResult], bar: Any) -> None:
        """Read the losses since the last entry, stop at one that is not finite, and log their mean."""
        step = self.progress.step
        losses, norms = [float(result.loss) for result in results], [float(result.grad_norm) for result in results]
        rate = self.optimizer.param_groups[0]["lr"]
        for each, (loss, norm) in enumerate(zip(losses, norms, strict=True), start=step - len(losses) + 1):
            # With a scaler a gradient may overflow: it skips that step and lowers its scale.
            if not math.isfinite(loss) or not (math.isfinite(norm) or self.scaler.is_enabled()):
                raise FloatingPointError(self._explain_non_finite(each, loss, norm))
        loss, grad_norm = sum(losses) / len(losses), norms[-1]
        if self.log:
            self.log.add(step, self.epoch, {"loss": loss, "grad_norm": grad_norm, "learning_rate": rate})
        images_per_second = (bar.format_dict["rate"] or 0.0) * self.rows_per_step
        mean_iou = self.results.get("eval_mean_iou", math.nan)
        bar.set_postfix_str(f"loss {loss:.3f}, mean IoU {mean_iou:.3f}, {images_per_second:.1f} images/s")

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
        """Score the model as it is now and say so; log it, unless its step was logged before."""
        take_writers_buffers(self.model, self.ranks)
        self.results = evaluate(self.model, self.eval_samples, self.config, self.device, self.ranks)
        self.evaluated_step = self.progress.step
        if not self.log:
            return
        if log:
            self.log.add(self.progress.step, self.epoch, self.results)
        tqdm.write(
            f"step {self.progress.step:>6}  eval loss {self.results['eval_loss']:.4f}  "
            f"mean IoU {self.results['eval_mean_iou']:.4f}  "
            f"pixel accuracy {self.results['eval_overall_accuracy']:.4f}  "
            f"{self.results['eval_samples_per_second']:.1f} images/s"
        )

    def save(self) -> None:
        """Write a checkpoint of this step and let old ones go."""
        step, score = self.progress.step, self.results.get("eval_mean_iou", math.nan)
        if self.evaluated_step == step and score > self.progress.best_mean_iou:
            self.progress.best_step, self.progress.best_mean_iou = step, score
        if not self.ranks.is_writer:
            return
        self.require_finite_weights()
        state = {
            "rows_per_step": self.rows_per_step,
            "config": asdict(self.config),
            "progress": asdict(self.progress),
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
        best = self.progress.best_step
        if self.config.load_best_model_at_end and best not in (None, self.progress.step):
            self.model.load_state_dict(Segformer.from_pretrained(self.output_dir / f"checkpoint-{best}").state_dict())
            self.progress.step = best
            self.evaluate(log=False)
            if self.ranks.is_writer:
                self.save_model_files(self.output_dir)
        elif self.evaluated_step is None:  # resumed at the end
            self.evaluate(log=False)
        if self.ranks.is_writer:
            self.write_results()
            parameters = sum(weight.numel() for weight in self.model.parameters())
            write_card(self.output_dir, self.model.config.num_labels, parameters, self.results, asdict(self.config))

    def write_results(self) -> None:
        """eval_results.json and samples.png, and the table of classes on the terminal."""
        text = json.dumps(without_nan({"step": self.progress.step, **self.results}), indent=2)
        (self.output_dir / "eval_results.json").write_text(text + "\n", encoding="utf-8")
        sample_sheet(self.model, self.eval_samples, self.device).save(self.output_dir / "samples.png")
        print(class_table(self.results))
        print(f"mean IoU {self.results['eval_mean_iou']:.4f} in {self.output_dir}")


def train(config: TrainConfig) -> Path:
    """Train, and return the output folder, which is a model; or only evaluate, and return where the scores are."""
    run = Run(config)
    if config.eval_only:
        run.evaluate()
        if run.ranks.is_writer:
            run.write_results()
        return run.output_dir
    run.train()
    run.finish()
    return run.output_dir


def main() -> int:
    """Run from the command line; a mistake in the settings or the data is one line, not a traceback."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    config = parse_arguments()
    try:
        train(config)
    except (ValueError, OSError, FloatingPointError, MemoryError) as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        from_worker = "Original Traceback" in str(error)  # then the last line is what went wrong
        print(f"error: {lines[-1] if from_worker else ' '.join(lines)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; go on with --resume-from-checkpoint and the same --output-dir", file=sys.stderr)
        return 130
    finally:
        leave_ranks()
    return 0


if __name__ == "__main__":
    sys.exit(main())
