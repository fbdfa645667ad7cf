"""Memory over many images: it stands still in a long epoch, a large evaluation and a program that infers all day."""

from __future__ import annotations

import gc
import io
import multiprocessing
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from data import SceneParse150
from data.sources.shards import write_shard
from segformer import Segformer, Segmenter
from segformer.processor import ImageProcessor
from train import configure, train

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads memory from /proc, which Linux has"),
]
SIDE = 128
PAGE_MIB = os.sysconf("SC_PAGE_SIZE") / 2**20


def resident_mib(process: int | str = "self") -> float:
    """The memory of a process that it shares with no file."""
    _, resident, shared, *_ = Path(f"/proc/{process}/statm").read_text().split()
    return (int(resident) - int(shared)) * PAGE_MIB


@contextmanager
def watched(interval: float = 0.5) -> Iterator[list[tuple[float, float]]]:
    """Seconds and resident MiB of this process, noted while the block runs."""
    seen: list[tuple[float, float]] = []
    over = threading.Event()
    started = time.perf_counter()

    def watch() -> None:
        while not over.wait(interval):
            seen.append((time.perf_counter() - started, resident_mib()))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield seen
    finally:
        over.set()
        watcher.join()


def growth(seen: list[tuple[float, float]]) -> float:
    """How much memory grew between the first and the last third after the warm-up, in MiB, by their medians."""
    settled = np.array(seen)[len(seen) // 5 :, 1]
    third = len(settled) // 3
    return float(np.median(settled[-third:]) - np.median(settled[:third]))


def write_rows(path: Path, count: int, seed: int) -> None:
    """A shard of small noisy photos; no two are alike."""
    chance = np.random.default_rng(seed)

    def encoded(values: np.ndarray[Any, Any], form: str) -> bytes:
        buffer = io.BytesIO()
        Image.fromarray(values).resize((SIDE, SIDE), Image.Resampling.NEAREST).save(buffer, form)
        return buffer.getvalue()

    rows = (
        {
            "image": {"bytes": encoded(chance.integers(0, 256, (8, 8, 3), np.uint8), "JPEG"), "path": f"{n:06d}.jpg"},
            "annotation": {"bytes": encoded(chance.integers(0, 151, (8, 8), np.uint8), "PNG"), "path": f"{n:06d}.png"},
            "scene_category": 0,
        }
        for n in range(count)
    )
    write_shard(path, rows, ["generated"])


@pytest.fixture(scope="module")
def many_rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """20,000 rows to train on and 2,000 to score, in the layout of the Hub."""
    folder = tmp_path_factory.mktemp("many")
    write_rows(folder / "train/0000.parquet", 20_000, seed=0)
    write_rows(folder / "validation/0000.parquet", 2_000, seed=1)
    return folder


@pytest.fixture
def checkpoint_of_128(small_checkpoint: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "checkpoint-128"
    Segformer.from_pretrained(small_checkpoint).save_pretrained(folder)
    ImageProcessor(size=(SIDE, SIDE)).save_pretrained(folder)
    return folder


def test_memory_stands_still_over_an_epoch_of_20_000_images_and_an_evaluation_of_2_000(
    many_rows: Path, checkpoint_of_128: Path, tmp_path: Path
) -> None:
    config = configure(
        "guide",
        dataset=str(many_rows),
        split="train",
        eval_split="validation",
        checkpoint=str(checkpoint_of_128),
        device="cpu",
        num_train_epochs=1,
        per_device_train_batch_size=16,
        per_device_eval_batch_size=16,
        eval_steps=1250,
        save_steps=625,
        logging_steps=10,
        dataloader_num_workers=1,
        output_dir=str(tmp_path / "run"),
    )
    with watched() as seen:
        folder = train(config)
    assert (folder / "checkpoint-1250").is_dir()
    grown = growth(seen)
    print(f"epoch: {len(seen)} readings, {seen[-1][0]:.0f} s, {seen[-1][1]:.0f} MiB, grown by {grown:.1f} MiB")
    assert grown < 16  # a leak of one batch's images alone, 3 MiB a step, would be gigabytes


def test_memory_stands_still_over_1_000_inferences(checkpoint_of_128: Path) -> None:
    segmenter = Segmenter.from_pretrained(checkpoint_of_128, device="cpu")
    chance = np.random.default_rng(0)
    seen = []
    for number in range(1_000):
        height, width = chance.integers(40, 400, 2)
        label_map = segmenter.label_map(chance.integers(0, 256, (height, width, 3), np.uint8))
        assert label_map.shape == (height, width)
        if number % 10 == 0:
            gc.collect()
            seen.append((float(number), resident_mib()))
    grown = growth(seen)
    print(f"inferences: {seen[-1][1]:.0f} MiB, grown by {grown:.1f} MiB")
    assert grown < 16


def read_rows(folder: Path, rows: list[int], results: Any) -> None:
    """What a process of the next test does."""
    dataset = SceneParse150(str(folder), "train")
    dataset[0]
    before = resident_mib()
    total = sum(int(np.asarray(dataset[row][0]).sum()) for row in rows)
    results.put((total, resident_mib() - before))


def test_8_processes_share_one_prepared_split(many_rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    rows = np.random.default_rng(0).permutation(20_000)[:2_000].tolist()
    dataset = SceneParse150(str(many_rows), "train")
    expected = sum(int(np.asarray(dataset[row][0]).sum()) for row in rows)
    spawning = multiprocessing.get_context("spawn")
    results = spawning.Queue()
    processes = [spawning.Process(target=read_rows, args=(many_rows, rows, results)) for _ in range(8)]
    for process in processes:
        process.start()
    told = [results.get(timeout=300) for _ in processes]
    for process in processes:
        process.join()
    print("processes grown by", [f"{grown:.1f} MiB" for _, grown in told])
    assert {total for total, _ in told} == {expected}
    assert max(grown for _, grown in told) < 32
