"""How fast each weight learns: the decoder at its own rate, the encoder's blocks the slower the earlier they are."""

from __future__ import annotations

from segformer.model import Segformer


def learning_rate_factors(model: Segformer, head_factor: float, layer_decay: float) -> dict[str, float]:
    """What the learning rate is multiplied by, for every weight that is trained, by its name.

    The decoder's have ``head_factor``, those of the last block ``layer_decay``, and of each block before it that times
    ``layer_decay`` again (Clark et al., 2020; Bao et al., 2021). A stage's patch embedding goes with its first block,
    its norm with its last.
    """
    depths = model.config.depths
    factors = {}
    for name, weight in model.named_parameters():
        if not weight.requires_grad:
            continue
        if name.startswith("decoder."):
            factors[name] = head_factor
            continue
        _, _, stage, part, block, *_ = name.split(".")
        within = int(block) if part == "blocks" else depths[int(stage)] - 1 if part == "norm" else 0
        factors[name] = layer_decay ** (sum(depths[int(stage) :]) - within)
    return factors
