"""What goes wrong around a run: a full disk, a shard that changes, a worker or a rank that dies; nothing is lost.

Every run here is a process of its own, as a user starts it, and every fault is the real thing.
"""

from __future__ import annotations

import os
import re
import resource
import shutil
import signal
import time
from pathlib import Path

import programs
import pytest
from programs import ROOT, STDOUT, Started
from test_stopping import finish, log_of, start, wait_until

from segformer import Segmenter
from segformer.training.checkpoints import check_whole, find_checkpoints


@pytest.fixture
def words(small_shards: Path, small_checkpoint: Path, tmp_path: Path) -> list[str]:
    data = f"--dataset {small_shards} --split train --eval-split validation --checkpoint {small_checkpoint}"
    steps = "--max-steps 150 --eval-steps 150 --save-steps 2 --save-total-limit 2 --logging-steps 1"
    return [*f"--recipe guide --device cpu {data} {steps}".split(), "--output-dir", str(tmp_path / "run")]


def end_of(process: Started, seconds: float = 90) -> str:
    """What a run that has failed says last; it must be one line, and no traceback."""
    _, errors = process.communicate(timeout=seconds)
    assert process.returncode == 1, errors
    assert "Traceback" not in errors
    last = errors.strip().splitlines()[-1]
    assert last.startswith("error: ")
    return last


def assert_goes_on(words: list[str], folder: Path) -> None:
    """All that stands in the folder is whole, and a run goes on from it."""
    newest = list(find_checkpoints(folder))[-1]
    for checkpoint in find_checkpoints(folder).values():
        check_whole(checkpoint)
    assert newest < 150
    finish([*words, "--max-steps", str(newest + 10), "--resume-from-checkpoint", "last"])
    steps = [entry["step"] for entry in log_of(folder) if "loss" in entry]
    assert steps == list(range(1, newest + 11))


def test_a_disk_that_fills_up_costs_no_checkpoint(words: list[str], tmp_path: Path) -> None:
    folder = tmp_path / "run"
    process = start(words)
    wait_until(process, lambda: bool(find_checkpoints(folder)))
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
    said = end_of(process)
    assert re.search(r"cannot save .*checkpoint-\d+ \(.*\); the checkpoints before it are whole. It takes about", said)
    assert not list(folder.glob("unfinished-*"))
    assert_goes_on(words, folder)


def test_a_log_that_finds_no_room_says_so(words: list[str], tmp_path: Path) -> None:
    folder = tmp_path / "run"
    process = start([*words, "--save-steps", "1000"])
    wait_until(process, lambda: len(log_of(folder)) > 2)
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (64, resource.RLIM_INFINITY))
    assert re.search(r"cannot write to .*log.jsonl \(File too large\)", end_of(process))


def children(process: Started) -> list[int]:
    """The processes that a run has started, by their numbers."""
    listed = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    try:
        return [int(number) for number in listed.read_text().split()]
    except FileNotFoundError:
        return []


def worker_of(process: Started) -> int | None:
    """A process of the run that prepares batches: a fork of it, with its command line."""
    for child in children(process):
        try:
            if Path(f"/proc/{child}/cmdline").read_bytes() == Path(f"/proc/{process.pid}/cmdline").read_bytes():
                return child
        except FileNotFoundError:
            continue
    return None


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds a run's workers in /proc, which Linux has")
@pytest.mark.parametrize("side", ["32", "256"])  # while the run waits for it, and in the middle of a step
def test_a_worker_that_is_killed_ends_the_run_with_one_line(side: str, words: list[str], tmp_path: Path) -> None:
    folder = tmp_path / "run"
    process = start([*words, "--image-size", side, "--dataloader-num-workers", "1"])
    wait_until(process, lambda: bool(find_checkpoints(folder)))
    worker = worker_of(process)
    assert worker
    os.kill(worker, signal.SIGKILL)
    assert "a process that prepares batches is gone (" in end_of(process)
    for checkpoint in find_checkpoints(folder).values():
        check_whole(checkpoint)


def test_a_shard_that_is_cut_short_in_the_middle_of_a_run_is_named(
    words: list[str], small_shards: Path, tmp_path: Path
) -> None:
    copied = tmp_path / "shards"
    shutil.copytree(small_shards, copied)
    folder = tmp_path / "run"
    process = start([*words, "--dataset", str(copied), "--dataloader-num-workers", "1"])
    wait_until(process, lambda: bool(find_checkpoints(folder)))
    (shard,) = (path for path in copied.rglob("*.parquet") if "train" in str(path))
    whole = shard.read_bytes()
    os.truncate(shard, 100)
    deadline = time.monotonic() + 60
    while process.poll() is None and time.monotonic() < deadline and len(log_of(folder)) < 150:
        time.sleep(0.05)
    _, errors = process.communicate(timeout=60)
    assert "Traceback" not in errors
    if process.returncode:  # rows that were read before may carry it to the end
        assert shard.name in errors.strip().splitlines()[-1]
    shard.write_bytes(whole)
    if process.returncode:
        assert_goes_on([*words, "--dataset", str(copied)], folder)


def ranks_of(launcher: Started) -> dict[int, int]:
    """The processes of a launcher by their rank."""
    found = {}
    for child in children(launcher):
        environment = Path(f"/proc/{child}/environ").read_bytes().split(b"\0")
        ranks = [word for word in environment if word.startswith(b"RANK=")]
        if ranks:
            found[int(ranks[0].removeprefix(b"RANK="))] = child
    return found


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds the ranks of a run in /proc, which Linux has")
@pytest.mark.parametrize("dying", [0, 1])
def test_a_rank_that_dies_stops_the_others_within_a_minute(words: list[str], dying: int, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    torchrun = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone", ROOT / "train.py"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    one_each = ["--per-device-train-batch-size", "1"]
    launcher = programs.start(*torchrun, *words, *one_each, environment=environment, stderr=STDOUT)
    wait_until(launcher, lambda: bool(find_checkpoints(folder)), seconds=120)
    ranks = ranks_of(launcher)
    assert set(ranks) == {0, 1}
    os.kill(ranks[dying], signal.SIGKILL)
    died = time.monotonic()
    said, _ = launcher.communicate(timeout=60)
    assert time.monotonic() - died < 60
    assert launcher.returncode != 0
    assert not Path(f"/proc/{ranks[1 - dying]}").exists()
    assert re.search(rf"rank\s*:\s*{dying} ", said)
    assert "Signal 9 (SIGKILL)" in said
    for checkpoint in find_checkpoints(folder).values():
        check_whole(checkpoint)


def test_a_reader_of_the_output_never_sees_half_a_model(
    words: list[str], small_checkpoint: Path, tmp_path: Path
) -> None:
    """Whoever watches the folder, such as a backup, can open every checkpoint that stands there."""
    folder = tmp_path / "run"
    Segmenter.from_pretrained(small_checkpoint, device="cpu")  # so that all that this imports is there in time
    process = start([*words, "--max-steps", "40", "--save-total-limit", "100"])
    seen: set[int] = set()
    while process.poll() is None:
        for step in set(find_checkpoints(folder)) - seen:
            Segmenter.from_pretrained(folder / f"checkpoint-{step}", device="cpu")
            check_whole(folder / f"checkpoint-{step}")
            seen.add(step)
        time.sleep(0.01)
    process.communicate()
    assert len(seen) > 5
