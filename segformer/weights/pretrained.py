"""Weights in and out: read a checkpoint in any dialect, fit it strictly onto a model, write it for everyone."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from segformer.config import VARIANTS, SegformerConfig, read_config
from segformer.files import CONFIG_NAME, WEIGHTS_NAME, is_plain, write_atomically
from segformer.weights import dialects
from segformer.weights.hub import ModelFiles

logger = logging.getLogger(__name__)

_CLASSIFIER = ("decoder.classifier.weight", "decoder.classifier.bias")


@dataclass(frozen=True)
class LoadReport:
    """Names, as the Hub spells them, of what a checkpoint lacked, had beside the model, or had in another shape."""

    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    mismatched: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint in memory: weights under this code's names, and its configuration where it came with one."""

    path: Path
    weights: dict[str, Tensor]
    other_heads: list[str]
    config: SegformerConfig | None


def read_checkpoint(
    source: str | Path, revision: str | None = None, token: str | bool | None = None, local_files_only: bool = False
) -> Checkpoint:
    """Read a Hub id, a folder, or one file; a file takes the ``config.json`` beside it, if there is one."""
    path = Path(source)
    if path.is_file():
        beside = path.with_name(CONFIG_NAME)
        config = read_config(beside) if beside.is_file() else None
    else:
        files = ModelFiles(str(source), revision, token, local_files_only)
        config_path = files.find(CONFIG_NAME)
        if config_path is None:
            raise FileNotFoundError(f"no {CONFIG_NAME} in {files.describe()}; name a weights file to do without one")
        config = read_config(config_path)
        path = files.find_weights()
    try:
        weights, other_heads = dialects.to_ours(read_tensors(path))
    except ValueError as error:
        raise ValueError(str(error) if str(path) in str(error) else f"{path} {error}") from error
    return Checkpoint(path, weights, other_heads, config)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The named tensors of a ``.safetensors`` file, or of a pickle that holds nothing but tensors.

    Raises ValueError, naming the file, for anything else.
    """
    if path.suffix == ".safetensors":
        try:
            return safetensors.torch.load_file(path)
        except Exception as error:  # the reader's own, and what torch raises for tensors that it does not have
            raise ValueError(f"{path} is not a whole safetensors file: {error}") from error
    if path.suffix not in (".bin", ".pth", ".pt"):
        raise ValueError(
            f"{path} is a {path.suffix or 'nameless kind of'} file; weights are .safetensors, .bin or .pth"
        )
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # the unpickler raises what it likes
        raise ValueError(f"{path} is not a whole pickle of plain tensors ({type(error).__name__}): refused") from error
    if isinstance(loaded, Mapping) and isinstance(loaded.get("state_dict"), Mapping):
        loaded = loaded["state_dict"]  # the original release wraps its weights
    if not isinstance(loaded, Mapping) or not all(map(is_plain, loaded.values())):
        raise ValueError(f"{path} holds something other than named tensors: refused")
    return {str(name): tensor for name, tensor in loaded.items()}


def choose_config(
    checkpoint: Checkpoint,
    id2label: Mapping[int, str] | None,
    num_labels: int | None,
    changes: Mapping[str, Any],
) -> SegformerConfig:
    """The configuration to build: the checkpoint's own or the one its shapes tell, with the caller's classes."""
    config = checkpoint.config or _infer_config(checkpoint)
    if id2label is not None:
        if num_labels not in (None, len(id2label)):
            raise ValueError(f"num_labels is {num_labels} but id2label names {len(id2label)} classes")
        names = {int(k): name for k, name in id2label.items()}
        config = replace(config, id2label=names, num_labels=len(names))
    elif num_labels is not None and num_labels != config.num_labels:
        config = replace(config, id2label=None, num_labels=num_labels)  # type: ignore[arg-type]
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
    num_labels = weights[_CLASSIFIER[1]].numel() if _CLASSIFIER[1] in weights else None
    for name, variant in VARIANTS.items():
        try:
            config = variant(num_labels=num_labels)
        except ValueError as error:
            raise ValueError(f"{checkpoint.path}: {error}") from error
        widths = weights["decoder.norm.weight"].numel() if "decoder.norm.weight" in weights else None
        fits = (list(config.depths), list(config.hidden_sizes)) == (depths, hidden_sizes)
        if fits and widths in (None, config.decoder_hidden_size):
            logger.info("%s has the shapes of variant %s", checkpoint.path, name)
            return config
    raise ValueError(
        f"{checkpoint.path} has depths {depths} and hidden sizes {hidden_sizes}, which is none of "
        f"{', '.join(VARIANTS)}; put its {CONFIG_NAME} beside it"
    )


def load_weights(model: nn.Module, checkpoint: Checkpoint, allow_new_classifier: bool = False) -> LoadReport:
    """Copy a checkpoint's tensors into a model, strictly; log what stays untouched in one line for each kind.

    Allowed to be missing: the whole decoder (an encoder alone starts a new one), and BatchNorm's batch counter. Allowed
    to differ in shape: the classifier, if ``allow_new_classifier``. Everything else raises ValueError.
    """
    missing, mismatched = check_fit(model, checkpoint, allow_new_classifier)
    fitting = {name: tensor for name, tensor in checkpoint.weights.items() if name not in mismatched}
    model.load_state_dict(fitting, strict=False)

    report = LoadReport(_v4(missing), checkpoint.other_heads, _v4(mismatched))
    for names, meaning in (
        (report.missing, "not in the checkpoint, start anew"),
        (report.mismatched, "of another shape, start anew"),
        (report.unexpected, "of no use to this model, left out"),
    ):
        if names:
            logger.warning("%s: %d tensors %s: %s", checkpoint.path, len(names), meaning, _brief(names))
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
        if tensor.is_floating_point() != wanted[name].is_floating_point():
            raise ValueError(
                f"{checkpoint.path}: {_v4([name])[0]} is of {tensor.dtype}; weights are floating-point numbers"
            )
    decoder = [name for name in wanted if name.startswith("decoder.")]
    lost = [name for name in missing if not name.endswith("num_batches_tracked")]
    if lost and missing != decoder:
        raise ValueError(f"{checkpoint.path} lacks {len(lost)} tensors: {_brief(_v4(lost))}")
    return missing, mismatched


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
