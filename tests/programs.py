"""Python programs that start at once: forks of one interpreter that has imported torch before them.

A program has its own words, environment, folder, streams, signals and end, as a new interpreter has, and imports for
itself all that is ours or that reads the environment when it is imported, as huggingface_hub does. Every PYTHONHASHSEED
has an interpreter to fork. Where there is no Linux, a program is a new interpreter.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import json
import os
import runpy
import signal
import socket
import struct
import sys
import threading
import types
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cache
from pathlib import Path
from subprocess import DEVNULL, PIPE, STDOUT, CompletedProcess, Popen, TimeoutExpired
from typing import IO, NoReturn

ROOT = Path(__file__).resolve().parents[1]
_NUMBER = struct.Struct("i")

# -------------------------------------------------------------------------------------------------- in pytest's process


class Program:
    """A program that runs: what tests use of ``subprocess.Popen``, with text in its pipes."""

    def __init__(self, words: list[str], environment: Mapping[str, str], folder: Path, streams: list[int]) -> None:
        """``streams`` are its standard input, output and error: descriptors, or PIPE."""
        self.args = words
        self.returncode: int | None = None
        theirs, ours = list(streams), [-1, -1, -1]
        for number, stream in enumerate(streams):
            if stream == PIPE:
                reading, writing = os.pipe()
                theirs[number], ours[number] = (writing, reading) if number else (reading, writing)
        sent = [theirs[1] if stream == STDOUT else stream for stream in theirs]
        self.stdin, self.stdout, self.stderr = (
            None if end < 0 else os.fdopen(end, "r" if number else "w", encoding="utf-8")
            for number, end in enumerate(ours)
        )
        self._monitor, other = socket.socketpair()
        with other:
            socket.send_fds(_stem(environment.get("PYTHONHASHSEED")), [b"."], [*sent, other.fileno()])
        for end, stream in zip(theirs, streams, strict=True):
            if stream == PIPE:
                os.close(end)
        asked = {"words": words, "environment": dict(environment), "folder": str(folder)}
        self._monitor.sendall(json.dumps(asked).encode() + b"\n")
        (self.pid,) = _NUMBER.unpack(self._monitor.recv(_NUMBER.size))

    def wait(self, timeout: float | None = None) -> int:
        """Its exit code, or the negative number of the signal that ended it. Raises TimeoutExpired."""
        if self.returncode is None:
            self._monitor.settimeout(timeout)
            try:
                (status,) = _NUMBER.unpack(self._monitor.recv(_NUMBER.size))
            except (TimeoutError, BlockingIOError):
                raise TimeoutExpired(self.args, timeout or 0) from None
            self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def poll(self) -> int | None:
        """Its exit code, or None while it runs."""
        try:
            return self.wait(0)
        except TimeoutExpired:
            return None

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """What it still says on its two pipes, once it has ended; what outlasts the time is killed."""
        if self.stdin:
            self.stdin.close()
        with ThreadPoolExecutor(2) as readers:
            said = [readers.submit(pipe.read) if pipe else None for pipe in (self.stdout, self.stderr)]
            try:
                self.wait(timeout)
            except TimeoutExpired:
                self.kill()
                raise
        output, errors = (each.result() if each else "" for each in said)
        return output, errors

    def send_signal(self, number: int) -> None:
        """Send it a signal, if it still runs."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """End it at once."""
        self.send_signal(signal.SIGKILL)


Started = Program | Popen[str]


def start(
    *words: str | Path,
    environment: Mapping[str, str] = os.environ,
    folder: Path = ROOT,
    stdin: int | IO[str] = DEVNULL,
    stdout: int | IO[str] = PIPE,
    stderr: int | IO[str] = PIPE,
) -> Started:
    """Start what ``python words`` would: a file, ``-m`` and a module, or ``-c`` and code, each with its arguments."""
    told = [str(word) for word in words]
    if sys.platform != "linux":
        command, pipes = [sys.executable, *told], {"stdin": stdin, "stdout": stdout, "stderr": stderr}
        return Popen(command, env=environment, cwd=folder, text=True, **pipes)  # type: ignore[call-overload, no-any-return]
    with open(os.devnull, "r+b") as nowhere:
        streams = [nowhere if stream == DEVNULL else stream for stream in (stdin, stdout, stderr)]
        return Program(told, environment, folder, [s if isinstance(s, int) else s.fileno() for s in streams])


def run(
    *words: str | Path,
    environment: Mapping[str, str] = os.environ,
    folder: Path = ROOT,
    timeout: float = 300,
) -> CompletedProcess[str]:
    """Start what ``python words`` would, and wait for its end."""
    program = start(*words, environment=environment, folder=folder)
    output, errors = program.communicate(timeout)
    assert program.returncode is not None
    return CompletedProcess(program.args, program.returncode, output, errors)


@cache
def _stem(hash_seed: str | None) -> socket.socket:
    """The way to the interpreter that forks, which ends with the tests."""
    ours, theirs = socket.socketpair()
    with theirs:
        settled = {"OPENBLAS_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}  # no threads that a fork would lose
        if hash_seed is not None:
            settled["PYTHONHASHSEED"] = hash_seed
        command = [sys.executable, __file__, str(theirs.fileno())]
        stem = Popen(command, env=os.environ | settled, stdin=DEVNULL, pass_fds=[theirs.fileno()])
    atexit.register(stem.wait)
    atexit.register(ours.shutdown, socket.SHUT_RDWR)  # which comes first
    return ours


# -------------------------------------------------------------------------------------- in the interpreter that forks


def _serve(asked: socket.socket) -> None:
    """Fork for every request a process that starts a program and tells its number and its end."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # whoever stops the tests stops their programs, and then this
    while True:
        _, descriptors, _, _ = socket.recv_fds(asked, 1, 4)
        with suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        if not descriptors:
            return
        if os.fork() == 0:
            asked.close()
            _start_and_tell(descriptors[:3], socket.socket(fileno=descriptors[3]))
        for descriptor in descriptors:
            os.close(descriptor)


