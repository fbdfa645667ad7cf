"""Fine-tune SegFormer: the whole run in one file, top to bottom, with nothing behind it but PyTorch.

    python train.py                         generated scenes, from scratch, no network
    python train.py --recipe guide          Hugging Face's guide: nvidia/mit-b0 on 50 images of SceneParse150
    torchrun --nproc-per-node 4 train.py    a run on four GPUs; any recipe

Data, model, step, evaluation and the loop follow in this order; settings and recipes stand in
segformer/training/recipes.py. Every random draw is a function of
where the run is (seed, epoch, row, step), so a resumed run repeats an uninterrupted one and no generator is ever saved.
"""

from __future__ import annotations

import math
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import asdict, replace
from itertools import chain, repeat
from pathlib import Path
from typing import Any, NamedTuple, cast

if "OMP_WAIT_POLICY" not in os.environ:  # before torch starts its threads, which else spin away a shared machine
    os.environ.setdefault("GOMP_SPINCOUNT", "20000")

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import Subset
from tqdm import tqdm

from data.augmentation.jitter import ColorJitter, mix
from data.augmentation.on_device import AugmentOnDevice
from data.batches import (
    Loader,
    Places,
    Samples,
    collate,
    explain_lost_worker,
    for_evaluation,
    for_training,
    is_lost_worker,
    on_device,
    to_device,
)
from data.classes import IGNORE_INDEX
from data.order import NO_ROW, StepSampler
from data.parts import Pairs, Parts, open_parts
from data.sources.hub import HubSource
from data.understanding import Understanding
from segformer import VARIANTS, ImageProcessor, Segformer, fullres
from segformer.config import compare_classes, variant_of
from segformer.console import speak_plainly
from segformer.detail import DetailedConfusionMatrix
from segformer.encoder import Stage
from segformer.geometry import PAPER_SCALE
from segformer.machine import keep_freed_memory, peak_memory_mib
from segformer.metrics import class_table
from segformer.model import evaluating, warn_of_eval_mode
from segformer.pages.report import REPORT_NAME, build_report, refresh_report
from segformer.pages.samples import Shown
from segformer.photos import decode_photo
from segformer.segmenter import choose_device
from segformer.training.arguments import local_paths, parse_arguments
from segformer.training.averaging import move_average, start_average
from segformer.training.checkpoints import refuse_broken, rotate_checkpoints, save_checkpoint, whole_checkpoint
from segformer.training.description import describe, write_results
from segformer.training.devices import fit_to_device
from segformer.training.faults import explain
from segformer.training.fitting import fit_batch
from segformer.training.graphs import StepGraphs
from segformer.training.history import History, Plan, duration
from segformer.training.interrupts import Interrupted, StopRequest, hear_no_more_of_workers
from segformer.training.precision import autocast, grad_scaler
from segformer.training.ranks import (
    ALONE,
    Ranks,
    compute_deterministically,
    distribute,
    join_ranks,
    leave_ranks,
    own_device,
    sum_over_ranks,
    take_writers_buffers,
)
from segformer.training.rates import learning_rate_factors
from segformer.training.recipes import TrainConfig, configure
from segformer.training.recorded import recorded_labels
from segformer.training.resume import EarlierRun
from segformer.training.summary import aligned, start_summary
from segformer.views import logits_of_photo, logits_of_views
from segformer.weights.card import write_card
from segformer.weights.publish import check_login, full_id, publish_run, shareable

__all__ = ["TrainConfig", "configure", "evaluate", "parse_arguments", "train", "train_step"]

# -------------------------------------------------------------------------------------------------------------- data


def training_samples(config: TrainConfig, rows: Pairs, processor: ImageProcessor) -> Samples:
    """Rows to train on, augmented as the settings say."""
    return Samples(rows, for_training(processor, config.augmentation, config.seed, config.augment_on_device))


def evaluation_samples(config: TrainConfig, rows: Pairs, processor: ImageProcessor) -> Samples:
    """Rows to score, as they are."""
    return Samples(rows, for_evaluation(processor, config.eval_resolution, config.scales))


def build_samples(config: TrainConfig, processor: ImageProcessor, rows: Parts | None = None) -> tuple[Samples, Samples]:
    """The rows to train on and the rows to evaluate on, on their way to the model."""
    rows = rows or open_parts(config, decode_photo)
    return training_samples(config, rows.train, processor), evaluation_samples(config, rows.evaluation, processor)


