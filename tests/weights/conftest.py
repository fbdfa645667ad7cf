"""One random model of transformers, what it answers, and the folder it saves."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from checkpoints import Weights
from libraries import transformers
from safetensors.torch import load_file
from torch import Tensor

from segformer import SegformerConfig


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> transformers.SegformerForSemanticSegmentation:
    """A small model of transformers, every tensor random."""
    config = SegformerConfig(
        depths=(1, 2, 1, 1),
        hidden_sizes=(8, 16, 24, 32),
        num_attention_heads=(1, 2, 3, 4),
        decoder_hidden_size=16,
        num_labels=7,
    )
    torch.manual_seed(0)
    model = transformers.SegformerForSemanticSegmentation(transformers.SegformerConfig(**config.to_dict()))
    for name, tensor in model.state_dict().items():
        if name.endswith("num_batches_tracked"):
            tensor.fill_(11)
        else:
            tensor.uniform_(0.1, 1.0) if name.endswith("running_var") else tensor.normal_(std=0.4)
    return model.eval()


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def expected(reference: transformers.SegformerForSemanticSegmentation, images: Tensor) -> Tensor:
    with torch.no_grad():
        return reference(images).logits


@pytest.fixture
def folder(reference: transformers.SegformerForSemanticSegmentation, tmp_path: Path) -> Path:
    """The reference as transformers saves it: config.json and model.safetensors in the v4 dialect."""
    reference.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def v4(folder: Path) -> Weights:
    return load_file(folder / "model.safetensors")
