"""Going on with an earlier run: its checkpoint found, compared with what is asked for, restored, its folder claimed."""

from __future__ import annotations

import glob
import json
import logging
import math
from itertools import takewhile
from pathlib import Path
from typing import Any

import torch

from segformer.config import compare_classes
from segformer.console import counted
from segformer.files import WEIGHTS_NAME
from segformer.model import Segformer
from segformer.training.checkpoints import (
    STATE_NAME,
    check_whole,
    copy_checkpoint,
    find_checkpoints,
    newest_checkpoint,
    read_training_state,
    remove_leftovers,
    set_aside_later,
)
from segformer.training.description import RunDescription
from segformer.training.history import History, Progress
from segformer.training.output import RunLock, check_output_dir, claim_output_dir, empty_output_dir
from segformer.training.ranks import Ranks
from segformer.training.recipes import TrainConfig
from segformer.training.recorded import run_of
from segformer.training.settings import check_resumable

logger = logging.getLogger(__name__)


class EarlierRun:
    """The checkpoint that a run goes on from; without one, the run starts at the beginning and this does little.

    Raises ValueError or FileNotFoundError where the settings name a checkpoint that is not whole, where they would make
    another run of it, and where a new run would lose what its output folder holds.
    """

    def __init__(self, config: TrainConfig, ranks: Ranks) -> None:
        self._config = config
        self._ranks = ranks
        self._lock: RunLock | None = None
        self.checkpoint: Path | None = ranks.decide(self._find)
        self._state: dict[str, Any] = {}
        if self.checkpoint:
            self._state = read_training_state(self.checkpoint)
            check_resumable(config, self._state["config"])
        elif config.resume_from_checkpoint == "last":
            logger.warning("no checkpoint in %s: starting at step 0", config.output_dir)

    def restore(
        self,
        model: Segformer,
        optimizer: torch.optim.Optimizer,
        scaler: torch.amp.GradScaler,
        history: History,
        rows: dict[str, Any],
        about: RunDescription,
    ) -> None:
        """Bring optimiser, scaler and history to where they were; ``rows`` tell the training rows from others."""
        if self.checkpoint is None:
            return
        self._check_fit(model, history, rows)
        compare_classes(model.load_report.classes, model.config.id2label)
        held = self._state.get("labels")  # which runs of before do not have
        if isinstance(held, dict) and _plain(held) != _plain(about.labels):
            raise ValueError(
                f"the checkpoint was trained on label maps read by the rule {held}, this run reads them by "
                f"{about.labels}; give the flags or the class file of before"
            )
        try:
            _restore(self._state, optimizer, scaler)
            history.restore(self._state)
            if self._config.ema_decay:  # the checkpoint's model is the average
                model.load_state_dict(self._state["weights"])
        except (TypeError, ValueError, LookupError, AttributeError, RuntimeError, OverflowError) as error:
            said = f"{type(error).__name__}: {error}"
            raise ValueError(f"{self.checkpoint / STATE_NAME} does not fit this run ({said})") from error
        self._compare_marks(history, run_of(self.checkpoint).marks, about.marks)
        if history.is_stale(self._config.early_stopping_patience):
            history.end_here()
        self._tell_of_another_schedule(history)
        if history.progress.best_step not in find_checkpoints(self.checkpoint.parent):
            history.progress.best_step, history.progress.best_mean_iou = None, -1.0
        logger.info("resuming from %s", self.checkpoint)

    def claim_output_dir(self, history: History) -> Path:
        """The output folder, made ready for the steps after the present one, and closed to other runs."""
        folder: Path = self._ranks.decide(lambda: self._claim(history.progress))
        return folder

    def release(self) -> None:
        """Let other runs write to the output folder."""
        if self._lock:
            self._lock.release()

    def _find(self) -> Path | None:
        config = self._config
        return find_resumed(config.output_dir, config.resume_from_checkpoint, config.overwrite_output_dir)

    def _check_fit(self, model: Segformer, history: History, rows: dict[str, Any]) -> None:
        state, config, rows_per_step = self._state, self._config, history.plan.rows_per_step
        if model.load_report.mismatched or model.load_report.missing:
            raise ValueError(f"{self.checkpoint} has other classes than the {model.config.num_labels} asked for")
        held = state["rows"]
        comparable = all(isinstance(value, str | int) for value in held.values())
        if not comparable or held != rows:  # their folder may have moved, they may not have changed
            raise ValueError(
                f"the checkpoint was trained on other rows: {held.get('count')} of {state['config'].get('dataset')!r}, "
                f"from {held.get('first')}; this run has {rows['count']} of {config.dataset!r}, from {rows['first']}"
            )
        if state["rows_per_step"] != rows_per_step:
            before = counted(state["rows_per_step"], "row")
            raise ValueError(
                f"the checkpoint was trained with {before} a step over all ranks and passes, this run asks for "
                f"{rows_per_step}; change --per-device-train-batch-size or accumulation"
            )

    def _compare_marks(self, history: History, before: dict[str, str], now: dict[str, str]) -> None:
        """Tell of rows that have changed, and forget the scores of those that were another measure."""
        changed = [what for what, mark in before.items() if now.get(what) != mark]
        if "train" in changed:
            logger.warning("label maps to train on have changed since %s was saved", self.checkpoint)
        if "scored" in changed:
            logger.warning(
                "label maps to score have changed since %s was saved: scores before and after are of other rows, and "
                "the best checkpoint is chosen among those to come",
                self.checkpoint,
            )
            history.forget_scores()

    def _tell_of_another_schedule(self, history: History) -> None:
        plan, saved, step = history.planned, self._state["config"], history.step
        if plan.total_steps < step:
            raise ValueError(
                f"the checkpoint is at step {step}, beyond the {plan.total_steps} asked for; raise --max-steps or "
                "--num-train-epochs"
            )
        if history.is_stale(self._config.early_stopping_patience):
            logger.info(
                "the run stopped early, after %s without a better mean IoU, and takes no further step; "
                "--early-stopping-patience 0, or a higher one, has it go on",
                counted(history.progress.evaluations_since, "evaluation"),
            )
            return
        max_steps, epochs = saved.get("max_steps", 0), saved.get("num_train_epochs", 0)
        before = max_steps if max_steps > 0 else math.ceil(plan.steps_per_epoch * epochs)
        if before != plan.total_steps:
            logger.info(
                "from step %d on the learning rate is that of a run of %s; it was that of one of %d",
                *(step + 1, counted(plan.total_steps, "step"), before),
            )

    def _claim(self, progress: Progress) -> Path:
        config, checkpoint = self._config, self.checkpoint
        if checkpoint is None:
            _check_that_nothing_it_is_made_from_is_lost(config)
        named = config.output_dir or (checkpoint and checkpoint.parent)
        folder, self._lock = claim_output_dir(named, config.recipe)
        if self._find() != checkpoint:  # found before there was a lock
            raise ValueError(f"another run has written to {folder} meanwhile; start again")
        if checkpoint is None:
            # A run that ended before its first checkpoint has nothing to go on from, and nothing to lose.
            empty_output_dir(folder, config.overwrite_output_dir or config.resume_from_checkpoint == "last")
            return folder
        remove_leftovers(folder)
        set_aside_later(folder, progress.step)
        if folder.resolve() != checkpoint.resolve().parent:
            _bring_along(checkpoint, folder, progress)
        return folder


