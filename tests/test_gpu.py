"""What only a GPU can show: the same numbers as on the CPU, no waiting inside a step, and runs that go on bit by bit.

    pytest -m gpu

The tests take the device that SEGFORMER_TEST_DEVICE names, else ``cuda``.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

# cuBLAS reads this once in a process, and is only then deterministic.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from losses_compared import value_and_gradient
from torch import Tensor

import train as training
from benchmarks import measure, throughput
from data.augmentation.jitter import ColorJitter
from data.augmentation.on_device import AugmentOnDevice
from data.batches import on_device
from segformer import Segformer, SegformerConfig, fullres
from segformer.detail import DetailedConfusionMatrix
from segformer.fullres import cells
from segformer.training.graphs import StepGraphs
from segformer.training.ranks import Ranks, distribute
from train import StepResult, TrainConfig, build_optimizer, configure, train, train_step

pytestmark = pytest.mark.gpu
ROOT = Path(__file__).parent.parent


@pytest.fixture
def device() -> torch.device:
    """The device that is tested."""
    name = torch.device(os.environ.get("SEGFORMER_TEST_DEVICE", "cuda"))
    return torch.device(name.type, name.index or 0) if name.type == "cuda" else name


@pytest.fixture
def exact_convolutions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Convolutions in float32 proper, not in TF32, which has ten bits."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


# ----------------------------------------------------------------------------------- loss and prediction at full size

SIZES = [
    ((32, 40), (128, 160)),
    ((33, 21), (130, 83)),  # odd, and no multiple
    ((9, 8), (4, 3)),  # smaller than the logits
    ((128, 300), (512, 1200)),  # more than one band of rows with 150 classes
]


def _some_logits(classes: int, size: tuple[int, int], device: torch.device) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return (3 * torch.randn(2, classes, *size, generator=generator)).to(device)


def _smooth_logits(classes: int, size: tuple[int, int], device: torch.device) -> Tensor:
    """Large regions of one class, as a trained model draws them."""
    return F.interpolate(_some_logits(classes, (3, 2), device), size, mode="bicubic")


def _some_labels(classes: int, size: tuple[int, int], device: torch.device) -> Tensor:
    generator = torch.Generator().manual_seed(2)
    labels = torch.randint(classes, (2, *size), generator=generator)
    return torch.where(torch.rand(labels.shape, generator=generator) < 0.2, 255, labels).to(device)


def _assert_same_loss(ours: tuple[Tensor, Tensor], expected: tuple[Tensor, Tensor], tolerance: float) -> None:
    """Relative to the loss, and to the largest entry of the gradient."""
    torch.testing.assert_close(ours[0], expected[0], rtol=tolerance, atol=0)
    torch.testing.assert_close(ours[1], expected[1], rtol=0, atol=tolerance * expected[1].abs().max().item())


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("classes", [2, 150])
@pytest.mark.parametrize(("small", "size"), SIZES)
def test_loss_and_its_gradient_equal_the_plain_ones(
    small: tuple[int, int],
    size: tuple[int, int],
    classes: int,
    memory_format: torch.memory_format,
    device: torch.device,
) -> None:
    logits = _some_logits(classes, small, device).contiguous(memory_format=memory_format)
    labels = _some_labels(classes, size, device)
    ours = value_and_gradient(lambda x: fullres.cross_entropy(x, labels, reduction="sum"), logits)
    plain = value_and_gradient(lambda x: fullres.plain_cross_entropy(x, labels), logits)
    _assert_same_loss(ours, plain, 1e-5)


@pytest.mark.parametrize("classes", [2, 150])
@pytest.mark.parametrize(("small", "size"), SIZES)
def test_autocast_does_not_round_the_loss(
    small: tuple[int, int], size: tuple[int, int], classes: int, device: torch.device
) -> None:
    logits, labels = _some_logits(classes, small, device), _some_labels(classes, size, device)
    plain = value_and_gradient(lambda x: fullres.plain_cross_entropy(x, labels), logits)
    with torch.autocast(device.type, torch.bfloat16):
        ours = value_and_gradient(lambda x: fullres.cross_entropy(x, labels, reduction="sum"), logits)
    _assert_same_loss(ours, plain, 1e-5)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_loss_of_half_precision_logits_is_that_of_the_same_logits_in_float32(
    dtype: torch.dtype, memory_format: torch.memory_format, device: torch.device
) -> None:
    logits = _some_logits(150, (33, 21), device).to(dtype).contiguous(memory_format=memory_format)
    labels = _some_labels(150, (130, 83), device)
    value, gradient = value_and_gradient(lambda x: fullres.cross_entropy(x, labels), logits)
    plain, exact = value_and_gradient(
        lambda x: F.cross_entropy(_enlarged(x, (130, 83)), labels, ignore_index=255), logits.float()
    )
    torch.testing.assert_close(value, plain, rtol=1e-5, atol=0)
    # The gradient is rounded once, to the precision of the logits.
    torch.testing.assert_close(gradient.float(), exact, rtol=torch.finfo(dtype).eps, atol=1e-6)


@pytest.mark.parametrize(("small", "size"), [((32, 40), (128, 160)), ((33, 21), (130, 83)), ((128, 300), (512, 1200))])
def test_compiled_loss_and_its_gradient_equal_the_plain_ones(
    small: tuple[int, int], size: tuple[int, int], device: torch.device
) -> None:
    logits, labels = _some_logits(150, small, device), _some_labels(150, size, device)
    plain = value_and_gradient(lambda x: fullres.plain_cross_entropy(x, labels), logits)
    with torch.autocast(device.type, torch.bfloat16):
        ours = value_and_gradient(
            lambda x: fullres.cross_entropy(x, labels, reduction="sum", compiled=True),
            logits.contiguous(memory_format=torch.channels_last),
        )
    _assert_same_loss(ours, plain, 1e-5)


@pytest.fixture
def kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """The hand-written kernels are in use."""
    monkeypatch.setattr(cells, "IN_USE", True)


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("classes", [2, 150])
@pytest.mark.parametrize(("small", "size"), SIZES)
def test_the_kernels_give_the_plain_loss_and_gradient_and_the_same_bits_every_time(
    small: tuple[int, int],
    size: tuple[int, int],
    classes: int,
    memory_format: torch.memory_format,
    device: torch.device,
) -> None:
    logits = _some_logits(classes, small, device).contiguous(memory_format=memory_format)
    labels = _some_labels(classes, size, device)
    assert cells.can_run(logits)
    ours, again = (
        value_and_gradient(lambda x: fullres.cross_entropy(x, labels, reduction="sum"), logits) for _ in range(2)
    )
    plain = value_and_gradient(lambda x: fullres.plain_cross_entropy(x, labels), logits)
    _assert_same_loss(ours, plain, 1e-5)
    assert torch.equal(ours[0], again[0])
    assert torch.equal(ours[1], again[1])


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("classes", [1, 2, 150])
@pytest.mark.parametrize("make_logits", [_smooth_logits, _some_logits])
@pytest.mark.parametrize(("small", "size"), SIZES)
def test_the_kernels_give_the_plain_prediction(
    small: tuple[int, int],
    size: tuple[int, int],
    make_logits: Callable[..., Tensor],
    classes: int,
    device: torch.device,
) -> None:
    _assert_same_prediction(make_logits(classes, small, device), size)


def test_a_compiled_loss_never_holds_the_enlarged_logits(device: torch.device) -> None:
    logits = _some_logits(150, (128, 128), device).contiguous(memory_format=torch.channels_last)
    labels = _some_labels(150, (512, 512), device)

    def step() -> None:
        fullres.cross_entropy(logits.requires_grad_(), labels, compiled=True).backward()

    peak = measure.peak_memory_mib(step, device)
    assert peak is not None
    assert peak < 0.5 * 2 * 150 * 512 * 512 * 4 / 2**20


@pytest.mark.parametrize("where", ["labels", "predictions"])
def test_a_stray_is_refused_with_the_scores_and_what_is_counted_is_what_the_cpu_counts(
    where: str, device: torch.device
) -> None:
    labels = _some_labels(150, (130, 83), torch.device("cpu"))
    predictions = _some_labels(150, (130, 83), torch.device("cpu")).flip(0).clamp(max=149)
    expected, ours = DetailedConfusionMatrix(150), DetailedConfusionMatrix(150, device=device)
    expected.update(predictions, labels)
    on_device = predictions.to(device), labels.to(device)
    with _no_waiting():
        ours.update(*on_device)
    assert torch.equal(ours.counts.cpu(), expected.counts)
    assert torch.equal(ours.details.cpu(), expected.details)
    (labels if where == "labels" else predictions)[labels != 255] = 200
    ours.update(predictions.to(device), labels.to(device))
    with pytest.raises(ValueError, match=f"{where} hold 200"):
        ours.scores()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_keeps_the_maps_of_the_decoder_in_low_precision(
    dtype: torch.dtype, tiny_model: Segformer, device: torch.device
) -> None:
    seen: list[torch.dtype] = []
    tiny_model.to(device).train().decoder.norm.register_forward_hook(
        lambda _, given, made: seen.extend((given[0].dtype, made.dtype))
    )
    with torch.autocast(device.type, dtype):
        tiny_model(torch.randn(2, 3, 64, 96, device=device))
    assert seen == [dtype, dtype]


def test_augmentation_on_the_device_does_not_wait(device: torch.device) -> None:
    augment = AugmentOnDevice(ColorJitter(), 0, 1 / 255, (0.5, 0.5, 0.5), (0.2, 0.2, 0.2), reduce_labels=True)
    images = torch.zeros(4, 3, 32, 48, dtype=torch.uint8, device=device)
    labels = torch.zeros(4, 32, 48, dtype=torch.uint8, device=device)
    with _no_waiting():
        augment(images, labels, [(0, row) for row in range(4)])


def _enlarged(logits: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(logits.float(), size, mode="bilinear", align_corners=False)


def _assert_same_prediction(logits: Tensor, size: tuple[int, int]) -> None:
    """Equal to the plain one but where two classes are as likely but for rounding, which is rare."""
    ours, plain = fullres.argmax(logits, size), fullres.plain_argmax(logits, size)
    scores = _enlarged(logits, size)
    missed = scores.amax(1) - scores.gather(1, ours[:, None])[:, 0]
    assert missed.max() <= 1e-6 * scores.abs().max()
    assert (ours != plain).float().mean() < 1e-4


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("classes", [2, 150])
@pytest.mark.parametrize("make_logits", [_smooth_logits, _some_logits])
@pytest.mark.parametrize(("small", "size"), SIZES)
def test_prediction_equals_the_plain_one(
    small: tuple[int, int],
    size: tuple[int, int],
    make_logits: Callable[..., Tensor],
    classes: int,
    memory_format: torch.memory_format,
    device: torch.device,
) -> None:
    _assert_same_prediction(make_logits(classes, small, device).contiguous(memory_format=memory_format), size)


def test_prediction_from_bfloat16_logits_under_autocast_equals_the_plain_one(device: torch.device) -> None:
    with torch.autocast(device.type, torch.bfloat16):
        _assert_same_prediction(_some_logits(150, (33, 21), device).bfloat16(), (130, 83))


# ------------------------------------------------------------------------------------------------------ training step


@pytest.fixture
def start(tiny_config: SegformerConfig) -> Segformer:
    """A model without dropout and drop path, since devices draw differently; its weights are large enough to show."""
    torch.manual_seed(0)
    model = Segformer(replace(tiny_config, drop_path_rate=0.0, classifier_dropout_prob=0.0))
    for weight in model.parameters():
        if weight.ndim > 1:
            torch.nn.init.normal_(weight, std=0.2)
    return model


@pytest.fixture
def batch() -> dict[str, Tensor]:
    """Four images, of which the first rows have no label."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 7, (4, 64, 96), generator=generator)
    labels[:, :8] = 255
    return {"images": torch.randn(4, 3, 64, 96, generator=generator), "labels": labels}


