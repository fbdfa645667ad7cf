"""The Mix Transformer encoder: the left half of the paper's Figure 2.

Four stages, each an overlapping patch embedding, a run of blocks and a LayerNorm, turn an image into four feature maps
at 1/4, 1/8, 1/16 and 1/32 of its size. Inside a stage a map is (B, H, W, C), so that LayerNorm and Linear act on it as
they are; the permute in front of a convolution is a free view that convolutions know as channels-last memory.

Where this differs from the paper: Mix-FFN expands by 4 in every stage, as in the released weights (Table 6 prints 8 for
the first two), and ``sr_ratio`` is the side of the reduction, whose square is the paper's R.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from segformer.config import SegformerConfig
from segformer.pointwise import Pointwise

_FEW_KEYS = 400  # a photo of 640 x 640 has as many in every stage; their scores, N * N' numbers, are kept for backward


class OverlapPatchEmbedding(nn.Module):
    """Downsample with a strided convolution whose windows overlap, then normalise (section 3.1).

    Shapes: (B, C_in, H, W) -> (B, ceil(H / stride), ceil(W / stride), C_out).
    """

    def __init__(self, in_channels: int, out_channels: int, patch_size: int, stride: int) -> None:
        super().__init__()
        self.projection = nn.Conv2d(in_channels, out_channels, patch_size, stride, padding=patch_size // 2)
        self.norm = nn.LayerNorm(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        x = self.projection(x).permute(0, 2, 3, 1)  # (B, H, W, C)
        return self.norm(x)


class EfficientSelfAttention(nn.Module):
    """Self-attention whose keys and values come from a spatially reduced map (section 3.1).

    A convolution with kernel and stride ``sr_ratio`` shrinks the map before keys and values are projected, so attention
    costs N * N / sr_ratio**2. The paper's R is that square: its text says 64, 16, 4, 1 where this says 8, 4, 2, 1.

    Shapes: (B, H, W, C) -> (B, H, W, C), for H, W of at least ``sr_ratio``.
    """

    def __init__(self, width: int, num_heads: int, sr_ratio: int, attention_dropout: float, dropout: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.head_width = width // num_heads
        self.attention_dropout = attention_dropout
        self.query = Pointwise(width, width)
        self.key_value = Pointwise(width, 2 * width)
        self.reduction = SpatialReduction(width, sr_ratio) if sr_ratio > 1 else nn.Identity()
        self.out = Pointwise(width, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        B, H, W, C = x.shape
        query = self.query(x).view(B, H * W, self.num_heads, self.head_width).transpose(1, 2)  # (B, h, N, d)
        key_value = self.key_value(self.reduction(x))  # (B, H', W', 2C)
        key_value = key_value.view(B, -1, 2, self.num_heads, self.head_width)
        key, value = key_value.permute(2, 0, 3, 1, 4)  # two of (B, h, N', d)
        dropout = self.attention_dropout if self.training else 0.0
        x = attend(query, key, value, dropout)  # (B, h, N, d)
        x = x.transpose(1, 2).reshape(B, H, W, C)
        return self.dropout(self.out(x))


def attend(query: Tensor, key: Tensor, value: Tensor, dropout: float = 0.0) -> Tensor:
    """softmax(query key^T / sqrt(d)) value: (B, h, N, d) and twice (B, h, N', d) -> (B, h, N, d).

    Where a CPU trains in bfloat16, the two products written out are 1.2 to 1.6 times as fast, forward and backward, as
    the kernel that never holds the scores; these are rounded to bfloat16 before their softmax then. With many keys, in
    float32 and without a backward pass the kernel is ahead.
    """
    is_cpu_training = query.device.type == "cpu" and query.requires_grad and not torch.compiler.is_compiling()
    if not (is_cpu_training and query.dtype == torch.bfloat16 and key.shape[2] <= _FEW_KEYS and dropout == 0):
        return F.scaled_dot_product_attention(query, key, value, dropout_p=dropout)
    scores = query @ (key * query.shape[-1] ** -0.5).transpose(-1, -2)  # (B, h, N, N')
    return scores.softmax(-1) @ value


class SpatialReduction(nn.Module):
    """Shrink both sides of a map by ``sr_ratio`` with a convolution, then normalise.

    Shapes: (B, H, W, C) -> (B, H // sr_ratio, W // sr_ratio, C).
    """

    def __init__(self, width: int, sr_ratio: int) -> None:
        super().__init__()
        self.projection = nn.Conv2d(width, width, kernel_size=sr_ratio, stride=sr_ratio)
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        x = self.projection(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return self.norm(x)


class MixFFN(nn.Module):
    """Two Linear layers around a 3x3 depthwise convolution, which leaks position from its zero padding (section 3.1).

    Shapes: (B, H, W, C) -> (B, H, W, C).
    """

    def __init__(self, width: int, hidden_width: int, dropout: float) -> None:
        super().__init__()
        self.expand = Pointwise(width, hidden_width)
        self.depthwise = nn.Conv2d(hidden_width, hidden_width, kernel_size=3, padding=1, groups=hidden_width)
        self.contract = Pointwise(hidden_width, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        x = self.expand(x).permute(0, 3, 1, 2)  # (B, C, H, W)
        x = self.depthwise(x).permute(0, 2, 3, 1)  # (B, H, W, C)
        x = self.dropout(F.gelu(x))
        return self.dropout(self.contract(x))


class DropPath(nn.Module):
    """Drop a whole residual branch for some samples of the batch and scale up the others (stochastic depth).

    Shapes: (B, ...) -> (B, ...). The identity in eval mode.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.rate == 0.0:
            return x
        kept = torch.rand(x.shape[0], *(1,) * (x.ndim - 1), device=x.device) >= self.rate
        return x * (kept.to(x.dtype) / (1.0 - self.rate))


class Block(nn.Module):
    """One transformer block: attention and Mix-FFN, each normalised before and added to what came in.

    Shapes: (B, H, W, C) -> (B, H, W, C).
    """

    def __init__(self, config: SegformerConfig, stage: int, drop_path_rate: float) -> None:
        super().__init__()
        width = config.hidden_sizes[stage]
        dropout = config.hidden_dropout_prob
        self.attention_norm = nn.LayerNorm(width)
        self.attention = EfficientSelfAttention(
            width,
            config.num_attention_heads[stage],
            config.sr_ratios[stage],
            config.attention_probs_dropout_prob,
            dropout,
        )
        self.ffn_norm = nn.LayerNorm(width)
        self.ffn = MixFFN(width, width * config.mlp_ratios[stage], dropout)
        self.drop_path = DropPath(drop_path_rate)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path(self.attention(self.attention_norm(x)))
        return x + self.drop_path(self.ffn(self.ffn_norm(x)))


class Stage(nn.Module):
    """One resolution of the encoder: patch embedding, blocks, LayerNorm.

    With ``recomputes_blocks`` a block keeps only what came in, and is computed again when its gradient is due.

    Shapes: (B, C_in, H, W) -> (B, C, ceil(H / stride), ceil(W / stride)), in channels-last memory.
    """

    def __init__(self, config: SegformerConfig, stage: int) -> None:
        super().__init__()
        in_channels = config.hidden_sizes[stage - 1] if stage else config.num_channels
        width = config.hidden_sizes[stage]
        first_block = sum(config.depths[:stage])
        rates = config.drop_path_rates[first_block : first_block + config.depths[stage]]
        self.patch_embedding = OverlapPatchEmbedding(
            in_channels, width, config.patch_sizes[stage], config.strides[stage]
        )
        self.blocks = nn.ModuleList(Block(config, stage, rate) for rate in rates)
        self.norm = nn.LayerNorm(width)
        self.recomputes_blocks = False

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch_embedding(x)  # (B, H, W, C)
        for block in self.blocks:
            x = checkpoint(block, x, use_reentrant=False) if self.recomputes_blocks and self.training else block(x)
        return self.norm(x).permute(0, 3, 1, 2)  # (B, C, H, W)


class MixTransformer(nn.Module):
    """The hierarchical encoder (section 3.1).

    Shapes: (B, 3, H, W) -> four maps (B, C_i, H_i, W_i), finest first, H_i = ceil(H / 4), ceil(H / 8), ...
    """

    def __init__(self, config: SegformerConfig) -> None:
        super().__init__()
        self.stages = nn.ModuleList(Stage(config, stage) for stage in range(len(config.depths)))

    def forward(self, images: Tensor) -> list[Tensor]:
        features = []
        x = images.contiguous(memory_format=torch.channels_last)
        for stage in self.stages:
            x = stage(x)
            features.append(x)
        return features
