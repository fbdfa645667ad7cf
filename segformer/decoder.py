"""The all-MLP decoder: the right half of the paper's Figure 2, at half its price.

The paper projects each of the four maps to a common width, upsamples all of them to the finest, concatenates and fuses
them with a 1x1 convolution. No non-linearity stands between projection and fusion, and bilinear upsampling commutes
with a 1x1 convolution, so the same function is

    fuse(concat(up(L_i x_i + b_i))) = sum_i up((W_i L_i) x_i) + sum_i W_i b_i

where W_i is the slice of the fusing weight that meets stage i. The two small matrices are multiplied first, each stage
is projected straight to the fused width at its own resolution, and neither the 4C-channel concatenation nor the
convolution over it exists. Parameters, gradients and state dict are those of the paper's form; the tests hold this one
to it.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segformer.config import SegformerConfig
from segformer.dropout import relu_dropout_
from segformer.pointwise import pointwise


class AllMLPDecoder(nn.Module):
    """Merge the encoder's maps into class logits at the finest map's resolution (section 3.2).

    Shapes: maps (B, C_i, H_i, W_i), finest first -> (B, K, H_0, W_0).

    In training, single elements are dropped before the classifier, as in transformers; with ``drops_channels`` whole
    channels, as in the authors' training. That is a way to train and no part of the model: no config.json has it.
    """

    drops_channels = False

    def __init__(self, config: SegformerConfig) -> None:
        super().__init__()
        width = config.decoder_hidden_size
        stages = len(config.hidden_sizes)
        self.projections = nn.ModuleList(nn.Linear(channels, width) for channels in config.hidden_sizes)
        self.fuse = nn.Conv2d(stages * width, width, kernel_size=1, bias=False)
        self.norm = nn.BatchNorm2d(width)
        self.dropout_rate = config.classifier_dropout_prob
        self.classifier = nn.Conv2d(width, config.num_labels, kernel_size=1)

    def initialize_as_authors(self) -> None:
        """Draw new weights as the authors' code does, where ``Segformer`` draws them as transformers does.

        The projections and the classifier, biases too, as torch starts them: uniform up to 1 / sqrt(fan in). The fusing
        convolution as mmcv starts one before a norm and a ReLU: normal with variance 2 / fan out (He et al., 2015).
        """
        for projection in self.projections:
            cast(nn.Linear, projection).reset_parameters()
        nn.init.kaiming_normal_(self.fuse.weight, mode="fan_out", nonlinearity="relu")
        self.classifier.reset_parameters()

    def forward(self, features: list[Tensor]) -> Tensor:
        if self.norm.training:
            fused = self.norm(fuse(features, *self._stage_weights()))  # (B, C, H_0, W_0)
        else:
            fused = fuse(features, *self.folded_weights())
        kept, scale = relu_dropout_(fused, self.dropout_rate if self.training else 0.0, self.drops_channels)
        return _pointwise(kept, scale * self.classifier.weight[:, :, 0, 0], self.classifier.bias)

    def _stage_weights(self) -> tuple[list[Tensor], Tensor]:
        """The products W_i L_i, (C, C_i) each, and the sum of W_i b_i, (C,).

        In float32 even under autocast: the products are tiny, and their rounding would touch every pixel.
        """
        with torch.autocast(self.fuse.weight.device.type, enabled=False):
            # The released weights concatenate the coarsest stage first.
            slices = self.fuse.weight[:, :, 0, 0].chunk(len(self.projections), dim=1)[::-1]
            pairs = [(W, cast(nn.Linear, L)) for W, L in zip(slices, self.projections, strict=True)]
            bias = torch.stack([W @ L.bias for W, L in pairs]).sum(0)
            return [W @ L.weight for W, L in pairs], bias

    def folded_weights(self) -> tuple[list[Tensor], Tensor]:
        """The same with BatchNorm's running statistics multiplied in: in eval mode it is but a scale and a shift."""
        norm, (weights, bias) = self.norm, self._stage_weights()
        mean, variance = cast(Tensor, norm.running_mean), cast(Tensor, norm.running_var)
        with torch.autocast(self.fuse.weight.device.type, enabled=False):
            scale = norm.weight * torch.rsqrt(variance + norm.eps)
            return [scale[:, None] * weight for weight in weights], scale * (bias - mean) + norm.bias


def fuse(features: list[Tensor], weights: list[Tensor], bias: Tensor) -> Tensor:
    """The sum over the stages of their projected maps, each enlarged to the finest: (B, C, H_0, W_0)."""
    size = features[0].shape[-2:]
    biases = [None] * (len(features) - 2) + [bias]  # to the smallest map: enlarging leaves a constant what it is
    projected = map(_pointwise, features[1:], weights[1:], biases)  # (B, C, H_i, W_i)
    enlarged = (_enlarge(each, size) for each in projected)
    fused = next(enlarged)  # a tensor of its own, not a view, so the others are added to it in place
    for each in enlarged:
        fused += each
    fused += _pointwise(features[0], weights[0])
    return fused


def _enlarge(x: Tensor, size: torch.Size) -> Tensor:
    """Bilinearly, (B, C, h, w) -> (B, C, H, W).

    On CUDA in the precision of x: autocast would have float32 there, and with it the sum of the stages, BatchNorm, relu
    and dropout, the largest maps of the model. The arithmetic of each, statistics included, is in float32 all the same.
    """
    keep = torch.autocast("cuda", enabled=False) if x.device.type == "cuda" else nullcontext()
    with keep:
        return F.interpolate(x, size, mode="bilinear", align_corners=False)


def _pointwise(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """A 1x1 convolution of a channels-last map: (B, C_in, H, W) -> (B, C_out, H, W)."""
    return pointwise(x.permute(0, 2, 3, 1), weight, bias).permute(0, 3, 1, 2)
