"""One model in many spellings: the tensor names of this code and of every family of checkpoints in circulation.

``transformers`` is what the Hub holds and what we write; transformers 5 has names of its own in memory and, for some
models, in its files. A checkpoint may mix families: every tensor is recognised by itself, under any one prefix that all
of them share. mmsegmentation 1.x has our encoder, but its decode head normalises and rectifies every stage before it
fuses them, which is another function: that head is left out, never approximated.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from segformer.console import counted

_V4, _AUTHORS, _SMP = "transformers", "the authors", "segmentation_models_pytorch"
FAMILIES = ("this code", _V4, "transformers 5", _AUTHORS, "mmsegmentation 1.x", _SMP)

# The columns are the families. {i} is the stage from 0, {n} the stage from 1, {r} the stage counted back from the last
# of four, {j} the block; @ is what the first row says. Keys and values are one Linear here and at the authors' (keys
# first), two at transformers', and one with the queries in mmsegmentation.
_TABLE = """
encoder.stages.{i}.blocks.{j} | segformer.encoder.block.{i}.{j} | segformer.stages.{i}.blocks.{j} | block{n}.{j} | layers.{i}.1.{j} |

encoder.stages.{i}.patch_embedding.projection | segformer.encoder.patch_embeddings.{i}.proj | segformer.stages.{i}.patch_embeddings.proj | patch_embed{n}.proj | layers.{i}.0.projection |
encoder.stages.{i}.patch_embedding.norm | segformer.encoder.patch_embeddings.{i}.layer_norm | segformer.stages.{i}.patch_embeddings.layer_norm | patch_embed{n}.norm | layers.{i}.0.norm |
@.attention_norm | @.layer_norm_1 | @.layernorm_before | @.norm1 | @.norm1 |
@.attention.query | @.attention.self.query | @.attention.q_proj | @.attn.q | |
@.attention.key_value | | | @.attn.kv | |
@.attention.key | @.attention.self.key | @.attention.k_proj | | |
@.attention.value | @.attention.self.value | @.attention.v_proj | | |
@.attention.query_key_value | | | | @.attn.attn.in_proj |
@.attention.reduction.projection | @.attention.self.sr | @.attention.sequence_reduction.sequence_reduction | @.attn.sr | @.attn.sr |
@.attention.reduction.norm | @.attention.self.layer_norm | @.attention.sequence_reduction.layer_norm | @.attn.norm | @.attn.norm |
@.attention.out | @.attention.output.dense | @.attention.o_proj | @.attn.proj | @.attn.attn.out_proj |
@.ffn_norm | @.layer_norm_2 | @.layernorm_after | @.norm2 | @.norm2 |
@.ffn.expand | @.mlp.dense1 | @.mlp.fc1 | @.mlp.fc1 | @.ffn.layers.0 |
@.ffn.depthwise | @.mlp.dwconv.dwconv | @.mlp.dwconv.dwconv | @.mlp.dwconv.dwconv | @.ffn.layers.1 |
@.ffn.contract | @.mlp.dense2 | @.mlp.fc2 | @.mlp.fc2 | @.ffn.layers.4 |
encoder.stages.{i}.norm | segformer.encoder.layer_norm.{i} | segformer.stages.{i}.layer_norm | norm{n} | layers.{i}.2 |

