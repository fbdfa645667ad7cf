"""One model under the names of every family, in every kind of file."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from libraries import transformers
from safetensors.torch import save_file
from torch import Tensor

from segformer import Segformer
from segformer.weights import dialects

Weights = dict[str, Tensor]


def original(v4: Mapping[str, Tensor], backbone: str = "") -> Weights:
    """The names of the authors' release, each renamed by hand; a key and its value become one tensor, the key first."""
    places = {
        r"segformer\.encoder\.patch_embeddings\.(\d)\.proj": "patch_embed{}.proj",
        r"segformer\.encoder\.patch_embeddings\.(\d)\.layer_norm": "patch_embed{}.norm",
        r"segformer\.encoder\.block\.(\d)\.(\d)\.layer_norm_1": "block{}.{}.norm1",
        r"segformer\.encoder\.block\.(\d)\.(\d)\.attention\.self\.query": "block{}.{}.attn.q",
        r"segformer\.encoder\.block\.(\d)\.(\d)\.attention\.self\.key": "block{}.{}.attn.kv",
        r"segformer\.encoder\.block\.(\d)\.(\d)\.attention\.self\.sr": "block{}.{}.attn.sr",
        r"segformer\.encoder\.block\.(\d)\.(\d)\.attention\.self\.layer_norm": "block{}.{}.attn.norm",
        r"segformer\.encoder\.block\.(\d)\.(\d)\.attention\.output\.dense": "block{}.{}.attn.proj",
        r"segformer\.encoder\.block\.(\d)\.(\d)\.layer_norm_2": "block{}.{}.norm2",
        r"segformer\.encoder\.block\.(\d)\.(\d)\.mlp\.dense1": "block{}.{}.mlp.fc1",
        r"segformer\.encoder\.block\.(\d)\.(\d)\.mlp\.dwconv\.dwconv": "block{}.{}.mlp.dwconv.dwconv",
        r"segformer\.encoder\.block\.(\d)\.(\d)\.mlp\.dense2": "block{}.{}.mlp.fc2",
        r"segformer\.encoder\.layer_norm\.(\d)": "norm{}",
        r"decode_head\.linear_c\.(\d)\.proj": "decode_head.linear_c{}.proj",
        r"decode_head\.linear_fuse": "decode_head.linear_fuse.conv",
        r"decode_head\.batch_norm": "decode_head.linear_fuse.bn",
        r"decode_head\.classifier": "decode_head.linear_pred",
    }
    renamed = {}
    for name, tensor in v4.items():
        if ".self.value." in name:
            continue
        layer, _, kind = name.rpartition(".")
        ((numbers, place),) = [
            (match.groups(), place) for pattern, place in places.items() if (match := re.fullmatch(pattern, layer))
        ]
        stage, *block = numbers or ("0",)
        prefix = "" if name.startswith("decode_head.") else backbone
        if ".self.key." in name:
            tensor = torch.cat([tensor, v4[name.replace(".self.key.", ".self.value.")]])
        renamed[f"{prefix}{place.format(int(stage) + 1, *block)}.{kind}"] = tensor
    return renamed


def smp(v4: Mapping[str, Tensor]) -> Weights:
    """The names of segmentation_models_pytorch: the authors' encoder, and stages counted from the coarsest."""
    renamed = {}
    for name, tensor in original(v4, "encoder.").items():
        name = re.sub(
            r"decode_head\.linear_c(\d)\.proj", lambda found: f"decoder.mlp_stage.{4 - int(found[1])}.linear", name
        )
        name = name.replace("decode_head.linear_fuse.conv", "decoder.fuse_stage.0")
        name = name.replace("decode_head.linear_fuse.bn", "decoder.fuse_stage.1")
        renamed[name.replace("decode_head.linear_pred", "segmentation_head.0")] = tensor
    return renamed


