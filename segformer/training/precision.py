"""Mixed precision: which low precision a run computes in, and the context in which its model does."""

from __future__ import annotations

import torch


def amp_dtype(amp: str, device: torch.device) -> torch.dtype | None:
    """The low precision to compute in, or None. Raises ValueError for fp16 where only CUDA can."""
    if amp == "fp16" and device.type != "cuda":
        raise ValueError(f"amp is fp16 but the device is {device.type}; fp16 needs CUDA, use bf16 or off")
    if amp == "bf16" and device.type not in ("cuda", "cpu"):
        raise ValueError(f"amp is bf16 but the device is {device.type}; bf16 needs CUDA or a CPU, use off")
    if amp == "auto" and device.type == "cuda":
        return torch.bfloat16 if torch.cuda.get_device_capability(device) >= (8, 0) else torch.float16
    return {"bf16": torch.bfloat16, "fp16": torch.float16}.get(amp)


def grad_scaler(amp: str, device: torch.device) -> torch.amp.GradScaler:
    """What keeps the small gradients of fp16 from vanishing; in other precisions it does nothing."""
    return torch.amp.GradScaler(device.type, enabled=amp_dtype(amp, device) == torch.float16)


def autocast(amp: str, device: torch.device) -> torch.autocast:
    """The context in which a model computes in low precision, or as it is."""
    dtype = amp_dtype(amp, device)
    return torch.autocast(device.type, dtype=dtype, enabled=dtype is not None)
