"""The whole SegFormer: encoder, decoder, and the doors through which weights come in and go out."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

import torch
from torch import Tensor, nn

from segformer.config import SegformerConfig
from segformer.decoder import AllMLPDecoder
from segformer.encoder import MixTransformer, Stage
from segformer.weights import pretrained
from segformer.weights.publish import upload_folder


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Have a model predict, without dropout and by BatchNorm's kept statistics; then every module is as it was."""
    learning = [module for module in model.modules() if module.training]
    for module in learning:
        module.training = False
    try:
        yield
    finally:
        for module in learning:
            module.training = True


def warn_of_eval_mode(model: nn.Module) -> None:
    """Warn whoever trains a model in the mode that it was loaded in, or an evaluation of their own left it in."""
    if not any(module.training for module in model.modules()):
        warnings.warn("the model is in eval mode; model.train() has it learn as it is meant to", stacklevel=3)


class Segformer(nn.Module):
    """Semantic segmentation with a Mix Transformer encoder and an all-MLP decoder (Xie et al., 2021).

    Shapes: images (B, 3, H, W), normalised -> logits (B, K, ceil(H / 4), ceil(W / 4)). Any H, W whose maps stay at
    least ``sr_ratio`` wide: from 29 pixels a side for B0 to B5. Raises ValueError for what is no such batch.
    """

    def __init__(self, config: SegformerConfig) -> None:
        if not isinstance(config, SegformerConfig):
            made = "call it: VARIANTS['b0'](num_labels=...)" if callable(config) else "Segformer.from_pretrained loads"
            kind = "function" if callable(config) else type(config).__name__
            raise ValueError(f"config is a {kind}, not a SegformerConfig; {made}")
        super().__init__()
        self.config = config
        self.encoder = MixTransformer(config)
        self.decoder = AllMLPDecoder(config)
        self.load_report = pretrained.LoadReport()
        self.apply(self._initialize)

    @property
    def num_parameters(self) -> int:
        """How many weights there are to learn."""
        return sum(weight.numel() for weight in self.parameters())

    def forward(self, images: Tensor) -> Tensor:
        self._check_batch(images)
        return self.decoder(self.encoder(images))

    def _check_batch(self, images: Tensor) -> None:
        """Raise ValueError, saying what to do, for what a convolution would refuse in words of its own."""
        channels = self.config.num_channels
        if not isinstance(images, Tensor):
            cure = "of a photo, ImageProcessor()(photo)[0][None] makes one"
            kind = type(images).__name__
            raise ValueError(f"images is a {kind}; the model takes a tensor (B, {channels}, H, W): {cure}")
        shape = tuple(images.shape)
        if len(shape) != 4 or shape[1] != channels:
            cure = f"its num_channels is {channels}"
            if len(shape) == 3:
                cure = "images[None] adds the axis of the batch"
            elif shape[-1:] == (channels,):
                cure = "images.permute(0, 3, 1, 2) turns it"
            raise ValueError(f"images is {shape}; the model takes (B, {channels}, H, W): {cure}")
        if not images.is_floating_point():
            raise ValueError(f"images is of {images.dtype}; the model takes normalised pixels, as of ImageProcessor")
        if not torch.compiler.is_compiling():  # of a compiled model's own sizes nothing is to be assumed
            self.config.check_image_size(*shape[2:])
            weight = cast(Stage, self.encoder.stages[0]).patch_embedding.projection.weight
            if images.device.type != weight.device.type:
                raise ValueError(f"images is on {images.device}, the model on {weight.device}; images.to(...) moves it")
            if images.dtype != weight.dtype and not torch.is_autocast_enabled(images.device.type):
                raise ValueError(f"images is of {images.dtype}, the model of {weight.dtype}; images.to(...) turns it")

    def _initialize(self, module: nn.Module) -> None:
        """Normal weights of ``initializer_range`` and zero biases, as transformers starts a new head."""
        if isinstance(module, nn.Linear | nn.Conv2d) and not module.weight.is_meta:  # which has no weights to draw
            nn.init.normal_(module.weight, std=self.config.initializer_range)
            if module.bias is not None:
                nn.init.zeros_(module.bias)

    def redraw_as_authors(self) -> None:
        """Draw what no checkpoint has brought of the decoder as the authors' code does, not as transformers does."""
        if self.load_report.path is None or self.load_report.missing:
            self.decoder.initialize_as_authors()
        elif self.load_report.mismatched:
            self.decoder.classifier.reset_parameters()

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        id2label: Mapping[int, str] | Sequence[str] | None = None,
        num_labels: int | None = None,
        revision: str | None = None,
        token: str | bool | None = None,
        local_files_only: bool = False,
        config_changes: Mapping[str, Any] | None = None,
    ) -> Segformer:
        """Load a Hub id, a folder, or a file of weights, in eval mode; ``weights/dialects.py`` lists whose it reads.

        ``id2label``, names by id or a list of them, or ``num_labels`` replace the checkpoint's classes; a classifier of
        another size then starts anew.
        ``config_changes`` replace entries of its configuration, such as ``{"drop_path_rate": 0.0}``. What was missing,
        unexpected or started anew stands in ``load_report``. Raises FileNotFoundError for an unknown source and
        ValueError for weights that do not fit.
        """
        checkpoint = pretrained.read_checkpoint(source, revision, token, local_files_only)
        config = pretrained.choose_config(checkpoint, id2label, num_labels, config_changes or {})
        new_classes = id2label is not None or num_labels is not None
        with torch.device("meta"):  # no memory is taken for sizes that only a config.json claims
            pretrained.check_fit(cls(config), checkpoint, allow_new_classifier=new_classes)
        model = cls(config)
        model.load_report = pretrained.load_weights(model, checkpoint, allow_new_classifier=new_classes)
        return model.eval()

    def save_pretrained(self, folder: str | Path) -> None:
        """Write ``config.json`` and ``model.safetensors``, under the names that every transformers release reads."""
        pretrained.save_model(self, self.config, Path(folder))

    def push_to_hub(self, repo_id: str, private: bool | None = None, token: str | bool | None = None) -> str:
        """Upload ``config.json`` and ``model.safetensors`` to a repository of the Hub, made if need be; its address.

        Raises OSError, saying what to do, where the Hub is out of reach or does not know the login.
        """
        with TemporaryDirectory() as folder:
            self.save_pretrained(folder)
            return upload_folder(Path(folder), repo_id, private, token)
