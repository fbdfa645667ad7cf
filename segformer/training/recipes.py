"""Every setting of a run, and the recipes that give them their values."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import Any

from segformer.config import VARIANTS
from segformer.fullres.losses import KINDS, Loss, balanced_weights
from segformer.geometry import RESIZE_MODES
from segformer.training.settings import changeable, check_settings, found_out, per_start, setting

ONE_BY_ONE = ("keep-ratio", "window")  # of --eval-resolution, where photos keep sizes of their own


@dataclass(frozen=True)
class TrainConfig:
    """Every setting of a run, under the guide's names; the defaults are the guide's. Raises ValueError by name."""

    recipe: str = setting("guide", "the settings to start from")
    dataset: str = changeable("scene_parse_150", "folder, glob, list of files, owner/name on the Hub, or toy")
    image_column: str | None = changeable(None, "column of the photos, where it cannot be told")
    label_column: str | None = changeable(None, "column of the label maps, where it cannot be told")
    split: str = setting("train[:50]", "rows to train on, such as train or train[:50]")
    eval_split: str | None = setting(
        None,
        "rows to evaluate on; 'auto' is validation if there is one; else --test-size of --split is held out",
    )
    test_size: float = setting(0.2, "share of --split to hold out when there is no --eval-split", at_least=0, below=1)
    checkpoint: str | None = setting("nvidia/mit-b0", "Hub id, folder or file to start from; 'none' to start anew")
    variant: str | None = setting(None, "b0 to b5: size of a model that starts anew, b0 if not given", tuple(VARIANTS))
    head_initialization: str = setting(
        "transformers", "whose rule draws the decoder's weights that start anew", ("transformers", "authors")
    )
    image_size: str | None = setting(
        None, "pixels that photos are resized to, 512 or height x width as 360x480; else the checkpoint's, or 512"
    )
    resize_mode: str | None = setting(
        None,
        "how a photo of another shape comes to that size: squashed, kept whole and padded, or cropped; else as the "
        "checkpoint's, or squashed",
        RESIZE_MODES,
    )
    num_labels: int | None = found_out("number of classes; else as many as are named", at_least=1)
    label_names: str | None = changeable(None, "file that names the classes, and their colours if masks have colours")
    reduce_labels: bool | None = found_out("0 is ignored and k is class k - 1; with --no-reduce-labels k is class k")
    ignore_index: int | None = found_out("one more value of a label map to ignore; else 255, where it is free")
    binary_masks: bool | None = found_out("masks of two classes: 0, and whatever is above it")
    augmentation: str = setting("jitter", "of training images: the guide's or the paper's", ("none", "jitter", "paper"))
    augment_on_device: bool = setting(False, "jitter and normalise there; workers only decode and resize")
    drop_path_rate: float | None = setting(
        None, "rate of dropped residual branches; else the checkpoint's", at_least=0, below=1
    )
    classifier_dropout: float | None = setting(
        None, "dropout before the classifier; else the checkpoint's", at_least=0, below=1
    )
    dropout_channels: bool = setting(False, "drop whole channels before the classifier, not single elements")
    freeze_encoder: int = setting(
        0, "first stages of the encoder that stay as they are: 4 for all of it", at_least=0, below=5
    )
    gradient_checkpointing: bool = changeable(
        False, "compute the encoder's blocks twice instead of keeping what they compute: slower, in less memory"
    )
    loss: str = setting("cross-entropy", "what a pixel costs", KINDS)
    focal_gamma: float = setting(2.0, "of the focal loss: how much less a pixel counts that is known", at_least=0)
    class_weights: str = setting("none", "none, balanced (by median frequency), numbers with commas, or a file of them")
    label_smoothing: float = setting(0.0, "share of a label that is spread over all classes", at_least=0, below=1)
    dice_weight: float = setting(0.0, "how many times 1 - Dice is added, over the classes that occur", at_least=0)
    loss_mean: str = setting(
        "valid",
        "a step's loss is the mean over its valid pixels, or over all, ignored ones counting 0",
        ("valid", "all"),
    )
    learning_rate: float = setting(6e-5, "peak learning rate of AdamW", at_least=0)
    head_learning_rate_factor: float = setting(1.0, "times as high a learning rate for the decoder", at_least=0)
    layer_decay: float = setting(
        1.0, "times the learning rate from each block of the encoder to the one before", at_least=0, below=1.0000001
    )
    weight_decay: float = setting(0.0, "weight decay of AdamW; norms and biases are spared", at_least=0)
    decay_biases: bool = setting(False, "decay biases too; norms are still spared")
    lr_scheduler_type: str = setting(
        "linear", "shape of the schedule after warm-up", ("linear", "poly", "cosine", "constant")
    )
    warmup_steps: int = setting(0, "steps of linear warm-up", at_least=0)
    num_train_epochs: float = changeable(50, "passes over the training rows", at_least=0)
    max_steps: int = changeable(-1, "steps to train for, if above 0, instead of --num-train-epochs")
    max_train_minutes: float | None = changeable(
        None, "minutes to train for at most, evaluations included: the schedule ends there", at_least=0
    )
    ema_decay: float | None = setting(
        None, "decay of an average of the weights, which is then scored and saved, such as 0.999", at_least=0, below=1
    )
    early_stopping_patience: int = changeable(
        0, "stop after so many evaluations in a row without a better mean IoU; 0 never", at_least=0
    )
    per_device_train_batch_size: int = changeable(2, "images in one forward pass", at_least=1)
    auto_batch_size: bool = changeable(
        False, "split a forward pass until it fits into the GPU's memory; a step's images stay as many"
    )
    per_device_eval_batch_size: int = changeable(2, "images in one forward pass of the evaluation", at_least=1)
    gradient_accumulation_steps: int = changeable(1, "forward passes behind one optimiser step", at_least=1)
    dataloader_drop_last: bool = setting(False, "leave out the last step of an epoch where it would be a short one")
    max_grad_norm: float = setting(1.0, "gradients are clipped to this norm; 0 to leave them", at_least=0)
    eval_strategy: str = setting("steps", "evaluate every --eval-steps, or after every epoch", ("steps", "epoch"))
    eval_steps: int = setting(20, "steps between evaluations", at_least=1)
    save_strategy: str = changeable("steps", "save every --save-steps, or after every epoch", ("steps", "epoch"))
    save_steps: int = changeable(20, "steps between checkpoints", at_least=1)
    save_total_limit: int | None = changeable(3, "checkpoints to keep", at_least=1)
    logging_steps: int = changeable(1, "steps between log entries", at_least=1)
    eval_on_start: bool = per_start(False, "also evaluate before the first step")
    eval_resolution: str = setting(
        "processed",
        "scored are labels resized with the photo, or its own labels: photo resized, its shape kept, or in windows",
        ("processed", "original", "keep-ratio", "window"),
    )
    eval_window: int = setting(1024, "side in pixels of the windows of --eval-resolution window", at_least=32)
    eval_stride: int = setting(768, "pixels from one window to the next", at_least=32)
    eval_flip: bool = setting(False, "score the mean of each photo and its mirror image")
    eval_scales: str = setting("1", "score the mean over these scales, such as 0.5,1,1.5; takes keep-ratio")
    load_best_model_at_end: bool = changeable(False, "leave the best evaluated checkpoint in the output folder")
    seed: int = setting(42, "seed of order, augmentation, new weights and dropout", at_least=0, below=2**63)
    amp: str = changeable("auto", "mixed precision", ("auto", "bf16", "fp16", "off"))
    compile: bool = changeable(False, "compile the model with torch.compile")
    cuda_graph: bool = changeable(False, "replay training steps as CUDA graphs, which is faster with few images")
    device: str | None = changeable(None, "device to run on; else CUDA, MPS or the CPU, the first there is")
    deterministic: bool = changeable(False, "the same bits in every run on CUDA too, where that is slower")
    dataloader_num_workers: int | None = changeable(
        None, "processes that prepare batches; else one for each core but one on CUDA, and none elsewhere", at_least=0
    )
    report_to: str = changeable("none", "also write the log as event files", ("none", "tensorboard"))
    output_dir: str | None = per_start(None, "folder of the run; else runs/<recipe>-<n>")
    overwrite_output_dir: bool = per_start(False, "delete the run that the output folder holds")
    resume_from_checkpoint: str | None = per_start(
        None, "go on with a run: its folder, a checkpoint in it, or without PATH what --output-dir holds"
    )
    eval_only: bool = setting(False, "evaluate the checkpoint on --eval-split, or on --split, and stop")
    dry_run: bool = per_start(False, "say what the run would do, try one step and one evaluation batch, and stop")
    push_to_hub: bool = changeable(False, "upload the finished run to the Hub")
    hub_model_id: str | None = changeable(None, "repository to upload to; else the name of the output folder")

    def __post_init__(self) -> None:
        if isinstance(self.class_weights, str) and os.path.isfile(
            self.class_weights
        ):  # read once, so that a run goes on with what it began with
            object.__setattr__(self, "class_weights", _numbers_in(self.class_weights))
        if isinstance(self.image_size, int) and not isinstance(self.image_size, bool):
            object.__setattr__(self, "image_size", str(self.image_size))
        check_settings(self)
        self._check_image_size()
        self._check_evaluation()
        self._check_loss()
        self._check_aids()
        if self.augment_on_device and self.augmentation == "paper":
            raise ValueError("augment_on_device is for the jitter; the paper's crops are made where photos are decoded")
        if self.loss_mean == "all" and not self.dataloader_drop_last:
            raise ValueError(
                "loss_mean is 'all', which would count photos that only fill in where the last rows of an epoch do not "
                "go round all devices; it takes --dataloader-drop-last"
            )
        if self.max_steps < 1 and self.num_train_epochs <= 0:
            raise ValueError(f"max_steps is {self.max_steps} and num_train_epochs {self.num_train_epochs}: no steps")
        if self.eval_only and self.checkpoint is None:
            raise ValueError("eval_only needs a --checkpoint to score")
        if self.eval_only and self.push_to_hub:
            raise ValueError("eval_only leaves scores and no model; there is nothing for push_to_hub to upload")
        if self.eval_only and self.resume_from_checkpoint is not None:
            raise ValueError("eval_only scores --checkpoint, in a folder of its own; it goes on with no run")
        if self.load_best_model_at_end and self.eval_strategy != self.save_strategy:
            raise ValueError(
                f"load_best_model_at_end needs one strategy for both: eval_strategy is {self.eval_strategy!r}, "
                f"save_strategy {self.save_strategy!r}"
            )
        by_steps = self.eval_strategy == "steps"
        if self.load_best_model_at_end and by_steps and math.lcm(self.eval_steps, self.save_steps) != self.save_steps:
            raise ValueError(
                f"load_best_model_at_end needs save_steps ({self.save_steps}) to be a multiple of "
                f"eval_steps ({self.eval_steps}), or no saved step has a score"
            )

    def _check_image_size(self) -> None:
        if self.image_size is not None and not re.fullmatch(r"[1-9]\d{0,4}(x[1-9]\d{0,4})?", self.image_size):
            raise ValueError(
                f"image_size is {self.image_size}; it must be a side in pixels, such as 512, or height and width, "
                "such as 360x480"
            )

    def _check_loss(self) -> None:
        self.unweighted  # noqa: B018 - which checks itself
        if self.class_weights != "balanced":
            self.objective  # noqa: B018
        if self.loss_mean == "all" and self.class_weights != "none":
            raise ValueError("loss_mean is 'all', which class_weights have no part in; set it to valid")

    def _check_aids(self) -> None:
        for name in ("ema_decay", "max_train_minutes"):
            if getattr(self, name) == 0:
                raise ValueError(f"{name} is 0; it must be above 0, or left out")
        if not 0 < self.layer_decay <= 1:
            raise ValueError(f"layer_decay is {self.layer_decay}; it must be above 0, and 1 at most")
        if self.freeze_encoder and self.checkpoint is None:
            raise ValueError(
                f"freeze_encoder is {self.freeze_encoder}, and without a checkpoint the encoder starts anew and would "
                "stay as it was drawn; name a --checkpoint"
            )
        if self.freeze_encoder == 4 and self.head_learning_rate_factor == 0:
            raise ValueError(
                "freeze_encoder is 4 and head_learning_rate_factor 0: nothing is left that learns; raise the latter"
            )
        if self.gradient_checkpointing and self.cuda_graph:
            raise ValueError(
                "gradient_checkpointing draws dropout again from a saved state, which cuda_graph cannot replay; "
                "leave one of them out"
            )
        if self.report_to == "tensorboard" and find_spec("tensorboard") is None:
            raise ValueError(
                "report_to is 'tensorboard', which is not installed: pip install -e '.[tensorboard]', or leave it out"
            )

    @property
    def objective(self) -> Loss:
        """The loss that a step minimises. Raises ValueError for weights that ``balanced`` has yet to work out."""
        if self.class_weights == "balanced":
            raise ValueError("class_weights is 'balanced'; config.balanced(pixels) works the weights out, by class")
        weights = None if self.class_weights == "none" else _read_weights(self.class_weights)
        return replace(self.unweighted, weights=weights)

    @property
    def unweighted(self) -> Loss:
        """The same loss with all classes alike."""
        return Loss(self.loss, self.focal_gamma, None, self.label_smoothing, self.dice_weight)

    def balanced(self, pixels: Sequence[float]) -> TrainConfig:
        """These settings with balanced weights worked out from the pixels of every class, or their shares."""
        weights = ",".join(map(str, balanced_weights(pixels)))
        return replace(self, class_weights=f"balanced:{weights}")

    @property
    def processed_size(self) -> tuple[int, int] | None:
        """The (height, width) that ``image_size`` asks for."""
        if self.image_size is None:
            return None
        height, _, width = self.image_size.partition("x")
        return int(height), int(width or height)

    def _check_evaluation(self) -> None:
        try:
            scales = self.scales
        except ValueError:
            scales = ()
        if not scales or not all(0.1 <= scale <= 4 for scale in scales):
            raise ValueError(
                f"eval_scales is {self.eval_scales!r}; it must be numbers of 0.1 to 4, with commas between"
            )
        if scales != (1.0,) and self.eval_resolution != "keep-ratio":
            raise ValueError(f"eval_scales is {self.eval_scales!r}, which takes eval_resolution keep-ratio")
        if self.eval_resolution in ONE_BY_ONE and self.per_device_eval_batch_size != 1:
            raise ValueError(
                f"per_device_eval_batch_size is {self.per_device_eval_batch_size}; photos that keep their shape "
                f"(eval_resolution {self.eval_resolution}) are scored one by one: set it to 1"
            )
        if self.eval_window % 32 or self.eval_stride % 32 or self.eval_stride > self.eval_window:
            raise ValueError(
                f"eval_window is {self.eval_window} and eval_stride {self.eval_stride}; both must be multiples of 32, "
                "and the stride no more than the window"
            )

    @property
    def scales(self) -> tuple[float, ...]:
        """The scales that ``eval_scales`` lists."""
        return tuple(float(scale) for scale in self.eval_scales.split(","))


def _numbers_in(path: str) -> str:
    """The numbers in a file, with commas between."""
    try:
        with open(path, encoding="utf-8-sig") as file:
            numbers = file.read().replace(",", " ").split()
        held = next((repr(each[:40]) for each in numbers if not _is_number(each)), "nothing")
        if all(map(_is_number, numbers)) and numbers:
            return ",".join(numbers)
    except UnicodeDecodeError:
        held = "no text"
    raise ValueError(f"class_weights is {path}, which holds {held}; it must hold a number for every class")


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _read_weights(text: str) -> tuple[float, ...]:
    """The weights that ``class_weights`` gives as numbers or in a file; balanced ones are 0 for what never occurs."""
    listed = text.removeprefix("balanced:")
    try:
        weights = tuple(float(each) for each in listed.split(","))
    except ValueError:
        folder = ", a folder" if os.path.isdir(text) else ""
        raise ValueError(
            f"class_weights is {text!r}{folder}; it must be none, balanced, numbers with commas between, or a file of "
            "numbers"
        ) from None
    if not all(weight > 0 for weight in weights) and listed == text:
        raise ValueError(f"class_weights is {text!r}; every weight must be above 0")
    return weights


# What --help lists together, by the first field of each group.
GROUPS = {
    "dataset": "data",
    "checkpoint": "model",
    "num_labels": "classes, and what the values of a label map mean",
    "augmentation": "training photos",
    "drop_path_rate": "optimisation",
    "eval_strategy": "evaluation, checkpoints and log",
    "seed": "how and where to compute",
    "output_dir": "the run's folder, and other ways to start",
}

RECIPES: dict[str, dict[str, Any]] = {
    # Generated scenes, from scratch.
    "toy": {
        "dataset": "toy",
        "split": "train",
        "eval_split": "validation",
        "checkpoint": None,
        "variant": "b0",
        "image_size": 128,
        "drop_path_rate": 0.0,
        "classifier_dropout": 0.0,
        "learning_rate": 2e-3,
        "lr_scheduler_type": "cosine",
        "warmup_steps": 50,
        "weight_decay": 0.01,
        "per_device_train_batch_size": 8,
        "per_device_eval_batch_size": 16,
        "num_train_epochs": 14,
        "augmentation": "none",
        "eval_steps": 200,
        "save_steps": 200,
        "logging_steps": 20,
    },
    # https://huggingface.co/docs/transformers/tasks/semantic_segmentation
    "guide": {},
    # Data of one's own: the paper's augmentation and schedule, over epochs instead of steps. What was tried on street
    # photos, value by value: docs/learning.md
    "own": {
        "split": "train",
        "eval_split": "auto",
        "augmentation": "paper",
        "dice_weight": 1.0,
        "learning_rate": 2e-4,
        "head_learning_rate_factor": 10.0,
        "weight_decay": 0.01,
        "decay_biases": True,
        "lr_scheduler_type": "poly",
        "warmup_steps": 100,
        "per_device_train_batch_size": 4,
        "eval_resolution": "original",
        "eval_strategy": "epoch",
        "save_strategy": "epoch",
        "load_best_model_at_end": True,
        "logging_steps": 10,
    },
    # https://arxiv.org/abs/2105.15203, section 4.1. A batch has 16 images over all GPUs. Published for B0 on
    # validation, at the photos' own size: mean IoU 0.374.
    "paper": {
        "split": "train",
        "eval_split": "validation",
        "head_initialization": "authors",  # for B0 of std 0.088, 0.036 and 0.102 where transformers has 0.02
        "augmentation": "paper",
        "head_learning_rate_factor": 10.0,
        "weight_decay": 0.01,
        "decay_biases": True,
        "lr_scheduler_type": "poly",
        "warmup_steps": 1500,
        "max_steps": 160_000,
        "dataloader_drop_last": True,  # every step of theirs has 16 images; of 20,210, two are left over in each epoch
        "max_grad_norm": 0.0,
        "drop_path_rate": 0.1,
        "classifier_dropout": 0.1,
        "dropout_channels": True,  # mmsegmentation drops with Dropout2d
        "loss_mean": "all",  # theirs; of a crop 87 % are valid on average, so with "valid" steps would be larger
        "per_device_train_batch_size": 16,
        "per_device_eval_batch_size": 1,
        "eval_resolution": "keep-ratio",
        "eval_steps": 16_000,
        "save_steps": 16_000,
        "logging_steps": 50,
    },
}


def configure(recipe: str, start: Mapping[str, Any] | None = None, /, **settings: Any) -> TrainConfig:
    """The settings of a recipe with some of them changed, first those to ``start`` from; paths may be ``Path`` objects.

    Photos that are scored one by one are so without being told, unless ``settings`` say how many.
    """
    settings = {name: os.fspath(value) if isinstance(value, os.PathLike) else value for name, value in settings.items()}
    if recipe not in RECIPES:
        raise ValueError(f"recipe is {recipe!r}; it is one of {', '.join(RECIPES)}")
    chosen = {**RECIPES[recipe], **(start or {}), **settings}
    if chosen.get("eval_resolution") in ONE_BY_ONE and "per_device_eval_batch_size" not in settings:
        chosen["per_device_eval_batch_size"] = 1
    return TrainConfig(recipe=recipe, **chosen)
