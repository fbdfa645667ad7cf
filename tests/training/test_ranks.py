"""Several processes train and evaluate as one: the same losses, the same scores, one writer."""

from __future__ import annotations

import json
import os
import socket
import subprocess
from pathlib import Path
from typing import Any

import programs
import pytest
import torch
from programs import ROOT
from safetensors.torch import load_file

from data.order import NO_ROW, StepSampler
from segformer import Segformer
from segformer.detail import DetailedConfusionMatrix
from segformer.training.ranks import ALONE, Ranks, distribute, join_ranks, leave_ranks, take_writers_buffers
from train import (
    TrainConfig,
    build_model,
    build_optimizer,
    build_samples,
    collate,
    configure,
    evaluate,
    train,
    train_step,
)

STEPS = 20


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def _losses_and_norms(config: TrainConfig, ranks: Ranks, frozen: bool) -> list[float]:
    """Losses and gradient norms of some steps, with BatchNorm in evaluation mode if ``frozen``."""
    model, processor = build_model(config, config.checkpoint)
    model.train(not frozen)
    samples, _ = build_samples(config, processor)
    trained = distribute(model, ranks, torch.device("cpu"))
    optimizer, scaler = build_optimizer(model, config), torch.amp.GradScaler("cpu", enabled=False)
    rows_per_step = config.per_device_train_batch_size * ranks.count
    losses = []
    for places in StepSampler(len(samples), rows_per_step, 42, 1, STEPS, ranks.rank, ranks.count):
        batch = collate([samples[place] for place in places])
        losses += map(float, train_step(trained, optimizer, scaler, batch, config))
    return losses


def _details_of(ranks: Ranks) -> list[Any]:
    """What is counted along borders and by size when each rank has seen its share of some maps."""
    maps = torch.randint(3, (2, 4, 30, 40), generator=torch.Generator().manual_seed(0))
    matrix = DetailedConfusionMatrix(3)
    matrix.update(*maps[:, ranks.rank :: ranks.count])
    matrix.all_reduce()
    counts: list[Any] = matrix.details.tolist()
    return counts


def _as_rank(settings: dict[str, Any], frozen: bool, folder: str) -> None:
    config = configure("guide", **settings)
    ranks, device = join_ranks(torch.device("cpu"))
    losses = _losses_and_norms(config, ranks, frozen)
    model, processor = build_model(config, config.checkpoint)
    if not ranks.is_writer:
        model.decoder.norm.running_mean.add_(ranks.rank)  # as if this rank had seen other batches
    take_writers_buffers(model, ranks)
    results = evaluate(model.eval(), build_samples(config, processor)[1], config, device, ranks)
    (Path(folder) / f"{ranks.rank}.json").write_text(
        json.dumps({"losses": losses, "mean_iou": results["eval_mean_iou"], "details": _details_of(ranks)})
    )
    ranks.wait()
    leave_ranks()


@pytest.fixture
def settings(small_shards: Path, small_checkpoint: Path) -> dict[str, Any]:
    """Settings of a run of a few seconds on the CPU, without jitter, whose draws are no part of what is compared."""
    return {
        "dataset": str(small_shards),
        "split": "train[:8]",  # with unequal numbers of unlabelled pixels
        "drop_path_rate": 0.0,
        "classifier_dropout": 0.0,
        "eval_split": "validation",
        "checkpoint": str(small_checkpoint),
        "device": "cpu",
        "learning_rate": 1e-4,
        "per_device_train_batch_size": 2,
    }