class Steps:
    """A copy of a model on a device, ready to take one training step after another."""

    def __init__(self, start: Segformer, batch: dict[str, Tensor], device: torch.device, amp: str, **more: Any) -> None:
        self.model = Segformer(start.config)
        self.model.load_state_dict(start.state_dict())
        self.trained: torch.nn.Module = self.model.to(device).train()
        self.config = TrainConfig(amp=amp, **{"per_device_train_batch_size": 4, **more})
        self.optimizer = build_optimizer(self.model, self.config)
        self.scaler = torch.amp.GradScaler(device.type, enabled=amp == "fp16")
        self.batch = {name: values.to(device) for name, values in batch.items()}

    def take(self) -> StepResult:
        """One step."""
        return train_step(self.trained, self.optimizer, self.scaler, self.batch, self.config)


# Half precision rounds every map and every gradient to 8 or 11 bits; the mean over all pixels evens most of that out.
@pytest.mark.parametrize(("amp", "tolerance"), [("off", 1e-5), ("bf16", 1e-3), ("fp16", 1e-3)])
@pytest.mark.parametrize("per_device_train_batch_size", [4, 2])
@pytest.mark.usefixtures("exact_convolutions")
def test_a_step_has_the_loss_and_the_gradient_norm_of_the_cpu(
    amp: str,
    tolerance: float,
    per_device_train_batch_size: int,
    start: Segformer,
    batch: dict[str, Tensor],
    device: torch.device,
) -> None:
    parts = {"per_device_train_batch_size": per_device_train_batch_size}
    expected = Steps(start, batch, torch.device("cpu"), "off", **parts).take()
    ours = Steps(start, batch, device, amp, **parts).take()
    assert float(ours.loss) == pytest.approx(float(expected.loss), rel=tolerance)
    assert float(ours.grad_norm) == pytest.approx(float(expected.grad_norm), rel=10 * tolerance)


