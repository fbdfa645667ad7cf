"""Weights in and out: read a checkpoint of any family, fit it strictly onto a model, write it for everyone."""

from __future__ import annotations

import difflib
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor, nn

from segformer.config import VARIANTS, SegformerConfig, named_classes, read_config, warn_of_another_order
from segformer.console import counted
from segformer.files import CONFIG_NAME, WEIGHTS_NAME, NonFiniteError, check_finite, write_atomically
from segformer.weights import dialects
from segformer.weights.formats import read_tensors
from segformer.weights.hub import ModelFiles

logger = logging.getLogger(__name__)

_CLASSIFIER = ("decoder.classifier.weight", "decoder.classifier.bias")


@dataclass(frozen=True)
class LoadReport:
    """What was loaded from where, and the names, as the Hub spells them, of what was not.

    ``missing`` tensors are not in the checkpoint and start anew, as do ``mismatched`` ones, which have another shape
    there; ``unexpected`` ones are of no use to this model and were left out.
    """

    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    mismatched: list[str] = field(default_factory=list)
    path: Path | None = None
    loaded: int = 0
    spelling: str = ""
    classes: dict[int, str] = field(default_factory=dict)  # as the checkpoint's own config.json names them

    def __repr__(self) -> str:
        """One line for what was loaded, and one for each kind of what was not."""
        if self.path is None:
            return "LoadReport(nothing loaded, all weights are new)"
        lines = [f"LoadReport({self.loaded} tensors from {self.path}, in {self.spelling})", *self.lines()]
        return "\n  ".join(lines)

    def check_whole(self, source: str | Path) -> None:
        """Raise ValueError where something that decides what is predicted has started anew."""
        if self.missing:
            raise ValueError(
                f"{source} has no decoder of ours, only an encoder, and tells no classes; train it first (--checkpoint "
                "of train.py)"
            )
        if self.mismatched:
            raise ValueError(
                f"{source} has another {self.mismatched[0]} than the classes asked for, which starts anew and tells "
                "none of them; give its own by --num-labels or --label-names"
            )

    def lines(self) -> list[str]:
        """What was not loaded, a line for each kind of it."""
        kinds = (
            (self.missing, "not in the checkpoint, started anew"),
            (self.mismatched, "of another shape, started anew"),
            (self.unexpected, "of no use to this model, left out"),
        )
        return [f"{counted(len(names), 'tensor')} {meaning}: {_brief(names)}" for names, meaning in kinds if names]


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint in memory: weights under this code's names, and its configuration where it came with one."""

    path: Path
    recognised: dialects.Recognised
    config: SegformerConfig | None

    @property
    def weights(self) -> dict[str, Tensor]:
        """The tensors, under this code's names."""
        return self.recognised.weights


def read_checkpoint(
    source: str | Path, revision: str | None = None, token: str | bool | None = None, local_files_only: bool = False
) -> Checkpoint:
    """Read a Hub id, a folder, or one file; a file takes the ``config.json`` beside it, if there is one."""
    path = Path(source)
    config_path: Path | None
    if path.is_file():
        config_path = path.with_name(CONFIG_NAME)
        config_path = config_path if config_path.is_file() else None
    else:
        files = ModelFiles(str(source), revision, token, local_files_only)
        config_path = files.find(CONFIG_NAME)
        if config_path is None:
            raise FileNotFoundError(f"no {CONFIG_NAME} in {files.describe()}; name a weights file to do without one")
        read_config(config_path)  # one that is refused is refused before its weights are fetched
        path = files.find_weights()
    try:
        recognised = dialects.recognise(read_tensors(path))
    except ValueError as error:
        raise ValueError(str(error) if str(path) in str(error) else f"{path} {error}") from error
    for remark in ([] if recognised.is_usual else [f"holds {recognised.spelling}"]) + recognised.remarks:
        logger.info("%s: %s", path, remark)
    config = None if config_path is None else read_config(config_path, _classes_of(recognised.weights))
    return Checkpoint(path, recognised, config)


def _classes_of(weights: Mapping[str, Tensor]) -> int | None:
    """The number of classes that a classifier tells; None without one."""
    bias = weights.get(_CLASSIFIER[1])
    return None if bias is None else bias.numel()


def choose_config(
    checkpoint: Checkpoint,
    id2label: Mapping[int, str] | Sequence[str] | None,
    num_labels: int | None,
    changes: Mapping[str, Any],
) -> SegformerConfig:
    """The configuration to build: the checkpoint's own or the one its shapes tell, with the caller's classes."""
    config = checkpoint.config or _infer_config(checkpoint)
    if id2label is not None:
        names = named_classes(id2label)
        if num_labels not in (None, len(names)):
            raise ValueError(f"num_labels is {num_labels} but id2label names {counted(len(names), 'class')}")
        warn_of_another_order(config.id2label, names)
        config = replace(config, id2label=names, num_labels=len(names))
    elif num_labels is not None and num_labels != config.num_labels:
        config = replace(config, id2label=None, num_labels=num_labels)  # type: ignore[arg-type]
    known = [each.name for each in fields(SegformerConfig)]
    for name in changes:
        if name not in known:
            close = difflib.get_close_matches(str(name), known, 1)
            raise ValueError(f"config_changes has no {name!r}" + (f"; did you mean {close[0]}?" if close else ""))
    return replace(config, **changes)


