"""The model as one graph: compiled without breaks, exported with free batch and sizes, saved under clean names."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch._inductor.compile_fx
from torch.export import Dim

from segformer import Segformer
from segformer.training.checkpoints import STATE_NAME, SUMS_NAME
from train import configure, train


@pytest.mark.parametrize("training", [True, False])
def test_model_compiles_without_graph_breaks(tiny_model: Segformer, training: bool) -> None:
    explanation = torch._dynamo.explain(tiny_model.train(training))(torch.randn(2, 3, 64, 96))
    assert explanation.graph_break_count == 0
    assert explanation.graph_count == 1


def test_compiled_model_gives_the_same_logits_and_clean_names(tiny_model: Segformer) -> None:
    names, images = list(tiny_model.state_dict()), torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        expected = tiny_model(images)
        tiny_model.compile(backend="aot_eager")
        torch.testing.assert_close(tiny_model(images), expected, rtol=1e-5, atol=1e-5)
    assert list(tiny_model.state_dict()) == names


def test_model_exports_with_dynamic_batch_height_and_width(tiny_model: Segformer) -> None:
    shapes = {0: Dim("batch", max=64), 2: Dim("height", min=64, max=4096), 3: Dim("width", min=64, max=4096)}
    exported = torch.export.export(tiny_model, (torch.randn(2, 3, 128, 160),), dynamic_shapes=(shapes,)).module()
    for size in ((1, 3, 97, 65), (3, 3, 64, 64), (2, 3, 211, 513)):
        images = torch.randn(size)
        torch.testing.assert_close(exported(images), tiny_model(images), rtol=1e-5, atol=1e-5)


# ------------------------------------------------------------------------------------------- runs that train compiled


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> list[list[Any]]:
    """The inputs of every graph that inductor was asked for; each then runs as it is, for C++ takes minutes."""
    seen: list[list[Any]] = []

    def run_as_it_is(graph: torch.fx.GraphModule, inputs: list[Any], **_: Any) -> Any:
        seen.append(list(inputs))
        return graph.forward

    monkeypatch.setattr(torch._inductor.compile_fx, "compile_fx", run_as_it_is)
    torch._dynamo.reset()
    return seen


@pytest.fixture
def settings(small_shards: Path, small_checkpoint: Path, tmp_path: Path) -> dict[str, Any]:
    """Settings of a run of a few seconds, whose photos are of many sizes."""
    return {
        "dataset": str(small_shards),
        "split": "train",
        "eval_split": "validation",
        "checkpoint": str(small_checkpoint),
        "device": "cpu",
        "amp": "off",
        "compile": True,
        "max_steps": 4,
        "eval_steps": 2,
        "save_steps": 2,
        "output_dir": str(tmp_path / "run"),
    }


def sizes_are_fixed(graphs: list[list[Any]]) -> bool:
    """Whether no graph has a size that was left open."""
    values = [value for inputs in graphs for value in inputs]
    sizes = [side for value in values if isinstance(value, torch.Tensor) for side in value.shape]
    return not any(isinstance(each, torch.SymInt) for each in [*values, *sizes])


@pytest.mark.parametrize("resolution", ["processed", "original", "keep-ratio"])
def test_a_compiled_run_that_evaluates_first_trains_one_graph_of_fixed_sizes(
    resolution: str, settings: dict[str, Any], graphs: list[list[Any]]
) -> None:
    if resolution == "keep-ratio":
        settings["per_device_eval_batch_size"] = 1
    folder = train(configure("guide", **settings, eval_on_start=True, eval_resolution=resolution))
    evaluations = [line for line in (folder / "log.jsonl").read_text().splitlines() if "eval_loss" in json.loads(line)]
    assert len(evaluations) == 3
    assert len(graphs) == 1
    assert sizes_are_fixed(graphs)


def test_a_compiled_run_resumed_with_an_evaluation_due_trains_one_graph_of_fixed_sizes(
    settings: dict[str, Any], graphs: list[list[Any]]
) -> None:
    settings |= {"eval_resolution": "keep-ratio", "per_device_eval_batch_size": 1}
    folder = train(configure("guide", **settings))
    evaluate_again_at(folder / "checkpoint-2")
    torch._dynamo.reset()
    graphs.clear()
    train(configure("guide", **settings, resume_from_checkpoint=str(folder / "checkpoint-2")))
    assert len(graphs) == 1
    assert sizes_are_fixed(graphs)


def evaluate_again_at(checkpoint: Path) -> None:
    """Leave a checkpoint as one is where a run was stopped in the middle of its evaluation."""
    path, sums = checkpoint / STATE_NAME, checkpoint / SUMS_NAME
    written = hashlib.sha256(path.read_bytes()).hexdigest()
    state = torch.load(path, weights_only=True)
    assert state["progress"]["evaluated_step"] == 2
    state["progress"]["evaluated_step"] = 0
    torch.save(state, path)
    sums.write_text(sums.read_text().replace(written, hashlib.sha256(path.read_bytes()).hexdigest()))


def test_a_shorter_last_batch_is_a_second_graph_of_fixed_sizes(
    settings: dict[str, Any], graphs: list[list[Any]]
) -> None:
    train(configure("guide", **settings, per_device_train_batch_size=4))  # of ten rows
    assert len(graphs) == 2
    assert sizes_are_fixed(graphs)
