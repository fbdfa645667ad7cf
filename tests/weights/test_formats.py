"""Weights as they are found on disks: under prefixes, wrapped, beside other things, in shards, in other precisions."""

from __future__ import annotations

import json
import logging
import re
from argparse import Namespace
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoints import DIALECTS, FORMS, Weights, assert_same_logits, logits_of
from libraries import transformers
from safetensors.torch import save_file
from torch import Tensor

from segformer import Segformer
from segformer.weights import dialects

PREFIXES = ["module.", "_orig_mod.", "model.", "net.", "segformer.", "encoder.", "a.b.module._orig_mod."]


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("dialect", ["v4", "v5", "original", "original with backbone", "ours"])
def test_one_prefix_that_all_tensors_share_is_seen_through(
    prefix: str,
    dialect: str,
    folder: Path,
    v4: Weights,
    reference: transformers.SegformerForSemanticSegmentation,
    images: Tensor,
    expected: Tensor,
) -> None:
    weights = {prefix + name: tensor for name, tensor in DIALECTS[dialect](v4, reference).items()}
    torch.save(weights, folder / "prefixed.pth")
    assert_same_logits(logits_of(folder / "prefixed.pth", images), expected)


def test_tensors_beside_a_prefixed_model_are_left_out_and_named(
    folder: Path, v4: Weights, images: Tensor, expected: Tensor
) -> None:
    beside = {"criterion.weight": torch.ones(7), "train_iou.confmat": torch.zeros(7, 7), "n_averaged": torch.tensor(3)}
    torch.save({"model." + name: tensor for name, tensor in v4.items()} | beside, folder / "epoch.ckpt")
    model = Segformer.from_pretrained(folder / "epoch.ckpt")
    assert model.load_report.unexpected == list(beside)
    with torch.no_grad():
        assert_same_logits(model(images), expected)


def test_the_counts_that_a_profiler_adds_are_left_out(
    folder: Path, v4: Weights, images: Tensor, expected: Tensor
) -> None:
    layers = {name.rpartition(".")[0] for name in v4}
    counts = {f"{layer}.{kind}": torch.zeros(1) for layer in layers for kind in ("total_ops", "total_params")}
    torch.save(v4 | counts, folder / "profiled.pth")
    assert_same_logits(logits_of(folder / "profiled.pth", images), expected)


def test_two_models_in_one_file_are_refused_by_name(folder: Path, v4: Weights) -> None:
    both = {f"{who}.{name}": tensor for who in ("student", "teacher") for name, tensor in v4.items()}
    torch.save(both, folder / "two.pth")
    with pytest.raises(ValueError, match=r"two\.pth holds several models: student\..*, teacher\..*; save the one"):
        Segformer.from_pretrained(folder / "two.pth")


WRAPPINGS: dict[str, Callable[[Weights], Any]] = {
    "model": lambda weights: {"model": weights, "epoch": 3, "best": 0.5, "name": "b0"},
    "model_state_dict": lambda weights: {"model_state_dict": weights, "optimizer": adam_state(), "loss": 0.1},
    "lightning": lambda weights: {
        "epoch": 3,
        "pytorch-lightning_version": "2.4.0",
        "state_dict": {f"model.{name}": tensor for name, tensor in weights.items()},
        "loops": {"fit_loop": {"state_dict": {}}},
        "optimizer_states": [adam_state()],
        "hyper_parameters": {"learning_rate": 6e-5, "names": ["wall", "sky"]},
    },
    "teacher": lambda weights: {"teacher": weights, "ema_decay": torch.tensor(0.999)},
    "ema": lambda weights: {"ema": weights, "step": 7},
    "any one": lambda weights: {"my_network": weights, "step": 7},
    "nested": lambda weights: {"checkpoint": {"model": {"state_dict": weights}}, "step": 7},
    "numbers beside": lambda weights: weights | {"epoch": 3, "name": "b0", "history": [0.1]},
}


def adam_state() -> dict[str, Any]:
    weight = torch.nn.Parameter(torch.zeros(2))
    optimizer = torch.optim.AdamW([weight])
    weight.sum().backward()
    optimizer.step()
    return optimizer.state_dict()


