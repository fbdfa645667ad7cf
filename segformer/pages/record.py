"""What a run left in its folder, as its report tells it: description, history, scores, samples, and the facts in them.

Whatever is missing, half written or of another kind than it should be is left out; nothing here stops a run.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segformer.console import counted
from segformer.detail import SIZES
from segformer.metrics import Scores
from segformer.pages.curves import NO_NUMBER, TIMES, as_number
from segformer.pages.samples import ReportSample, load_samples
from segformer.provenance import told_of
from segformer.training.checkpoints import find_checkpoints
from segformer.training.description import LAST_STEP, RESULTS_NAME, RunDescription, read_confusion, read_object
from segformer.training.history import LOG_NAME

_MOST_CLASSES = 4096


@dataclass(frozen=True)
class RunRecord:
    """All that the report of a run is made from.

    ``history`` holds the log's entries by ascending step. ``results`` is the evaluation that counts; its lists have one
    entry for each of ``class_names``, and what is no number in them is None or NaN.
    """

    title: str
    history: Sequence[Mapping[str, Any]] = ()
    results: Mapping[str, Any] = field(default_factory=dict)
    class_names: Sequence[str] = ()
    samples: Sequence[ReportSample] = ()
    about: RunDescription = field(default_factory=RunDescription)
    confusion: NDArray[np.int64] | None = None  # of the results, by label and prediction

    @classmethod
    def load(cls, output_dir: Path) -> RunRecord:
        """What the files in a run's folder say."""
        about, history = RunDescription.load(output_dir), read_history(output_dir / LOG_NAME)
        results = final_results(output_dir, history)
        names = names_of_classes(output_dir, about, len(numbers_of(results, "eval_per_category_iou")))
        samples = load_samples(output_dir, last_step=history[-1]["step"] if history else None)
        confusion = confusion_of(output_dir, results)
        return cls(output_dir.resolve().name, history, results, names[:_MOST_CLASSES], samples, about, confusion)

    @property
    def is_evaluation(self) -> bool:
        """Whether nothing was trained: the run only scored a checkpoint."""
        return bool(self.about.settings.get("eval_only"))

    @property
    def last_step(self) -> int:
        return self.history[-1]["step"] if self.history else 0

    @property
    def evaluations(self) -> list[Mapping[str, Any]]:
        """The entries of the history that are evaluations."""
        return [entry for entry in self.history if "eval_mean_iou" in entry]

    @property
    def closing(self) -> Mapping[str, Any]:
        """The entry that a run ends with, which holds its times; empty while it goes on."""
        return self.history[-1] if _is_finished(self.history) else {}


def read_history(path: Path) -> list[dict[str, Any]]:
    """The entries of a log by step; a line that is no entry, such as the half one of a killed run, is passed over."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    except OSError:
        return []
    entries = []
    for line in lines:
        try:
            entry = json.loads(line)
            entries.append({**entry, "step": int(entry["step"])})
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
            continue
    return sorted((entry for entry in entries if 0 <= entry["step"] <= LAST_STEP), key=lambda entry: entry["step"])


def final_results(output_dir: Path, history: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The evaluation that counts: that of the weights in the folder once the run has ended, else the last one logged.

    A run that went on from an earlier step lies beside the results of the attempt before it, until it ends as well.
    """
    logged = [entry for entry in history if "eval_mean_iou" in entry]
    saved = read_object(output_dir / RESULTS_NAME)
    step = saved.get("step")
    if isinstance(step, int) and (not logged or (_is_finished(history) and step <= history[-1]["step"])):
        return saved
    return dict(logged[-1]) if logged else {}


def confusion_of(output_dir: Path, results: Mapping[str, Any]) -> NDArray[np.int64] | None:
    """The confusion matrix in a run's folder, if it is that of these results and not of an earlier attempt."""
    ious = numbers_of(results, "eval_per_category_iou")
    counts = read_confusion(output_dir, len(ious)) if 0 < len(ious) <= _MOST_CLASSES else None
    if counts is None:
        return None
    as_counted = counts.astype(np.float64)
    scores = Scores(as_counted.diagonal(), as_counted.sum(1), as_counted.sum(0))
    return counts if np.allclose(scores.per_category_iou, ious, atol=1e-6, equal_nan=True) else None


def numbers_of(results: Mapping[str, Any], key: str) -> list[float]:
    """A list of the results as numbers, NaN for what is none; empty if there is no such list."""
    values = results.get(key)
    return [as_number(value) for value in values] if isinstance(values, list) else []


def names_of_classes(output_dir: Path, about: RunDescription, at_least: int) -> list[str]:
    """The names of a run's classes, and numbers for those without one."""
    names = [str(name).strip() for name in about.class_names] or _names_of_config(output_dir)
    return names + [f"class {k}" for k in range(len(names), at_least)]


def _is_finished(history: Sequence[Mapping[str, Any]]) -> bool:
    return bool(history) and "train_runtime" in history[-1]


def _names_of_config(output_dir: Path) -> list[str]:
    """Class names from the model's config.json: that of the folder, or of its last checkpoint."""
    for folder in (output_dir, *reversed(find_checkpoints(output_dir).values())):
        names = read_object(folder / "config.json").get("id2label")
        if isinstance(names, dict) and names and all(key.isdecimal() and len(key) < 9 for key in names):
            by_id = {int(key): str(name).strip() for key, name in names.items()}
            return [by_id.get(k, f"class {k}") for k in range(min(max(by_id) + 1, _MOST_CLASSES))]
    return []


# ------------------------------------------------------------------------------------------------------------- facts


