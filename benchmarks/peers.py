"""The other side of the comparisons: the same work as people do it today, with transformers and evaluate's formula."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor


def transformers_model(folder: str | Path, device: torch.device) -> Any:
    """SegFormer by transformers, with SDPA attention, from a saved folder."""
    from transformers import SegformerForSemanticSegmentation

    return SegformerForSemanticSegmentation.from_pretrained(
        folder, attn_implementation="sdpa", semantic_loss_ignore_index=255
    ).to(device)


def transformers_processor(folder: str | Path) -> Any:
    """Its image processor, with the PIL backend, whose pixels ours are held to."""
    from transformers.models.segformer.image_processing_pil_segformer import SegformerImageProcessorPil

    return SegformerImageProcessorPil.from_pretrained(folder)


def plain_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """The loss inside transformers' model: enlarge the logits, then cross-entropy."""
    upsampled = F.interpolate(logits, size=labels.shape[-2:], mode="bilinear", align_corners=False)
    return F.cross_entropy(upsampled, labels, ignore_index=255)


class HistogramMeanIoU:
    """Mean IoU as the ``evaluate`` metric computes it: three numpy histograms for every image."""

    def __init__(self, num_labels: int) -> None:
        self.num_labels = num_labels
        self.areas = np.zeros((3, num_labels))  # intersection, prediction, label

    def update(self, prediction: NDArray[Any], label: NDArray[Any]) -> None:
        """Add one image's maps."""
        valid = label != 255
        prediction, label = prediction[valid], label[valid]
        for area, values in zip(self.areas, (prediction[prediction == label], prediction, label), strict=True):
            area += np.histogram(values, bins=self.num_labels, range=(0, self.num_labels - 1))[0]

    def mean_iou(self) -> float:
        """The mean over the classes that are there."""
        intersection, predicted, labelled = self.areas
        with np.errstate(invalid="ignore"):
            return float(np.nanmean(intersection / (predicted + labelled - intersection)))


@torch.no_grad()
def guide_evaluation(model: Any, images: Tensor, labels: Tensor, batch_size: int) -> float:
    """Mean IoU as the guide's run gets it: keep all logits, enlarge them all at once, then score every image."""
    model.eval()
    logits = torch.cat([model(pixel_values=some).logits for some in images.split(batch_size)])
    upsampled = F.interpolate(logits, size=labels.shape[-2:], mode="bilinear", align_corners=False)
    predictions = upsampled.argmax(dim=1).numpy()
    metric = HistogramMeanIoU(logits.shape[1])
    for prediction, label in zip(predictions, labels.numpy(), strict=True):
        metric.update(prediction, label)
    return metric.mean_iou()
