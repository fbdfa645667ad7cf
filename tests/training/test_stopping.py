"""A run that is asked to stop, or killed, at any moment: nothing that was finished is lost, and it goes on exactly."""

from __future__ import annotations

import json
import os
import random
import shlex
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import programs
import pytest
from programs import ROOT, Started

from segformer import Segformer
from segformer.training.checkpoints import check_whole, find_checkpoints, read_training_state
from segformer.training.interrupts import StopRequest

MEASURED = ("runtime", "second", "wait", "memory")


def start(words: list[str]) -> Started:
    """A training run as a user starts it."""
    return programs.start(ROOT / "train.py", *words, environment={**os.environ, "OMP_NUM_THREADS": "1"})


def finish(words: list[str]) -> None:
    process = start(words)
    _, errors = process.communicate(timeout=600)
    assert process.returncode == 0, errors


def log_of(folder: Path) -> list[dict[str, Any]]:
    """The entries of a log without what depends on how fast and in how many goes they were made."""
    try:
        text = (folder / "log.jsonl").read_text(encoding="utf-8")
    except FileNotFoundError:
        return []
    entries = [json.loads(line) for line in text.splitlines() if line.endswith("}")]
    return [
        {key: value for key, value in entry.items() if not any(word in key for word in MEASURED)} for entry in entries
    ]


def wait_until(process: Started, happened: Callable[[], bool], seconds: float = 60) -> None:
    """Look very often whether something has happened, until it has, the process ends or the time is over."""
    deadline = time.monotonic() + seconds
    while not happened() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.0005)


@pytest.fixture(scope="module")
def words(small_shards: Path, small_checkpoint: Path) -> list[str]:
    data = f"--dataset {small_shards} --split train --eval-split validation --checkpoint {small_checkpoint}"
    steps = "--max-steps 60 --eval-steps 7 --save-steps 9 --logging-steps 5 --save-total-limit 100"
    return f"--recipe guide --device cpu {data} {steps}".split()


