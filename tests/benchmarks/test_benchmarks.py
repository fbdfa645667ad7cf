"""The benchmarks as commands: each explains itself, and a row tells what was measured and that the sides were equal."""

from __future__ import annotations

import importlib
import json
import math
import re
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import flops, peers, precision, streets, throughput
from data.classes import ID2LABEL
from segformer import VARIANTS, ImageProcessor, Segformer, SegformerConfig, fullres

pytest.importorskip("transformers", reason="no transformers, which ours is measured against; pip install -e '.[test]'")

FOLDER = Path(throughput.__file__).parent
COMMANDS = sorted(path.stem for path in FOLDER.glob("*.py") if "\ndef main(" in path.read_text(encoding="utf-8"))
PAGE = (FOLDER / "README.md").read_text(encoding="utf-8")
# One row of the smallest size that every stage can take, once.
TINY = ["--size", "64", "--batch-size", "1", "--repeats", "1", "--device", "cpu"]


def _give(monkeypatch: pytest.MonkeyPatch, *words: str) -> None:
    monkeypatch.setattr(sys, "argv", ["benchmark", *words])


@pytest.mark.parametrize("name", COMMANDS)
def test_every_benchmark_explains_its_options(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _give(monkeypatch, "--help")
    with pytest.raises(SystemExit) as stopped:
        importlib.import_module(f"benchmarks.{name}").main()
    assert stopped.value.code == 0
    assert name == "tables" or "--save" in capsys.readouterr().out


@pytest.mark.parametrize(
    "command", sorted(set(re.findall(r"^python -m benchmarks\.throughput .*$", PAGE, re.MULTILINE)))
)
def test_throughput_understands_the_commands_of_its_page(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    _give(monkeypatch, *shlex.split(command)[3:])
    assert throughput.parse_arguments().save


def _quick_row(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: str
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The machine and the one row that a quick run prints as its last line."""
    _give(monkeypatch, *TINY, *words)
    throughput.main()
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["benchmark"] == "throughput"
    (row,) = result["rows"]
    return result["machine"], row


FACTS = {"mode", "variant", "size", "batch_size", "amp", "compile", "dtype", "predicted"}
SPEED = {"images_per_second", "ms", "ms_p10", "ms_p90", "gflop", "share_of_matmul_rate"}
COMPARED = {
    "train": {"loss_difference", "grad_norm_difference"},
    "infer": {"pixel_agreement"},
}


@pytest.mark.parametrize("mode", ["train", "infer"])
def test_a_row_tells_what_was_measured_how_fast_and_how_equal(
    mode: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    machine, row = _quick_row(monkeypatch, capsys, "--mode", mode, "--against", "transformers")
    assert set(row) == FACTS | SPEED | COMPARED[mode] | {"peer_ms", "peer_ms_p10", "peer_ms_p90", "ratio"}
    assert (row["mode"], row["variant"], row["size"], row["dtype"]) == (mode, "b0", 64, "float32")
    assert row["ratio"] == pytest.approx(row["peer_ms"] / row["ms"], rel=1e-3)  # milliseconds are rounded
    assert {"device", "threads", "torch", "transformers", "commit"} <= set(machine)


@pytest.mark.parametrize("mode", ["train", "infer"])
def test_smp_is_measured_beside_transformers_under_names_of_its_own(
    mode: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("segmentation_models_pytorch")
    machine, row = _quick_row(monkeypatch, capsys, "--mode", mode, "--against", "transformers,smp")
    smp = {"smp_ms", "smp_ms_p10", "smp_ms_p90", "smp_ratio", *(f"smp_{name}" for name in COMPARED[mode])}
    assert smp <= set(row)
    assert {"peer_ms", "ratio", *COMPARED[mode]} <= set(row)
    assert "segmentation_models_pytorch" in machine


def test_flops_are_those_counted_by_hand() -> None:
    config = SegformerConfig(
        depths=(1, 2),
        hidden_sizes=(2, 3),
        num_attention_heads=(1, 1),
        sr_ratios=(2, 1),
        patch_sizes=(7, 3),
        strides=(4, 2),
        mlp_ratios=(2, 4),
        decoder_hidden_size=5,
        num_labels=7,
    )
    # 13 x 16 pixels: maps of 4 x 4 and of 2 x 2; 2 x 2 keys in both.
    first = 16 * 49 * 3 * 2  # patch embedding
    first += 16 * 2 * 2 + 4 * 2 * 2 * 4 + 4 * 2 * 4 + 16 * 2 * 2  # query, reduction, keys and values, out
    first += 16 * 4 * 2 + 16 * 4 * 2  # scores, values
    first += 16 * 2 * 4 + 16 * 4 * 9 + 16 * 4 * 2  # expand, depthwise, contract
    second = 4 * 9 * 2 * 3
    second += 2 * (4 * 3 * 3 + 4 * 3 * 6 + 4 * 3 * 3 + 2 * 4 * 4 * 3 + 4 * 3 * 12 + 4 * 12 * 9 + 4 * 12 * 3)
    assert flops.encoder(config, (13, 16)) == 2 * (first + second)
    weights = 5 * 5 * 2 + 5 * 5 * 3
    assert flops.decoder(config, (13, 16)) == 2 * (weights + 16 * 2 * 5 + 4 * 3 * 5 + 16 * 5 * 7)
    assert flops.textbook_decoder(config, (13, 16)) == 2 * (16 * 2 * 5 + 4 * 3 * 5 + 16 * 10 * 5 + 16 * 5 * 7)


PUBLISHED = {"b0": 8.4, "b1": 15.9, "b2": 62.4, "b3": 79.0, "b4": 95.7}  # the paper's Table 1, at 512 x 512


@pytest.mark.parametrize("variant", PUBLISHED)
def test_multiply_adds_in_the_textbook_s_form_are_the_published_ones(variant: str) -> None:
    config, size = VARIANTS[variant](num_labels=150), (512, 512)
    ours = (flops.encoder(config, size) + flops.textbook_decoder(config, size)) / 2e9
    assert ours == pytest.approx(PUBLISHED[variant], rel=2e-3)


def test_flops_of_the_model_are_those_of_the_products_that_it_runs() -> None:
    config = VARIANTS["b0"](num_labels=150)
    model = Segformer(config).eval()
    images = torch.randn(1, 3, 96, 130)
    with FlopCounterMode(display=False) as counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        model(images)
    assert flops.model(config, (96, 130)) == counter.get_total_flops()


def test_flops_of_the_loss_are_those_of_the_products_that_it_runs() -> None:
    logits = torch.randn(2, 19, 16, 20, requires_grad=True)
    with FlopCounterMode(display=False) as counter:
        fullres.cross_entropy(logits, torch.zeros(2, 64, 80, dtype=torch.int64))
    assert flops.banded_loss(logits, (64, 80)) == counter.get_total_flops()


@pytest.mark.slow
def test_peak_memory_of_every_side_is_measured(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _, row = _quick_row(monkeypatch, capsys, "--size", "256", "--against", "transformers", "--memory")
    assert row["memory_ratio"] == pytest.approx(row["peak_memory_mib"] / row["peer_peak_memory_mib"])
    assert row["memory_ratio"] < 1


@pytest.mark.parametrize("theirs", [(5.0, 1.001), (5.001, 1.0), (math.nan, 1.0), (5.0, math.nan)])
def test_sides_that_differ_are_not_timed(theirs: tuple[float, float], monkeypatch: pytest.MonkeyPatch) -> None:
    _give(monkeypatch, *TINY)
    case = throughput.Case(throughput.parse_arguments(), "b0", 64, 1, "off")
    assert case.compare("smp", (5.0, 1.0), (5.0, 1.0)) == {"loss_difference": 0.0, "grad_norm_difference": 0.0}
    with pytest.raises(SystemExit, match="smp does not give the same result"):
        case.compare("smp", (5.0, 1.0), theirs)


def test_a_row_too_large_to_measure_is_predicted_for_every_peer() -> None:
    small: dict[str, Any] = {"mode": "train", "variant": "b0", "amp": "off", "compile": False, "dtype": "float32"}
    small |= {"size": 64, "batch_size": 2, "predicted": False, "gflop": 1.0, "ratio": 2.0, "smp_ratio": 3.0}
    small |= {"ms": 10.0, "peer_ms": 20.0, "smp_ms": 30.0}
    small |= {"peak_memory_mib": 5.0, "peer_peak_memory_mib": 6.0, "smp_peak_memory_mib": 7.0}
    row = throughput.predict([small], "b0", 128, 4, "off")
    assert row is not None
    assert row["predicted"]
    assert (row["ms"], row["peer_ms"], row["smp_ms"], row["gflop"]) == (80.0, 160.0, 240.0, 8.0)
    assert (row["ratio"], row["smp_ratio"], row["needed_mib"]) == (2.0, 3.0, 56.0)
    assert throughput.predict([small], "b1", 128, 4, "off") is None


@pytest.mark.parametrize(
    ("names", "chosen"), [("transformers", ["transformers"]), ("transformers,transformers", ["transformers"])]
)
def test_against_takes_names_with_commas_between(
    names: str, chosen: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    _give(monkeypatch, "--against", names)
    assert throughput.parse_arguments().against == chosen


def test_an_unknown_peer_is_refused_with_the_known_ones(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _give(monkeypatch, "--against", "transformers,mmseg")
    with pytest.raises(SystemExit):
        throughput.parse_arguments()
    assert "'mmseg' is none of transformers, smp" in capsys.readouterr().err


def test_a_peer_that_is_not_installed_is_one_line_that_tells_how_to_install_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "segmentation_models_pytorch", None)  # as if it were not there
    _give(monkeypatch, "--against", "transformers,smp")
    with pytest.raises(SystemExit) as stopped:
        throughput.parse_arguments()
    assert stopped.value.code == "error: smp is not installed; pip install segmentation-models-pytorch"


@pytest.fixture
def folder_of_b0(tmp_path: Path) -> Path:
    """A saved B0 whose weights are large enough that every layer shows, without dropout."""
    torch.manual_seed(0)
    model = Segformer(VARIANTS["b0"](id2label=ID2LABEL, drop_path_rate=0.0, classifier_dropout_prob=0.0))
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.05) if weight.ndim > 1 else weight.data.add_(0.05)
    model.save_pretrained(tmp_path)
    ImageProcessor(size=(64, 96)).save_pretrained(tmp_path)
    return tmp_path


@pytest.fixture
def batch() -> tuple[Tensor, Tensor]:
    """Two images with labels, some of them ignored."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 150, (2, 64, 96), generator=generator)
    labels[:, :8] = 255
    return torch.randn(2, 3, 64, 96, generator=generator), labels


def test_smp_with_our_weights_gives_our_logits(folder_of_b0: Path, batch: tuple[Tensor, Tensor]) -> None:
    pytest.importorskip("segmentation_models_pytorch")
    ours, images = Segformer.from_pretrained(folder_of_b0), batch[0]
    small, enlarged = (peers.smp_model(folder_of_b0, torch.device("cpu"), upsampling=times).eval() for times in (1, 4))
    assert {module.eps for module in small.modules() if isinstance(module, torch.nn.LayerNorm)} == {1e-5}
    with torch.no_grad():
        expected = ours(images)
        torch.testing.assert_close(small(images), expected, rtol=1e-5, atol=1e-5 * expected.abs().max().item())
        expected = F.interpolate(expected, (64, 96), mode="bilinear", align_corners=False)
        torch.testing.assert_close(enlarged(images), expected, rtol=1e-5, atol=1e-5 * expected.abs().max().item())


def test_smp_with_our_weights_gives_our_loss_and_gradient(folder_of_b0: Path, batch: tuple[Tensor, Tensor]) -> None:
    pytest.importorskip("segmentation_models_pytorch")
    images, labels = batch
    ours = Segformer.from_pretrained(folder_of_b0).train()
    expected = fullres.cross_entropy(ours(images), labels)
    expected.backward()
    peer = peers.SmpPeer(folder_of_b0, torch.device("cpu"), "train")
    loss = peer.loss(images, labels)
    loss.backward()
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=0)
    gradients = {name: weight.grad for name, weight in ours.named_parameters()}
    names = peers.smp_names_in_ours(name for name, _ in peer.model.named_parameters())
    assert set(names.values()) == set(gradients)
    # Some biases stand before a BatchNorm, which takes them out again: their gradient is rounding around zero.
    largest = max(gradient.abs().max().item() for gradient in gradients.values() if gradient is not None)
    for name, weight in peer.model.named_parameters():
        torch.testing.assert_close(weight.grad, gradients[names[name]], rtol=1e-3, atol=1e-5 * largest, msg=name)


def test_precisions_are_compared_step_by_step_on_the_same_run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], small_shards: Path, small_checkpoint: Path
) -> None:
    data = ["--recipe", "guide", "--dataset", str(small_shards), "--split", "train", "--checkpoint"]
    _give(monkeypatch, "--steps", "3", *data, str(small_checkpoint), "--device", "cpu")
    precision.main()
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    losses, scores = result["rows"]
    assert (losses["steps"], len(losses["float32_losses"]), len(losses["bfloat16_losses"])) == ("1 to 3", 3, 3)
    assert losses["difference_on_one_thread"] < 1e-5 < losses["difference"] < 0.02  # eight bits hold one to 0.004
    assert scores["steps"] == "mean IoU after them"


