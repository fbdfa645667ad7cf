"""Devices that are not there, cannot what is asked, or run out of memory: a line each, and nothing lost."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import train as training
from segformer import Segmenter, command
from segformer.machine import out_of_memory
from segformer.segmenter import choose_device
from segformer.training.checkpoints import check_whole
from segformer.training.devices import fit_to_device
from segformer.training.faults import explain
from train import TrainConfig, configure, train

CUDA = torch.device("cuda")
OLD_DRIVER = (
    "The NVIDIA driver on your system is too old (found version 11040). Please update your GPU driver by downloading"
)
OUT_OF_MEMORY = (
    "CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total capacity of 79.1 GiB.\nProcess 1 has"
)

# ------------------------------------------------------------------------------------------------- a device by its name


def refused(name: str) -> str:
    with pytest.raises(ValueError, match="which this machine does not have") as raised:
        choose_device(name)
    return str(raised.value)


def lacking(monkeypatch: pytest.MonkeyPatch, said: str = "invalid device ordinal", count: int = 0) -> None:
    """A machine of so many GPUs, none of which takes anything."""

    def empty(*_: Any, **__: Any) -> None:
        raise RuntimeError(said)

    monkeypatch.setattr(torch, "empty", empty)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


@pytest.mark.parametrize(("count", "told"), [(1, "its only GPU is cuda:0"), (4, "its GPUs are cuda:0 to cuda:3")])
def test_a_gpu_beyond_the_last_is_refused_with_those_that_are_there(
    count: int, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    lacking(monkeypatch, count=count)
    assert refused("cuda:7") == (
        f"device is 'cuda:7', which this machine does not have ({told}); use cpu, or leave it out"
    )


@pytest.mark.parametrize("hidden", ["", "-1"])
def test_gpus_that_the_environment_hides_are_told_to_be_hidden(hidden: str, monkeypatch: pytest.MonkeyPatch) -> None:
    lacking(monkeypatch, "No CUDA GPUs are available")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
    assert f"(CUDA_VISIBLE_DEVICES is {hidden!r}, which hides them all)" in refused("cuda")


def test_a_driver_that_is_too_old_is_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    lacking(monkeypatch, OLD_DRIVER)
    assert "(The NVIDIA driver on your system is too old (found version 11040))" in refused("cuda")


def test_a_torch_without_cuda_is_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    lacking(monkeypatch)
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(torch.version, "hip", None)
    assert "(this torch is built without CUDA)" in refused("cuda")


def test_a_gpu_that_others_have_filled_is_not_called_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    lacking(monkeypatch, "CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported", count=1)
    with pytest.raises(ValueError, match=r"^device is 'cuda', which others have filled \(CUDA error: out of memory\)"):
        choose_device("cuda")


def test_a_run_that_names_no_device_says_why_it_goes_on_without_a_gpu(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def is_available() -> bool:
        warnings.warn(f"CUDA initialization: {OLD_DRIVER}", stacklevel=1)
        return False

    monkeypatch.setattr(torch.cuda, "is_available", is_available)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with caplog.at_level(logging.WARNING), warnings.catch_warnings():
        warnings.simplefilter("error")
        assert choose_device().type == "cpu"
    assert [record.message for record in caplog.records] == [
        "going on without a GPU: The NVIDIA driver on your system is too old (found version 11040)"
    ]


# ------------------------------------------------------------------------------------------------- what a GPU cannot do


@pytest.mark.parametrize(
    ("settings", "capability", "changed", "told"),
    [
        ({"amp": "bf16"}, (7, 5), {"amp": "fp16"}, ["amp is bf16, which takes 8.0"]),
        ({"amp": "bf16"}, (8, 0), {}, []),
        ({"amp": "auto"}, (7, 5), {}, []),
        ({"compile": True}, (6, 1), {"compile": False}, ["compile takes 7.0"]),
        ({"compile": True}, (7, 0), {}, []),
        ({"compile": True, "amp": "bf16"}, (6, 1), {"compile": False, "amp": "fp16"}, ["amp is bf16", "compile takes"]),
    ],
)
def test_a_gpu_does_what_it_can_and_says_so_once(
    settings: dict[str, Any],
    capability: tuple[int, int],
    changed: dict[str, Any],
    told: list[str],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    monkeypatch.setattr("importlib.util.find_spec", lambda _: object())
    with caplog.at_level(logging.WARNING):
        assert fit_to_device(TrainConfig(**settings), CUDA) == TrainConfig(**{**settings, **changed})
    said = [record.message for record in caplog.records]
    assert len(said) == len(told)
    for line, beginning in zip(said, told, strict=True):
        assert line.startswith(beginning)
        assert f"this GPU has compute capability {capability[0]}.{capability[1]}" in line


def test_a_gpu_without_triton_does_not_compile(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with caplog.at_level(logging.WARNING):
        assert not fit_to_device(TrainConfig(compile=True), CUDA).compile
    assert "pip install triton" in caplog.text


def test_on_a_cpu_nothing_changes() -> None:
    config = TrainConfig(amp="bf16", compile=True)
    assert fit_to_device(config, torch.device("cpu")) is config


# ------------------------------------------------------------------------------------------------ memory that runs out


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (torch.OutOfMemoryError(OUT_OF_MEMORY), "CUDA out of memory"),
        (RuntimeError("CUDA error: out of memory\nCompile with"), "CUDA error: out of memory"),
        (RuntimeError("CUDNN_STATUS_ALLOC_FAILED"), "CUDA out of memory (CUDNN_STATUS_ALLOC_FAILED)"),
        (RuntimeError("shapes do not fit"), None),
        (ValueError("CUDNN_STATUS_ALLOC_FAILED"), None),
    ],
)
def test_memory_that_ran_out_is_told_from_other_errors(error: Exception, said: str | None) -> None:
    assert out_of_memory(error) == said


def test_a_run_out_of_memory_is_one_line_and_goes_on_from_its_last_checkpoint_with_less(
    small_shards: Path, small_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings: dict[str, Any] = {
        "dataset": str(small_shards),
        "split": "train",
        "eval_split": "validation",
        "checkpoint": str(small_checkpoint),
        "device": "cpu",
        "max_steps": 4,
        "eval_steps": 4,
        "save_steps": 2,
        "output_dir": str(tmp_path / "run"),
    }
    steps: list[int] = []

    def step(*operands: Any) -> Any:
        steps.append(len(steps) + 1)
        if len(steps) == 3:
            raise torch.OutOfMemoryError(OUT_OF_MEMORY)
        return training_step(*operands)

    training_step = training.train_step
    monkeypatch.setattr(training, "train_step", step)
    with pytest.raises(torch.OutOfMemoryError) as raised:
        train(configure("guide", **settings))
    said = explain(raised.value)
    assert said is not None
    assert said.startswith("CUDA out of memory; what was saved is whole: go on with --resume-from-checkpoint")
    assert "\n" not in said
    check_whole(tmp_path / "run/checkpoint-2")
    less = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 2, "resume_from_checkpoint": "last"}
    assert train(configure("guide", **settings, **less)) == tmp_path / "run"
    assert len(steps) == 5


def test_a_gpu_that_this_torch_has_no_kernels_for_is_one_line() -> None:
    error = RuntimeError("CUDA error: no kernel image is available for execution on the device\nCUDA kernel errors")
    assert str(explain(error)).startswith("this torch has no kernels for this GPU")


def photos(folder: Path) -> list[str]:
    for number in range(3):
        Image.new("RGB", (40, 30), (number * 50, 0, 0)).save(folder / f"{number}.png")
    return [str(folder / f"{number}.png") for number in range(3)]


def infer(tmp_path: Path, small_checkpoint: Path) -> list[str]:
    words = [*photos(tmp_path), "--checkpoint", str(small_checkpoint), "--output-dir", str(tmp_path / "out")]
    return command.infer(command.parse_arguments([*words, "--device", "cpu", "--batch-size", "3"]))


def test_photos_that_do_not_fit_together_are_segmented_one_by_one(
    tmp_path: Path, small_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    predict = Segmenter.predict
    sizes: list[int] = []

    def of_one(self: Segmenter, photos: Any, probability: bool = False) -> Any:
        sizes.append(len(photos))
        if len(photos) > 1:
            raise torch.OutOfMemoryError(OUT_OF_MEMORY)
        return predict(self, photos, probability)

    monkeypatch.setattr(Segmenter, "predict", of_one)
    assert infer(tmp_path, small_checkpoint) == []
    assert sizes == [3, 1, 1, 1]
    assert len(list((tmp_path / "out").glob("*_labels.png"))) == 3


def test_a_photo_too_large_for_the_memory_is_a_line_that_says_what_to_lower(
    tmp_path: Path, small_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError(OUT_OF_MEMORY)

    monkeypatch.setattr(Segmenter, "predict", none)
    lines = infer(tmp_path, small_checkpoint)
    assert len(lines) == 3
    for number, line in enumerate(lines):
        assert line.endswith(
            f"{number}.png: CUDA out of memory; lower --batch-size, take --window 512, or --device cpu"
        )


def test_a_model_that_does_not_fit_is_one_line(
    tmp_path: Path, small_checkpoint: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def none(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError(OUT_OF_MEMORY)

    monkeypatch.setattr(Segmenter, "from_pretrained", none)
    monkeypatch.setattr(command, "keep_freed_memory", lambda: None)  # for good
    monkeypatch.setattr(command, "speak_plainly", lambda: None)
    monkeypatch.setattr("sys.argv", ["infer.py", *photos(tmp_path), "--output-dir", str(tmp_path / "out")])
    assert command.main() == 1
    said = capsys.readouterr().err
    assert said == (
        "error: CUDA out of memory, before the first photo; free it of other programs, or pass --device cpu\n"
    )
