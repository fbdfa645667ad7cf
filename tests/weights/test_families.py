"""Checkpoints that the peers' own code made, where it is installed: our model answers as theirs does.

Their LayerNorms run at an eps of 1e-6 in most places, ours at transformers' 1e-5 in all. Theirs are set to ours where
the names are under test, and the difference that is left otherwise is bounded by itself.
"""

from __future__ import annotations

import importlib
import json
import logging
import re
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from checkpoints import Weights, assert_same_logits, mmseg_encoder, original, smp
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

from segformer import VARIANTS, Segformer, Segmenter
from segformer.weights import dialects


def disturb(model: nn.Module, eps: float | None = 1e-5) -> None:
    """Random weights and statistics everywhere; with ``eps``, in every LayerNorm."""
    torch.manual_seed(0)
    for name, tensor in model.state_dict().items():
        if name.endswith("running_var"):
            tensor.uniform_(0.1, 1.0)
        elif tensor.is_floating_point():
            tensor.normal_(std=0.1)
    for module in model.modules():
        if isinstance(module, nn.LayerNorm):
            module.eps = eps or module.eps


def random_images(channels: int = 3) -> Tensor:
    return torch.randn(2, channels, 64, 96, generator=torch.Generator().manual_seed(1))


# segmentation_models_pytorch


def smp_model(eps: float | None = 1e-5, **settings: Any) -> Any:
    """A Segformer of segmentation_models_pytorch, every tensor random."""
    library = pytest.importorskip(
        "segmentation_models_pytorch", reason="no segmentation_models_pytorch; pip install segmentation-models-pytorch"
    )
    model = library.Segformer(**{"encoder_name": "mit_b0", "encoder_weights": None, "classes": 7} | settings)
    disturb(model, eps)
    return model.eval()


@torch.no_grad()
def smp_logits(model: Any, images: Tensor) -> Tensor:
    """What it computes before it enlarges, which it does with other corners than anybody else."""
    return model.segmentation_head[0](model.decoder(model.encoder(images)))


@pytest.mark.parametrize("form", ["folder", "state dict", "lightning"])
@pytest.mark.parametrize(
    "settings", [{}, {"decoder_segmentation_channels": 64, "in_channels": 4}, {"encoder_name": "mit_b2"}], ids=str
)
def test_smp_models_answer_here_as_there(form: str, settings: dict[str, Any], tmp_path: Path) -> None:
    theirs = smp_model(**settings)
    path = tmp_path
    if form == "folder":
        theirs.save_pretrained(tmp_path)
    else:
        path = tmp_path / "last.ckpt"
        weights = theirs.state_dict()
        wrapped = {"epoch": 1, "state_dict": {f"model.{name}": tensor for name, tensor in weights.items()}}
        torch.save(weights if form == "state dict" else wrapped, path)
    ours = Segformer.from_pretrained(path)
    assert ours.load_report.missing == ours.load_report.unexpected == []
    images = random_images(settings.get("in_channels", 3))
    with torch.no_grad():
        assert_same_logits(ours(images), smp_logits(theirs, images))


def test_the_eps_of_smp_moves_logits_little(tmp_path: Path) -> None:
    theirs = smp_model(eps=None)
    theirs.save_pretrained(tmp_path)
    with torch.no_grad():
        ours, expected = Segformer.from_pretrained(tmp_path)(random_images()), smp_logits(theirs, random_images())
    assert 0 < (ours - expected).abs().max() < 1e-3 * expected.abs().max()


def test_a_single_logit_of_smp_becomes_the_two_classes_that_its_sigmoid_means(tmp_path: Path) -> None:
    theirs, images = smp_model(classes=1), random_images()
    with torch.no_grad():
        theirs.segmentation_head[0].bias -= smp_logits(theirs, images).median()  # so that both classes occur
    theirs.save_pretrained(tmp_path)
    with torch.no_grad():
        ours, logit = Segformer.from_pretrained(tmp_path)(images), smp_logits(theirs, images)
    torch.testing.assert_close(ours, torch.cat([torch.zeros_like(logit), logit], 1), rtol=0, atol=1e-5)
    certain = logit[:, 0].abs() > 1e-5  # nearer to 0 the last bit decides
    assert torch.equal(ours.argmax(1)[certain], (logit[:, 0].sigmoid() > 0.5).long()[certain])
    assert 0 < ours.argmax(1).float().mean() < 1


def test_the_names_written_down_for_smp_are_its_own() -> None:
    ours = Segformer(VARIANTS["b0"](num_labels=7))
    written = smp(dialects.to_v4(ours.state_dict()))
    theirs = smp_model().state_dict()
    assert {name: tensor.shape for name, tensor in written.items()} == {k: v.shape for k, v in theirs.items()}


def test_a_head_for_whole_images_of_smp_is_left_out_and_named(tmp_path: Path) -> None:
    smp_model(aux_params={"classes": 3}).save_pretrained(tmp_path)
    report = Segformer.from_pretrained(tmp_path).load_report
    assert sorted(report.unexpected) == ["classification_head.3.bias", "classification_head.3.weight"]