@pytest.mark.parametrize("wrapping", WRAPPINGS)
@pytest.mark.parametrize("dialect", ["v4", "original"])
def test_weights_are_found_in_what_training_scripts_wrap_them_in(
    wrapping: str,
    dialect: str,
    folder: Path,
    v4: Weights,
    reference: transformers.SegformerForSemanticSegmentation,
    images: Tensor,
    expected: Tensor,
) -> None:
    torch.save(WRAPPINGS[wrapping](DIALECTS[dialect](v4, reference)), folder / "last.ckpt")
    model = Segformer.from_pretrained(folder / "last.ckpt")
    assert model.load_report.missing == model.load_report.unexpected == []
    with torch.no_grad():
        assert_same_logits(model(images), expected)


def test_of_several_sets_the_plain_one_is_taken_and_the_others_are_named(
    folder: Path, v4: Weights, images: Tensor, expected: Tensor, caplog: pytest.LogCaptureFixture
) -> None:
    averaged = {name: torch.zeros_like(tensor) for name, tensor in v4.items()}
    torch.save({"state_dict_ema": averaged, "state_dict": v4}, folder / "both.pth")
    with caplog.at_level(logging.WARNING, "segformer"):
        assert_same_logits(logits_of(folder / "both.pth", images), expected)
    assert "both.pth: took state_dict, and left out state_dict_ema" in caplog.text


def test_several_sets_of_which_none_is_plain_are_refused_by_name(folder: Path, v4: Weights) -> None:
    torch.save({"first": v4, "second": v4}, folder / "both.pth")
    with pytest.raises(ValueError, match=r"both\.pth holds several sets of weights \(first, second\): save one alone"):
        Segformer.from_pretrained(folder / "both.pth")


STRANGERS = [Namespace(lr=0.1), Path("x"), np.float64(0.5), np.zeros(2), re.compile("a"), defaultdict]


@pytest.mark.parametrize("stranger", STRANGERS, ids=repr)
def test_objects_beside_the_tensors_are_left_unbuilt_and_named(
    stranger: Any, folder: Path, v4: Weights, images: Tensor, expected: Tensor, caplog: pytest.LogCaptureFixture
) -> None:
    torch.save({"model": v4, "args": stranger, "hooks": [stranger]}, folder / "last.pth")
    with caplog.at_level(logging.WARNING, "segformer"):
        assert_same_logits(logits_of(folder / "last.pth", images), expected)
    assert re.search(r"last\.pth: left unbuilt, as no tensor needs it: \w+\.", caplog.text)


def test_an_old_pickle_that_asks_for_a_stranger_is_refused_by_its_name(folder: Path, v4: Weights) -> None:
    content = {"model": v4, "args": Namespace(lr=0.1)}
    torch.save(content, folder / "old.pth", _use_new_zipfile_serialization=False)
    with pytest.raises(ValueError, match=r"old\.pth is not a whole pickle .*it asks for argparse\.Namespace"):
        Segformer.from_pretrained(folder / "old.pth")


def test_a_whole_model_in_a_pickle_is_refused_with_its_cure(folder: Path, tiny_model: Segformer) -> None:
    torch.save(tiny_model, folder / "whole.pth")
    with pytest.raises(ValueError, match=r"whole\.pth holds something other than named tensors .*state_dict\(\)"):
        Segformer.from_pretrained(folder / "whole.pth")