def build_device_augmentation(
    config: TrainConfig, processor: ImageProcessor
) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """What is still to be done to a batch once it is on the device."""
    if not config.augment_on_device:
        return lambda batch: batch
    jitter = ColorJitter() if config.augmentation == "jitter" else None
    return AugmentOnDevice.in_place_of(processor, jitter, config.seed).finish


def build_loader(samples: Samples, places: Places, config: TrainConfig, device: torch.device) -> Loader:
    """The batches of these places, ready for the device."""
    return Loader(samples, places, config.dataloader_num_workers, device)


# ------------------------------------------------------------------------------------------------------------- model


def build_model(
    config: TrainConfig, source: str | Path | None, labels: Understanding | None = None
) -> tuple[Segformer, ImageProcessor]:
    """The model to train and its processor, from ``source`` or anew, with the classes of the data."""
    labels = labels or open_parts(config, decode_photo).labels
    rates = {"drop_path_rate": config.drop_path_rate, "classifier_dropout_prob": config.classifier_dropout}
    changes: dict[str, Any] = {name: rate for name, rate in rates.items() if rate is not None}
    torch.manual_seed(config.seed)
    if source is None:
        processor, model = (
            ImageProcessor(),
            Segformer(VARIANTS[config.variant or "b0"](id2label=labels.id2label, **changes)),
        )
    else:
        processor = ImageProcessor.from_pretrained(source)
        model = Segformer.from_pretrained(source, id2label=labels.id2label, config_changes=changes)
        model.config.check_takes_photos()
        held = variant_of(model.config)
        if config.variant not in (None, held):
            raise ValueError(
                f"checkpoint {source} holds variant {held or 'of another size'}, this run asks for {config.variant}; "
                "leave out --variant, or name another --checkpoint"
            )
        if config.eval_only:
            compare_classes(model.load_report.classes, labels.id2label)
            model.load_report.check_whole(source)
    if config.head_initialization == "authors":
        model.redraw_as_authors()
    model.decoder.drops_channels = config.dropout_channels
    for number, stage in enumerate(cast(list[Stage], model.encoder.stages)):
        stage.recomputes_blocks = config.gradient_checkpointing
        stage.requires_grad_(number >= config.freeze_encoder)
    return model, replace(
        processor,
        do_resize=processor.do_resize or config.image_size is not None or config.resize_mode is not None,
        size=config.processed_size or processor.size,
        resize_mode=config.resize_mode or processor.resize_mode,
        do_reduce_labels=labels.rule.reduce_labels,
        keep_ratio_scale=PAPER_SCALE if config.eval_resolution == "keep-ratio" else None,
        keep_ratio_multiple=32,
        label_rule=labels.rule.to_dict(),
    )