def test_another_model_of_smp_is_refused_by_its_name(tmp_path: Path) -> None:
    smp_model()  # skips where the library is absent
    library = importlib.import_module("segmentation_models_pytorch")
    library.Unet("mit_b0", encoder_weights=None).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"config\.json: _model_class is 'Unet'; .* 'Segformer' only"):
        Segformer.from_pretrained(tmp_path)
    (tmp_path / "config.json").unlink()
    with pytest.raises(ValueError, match=r"tensors that no SegFormer has, such as decoder\."):
        Segformer.from_pretrained(tmp_path / "model.safetensors")


def write_smp(folder: Path, v4: Weights, **entries: Any) -> None:
    """A folder as the library writes it, made by hand."""
    config = {"_model_class": "Segformer", "encoder_name": "mit_b0", "encoder_depth": 5, "in_channels": 3, "classes": 7}
    (folder / "config.json").write_text(json.dumps(config | {"decoder_segmentation_channels": 256} | entries))
    save_file({name: tensor.clone() for name, tensor in smp(v4).items()}, folder / "model.safetensors")


@pytest.fixture
def b0() -> Weights:
    torch.manual_seed(0)
    return dialects.to_v4(Segformer(VARIANTS["b0"](num_labels=7)).state_dict())


def test_a_folder_of_smp_needs_nothing_else(b0: Weights, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_smp(tmp_path, b0)
    with caplog.at_level(logging.INFO, "segformer"):
        segmenter = Segmenter.from_pretrained(tmp_path, device="cpu")
    assert segmenter.model.config == VARIANTS["b0"](num_labels=7)
    assert "holds the names of segmentation_models_pytorch" in caplog.text
    assert segmenter.label_map(Image.new("RGB", (40, 30))).shape == (30, 40)


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"encoder_name": "resnet34"}, r"encoder_name is 'resnet34' and encoder_depth 5; a SegFormer has mit_b0"),
        ({"encoder_depth": 4}, r"encoder_name is 'mit_b0' and encoder_depth 4"),
        ({"_model_class": "Unet"}, r"_model_class is 'Unet'"),
        ({"classes": 9}, r"decode_head\.classifier\.\w+ is \[7.*\[9"),
        ({"classes": "7"}, r"num_labels holds '7'"),
        ({"encoder_name": "mit_b1"}, r"model\.safetensors: .* in the weights but .* by the configuration"),
    ],
    ids=str,
)
def test_an_smp_config_that_cannot_be_ours_is_refused_by_entry(
    entries: dict[str, Any], message: str, b0: Weights, tmp_path: Path
) -> None:
    write_smp(tmp_path, b0, **entries)
    with pytest.raises(ValueError, match=message):
        Segformer.from_pretrained(tmp_path)


# mmsegmentation


def mmseg_class(module: str, name: str) -> Any:
    """A class of mmsegmentation 1.x; the compiled operations that it imports on the way are of no use to SegFormer."""
    for library in ("mmcv", "mmengine"):
        pytest.importorskip(library, reason=f"no {library}; pip install mmsegmentation mmengine 'mmcv-lite<2.2'")
    operations = ModuleType("mmcv._ext")
    operations.__spec__ = ModuleSpec("mmcv._ext", None)
    operations.__getattr__ = lambda name: None  # type: ignore[method-assign]
    sys.modules.setdefault("mmcv._ext", operations)
    return getattr(pytest.importorskip(module, reason="no mmsegmentation 1.x; pip install mmsegmentation"), name)


def mmseg_model() -> nn.Module:
    """Its backbone and decode head of B0's sizes, in one module as its EncoderDecoder has them, every tensor random."""
    backbone = mmseg_class("mmseg.models.backbones.mit", "MixVisionTransformer")
    head = mmseg_class("mmseg.models.decode_heads.segformer_head", "SegformerHead")
    model = nn.Module()
    model.backbone = backbone(embed_dims=32, num_layers=[2, 2, 2, 2], num_heads=[1, 2, 5, 8])
    model.decode_head = head(in_channels=[32, 64, 160, 256], in_index=[0, 1, 2, 3], channels=256, num_classes=7)
    disturb(model)
    return model.eval()


