"""A process that is handed damaged and forged inputs, and what is to be claimed of how each of them ends.

    python tests/fuzzing.py KIND SEED     one input again

An input must end in a result, or in a ValueError or OSError that this repository's own code raised and that names the
file, soon and within a bound of memory. It is tried in a process of its own, where a crash is one more way to end.
"""

from __future__ import annotations

import faulthandler
import hashlib
import json
import logging
import os
import random
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
MOST_SECONDS = 30  # for one input, on a machine that has other things to do
MOST_BYTES = 2 * 2**30  # of address space beyond what stands there before the first input
_OURS = tuple(str(ROOT / name) for name in ("segformer/", "data/", "train.py", "infer.py"))

Use = Callable[[], object]
Open = Callable[[], Use | None]  # a door: reads the input, and returns what can be done with what was read


class Verdict(NamedTuple):
    """How an input ended: "result", "refused" or "wrong", and what was said or went wrong."""

    ended: str
    told: str = ""
    digest: str = ""  # of the input


class Witnessed(BaseException):
    """A claim about a result that does not hold; no Exception, so that no code under test can swallow it."""


def claim(holds: bool, what: str) -> None:
    """Raise Witnessed unless this holds."""
    if not holds:
        raise Witnessed(what)


def check_error(error: Exception, folder: Path | None) -> None:
    """Claim that an error was raised here, names a file in the folder, and is none of memory asked for in vain."""
    where = traceback.extract_tb(error.__traceback__)[-1].filename
    claim(where.startswith(_OURS), f"raised in {where}, not here")
    claim(folder is None or str(folder) in str(error) or "bytes hold" in str(error), "an error that names no file")
    cause: BaseException | None = error
    while cause is not None:
        place = traceback.extract_tb(cause.__traceback__)[-1].filename if cause.__traceback__ else ""
        untouched = place.endswith("_weights_only_unpickler.py")  # a file's read sets room aside, and fills none of it
        absurd = re.search(r"malloc of size (\d{14,}) failed", str(cause))  # refused at once, by any machine
        starved = (isinstance(cause, MemoryError) and not untouched and not absurd) or "allocate" in str(cause)
        claim(not starved, f"more than {MOST_BYTES / 2**30:.0f} GiB of memory were asked for")
        cause = cause.__cause__ or cause.__context__


# --------------------------------------------------------------------------------------------- in the tried process


def emptied(folder: Path) -> Path:
    """The folder, new and empty."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def attempt(make: Callable[[random.Random, Path], Open], seed: int) -> Verdict:
    """Make an input of a kind, hand it over, and see how it ends."""
    folder = emptied(Path(tempfile.gettempdir()) / "input")  # the same each time, as pickles may hold its name
    os.environ["HF_HOME"] = str(folder / "cache")
    try:
        open_it = make(random.Random(f"{make.__name__} {seed}"), folder)
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        digest = hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()
        return _verdict(open_it, folder)._replace(digest=digest)
    finally:
        shutil.rmtree(folder)


def _verdict(open_it: Open, folder: Path) -> Verdict:
    named: Path | None = folder
    error: Exception | None = None
    try:
        try:
            use = open_it()
            named = None  # from here on an error is about numbers, whose file is read and closed
            if use:
                use()
        except (ValueError, OSError, FloatingPointError) as raised:  # the last of a training that diverged
            check_error(raised, named)
            error = raised
        left = [path.name for path in folder.rglob("*unfinished*")]
        claim(not left, f"{left} left behind")
    except BaseException as fault:  # a claim that does not hold, and whatever else the code under test may raise
        return Verdict("wrong", "".join(traceback.format_exception(fault))[-4000:])
    return Verdict("refused", f"{type(error).__name__}: {error}"[:300]) if error else Verdict("result")


def serve() -> None:
    """Take "kind seed seconds" a line, and answer with a line of JSON; a crash or a hang ends the process."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print is no answer
    faulthandler.enable()
    import torch
    from fuzz_inputs import KINDS, warm_up

    torch.set_num_threads(1)
    logging.disable(logging.CRITICAL)
    warm_up()
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    most = pages * resource.getpagesize() + MOST_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    for line in sys.stdin:
        kind, seed, seconds = line.split()
        faulthandler.dump_traceback_later(float(seconds), exit=True)
        verdict = attempt(KINDS[kind], int(seed))
        faulthandler.cancel_dump_traceback_later()
        print(json.dumps(verdict), file=answers, flush=True)


# ------------------------------------------------------------------------------------------------- in pytest's process


class Attempts:
    """The process that inputs are handed to, started again after one that ended it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder  # holds what the process writes, and what a killed one leaves
        self._errors = (folder / "errors.txt").open("w+b")
        self._process: subprocess.Popen[str] | None = None

    def __call__(self, kind: str, seed: int, seconds: float = MOST_SECONDS) -> Verdict:
        """How one input ends."""
        if self._process is None:
            self._process = self._start()
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        said_before = self._errors.seek(0, os.SEEK_END)
        try:
            print(kind, seed, seconds, file=stdin, flush=True)
            answer = stdout.readline()
        except BrokenPipeError:
            answer = ""
        if answer:
            return Verdict(*json.loads(answer))
        ended, self._process = self._process.wait(), None
        self._errors.seek(said_before)
        said = self._errors.read().decode("utf-8", "replace")
        return Verdict("wrong", f"ended the process ({ended}): {said[-4000:]}")

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.communicate()
        self._errors.close()

    def _start(self) -> subprocess.Popen[str]:
        paths = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
        return subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", "import fuzzing; fuzzing.serve()"],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": paths, "TMPDIR": str(self._folder), "OMP_NUM_THREADS": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
        )


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place:
        attempts = Attempts(Path(place))
        print(*attempts(sys.argv[1], int(sys.argv[2])), sep="\n")
        attempts.close()
