"""The other side of the comparisons: the same work by the libraries that people use today, and evaluate's formula."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from segformer import ImageProcessor, Segformer
from segformer.config import variant_of
from segformer.weights.dialects import to_ours


class Peer(Protocol):
    """A library's SegFormer with our weights, for ``mode`` train or infer."""

    model: Any

    def __init__(self, folder: str | Path, device: torch.device, mode: str) -> None: ...

    def compile(self) -> None:
        """Have torch.compile make the model and its loss faster, in place."""

    def loss(self, images: Tensor, labels: Tensor) -> Tensor:
        """Mean cross-entropy at the labels' size: (B, 3, H, W), (B, H, W) -> a scalar."""

    def label_map(self, photo: Image.Image, precision: AbstractContextManager[Any]) -> Tensor:
        """The class of every pixel, (H, W) on the CPU; the model runs inside ``precision``."""


class TransformersPeer:
    """transformers, with SDPA attention and its PIL processor."""

    def __init__(self, folder: str | Path, device: torch.device, mode: str) -> None:
        self.model = transformers_model(folder, device).train(mode == "train")
        self.processor = transformers_processor(folder)
        self.device = device

    def compile(self) -> None:
        self.model.compile()  # the loss is in it

    def loss(self, images: Tensor, labels: Tensor) -> Tensor:
        loss: Tensor = self.model(pixel_values=images, labels=labels).loss
        return loss

    def label_map(self, photo: Image.Image, precision: AbstractContextManager[Any]) -> Tensor:
        inputs = self.processor(images=photo, return_tensors="pt").to(self.device)
        with torch.inference_mode(), precision:
            outputs = self.model(**inputs)
        maps = self.processor.post_process_semantic_segmentation(outputs, target_sizes=[photo.size[::-1]])
        label_map: Tensor = maps[0].cpu()
        return label_map


class SmpPeer:
    """segmentation_models_pytorch, in channels-last memory: on a CPU its bfloat16 forward gains, all else is even.

    Its head enlarges the logits by 4 before the loss. For a photo the head is built without (``upsampling=1``), so that
    they are enlarged once, straight to the photo's size. It has no processor; ours prepares its photo. Its attention is
    two products around a softmax, with no setting for SDPA.
    """

    def __init__(self, folder: str | Path, device: torch.device, mode: str) -> None:
        self.model = smp_model(folder, device, upsampling=4 if mode == "train" else 1).train(mode == "train")
        self.criterion = torch.nn.CrossEntropyLoss(ignore_index=255)
        self.processor = ImageProcessor.from_pretrained(folder)
        self.device = device

    def compile(self) -> None:
        self.model.compile()
        self.criterion.compile()

    def loss(self, images: Tensor, labels: Tensor) -> Tensor:
        logits = self.model(images.contiguous(memory_format=torch.channels_last))
        loss: Tensor = self.criterion(logits, labels)
        return loss

    def label_map(self, photo: Image.Image, precision: AbstractContextManager[Any]) -> Tensor:
        images = self.processor.image_to_tensor(photo)[None].to(self.device, memory_format=torch.channels_last)
        with torch.inference_mode(), precision:
            logits = self.model(images)
        with torch.inference_mode():
            upsampled = F.interpolate(logits, size=photo.size[::-1], mode="bilinear", align_corners=False)
            return upsampled.argmax(dim=1)[0].cpu()


PEERS: dict[str, type[Peer]] = {"transformers": TransformersPeer, "smp": SmpPeer}
_PACKAGES = {"transformers": "transformers", "smp": "segmentation-models-pytorch"}


def require(name: str) -> None:
    """Stop with one line if a peer's package is not installed."""
    package = _PACKAGES[name]
    if importlib.util.find_spec(package.replace("-", "_")) is None:
        raise SystemExit(f"error: {name} is not installed; pip install {package}")


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


def batch_prediction(
    folder: str | Path, photos: Tensor, precision: AbstractContextManager[Any], device: torch.device
) -> Callable[[], Tensor]:
    """Photos (B, 3, H, W) uint8 to label maps (B, H, W) on the CPU, by its processor for tensors, on the device."""
    from transformers import SegformerImageProcessor

    model, processor = transformers_model(folder, device).eval(), SegformerImageProcessor.from_pretrained(folder)
    sizes = [tuple(photos.shape[2:])] * len(photos)

    def predict() -> Tensor:
        with torch.inference_mode(), precision:
            inputs = processor(images=list(photos), return_tensors="pt", device=device)
            outputs = model(pixel_values=inputs["pixel_values"].to(device))
            maps = processor.post_process_semantic_segmentation(outputs, target_sizes=sizes)
            return torch.stack(maps).to(torch.uint8).cpu()

    return predict


