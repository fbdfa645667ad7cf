"""The work of a model by formula, in FLOPs: multiply and add counted apart.

Counted are the products: convolutions, Linear layers, and the two of attention. Norms, GELU, softmax, interpolation and
sums are not. (torch's own counter changes with its release: attention is in it or not.)
"""

from __future__ import annotations

from torch import Tensor

from segformer import SegformerConfig
from segformer.fullres.bands import plan

Size = tuple[int, int]


def model(config: SegformerConfig, size: Size) -> int:
    """The forward pass of one image of ``size`` (H, W)."""
    return encoder(config, size) + decoder(config, size)


def encoder(config: SegformerConfig, size: Size) -> int:
    """The encoder's part of it, transformers' as well."""
    multiplied, channels = 0, config.num_channels
    for stage, ((H, W), width) in enumerate(zip(map_sizes(config, size), config.hidden_sizes, strict=True)):
        positions, hidden, sr_ratio = H * W, config.mlp_ratios[stage] * width, config.sr_ratios[stage]
        keys = (H // sr_ratio) * (W // sr_ratio)
        embedding = positions * channels * width * config.patch_sizes[stage] ** 2
        query_and_out = 2 * positions * width**2
        key_and_value = 2 * keys * width**2
        reduction = keys * width**2 * sr_ratio**2 if sr_ratio > 1 else 0
        scores_and_values = 2 * positions * keys * width
        mix_ffn = positions * hidden * (2 * width + 9)
        block = query_and_out + key_and_value + reduction + scores_and_values + mix_ffn
        multiplied += embedding + config.depths[stage] * block
        channels = width
    return 2 * multiplied


def decoder(config: SegformerConfig, size: Size) -> int:
    """The decoder's part: every stage straight to the fused width at its own size, after the product of its weights."""
    width, maps = config.decoder_hidden_size, map_sizes(config, size)
    stages = list(zip(maps, config.hidden_sizes, strict=True))
    fused = sum((H * W + width) * channels * width for (H, W), channels in stages)
    return 2 * (fused + maps[0][0] * maps[0][1] * width * config.num_labels)


def textbook_decoder(config: SegformerConfig, size: Size) -> int:
    """The same by way of the paper's concatenation, as transformers computes it."""
    width, maps = config.decoder_hidden_size, map_sizes(config, size)
    finest = maps[0][0] * maps[0][1]
    projected = sum(H * W * channels * width for (H, W), channels in zip(maps, config.hidden_sizes, strict=True))
    return 2 * (projected + finest * width * (len(maps) * width + config.num_labels))


def banded_loss(logits: Tensor, size: Size) -> int:
    """Loss and gradient of a batch, (B, K, h, w), at ``size``: what enlarges the bands, and brings them back.

    Products both ways; for the four-fold enlargement on a CPU, a depthwise convolution of 8 x 8 back, and on the way
    there two interpolations, which are not counted.
    """
    small = logits.detach().permute(0, 2, 3, 1).float()
    images, (_, _, w, K) = range(small.shape[0]), small.shape
    total = 0
    for band in plan(small, size)[0]:
        back = (band.height // 4 + 2) * (w + 2) * 8 * 8 if band.beyond else 2 * band.down.numel() * size[1]
        total += 2 * len(images[band.images]) * back * K
    return total


def map_sizes(config: SegformerConfig, size: Size) -> list[Size]:
    """(H_i, W_i) of the encoder's maps."""
    sizes = []
    for patch_size, stride in zip(config.patch_sizes, config.strides, strict=True):
        H, W = ((side + 2 * (patch_size // 2) - patch_size) // stride + 1 for side in size)
        size = (H, W)
        sizes.append(size)
    return sizes
