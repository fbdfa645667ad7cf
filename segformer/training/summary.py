"""What a run says before its first step: what it understood of its settings, so that nobody finds out a night later."""

from __future__ import annotations

import platform
import textwrap
from collections.abc import Mapping

import torch

from segformer.console import counted, noun
from segformer.training.description import RunDescription
from segformer.training.history import Plan
from segformer.training.precision import amp_dtype
from segformer.training.recipes import TrainConfig

_WIDTH = 80
_AUGMENTATIONS = {"none": "not augmented", "jitter": "with jittered colours", "paper": "scaled, cropped and jittered"}
_RESIZED = {"squash": "", "keep": ", their shape kept and padded", "crop": ", their shape kept and cropped"}
_SCORED = {
    "processed": "scored against labels of that size",
    "original": "scored at each label map's own size",
    "keep-ratio": "scored at each label map's own size, the photo's shape kept",
    "window": "scored at each label map's own size, in windows of the photo as it is",
}


def start_summary(config: TrainConfig, about: RunDescription, plan: Plan, device: torch.device, num_ranks: int) -> str:
    """A few lines of 80 columns: machine, model, data and what was understood of it, sizes, steps and schedule."""
    count = about.parameters
    parameters = f"{count:,}" if count < 100_000 else f"{count / 1e6:.1f} million"
    to_train_on = counted(about.train_images, "photo")
    origin = f"from {config.checkpoint}" if config.checkpoint else "starting anew"
    height, width = about.image_size
    size = f"{width} x {height}" + (" (width x height)" if width != height else "")
    to_train = "" if config.eval_only else f"{to_train_on} to train on, "
    scored = about.scored_rows or f"{config.test_size:.0%} of {config.split}, held out"
    augmented = "" if config.eval_only else f", {_AUGMENTATIONS[config.augmentation]}"
    resized = _RESIZED.get(about.resize_mode, "")
    told = {
        "device": f"{device_name(device)}, {_precision(config, device)}" + (f", {num_ranks} ranks" * (num_ranks > 1)),
        "model": f"{about.model}, {parameters} parameters, {origin}",
        "data": "\n".join(about.understood),
        "rows": f"{to_train}{about.eval_images:,} to score ({scored})",
        "photos": f"{size} pixels{resized}{augmented}; {_SCORED[config.eval_resolution]}",
    }
    if not config.eval_only:
        told |= {"steps": _steps(config, plan, num_ranks), "schedule": _schedule(config, plan)}
        told |= {"loss": loss} if (loss := _loss(config)) else {}
        if aids := _aids(config):
            told["also"] = aids
    return aligned(told)


def aligned(told: Mapping[str, str]) -> str:
    """Texts behind their names, wrapped to 80 columns."""
    lines = []
    for name, text in told.items():
        for number, each in enumerate(text.split("\n")):
            first, rest = f"{'' if number else name:<10}", " " * 10
            lines += textwrap.wrap(each, _WIDTH, initial_indent=first, subsequent_indent=rest, break_on_hyphens=False)
    return "\n".join(lines)


def device_name(device: torch.device) -> str:
    """The device as its maker calls it."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"{device.type.upper()} ({platform.machine()}), {counted(threads, 'thread')}"


def _precision(config: TrainConfig, device: torch.device) -> str:
    return str(amp_dtype(config.amp, device) or torch.float32).removeprefix("torch.")


def _steps(config: TrainConfig, plan: Plan, num_ranks: int) -> str:
    parts = [(config.gradient_accumulation_steps, "passes"), (num_ranks, "ranks")]
    times = "".join(f" x {count} {what}" for count, what in parts if count > 1)
    batch = f"{counted(config.per_device_train_batch_size, 'photo')}{times}"
    epochs = plan.epoch(plan.total_steps)
    return f"{plan.total_steps:,} of {batch}, {epochs:.3g} {noun(epochs, 'epoch')} of {plan.steps_per_epoch:,}"


def _aids(config: TrainConfig) -> str:
    minutes, patience, frozen = config.max_train_minutes, config.early_stopping_patience, config.freeze_encoder
    told = [
        minutes and f"{minutes:g} minutes at most, when the schedule ends",
        config.ema_decay and f"scored and saved is the average of the weights, decay {config.ema_decay:g}",
        patience and f"stops after {counted(patience, 'evaluation')} without a better mean IoU",
        frozen
        and ("encoder frozen" if frozen == 4 else f"stage 1{f' to {frozen}' * (frozen > 1)} of the encoder frozen"),
        config.layer_decay < 1 and f"learning rate times {config.layer_decay:g} from block to block towards the input",
        config.gradient_checkpointing and "blocks computed again for their gradients",
    ]
    return "; ".join(each for each in told if each)


def _schedule(config: TrainConfig, plan: Plan) -> str:
    warmup = f", after {counted(config.warmup_steps, 'step')} of warm-up" if config.warmup_steps else ""
    if config.warmup_steps >= plan.total_steps:
        warmup += f", which a run of {plan.total_steps} never comes to the end of: lower --warmup-steps"
    head = config.head_learning_rate_factor
    decoder = "" if head == 1 else f" (decoder {config.learning_rate * head:g})"
    rate = f"learning rate {config.learning_rate:g}{decoder}"
    return f"AdamW, {rate}, {config.lr_scheduler_type}{warmup}; seed {config.seed}"


def _loss(config: TrainConfig) -> str:
    """What a step minimises; nothing where that is the mean cross-entropy of the valid pixels."""
    objective, listed = config.unweighted, config.class_weights.replace(",", ", ")
    parts = {
        f"focal loss, gamma {objective.gamma:g}": objective.kind == "focal",
        objective.kind: objective.kind != "focal",
        f"class weights {textwrap.shorten(listed, 40, placeholder=' ...')}": config.class_weights != "none",
        f"label smoothing {objective.smoothing:g}": objective.smoothing,
        f"{objective.dice_weight:g} times 1 - Dice on top": objective.dice_weight,
        "the mean over all pixels, ignored ones counting 0": config.loss_mean == "all",
    }
    told = [part for part, is_so in parts.items() if is_so]
    return "" if told == ["cross-entropy"] else ", ".join(told)
