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
    "ours": lambda v4, _: dialects.to_ours(v4)[0],
    "v4 without its prefix": lambda v4, _: {name.removeprefix("segformer."): tensor for name, tensor in v4.items()},
}
FORMS: dict[str, Callable[[Weights, Path], None]] = {
    "model.safetensors": lambda weights, path: save_file({k: v.clone() for k, v in weights.items()}, path),
    "pytorch_model.bin": lambda weights, path: torch.save(weights, path),
    "segformer.pth": lambda weights, path: torch.save(weights, path),
    "wrapped.pth": lambda weights, path: torch.save({"state_dict": weights, "meta": {"epoch": 3}}, path),
}
