"""What a run asks of the machine, in processes of their own: what is set there stays set."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import programs
import pytest
import torch

from segformer.machine import peak_memory_mib

REPOSITORY = Path(__file__).resolve().parents[1]
GLIBC = platform.system() == "Linux" and platform.libc_ver()[0] == "glibc"
needs_glibc = pytest.mark.skipif(not GLIBC, reason="no glibc")
UNSET = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_TUNABLES"))}

FAULTS = """
import resource, sys, torch
from segformer.machine import keep_freed_memory
kept = keep_freed_memory() if sys.argv[1] == "keep" else None
faults = []
for _ in range(6):  # twice 64 MiB, 32,768 pages
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(2**24) + 1
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(kept, min(faults))  # the first rounds may still find their places
"""


def run(*words: str, **environment: str) -> list[str]:
    command = [sys.executable, "-c", FAULTS, *words]
    answer = subprocess.run(
        command, cwd=REPOSITORY, env=UNSET | environment, capture_output=True, text=True, check=True, timeout=120
    )
    return answer.stdout.split()


@needs_glibc
def test_kept_memory_is_used_again_without_a_fault() -> None:
    kept, faults = run("keep")
    assert kept == "True"
    assert int(faults) < 1000
    assert int(run("leave")[1]) > 32_000  # what is measured shows where nothing is kept


@pytest.mark.parametrize(
    "environment",
    [{"MALLOC_ARENA_MAX": "2"}, {"MALLOC_TRIM_THRESHOLD_": "131072"}, {"GLIBC_TUNABLES": "glibc.malloc.check=0"}],
    ids=lambda environment: next(iter(environment)),
)
def test_an_allocator_that_the_environment_sets_is_left_alone(environment: dict[str, str]) -> None:
    done = programs.run("-c", FAULTS, "keep", environment=UNSET | environment)
    assert done.stdout.split()[0] == "False", done.stderr


OTHER_ALLOCATOR = """
#include <stddef.h>
void *__libc_malloc(size_t size);
void *malloc(size_t size) { return __libc_malloc(size); }
"""


@needs_glibc
@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler to make another allocator with")
def test_another_allocator_is_left_alone(tmp_path: Path) -> None:
    source, library = tmp_path / "other.c", tmp_path / "other.so"
    source.write_text(OTHER_ALLOCATOR)
    subprocess.run(["cc", "-shared", "-fPIC", "-o", str(library), str(source)], check=True)
    assert run("keep", LD_PRELOAD=str(library))[0] == "False"


@pytest.mark.parametrize("system", ["Darwin", "Windows"])
def test_no_other_system_is_asked(system: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from segformer import machine

    monkeypatch.setattr(platform, "system", lambda: system)
    assert not machine.keep_freed_memory()


def test_peak_memory_grows_with_what_is_held() -> None:
    device = torch.device("cpu")
    before = peak_memory_mib(device)
    held = torch.ones(2**26 + int(before) * 2**18)  # more than was ever held, by 256 MiB
    assert peak_memory_mib(device) >= held.nbytes / 2**20 > before


IMPORTS = """
import sys
sys.modules |= dict.fromkeys(("resource", "fcntl"))  # as on Windows: importing them fails
import segformer.machine, segformer.training.history
"""


def test_nothing_that_windows_lacks_is_imported() -> None:
    done = programs.run("-c", IMPORTS)
    assert done.returncode == 0, done.stderr