decoder.projections.{i} | decode_head.linear_c.{i}.proj | decode_head.linear_projections.{i}.proj | decode_head.linear_c{n}.proj | | decoder.mlp_stage.{r}.linear
decoder.fuse | decode_head.linear_fuse | decode_head.linear_fuse | decode_head.linear_fuse.conv | | decoder.fuse_stage.0
decoder.norm | decode_head.batch_norm | decode_head.batch_norm | decode_head.linear_fuse.bn | | decoder.fuse_stage.1
decoder.classifier | decode_head.classifier | decode_head.classifier | decode_head.linear_pred | | segmentation_head.0
"""  # noqa: E501  # a table reads best with one row a line

# What may stand beside or around an encoder's names, whosever they are.
_AROUND_ENCODER = re.compile(r"^(segformer\.)?(encoder\.)?")
# Heads for other tasks, mmsegmentation's own, and one layer that the authors never use: nothing here needs them.
_OTHER_HEADS = re.compile(r"(classifier|head|classification_head|auxiliary_head|decode_head\.conv_seg)\.")
_MMSEG_HEAD = re.compile(r"decode_head\.(convs|fusion_conv)\.")
# What tools add to every layer: thop's counts, and the step count of torch's averaged models.
_COUNTS = re.compile(r"(.*\.)?(total_ops|total_params|n_averaged)")
_PLACES = {
    "i": r"(?P<i>0|[1-9][0-9]{0,3})",
    "j": r"(?P<j>0|[1-9][0-9]{0,3})",
    "n": r"(?P<n>[1-9][0-9]{0,3})",
    "r": r"(?P<r>[0-3])",
}
_TENSOR = r"(?P<tensor>weight|bias|running_mean|running_var|num_batches_tracked)"


@dataclass(frozen=True)
class _Spelling:
    """How a family spells one layer, and how this code does."""

    pattern: re.Pattern[str]
    ours: str
    family: str


@dataclass(frozen=True)
class Recognised:
    """A checkpoint's tensors under this code's names.

    ``left_out`` are tensors of other tasks' heads and from beside the model, by the names they had. ``spelling`` says
    whose names they were, and ``remarks`` what else there is to know, a sentence each.
    """

    weights: dict[str, Tensor]
    left_out: list[str]
    families: list[str]
    prefix: str
    remarks: list[str]

    @property
    def spelling(self) -> str:
        """Whose names these were, in words."""
        under = f", under {self.prefix!r}" if self.prefix else ""
        return f"the names of {' and '.join(self.families)}{under}"

    @property
    def is_usual(self) -> bool:
        """Whether these are the names that the Hub holds and that we write."""
        return self.families == [_V4] and not self.prefix


def _rows() -> list[list[str]]:
    blocks, *rows = ([cell.strip() for cell in line.split("|")] for line in _TABLE.splitlines() if line)
    return [[cell.replace("@", block) for cell, block in zip(row, blocks, strict=True)] for row in rows]


def _pattern(template: str) -> str:
    """A template as a regular expression; around an encoder's name others' wrappings may stand or be absent."""
    bare = _AROUND_ENCODER.sub("", template)
    around = "" if bare.startswith(("decode", "segmentation_head")) else r"(?:(?:segformer|encoder|backbone)\.){0,2}"
    body = re.escape(bare)
    for letter, digits in _PLACES.items():
        body = body.replace(rf"\{{{letter}\}}", digits, 1)
    return rf"{around}{body}\.{_TENSOR}"


def _reading() -> list[_Spelling]:
    spellings: dict[str, _Spelling] = {}
    for row in _rows():
        for template, family in zip(row, FAMILIES, strict=True):
            if template:
                spellings.setdefault(template, _Spelling(re.compile(_pattern(template)), row[0], family))
    return list(spellings.values())


_READING = _reading()
_WRITING = [(re.compile(_pattern(row[0])), row[1]) for row in _rows() if row[1]]
# Where a model begins and ends: what stands before these stands before all of its names.
_ENDS = [
    [re.compile(rf"(?P<prefix>(?:[^.]+\.)*?){_pattern(template)}") for template in row if template]
    for row in _rows()
    if row[0] in ("decoder.fuse", "encoder.stages.{i}.patch_embedding.projection")
]


def recognise(weights: Mapping[str, Tensor]) -> Recognised:
    """Rename a checkpoint's tensors to this code's names.

    Raises ValueError for a tensor that belongs to no SegFormer, for one given twice, for several models in one file,
    and for parts of an attention that do not fit together.
    """
    prefix = _shared_prefix(weights)
    parts, left_out, found = _sort_out(weights, prefix)
    joined = _joined(parts)
    if _SMP in found:  # its encoder has the authors' names
        found.discard(_AUTHORS)
    remarks = []
    if any(_MMSEG_HEAD.match(name.removeprefix(prefix)) for name in left_out):
        remarks.append("its decode head is mmsegmentation's, another function, and is left out")
    if _SMP in found and _have_two_classes(joined):
        remarks.append("its one logit becomes two classes, of which 1 is where its sigmoid exceeds 0.5")
    return Recognised(joined, left_out, [family for family in FAMILIES if family in found], prefix, remarks)


def _sort_out(weights: Mapping[str, Tensor], prefix: str) -> tuple[dict[str, Tensor], list[str], set[str]]:
    """The tensors of the model, under our names; the names of those that it does without; the families they are of."""
    parts: dict[str, Tensor] = {}
    first_name: dict[str, str] = {}
    families: set[str] = set()
    left_out, unknown = [], []
    for name, tensor in weights.items():
        inner = name.removeprefix(prefix)
        found = _recognise(inner) if name.startswith(prefix) else None
        if found is not None:
            ours, family = found
            if ours in parts:
                raise ValueError(f"holds {ours} twice, as {first_name[ours]} and as {name}")
            parts[ours], first_name[ours] = tensor, name
            families.add(family)
        elif any(kind.match(inner) for kind in (_OTHER_HEADS, _MMSEG_HEAD)) or _COUNTS.fullmatch(name):
            left_out.append(name)
        elif name.startswith(prefix):
            unknown.append(name)
        else:  # beside the model: a loss's weights, a metric's counts
            left_out.append(name)
    if unknown or not parts:
        strange = unknown or list(weights)
        raise ValueError(
            f"holds {counted(len(strange), 'tensor')} that no SegFormer has, such as {', '.join(strange[:3])}"
        )
    return parts, left_out, families


def to_ours(weights: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """What ``recognise`` finds: the tensors under this code's names, and the names of those left out."""
    found = recognise(weights)
    return found.weights, found.left_out


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
    return [
        _fill(template, match)
        for part in dict.fromkeys(parts)
        for pattern, template in _WRITING
        if (match := pattern.fullmatch(part))
    ]


