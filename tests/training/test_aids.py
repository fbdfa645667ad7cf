"""Aids of training: an averaged model, an early end, a limit of time, frozen stages, blocks that are computed again."""

from __future__ import annotations

import importlib.util
import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import train as training
from segformer import Segformer
from segformer.training import fitting
from segformer.training.averaging import move_average, start_average
from segformer.training.history import History, Plan
from segformer.training.ranks import ALONE
from segformer.training.rates import learning_rate_factors
from segformer.training.resume import read_training_state
from train import configure, train

ALL = {  # every aid at once that changes what is computed, or when it ends
    "ema_decay": 0.9,
    "early_stopping_patience": 50,
    "freeze_encoder": 1,
    "layer_decay": 0.8,
    "gradient_checkpointing": True,
    "max_train_minutes": 60.0,
}


@pytest.fixture
def settings(small_shards: Path, small_checkpoint: Path, tmp_path: Path) -> dict[str, Any]:
    """A run of a moment, and its folder."""
    data = {"dataset": str(small_shards), "split": "train", "eval_split": "validation"}
    length = {"max_steps": 6, "eval_steps": 2, "save_steps": 2, "learning_rate": 1e-3}
    return {**data, **length, "checkpoint": str(small_checkpoint), "device": "cpu", "output_dir": str(tmp_path / "run")}


def run(settings: dict[str, Any], **changes: Any) -> Path:
    return train(configure("guide", **{**settings, **changes}))


def entries(folder: Path, name: str) -> list[tuple[int, float]]:
    """Step and value of every entry of the log that has a name."""
    log = map(json.loads, (folder / "log.jsonl").read_text(encoding="utf-8").splitlines())
    return [(entry["step"], entry[name]) for entry in log if name in entry]


def forget_from(folder: Path, step: int) -> None:
    """Leave a run as if it had been killed before it saved the checkpoint of a step."""
    for path in folder.glob("checkpoint-*"):
        if int(path.name.rpartition("-")[2]) >= step:
            shutil.rmtree(path)
    (folder / "model.safetensors").unlink()


# The averaged model


def test_the_average_is_moved_towards_the_weights_after_every_step(tiny_model: Segformer) -> None:
    average = start_average(tiny_model)
    weight, statistic = "decoder.classifier.weight", "decoder.norm.running_mean"
    expected = {name: tiny_model.state_dict()[name].clone() for name in (weight, statistic)}
    for step, decay in enumerate((2 / 11, 3 / 12, 0.3), start=1):  # the schedule reaches 0.3 and stays there
        for tensor in tiny_model.state_dict().values():
            tensor.add_(1)
        move_average(average, tiny_model, 0.3, step)
        for name, before in expected.items():
            expected[name] = decay * before + (1 - decay) * tiny_model.state_dict()[name]
    for name, value in expected.items():
        torch.testing.assert_close(average.state_dict()[name], value)
    counted = "decoder.norm.num_batches_tracked"
    assert average.state_dict()[counted] == tiny_model.state_dict()[counted]


def test_the_averaged_model_is_what_is_scored_and_saved(settings: dict[str, Any]) -> None:
    folder = run(settings, ema_decay=0.9)
    saved = load_file(folder / "checkpoint-6/model.safetensors")
    assert all(torch.equal(value, load_file(folder / "model.safetensors")[name]) for name, value in saved.items())
    state = read_training_state(folder / "checkpoint-6")
    average, weights = Segformer.from_pretrained(folder / "checkpoint-6").state_dict(), state["weights"]
    assert average.keys() == weights.keys()
    assert not torch.equal(average["decoder.classifier.weight"], weights["decoder.classifier.weight"])
    again = run(settings, eval_only=True, checkpoint=str(folder), output_dir=None)
    results = [json.loads((each / "eval_results.json").read_text())["eval_loss"] for each in (folder, again)]
    assert results[0] == pytest.approx(results[1], rel=1e-6)
    shutil.rmtree(again)


def test_the_average_changes_nothing_about_how_the_weights_are_trained(settings: dict[str, Any]) -> None:
    plain = run(settings)
    averaged = run(settings, ema_decay=0.5, output_dir=settings["output_dir"] + "-averaged")
    assert entries(plain, "loss") == entries(averaged, "loss")
    weights = read_training_state(averaged / "checkpoint-6")["weights"]
    for name, value in Segformer.from_pretrained(plain).state_dict().items():
        assert torch.equal(weights[name], value), name


