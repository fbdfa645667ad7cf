"""Work for a process of its own: quick, failing, dying, endless. Without torch, so that a process begins at once."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any


def quick(ratio: float) -> dict[str, Any]:
    """A row as most are."""
    return {"ms": 2.0, "peer_ms": 2.0 * ratio, "ratio": ratio}


def noted(path: Path) -> dict[str, Any]:
    """A row that notes, in a file, that it was measured."""
    path.write_text(path.read_text() + "x" if path.exists() else "x")
    return quick(3.0)


def raising() -> dict[str, Any]:
    """A row that runs out of memory."""
    raise MemoryError("CUDA out of memory. Tried to allocate 20 GiB.\nAnd more that nobody asked for.")


def refused() -> dict[str, Any]:
    """A row whose two sides differ."""
    raise SystemExit("the two sides differ by 0.5; nothing was timed")


def dying() -> dict[str, Any]:
    """A row that breaks its process."""
    print("about to break", file=sys.stderr, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
    return {}


def endless() -> dict[str, Any]:
    """A row that does not come to its end."""
    time.sleep(600)
    return {}


def start_method() -> str:
    """How it begins processes of its own."""
    return multiprocessing.get_start_method()


def process() -> int:
    """The number of the process that works."""
    return os.getpid()
