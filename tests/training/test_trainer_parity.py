"""The same training as transformers' Trainer, step by step, from the same checkpoint on the same rows."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from libraries import transformers
from torch.utils.data import Dataset

from data import SceneParse150
from segformer import ImageProcessor
from train import configure, train

STEPS = 20


class _Rows(Dataset[dict[str, torch.Tensor]]):
    def __init__(self, shards: Path, processor: ImageProcessor) -> None:
        self.rows = SceneParse150(shards, "train")
        self.processor = processor

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, row: int) -> dict[str, Any]:
        images, labels = self.processor(*self.rows[row])
        return {"pixel_values": images, "labels": labels}


def _trainer_history(shards: Path, checkpoint: Path, folder: Path) -> list[dict[str, float]]:
    model = transformers.SegformerForSemanticSegmentation.from_pretrained(
        checkpoint, drop_path_rate=0.0, classifier_dropout_prob=0.0
    )
    arguments = transformers.TrainingArguments(
        output_dir=str(folder),
        learning_rate=6e-5,
        per_device_train_batch_size=2,
        max_steps=STEPS,
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        remove_unused_columns=False,
        use_cpu=True,
        seed=42,
    )
    trainer = transformers.Trainer(
        model, arguments, train_dataset=_Rows(shards, ImageProcessor.from_pretrained(checkpoint))
    )
    trainer.train()
    return [entry for entry in trainer.state.log_history if "loss" in entry]


@pytest.mark.slow
@pytest.mark.real_data
def test_loss_gradient_norm_and_learning_rate_follow_trainer(
    real_shards: Path, ade_checkpoint: Path, tmp_path: Path
) -> None:
    config = configure(
        "guide",
        dataset=str(real_shards),
        split="train",
        eval_split="validation[:1]",
        checkpoint=str(ade_checkpoint),
        max_steps=STEPS,
        eval_steps=STEPS,
        save_steps=STEPS,
        augmentation="none",
        drop_path_rate=0.0,
        classifier_dropout=0.0,
        device="cpu",
        output_dir=str(tmp_path / "ours"),
    )
    log = (train(config) / "log.jsonl").read_text(encoding="utf-8").splitlines()
    ours = [entry for entry in map(json.loads, log) if "loss" in entry]
    theirs = _trainer_history(real_shards, ade_checkpoint, tmp_path / "theirs")
    assert len(ours) == len(theirs) == STEPS
    for our, their in zip(ours, theirs, strict=True):
        assert our["learning_rate"] == their["learning_rate"]
        # Trainer rounds its log to a few digits, and float32 sums in another order drift apart over the steps.
        assert math.isclose(our["loss"], their["loss"], rel_tol=1e-3)
        assert math.isclose(our["grad_norm"], float(their["grad_norm"]), rel_tol=1e-3)
