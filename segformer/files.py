"""The files of a model and of a run: what they are called, written at once, and read without trusting them."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from torch import Tensor, nn

CONFIG_NAME = "config.json"
WEIGHTS_NAME = "model.safetensors"
PROCESSOR_NAME = "preprocessor_config.json"


def write_atomically(path: Path, content: str | bytes) -> None:
    """Replace a file at once: whoever reads it meanwhile has the whole old one or the whole new one.

    Where the disk has no room for it, the old one stays and nothing else does.
    """
    unfinished = path.with_name(f"{path.name}.unfinished")
    # A name read from somebody's config.json may hold half a surrogate pair, which no encoding can write.
    try:
        unfinished.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8", "replace"))
        unfinished.replace(path)
    except OSError:
        unfinished.unlink(missing_ok=True)
        raise


def flush(path: Path) -> None:
    """Ask the disk to keep what was written to a file, or what a folder lists where a system can be asked for that."""
    is_folder = path.is_dir()
    try:
        descriptor = os.open(path, os.O_RDONLY if is_folder else os.O_RDWR)  # Windows keeps what is open for writing
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError:
        if not is_folder:
            raise


def is_plain(value: object) -> bool:
    """Whether a value is a tensor of numbers, all of which are in the file."""
    return (
        isinstance(value, Tensor)
        and (value.layout, value.device.type) == (torch.strided, "cpu")
        and not value.is_quantized
        and value.untyped_storage().nbytes() >= value.nbytes
    )


class NonFiniteError(ValueError):
    """Weights that hold NaN or infinity, or variances below 0."""


def check_finite(model: nn.Module) -> None:
    """Raise NonFiniteError, naming the first tensor, for weights that are not numbers and give nonsense for answers."""
    for name, tensor in model.state_dict().items():
        if not tensor.isfinite().all():
            count = int((~tensor.isfinite()).sum())
            raise NonFiniteError(
                f"{count} of the {tensor.numel()} values of {name} are not finite; its training diverged, or the file "
                "is damaged"
            )
        if name.endswith("running_var") and bool((tensor < 0).any()):
            raise NonFiniteError(f"{name} holds variances below 0, whose roots are no numbers; the file is damaged")