@pytest.mark.slow
def test_sides_in_processes_of_their_own_are_compared_and_take_turns(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    _give(monkeypatch, "--size", "64", "--batch-size", "1", "--repeats", "1", "--amp", "off")
    importlib.import_module("benchmarks.real_use").main()
    rows = json.loads(capfd.readouterr().out.splitlines()[-1])["rows"]
    assert [(row["work"], row["peers_memory"]) for row in rows] == [
        (work, memory) for work in ("step", "photo") for memory in ("as it comes", "kept")
    ]
    assert all(row["ms"] > 0 and row["ratio"] == pytest.approx(row["peer_ms"] / row["ms"], rel=1e-3) for row in rows)


@pytest.mark.slow
def test_exported_forms_are_compared_before_they_are_timed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], folder_of_b0: Path
) -> None:
    pytest.importorskip("onnxruntime", reason="no onnxruntime; pip install -e '.[export]'")
    from benchmarks import exported

    _give(monkeypatch, "--checkpoint", str(folder_of_b0), "--size", "64", "--repeats", "1")
    exported.main()
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [row["form"] for row in result["rows"]] == ["torch", "peer, onnx", "ours, onnx"]
    assert all(row["pixel_agreement"] >= 0.9999 for row in result["rows"])
    assert [row["opset"] for row in result["rows"]] == [None, 18, 18]
    noise = torch.randn(1, 150, 16, 16, generator=torch.Generator().manual_seed(0)).numpy()
    monkeypatch.setattr(exported, "onnx_form", lambda *_, **__: exported.Form(lambda: noise))
    with pytest.raises(SystemExit, match=r"peer, onnx gives another label map on .*; nothing was timed"):
        exported.main()


