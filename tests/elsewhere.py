"""``python tests/elsewhere.py MODULE ARGUMENT...`` runs ``MODULE.main()`` as if this were another system.

What Windows lacks is taken from Python before anything is imported, here and in every worker, which is spawned: some
modules, signals and ``os.fork``. Files are flushed only by those who write to them, folders never, and what this
process has open or mapped is neither deleted nor renamed nor replaced, but for the lock, which asks ``sys.platform``.
"""

from __future__ import annotations

import errno
import fcntl
import importlib
import multiprocessing
import os
import signal
import stat
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]
MODULES = ("fcntl", "resource", "termios", "tty", "pty", "pwd", "grp", "syslog")
SIGNALS = ("SIGKILL", "SIGCHLD", "SIGUSR1", "SIGUSR2", "SIGHUP", "SIGQUIT", "SIGALRM", "SIGPIPE")
_fsync, _accesses = os.fsync, fcntl


def pretend() -> None:
    """Take away what other systems lack."""
    sys.modules |= dict.fromkeys(MODULES)  # importing them fails from now on
    for name in SIGNALS:
        delattr(signal, name)
    del os.fork
    os.fsync = fsync
    for name in ("unlink", "remove", "rename", "replace"):
        setattr(os, name, of_closed_files(getattr(os, name)))
    from torch.utils.data._utils import signal_handling

    signal_handling.IS_WINDOWS = True  # torch, too, must not look for SIGCHLD


def fsync(descriptor: int) -> None:
    """As on Windows."""
    if stat.S_ISDIR(os.fstat(descriptor).st_mode):
        raise PermissionError(errno.EACCES, "a folder is not flushed")
    if _accesses.fcntl(descriptor, _accesses.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
        raise OSError(errno.EBADF, "flushed by somebody who only reads")
    _fsync(descriptor)


def of_closed_files(change: Callable[..., None]) -> Callable[..., None]:
    """A function of ``os`` that takes paths and refuses those that this process has open or mapped."""

    def refusing(*paths: Any, **options: Any) -> None:
        for path in paths:
            folder = os.readlink(f"/proc/self/fd/{options['dir_fd']}") if options.get("dir_fd") else ""
            full = os.path.abspath(os.path.join(folder, os.fspath(path)))
            if os.path.basename(full) != ".lock" and (held := [each for each in held_files() if _lies_in(each, full)]):
                raise PermissionError(errno.EACCES, f"{held[0]} is in use", full)
        change(*paths, **options)

    return refusing


def held_files() -> set[str]:
    """The files that this process has open or mapped into its memory."""
    held = set()
    for descriptor in os.listdir("/proc/self/fd"):
        try:
            held.add(os.readlink(f"/proc/self/fd/{descriptor}"))
        except OSError:  # of the listing itself
            continue
    mapped = Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace").splitlines()
    files = held | {line.split(maxsplit=5)[5] for line in mapped if "/" in line}
    return {path for path in files if os.path.isfile(path)}


def _lies_in(file: str, path: str) -> bool:
    return file == path or file.startswith(path + os.sep)


if __name__ in ("__main__", "__mp_main__"):  # a spawned worker reads this file under the second name
    pretend()

if __name__ == "__main__":
    multiprocessing.set_start_method("spawn")
    sys.path[0] = str(REPOSITORY)
    sys.exit(importlib.import_module(sys.argv.pop(1)).main())