def test_the_best_averaged_model_is_left_in_the_end(settings: dict[str, Any]) -> None:
    folder = run(settings, ema_decay=0.9, load_best_model_at_end=True)
    step = max(entries(folder, "eval_mean_iou"), key=lambda entry: entry[1])[0]
    best = load_file(folder / f"checkpoint-{step}/model.safetensors")
    assert all(torch.equal(value, load_file(folder / "model.safetensors")[name]) for name, value in best.items())


# Resume


def test_a_run_with_all_aids_that_is_killed_and_gone_on_with_repeats_the_other_to_the_bit(
    settings: dict[str, Any],
) -> None:
    whole = run(settings, **ALL)
    part = run(settings, **ALL, output_dir=settings["output_dir"] + "-part")
    forget_from(part, 4)
    resumed = train(training.parse_arguments(["--resume-from-checkpoint", str(part)]))
    for name in ("model.safetensors", "checkpoint-6/model.safetensors"):
        assert (resumed / name).read_bytes() == (whole / name).read_bytes()
    states = [read_training_state(each / "checkpoint-6") for each in (whole, resumed)]
    for name, value in states[0]["weights"].items():
        assert torch.equal(states[1]["weights"][name], value)
    for name in ("loss", "grad_norm", "eval_mean_iou"):
        assert entries(resumed, name) == entries(whole, name)


# The early end


