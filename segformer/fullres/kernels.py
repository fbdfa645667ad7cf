"""The Triton kernels of ``cells``, which says what they are for. To import this takes Triton.

A pixel at ``down`` and ``across`` of the way from its cell's first corner to the last has the logits

    left + across (right - left),  left = a + down (c - a),  right = b + down (d - b)

of the corners a, b above and c, d below.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _corners(small, cell, i, j, h, w, K, CLASSES: tl.constexpr):
    """The logits at the four corners of a cell, (CLASSES,) each; at an edge a corner is its neighbour."""
    k = tl.arange(0, CLASSES)
    here = small + cell * K + k
    right, down = tl.where(j + 1 < w, K, 0), tl.where(i + 1 < h, w * K, 0)
    a = tl.load(here, mask=k < K, other=0).to(tl.float32)
    b = tl.load(here + right, mask=k < K, other=0).to(tl.float32)
    c = tl.load(here + down, mask=k < K, other=0).to(tl.float32)
    d = tl.load(here + right + down, mask=k < K, other=0).to(tl.float32)
    return a, b, c, d


@triton.jit
def _enlarged(left, right, across, K, CLASSES: tl.constexpr):
    """The logits of some pixels of a row, (PIXELS, CLASSES), -inf where there is no such class."""
    k = tl.arange(0, CLASSES)[None, :]
    return tl.where(k < K, left[None, :] + across[:, None] * (right - left)[None, :], float("-inf"))


@triton.jit
def cell_loss(
    small, row_first, row_place, column_first, column_place, labels, losses, corners, h, w, H, W, K,
    IGNORED: tl.constexpr, GRADIENT: tl.constexpr, CLASSES: tl.constexpr, PIXELS: tl.constexpr,
):  # fmt: skip
    """The loss of a cell's pixels, summed, and what flows back to its corners, into ``corners`` (4, B, h, w, K)."""
    cell = tl.program_id(0).to(tl.int64)
    i, j, image = cell // w % h, cell % w, cell // w // h
    a, b, c, d = _corners(small, cell, i, j, h, w, K, CLASSES)
    k = tl.arange(0, CLASSES)
    loss = tl.zeros((PIXELS,), tl.float32)
    to_a, to_b = tl.zeros((CLASSES,), tl.float32), tl.zeros((CLASSES,), tl.float32)
    to_c, to_d = tl.zeros((CLASSES,), tl.float32), tl.zeros((CLASSES,), tl.float32)
    first, last = tl.load(column_first + j), tl.load(column_first + j + 1)
    for y in range(tl.load(row_first + i), tl.load(row_first + i + 1)):
        down = tl.load(row_place + y)
        left, right = a + down * (c - a), b + down * (d - b)
        for start in range(first, last, PIXELS):
            x = start + tl.arange(0, PIXELS)
            across = tl.load(column_place + x, mask=x < last, other=0)
            label = tl.load(labels + (image * H + y) * W + x, mask=x < last, other=-1)
            valid = (label >= 0) & (label < K) & (label != IGNORED)
            logits = _enlarged(left, right, across, K, CLASSES)
            high = tl.max(logits, 1)
            power = tl.exp(logits - high[:, None])
            total = tl.sum(power, 1)
            is_truth = k[None, :] == label[:, None]
            truth = tl.sum(tl.where(is_truth, logits, 0.0), 1)
            loss += tl.where(valid, tl.log(total) + high - truth, 0.0)
            if GRADIENT:
                slope = tl.where(valid[:, None], power / total[:, None] - tl.where(is_truth, 1.0, 0.0), 0.0)
                to_left, to_right = tl.sum((1 - across)[:, None] * slope, 0), tl.sum(across[:, None] * slope, 0)
                to_a += (1 - down) * to_left
                to_b += (1 - down) * to_right
                to_c += down * to_left
                to_d += down * to_right
    tl.store(losses + cell, tl.sum(loss, 0))
    if GRADIENT:
        buffer = tl.num_programs(0).to(tl.int64) * K
        own = corners + cell * K + k
        tl.store(own, to_a, mask=k < K)
        tl.store(own + buffer, to_b, mask=k < K)
        tl.store(own + 2 * buffer, to_c, mask=k < K)
        tl.store(own + 3 * buffer, to_d, mask=k < K)


@triton.jit
def add_corners(corners, gradient, count, h, w, K, BLOCK: tl.constexpr):
    """Add to every logit, (B, h, w, K), what the four cells around it have left for it in ``corners``."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < count
    cell = at // K
    has_left, has_above = cell % w > 0, cell // w % h > 0
    total = tl.load(corners + at, mask=inside, other=0)
    total += tl.load(corners + count + at - K, mask=inside & has_left, other=0)
    total += tl.load(corners + 2 * count + at - w * K, mask=inside & has_above, other=0)
    total += tl.load(corners + 3 * count + at - w * K - K, mask=inside & has_left & has_above, other=0)
    tl.store(gradient + at, total, mask=inside)


@triton.jit
def cell_argmax(
    small, row_first, row_place, column_first, column_place, prediction, h, w, H, W, K,
    CLASSES: tl.constexpr, PIXELS: tl.constexpr,
):  # fmt: skip
    """The most likely class of a cell's pixels, into ``prediction`` (B, H, W)."""
    cell = tl.program_id(0).to(tl.int64)
    i, j, image = cell // w % h, cell % w, cell // w // h
    a, b, c, d = _corners(small, cell, i, j, h, w, K, CLASSES)
    first, last = tl.load(column_first + j), tl.load(column_first + j + 1)
    for y in range(tl.load(row_first + i), tl.load(row_first + i + 1)):
        down = tl.load(row_place + y)
        left, right = a + down * (c - a), b + down * (d - b)
        for start in range(first, last, PIXELS):
            x = start + tl.arange(0, PIXELS)
            across = tl.load(column_place + x, mask=x < last, other=0)
            winner = tl.argmax(_enlarged(left, right, across, K, CLASSES), 1)
            tl.store(prediction + (image * H + y) * W + x, winner.to(tl.int64), mask=x < last)
