"""The output folder of a run, claimed without overwriting anything unasked, and the lock that one run has on it."""

from __future__ import annotations

import errno
import logging
import os
import shutil
import sys
from contextlib import suppress
from pathlib import Path
from typing import IO

from segformer.training.history import LOG_NAME

_LOCK_NAME = ".lock"

logger = logging.getLogger(__name__)


def check_output_dir(folder: Path, overwrite: bool) -> None:
    """Raise ValueError, before any work begins, if a new run in this folder would lose what it holds."""
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file; --output-dir names a folder")
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not os.access(there, os.W_OK):
        raise ValueError(f"{there} is not writable; name another --output-dir")
    if not _holds_files(folder):
        return
    if not overwrite:
        raise ValueError(
            f"{folder} is not empty; pass --overwrite-output-dir to delete what it holds, "
            "--resume-from-checkpoint to go on, or another --output-dir"
        )
    if not (folder / LOG_NAME).exists():
        raise ValueError(f"{folder} holds files but no run (no {LOG_NAME}); it will not be overwritten")


def claim_output_dir(output_dir: str | Path | None, recipe: str) -> tuple[Path, RunLock]:
    """Make the folder of a run if it is not there, runs/<recipe>-<n> if none is named, and take the right to it."""
    folder = _new_run_folder(recipe) if output_dir is None else Path(output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    return folder, RunLock(folder)


def empty_output_dir(folder: Path, overwrite: bool) -> None:
    """Delete the run that a folder holds, if ``overwrite`` allows it; only a run is ever deleted."""
    check_output_dir(folder, overwrite)
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.name != _LOCK_NAME:
            path.unlink()


def _holds_files(folder: Path) -> bool:
    return folder.is_dir() and any(path.name != _LOCK_NAME for path in folder.iterdir())


def _new_run_folder(recipe: str) -> Path:
    """Make runs/<recipe>-<n> for the first n that is free."""
    number = 1
    while True:
        folder = Path("runs") / f"{recipe}-{number}"
        try:
            folder.mkdir(parents=True)
            return folder
        except FileExistsError:
            number += 1


class RunLock:
    """The right to write to a run's folder, which one process has at a time; it ends with the process, however it ends.

    Raises ValueError where another process has it.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / _LOCK_NAME
        self._file = self._path.open("a")
        try:
            _lock(self._file)
        except (OSError, ImportError) as error:
            if getattr(error, "errno", None) in (errno.EACCES, errno.EAGAIN):
                self._file.close()
                raise ValueError(f"another run is writing to {folder}; wait for it, or name another folder") from error
            # A file system or a machine without locks: nothing can be known there, and nothing is refused.
            logger.warning("%s cannot be locked (%s); see that no other run writes there", folder, error)
        if not (
            self._path.exists() and os.path.samestat(self._path.stat(), os.fstat(self._file.fileno()))
        ):  # gone with the run that ended now
            self._file.close()
            raise ValueError(f"another run was writing to {folder} until now; start again")

    def __enter__(self) -> RunLock:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def release(self) -> None:
        """Let others write there; done twice, it does nothing."""
        if self._file.closed:
            return
        if sys.platform == "win32":  # where no open file can be deleted, nor one that another run has opened by now
            self._file.close()
            with suppress(PermissionError):
                self._path.unlink(missing_ok=True)
        else:
            self._path.unlink(missing_ok=True)
            self._file.close()


def _lock(file: IO[str]) -> None:
    """Take the one lock on an open file, or raise OSError at once; the system ends it with the process.

    ``filelock`` is passed over: where a file system has no locks, it leaves a file in place of one, which outlives a
    process that is killed.
    """
    if sys.platform == "win32":
        import msvcrt

        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
    else:
        import fcntl

        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