def test_a_run_ends_where_no_score_is_better_for_so_long_and_leaves_the_best(
    settings: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    scores = iter((0.1, 0.3, 0.2, 0.25, 0.9))

    def pretended(*inputs: Any) -> dict[str, Any]:
        return evaluate(*inputs) | {"eval_mean_iou": next(scores)}

    evaluate = training.evaluate
    monkeypatch.setattr(training, "evaluate", pretended)
    aids = {"max_steps": 20, "early_stopping_patience": 2, "load_best_model_at_end": True}
    folder = run(settings, **aids)
    assert [step for step, _ in entries(folder, "loss")] == list(range(1, 9))  # 0.2 and 0.25 are no better than 0.3
    assert "stopping early: no better mean IoU than 0.3000 in 2 evaluations" in capsys.readouterr().out
    assert sorted(path.name for path in folder.glob("checkpoint-*")) == ["checkpoint-4", "checkpoint-6", "checkpoint-8"]
    assert (folder / "model.safetensors").read_bytes() == (folder / "checkpoint-4/model.safetensors").read_bytes()
    assert json.loads((folder / "run.json").read_text())["total_steps"] == 8
    monkeypatch.setattr(training, "evaluate", evaluate)
    caplog.set_level("INFO")
    again = train(training.parse_arguments(["--resume-from-checkpoint", str(folder), "--max-steps", "30"]))
    assert len(entries(again, "loss")) == 8  # it is over
    assert "stopped early, after 2 evaluations without a better mean IoU, and takes no further step" in caplog.text
    assert "the learning rate is that of a run of 30 steps" not in caplog.text
    longer = train(
        training.parse_arguments(["--resume-from-checkpoint", str(folder), "--early-stopping-patience", "20"])
    )
    assert len(entries(longer, "loss")) == 20


def test_a_run_that_could_score_nothing_does_not_tell_a_score_where_it_stops(
    settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    evaluate = training.evaluate
    monkeypatch.setattr(training, "evaluate", lambda *inputs: evaluate(*inputs) | {"eval_mean_iou": float("nan")})
    run(settings, max_steps=20, early_stopping_patience=2)
    assert "stopping early: no pixel that could be scored in 2 evaluations" in capsys.readouterr().out


def test_patience_that_no_evaluation_could_try_is_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"the first of the evaluations comes after step 6, the last; lower --eval-s"):
        run(settings, early_stopping_patience=1, eval_steps=6, save_steps=6)


# The limit of time


class Stopwatch:
    """A clock on which every look takes a second."""

    first_step = 0
    wait_share = 0.0

    def __init__(self, *_: Any) -> None:
        self.looks = 0

    @property
    def seconds(self) -> float:
        self.looks += 1
        return float(self.looks)


def test_the_schedule_ends_when_the_time_is_up(settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("segformer.training.history.Clock", Stopwatch)
    folder = run(settings, max_steps=10_000, max_train_minutes=2.0, eval_steps=1000, save_steps=1000)
    steps = [step for step, _ in entries(folder, "loss")]
    assert 10 < steps[-1] < 120
    assert entries(folder, "learning_rate")[-1][1] < 0.2 * settings["learning_rate"]  # nearly through
    assert [step for step, _ in entries(folder, "eval_mean_iou")] == [steps[-1]]
    assert (folder / f"checkpoint-{steps[-1]}").is_dir()
    again = train(training.parse_arguments(["--resume-from-checkpoint", str(folder)]))
    assert len(entries(again, "loss")) == len(steps)  # its time was up
    more = train(training.parse_arguments(["--resume-from-checkpoint", str(folder), "--max-train-minutes", "3"]))
    assert len(entries(more, "loss")) > len(steps) + 5


def test_the_schedule_ends_in_time_where_the_log_has_few_entries(
    settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("segformer.training.history.Clock", Stopwatch)
    lengths = {"max_steps": 10_000, "eval_steps": 1000, "save_steps": 1000, "logging_steps": 1000}
    folder = run(settings, **lengths, max_train_minutes=1.0)
    (step,) = [step for step, _ in entries(folder, "loss")]
    assert 10 < step < 60
    assert entries(folder, "learning_rate")[-1][1] < 0.2 * settings["learning_rate"]


def test_the_end_never_lies_beyond_the_steps_that_were_asked_for() -> None:
    for minutes, total_steps in ((5, 29), (50, 50), (1, 10)):  # of 5, 200 s are left for steps of 10
        history = History(Plan(10, 2, 50, minutes=minutes), torch.device("cpu"))
        history.progress.step, history.progress.seconds = 10, 100.0
        history.start(_Loader())
        assert history.plan.total_steps == total_steps


class _Loader:
    waited_seconds = 0.0


# What learns, and how fast


def test_frozen_stages_stay_as_they_are_and_compute_as_in_an_evaluation(
    settings: dict[str, Any], small_checkpoint: Path
) -> None:
    config = configure("guide", **settings, freeze_encoder=2)
    started = training.Run(config)
    started.train()
    batch = {"images": torch.rand(2, 3, 32, 32), "labels": torch.zeros(2, 32, 32, dtype=torch.int64)}
    started.take_step(batch)
    assert [stage.training for stage in started.model.encoder.stages] == [False, False, True, True]
    before, after = (
        Segformer.from_pretrained(each).state_dict() for each in (small_checkpoint, started.output_dir / "checkpoint-6")
    )
    changed = {name for name, value in after.items() if not torch.equal(value, before[name])}
    assert changed.isdisjoint(name for name in before if name.startswith(("encoder.stages.0.", "encoder.stages.1.")))
    assert {"encoder.stages.2.patch_embedding.projection.weight", "decoder.classifier.bias"} <= changed
    assert started.optimizer.state_dict()["state"].keys() == set(
        range(sum(len(g["params"]) for g in started.optimizer.param_groups))
    )
    started.earlier.release()


def test_rates_fall_from_the_decoder_to_the_first_block(tiny_model: Segformer) -> None:
    factors = learning_rate_factors(tiny_model, 10.0, 0.5)  # of 5 blocks: 1, 2, 1, 1
    assert factors["decoder.classifier.weight"] == 10
    assert factors["encoder.stages.3.norm.weight"] == factors["encoder.stages.3.patch_embedding.norm.bias"] == 0.5
    assert factors["encoder.stages.1.blocks.1.ffn.expand.weight"] == factors["encoder.stages.1.norm.weight"] == 0.5**3
    assert factors["encoder.stages.1.patch_embedding.projection.weight"] == 0.5**4
    assert factors["encoder.stages.0.blocks.0.attention_norm.weight"] == 0.5**5
    assert set(learning_rate_factors(tiny_model, 1.0, 1.0).values()) == {1.0}
    optimizer = training.build_optimizer(tiny_model, configure("guide", layer_decay=0.5))
    assert {group["lr_factor"] for group in optimizer.param_groups} == {1.0, *(0.5**k for k in range(1, 6))}


@pytest.mark.parametrize("amp", ["off", "bf16"])
def test_blocks_that_are_computed_again_give_the_same_bits(settings: dict[str, Any], amp: str) -> None:
    weights = []
    for recomputes in (False, True):
        changes = {"gradient_checkpointing": recomputes, "amp": amp, "drop_path_rate": 0.5, "max_steps": 2}
        folder = run(settings, **changes, output_dir=f"{settings['output_dir']}-{recomputes}")
        weights.append((folder / "model.safetensors").read_bytes())
    assert weights[0] == weights[1]


def test_blocks_that_are_computed_again_keep_less_for_the_gradient(tiny_model: Segformer) -> None:
    kept = []
    for recomputes in (False, True):
        for stage in tiny_model.encoder.stages:
            stage.recomputes_blocks = recomputes
        held: dict[int, int] = {}

        def remember(tensor: torch.Tensor, held: dict[int, int] = held) -> torch.Tensor:
            held[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(remember, lambda tensor: tensor):
            tiny_model.train()(torch.rand(2, 3, 128, 128)).sum()
        kept.append(sum(held.values()))
    assert kept[1] < 0.5 * kept[0]


# How many photos fit


@pytest.mark.parametrize(("most", "room", "fits"), [(16, 100, 16), (16, 9, 8), (12, 5, 4), (7, 6, 1), (4, 1, 1)])
def test_the_largest_part_of_a_batch_that_has_room_is_taken(most: int, room: int, fits: int) -> None:
    def attempt(size: int) -> None:
        if size > room:
            raise torch.OutOfMemoryError("CUDA out of memory")

    assert fitting.largest_fitting(most, attempt) == fits
    with pytest.raises(torch.OutOfMemoryError):
        fitting.largest_fitting(most, lambda _: attempt(1000))


def test_looking_for_a_batch_that_fits_leaves_the_model_as_it_was(
    tiny_model: Segformer, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {name: value.clone() for name, value in tiny_model.state_dict().items()}
    sizes = []

    class Pretended:
        type = "cuda"

    forward = Segformer.forward

    def limited(model: Segformer, images: torch.Tensor) -> torch.Tensor:
        sizes.append(len(images))
        if len(images) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(model, images)

    zeros = torch.zeros
    monkeypatch.setattr(Segformer, "forward", limited)
    monkeypatch.setattr(torch, "zeros", lambda *shape, device=None, **rest: zeros(*shape, **rest))
    monkeypatch.setattr(fitting, "autocast", lambda amp, device: torch.autocast("cpu", enabled=False))
    config = configure("guide", per_device_train_batch_size=12)
    found = fitting.fit_batch(tiny_model, config, (32, 32), Pretended(), ALONE)  # type: ignore[arg-type]
    assert (sizes, found) == ([12, 6, 4, 3], replace(config, per_device_train_batch_size=3))
    assert all(torch.equal(value, before[name]) for name, value in tiny_model.state_dict().items())
    assert all(weight.grad is None for weight in tiny_model.parameters())


def test_a_batch_in_parts_is_the_same_step(settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "fit_batch", lambda model, config, *_: replace(config, per_device_train_batch_size=2))
    steps = {"per_device_train_batch_size": 4, "max_steps": 2}
    parts = run(settings, auto_batch_size=True, **steps)
    by_hand = run(
        settings, max_steps=2, gradient_accumulation_steps=2, output_dir=settings["output_dir"] + "-accumulated"
    )
    assert entries(parts, "loss") == entries(by_hand, "loss")
    assert (parts / "model.safetensors").read_bytes() == (by_hand / "model.safetensors").read_bytes()


# Event files


@pytest.mark.skipif(importlib.util.find_spec("tensorboard") is None, reason="tensorboard is not installed")
def test_the_log_is_written_as_event_files_too(settings: dict[str, Any]) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = run(settings, report_to="tensorboard")
    forget_from(folder, 6)
    train(training.parse_arguments(["--resume-from-checkpoint", str(folder)]))
    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    for tag, name in (
        ("train/loss", "loss"),
        ("eval/mean_iou", "eval_mean_iou"),
        ("train/learning_rate", "learning_rate"),
    ):
        shown = [(event.step, event.value) for event in events.Scalars(tag)]
        assert shown == [(step, pytest.approx(value)) for step, value in entries(folder, name)]


def test_event_files_without_tensorboard_are_refused_before_anything_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("segformer.training.recipes.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"not installed: pip install -e '\.\[tensorboard\]', or leave it out"):
        configure("guide", report_to="tensorboard")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ema_decay": 0.0}, "ema_decay is 0; it must be above 0, or left out"),
        ({"ema_decay": 1.0}, "ema_decay is 1.0; it must be at least 0, below 1"),
        ({"max_train_minutes": 0.0}, "max_train_minutes is 0; it must be above 0"),
        ({"max_train_minutes": math.nan}, "max_train_minutes is nan"),
        ({"layer_decay": 0.0}, "layer_decay is 0.0; it must be above 0, and 1 at most"),
        ({"freeze_encoder": 5}, "freeze_encoder is 5; it must be at least 0, below 5"),
        ({"freeze_encoder": 1, "checkpoint": None}, "freeze_encoder is 1, and without a checkpoint the encoder starts"),
        ({"freeze_encoder": 4, "head_learning_rate_factor": 0.0}, "nothing is left that learns"),
        ({"early_stopping_patience": -1}, "early_stopping_patience is -1"),
    ],
)
def test_aids_that_make_no_sense_are_refused_by_name(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        configure("guide", **changes)


def test_a_batch_that_fits_is_looked_for_on_a_gpu_alone(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="auto_batch_size takes a GPU, and this runs on cpu"):
        run(settings, auto_batch_size=True)
    assert not Path(settings["output_dir"]).exists()
