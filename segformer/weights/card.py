"""The model card: a README.md that says what a trained folder is, how it scored, and how to use it.

The page of a model on the Hub is made from its metadata, whose form https://github.com/huggingface/hub-docs has.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from huggingface_hub import EvalResult, ModelCardData

from segformer.console import counted
from segformer.files import write_atomically
from segformer.provenance import told_of
from segformer.weights.hub import is_repository

_TEMPLATE = """---
{metadata}
---

# {title}

A SegFormer for semantic segmentation with {classes}, {parameters:,} parameters, {origin}.
{pictures}
## Results

{results}

Measured on {dataset}, split {split}. {protocol}

## Use

```python
from segformer import Segmenter

segmenter = Segmenter.from_pretrained({name})
segments = segmenter("photo.jpg")   # [{{"label": ..., "score": None, "mask": PIL image}}, ...]
```

The same files open in transformers:

```python
from transformers import pipeline

segments = pipeline("image-segmentation", model={name})("photo.jpg")
```

## Training

{hyperparameters}

{made}

## Licence

{licence}
"""

_NVIDIA_LICENCE = "nvidia-source-code-license-for-segformer"
_NVIDIA_LICENCE_LINK = "https://github.com/NVlabs/SegFormer/blob/master/LICENSE"
_SCORES = {"mean_iou": "mean IoU", "mean_accuracy": "mean accuracy", "overall_accuracy": "pixel accuracy"}
_RESIZED = {  # what ``resize_mode`` does
    "squash": "resized to {size} whatever their shape",
    "keep": "resized to fit into {size} with their shape kept",
    "crop": "resized to cover {size} with their shape kept",
}
# What ``eval_resolution`` scores, in a few words and in a sentence.
_PROTOCOLS = {
    "processed": (
        "labels resized to {size}",
        "Photos and labels are {resized}{cropped}, as in Hugging Face's guide at one size: the scores do not compare "
        "with those at the photos' own size.",
    ),
    "original": (
        "at the photos' own size",
        "Photos are {resized}, and predictions enlarged to each label map's own size.",
    ),
    "window": (
        "at the photos' own size, in windows",
        "Photos are seen at their own size, in windows of {window} pixels a side, {stride} from one to the next.",
    ),
    "keep-ratio": (
        "at the photos' own size and shape",
        "Photos are resized as in the paper, which keeps their shape, and predictions enlarged to each label map's own "
        "size, as published scores are taken.",
    ),
}
_OF_THE_PLACE = {  # settings that say nothing of how the model came about
    "eval_only",
    "hub_model_id",
    "output_dir",
    "overwrite_output_dir",
    "push_to_hub",
    "resume_from_checkpoint",
}


class HubDataset(Protocol):
    """A dataset of the Hub, as far as the card tells of it."""

    @property
    def name(self) -> str: ...
    @property
    def configuration(self) -> str | None: ...
    @property
    def revision(self) -> str | None: ...


class Run(Protocol):
    """The run that made the model: its settings as strangers may see them, its classes, and what the model saw."""

    @property
    def settings(self) -> dict[str, Any]: ...
    @property
    def class_names(self) -> list[str]: ...
    @property
    def parameters(self) -> int: ...
    @property
    def image_size(self) -> list[int]: ...
    @property
    def resize_mode(self) -> str: ...
    @property
    def scored_rows(self) -> str: ...
    @property
    def provenance(self) -> dict[str, Any]: ...


def write_card(
    folder: Path,
    run: Run,
    results: Mapping[str, Any],
    dataset: HubDataset | None = None,
    repository: str | None = None,
) -> None:
    """Write ``README.md``; ``results`` are the last evaluation's entries.

    ``dataset`` is the Hub's, if the run was trained on one, and ``repository`` the id that the folder will have
    on the Hub, if it goes there.
    """
    title, settings = _one_line(folder.resolve().name), run.settings
    base = settings["checkpoint"] if is_repository(settings["checkpoint"] or "") else None
    about = {"data": dataset.name if dataset else _one_line(settings["dataset"]), "split": _one_line(_split(run))}
    short, protocol = _protocol(run)
    scores = {name: float(results.get(f"eval_{name}", math.nan)) for name in (*_SCORES, "loss")}
    card = _TEMPLATE.format(
        metadata=_metadata(title, scores, dataset, base, about, short),
        title=re.sub(r"([\\`*\[\]<>#|&!~$])", r"\\\1", title),  # what Markdown would not show as it is
        classes=counted(len(run.class_names), "class"),
        parameters=run.parameters,
        origin=_origin(settings["checkpoint"], base),
        pictures=_pictures(folder),
        results=_table("score", {_SCORES.get(name, name): _number(score) for name, score in scores.items()}),
        dataset=f"[{dataset.name}](https://huggingface.co/datasets/{dataset.name})"
        if dataset
        else _code(about["data"]),
        split=_code(about["split"]),
        protocol=protocol,
        name=json.dumps(repository or settings.get("hub_model_id") or folder.resolve().name, ensure_ascii=False),
        hyperparameters=_table(
            "setting", {name: _code(str(value)) for name, value in settings.items() if name not in _OF_THE_PLACE}
        ),
        made="\n".join(f"- {name}: {_code(text)}" for name, text in told_of(run.provenance).items()),
        licence=_licence(settings["checkpoint"], base),
    )
    # A folder's name may hold bytes that are no text.
    write_atomically(folder / "README.md", card.encode("utf-8", "backslashreplace"))


def _metadata(
    title: str,
    scores: Mapping[str, float],
    dataset: HubDataset | None,
    base: str | None,
    about: Mapping[str, str],
    protocol: str,
) -> str:
    """The head of the card as the Hub's own library writes it, which knows what has to be quoted."""
    revision = dataset.revision if dataset else None
    if revision == "refs/convert/parquet":  # where the Hub keeps its own conversion of the dataset
        revision = None
    evaluations = [
        EvalResult(
            task_type="image-segmentation",
            task_name="Semantic segmentation",
            dataset_type=about["data"],
            dataset_name=about["data"],
            dataset_config=dataset.configuration if dataset else None,
            dataset_revision=revision,
            dataset_split=about["split"],
            metric_type=name,
            metric_name=f"{meaning}, {protocol}",
            metric_value=round(scores[name], 6),
        )
        for name, meaning in _SCORES.items()
        if math.isfinite(scores[name])
    ]
    data = ModelCardData(
        library_name="transformers",  # the files have its format
        pipeline_tag="image-segmentation",
        tags=["segformer", "semantic-segmentation", "vision"],
        license="other",
        base_model=base,
        datasets=[dataset.name] if dataset else None,
        metrics=["mean_iou"],
        model_name=title if evaluations else None,
        eval_results=evaluations or None,
        license_name=_NVIDIA_LICENCE if _is_nvidias(base) else None,
        license_link=_NVIDIA_LICENCE_LINK if _is_nvidias(base) else None,
    )
    return data.to_yaml()


