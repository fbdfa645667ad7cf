"""The sizes of a SegFormer, read from and written to the ``config.json`` that the Hub uses.

One dataclass describes every variant (B0 to B5, paper Table 6). Two entries of the Hub's file are deliberately absent:
``layer_norm_eps`` (1e-6 there, but transformers never reads it; every LayerNorm runs at 1e-5) and ``hidden_act``
(always the exact GELU; another value is refused rather than ignored).
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

from segformer.console import counted

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

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class SegformerConfig:
    """Sizes, regularisation and class names of one SegFormer; the defaults are B0 with 150 unnamed classes.

    Tuples have one entry per encoder stage, finest first. ``id2label`` maps ids to names, or lists the names in order.
    ``num_labels`` may be left out: it is the number of names in ``id2label``, or 150. Raises ValueError naming the
    field, its value and the rule.
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
        if self.id2label is not None and not isinstance(self.id2label, Mapping):
            object.__setattr__(self, "id2label", named_classes(self.id2label))
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
            raise ValueError(
                f"num_labels is {self.num_labels} but id2label names {counted(len(self.id2label), 'class')}"
            )
        if set(self.id2label) != set(range(self.num_labels)):
            strays = sorted(set(self.id2label) ^ set(range(self.num_labels)), key=str)
            raise ValueError(f"id2label must have the keys 0 to {self.num_labels - 1}; at fault: {strays[:5]}")
        object.__setattr__(self, "id2label", {k: str(self.id2label[k]) for k in range(self.num_labels)})

    def __repr__(self) -> str:
        """The variant, what differs from it, and the first of the names; never all of them."""
        variant = variant_of(self)
        usual = VARIANTS[variant or "b0"]()
        names = [f.name for f in fields(self) if f.name not in ("num_labels", "id2label")]
        own = [f"{name}={getattr(self, name)!r}" for name in names if getattr(self, name) != getattr(usual, name)]
        first = ", ".join(name.strip() for name in list(self.id2label.values())[:4])
        more = ", ..." if self.num_labels > 4 else ""
        sizes = f"{variant}, " if variant else ""
        return (
            f"SegformerConfig({sizes}{''.join(f'{each}, ' for each in own)}num_labels={self.num_labels}: {first}{more})"
        )

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

    def check_takes_photos(self) -> None:
        """Raise ValueError for a model of other bands than the red, green and blue of a photo."""
        if self.num_channels != 3:
            raise ValueError(
                f"num_channels is {self.num_channels}; photos are read as red, green and blue, so a model of photos "
                "has 3 (give tensors of as many bands to the model itself)"
            )

    @classmethod
    def from_dict(cls, entries: Mapping[str, Any], num_labels: int | None = None) -> SegformerConfig:
        """Build from the entries of a Hub ``config.json``; entries that no SegFormer reads are passed over.

        ``num_labels`` is how many classes there are where the entries neither name nor count them; left out, it is 2,
        which is what transformers writes and reads such a file for. Reads segmentation_models_pytorch's entries too.
        """
        if "_model_class" in entries:
            entries = _entries_of_smp(entries)
        if entries.get("model_type", "segformer") != "segformer":
            raise ValueError(f"model_type is {entries['model_type']!r}; this reads 'segformer' only")
        if entries.get("hidden_act", "gelu") != "gelu":
            raise ValueError(f"hidden_act is {entries['hidden_act']!r}; every released SegFormer uses 'gelu'")
        known = {f.name for f in fields(cls)}
        chosen = {name: value for name, value in entries.items() if name in known and value is not None}
        if "id2label" in chosen:
            chosen["id2label"] = named_classes(chosen["id2label"])
            chosen.pop("num_labels", None)
        else:
            chosen.setdefault("num_labels", num_labels or 2)
        config = cls(**chosen)
        stages = entries.get("num_encoder_blocks", len(config.depths))
        if stages != len(config.depths):
            raise ValueError(
                f"num_encoder_blocks is {stages!r} but depths has {counted(len(config.depths), 'entry', 'entries')}"
            )
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


