"""Files that are made once and kept beside the Hub's cache: whole or not at all, by one process while others wait."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from huggingface_hub.utils import WeakFileLock  # type: ignore[attr-defined]

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # of errors that a full disk or quota raises


def cache_folder() -> Path:
    """``segformer`` beside the Hub's own cache, which HF_HUB_CACHE, HF_HOME or XDG_CACHE_HOME moves to another disk."""
    if hub_cache := os.environ.get("HF_HUB_CACHE"):
        return _expanded(hub_cache).parent / "segformer"
    home = os.environ.get("HF_HOME") or os.path.join(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "huggingface")
    return _expanded(home) / "segformer"


def _expanded(path: str) -> Path:
    return Path(os.path.expandvars(path)).expanduser()


def make_once(path: Path, make: Callable[[Path], None], needed_bytes: int = 0) -> Path:
    """Return ``path``, which ``make`` writes if it is not there: under another name at first, then renamed.

    Raises OSError, with the space that it takes, where the disk is full; what was half made is removed.
    """
    if path.exists():
        return path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        said = f"cannot make {path.parent} ({error.strerror}); let HF_HOME name a folder that can be written"
        raise type(error)(error.errno, said) from error
    with WeakFileLock(path.with_name(f"{path.name}.lock")):
        if path.exists():  # made while this process waited
            return path
        unfinished = path.with_name(f"{path.name}.unfinished")
        unfinished.unlink(missing_ok=True)  # of a process that was killed
        if needed_bytes > shutil.disk_usage(path.parent).free:
            raise _full(path, needed_bytes)
        try:
            make(unfinished)
            with unfinished.open("rb+") as file:  # Windows flushes only what is open for writing
                os.fsync(file.fileno())
            unfinished.replace(path)
        except OSError as error:
            if error.errno in FULL:
                raise _full(path, needed_bytes) from error
            raise
        finally:
            unfinished.unlink(missing_ok=True)
    return path


def _full(path: Path, needed_bytes: int) -> OSError:
    free = shutil.disk_usage(path.parent).free
    needed = f"it takes {needed_bytes / 2**20:.0f} MiB and {free / 2**20:.0f} are free" if needed_bytes else "disk full"
    return OSError(errno.ENOSPC, f"cannot write {path}: {needed}; free some, or let HF_HOME name another disk")