def _infer_config(checkpoint: Checkpoint) -> SegformerConfig:
    """Find the variant of a bare file from its shapes; heads are not in any shape, so only B0 to B5 can be told."""
    weights = checkpoint.weights
    depths: list[int] = []
    hidden_sizes: list[int] = []
    while (norm := f"encoder.stages.{len(depths)}.norm.weight") in weights:
        prefix = f"encoder.stages.{len(depths)}.blocks."
        blocks = {name.removeprefix(prefix).split(".")[0] for name in weights if name.startswith(prefix)}
        depths.append(len(blocks))
        hidden_sizes.append(weights[norm].numel())
    for name, variant in VARIANTS.items():
        config = variant(num_labels=2)
        if (list(config.depths), list(config.hidden_sizes)) == (depths, hidden_sizes):
            logger.info("%s has the shapes of variant %s", checkpoint.path, name)
            return _resized(config, checkpoint)
    raise ValueError(
        f"{checkpoint.path} has depths {depths} and hidden sizes {hidden_sizes}, which is none of "
        f"{', '.join(VARIANTS)}; put its {CONFIG_NAME} beside it"
    )


def _resized(config: SegformerConfig, checkpoint: Checkpoint) -> SegformerConfig:
    """A variant with what its weights alone decide: the bands of photos, the decoder's width, the classes."""
    first = checkpoint.weights.get("encoder.stages.0.patch_embedding.projection.weight")
    norm = checkpoint.weights.get("decoder.norm.weight")
    num_labels = _classes_of(checkpoint.weights)
    sizes: dict[str, Any] = {} if num_labels is None else {"num_labels": num_labels, "id2label": None}
    if first is not None and first.ndim == 4:
        sizes["num_channels"] = first.shape[1]
    if norm is not None:
        sizes["decoder_hidden_size"] = norm.numel()
    try:
        return replace(config, **sizes)
    except ValueError as error:
        raise ValueError(f"{checkpoint.path}: {error}") from error


def load_weights(model: nn.Module, checkpoint: Checkpoint, allow_new_classifier: bool = False) -> LoadReport:
    """Copy a checkpoint's tensors into a model, strictly; log what stays untouched in one line for each kind.

    Allowed to be missing: the whole decoder (an encoder alone starts a new one), and BatchNorm's batch counter. Allowed
    to differ in shape: the classifier, if ``allow_new_classifier``. Everything else raises ValueError, as do numbers
    that are not finite.
    """
    missing, mismatched = check_fit(model, checkpoint, allow_new_classifier)
    fitting = {name: tensor for name, tensor in checkpoint.weights.items() if name not in mismatched}
    model.load_state_dict(fitting, strict=False)
    try:
        check_finite(model)
    except NonFiniteError as error:
        raise NonFiniteError(f"{checkpoint.path}: {error}") from None

    recognised = checkpoint.recognised
    report = LoadReport(
        *(_v4(missing), recognised.left_out, _v4(mismatched)),
        *(checkpoint.path, len(fitting), recognised.spelling),
        classes=dict(checkpoint.config.id2label) if checkpoint.config else {},
    )
    for line in report.lines():
        logger.warning("%s: %s", checkpoint.path, line)
    return report


def check_fit(model: nn.Module, checkpoint: Checkpoint, allow_new_classifier: bool) -> tuple[list[str], list[str]]:
    """The names that a checkpoint lacks and those of another shape, where both may be; ValueError for what may not.

    Looks at names, shapes and kinds alone, so the model may be one without memory, on the meta device.
    """
    wanted = model.state_dict()
    missing = [name for name in wanted if name not in checkpoint.weights]
    extra = [name for name in checkpoint.weights if name not in wanted]
    mismatched = [n for n, tensor in checkpoint.weights.items() if n in wanted and tensor.shape != wanted[n].shape]
    for name in mismatched:
        if not (allow_new_classifier and name in _CLASSIFIER):
            hint = "; pass num_labels or id2label to start a new classifier" if name in _CLASSIFIER else ""
            raise ValueError(
                f"{checkpoint.path}: {_v4([name])[0]} is {list(checkpoint.weights[name].shape)} in the weights but "
                f"{list(wanted[name].shape)} by the configuration{hint}"
            )
    if extra:
        raise ValueError(
            f"{checkpoint.path} holds tensors that its configuration has no place for: {_brief(_v4(extra))}"
        )
    for name, tensor in checkpoint.weights.items():
        is_counter = name.endswith("num_batches_tracked")  # which .half() of a whole state dict makes a fraction
        if not is_counter and tensor.is_floating_point() != wanted[name].is_floating_point():
            raise ValueError(
                f"{checkpoint.path}: {_v4([name])[0]} is of {tensor.dtype}; weights are floating-point numbers"
            )
    decoder = [name for name in wanted if name.startswith("decoder.")]
    lost = [name for name in missing if not name.endswith("num_batches_tracked")]
    if lost and missing != decoder:
        raise ValueError(f"{checkpoint.path} lacks {counted(len(lost), 'tensor')}: {_brief(_v4(lost))}")
    return missing if lost else [], mismatched


def save_model(model: nn.Module, config: SegformerConfig, folder: Path) -> None:
    """Write ``config.json`` and ``model.safetensors`` in the v4 dialect."""
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(config.to_dict(), indent=2, sort_keys=True, ensure_ascii=False)
    write_atomically(folder / CONFIG_NAME, text + "\n")
    weights = {name: tensor.contiguous().cpu() for name, tensor in dialects.to_v4(model.state_dict()).items()}
    # Not save_file, which makes a file that nobody else may read.
    write_atomically(folder / WEIGHTS_NAME, safetensors.torch.save(weights, metadata={"format": "pt"}))


def _v4(names: list[str]) -> list[str]:
    return [v4_name for name in names for v4_name in dialects.v4_names(name) or [name]]


def _brief(names: list[str], most: int = 4) -> str:
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + rest
