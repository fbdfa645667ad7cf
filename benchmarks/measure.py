"""What every benchmark shares: flags, alternating timings, peak memory, the machine's card, and results as JSON."""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

RESULTS = Path(__file__).parent / "results"
_MIB = 2**20


def flags(doc: str | None, name: str, repeats: int | None = None, on_device: bool = True) -> argparse.ArgumentParser:
    """A command line with the flags that most benchmarks take, for ``doc`` as its description."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    if repeats is not None:
        parser.add_argument("--repeats", type=int, default=repeats)
    if on_device:
        parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--save", metavar="NAME", help=f"keep the rows as results/{name}-NAME.json")
    return parser


def side_by_side(
    ways: Mapping[str, Callable[[], Any]], device: torch.device, repeats: int, times: int = 1, per: int = 1
) -> dict[str, float]:
    """What a row says of the time of ``ours`` and, if it is there, of ``peer``: milliseconds, and how often faster.

    The milliseconds are those of one of ``per`` things that each run does.
    """
    seconds = {name: [each / per for each in runs] for name, runs in alternate(ways, device, repeats, times).items()}
    row = spread_ms(seconds["ours"])
    if "peer" in seconds:
        row |= {f"peer_{name}": value for name, value in spread_ms(seconds["peer"]).items()}
        row["ratio"] = statistics.median(seconds["peer"]) / statistics.median(seconds["ours"])
    return row


def alternate(
    ways: Mapping[str, Callable[[], Any]], device: torch.device, repeats: int, times: int = 1
) -> dict[str, list[float]]:
    """Run each way in turn, again and again, after one uncounted round; return the seconds of every run.

    Taking turns lets a machine that slows down slow all of them down. What takes less than a few milliseconds runs
    ``times`` times in each turn, and its mean counts.
    """
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for round_number in range(repeats + 1):
        for name, run in ways.items():
            _wait_for(device)
            started = time.perf_counter()
            for _ in range(times):
                run()
            _wait_for(device)
            if round_number:
                seconds[name].append((time.perf_counter() - started) / times)
    return seconds


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def spread_ms(seconds: list[float]) -> dict[str, float]:
    """Median, tenth and ninetieth percentile in milliseconds."""
    cuts = statistics.quantiles(seconds, n=10, method="inclusive") if len(seconds) > 1 else [seconds[0]] * 9
    values = {"ms": statistics.median(seconds), "ms_p10": cuts[0], "ms_p90": cuts[-1]}
    return {name: round(value * 1e3, 3) for name, value in values.items()}


def peak_memory_mib(run: Callable[[], Any], device: torch.device) -> float | None:
    """Memory that a run needs at its peak beyond what was there before it; None where it cannot be read.

    On the CPU it is the peak of resident memory (Linux), so whoever compares two ways measures each in a process of its
    own, lest one finds pages that the other left behind.
    """
    run()
    gc.collect()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        return (torch.cuda.max_memory_allocated(device) - before) / _MIB
    if platform.system() != "Linux":
        return None
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    before_kib = _status_kib("VmRSS")
    run()
    return (_status_kib("VmHWM") - before_kib) / 1024


def free_memory_mib(device: str) -> float:
    """Memory that is free on the device now."""
    if device.startswith("cuda"):
        return torch.cuda.mem_get_info()[0] / _MIB
    lines = Path("/proc/meminfo").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("MemAvailable")).split()[1]) / 1024


def _status_kib(entry: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(entry + ":")).split()[1])


def matmul_gflop_per_second(device: torch.device, dtype: torch.dtype) -> float:
    """The rate of a large matrix product here and now, the ceiling that a model's rate is held against."""
    side = 8192 if device.type == "cuda" else 2048
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    seconds = alternate({"product": lambda: a @ b}, device, repeats=5)["product"]
    return 2 * side**3 / statistics.median(seconds) / 1e9


def machine_card(device: torch.device) -> dict[str, Any]:
    """What was measured on: machine, threads, versions, commit."""
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else _processor(),
        **(_graphics_card(device) if device.type == "cuda" else {}),
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        **{name: _version(name) for name in ("torch", "torchvision", "transformers", "triton", "numpy", "pillow")},
        "commit": _git("rev-parse", "--short", "HEAD"),
        "changed_since_commit": bool(_git("status", "--porcelain", "--untracked-files=no")),
        "date": time.strftime("%Y-%m-%d"),
    }


def _graphics_card(device: torch.device) -> dict[str, Any]:
    """What there is to say of a GPU beside its name, and what it was asked by: CUDA, cuDNN and the driver."""
    properties = torch.cuda.get_device_properties(device)
    return {
        "memory_gib": round(properties.total_memory / 2**30, 1),
        "capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "driver": (_said("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader") or "").partition("\n")[0],
        "processor": _processor(),
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _git(*words: str) -> str | None:
    return _said("git", "-C", str(RESULTS.parent), *words)


def _said(*command: str) -> str | None:
    """What a program answers; None where it is not there, or refuses."""
    try:
        answer = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError:
        return None
    return answer.stdout.strip() if answer.returncode == 0 else None


def print_rows(rows: list[dict[str, Any]], columns: list[str]) -> None:
    """The chosen columns as an aligned table."""
    cells = [columns, *([_cell(row.get(column)) for column in columns] for row in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(columns))]
    for row in cells:
        print("  ".join(text.rjust(width) for text, width in zip(row, widths, strict=True)))


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 100 else f"{value:.0f}"
    return "-" if value is None else str(value)


def report(
    name: str, card: dict[str, Any], rows: list[dict[str, Any]], columns: list[str], save: str | None = None
) -> None:
    """Print the card, the table and one JSON object as the last line; keep it as ``results/{name}-{save}.json``."""
    print("  ".join(f"{key}={value}" for key, value in card.items()))
    print_rows(rows, columns)
    result = {"benchmark": name, "machine": card, "rows": rows}
    if save:
        RESULTS.mkdir(exist_ok=True)
        path = RESULTS / f"{name}-{save}.json"
        path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        print(f"saved {path}")
    print(json.dumps(result))