def smp_model(folder: str | Path, device: torch.device, upsampling: int = 4) -> Any:
    """SegFormer by segmentation_models_pytorch with the weights of a saved folder of ours, made to compute the same.

    As it comes it differs in what is set here: an eps of 1e-6 in most LayerNorms, drop path of 0.1, and corners that
    are aligned when the head enlarges logits (the same work, other weights). It never has a classifier dropout.
    """
    import segmentation_models_pytorch as smp

    ours = Segformer.from_pretrained(folder)
    model = smp.Segformer(
        encoder_name=f"mit_{variant_of(ours.config)}",
        encoder_weights=None,
        decoder_segmentation_channels=ours.config.decoder_hidden_size,
        classes=ours.config.num_labels,
        upsampling=upsampling,
    )
    weights, names = ours.state_dict(), smp_names_in_ours(model.state_dict())
    model.load_state_dict({their: weights[our] for their, our in names.items()})
    for module in model.modules():
        if isinstance(module, torch.nn.LayerNorm):
            module.eps = 1e-5
        elif isinstance(module, torch.nn.Upsample):
            module.align_corners = False
    model.encoder.reset_drop_path(0.0)
    return model.to(device, memory_format=torch.channels_last)


# How segmentation_models_pytorch's names begin and those of the authors' release: the encoder's are theirs; the decoder
# counts from the coarsest stage.
_SMP_TO_ORIGINAL = {
    "encoder.": "",
    **{f"decoder.mlp_stage.{i}.linear.": f"decode_head.linear_c{4 - i}.proj." for i in range(4)},
    "decoder.fuse_stage.0.": "decode_head.linear_fuse.conv.",
    "decoder.fuse_stage.1.": "decode_head.linear_fuse.bn.",
    "segmentation_head.0.": "decode_head.linear_pred.",
}


def smp_names_in_ours(names: Iterable[str]) -> dict[str, str]:
    """Our name of each of segmentation_models_pytorch's tensors."""
    ours = {}
    for name in names:
        start = next(start for start in _SMP_TO_ORIGINAL if name.startswith(start))
        (ours[name],), _ = to_ours({_SMP_TO_ORIGINAL[start] + name.removeprefix(start): torch.empty(0)})
    return ours


def guide_trainer(
    checkpoint: str,
    id2label: Mapping[int, str],
    rows: tuple[Any, Any],
    steps: int,
    eval_steps: int,
    output_dir: str | Path,
    seed: int,
    on_cpu: bool,
) -> Any:
    """Trainer with the guide's settings, for rows to train on and to evaluate on that are prepared as it takes them."""
    from transformers import SegformerForSemanticSegmentation, Trainer, TrainingArguments, set_seed

    set_seed(seed)
    model = SegformerForSemanticSegmentation.from_pretrained(
        checkpoint,
        id2label=dict(id2label),
        label2id={name: k for k, name in id2label.items()},
        ignore_mismatched_sizes=True,
    )
    arguments = TrainingArguments(
        output_dir=str(output_dir),
        learning_rate=6e-5,
        max_steps=steps,
        per_device_train_batch_size=2,
        per_device_eval_batch_size=2,
        save_total_limit=3,
        eval_strategy="steps",
        save_strategy="steps",
        save_steps=eval_steps,
        eval_steps=eval_steps,
        logging_steps=1,
        eval_accumulation_steps=5,
        remove_unused_columns=False,
        report_to=[],
        use_cpu=on_cpu,
        seed=seed,
    )
    train_rows, eval_rows = rows
    return Trainer(
        model=model,
        args=arguments,
        train_dataset=train_rows,
        eval_dataset=eval_rows,
        compute_metrics=_guide_metrics,
    )


def _guide_metrics(prediction: Any) -> dict[str, float]:
    """The guide's: enlarge all logits, and score with the formula of ``evaluate``."""
    logits, labels = (torch.from_numpy(np.asarray(values)) for values in prediction)
    return {"mean_iou": guide_score(logits, labels)}


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
    return guide_score(torch.cat([model(pixel_values=some).logits for some in images.split(batch_size)]), labels)


def guide_score(logits: Tensor, labels: Tensor) -> float:
    """Mean IoU as the guide's compute_metrics has it, of all logits and all labels."""
    upsampled = F.interpolate(logits, size=labels.shape[-2:], mode="bilinear", align_corners=False)
    predictions = upsampled.argmax(dim=1).numpy()
    metric = HistogramMeanIoU(logits.shape[1])
    for prediction, label in zip(predictions, labels.numpy(), strict=True):
        metric.update(prediction, label)
    return metric.mean_iou()
