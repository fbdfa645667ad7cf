"""The history of a run: its plan, where it is, its losses and scores, its log, its line of progress.

``log.jsonl`` has one JSON object a line, with the keys of Trainer's log.
"""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from segformer.console import counted
from segformer.files import write_atomically
from segformer.machine import peak_memory_mib
from segformer.training.event_files import EventFiles
from segformer.training.ranks import ALONE, Ranks
from segformer.training.recipes import TrainConfig

LOG_NAME = "log.jsonl"
_WIDTH = 80
_BAR_WIDTH = 38  # of "100% 160000/160000 [12:34:56<12:34:56], "
_FORECAST_SECONDS = 5.0  # of training, before it is said how long the rest will take
_SECONDS_BETWEEN_LINES = 60.0


@dataclass(frozen=True)
class Plan:
    """The steps of a run: how many there are, how they go over its rows, and after which it is evaluated and saved.

    A step may span ranks and passes. With ``drop_last`` the last step of an epoch is left out where it would have fewer
    rows than the others. ``evaluates`` and ``saves`` are ("steps", so many) or ("epoch", any number); the ``minutes``
    that it may take, where they are limited, make the steps fewer. Raises ValueError where there would be no step.
    """

    num_rows: int
    rows_per_step: int
    total_steps: int
    drop_last: bool = False
    evaluates: tuple[str, int] = ("steps", 1)
    saves: tuple[str, int] = ("steps", 1)
    minutes: float | None = None

    @classmethod
    def of(cls, config: TrainConfig, num_rows: int, num_ranks: int = 1) -> Plan:
        """What the settings ask for."""
        rows_per_step = config.per_device_train_batch_size * config.gradient_accumulation_steps * num_ranks
        plan = cls(
            num_rows,
            rows_per_step,
            max(0, config.max_steps),
            config.dataloader_drop_last and not config.eval_only,  # which takes no steps
            (config.eval_strategy, config.eval_steps),
            (config.save_strategy, config.save_steps),
            config.max_train_minutes,
        )
        if not plan.total_steps:
            plan = plan.ending_at(math.ceil(plan.steps_per_epoch * config.num_train_epochs))
        if config.early_stopping_patience and not any(map(plan.is_evaluated, range(1, plan.total_steps))):
            raise ValueError(
                f"early_stopping_patience is {config.early_stopping_patience}, but the first of the evaluations comes "
                f"after step {plan.total_steps}, the last; lower --eval-steps"
            )
        return plan

    def ending_at(self, step: int) -> Plan:
        """The same with another end."""
        return replace(self, total_steps=step)

    def __post_init__(self) -> None:
        if self.drop_last and not self.steps_per_epoch:
            rows = counted(self.num_rows, "row")
            raise ValueError(
                f"{rows} to train on {'makes' if self.num_rows == 1 else 'make'} no step of {self.rows_per_step}, and "
                "dataloader_drop_last leaves out smaller ones; lower --per-device-train-batch-size or accumulation"
            )

    @property
    def steps_per_epoch(self) -> int:
        return self.num_rows // self.rows_per_step if self.drop_last else math.ceil(self.num_rows / self.rows_per_step)

    def epoch(self, step: int) -> float:
        """How often the rows have been gone over after a step."""
        return step / self.steps_per_epoch

    def is_evaluated(self, step: int) -> bool:
        """Whether the model is evaluated after a step, as it is after the last."""
        return self._is_due(step, *self.evaluates)

    def is_saved(self, step: int) -> bool:
        """Whether a checkpoint is saved after a step, as it is after the last."""
        return self._is_due(step, *self.saves)

    def _is_due(self, step: int, strategy: str, every: int) -> bool:
        return step == self.total_steps or step % (self.steps_per_epoch if strategy == "epoch" else every) == 0

    def num_images(self, steps: Sequence[int]) -> int:
        """How many images these steps see, counted from 1; the last step of an epoch may have fewer than others."""
        left = (self.num_rows - (step - 1) % self.steps_per_epoch * self.rows_per_step for step in steps)
        return sum(min(self.rows_per_step, rows) for rows in left)