def read_config(path: Path, num_labels: int | None = None) -> SegformerConfig | None:
    """Read a ``config.json``, as ``SegformerConfig.from_dict``; None for one that says nothing of a SegFormer.

    Every error names the file.
    """
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(entries, dict):
            raise ValueError(f"holds a {type(entries).__name__}, not an object of entries")
        telling = {"model_type", "_model_class", *(f.name for f in fields(SegformerConfig))}
        return SegformerConfig.from_dict(entries, num_labels) if telling & set(entries) else None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: {error}") from error


def named_classes(names: object) -> dict[int, str]:
    """Class names by id, from a mapping whose keys may be text, as in JSON, or from a list in the ids' order."""
    if isinstance(names, list | tuple):
        return {k: str(name) for k, name in enumerate(names)}
    if not isinstance(names, Mapping):
        raise ValueError(f"id2label is a {type(names).__name__}; it maps class ids to names, or lists the names")
    try:
        return {int(k): str(name) for k, name in names.items()}
    except (TypeError, ValueError) as error:
        raise ValueError(f"id2label has a key that is not a class id: {error}") from error


def _entries_of_smp(entries: Mapping[str, Any]) -> dict[str, Any]:
    """What segmentation_models_pytorch's ``config.json`` says, in the Hub's entries."""
    if entries["_model_class"] != "Segformer":
        raise ValueError(f"_model_class is {entries['_model_class']!r}; of these models this reads 'Segformer' only")
    variant = str(entries.get("encoder_name")).removeprefix("mit_")
    if variant not in VARIANTS or entries.get("encoder_depth", 5) != 5:
        raise ValueError(
            f"encoder_name is {entries.get('encoder_name')!r} and encoder_depth {entries.get('encoder_depth', 5)!r}; a "
            "SegFormer has mit_b0 to mit_b5, whole: 5"
        )
    classes = entries.get("classes", 1)
    found = {
        "num_channels": entries.get("in_channels", 3),
        "decoder_hidden_size": entries.get("decoder_segmentation_channels", 256),
        "num_labels": 2 if classes == 1 else classes,  # one logit there is two classes here, see weights/dialects.py
    }
    return {**VARIANTS[variant](num_labels=2).to_dict(), "id2label": None, **found}


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


def compare_classes(held: Mapping[int, str], asked: Mapping[int, str]) -> None:
    """Refuse to score a model of the same classes in another order; warn of other names, which may be other words."""
    ours, theirs = _folded(held), _folded(asked)
    differing = [k for k, (one, other) in enumerate(zip(ours, theirs, strict=False)) if one != other]
    unnamed = any(all(name.startswith("label_") for name in names) for names in (ours, theirs))
    if len(ours) != len(theirs) or not differing or unnamed:
        return
    k = differing[0]
    first = f"class {k} is {ours[k]!r} to the model and {theirs[k]!r} in the label maps"
    if sorted(ours) == sorted(theirs):
        raise ValueError(
            f"{first}: the same classes in another order. If a file names them in the wrong one, mend it or give "
            "--label-names; if the label maps number them otherwise, renumber those"
        )
    logger.warning("%s; scores go by the number of a class, whatever its name", first)


def warn_of_another_order(held: Mapping[int, str], asked: Mapping[int, str]) -> None:
    """Say so where a model is given the names of its own classes in another order, for its weights stay in theirs."""
    ours, theirs = _folded(held), _folded(asked)
    if ours != theirs and sorted(ours) == sorted(theirs):
        k = next(k for k, (one, other) in enumerate(zip(ours, theirs, strict=True)) if one != other)
        logger.warning(
            "id2label calls class %d %r, which the checkpoint has as %r: the same classes in another order, and the "
            "weights stay in the checkpoint's, so that every such class answers to another's name until it is trained",
            *(k, theirs[k], ours[k]),
        )


def _folded(names: Mapping[int, str]) -> list[str]:
    return [names[k].strip().casefold() for k in sorted(names)]
