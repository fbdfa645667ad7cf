"""What several test files share: where the real data is, and small models that cost little."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # idle threads that spin slow down every test beside them

import numpy as np
import pytest
import torch
from PIL import Image

from data.classes import ID2LABEL
from data.sources.shards import write_shard
from segformer import ImageProcessor, Segformer, SegformerConfig
from segformer.weights.export import export, made_photo

_ALL_THREADS = torch.get_num_threads()
torch.set_num_threads(1)  # a layer of a small model is done before a second thread has woken


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip, with the reason, what this machine cannot run."""
    no_data = pytest.mark.skip(reason="SEGFORMER_REAL_DATA does not name a folder with real shards and checkpoints")
    no_gpu = pytest.mark.skip(reason="no CUDA device")
    for item in items:
        if item.get_closest_marker("real_data") and not _real_data():
            item.add_marker(no_data)
        if item.get_closest_marker("gpu") and not torch.cuda.is_available():
            item.add_marker(no_gpu)


@pytest.fixture(autouse=True)
def _threads_for_what_is_large(request: pytest.FixtureRequest) -> Iterator[None]:
    """Give all threads to a test of real data or of minutes."""
    if any(request.node.get_closest_marker(mark) for mark in ("real_data", "slow", "gpu")):
        torch.set_num_threads(_ALL_THREADS)
    yield
    torch.set_num_threads(1)


def _real_data() -> Path | None:
    folder = os.environ.get("SEGFORMER_REAL_DATA")
    return Path(folder).resolve() if folder and Path(folder).is_dir() else None


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real shards and checkpoints, laid out by repository names; for tests marked ``real_data``."""
    folder = _real_data()
    assert folder is not None, "mark this test with real_data"
    return folder


@pytest.fixture(scope="session")
def real_shards(real_data: Path) -> Path:
    """SceneParse150 as on the Hub: scene_parsing/{train,validation}/0000.parquet."""
    return real_data / "datasets/zhoubolei/scene_parse_150"


@pytest.fixture(scope="session")
def ade_checkpoint(real_data: Path) -> Path:
    """A B0 fine-tuned on ADE20K, with its preprocessor_config.json."""
    return real_data / "models/nvidia/segformer-b0-finetuned-ade-512-512"


@pytest.fixture(scope="session")
def encoder_checkpoint(real_data: Path) -> Path:
    """A classification checkpoint in the file form of nvidia/mit-b0."""
    return real_data / "models/nvidia/mit-b0"


@pytest.fixture
def tiny_config() -> SegformerConfig:
    """A SegFormer of a few thousand parameters with every kind of layer in it."""
    return SegformerConfig(
        depths=(1, 2, 1, 1),
        hidden_sizes=(8, 16, 24, 32),
        num_attention_heads=(1, 2, 3, 4),
        decoder_hidden_size=16,
        num_labels=7,
    )


@pytest.fixture
def tiny_model(tiny_config: SegformerConfig) -> Segformer:
    """A model of ``tiny_config`` with weights large enough that every layer shows in the output."""
    torch.manual_seed(0)
    model = Segformer(tiny_config)
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.2)
    return model.eval()


def _encoded(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture(scope="session")
def small_shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small scenes of two coloured halves, with some unlabelled pixels; photos of different sizes."""
    folder = tmp_path_factory.mktemp("shards")
    generator = np.random.default_rng(0)
    for split, count in (("train", 10), ("validation", 5)):
        rows = []
        for row in range(count):
            width, height = (int(side) for side in generator.integers(30, 50, 2))
            labels = np.zeros((height, width), np.uint8)
            labels[2:, : width // 2], labels[2:, width // 2 :] = generator.integers(1, 151, 2)
            pixels = np.stack([labels, 255 - labels, labels // 2], axis=-1)
            name = f"{split}_{row}"
            files = {"image": Image.fromarray(pixels), "annotation": Image.fromarray(labels)}
            encoded = {column: {"bytes": _encoded(file), "path": f"{name}.png"} for column, file in files.items()}
            rows.append({**encoded, "scene_category": 0})
        write_shard(folder / split / "0000.parquet", rows, ["halves"])
    return folder


@pytest.fixture(scope="session")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a small model that sees all its classes in ``made_photo``, to export."""
    torch.manual_seed(0)
    config = SegformerConfig(
        depths=(1, 1, 1, 1),
        hidden_sizes=(8, 16, 24, 32),
        num_attention_heads=(1, 2, 3, 4),
        decoder_hidden_size=16,
        id2label={0: "벽", 1: "floor", 2: "sky ", 3: "tree", 4: "background"},
    )
    model = Segformer(config).eval()
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.2)
    model.decoder.norm.running_mean.normal_()
    model.decoder.norm.running_var.uniform_(0.5, 2)
    processor = ImageProcessor(size=(64, 96), image_mean=(0.4, 0.5, 0.6), image_std=(0.2, 0.3, 0.4))
    with torch.no_grad():
        logits = model(processor.image_to_tensor(made_photo())[None])
        model.decoder.classifier.bias -= logits.mean((0, 2, 3))
    folder = tmp_path_factory.mktemp("source")
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def onnx() -> Any:
    """The packages that graphs need."""
    for name in ("onnxscript", "onnxruntime"):
        pytest.importorskip(name, reason=f"no {name}; pip install -e '.[test]'")
    return pytest.importorskip("onnx", reason="no onnx; pip install -e '.[test]'")


@pytest.fixture(scope="session")
def graph(onnx: Any, source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``source`` as a graph from images to logits."""
    return export(source, tmp_path_factory.mktemp("graph") / "model.onnx").path


@pytest.fixture(scope="session")
def whole(onnx: Any, source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``source`` as a graph from photos to label maps."""
    return export(source, tmp_path_factory.mktemp("whole") / "model.onnx", whole=True).path


@pytest.fixture(scope="session")
def small_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model with the 150 classes, to start from."""
    folder = tmp_path_factory.mktemp("checkpoint")
    torch.manual_seed(0)
    config = SegformerConfig(
        depths=(1, 1, 1, 1),
        hidden_sizes=(8, 16, 24, 32),
        num_attention_heads=(1, 2, 3, 4),
        decoder_hidden_size=16,
        drop_path_rate=0.2,
        id2label=ID2LABEL,
    )
    Segformer(config).save_pretrained(folder)
    ImageProcessor(size=(32, 32)).save_pretrained(folder)
    return folder