def test_the_encoder_of_mmsegmentation_gives_its_features_here(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    theirs = mmseg_model()
    history = mmseg_class("mmengine.logging", "HistoryBuffer")([0.5, 0.4], [1, 1])
    meta = {"epoch": 1, "seed": np.int64(3)}
    saved = {"meta": meta, "state_dict": theirs.state_dict(), "message_hub": {"loss": history}}
    torch.save(saved, tmp_path / "iter_160000.pth")
    with caplog.at_level(logging.INFO, "segformer"):
        ours = Segformer.from_pretrained(tmp_path / "iter_160000.pth", num_labels=7)
    with torch.no_grad():
        for found, expected in zip(ours.encoder(random_images()), theirs.backbone(random_images()), strict=True):
            assert_same_logits(found, expected)
    assert "its decode head is mmsegmentation's, another function, and is left out" in caplog.text
    assert "decode_head.fusion_conv.conv.weight" in ours.load_report.unexpected
    assert len(ours.load_report.missing) == 16


def test_the_names_written_down_for_mmsegmentation_are_its_own(b0: Weights) -> None:
    theirs = mmseg_model().backbone.state_dict(prefix="backbone.")
    assert {k: v.shape for k, v in mmseg_encoder(b0).items()} == {k: v.shape for k, v in theirs.items()}


MMSEG_HEAD = {
    "decode_head.conv_seg.weight": torch.zeros(7, 256, 1, 1),
    "decode_head.convs.0.conv.weight": torch.zeros(256, 32, 1, 1),
    "decode_head.convs.0.bn.weight": torch.ones(256),
    "decode_head.fusion_conv.conv.weight": torch.zeros(256, 1024, 1, 1),
}


def test_the_head_of_mmsegmentation_is_never_taken_for_ours(b0: Weights, tmp_path: Path) -> None:
    torch.save({"state_dict": mmseg_encoder(b0) | MMSEG_HEAD}, tmp_path / "iter_160000.pth")
    assert Segformer.from_pretrained(tmp_path / "iter_160000.pth").load_report.unexpected == list(MMSEG_HEAD)
    with pytest.raises(ValueError, match=r"iter_160000\.pth has no decoder of ours"):
        Segmenter.from_pretrained(tmp_path / "iter_160000.pth")


@pytest.mark.parametrize("shape", [(32, 32), (64, 32), (95, 32), (96, 31), (96,), (96, 32, 1, 1), (0, 32), ()], ids=str)
def test_packed_attention_of_a_wrong_size_is_refused_by_name(
    shape: tuple[int, ...], b0: Weights, tmp_path: Path
) -> None:
    weights = mmseg_encoder(b0) | {"backbone.layers.0.1.0.attn.attn.in_proj_weight": torch.zeros(shape)}
    torch.save(weights, tmp_path / "wrong.pth")
    message = rf"wrong\.pth.*stages\.0\.blocks\.0\.attention\.query_key_value\.weight is {re.escape(str(list(shape)))}"
    with pytest.raises(ValueError, match=message):
        Segformer.from_pretrained(tmp_path / "wrong.pth")


@pytest.mark.parametrize(
    "name", ["block1.0.attn.q.weight", "block1.0.attn.kv.bias", "segformer.encoder.block.0.0.attention.self.query.bias"]
)
def test_packed_attention_beside_its_parts_is_refused(name: str, b0: Weights, tmp_path: Path) -> None:
    twin = (original(b0) | b0)[name]
    torch.save(mmseg_encoder(b0, "") | {name: twin}, tmp_path / "twice.pth")
    with pytest.raises(ValueError, match=r"twice\.pth holds encoder\.stages\.0\.blocks\.0\.attention\.\S+ twice"):
        Segformer.from_pretrained(tmp_path / "twice.pth")


# Half of one and half of another


def test_a_model_whose_halves_two_families_name_loads_whole(b0: Weights, tmp_path: Path) -> None:
    encoder = {name: tensor for name, tensor in b0.items() if name.startswith("segformer.")}
    decoder = {name: tensor for name, tensor in smp(b0).items() if not name.startswith("encoder.")}
    torch.save(encoder | decoder, tmp_path / "halves.pth")
    ours = Segformer.from_pretrained(tmp_path / "halves.pth")
    assert all(torch.equal(tensor, b0[name]) for name, tensor in dialects.to_v4(ours.state_dict()).items())


@pytest.mark.parametrize("half", ["block1", "patch_embed", "norm", "block4.1.attn"])
def test_half_a_family_is_refused_by_what_it_lacks(half: str, b0: Weights, tmp_path: Path) -> None:
    kept = {name: tensor for name, tensor in original(b0).items() if not name.startswith(half)}
    torch.save(kept, tmp_path / "half.pth")
    write_config(tmp_path)
    with pytest.raises(ValueError, match=r"half\.pth lacks \d+ tensors: segformer\.encoder\.") as error:
        Segformer.from_pretrained(tmp_path / "half.pth")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("other", ["resnet", "swin", "vit"])
def test_a_model_of_another_kind_is_refused_by_its_names(other: str, tmp_path: Path) -> None:
    names = {
        "resnet": ["conv1.weight", "bn1.weight", "layer1.0.conv1.weight", "fc.weight"],
        "swin": ["patch_embed.proj.weight", "layers.0.blocks.0.norm1.weight", "layers.0.2.weight", "norm.weight"],
        "vit": ["cls_token", "patch_embed.proj.weight", "blocks.0.norm1.weight", "norm.weight", "head.weight"],
    }
    torch.save({name: torch.zeros(3) for name in names[other]}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match=r"other\.pth holds \d tensors that no SegFormer has, such as"):
        Segformer.from_pretrained(tmp_path / "other.pth")


def write_config(folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps(VARIANTS["b0"](num_labels=7).to_dict()))
