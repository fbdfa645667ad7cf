"""Four spellings of one model: the tensor names of this code and of the three kinds of checkpoint in circulation.

``v4`` is what the Hub holds and what we write; ``v5`` is what transformers 5 uses in memory and, for some models, in
its files; ``original`` is the authors' release. A checkpoint may mix them: every tensor is recognised by itself.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

# {i} is the stage from 0, {n} the stage from 1, {j} the block. Keys and values are one Linear here and in the original
# (keys first), two elsewhere.
_OURS_V4_V5_ORIGINAL = """
encoder.stages.{i}.patch_embedding.projection | segformer.encoder.patch_embeddings.{i}.proj | segformer.stages.{i}.patch_embeddings.proj | patch_embed{n}.proj
encoder.stages.{i}.patch_embedding.norm | segformer.encoder.patch_embeddings.{i}.layer_norm | segformer.stages.{i}.patch_embeddings.layer_norm | patch_embed{n}.norm
encoder.stages.{i}.blocks.{j}.attention_norm | segformer.encoder.block.{i}.{j}.layer_norm_1 | segformer.stages.{i}.blocks.{j}.layernorm_before | block{n}.{j}.norm1
encoder.stages.{i}.blocks.{j}.attention.query | segformer.encoder.block.{i}.{j}.attention.self.query | segformer.stages.{i}.blocks.{j}.attention.q_proj | block{n}.{j}.attn.q
encoder.stages.{i}.blocks.{j}.attention.key_value | | | block{n}.{j}.attn.kv
encoder.stages.{i}.blocks.{j}.attention.key | segformer.encoder.block.{i}.{j}.attention.self.key | segformer.stages.{i}.blocks.{j}.attention.k_proj |
encoder.stages.{i}.blocks.{j}.attention.value | segformer.encoder.block.{i}.{j}.attention.self.value | segformer.stages.{i}.blocks.{j}.attention.v_proj |
encoder.stages.{i}.blocks.{j}.attention.reduction.projection | segformer.encoder.block.{i}.{j}.attention.self.sr | segformer.stages.{i}.blocks.{j}.attention.sequence_reduction.sequence_reduction | block{n}.{j}.attn.sr
encoder.stages.{i}.blocks.{j}.attention.reduction.norm | segformer.encoder.block.{i}.{j}.attention.self.layer_norm | segformer.stages.{i}.blocks.{j}.attention.sequence_reduction.layer_norm | block{n}.{j}.attn.norm
encoder.stages.{i}.blocks.{j}.attention.out | segformer.encoder.block.{i}.{j}.attention.output.dense | segformer.stages.{i}.blocks.{j}.attention.o_proj | block{n}.{j}.attn.proj
encoder.stages.{i}.blocks.{j}.ffn_norm | segformer.encoder.block.{i}.{j}.layer_norm_2 | segformer.stages.{i}.blocks.{j}.layernorm_after | block{n}.{j}.norm2
encoder.stages.{i}.blocks.{j}.ffn.expand | segformer.encoder.block.{i}.{j}.mlp.dense1 | segformer.stages.{i}.blocks.{j}.mlp.fc1 | block{n}.{j}.mlp.fc1
encoder.stages.{i}.blocks.{j}.ffn.depthwise | segformer.encoder.block.{i}.{j}.mlp.dwconv.dwconv | segformer.stages.{i}.blocks.{j}.mlp.dwconv.dwconv | block{n}.{j}.mlp.dwconv.dwconv
encoder.stages.{i}.blocks.{j}.ffn.contract | segformer.encoder.block.{i}.{j}.mlp.dense2 | segformer.stages.{i}.blocks.{j}.mlp.fc2 | block{n}.{j}.mlp.fc2
encoder.stages.{i}.norm | segformer.encoder.layer_norm.{i} | segformer.stages.{i}.layer_norm | norm{n}
decoder.projections.{i} | decode_head.linear_c.{i}.proj | decode_head.linear_projections.{i}.proj | decode_head.linear_c{n}.proj
decoder.fuse | decode_head.linear_fuse | decode_head.linear_fuse | decode_head.linear_fuse.conv
decoder.norm | decode_head.batch_norm | decode_head.batch_norm | decode_head.linear_fuse.bn
decoder.classifier | decode_head.classifier | decode_head.classifier | decode_head.linear_pred
"""  # noqa: E501  # a table reads best with one row a line

# Heads for other tasks, and one layer that the original never uses: they may be there, and nothing here needs them.
_OTHER_HEADS = re.compile(r"(classifier|head|decode_head\.conv_seg|auxiliary_head)\.")


@dataclass(frozen=True)
class _Row:
    """The four templates of one layer; a dialect without that layer has an empty one."""

    ours: str
    v4: str
    v5: str
    original: str


_ROWS = [_Row(*(cell.strip() for cell in line.split("|"))) for line in _OURS_V4_V5_ORIGINAL.strip().splitlines()]


def _pattern(template: str) -> re.Pattern[str]:
    """A template as a regular expression; the prefixes of whole-model files may be absent or present."""
    body = re.escape(template)
    for letter in "ijn":
        body = body.replace(rf"\{{{letter}\}}", rf"(?P<{letter}>\d+)", 1)
    body = body.replace(r"segformer\.", r"(?:segformer\.)?", 1)
    return re.compile(rf"(?:backbone\.)?{body}\.(?P<tensor>weight|bias|running_mean|running_var|num_batches_tracked)")


_READING = [(_pattern(template), row.ours) for row in _ROWS for template in {row.v4, row.v5, row.original} if template]
_WRITING = [(_pattern(row.ours), row.v4) for row in _ROWS if row.v4]


def to_ours(weights: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """Rename a checkpoint's tensors to this code's names; also return the names of other tasks' heads it carries.

    Raises ValueError for a tensor that belongs to no SegFormer, for one given twice, and for a key without its value.
    """
    ours: dict[str, Tensor] = {}
    other_heads, unknown = [], []
    for name, tensor in weights.items():
        renamed = _rename(name, _READING)
        if renamed in ours:
            raise ValueError(f"holds {renamed} twice, the second time as {name}")
        if renamed is not None:
            ours[renamed] = tensor
        elif _OTHER_HEADS.match(name):
            other_heads.append(name)
        else:
            unknown.append(name)
    if unknown:
        raise ValueError(f"holds {len(unknown)} tensors that no SegFormer has, such as {', '.join(unknown[:3])}")
    return _join_keys_and_values(ours), other_heads


def to_v4(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename this code's tensors to the names on the Hub; works for parameters and gradients alike."""
    renamed = {}
    for name, tensor in weights.items():
        halves = tensor.chunk(2) if ".key_value." in name else (tensor,)
        for v4_name, half in zip(v4_names(name), halves, strict=True):
            renamed[v4_name] = half
    return renamed