def _start_and_tell(streams: list[int], test: socket.socket) -> NoReturn:
    request = json.loads(test.makefile().readline())
    program = os.fork()
    if program == 0:
        test.close()
        for number, stream in enumerate(streams):
            os.dup2(stream, number)
            os.close(stream)
        _end(_become(**request))
    for stream in streams:
        os.close(stream)
    test.sendall(_NUMBER.pack(program))
    test.sendall(_NUMBER.pack(os.waitpid(program, 0)[1]))
    os._exit(0)


def _become(words: list[str], environment: dict[str, str], folder: str) -> int:
    """Do what ``python words`` does, and return the exit code; what else ends it is raised."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    if "OMP_NUM_THREADS" in environment:
        torch.set_num_threads(int(environment["OMP_NUM_THREADS"]))
    encoding = environment.get("PYTHONIOENCODING")
    sys.stdin = os.fdopen(0, encoding=encoding, closefd=False)
    sys.stdout = os.fdopen(1, "w", encoding=encoding, closefd=False)
    sys.stderr = os.fdopen(2, "w", 1, encoding, "backslashreplace", closefd=False)
    kind, *rest = words
    beside = str(Path(kind).parent.resolve()) if kind not in ("-c", "-m") else "" if kind == "-c" else folder
    sys.path[:1] = [beside, *filter(None, environment.get("PYTHONPATH", "").split(os.pathsep))]
    try:
        if kind == "-m":
            sys.argv = rest
            runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
        elif kind == "-c":
            sys.argv = ["-c", *rest[1:]]
            main = sys.modules["__main__"] = types.ModuleType("__main__")
            exec(compile(rest[0], "<string>", "exec"), main.__dict__)
        else:
            sys.argv = words
            runpy.run_path(kind, run_name="__main__")
    except SystemExit as end:
        if not isinstance(end.code, int | None):
            raise
        return end.code or 0
    return 0


def _end(code: int) -> NoReturn:
    """End as an interpreter does, but for taking torch apart, which takes longer than most programs here."""
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    import torch

    for slow in ("numpy", "PIL.Image", "pyarrow.parquet", "safetensors.torch", "torch._dynamo", "torch.utils.data"):
        importlib.import_module(slow)
    for slow in ("filelock", "yaml", "httpx2", "httpx"):  # of huggingface_hub, by its release
        with suppress(ImportError):
            importlib.import_module(slow)
    gc.freeze()  # so that no fork goes through it all
    _serve(socket.socket(fileno=int(sys.argv[1])))
