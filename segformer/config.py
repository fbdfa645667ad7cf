"""The sizes of a SegFormer, read from and written to the ``config.json`` that the Hub uses.

One dataclass describes every variant (B0 to B5, paper Table 6). Two entries of the Hub's file are deliberately absent:
``layer_norm_eps`` (1e-6 there, but transformers never reads it; every LayerNorm runs at 1e-5) and ``hidden_act``
(always the exact GELU; another value is refused rather than ignored).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

_MOST = 4096  # of any size; beyond what a model may have, so that no config.json asks for all memory or time there is
_MOST_LABELS = 2**16
_MOST_BLOCKS = 256  # of a stage
_SIZE_FIELDS = ("depths", "hidden_sizes", "num_attention_heads", "sr_ratios", "patch_sizes", "strides", "mlp_ratios")
_RATE_FIELDS = (
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
    "classifier_dropout_prob",
    "drop_path_rate",
)


@dataclass(frozen=True)
class SegformerConfig:
    """Sizes, regularisation and class names of one SegFormer; the defaults are B0 with 150 unnamed classes.

    Tuples have one entry per encoder stage, finest first. ``num_labels`` may be left out: it is the number of names in
    ``id2label``, or 150. Raises ValueError naming the field, its value and the rule.
    """

    depths: tuple[int, ...] = (2, 2, 2, 2)
    hidden_sizes: tuple[int, ...] = (32, 64, 160, 256)
    num_attention_heads: tuple[int, ...] = (1, 2, 5, 8)
    sr_ratios: tuple[int, ...] = (8, 4, 2, 1)
    patch_sizes: tuple[int, ...] = (7, 3, 3, 3)
    strides: tuple[int, ...] = (4, 2, 2, 2)
    mlp_ratios: tuple[int, ...] = (4, 4, 4, 4)
    decoder_hidden_size: int = 256
    num_channels: int = 3
    hidden_dropout_prob: float = 0.0
    attention_probs_dropout_prob: float = 0.0
    classifier_dropout_prob: float = 0.1
    drop_path_rate: float = 0.1
    initializer_range: float = 0.02
    num_labels: int = None  # type: ignore[assignment]  # never None once built
    id2label: Mapping[int, str] = None  # type: ignore[assignment]

    def __post_init__(self) -> None:
        if self.num_labels is None:
            object.__setattr__(self, "num_labels", 150 if self.id2label is None else len(self.id2label))
        _require_count("num_labels", self.num_labels, _MOST_LABELS)
        if self.id2label is None:
            object.__setattr__(self, "id2label", {k: f"LABEL_{k}" for k in range(self.num_labels)})
        self._check_sizes()
        self._check_rates()
        self._check_names()

    def _check_sizes(self) -> None:
        if isinstance(self.depths, list | tuple) and len(self.depths) == 1:
            raise ValueError(f"depths is {self.depths!r}; the decoder merges at least two stages")
        for name in _SIZE_FIELDS:
            sizes = getattr(self, name)
            if not isinstance(sizes, list | tuple) or not sizes or len(sizes) != len(self.depths):
                raise ValueError(f"{name} is {sizes!r}; it needs one integer for each stage, as many as depths has")
            for size in sizes:
                _require_count(name, size, _MOST_BLOCKS if name == "depths" else _MOST)
            object.__setattr__(self, name, tuple(sizes))
        for width, heads in zip(self.hidden_sizes, self.num_attention_heads, strict=True):
            if width % heads:
                raise ValueError(f"hidden_sizes {width} is not a multiple of its num_attention_heads {heads}")
        _require_count("decoder_hidden_size", self.decoder_hidden_size)
        _require_count("num_channels", self.num_channels)

    def _check_rates(self) -> None:
        for name in _RATE_FIELDS:
            rate = getattr(self, name)
            if isinstance(rate, bool) or not isinstance(rate, int | float) or not 0 <= rate < 1:
                raise ValueError(f"{name} is {rate!r}; a rate is at least 0 and below 1")
        width = self.initializer_range
        if isinstance(width, bool) or not isinstance(width, int | float) or not 0 < width < 1e6:
            raise ValueError(f"initializer_range is {width!r}; it is a standard deviation above 0")

    def _check_names(self) -> None:
        if len(self.id2label) != self.num_labels:
            raise ValueError(f"num_labels is {self.num_labels} but id2label names {len(self.id2label)} classes")
        if set(self.id2label) != set(range(self.num_labels)):
            strays = sorted(set(self.id2label) ^ set(range(self.num_labels)), key=str)
            raise ValueError(f"id2label must have the keys 0 to {self.num_labels - 1}; at fault: {strays[:5]}")
        object.__setattr__(self, "id2label", {k: str(self.id2label[k]) for k in range(self.num_labels)})

    @property
    def drop_path_rates(self) -> list[float]:
        """The rate of every block, growing linearly from 0 at the first to ``drop_path_rate`` at the last."""
        blocks = sum(self.depths)
        return [self.drop_path_rate * i / (blocks - 1) for i in range(blocks)]

    def check_image_size(self, height: int, width: int) -> None:
        """Raise ValueError for a size at which a stage's map is smaller than what its attention reduces at once."""
        for side in (height, width):
            left = side
            for stride, sr_ratio in zip(self.strides, self.sr_ratios, strict=True):
                left = -(-left // stride)
                if left < sr_ratio:
                    raise ValueError(
                        f"image_size is {side}; a map of {left} pixels is too small for sr_ratio {sr_ratio}"
                    )

    @classmethod
    def from_dict(cls, entries: Mapping[str, Any]) -> SegformerConfig:
        """Build from the entries of a Hub ``config.json``; entries that no SegFormer reads are passed over."""
        if entries.get("model_type", "segformer") != "segformer":
            raise ValueError(f"model_type is {entries['model_type']!r}; this reads 'segformer' only")
        if entries.get("hidden_act", "gelu") != "gelu":
            raise ValueError(f"hidden_act is {entries['hidden_act']!r}; every released SegFormer uses 'gelu'")
        known = {f.name for f in fields(cls)}
        chosen = {name: value for name, value in entries.items() if name in known and value is not None}
        if "id2label" in chosen:
            chosen["id2label"] = _integer_keys(chosen["id2label"])
            chosen.pop("num_labels", None)
        config = cls(**chosen)
        stages = entries.get("num_encoder_blocks", len(config.depths))
        if stages != len(config.depths):
            raise ValueError(f"num_encoder_blocks is {stages!r} but depths has {len(config.depths)} entries")
        return config

    def to_dict(self) -> dict[str, Any]:
        """The entries of a ``config.json`` that every transformers release with SegFormer opens."""
        entries = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "num_labels"}
        entries = {name: list(value) if isinstance(value, tuple) else value for name, value in entries.items()}
        entries["id2label"] = {str(k): name for k, name in self.id2label.items()}
        return {
            "architectures": ["SegformerForSemanticSegmentation"],
            "model_type": "segformer",
            "num_encoder_blocks": len(self.depths),
            "hidden_act": "gelu",
            "reshape_last_stage": True,
            "torch_dtype": "float32",
            **entries,
            "label2id": {name: k for k, name in self.id2label.items()},
        }


