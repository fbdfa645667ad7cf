"""What a run asks of the machine it is on: to keep the memory that is freed, how much was held, and if it ran out."""

from __future__ import annotations

import ctypes
import math
import os
import platform
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # of mallopt, malloc.h


def keep_freed_memory() -> bool:
    """Let glibc keep what is freed for the next training step, instead of giving it back page by page; whether it does.

    Large tensors are otherwise mapped and unmapped in every step, which faults in each of their pages anew: 154,000
    times a step of a B0 in float32, a fifth of its time or more. The most memory held grows by 2 to 14 %. Nothing is
    changed where there is no glibc, where another allocator stands in for its own, or where the environment already
    sets MALLOC_... or GLIBC_TUNABLES.
    """
    is_set = any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in os.environ)
    if is_set or platform.system() != "Linux" or platform.libc_ver()[0] != "glibc":
        return False
    process, glibc = ctypes.CDLL(None), ctypes.CDLL("libc.so.6")
    if _address(process.malloc) != _address(glibc.malloc):
        return False
    return bool(glibc.mallopt(_M_MMAP_MAX, 0) and glibc.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1))


def _address(function: ctypes._NamedFuncPointer) -> int | None:
    return ctypes.cast(function, ctypes.c_void_p).value


def out_of_memory(error: BaseException) -> str | None:
    """What an error says of a GPU's memory having run out, in one sentence; None for any other."""
    import torch

    said = str(error).partition(". ")[0].partition("\n")[0].rstrip(".")
    lacks_memory = "_STATUS_ALLOC_FAILED" in said or "CUDA error: out of memory" in said  # its libraries have their own
    if isinstance(error, torch.OutOfMemoryError) or (isinstance(error, RuntimeError) and lacks_memory):
        return said if "out of memory" in said else f"CUDA out of memory ({said})"
    return None


def peak_memory_mib(device: torch.device) -> float:
    """The most memory that this process has held so far, on a GPU there, else in RAM; NaN where nothing counts it."""
    if device.type == "cuda":
        import torch

        return torch.cuda.max_memory_allocated(device) / 2**20
    try:
        import resource
    except ImportError:  # Windows has none
        return math.nan
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if platform.system() == "Darwin" else 2**10)
