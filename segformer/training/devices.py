"""What a GPU cannot do that the settings ask for, and what a run does instead."""

from __future__ import annotations

import importlib.util
import logging
from dataclasses import replace
from typing import Any

import torch

from segformer.training.precision import amp_dtype
from segformer.training.recipes import TrainConfig

_OF_BF16, _OF_TRITON = (8, 0), (7, 0)  # compute capabilities

logger = logging.getLogger(__name__)


def fit_to_device(config: TrainConfig, device: torch.device) -> TrainConfig:
    """The settings as the device can follow them; whatever changes is said in one line.

    Raises ValueError for a precision that another kind of device has.
    """
    amp_dtype(config.amp, device)
    if device.type != "cuda":
        return config
    capability, changes = torch.cuda.get_device_capability(device), dict[str, Any]()
    told = f"this GPU has compute capability {capability[0]}.{capability[1]}"
    if config.amp == "bf16" and capability < _OF_BF16:
        logger.warning("amp is bf16, which takes 8.0; %s, so it goes on in fp16", told)
        changes["amp"] = "fp16"
    if config.compile and capability < _OF_TRITON:
        logger.warning("compile takes 7.0; %s, so it goes on without", told)
        changes["compile"] = False
    elif config.compile and importlib.util.find_spec("triton") is None:
        logger.warning(
            "compile takes Triton on a GPU, which is not installed, so it goes on without; pip install triton"
        )
        changes["compile"] = False
    return replace(config, **changes)
