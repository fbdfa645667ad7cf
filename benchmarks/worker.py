"""Work in a process of its own: what it holds, and whatever ends it, is no matter of whoever asked for it."""

from __future__ import annotations

import gc
import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from multiprocessing import get_context, set_start_method
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any


class Failed(SystemExit):
    """Work that came to no result, with the reason in one line."""


class Worker:
    """A process that does one piece of work after another, begun when there is some and begun anew after a failure.

    What work prints goes to the file ``log``, if there is one.
    """

    def __init__(self, log: Path | None = None) -> None:
        self._log = log
        self._process: Any = None
        self._is_idle = True

    def ask(self, work: Callable[[], Any], seconds: float | None = None) -> Any:
        """What ``work``, which must be picklable, returns.

        Raises Failed where it raises, where its process is lost, and where ``seconds`` go by.
        """
        if self._process is not None and not self._process.is_alive():
            self.end()
        if self._process is None:
            self._begin()
        self._is_idle = False
        self._pipe.send(work)
        ready = wait([self._pipe, self._process.sentinel], seconds)
        result, reason = None, ""
        with suppress(EOFError, OSError):
            if self._pipe in ready:
                result, reason = self._pipe.recv()
                self._is_idle = True
        if reason is None:
            return result
        if not ready:
            reason = f"not done within {seconds:.0f} s"
        elif not reason:
            self._process.join(5)
            reason = f"its process ended with {self._process.exitcode}{self._last_line()}"
        self.end()
        raise Failed(reason)

    def end(self) -> None:
        """End the process, and those that it began; one that is at work, at once."""
        if self._process is None:
            return
        self._pipe.close()
        if self._is_idle:  # it sees that nobody will ask any more
            self._process.join(5)
        try:
            os.killpg(self._process.pid, signal.SIGKILL)
        except (AttributeError, ProcessLookupError, PermissionError):  # Windows has no such groups
            self._process.kill()
        self._process.join()
        self._process = None

    def _begin(self) -> None:
        context = get_context("spawn")  # a copy of this process could not use CUDA
        self._pipe, others = context.Pipe()
        self._process = context.Process(target=_serve, args=(others, self._log))
        self._process.start()
        others.close()

    def _last_line(self) -> str:
        text = self._log.read_text(encoding="utf-8", errors="replace") if self._log and self._log.exists() else ""
        lines = [line for line in text.splitlines() if line.strip()]
        return f" ({lines[-1].strip()[:200]})" if lines else ""


def alone(work: Callable[[], Any]) -> Any:
    """What ``work`` returns, done in a fresh process. Raises Failed where there is nothing to return."""
    worker = Worker()
    try:
        return worker.ask(work)
    finally:
        worker.end()


def _serve(pipe: Connection[Any, Any], log: Path | None) -> None:
    """Answer each piece of work by its result, or the reason why there is none."""
    set_start_method(None, force=True)  # or what it begins, such as a loader's workers, is spawned too, as in no run
    if hasattr(os, "setpgrp"):
        os.setpgrp()
    if log is not None:
        with log.open("ab") as file:
            for stream in (sys.stdout, sys.stderr):
                os.dup2(file.fileno(), stream.fileno())
    while True:
        try:
            work = pipe.recv()
        except EOFError:  # nobody asks any more
            return
        answer: tuple[Any, str | None]
        try:
            answer = work(), None
        except (Exception, SystemExit) as error:
            lines = str(error).strip().splitlines()
            answer = None, f"{type(error).__name__}: {lines[0] if lines else 'no reason given'}"
        pipe.send(answer)
        del work, answer
        gc.collect()
        if (torch := sys.modules.get("torch")) and torch.cuda.is_available():
            torch.cuda.empty_cache()