def _recognise(name: str) -> tuple[str, str] | None:
    """Our name for a tensor and the family that calls it so; None for a tensor that no SegFormer has."""
    name = name.replace(".in_proj_", ".in_proj.")  # as torch's own attention spells its packed weight and bias
    for spelling in _READING:
        if match := spelling.pattern.fullmatch(name):
            return _fill(spelling.ours, match), spelling.family
    return None


def _fill(template: str, match: re.Match[str]) -> str:
    places = {letter: int(digits) for letter, digits in match.groupdict().items() if letter in "ijnr"}
    if "n" in places:
        places["i"] = places["n"] - 1
    if "r" in places:
        places["i"] = 3 - places["r"]
    return f"{template.format(**places)}.{match['tensor']}"


def _shared_prefix(names: Iterable[str]) -> str:
    """What stands before all names of the model. Raises ValueError where there are several models."""
    first, last = (
        {match["prefix"]: name for name in names for each in patterns if (match := each.fullmatch(name))}
        for patterns in _ENDS
    )
    if max(len(first), len(last)) > 1:
        twins = max(first, last, key=len).values()
        raise ValueError(f"holds several models: {', '.join(twins)}; save the one you mean by itself")
    return "".join(last or first)


def _joined(parts: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors as this code keeps them: queries by themselves, keys and values as one, Linear for 1x1 convolutions.

    Raises ValueError, naming the tensor, where parts are missing, given twice or of sizes that do not go together.
    """
    joined: dict[str, Tensor] = {}
    for name, tensor in parts.items():
        for place, value in _pieces(name, tensor, parts):
            if place in joined:
                raise ValueError(f"holds {place} twice, the second time within {name}")
            joined[place] = value
    return joined


def _pieces(name: str, tensor: Tensor, parts: Mapping[str, Tensor]) -> list[tuple[str, Tensor]]:
    attention, middle, part = name.rpartition(".attention.")
    layer, _, kind = part.partition(".")
    if not middle:
        is_convolution = re.search(r"\.ffn\.(expand|contract)\.weight$", name) and tensor.shape[2:] == (1, 1)
        return [(name, tensor.flatten(1) if is_convolution else tensor)]
    if layer == "query_key_value":
        width = tensor.shape[0] // 3 if tensor.ndim else 0
        if tensor.shape != (3 * width, width)[: tensor.ndim] or tensor.ndim != (2 if kind == "weight" else 1):
            raise ValueError(f"{name} is {list(tensor.shape)}; queries, keys and values are three of one width")
        query, key_value = tensor[:width], tensor[width:]
        return [(f"{attention}.attention.query.{kind}", query), (f"{attention}.attention.key_value.{kind}", key_value)]
    if layer in ("key", "value"):
        other_name = f"{attention}.attention.{'value' if layer == 'key' else 'key'}.{kind}"
        if other_name not in parts:
            raise ValueError(f"holds {name} but no {other_name}")
        return [] if layer == "value" else [_key_value(name, other_name, tensor, parts[other_name])]
    return [(name, tensor)]


def _key_value(name: str, value_name: str, key: Tensor, value: Tensor) -> tuple[str, Tensor]:
    if key.shape != value.shape:
        raise ValueError(f"{name} is {list(key.shape)} but {value_name} {list(value.shape)}")
    if key.dtype != value.dtype or not (key.ndim and key.is_floating_point()):
        raise ValueError(f"{name} and {value_name} are no two halves of one weight")
    return name.replace(".attention.key.", ".attention.key_value."), torch.cat([key.float(), value.float()])


def _have_two_classes(ours: dict[str, Tensor]) -> bool:
    """Turn a classifier of one logit z into one of two, 0 and z: softmax then gives sigmoid(z), and argmax z > 0."""
    names = [f"decoder.classifier.{kind}" for kind in ("weight", "bias")]
    if not all(name in ours and ours[name].shape[:1] == (1,) for name in names):
        return False
    for name in names:
        ours[name] = torch.cat([torch.zeros_like(ours[name]), ours[name]])
    return True