@pytest.mark.parametrize("amp", ["off", "bf16", "fp16"])
def test_loss_falls_in_every_precision(
    amp: str, start: Segformer, batch: dict[str, Tensor], device: torch.device
) -> None:
    steps = Steps(start, batch, device, amp, learning_rate=1e-2)
    losses = [float(steps.take().loss) for _ in range(30)]
    assert all(torch.isfinite(torch.tensor(losses)))
    assert sum(losses[-5:]) / 5 < losses[0] - 0.1


@contextmanager
def _no_waiting() -> Iterator[None]:
    """Make it an error to wait for the GPU."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_waiting_for_the_gpu_is_noticed(device: torch.device) -> None:
    value = torch.ones((), device=device)
    with _no_waiting(), pytest.raises(RuntimeError, match="synchroniz"):
        value.item()


@pytest.mark.parametrize("amp", ["off", "bf16", "fp16"])
@pytest.mark.parametrize("per_device_train_batch_size", [4, 2])
def test_the_host_never_waits_inside_a_step(
    amp: str, per_device_train_batch_size: int, tiny_model: Segformer, batch: dict[str, Tensor], device: torch.device
) -> None:
    steps = Steps(tiny_model, batch, device, amp, per_device_train_batch_size=per_device_train_batch_size)
    steps.take()  # the first plans the bands of the loss and makes the optimiser's state
    with _no_waiting():
        steps.take()
        steps.take()


@pytest.mark.usefixtures("exact_convolutions")
def test_a_step_of_one_rank_is_the_step_without_ranks(
    start: Segformer, batch: dict[str, Tensor], device: torch.device, tmp_path: Path
) -> None:
    alone, ranked = (Steps(start, batch, device, "off", per_device_train_batch_size=2) for _ in range(2))
    expected = alone.take()
    backend = "nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        ranked.trained = distribute(ranked.model, Ranks(0, 2), device)  # 2, for one rank is not wrapped at all
        assert isinstance(ranked.trained, torch.nn.parallel.DistributedDataParallel)
        loss, grad_norm = ranked.take()
    finally:
        dist.destroy_process_group()
    torch.testing.assert_close(loss, expected.loss, rtol=1e-5, atol=0)
    torch.testing.assert_close(grad_norm, expected.grad_norm, rtol=1e-5, atol=0)


# Ours needs the small logits, a band and the model's own maps; the peer, several times the enlarged logits and the
# fourfold concatenation of its decoder. On a CPU the share is a third.
@pytest.mark.parametrize("amp", ["off", "bf16"])
def test_a_step_needs_less_than_half_of_the_memory_of_transformers(amp: str, device: torch.device) -> None:
    options = argparse.Namespace(mode="train", device=str(device), compile=False, against=[])
    case = throughput.Case(options, "b0", 512, 8, amp)
    ours, theirs = (measure.peak_memory_mib(run(), device) for run in (case.ours, lambda: case.peer("transformers")))
    assert ours is not None
    assert theirs is not None
    assert ours < 0.5 * theirs


# --------------------------------------------------------------------------------------------------------------- runs


@pytest.fixture
def settings(small_shards: Path, small_checkpoint: Path, tmp_path: Path, device: torch.device) -> dict[str, Any]:
    """Settings of a run of a few seconds."""
    return {
        "dataset": str(small_shards),
        "split": "train",
        "eval_split": "validation",
        "checkpoint": str(small_checkpoint),
        "device": str(device),
        "amp": "off",
        "max_steps": 6,
        "eval_steps": 3,
        "save_steps": 3,
        "learning_rate": 1e-3,
        "output_dir": str(tmp_path / "run"),
    }


@pytest.fixture
def deterministic() -> Iterator[dict[str, Any]]:
    """The setting of a run that repeats its bits; what it changes in torch is undone."""
    yield {"deterministic": True}
    torch.use_deterministic_algorithms(False)


def _log(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()]


def _losses(folder: Path) -> list[float]:
    return [entry["loss"] for entry in _log(folder) if "loss" in entry]


def _weights(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


@pytest.mark.parametrize("amp", ["off", "bf16", "fp16"])
def test_a_resumed_run_repeats_the_uninterrupted_one_bit_by_bit(
    amp: str, settings: dict[str, Any], deterministic: dict[str, Any], tmp_path: Path
) -> None:
    settings |= {"amp": amp, "max_steps": 8, **deterministic}
    whole = train(configure("guide", **settings))
    part = train(configure("guide", **{**settings, "output_dir": str(tmp_path / "part")}))
    assert _weights(part) == _weights(whole)
    (part / "model.safetensors").unlink()
    middle = {"output_dir": str(part), "resume_from_checkpoint": str(part / "checkpoint-3")}
    resumed = train(configure("guide", **{**settings, **middle}))
    assert _weights(resumed) == _weights(whole)
    assert _losses(resumed) == _losses(whole)


def test_a_compiled_run_trains_and_evaluates_like_one_that_is_not(settings: dict[str, Any], tmp_path: Path) -> None:
    settings |= {"drop_path_rate": 0.0, "classifier_dropout": 0.0}  # inductor draws differently
    plain = train(configure("guide", **settings))
    torch._dynamo.reset()
    compiled = train(configure("guide", **{**settings, "output_dir": str(tmp_path / "compiled")}, compile=True))
    # Six steps of float32 arithmetic in another order, partly in TF32.
    assert _losses(compiled) == pytest.approx(_losses(plain), rel=1e-3)
    scores = [json.loads((folder / "eval_results.json").read_text())["eval_loss"] for folder in (plain, compiled)]
    assert scores[1] == pytest.approx(scores[0], rel=1e-3)
    report = Segformer.from_pretrained(compiled).load_report
    assert (report.missing, report.unexpected) == ([], [])


@pytest.mark.parametrize(
    "more",
    [
        {"amp": "off"},
        {"amp": "bf16"},
        {"amp": "fp16"},
        {"amp": "bf16", "gradient_accumulation_steps": 2},  # the last step of an epoch has fewer rows
        {"amp": "off", "loss": "focal", "dice_weight": 0.5},
        {"amp": "off", "eval_resolution": "original", "eval_steps": 2},  # many shapes between the steps
    ],
    ids=str,
)
def test_a_run_by_cuda_graphs_has_the_bits_of_one_without_them(
    more: dict[str, Any], settings: dict[str, Any], deterministic: dict[str, Any], tmp_path: Path
) -> None:
    settings |= {"max_steps": 18, "eval_steps": 6, "save_steps": 6, **deterministic, **more}
    plain = train(configure("guide", **settings))
    run = training.Run(configure("guide", **{**settings, "output_dir": str(tmp_path / "graphs")}, cuda_graph=True))
    run.train()
    run.finish()
    run.earlier.release()
    assert run.graphs._graphs
    assert _losses(run.output_dir) == _losses(plain)
    assert _weights(run.output_dir) == _weights(plain)
    middle = {"output_dir": str(plain), "resume_from_checkpoint": str(plain / "checkpoint-6"), "cuda_graph": True}
    (plain / "model.safetensors").unlink()
    assert _weights(train(configure("guide", **{**settings, **middle}))) == _weights(run.output_dir)


def test_a_replayed_step_does_not_wait_and_batches_are_copied_beside_it(
    tiny_model: Segformer, batch: dict[str, Tensor], device: torch.device
) -> None:
    steps, graphs = Steps(tiny_model, batch, device, "bf16"), StepGraphs(True, device)
    operands = steps.trained, steps.optimizer, steps.scaler
    pinned = [{name: values.pin_memory() for name, values in batch.items()} for _ in range(8)]
    coming = on_device(pinned, device)
    for _ in range(5):
        graphs.take(train_step, *operands, next(coming), steps.config)
    assert graphs._graphs
    with _no_waiting():
        for each in coming:
            graphs.take(train_step, *operands, each, steps.config)


@pytest.mark.usefixtures("exact_convolutions")
def test_evaluation_gives_the_loss_and_the_scores_of_the_cpu(
    settings: dict[str, Any], small_checkpoint: Path, device: torch.device
) -> None:
    config = configure("guide", **settings)
    model, processor = training.build_model(config, str(small_checkpoint))
    samples = training.build_samples(config, processor)[1]
    on_cpu = training.evaluate(model, samples, config, torch.device("cpu"))
    ours = training.evaluate(model.to(device), samples, config, device)
    assert ours["eval_loss"] == pytest.approx(on_cpu["eval_loss"], rel=1e-5)
    # A pixel may change sides where two classes are as likely but for rounding.
    for name in ("eval_mean_iou", "eval_mean_accuracy", "eval_overall_accuracy"):
        assert ours[name] == pytest.approx(on_cpu[name], abs=1e-3)


def test_overflow_in_fp16_skips_the_step_and_a_resumed_run_keeps_the_lowered_scale(settings: dict[str, Any]) -> None:
    settings |= {"amp": "fp16", "max_steps": 3}
    run = training.Run(configure("guide", **settings))
    run.scaler.load_state_dict({**run.scaler.state_dict(), "scale": 2.0**40})  # far above what any gradient stands
    before = {name: weight.detach().clone() for name, weight in run.model.named_parameters()}
    run.train()
    assert run.scaler.get_scale() == 2.0**37  # halved after each of the three
    for name, weight in run.model.named_parameters():
        assert torch.equal(weight, before[name]), name
    resumed = training.Run(configure("guide", **settings, resume_from_checkpoint="last"))
    assert resumed.scaler.get_scale() == 2.0**37


def test_torchrun_of_one_rank_trains_to_the_end_and_leaves_cleanly(settings: dict[str, Any]) -> None:
    settings |= {"max_steps": 3, "device": torch.device(settings["device"]).type}
    flags = [part for name, value in settings.items() for part in ("--" + name.replace("_", "-"), str(value))]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "1"]
    command = [*launcher, "train.py", "--recipe", "guide", *flags]
    answer = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert answer.returncode == 0, answer.stderr
    assert "destroy_process_group" not in answer.stderr  # what NCCL says of a process that just ends
    assert [entry["step"] for entry in _log(Path(settings["output_dir"])) if "loss" in entry] == [1, 2, 3]
