"""The table of the guide's lines: the right-hand cells that are code, run as they stand."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import data.augmentation.jitter
import data.classes
import segformer
from data import SceneParse150, train_test_split
from data.classes import ID2LABEL
from segformer import ConfusionMatrix, ImageProcessor, Segformer, Segmenter
from train import configure

PAGE = (Path(__file__).parent.parent / "docs/differences.md").read_text(encoding="utf-8")
OURS = re.compile(
    r"^(ImageProcessor|Segformer|Segmenter|segmenter|segformer\.pictures|processor|model|SceneParse150|train_test_split|"
    r"train\(|data\.|ConfusionMatrix)"
)


def cells() -> list[str]:
    """The code in the right-hand column, flags and files left out."""
    table = PAGE.split("# Every line of the guide, and where it went\n")[1].split("\n#")[0]
    rows = [re.split(r"(?<!\\) \| ", line.strip("| ")) for line in table.splitlines() if line.startswith("| ")]
    return [code for *_, cell in rows for code in re.findall(r"`([^`]+)`", cell) if OURS.match(code)]


@pytest.fixture(scope="module")
def names(small_checkpoint: Path, small_shards: Path) -> dict[str, Any]:
    """What the cells speak of; the photo and the checkpoint are small ones."""
    photo = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8))
    return {
        "segformer": segformer,
        "ImageProcessor": ImageProcessor,
        "Segformer": Segformer,
        "Segmenter": Segmenter,
        "checkpoint": small_checkpoint,
        "id2label": ID2LABEL,
        "photo": photo,
        "image": photo,
        "label_map": Image.new("L", (60, 40), 7),
        "model": Segformer.from_pretrained(small_checkpoint),
        "processor": ImageProcessor(),
        "SceneParse150": SceneParse150,
        "train_test_split": train_test_split,
        "dataset": SceneParse150(small_shards, "train"),
        "seed": 42,
        "data": data,
        "ConfusionMatrix": ConfusionMatrix,
        "train": lambda config: config,  # what it does, other tests show
        "configure": configure,
        "small_shards": small_shards,
        "segmenter": Segmenter.from_pretrained(small_checkpoint, device="cpu"),
    }


def test_the_table_speaks_of_model_processor_and_segmenter() -> None:
    spoken = {code.partition(".")[0].partition("(")[0] for code in cells()}
    assert spoken >= {"ImageProcessor", "Segformer", "Segmenter", "segmenter", "segformer"}


@pytest.mark.parametrize("code", [code for code in cells() if "push_to_hub" not in code])
def test_a_cell_runs_as_it_stands(code: str, names: dict[str, Any]) -> None:
    code = code.replace("id2label=...", "id2label=id2label").replace("(...)", "(checkpoint)")
    code = code.replace('"scene_parse_150"', "small_shards").replace("train[:50]", "train[:5]")
    assert eval(code, dict(names)) is not None


def test_the_guides_processor_reduces_labels_as_it_is_told(small_checkpoint: Path) -> None:
    ImageProcessor(do_reduce_labels=False).save_pretrained(small_checkpoint.parent / "checkpoint-unreduced")
    source = small_checkpoint.parent / "checkpoint-unreduced"
    _, labels = ImageProcessor.from_pretrained(source, do_reduce_labels=True)(
        Image.new("RGB", (8, 8)), Image.new("L", (8, 8), 7)
    )
    assert labels is not None
    assert set(labels.flatten().tolist()) == {6}