def build_optimizer(model: Segformer, config: TrainConfig) -> torch.optim.AdamW:
    """AdamW that spares norms, and biases unless told otherwise, from decay, and has a rate for each depth."""
    norms = {
        weight
        for module in model.modules()
        if isinstance(module, nn.LayerNorm | nn.BatchNorm2d)
        for weight in module.parameters()
    }
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    factors = learning_rate_factors(model, config.head_learning_rate_factor, config.layer_decay)
    for name, factor in factors.items():
        weight = model.get_parameter(name)
        decays = weight not in norms and (weight.ndim > 1 or config.decay_biases)
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

    The batch is what all accumulation steps see together. The loss is the mean over its valid pixels, or over all with
    ignored ones at 0, however many forward passes and ranks it takes: each adds its share, divided by the count of all.
    A model in eval mode is warned of: it has no dropout, and its BatchNorm learns nothing of the photos.
    """
    warn_of_eval_mode(model)
    images, labels = batch["images"], batch["labels"]
    objective = config.objective
    if config.loss_mean == "all":
        weight = torch.full((), labels.numel(), device=labels.device)
    else:
        weight = fullres.total_weight(labels, objective, IGNORE_INDEX)
    sum_over_ranks(weight)
    loss = torch.zeros((), device=images.device)
    optimizer.zero_grad(set_to_none=True)
    size = config.per_device_train_batch_size
    parts = list(zip(images.split(size), labels.split(size), strict=True))
    # Ranks average their gradients, once, in the last backward pass; the loss is a sum over them.
    averaged = model if isinstance(model, DistributedDataParallel) else None
    num_ranks = averaged.process_group.size() if averaged else 1
    compiled = config.compile and images.is_cuda  # on CPUs the loss is faster as it is
    dice_sums = sum_ahead_for_dice(model, parts, config) if objective.dice_weight and len(parts) > 1 else None
    for part, (some_images, some_labels) in enumerate(parts, start=1):
        with averaged.no_sync() if averaged and part < len(parts) else nullcontext():
            with autocast(config.amp, images.device):
                logits = model(some_images)
            if objective.dice_weight and dice_sums is None:  # of the only part of a step
                dice_sums = sum_over_ranks(fullres.sum_for_dice(logits, some_labels, IGNORE_INDEX))
            share = fullres.mean_loss(logits, some_labels, objective, IGNORE_INDEX, weight, dice_sums, compiled)
            scaler.scale(share * num_ranks).backward()  # type: ignore[no-untyped-call]
        loss += share.detach()
    sum_over_ranks(loss)
    scaler.unscale_(optimizer)
    grad_norm = nn.utils.clip_grad_norm_(model.parameters(), config.max_grad_norm or math.inf)
    scaler.step(optimizer)
    scaler.update()
    return StepResult(loss, grad_norm)


@torch.no_grad()
def sum_ahead_for_dice(model: nn.Module, parts: list[tuple[Tensor, Tensor]], config: TrainConfig) -> Tensor:
    """What Dice is made of over all parts of a step and all ranks, which the gradient of each part needs.

    It takes forward passes of their own, which draw the dropout that those to come will draw again, and leave
    BatchNorm's statistics to them. On MPS they draw dropout of their own.
    """
    device, before = parts[0][0].device, [buffer.clone() for buffer in model.buffers()]
    sums = []
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        for images, labels in parts:
            with autocast(config.amp, device):
                logits = model(images)
            sums.append(fullres.sum_for_dice(logits, labels, IGNORE_INDEX))
    for buffer, values in zip(model.buffers(), before, strict=True):
        buffer.copy_(values)
    return sum_over_ranks(torch.stack(sums).sum(0))


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
    matrix, which comes along as ``eval_confusion``, keeps what has been seen, and it does not grow. Each rank takes its
    share of the rows, and all have the scores of all of them. Asked to ``stop``, it returns nothing.
    """
    places = [(0, row) for row in range(ranks.rank, len(samples), ranks.count)]
    size = 1 if samples.one_by_one else config.per_device_eval_batch_size
    batches = [places[first : first + size] for first in range(0, len(places), size)]
    matrix = DetailedConfusionMatrix(model.config.num_labels, IGNORE_INDEX, device)
    precise = torch.float32 if device.type == "mps" else torch.float64  # MPS has no other
    total_loss = torch.zeros((), dtype=precise, device=device)
    valid_pixels = torch.zeros((), dtype=torch.int64, device=device)
    started = time.perf_counter()
    loader = build_loader(samples, batches, config, device)
    rounds = math.ceil(math.ceil(len(samples) / ranks.count) / size)  # as many on every rank, so that all can agree
    bar = tqdm(total=rounds, desc="evaluating", leave=False, disable=None if ranks.is_writer else True)
    with evaluating(model):
        for batch in chain(on_device(loader, device), repeat(None, rounds - len(batches))):
            if stop and ranks.any(stop.signal is not None):
                return {}
            bar.update()
            if batch is None:
                continue
            for logits, labels in score_views(model, batch, config):
                total_loss += fullres.cross_entropy(logits[0], labels, IGNORE_INDEX, reduction="sum")
                valid_pixels += (labels != IGNORE_INDEX).sum()
                matrix.update(fullres.argmax_of_mean(logits, labels.shape[-2:]), labels)
    matrix.all_reduce()
    total_loss, valid_pixels = sum_over_ranks(total_loss), sum_over_ranks(valid_pixels)
    seconds = time.perf_counter() - started
    return {
        "eval_loss": float(total_loss / valid_pixels),
        **{f"eval_{name}": value for name, value in matrix.scores().entries().items()},
        "eval_confusion": matrix.counts.cpu().numpy(),
        "eval_runtime": seconds,
        "eval_samples_per_second": len(samples) / seconds,
    }