@dataclass
class Progress:
    """Where a run is, the last step that was evaluated, and the best evaluated step that was also saved.

    Beside them the highest score, saved or not, and the evaluations since; and where time is limited, the seconds that
    training took and the last step.
    """

    step: int = 0
    evaluated_step: int | None = None
    best_step: int | None = None
    best_mean_iou: float = -1.0
    highest_mean_iou: float = -1.0
    evaluations_since: int = 0
    seconds: float = 0.0
    total_steps: int | None = None

    def __post_init__(self) -> None:
        for name in ("step", "evaluated_step", "best_step", "evaluations_since", "total_steps"):
            value, may_be_none = getattr(self, name), name not in ("step", "evaluations_since")
            if not (value is None and may_be_none) and (type(value) is not int or not 0 <= value < 2**53):
                raise ValueError(f"{name} is {value!r}; it must be the number of a step")
        for name in ("best_mean_iou", "highest_mean_iou", "seconds"):
            if not isinstance(getattr(self, name), float):
                raise ValueError(f"{name} is {getattr(self, name)!r}; it must be a number")


class History:
    """What has become of a run so far.

    ``unread`` are loss and gradient norm of the steps since the last entry of the log, still on the device; ``results``
    is the last evaluation. ``plan`` is what was planned, until patience or a limit of time moves its end. Every rank
    counts along, and the one for which ``open`` was called keeps the log.
    """

    def __init__(self, plan: Plan, device: torch.device, ranks: Ranks = ALONE) -> None:
        self.plan = self.planned = plan
        self.progress = Progress()
        self.unread: list[tuple[Tensor, Tensor]] = []
        self.results: dict[str, Any] = {}
        self.confusion: NDArray[np.int64] | None = None  # of the same evaluation
        self._device, self._ranks = device, ranks
        self.log: Log | None = None
        self._events: EventFiles | None = None
        self._bar = tqdm(disable=True)
        self._is_forecast = False
        self._told_at = -math.inf

    @property
    def step(self) -> int:
        return self.progress.step

    @property
    def is_evaluated(self) -> bool:
        """Whether the present step was evaluated."""
        return self.progress.evaluated_step == self.step

    @property
    def seconds(self) -> float:
        """The time that training took so far, before this run was gone on with included."""
        return self.progress.seconds + self._clock.seconds

    def state(self) -> dict[str, Any]:
        """What ``restore`` needs of it, the same in every repetition of a run unless its time is limited."""
        seconds = 0.0 if self.plan.minutes is None else self.seconds
        return {"progress": asdict(replace(self.progress, seconds=seconds)), "unlogged": self.read_unread()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Be where another history was when it told its ``state``."""
        self.progress = Progress(**state["progress"])
        self.unread = [(torch.tensor(float(loss)), torch.tensor(float(norm))) for loss, norm in state["unlogged"]]
        if self.progress.total_steps is not None:
            self._end_at(self.progress.total_steps)

    def _fit_into_time(self) -> None:
        """Move the end to the step at which, at the speed so far, the minutes are over; the writer's clock counts."""
        if self.plan.minutes is None:
            return
        seconds, limit = self.seconds, 60 * self.plan.minutes
        if self.step and seconds >= min(_FORECAST_SECONDS, limit):
            self.progress.total_steps = self.step + int(max(0.0, limit - seconds) / seconds * self.step)
        self.progress.total_steps = self._ranks.share(self.progress.total_steps)
        if self.progress.total_steps is not None:
            self._end_at(self.progress.total_steps)

    def forget_scores(self) -> None:
        """Let the best be found anew."""
        self.progress.best_step, self.progress.best_mean_iou = None, -1.0
        self.progress.highest_mean_iou, self.progress.evaluations_since = -1.0, 0

    def is_stale(self, patience: int) -> bool:
        """Whether so many evaluations in a row brought no better mean IoU; a patience of 0 never ends."""
        return 0 < patience <= self.progress.evaluations_since

    def end_here(self) -> None:
        """Let the present step be the last."""
        if self.step < self.plan.total_steps and self.log:
            highest, since = self.progress.highest_mean_iou, self.progress.evaluations_since
            better = f"better mean IoU than {highest:.4f}" if highest >= 0 else "pixel that could be scored"
            tqdm.write(f"stopping early: no {better} in {since} evaluations")
        self._end_at(self.step)

    def _end_at(self, step: int) -> None:
        self.plan = self.planned.ending_at(min(step, self.planned.total_steps))
        self._bar.total = self.plan.total_steps

    def open(self, output_dir: Path, report_to: str = "none") -> None:
        """Begin or go on with the log in a folder."""
        self.log = Log(output_dir, self.step, self.is_evaluated)
        self._events = EventFiles(output_dir, self.step) if report_to == "tensorboard" else None

    def start(self, loader: _Waiting) -> None:
        """Take the time from now on, and how much of it goes by waiting for the batches of ``loader``."""
        self._clock = Clock(loader, self.step)
        self._fit_into_time()

    @contextmanager
    def progress_line(self) -> Iterator[None]:
        """While this lasts, a line tells how far the run is: on a terminal at once, elsewhere once a minute."""
        total = self.plan.total_steps
        with tqdm(
            total=total,
            initial=self.step,
            bar_format="{percentage:3.0f}% {n_fmt}/{total_fmt} [{elapsed}<{remaining}]{postfix}",
            disable=None if self.log else True,
        ) as self._bar:
            yield

    def add_step(self, loss: Tensor, grad_norm: Tensor) -> None:
        """Remember what a step measured, without waiting for it; where time is limited, see how far it reaches."""
        self.unread.append((loss, grad_norm))
        self._bar.update()
        self._fit_into_time()

    def read_unread(self) -> list[tuple[float, float]]:
        """Loss and gradient norm of every step since the last entry; reading them waits for the device."""
        return [(float(loss), float(norm)) for loss, norm in self.unread]

    def log_steps(
        self, learning_rate: float, rows_of: Callable[[int], Sequence[str]], may_overflow: bool = False
    ) -> None:
        """Log the mean loss since the last entry.

        Raises FloatingPointError, with the names of the ``rows_of`` the step, for one that is not finite. Gradients
        ``may_overflow`` with a scaler, which then skips the step and lowers its scale.
        """
        losses, norms = zip(*self.read_unread(), strict=True)
        self.unread = []
        for step, (loss, norm) in enumerate(zip(losses, norms, strict=True), start=self.step - len(losses) + 1):
            if not math.isfinite(loss) or not (math.isfinite(norm) or may_overflow):
                raise FloatingPointError(
                    f"loss {loss:g}, gradient norm {norm:g} at step {step} (learning rate {learning_rate:g}, rows "
                    f"{', '.join(rows_of(step))}); lower --learning-rate, or look at these rows"
                )
        loss, grad_norm = sum(losses) / len(losses), norms[-1]
        self._add({"loss": loss, "grad_norm": grad_norm, "learning_rate": learning_rate})
        if self.log:
            self._tell(loss)

    def _tell(self, loss: float) -> None:
        """Show loss, score and speed; what a line has no room for is left out from its end."""
        clock, done = self._clock, self.step - self._clock.first_step
        seconds_left = clock.seconds / done * (self.plan.total_steps - self.step)
        told = [f"loss {loss:.3f}"]
        if "eval_mean_iou" in self.results:
            told.append(f"mean IoU {self.results['eval_mean_iou']:.3f}")
        told.append(f"{done * self.plan.rows_per_step / clock.seconds:.1f} images/s")
        if clock.wait_share >= 0.05:
            told.append(f"{clock.wait_share:.0%} waiting for data")
        told.append(f"{peak_memory_mib(self._device):.0f} MiB")
        self._bar.set_postfix_str(fitted(told, min(_WIDTH, shutil.get_terminal_size().columns) - _BAR_WIDTH))
        if not self._is_forecast and clock.seconds > _FORECAST_SECONDS and seconds_left > _FORECAST_SECONDS:
            self._is_forecast = True
            ends = datetime.now() + timedelta(seconds=seconds_left)
            tqdm.write(f"about {duration(seconds_left)} left, until {ends:%H:%M}; {told[-1]} of memory at most so far")
        if self._bar.disable and clock.seconds - self._told_at >= _SECONDS_BETWEEN_LINES:  # piped into a file
            self._told_at = clock.seconds
            line = [f"step {self.step:>6} of {self.plan.total_steps}", *told[:-1], f"{duration(seconds_left)} left"]
            tqdm.write(fitted(line, _WIDTH))

    def add_evaluation(self, results: dict[str, Any], log: bool = True) -> None:
        """Take the scores of the present step, say them and, unless they were logged before, ``log`` them."""
        self.confusion = results.pop("eval_confusion")
        self.results, self.progress.evaluated_step = results, self.step
        if log:
            self._add(results)
            self._note_highest(results["eval_mean_iou"])
        if self.log:
            names = {"eval_loss": "eval loss", "eval_mean_iou": "mean IoU", "eval_overall_accuracy": "pixel accuracy"}
            scores = [f"{name} {results[key]:.4f}" for key, name in names.items()]
            speed = f"{results['eval_samples_per_second']:.1f} images/s"
            tqdm.write(fitted([f"step {self.step:>6}: {scores[0]}", *scores[1:], speed], _WIDTH))

    def _note_highest(self, score: float) -> None:
        if score > self.progress.highest_mean_iou:
            self.progress.highest_mean_iou, self.progress.evaluations_since = float(score), 0
        else:
            self.progress.evaluations_since += 1

    def log_closing(self, num_devices: int) -> None:
        """Log what all steps took, with evaluations and all checkpoints but the last, under Trainer's keys and more."""
        steps, seconds = range(self._clock.first_step + 1, self.step + 1), self._clock.seconds
        images_per_second = self.plan.num_images(steps) / seconds
        self._add(
            {
                "train_runtime": seconds,
                "train_samples_per_second": images_per_second,
                "train_samples_per_second_per_device": images_per_second / num_devices,
                "train_steps_per_second": len(steps) / seconds,
                "data_wait_share": self._clock.wait_share,
                "peak_memory_mib": peak_memory_mib(self._device),
            }
        )

    def note_best(self) -> None:
        """Remember the present step, which is being saved, if it was evaluated and none before it was better."""
        score = self.results.get("eval_mean_iou", math.nan)
        if self.step and self.is_evaluated and score > self.progress.best_mean_iou:
            self.progress.best_step, self.progress.best_mean_iou = self.step, score

    def go_back_to_best(self) -> None:
        """Be at the best step once more; its weights are to be evaluated again."""
        self.progress.step, self.results = self.progress.best_step or 0, {}

    def _add(self, entries: dict[str, Any]) -> None:
        if self.log:
            self.log.add(self.step, self.plan.epoch(self.step), entries)
        if self._events:
            self._events.add(self.step, entries)


class Log:
    """A run's log, one JSON object a line.

    What lies beyond ``last_step`` goes, and unless ``last_step`` was ``evaluated`` an evaluation of it, too, for there
    will be another.
    """

    def __init__(self, folder: Path, last_step: int, evaluated: bool = True) -> None:
        self.path = folder / LOG_NAME
        text = self.path.read_bytes().decode("utf-8", "replace") if self.path.exists() else ""
        lines = text.splitlines()
        kept = []
        for number, line in enumerate(lines, start=1):
            try:
                entry = json.loads(line)
                step = float(entry["step"])
            except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
                if number == len(lines):  # a run that was killed while it wrote leaves half a line
                    break
                raise ValueError(f"line {number} of {self.path} is no log entry; mend or remove it") from error
            if step < last_step or (step == last_step and (evaluated or "eval_loss" not in entry)):
                kept.append(line)
        write_atomically(self.path, "".join(line + "\n" for line in kept))

    def add(self, step: int, epoch: float, entries: dict[str, Any]) -> None:
        """Append one entry. Raises OSError, naming the file, where there is no room for it."""
        line = json.dumps({"step": step, "epoch": round(epoch, 4), **without_nan(entries)})
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(line + "\n")
        except OSError as error:
            raise OSError(f"cannot write to {self.path} ({error.strerror}); mend that, then resume") from error


def without_nan(entries: dict[str, Any]) -> dict[str, Any]:
    """The entries as strict JSON can hold them: null for what is not a number."""

    def plain(value: Any) -> Any:
        if isinstance(value, list):
            return [plain(each) for each in value]
        return None if isinstance(value, float) and not math.isfinite(value) else value

    return {name: plain(value) for name, value in entries.items()}


class _Waiting(Protocol):
    waited_seconds: float


class Clock:
    """The time of a run from its ``first_step`` on, and how much of it went by waiting for the loader's batches."""

    def __init__(self, loader: _Waiting, first_step: int) -> None:
        self.first_step = first_step
        self._loader = loader
        self._started = time.perf_counter()

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self._started

    @property
    def wait_share(self) -> float:
        """The share of the time that was spent waiting for data, 0 to 1."""
        return self._loader.waited_seconds / max(self.seconds, 1e-9)


def fitted(parts: Sequence[str], width: int) -> str:
    """As many of the parts as fit in a width, the first in any case."""
    kept = parts[0]
    for part in parts[1:]:
        if len(kept) + 2 + len(part) > width:
            break
        kept += f", {part}"
    return kept


def duration(seconds: float) -> str:
    """A time as people say it."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min"