def v4_names(name: str) -> list[str]:
    """The names that one of our tensors has on the Hub: two for a joined key and value, else one."""
    parts = [name.replace(".key_value.", f".{half}.") for half in ("key", "value")]
    found = [_rename(part, _WRITING) for part in dict.fromkeys(parts)]
    return [v4_name for v4_name in found if v4_name is not None]


def _rename(name: str, patterns: Iterable[tuple[re.Pattern[str], str]]) -> str | None:
    for pattern, template in patterns:
        if match := pattern.fullmatch(name):
            places = {letter: int(digits) for letter, digits in match.groupdict().items() if letter in "ijn"}
            if "n" in places:
                places["i"] = places["n"] - 1
            return f"{template.format(**places)}.{match['tensor']}"
    return None


def _join_keys_and_values(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    joined = {}
    for name, tensor in weights.items():
        joined_name = re.sub(r"\.attention\.(key|value)\.", ".attention.key_value.", name)
        if joined_name != name and joined_name in weights:
            raise ValueError(f"holds {joined_name} twice, the second time as {name}")
        if ".attention.key." in name:
            value_name = name.replace(".attention.key.", ".attention.value.")
            if value_name not in weights:
                raise ValueError(f"holds {name} but no {value_name}")
            if tensor.shape != weights[value_name].shape:
                raise ValueError(f"{name} is {list(tensor.shape)} but {value_name} {list(weights[value_name].shape)}")
            if tensor.dtype != weights[value_name].dtype or not (tensor.ndim and tensor.is_floating_point()):
                raise ValueError(f"{name} and {value_name} are no two halves of one weight")
            joined[joined_name] = torch.cat([tensor.float(), weights[value_name].float()])
        elif ".attention.value." in name:
            if name.replace(".value.", ".key.") not in weights:
                raise ValueError(f"holds {name} but no {name.replace('.value.', '.key.')}")
        else:
            joined[name] = tensor
    return joined