def read_config(path: Path) -> SegformerConfig:
    """Read a ``config.json``; every error names the file."""
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(entries, dict):
            raise ValueError(f"holds a {type(entries).__name__}, not an object of entries")
        return SegformerConfig.from_dict(entries)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: {error}") from error


def _integer_keys(names: object) -> dict[int, str]:
    if not isinstance(names, Mapping):
        raise ValueError(f"id2label is a {type(names).__name__}; it maps class ids to names")
    try:
        return {int(k): str(name) for k, name in names.items()}
    except (TypeError, ValueError) as error:
        raise ValueError(f"id2label has a key that is not a class id: {error}") from error


def _require_count(name: str, value: object, most: int = _MOST) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
        raise ValueError(f"{name} holds {value!r}; it must be an integer of 1 to {most}")


_LARGER = partial(SegformerConfig, hidden_sizes=(64, 128, 320, 512))

VARIANTS: dict[str, Callable[..., SegformerConfig]] = {
    "b0": SegformerConfig,
    "b1": _LARGER,
    "b2": partial(_LARGER, depths=(3, 4, 6, 3), decoder_hidden_size=768),
    "b3": partial(_LARGER, depths=(3, 4, 18, 3), decoder_hidden_size=768),
    "b4": partial(_LARGER, depths=(3, 8, 27, 3), decoder_hidden_size=768),
    "b5": partial(_LARGER, depths=(3, 6, 40, 3), decoder_hidden_size=768),
}


def variant_of(config: SegformerConfig) -> str | None:
    """The name of the variant that has these sizes; None for a model of one's own."""
    for name, variant in VARIANTS.items():
        if all(getattr(config, size) == getattr(variant(), size) for size in (*_SIZE_FIELDS, "decoder_hidden_size")):
            return name
    return None
