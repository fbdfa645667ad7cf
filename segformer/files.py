"""The files of a model and of a run: what they are called, written at once, and read without trusting them."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

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


def is_plain(value: object) -> bool:
    """Whether a value is a tensor of numbers, all of which are in the file."""
    return (
        isinstance(value, Tensor)
        and (value.layout, value.device.type) == (torch.strided, "cpu")
        and not value.is_quantized
        and value.untyped_storage().nbytes() >= value.nbytes
    )
