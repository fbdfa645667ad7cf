"""The model card: a README.md that says what a trained folder is, how it scored, and how to use it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

_TEMPLATE = """---
pipeline_tag: image-segmentation
tags: [segformer, semantic-segmentation]
license: other
---

# {title}

A SegFormer for semantic segmentation with {num_labels} classes, {parameters:,} parameters, {origin}.

## Results

{results}

Measured on `{dataset}`, split `{eval_split}`, {protocol}

## Use

```python
from segformer import Segmenter

segmenter = Segmenter.from_pretrained("{folder}")
segments = segmenter("photo.jpg")   # [{{"label": ..., "score": None, "mask": PIL image}}, ...]
```

The same folder opens in transformers:

```python
from transformers import pipeline

segments = pipeline("image-segmentation", model="{folder}")("photo.jpg")
```

## Training

{hyperparameters}

## Licence

{licence}
"""

_PROTOCOLS = {
    "processed": "with labels resized to the model's input; not comparable with scores at the photos' own size.",
    "original": "with predictions enlarged to each label map's own size.",
}
_FROM_CHECKPOINT = (
    "The weights descend from a published checkpoint and keep its licence; NVIDIA's SegFormer weights are for "
    "non-commercial use."
)
_FROM_SCRATCH = "Trained from scratch: the weights are their trainer's to license."


def write_card(
    folder: Path,
    num_labels: int,
    parameters: int,
    results: Mapping[str, Any],
    settings: Mapping[str, Any],
) -> None:
    """Write ``README.md``; ``results`` are the last evaluation's entries, ``settings`` those of the run."""
    checkpoint = settings["checkpoint"]
    scores = {name: value for name, value in results.items() if isinstance(value, float)}
    card = _TEMPLATE.format(
        title=folder.name,
        num_labels=num_labels,
        parameters=parameters,
        origin=f"fine-tuned from `{checkpoint}`" if checkpoint else "trained from scratch",
        results=_table("score", {name: f"{value:.4f}" for name, value in scores.items()}),
        dataset=settings["dataset"],
        eval_split=settings["eval_split"] or f"{settings['split']}, {settings['test_size']} held out",
        protocol=_PROTOCOLS[settings["eval_resolution"]],
        folder=folder.name,
        hyperparameters=_table("setting", {name: f"`{value}`" for name, value in settings.items()}),
        licence=_FROM_CHECKPOINT if checkpoint else _FROM_SCRATCH,
    )
    (folder / "README.md").write_text(card, encoding="utf-8")


def _table(heading: str, rows: Mapping[str, str]) -> str:
    return "\n".join(
        [f"| {heading} | value |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows.items())]
    )