def find_resumed(output_dir: str | None, resume_from: str | None, overwrite: bool) -> Path | None:
    """The checkpoint to go on from, or None to start at the beginning; refuses to lose what the output folder holds.

    ``resume_from`` is a checkpoint's folder, "last" for the newest in ``output_dir``, or None.
    """
    if resume_from is None:
        if output_dir is not None:
            check_output_dir(Path(output_dir), overwrite)
        return None
    if resume_from != "last":
        checkpoint = Path(resume_from).resolve()  # its parent is the run's folder, also where it is named '.'
        if output_dir is not None and Path(output_dir).resolve() != checkpoint.parent:
            check_output_dir(Path(output_dir), overwrite=False)
        check_whole(checkpoint)
        return checkpoint
    if output_dir is None:
        raise ValueError("resume_from_checkpoint is 'last' but there is no output_dir to look in")
    newest = newest_checkpoint(Path(output_dir))
    if newest is None and (Path(output_dir) / WEIGHTS_NAME).exists():
        raise ValueError(f"{output_dir} holds a model but no checkpoint to go on from; name another --output-dir")
    return newest


def _restore(state: dict[str, Any], optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler) -> None:
    settings = optimizer.state_dict()["param_groups"]  # of this run, whose settings were found the same
    optimizer.load_state_dict({"state": state["optimizer"]["state"], "param_groups": settings})
    num_moments = len(optimizer.state)  # none where a scaler has skipped every step so far
    if num_moments != sum(len(group["params"]) for group in settings) and (num_moments or not state["scaler"]):
        raise ValueError(f"optimiser moments for {num_moments} of its weights")
    for weight, moments in optimizer.state.items():  # fused AdamW would read beyond moments of other shapes
        shapes = {"step": torch.Size(), "exp_avg": weight.shape, "exp_avg_sq": weight.shape}
        if {name: moment.shape for name, moment in moments.items()} != shapes:
            raise ValueError(f"optimiser moments of another shape than {list(weight.shape)}")
        if not (moments["step"] > 0 and all(moment.dtype == torch.float32 for moment in moments.values())):
            raise ValueError("optimiser moments that no step has made")
    if state["scaler"] and scaler.is_enabled():
        scaler.load_state_dict(state["scaler"])


def _plain(rule: dict[str, Any]) -> str:
    """What the numbers mean, however they are drawn, and whether 255, which is no class, is ignored or refused."""
    ignored = None if rule.get("ignore_index") == 255 else rule.get("ignore_index")
    return json.dumps({**rule, "ignore_index": ignored, "palette": None}, sort_keys=True, default=str)


def _bring_along(checkpoint: Path, folder: Path, progress: Progress) -> None:
    """Copy what a run in another folder needs to be gone on with: this checkpoint and the best."""
    copy_checkpoint(checkpoint, folder, progress.step)
    best = progress.best_step
    if best in (None, progress.step):
        return
    try:
        copy_checkpoint(checkpoint.parent / f"checkpoint-{best}", folder, best)
    except (ValueError, OSError) as error:
        logger.warning("the best checkpoint so far stays behind: %s", error)
        progress.best_step, progress.best_mean_iou = None, -1.0


def _check_that_nothing_it_is_made_from_is_lost(config: TrainConfig) -> None:
    folder = Path(config.output_dir or ".").resolve()
    for name in ("checkpoint", "dataset", "label_names"):
        parts = Path(getattr(config, name) or "/").parts
        source = Path(*takewhile(lambda part: not glob.has_magic(part), parts))  # of a glob, the folder
        if config.output_dir and source.exists() and source.resolve().is_relative_to(folder):
            raise ValueError(f"{name} {source} lies in the output folder, which is emptied; name another --output-dir")