@pytest.fixture(scope="module")
def whole(words: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run, never disturbed."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    finish([*words, "--output-dir", str(folder)])
    return folder


@pytest.mark.parametrize(("asked_by", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_run_that_is_asked_to_stop_saves_its_step_and_goes_on_exactly(
    asked_by: signal.Signals, code: int, words: list[str], whole: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "stopped"
    process = start([*words, "--output-dir", str(folder)])
    wait_until(process, lambda: len(log_of(folder)) >= 2)
    process.send_signal(asked_by)
    _, errors = process.communicate(timeout=60)
    (step,) = list(find_checkpoints(folder))[-1:]
    assert process.returncode == code
    told, _, command = errors.splitlines()[-1].partition("; go on with python ")
    assert told == f"stopped by {asked_by.name} after step {step}"
    assert command == f"train.py --resume-from-checkpoint {folder}"
    assert 0 < step < 60
    finish(shlex.split(command)[1:])
    assert (folder / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    assert log_of(folder) == log_of(whole)


def test_an_evaluation_that_is_cut_off_is_made_up_for(words: list[str], tmp_path: Path) -> None:
    logs = []
    for name in ("whole", "stopped"):
        folder = tmp_path / name
        settings = [*words, "--max-steps", "8", "--output-dir", str(folder), "--eval-on-start"]
        if name == "stopped":
            process = start(settings)
            wait_until(process, lambda folder=folder: any(entry["step"] == 5 for entry in log_of(folder)))
            process.send_signal(signal.SIGTERM)
            process.communicate(timeout=60)
            settings += ["--resume-from-checkpoint", "last"]
        finish(settings)
        logs.append(log_of(folder))
    assert logs[0] == logs[1]


def test_a_first_evaluation_that_is_cut_off_is_begun_again(words: list[str], tmp_path: Path) -> None:
    folder = tmp_path / "run"
    settings = [*words, "--max-steps", "2", "--output-dir", str(folder), "--eval-on-start"]
    process = start([*settings, "--image-size", "256"])
    wait_until(process, lambda: (folder / "run.json").exists())
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 143
    assert "after step 0; nothing was saved yet; start again, adding --resume-from-checkpoint" in errors
    finish([*settings, "--resume-from-checkpoint", "last"])
    assert [entry["step"] for entry in log_of(folder) if "eval_loss" in entry] == [0, 2]


def test_a_second_interrupt_stops_at_once(words: list[str], tmp_path: Path) -> None:
    folder = tmp_path / "run"
    long_steps = "--max-steps 9 --image-size 1024 --per-device-train-batch-size 2 --logging-steps 1 --save-steps 1"
    process = start([*words, *long_steps.split(), "--eval-steps", "9", "--output-dir", str(folder)])
    wait_until(process, lambda: len(log_of(folder)) >= 1)
    wait_until(process, lambda: 1 in find_checkpoints(folder))
    time.sleep(0.2)  # now it is in the middle of a step
    process.send_signal(signal.SIGINT)
    assert process.stderr is not None
    heard = next(line for line in process.stderr if line.startswith("stopping"))  # two that come before this are one
    assert heard == "stopping once this step is saved; Ctrl-C again stops at once\n"
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert errors.splitlines()[-1].startswith("interrupted; go on with --resume-from-checkpoint")
    assert max(find_checkpoints(folder)) < 9


def test_an_answer_that_nobody_can_read_any_more_stops_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:  # as where the same Ctrl-C has ended the tee that listens
        raise BrokenPipeError

    monkeypatch.setattr(os, "write", broken)
    with StopRequest() as stop:
        signal.raise_signal(signal.SIGINT)
        assert stop.signal == signal.SIGINT
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


@pytest.mark.slow
@pytest.mark.real_data
def test_100_kills_lose_nothing(real_shards: Path, encoder_checkpoint: Path, tmp_path: Path) -> None:
    words = (
        f"--recipe guide --dataset {real_shards} --split train[:6] --eval-split validation[:2] --image-size 64 "
        f"--checkpoint {encoder_checkpoint} --max-steps 500 --eval-steps 3 --save-steps 2 --device cpu"
    ).split()
    finish([*words, "--output-dir", str(tmp_path / "whole")])
    folder, chance = tmp_path / "killed", random.Random(0)
    killed = dict.fromkeys(("saving", "after a log entry", "at any time"), 0)
    go_on: list[str] = []

    def went_on(before: Any, saved: int) -> bool:
        """Whether the process has replaced the log of the one before it, and gone beyond its last checkpoint."""
        path = folder / "log.jsonl"
        is_new = path.exists() and not (before and os.path.samestat(os.fstat(before.fileno()), path.stat()))
        return is_new and any(entry["step"] > saved for entry in log_of(folder)[-1:])

    while sum(killed.values()) < 100:
        log = folder / "log.jsonl"
        before = log.open("rb") if log.exists() else None  # open, so that no file after it gets its number
        saved = max(find_checkpoints(folder), default=0)
        process = start([*words, "--output-dir", str(folder), *go_on])
        moment = chance.choice(list(killed))
        wait_until(process, lambda before=before, saved=saved: went_on(before, saved))
        if moment == "saving":
            wait_until(process, lambda: bool(list(folder.glob("unfinished-*")) + list(folder.glob("removed-*"))))
        elif moment == "at any time":
            time.sleep(chance.uniform(0, 0.4))
        process.kill()
        process.communicate()
        if before:
            before.close()
        assert process.returncode == -signal.SIGKILL, "the run ended before it was killed often enough"
        killed[moment] += 1
        for checkpoint in find_checkpoints(folder).values():
            check_whole(checkpoint)
            read_training_state(checkpoint)
            Segformer.from_pretrained(checkpoint)
        go_on = ["--resume-from-checkpoint", "last"] if find_checkpoints(folder) else ["--overwrite-output-dir"]
    finish([*words, "--output-dir", str(folder), *go_on])
    print(killed)
    assert (folder / "model.safetensors").read_bytes() == (tmp_path / "whole/model.safetensors").read_bytes()
    assert log_of(folder) == log_of(tmp_path / "whole")
