"""Runs of train.py in a folder that does not outlive them, and what they leave: losses, scores, times, weights."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, NamedTuple

import torch

from train import TrainConfig, train


class Outcome(NamedTuple):
    """What came of a run."""

    losses: list[float]  # of every entry of its log
    results: dict[str, Any]  # of its last evaluation
    closing: dict[str, Any]  # what all of its steps took
    weights: bytes

    @property
    def mean_iou(self) -> float:
        value: float = self.results["eval_mean_iou"]
        return value


def train_once(config: TrainConfig, num_threads: int | None = None) -> Outcome:
    """Train with these settings, on so many threads, and keep nothing."""
    with tempfile.TemporaryDirectory() as folder, _threads(num_threads):
        torch.use_deterministic_algorithms(False)  # until a run asks for them
        output = train(replace(config, output_dir=f"{folder}/run"))
        log = [json.loads(line) for line in (output / "log.jsonl").read_text(encoding="utf-8").splitlines()]
        results = json.loads((output / "eval_results.json").read_text(encoding="utf-8"))
        closing = next((entry for entry in log if "train_runtime" in entry), {})
        losses = [entry["loss"] for entry in log if "loss" in entry]
        return Outcome(losses, results, closing, (output / "model.safetensors").read_bytes())


def of_steps(config: TrainConfig, steps: int, **settings: Any) -> TrainConfig:
    """The same run with so many steps, every loss logged, evaluated and saved in the end alone."""
    ends: dict[str, Any] = {"max_steps": steps, "eval_steps": steps, "save_steps": steps, "logging_steps": 1}
    return replace(config, **ends, **settings)


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    """So many threads of torch in the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
