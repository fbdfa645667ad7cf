"""Shards of generated scenes, enlarged to the size of SceneParse150's photos, for machines that cannot fetch those."""

from __future__ import annotations

import io
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from data import SceneParse150
from data.sources.shards import write_shard

_SIZE = (683, 512)  # width and height of a common ADE20K photo
_SCENES = 40  # drawn ones; beyond these, rows repeat them


def scene_shards(folder: Path, train: int = 640, validation: int = 64) -> Path:
    """The folder with shards of so many rows for each split, written if it is not there."""
    for split, count in (("train", train), ("validation", validation)):
        path = folder / split / "0000.parquet"
        if path.exists():
            continue
        scenes = SceneParse150("toy", "validation")
        files = [_encoded(*scenes[row], row) for row in range(min(_SCENES, count, len(scenes)))]
        unfinished = path.with_suffix(".unfinished")
        named = ({**row, "scene_category": 0} for row in islice(cycle(files), count))
        write_shard(unfinished, named, ["generated"])
        unfinished.rename(path)
    return folder


def _encoded(photo: Image.Image, label_map: Image.Image | None, row: int) -> dict[str, Any]:
    """A row as large as a photo, with grain, without which a JPEG would be too small."""
    assert label_map is not None
    grain = np.random.default_rng(row).normal(0, 6, (_SIZE[1], _SIZE[0], 3))
    pixels = np.asarray(photo.resize(_SIZE, Image.Resampling.BICUBIC)) + grain
    enlarged = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
    files = {"image": (enlarged, "JPEG"), "annotation": (label_map.resize(_SIZE, Image.Resampling.NEAREST), "PNG")}
    held = {}
    for column, (picture, form) in files.items():
        buffer = io.BytesIO()
        picture.save(buffer, form, **({"quality": 92} if form == "JPEG" else {}))
        held[column] = {"bytes": buffer.getvalue(), "path": f"scene-{row}.{form.lower()}"}
    return held