def test_recipes_have_the_same_minutes_and_are_scored_alike(
    small_shards: Path,
    small_checkpoint: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    data = ["--dataset", str(small_shards), "--checkpoint", str(small_checkpoint), "--device", "cpu"]
    settings = ["image_size=32", "dataloader_num_workers=0", "warmup_steps=1"]
    _give(monkeypatch, *data, "--minutes", "0.03", "--runs", "own", "guide", "--set", *settings)
    streets.main()
    rows = json.loads(capsys.readouterr().out.splitlines()[-1])["rows"]
    assert [row["run"] for row in rows] == ["own", "guide"]
    for row in rows:
        assert [row["curve"][-1][key] for key in ("step", "minutes")] == [row["steps"], row["minutes"]]
        assert 0.02 < row["minutes"] < 0.3  # on a machine that may be busy
        assert len(row["per_category_iou"]) == 150
        assert 0 <= row["scored_pixel_accuracy"] <= 1


def test_a_curve_has_the_time_that_the_log_tells() -> None:
    scores = [{"step": step, "eval_mean_iou": step / 100} for step in (3, 6, 7)]
    assert streets.curve_of([{"loss": 1.0}, *scores, {"train_runtime": 420.0}]) == [
        {"step": step, "mean_iou": step / 100, "minutes": step} for step in (3, 6, 7)
    ]