class Caller:
    """Unpickling this as pickle does would call ``exec``, which no module's name gives away."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return exec, (f"open({str(self.path)!r}, 'w')",)


def test_a_function_in_a_pickle_is_not_called(folder: Path, v4: Weights, images: Tensor, expected: Tensor) -> None:
    torch.save({"model": v4, "args": Caller(folder / "sprung")}, folder / "last.pth")
    assert_same_logits(logits_of(folder / "last.pth", images), expected)
    assert not (folder / "sprung").exists()


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_of_another_precision_become_float32(
    kind: torch.dtype, folder: Path, v4: Weights, images: Tensor
) -> None:
    rounded = {name: tensor.to(kind) if tensor.is_floating_point() else tensor for name, tensor in v4.items()}
    save_file(rounded, folder / "model.safetensors")
    model = Segformer.from_pretrained(folder)
    assert {tensor.dtype for tensor in model.parameters()} == {torch.float32}
    for name, tensor in dialects.to_v4(model.state_dict()).items():
        assert torch.equal(tensor, rounded[name].to(tensor.dtype)), name


def shard(folder: Path, weights: Weights, name: str = "model.safetensors") -> Path:
    """The weights in two shards with their index, as transformers names them, and no whole file."""
    stem, suffix = name.split(".")
    names = list(weights)
    halves = [names[: len(names) // 2], names[len(names) // 2 :]]
    files = {f"{stem}-{n:05d}-of-00002.{suffix}": half for n, half in enumerate(halves, 1)}
    for file, half in files.items():
        FORMS["model.safetensors" if suffix == "safetensors" else "segformer.pth"](
            {name: weights[name] for name in half}, folder / file
        )
    weight_map = {name: file for file, half in files.items() for name in half}
    index = folder / f"{name}.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map}))
    (folder / "model.safetensors").unlink()
    return index


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
@pytest.mark.parametrize("by", ["folder", "index"])
def test_weights_in_shards_load_whole(
    name: str, by: str, folder: Path, v4: Weights, images: Tensor, expected: Tensor
) -> None:
    index = shard(folder, v4, name)
    assert_same_logits(logits_of(folder if by == "folder" else index, images), expected)


def test_the_shards_that_transformers_writes_load_whole(
    reference: transformers.SegformerForSemanticSegmentation, tmp_path: Path, images: Tensor, expected: Tensor
) -> None:
    reference.save_pretrained(tmp_path, max_shard_size="40KB")
    assert (tmp_path / "model.safetensors.index.json").is_file()
    assert_same_logits(logits_of(tmp_path, images), expected)


def test_a_missing_shard_is_refused_by_name(folder: Path, v4: Weights) -> None:
    index = shard(folder, v4)
    (folder / "model-00002-of-00002.safetensors").unlink()
    for source in (folder, index):
        with pytest.raises(FileNotFoundError, match=r"index\.json names the shard model-00002-of-00002\.safetensors"):
            Segformer.from_pretrained(source)


@pytest.mark.parametrize("name", ["../x.safetensors", "/x.bin", "a/x.bin", "..", "", "x.txt", "a\\x.bin", "x\0.bin"])
def test_a_shard_outside_of_the_folder_is_refused_by_name(name: str, folder: Path, v4: Weights) -> None:
    index = shard(folder, v4)
    (folder.parent / "x.safetensors").write_bytes((folder / "model-00001-of-00002.safetensors").read_bytes())
    entries = json.loads(index.read_text())
    entries["weight_map"][next(iter(v4))] = name
    index.write_text(json.dumps(entries))
    with pytest.raises(ValueError, match=r"index\.json names .* as a shard; .* in its own folder"):
        Segformer.from_pretrained(folder)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"weight_map": {}}', '{"weight_map": {"a": 1}}', "[" * 100_000])
def test_an_index_that_is_none_is_refused_by_its_file(text: str, folder: Path, v4: Weights) -> None:
    shard(folder, v4).write_text(text)
    with pytest.raises(ValueError, match=r"model\.safetensors\.index\.json"):
        Segformer.from_pretrained(folder)


def test_a_tensor_that_no_shard_holds_is_refused_by_name(folder: Path, v4: Weights) -> None:
    index = shard(folder, v4)
    entries = json.loads(index.read_text())
    entries["weight_map"]["segformer.lost.weight"] = "model-00001-of-00002.safetensors"
    index.write_text(json.dumps(entries))
    with pytest.raises(ValueError, match=r"promises 1 tensor .*segformer\.lost\.weight"):
        Segformer.from_pretrained(folder)


def test_a_tensor_that_two_shards_hold_is_refused_by_name(folder: Path, v4: Weights) -> None:
    shard(folder, v4)
    save_file({name: tensor.clone() for name, tensor in v4.items()}, folder / "model-00002-of-00002.safetensors")
    with pytest.raises(ValueError, match=r"model-00002-of-00002\.safetensors holds .*an earlier shard"):
        Segformer.from_pretrained(folder)


@pytest.mark.parametrize("name", ["model.safetensors", "model.pth"])
def test_a_pointer_of_git_lfs_is_refused_with_its_cure(name: str, folder: Path) -> None:
    (folder / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 14884636\n")
    with pytest.raises(ValueError, match=rf"{re.escape(name)} is git-lfs's pointer .*git lfs pull"):
        Segformer.from_pretrained(folder / name)