def _split(run: Run) -> str:
    """The rows that were scored."""
    return run.scored_rows or f"{run.settings['split']}, {run.settings['test_size']:g} of it held out"


def _protocol(run: Run) -> tuple[str, str]:
    """What was scored, in a few words and in sentences."""
    settings = run.settings
    size = " x ".join(str(side) for side in reversed(run.image_size)) or "the model's input"
    told = {
        "size": size,
        "resized": _RESIZED[run.resize_mode].format(size=size),
        "cropped": " and cropped to its middle" if run.resize_mode == "crop" else "",
        "window": settings.get("eval_window"),
        "stride": settings.get("eval_stride"),
    }
    short, long = (text.format(**told) for text in _PROTOCOLS[settings["eval_resolution"]])
    scales = settings["eval_scales"].split(",")
    views = [f"the scales {', '.join(scales)}"] if [float(scale) for scale in scales] != [1.0] else []
    views += ["mirror images"] if settings["eval_flip"] else []
    if not views:
        return short, long
    return (
        f"{short}, mean over {' and '.join(views)}",
        f"{long} Each prediction is the mean over {' and '.join(views)}.",
    )


def _is_nvidias(base: str | None) -> bool:
    return base is not None and base.startswith("nvidia/")


def _origin(checkpoint: str | None, base: str | None) -> str:
    if base:
        return f"fine-tuned from [{base}](https://huggingface.co/{base})"
    return f"fine-tuned from {_code(checkpoint)}" if checkpoint else "trained from scratch"


def _licence(checkpoint: str | None, base: str | None) -> str:
    if not checkpoint:
        return "Trained from scratch: the weights are their trainer's to license."
    if _is_nvidias(base):
        return (
            "The weights descend from NVIDIA's and keep their licence, the "
            f"[NVIDIA Source Code License for SegFormer]({_NVIDIA_LICENCE_LINK}): non-commercial use only."
        )
    return (
        f"The weights descend from {_code(checkpoint)} and keep its licence; NVIDIA's SegFormer weights, which most "
        "descend from, are for non-commercial use only."
    )


def _pictures(folder: Path) -> str:
    """The samples, and where there is more to see, with an empty line around them."""
    told = []
    if (folder / "samples.png").is_file():
        told.append("![Photos, truth and predictions](samples.png)")
    if (folder / "report.html").is_file():
        told.append("Curves, the IoU of every class and more samples: download and open [report.html](report.html).")
    return "".join(f"\n{each}\n" for each in told)


def _number(score: float) -> str:
    return f"{score:.4f}" if math.isfinite(score) else "not defined"


def _table(heading: str, rows: Mapping[str, str]) -> str:
    escaped = {name: value.replace("|", "\\|") for name, value in rows.items()}
    cells = "\n".join(f"| {name} | {value} |" for name, value in escaped.items())
    return f"| {heading} | value |\n|---|---|\n{cells}"


def _code(text: str) -> str:
    """Text as code, on one line."""
    text = _one_line(text)
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", text)), default=0))
    padding = " " if text.startswith("`") or text.endswith("`") else ""
    return f"{fence}{padding}{text}{padding}{fence}"


def _one_line(text: str) -> str:
    return " ".join("".join(c if c.isprintable() else " " for c in text).split()) or "(empty)"