def score_views(model: nn.Module, batch: dict[str, Any], config: TrainConfig) -> Iterator[tuple[list[Tensor], Tensor]]:
    """What is scored at once, logits of all views (B, K, h, w) and labels (B, H, W): the batch, or each photo alone.

    A view is a batch of photos at one scale or, turned back, the logits of its mirror image.
    """
    views, window = batch["views"], config.eval_window if config.eval_resolution == "window" else 0
    with autocast(config.amp, views[0].device), torch.compiler.set_stance("force_eager"):  # of any number of sizes
        seen = logits_of_views(model, views, config.eval_flip, window, config.eval_stride)
    if "labels" in batch:
        yield seen, batch["labels"]
    for number, labels in enumerate(batch.get("original_labels", ())):
        yield logits_of_photo(seen, number, batch["shown"][number]), labels[None]


@torch.inference_mode()
def predict_samples(
    model: Segformer, samples: Samples, config: TrainConfig, device: torch.device, count: int = 4
) -> list[Shown]:
    """The first rows, each with what the model makes of it at the size that is scored."""
    shown = []
    for row in range(min(count, len(samples))):
        batch = to_device(collate([samples[0, row]]), device)
        with evaluating(model):
            logits, labels = next(score_views(model, batch, config))
        prediction = fullres.argmax_of_mean(logits, labels.shape[-2:])
        truth, made = (each[0].to("cpu", torch.uint8).numpy() for each in (labels, prediction))
        shown.append(Shown(samples.name(row), samples.seen(row), truth, made))
    return shown


# ---------------------------------------------------------------------------------------------------------- the loop


