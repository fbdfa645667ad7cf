"""SIGTERM and Ctrl-C as a request to stop after the step that is running; a second Ctrl-C stops at once."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import threading
from pathlib import Path
from types import FrameType, TracebackType

_ASKING = (signal.SIGINT, signal.SIGTERM)


class StopRequest:
    """While this context lasts, the first signal only sets ``signal``, its number, for the run to look at.

    Only the main thread of a program hears signals; in another this context changes nothing. A first Ctrl-C is answered
    in the terminal at once if this process ``answers`` there, as the step that is running may be a long one.
    """

    def __init__(self, answers: bool = True) -> None:
        self.answers = answers
        self.signal: int | None = None

    def __enter__(self) -> StopRequest:
        hears = threading.current_thread() is threading.main_thread()
        self._before = {each: signal.signal(each, self._handle) for each in _ASKING} if hears else {}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for each, handler in self._before.items():
            signal.signal(each, handler)

    def interrupted(self, output_dir: Path, step: int) -> Interrupted:
        """What to raise after a step, once all is saved."""
        number = self.signal or signal.SIGTERM  # which another rank heard
        again = f"go on with python train.py --resume-from-checkpoint {shlex.quote(str(output_dir))}"
        again = again if step else "nothing was saved yet; start again, adding --resume-from-checkpoint"
        return Interrupted(f"stopped by {signal.Signals(number).name} after step {step}; {again}", number)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.signal == number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = number
        if self.answers and number == signal.SIGINT:  # in whatever the signal came between: no buffer is safe to use
            with contextlib.suppress(OSError):  # the same Ctrl-C ends a tee that listens
                os.write(2, b"\nstopping once this step is saved; Ctrl-C again stops at once\n")


class Interrupted(Exception):  # noqa: N818 - no error: the run did as it was asked
    """A run stopped because it was asked to; ``signal`` is the number of the signal, the text says how to go on."""

    def __init__(self, message: str, number: int) -> None:
        super().__init__(message)
        self.signal = number


def hear_no_more_of_workers() -> None:
    """Let processes that end from now on be no news; torch's loader raises an error wherever one does."""
    if hasattr(signal, "SIGCHLD"):  # Windows has none
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