def mmseg_encoder(v4: Mapping[str, Tensor], backbone: str = "backbone.") -> Weights:
    """The names of mmsegmentation 1.x: queries, keys and values in one tensor, the outer Linear as 1x1 convolutions."""
    places = [
        (r"patch_embed(\d)\.proj", r"layers.{}.0.projection"),
        (r"patch_embed(\d)\.norm", r"layers.{}.0.norm"),
        (r"norm(\d)", r"layers.{}.2"),
        (r"block(\d)\.(\d)\.attn\.proj", r"layers.{}.1.{}.attn.attn.out_proj"),
        (r"block(\d)\.(\d)\.mlp\.fc1", r"layers.{}.1.{}.ffn.layers.0"),
        (r"block(\d)\.(\d)\.mlp\.dwconv\.dwconv", r"layers.{}.1.{}.ffn.layers.1"),
        (r"block(\d)\.(\d)\.mlp\.fc2", r"layers.{}.1.{}.ffn.layers.4"),
        (r"block(\d)\.(\d)\.(norm[12]|attn\.sr|attn\.norm)", r"layers.{}.1.{}.{}"),
    ]
    theirs = original(encoder_only(dict(v4)))
    renamed = {}
    for name, tensor in theirs.items():
        layer, _, kind = name.rpartition(".")
        if layer.endswith("attn.kv"):
            continue
        if layer.endswith("attn.q"):
            stage, block = layer.removeprefix("block").split(".")[:2]
            packed = torch.cat([tensor, theirs[name.replace("attn.q.", "attn.kv.")]])
            renamed[f"{backbone}layers.{int(stage) - 1}.1.{block}.attn.attn.in_proj_{kind}"] = packed
            continue
        ((found, place),) = [(m.groups(), place) for pattern, place in places if (m := re.fullmatch(pattern, layer))]
        if layer.endswith((".fc1", ".fc2")) and kind == "weight":
            tensor = tensor[..., None, None]
        renamed[f"{backbone}{place.format(int(found[0]) - 1, *found[1:])}.{kind}"] = tensor
    return renamed


def encoder_only(weights: Weights) -> Weights:
    return {name: tensor for name, tensor in weights.items() if not name.startswith("decode_head.")}


def logits_of(source: Path, images: Tensor, **arguments: Any) -> Tensor:
    with torch.no_grad():
        return Segformer.from_pretrained(source, **arguments)(images)


def assert_same_logits(ours: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-5 * expected.abs().max().item())


Renaming = Callable[[Weights, transformers.SegformerForSemanticSegmentation], Weights]
DIALECTS: dict[str, Renaming] = {
    "v4": lambda v4, _: v4,
    "v5": lambda _, reference: dict(reference.state_dict()),
    "original": lambda v4, _: original(v4),
    "original with backbone": lambda v4, _: original(v4, "backbone."),
    "old encoder, new decoder": lambda v4, _: {
        name.replace("linear_c.", "linear_projections."): tensor for name, tensor in v4.items()
    },
    "smp": lambda v4, _: smp(v4),
    "ours": lambda v4, _: dialects.to_ours(v4)[0],
    "v4 without its prefix": lambda v4, _: {name.removeprefix("segformer."): tensor for name, tensor in v4.items()},
}
ENCODERS: dict[str, Renaming] = {
    "v4": lambda v4, _: encoder_only(v4),
    "v5": lambda _, reference: encoder_only(reference.state_dict()),
    "original": lambda v4, _: original(encoder_only(v4)),
    "original with backbone": lambda v4, _: original(encoder_only(v4), "backbone."),
    "v4 without its prefix": lambda v4, _: {k.removeprefix("segformer."): v for k, v in encoder_only(v4).items()},
    "v4 within its encoder": lambda v4, _: {
        k.removeprefix("segformer.encoder."): v for k, v in encoder_only(v4).items()
    },
    "ours": lambda v4, _: dialects.to_ours(encoder_only(v4))[0],
    "smp": lambda v4, _: smp(encoder_only(v4)),
    "mmseg": lambda v4, _: mmseg_encoder(v4),
    "mmseg without backbone": lambda v4, _: mmseg_encoder(v4, ""),
    "mmseg under a prefix": lambda v4, _: mmseg_encoder(v4, "module.backbone."),
}
FORMS: dict[str, Callable[[Weights, Path], None]] = {
    "model.safetensors": lambda weights, path: save_file({k: v.clone() for k, v in weights.items()}, path),
    "pytorch_model.bin": lambda weights, path: torch.save(weights, path),
    "segformer.pth": lambda weights, path: torch.save(weights, path),
    "wrapped.pth": lambda weights, path: torch.save({"state_dict": weights, "meta": {"epoch": 3}}, path),
}