class Run:
    """One training run: its parts, built from the settings, and the loop over its steps."""

    def __init__(self, config: TrainConfig) -> None:
        if config.deterministic:
            compute_deterministically()
        self.ranks, self.device = join_ranks(choose_device(own_device(config.device)))
        self.config = config = fit_to_device(config, self.device)
        self.stop = StopRequest(answers=self.ranks.is_writer)
        self.graphs = StepGraphs(config.cuda_graph, self.device, self.ranks.count)
        self.earlier = EarlierRun(config, self.ranks)
        with self.ranks.writer_first():  # in case something has to be fetched or drawn
            rows = open_parts(config, decode_photo, recorded_labels(config))
            self.step_config = config.balanced(rows.class_pixels()) if config.class_weights == "balanced" else config
            self.model, self.processor = build_model(config, self.earlier.checkpoint or config.checkpoint, rows.labels)
            self.train_samples, self.eval_samples = build_samples(config, self.processor, rows)
        self.model.config.check_image_size(*self.processor.size)
        self.step_config.objective.check_classes(self.model.config.num_labels)
        self.model.to(self.device)
        self.scored = start_average(self.model) if config.ema_decay else self.model
        if config.auto_batch_size:
            self.step_config = fit_batch(self.model, self.step_config, self.processor.size, self.device, self.ranks)
        self.augment = build_device_augmentation(config, self.processor)
        self.optimizer = build_optimizer(self.model, config)
        self.scaler = grad_scaler(config.amp, self.device)
        self.history = History(Plan.of(config, len(self.train_samples), self.ranks.count), self.device, self.ranks)
        self.rows = self.train_samples.identity()
        self.about = describe(config, shareable(asdict(config)), self.model, self.processor, self.plan, rows)
        self.earlier.restore(self.model, self.optimizer, self.scaler, self.history, self.rows, self.about)
        account = check_login(config.hub_model_id) if config.push_to_hub and self.ranks.is_writer else None
        if config.compile:
            self.model.compile(dynamic=False)  # with its sizes left open the training graph fails in inductor
        self.distributed = distribute(self.model, self.ranks, self.device)
        if self.ranks.is_writer:
            print(start_summary(config, self.about, self.plan, self.device, self.ranks.count), flush=True)
        if not config.dry_run:  # only now, when nothing is left that could refuse to start, is the folder touched
            self.output_dir = self.earlier.claim_output_dir(self.history)
            self.repository = full_id(config.hub_model_id, self.output_dir, account) if account else None
            if self.ranks.is_writer:
                self.history.open(self.output_dir, config.report_to)
                print(aligned({"folder": str(self.output_dir)}), flush=True)

    def train(self) -> None:
        """Every step to the end, with its logging, evaluations and checkpoints."""
        config, history = self.config, self.history
        places = self.places(history.step + 1, history.planned.total_steps)
        loader = build_loader(self.train_samples, places, config, self.device)
        history.start(loader)
        self.begin()
        with history.progress_line():
            for batch in on_device(loader, self.device):
                if history.step == self.plan.total_steps:  # where time or patience has moved it
                    break
                step = history.progress.step = history.step + 1
                rate = learning_rate(step, self.plan.total_steps, config)
                for group in self.optimizer.param_groups:
                    group["lr"] = rate * group["lr_factor"]
                torch.manual_seed(mix(config.seed, step, self.ranks.rank))
                history.add_step(*self.take_step(self.augment(batch)))
                if config.ema_decay:
                    move_average(self.scored, self.model, config.ema_decay, step)
                if step % config.logging_steps == 0 or self.plan.is_saved(step) or self.plan.is_evaluated(step):
                    history.log_steps(rate, self.names_of, self.scaler.is_enabled())
                stopping = self.ranks.any(self.stop.signal is not None)
                if not stopping and self.plan.is_evaluated(step):
                    self.evaluate()
                    stopping = self.ranks.any(self.stop.signal is not None)
                is_last = step == self.plan.total_steps
                if is_last and history.is_evaluated:
                    history.log_closing(self.ranks.count)  # before the last checkpoint: none is saved without it
                if self.plan.is_saved(step) or stopping:
                    self.save()
                if stopping and not (is_last and history.is_evaluated):
                    raise self.stop.interrupted(self.output_dir, history.step)

    def take_step(self, batch: dict[str, Any]) -> StepResult:
        """One step of the optimiser; stages that are frozen compute as in an evaluation."""
        self.model.train()
        self.model.encoder.stages[: self.config.freeze_encoder].eval()
        step_of = self.distributed, self.optimizer, self.scaler, batch, self.step_config
        return self.graphs.take(train_step, *step_of)

    def score(self) -> None:
        """Only evaluate, and write what comes of it."""
        if self.ranks.is_writer:
            self.about.save(self.output_dir)
        self.evaluate()
        if not self.history.results:
            message = "stopped before the evaluation was through; nothing was scored"
            raise Interrupted(message, self.stop.signal or signal.SIGTERM)
        if self.ranks.is_writer:
            self.tell()

    def begin(self) -> None:
        """What comes before the first step: a description, and an evaluation that is asked for or was cut off."""
        history = self.history
        if self.ranks.is_writer:
            self.about.save(self.output_dir)
        due = self.plan.is_evaluated(history.step) if history.step else self.config.eval_on_start
        if due and not history.is_evaluated:
            self.evaluate()
            if history.step and history.is_evaluated:
                if history.step == self.plan.total_steps:
                    history.log_closing(self.ranks.count)
                self.save()
        if self.ranks.any(self.stop.signal is not None):
            raise self.stop.interrupted(self.output_dir, history.step)

    @property
    def plan(self) -> Plan:
        return self.history.plan

    def places(self, first_step: int, last_step: int) -> StepSampler:
        """The places of this rank in some of the steps."""
        plan, ranks = self.plan, self.ranks
        seed, steps = self.config.seed, (first_step, last_step)
        return StepSampler(plan.num_rows, plan.rows_per_step, seed, *steps, ranks.rank, ranks.count, plan.drop_last)

    def names_of(self, step: int) -> list[str]:
        """The names of the rows of a step."""
        return [self.train_samples.name(row) for _, row in next(iter(self.places(step, step))) if row != NO_ROW]

    def evaluate(self, log: bool = True) -> None:
        """Score the model as it is now, say so and show it; log it, unless its step was logged before.

        Asked to stop before it has seen all rows, it leaves that for the next start.
        """
        take_writers_buffers(self.scored, self.ranks)
        results = evaluate(self.scored, self.eval_samples, self.config, self.device, self.ranks, self.stop)
        if results:
            self.history.add_evaluation(results, log)
            if log and self.history.is_stale(self.config.early_stopping_patience):
                self.history.end_here()
            if self.ranks.is_writer:
                shown = predict_samples(self.scored, self.eval_samples, self.config, self.device)
                refresh_report(self.output_dir, self.history.step, shown, self.model.config.num_labels)

    def save(self) -> None:
        """Write a checkpoint of this step and let old ones go."""
        history, step = self.history, self.history.step
        if self.plan.is_saved(step):  # where a run is stopped changes nothing about which step is its best
            history.note_best()
        if not self.ranks.is_writer:
            return
        refuse_broken(self.model, step)
        state = {
            "rows_per_step": self.plan.rows_per_step,
            "rows": self.rows,
            "config": asdict(self.config),
            "labels": self.about.labels,
            "paths": local_paths(self.config),
            **history.state(),
            "weights": self.model.state_dict() if self.scored is not self.model else {},
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
        }
        save_checkpoint(self.output_dir, step, self.save_model_files, state)
        rotate_checkpoints(self.output_dir, self.config.save_total_limit, step, history.progress.best_step)

    def save_model_files(self, folder: Path) -> None:
        """Write what makes a folder a model."""
        if self.ranks.is_writer:
            self.scored.save_pretrained(folder)
            self.processor.save_pretrained(folder)

    def finish(self) -> None:
        """Leave the last weights, or the best if asked for, and everything that tells about them."""
        self.ranks.wait()
        history = self.history
        self.about = replace(self.about, total_steps=self.plan.total_steps)
        self.save_model_files(self.output_dir)
        if self.config.load_best_model_at_end and history.progress.best_step not in (None, history.step):
            best = self.ranks.decide(lambda: whole_checkpoint(self.output_dir, history.progress.best_step))
            if best is not None:
                self.scored.load_state_dict(Segformer.from_pretrained(best).state_dict())
                history.go_back_to_best()
        if not history.results:  # of these weights: of a run resumed at its end, too
            self.evaluate(log=False)
            self.save_model_files(self.output_dir)
        if self.ranks.is_writer:
            self.tell()
            self.publish()
        self.ranks.wait()  # all leave together

    def tell(self) -> None:
        """The scores as a file, the report once more with them, and the table of classes on the terminal."""
        results = self.history.results
        self.about.save(self.output_dir)
        write_results(self.output_dir, self.history.step, results, self.about, self.history.confusion)
        build_report(self.output_dir)
        columns = (results[f"eval_per_category_{name}"] for name in ("iou", "accuracy", "share"))
        print(class_table(self.about.class_names, *columns))
        print(f"mean IoU {results['eval_mean_iou']:.4f} in {self.output_dir}, see {REPORT_NAME} there")

    def publish(self) -> None:
        """Write the model card, and upload the run if asked to."""
        dataset = HubSource.parse(self.config.dataset)
        write_card(self.output_dir, self.about, self.history.results, dataset, self.repository)
        if self.repository:
            print(f"published as {publish_run(self.output_dir, self.repository)}")