@pytest.mark.parametrize(
    ("split", "frozen", "changes"),
    [
        ("train[:8]", False, {}),
        ("train[:9]", True, {}),  # where an epoch's rows do not go round, a photo without labels fills in
        ("train[:8]", False, {"loss_mean": "all", "dataloader_drop_last": True}),
        ("train[:8]", False, {"dice_weight": 1.0}),
    ],
)
def test_two_ranks_of_one_image_train_and_score_like_one_of_two(
    split: str, frozen: bool, changes: dict[str, Any], settings: dict[str, Any], tmp_path: Path
) -> None:
    settings |= {"split": split, **changes}
    alone = configure("guide", **settings)
    model, processor = build_model(alone, alone.checkpoint)
    score = evaluate(model.eval(), build_samples(alone, processor)[1], alone, torch.device("cpu"))["eval_mean_iou"]
    expected = _losses_and_norms(alone, Ranks(), frozen)
    shared = [{**settings, "per_device_train_batch_size": 1}, frozen, str(tmp_path)]
    words = ["-c", "import json, sys; from test_ranks import _as_rank; _as_rank(*json.loads(sys.argv[1]))"]
    meeting = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port()), "OMP_NUM_THREADS": "1"}
    paths = {"PYTHONPATH": os.pathsep.join(map(str, [ROOT, ROOT / "tests", ROOT / "tests/training"]))}
    running = [
        programs.start(*words, json.dumps(shared), environment={**os.environ, **meeting, **paths, **place})
        for place in ({"RANK": "0", "LOCAL_RANK": "0"}, {"RANK": "1", "LOCAL_RANK": "1"})
    ]
    for process in running:
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors
    for rank in range(2):
        seen = json.loads((tmp_path / f"{rank}.json").read_text())
        assert seen["losses"] == pytest.approx(expected, rel=1e-4)
        assert (seen["mean_iou"], seen["details"]) == (score, _details_of(ALONE))


def test_ranks_are_dealt_every_row_once_and_equally_many_places() -> None:
    for num_rows, rows_per_step in ((10, 4), (9, 4), (7, 6)):
        dealt = [list(StepSampler(num_rows, rows_per_step, 1, 1, 3, rank, 3)) for rank in range(3)]
        whole = list(StepSampler(num_rows, rows_per_step, 1, 1, 3))
        for step in range(3):
            parts = [part[step] for part in dealt]
            assert len({len(part) for part in parts}) == 1
            real = [place for part in parts for place in part if place[1] != NO_ROW]
            assert sorted(real) == sorted(whole[step])


def test_without_short_steps_no_rank_is_ever_dealt_a_photo_that_fills_in() -> None:
    for num_rows, rows_per_step in ((10, 3), (11, 6), (7, 6)):
        dealt = [list(StepSampler(num_rows, rows_per_step, 1, 1, 4, rank, 3, drop_last=True)) for rank in range(3)]
        for step, whole in enumerate(StepSampler(num_rows, rows_per_step, 1, 1, 4, drop_last=True)):
            parts = [part[step] for part in dealt]
            assert {len(part) for part in parts} == {rows_per_step // 3}
            assert sorted(place for part in parts for place in part) == sorted(whole)


def _torchrun(settings: dict[str, Any], folder: Path) -> subprocess.CompletedProcess[str]:
    flags = [part for name, value in settings.items() for part in ("--" + name.replace("_", "-"), str(value))]
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node", "2"]
    launcher += ["--master-addr", "127.0.0.1", "--master-port", str(_free_port())]
    words = [*launcher, "train.py", "--recipe", "guide", *flags, "--output-dir", str(folder)]
    return programs.run(*words, environment={**os.environ, "OMP_NUM_THREADS": "1"})


def test_torchrun_writes_one_run_that_one_process_resumes(settings: dict[str, Any], tmp_path: Path) -> None:
    settings |= {"eval_steps": 3, "save_steps": 3, "per_device_train_batch_size": 1, "max_steps": 3}
    answer = _torchrun(settings, tmp_path / "run")
    assert answer.returncode == 0, answer.stderr
    log = [json.loads(line) for line in (tmp_path / "run/log.jsonl").read_text().splitlines()]
    assert [entry["step"] for entry in log if "loss" in entry] == [1, 2, 3]
    speed = next(entry for entry in log if "train_runtime" in entry)
    assert speed["train_samples_per_second_per_device"] == pytest.approx(speed["train_samples_per_second"] / 2)
    assert Segformer.from_pretrained(tmp_path / "run").config.num_labels == 150
    resumed = train(
        configure(
            "guide",
            **{**settings, "per_device_train_batch_size": 2, "max_steps": 3},
            output_dir=str(tmp_path / "run"),
            resume_from_checkpoint="last",
        )
    )
    before, after = load_file(tmp_path / "run/checkpoint-3/model.safetensors"), load_file(resumed / "model.safetensors")
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_resuming_with_other_rows_in_a_step_names_both_numbers(settings: dict[str, Any], tmp_path: Path) -> None:
    settings |= {"max_steps": 2, "eval_steps": 2, "save_steps": 2, "output_dir": str(tmp_path / "run")}
    train(configure("guide", **settings))
    with pytest.raises(ValueError, match=r"with 2 rows a step .* this run asks for 3"):
        train(configure("guide", **{**settings, "per_device_train_batch_size": 3, "resume_from_checkpoint": "last"}))