def headline(record: RunRecord) -> dict[str, str]:
    """The few numbers that one looks for first, by what they are; those that are not known are left out."""
    closing, results, total = record.closing, record.results, record.about.total_steps
    going_on = f" of {total:,}" if total and not closing else ""
    steps = f"{record.last_step:,}{going_on}" if record.history and not record.is_evaluation else ""
    numbers = {
        "mean IoU": score_text(as_number(results.get("eval_mean_iou"))),
        "boundary IoU": score_text(as_number(results.get("eval_mean_boundary_iou"))),
        "pixel accuracy": score_text(as_number(results.get("eval_overall_accuracy"))),
        "steps": steps,
        _runtime_name(closing): _duration(as_number(closing.get("train_runtime"))),
        "training images per second": _rate(as_number(closing.get("train_samples_per_second"))),
    }
    return {name: text for name, text in numbers.items() if text not in ("", NO_NUMBER)}


def facts(record: RunRecord) -> dict[str, str]:
    """What the numbers are about: model, data, how it was scored, a better step if there was one, what it took."""
    about, settings = record.about, record.about.settings
    model = [about.model, _parameters(about.parameters) if about.parameters else ""]
    if "checkpoint" in settings:
        model.append(f"from {settings['checkpoint']}" if settings["checkpoint"] else "from scratch")
    images = [(about.train_images, "to train on"), (about.eval_images, "to evaluate on")]
    data = [str(settings.get("dataset", "")), *(f"{counted(count, 'image')} {use}" for count, use in images if count)]
    said = {
        "Recipe": str(settings.get("recipe", "")),
        "Model": ", ".join(part for part in model if part),
        "Data": ", ".join(part for part in data if part),
        "Scores": _protocol(record),
        "By size": sizes_text({size: as_number(record.results.get(f"eval_mean_iou_{size}")) for size in SIZES}),
        "Best": _best(record),
        "Machine": _resources(record.closing),
        **told_of(about.provenance),
    }
    return {name: text for name, text in said.items() if text}


def _parameters(count: int) -> str:
    return counted(count, "parameter") if count < 100_000 else f"{count / 1_000_000:.1f} million parameters"


def _protocol(record: RunRecord) -> str:
    """After which step, at which size, and over how many views of a photo the scores were taken."""
    settings, step = record.about.settings, record.results.get("step")
    side = f" {TIMES} ".join(str(side) for side in reversed(record.about.image_size)) or "what the model sees"
    enlarged = "predictions are enlarged to each label map's own size"
    sized = {"keep": f"fitted into {side}", "crop": f"resized to cover {side}"}.get(record.about.resize_mode)
    window = settings.get("eval_window")
    how = {
        "original": f"photos are {sized}, their shape kept, {enlarged}" if sized else enlarged,
        "keep-ratio": f"photos keep their shape, {enlarged}",
        "window": f"photos are seen at their own size, in windows of {window} pixels",
        "processed": f"labels are {sized or f'resized to {side}'}, so they do not compare with scores at full size",
    }.get(str(settings.get("eval_resolution")), "")
    scales = str(settings.get("eval_scales", "1"))
    means = ["" if scales == "1" else f"scales {scales}", "mirror images" if settings.get("eval_flip") else ""]
    over = " and ".join(part for part in means if part)
    when = f"after step {step:,}" if isinstance(step, int) and not record.is_evaluation else ""
    return "; ".join(part for part in (when, how, f"mean over {over}" if over else "") if part)


def _resources(closing: Mapping[str, Any]) -> str:
    waiting, mib = as_number(closing.get("data_wait_share")), as_number(closing.get("peak_memory_mib"))
    told = [
        f"at most {mib / 1024:.1f} GiB of memory" if math.isfinite(mib) else "",
        f"{percent_text(waiting)} of the time waiting for data" if math.isfinite(waiting) else "",
    ]
    return ", ".join(part for part in told if part)


def _best(record: RunRecord) -> str:
    scored = [(as_number(entry["eval_mean_iou"]), -entry["step"]) for entry in record.evaluations]
    best, step = max((pair for pair in scored if math.isfinite(pair[0])), default=(math.nan, 0))
    if not best > as_number(record.results.get("eval_mean_iou")):
        return ""
    return f"mean IoU {score_text(best)} after step {-step:,}"


def _runtime_name(closing: Mapping[str, Any]) -> str:
    """Only the steps since the run was last started are timed."""
    steps = as_number(closing.get("train_steps_per_second")) * as_number(closing.get("train_runtime"))
    if math.isfinite(steps) and round(steps) < closing["step"]:
        return f"for the last {counted(round(steps), 'step')}"
    return "to train and evaluate"


def _duration(seconds: float) -> str:
    if not math.isfinite(seconds):
        return ""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {seconds:02d} s"


def _rate(images_per_second: float) -> str:
    return f"{images_per_second:,.{0 if images_per_second >= 100 else 1}f}" if math.isfinite(images_per_second) else ""


def score_text(value: float) -> str:
    """A score from 0 to 1 in three digits."""
    return f"{value:.3f}" if math.isfinite(value) else NO_NUMBER


def sizes_text(mean_ious: Mapping[str, float]) -> str:
    """The mean IoU of each of ``SIZES``, with what they mean; empty if there is none."""
    if not any(map(math.isfinite, mean_ious.values())):
        return ""
    small, medium, large = (score_text(mean_ious[size]) for size in SIZES)
    _, from_medium, from_large = (f"{100 * least:.0f}" for least in SIZES.values())
    return (
        f"mean IoU {large} where a class covers {from_large} % of a photo or more, {medium} where it covers "
        f"{from_medium} to {from_large} %, {small} where less"
    )


def percent_text(share: float) -> str:
    """A share from 0 to 1 in percent; what is small is not said to be nothing."""
    if not math.isfinite(share):
        return NO_NUMBER
    return "< 0.1 %" if 0 < share < 0.001 else f"{100 * share:.1f} %"