def try_out(run: Run) -> None:
    """Two steps and one evaluation batch, of which nothing is kept: what they take, and what the whole run would."""
    config, plan = run.config, run.plan
    for batch in build_loader(run.train_samples, run.places(1, min(2, plan.total_steps)), config, run.device):
        started = time.perf_counter()
        batch = run.augment(to_device(batch, run.device))
        result = run.take_step(batch)
        loss, seconds = float(result.loss), time.perf_counter() - started  # the loss waits for the device
    few = Subset(run.eval_samples.dataset, range(min(len(run.eval_samples), config.per_device_eval_batch_size)))
    scored = evaluate(run.model, Samples(few, run.eval_samples.prepare), config, run.device, run.ranks)
    if run.ranks.is_writer:
        steps = duration(seconds * plan.total_steps)
        rows = duration(len(run.eval_samples) / scored["eval_samples_per_second"])
        print(
            f"a step takes {1000 * seconds:.0f} ms (loss {loss:.3f}): {steps} for {plan.total_steps:,}, and {rows} for "
            f"each evaluation; {peak_memory_mib(run.device):.0f} MiB of memory. Nothing was kept"
        )


def train(config: TrainConfig) -> Path:
    """Train, and return the output folder, which is a model; or only evaluate, and return where the scores are.

    Raises Interrupted, with the run saved, where SIGTERM or Ctrl-C asked it to stop.
    """
    run = Run(config)
    if config.dry_run:
        try_out(run)
        return Path(config.output_dir or "")
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
        run.earlier.release()
    return run.output_dir


def main() -> int:
    """Run from the command line; what ends a run is one line, not a traceback."""
    speak_plainly()
    keep_freed_memory()
    config = parse_arguments()
    try:
        train(config)
    except Interrupted as stopped:
        print(stopped, file=sys.stderr)
        return 128 + stopped.signal
    except KeyboardInterrupt:
        print("interrupted; go on with --resume-from-checkpoint and the run's folder", file=sys.stderr)
        return 130
    except Exception as error:
        hear_no_more_of_workers()
        told = explain_lost_worker(error) if is_lost_worker(error) else explain(error)
        if told is None:
            raise
        print(f"error: {told}", file=sys.stderr)
        return 1
    finally:
        leave_ranks()
    return 0


if __name__ == "__main__":
    sys.exit(main())
