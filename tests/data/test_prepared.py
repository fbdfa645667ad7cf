"""Random access: a shard of many row groups is copied once into a form that gives single rows and is shared."""

from __future__ import annotations

import io
import os
import random
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import programs
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from torch.utils.data import DataLoader

from data import SceneParse150
from data.sources.prepared import PreparedRows
from data.sources.shards import Shard, write_shard

ROOT = Path(__file__).parents[2]
MANY = 1000  # rows: more row groups than a shard keeps in memory


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache/segformer"


def rows(count: int, first: int = 0, weight: int = 0) -> Iterator[dict[str, Any]]:
    """Rows whose photos carry their number in the first pixel; some without annotation, as in the test split."""
    for number in range(first, first + count):
        files = []
        for image in (Image.new("RGB", (4, 3), (number % 256, number // 256, 9)), Image.new("L", (4, 3), number % 151)):
            buffer = io.BytesIO()
            image.save(buffer, "PNG")
            files.append({"bytes": buffer.getvalue() + bytes(weight), "path": f"ADE_{number}"})
        yield {"image": files[0], "annotation": None if number % 10 == 7 else files[1], "scene_category": 0}


def number_of(dataset: SceneParse150, index: int) -> int:
    red, green, _ = dataset[index][0].getpixel((0, 0))
    return red + 256 * green


def copies(cache: Path) -> list[Path]:
    return sorted(cache.rglob("*.arrow"))


def test_a_split_of_many_row_groups_is_prepared_and_a_slice_is_not(tmp_path: Path, cache: Path) -> None:
    write_shard(tmp_path / "train.parquet", rows(MANY), ["room"])
    SceneParse150(tmp_path, "train[:50]")
    assert copies(cache) == []
    SceneParse150(tmp_path, "train")
    assert len(copies(cache)) == 1


def test_prepared_rows_are_those_of_the_shard(tmp_path: Path, cache: Path) -> None:
    path = tmp_path / "train.parquet"
    write_shard(path, rows(MANY), ["room"])
    shard, prepared = Shard(path), Shard(path).ready(range(MANY))
    assert isinstance(prepared, PreparedRows)
    assert prepared.num_rows == MANY
    assert prepared.scene_categories == ["room"]
    assert [prepared.row(i) for i in range(MANY)] == [shard.row(i) for i in range(MANY)]
    assert prepared.where(3) == shard.where(3)


@pytest.mark.parametrize("compression", ["none", "snappy", "zstd"])
@pytest.mark.parametrize("rows_per_group", [7, 64])
def test_other_row_groups_and_compressions_are_prepared_alike(
    compression: str, rows_per_group: int, tmp_path: Path, cache: Path
) -> None:
    table = pa.Table.from_pylist(list(rows(MANY)))
    pq.write_table(table, tmp_path / "train.parquet", compression=compression, row_group_size=rows_per_group)
    dataset = SceneParse150(tmp_path, "train")
    assert len(copies(cache)) == 1
    assert [number_of(dataset, i) for i in range(0, MANY, 37)] == list(range(0, MANY, 37))
    assert dataset[7][1] is None


def test_a_second_opening_makes_no_copy(tmp_path: Path, cache: Path) -> None:
    write_shard(tmp_path / "train.parquet", rows(MANY), ["room"])
    SceneParse150(tmp_path, "train")
    before = copies(cache)[0].stat()
    SceneParse150(tmp_path, "train")
    assert copies(cache)[0].stat() == before


def test_a_changed_shard_is_prepared_anew_and_its_old_copy_goes(tmp_path: Path, cache: Path) -> None:
    write_shard(tmp_path / "train.parquet", rows(MANY), ["room"])
    assert number_of(SceneParse150(tmp_path, "train"), 0) == 0
    write_shard(tmp_path / "train.parquet", rows(MANY, first=5), ["room"])
    assert number_of(SceneParse150(tmp_path, "train"), 0) == 5
    assert len(copies(cache)) == 1


OPEN = "import sys; from data import SceneParse150; print(len(SceneParse150(sys.argv[1], 'train')))"


def test_of_two_processes_one_prepares_and_the_other_waits(tmp_path: Path, cache: Path) -> None:
    write_shard(tmp_path / "train.parquet", rows(MANY, weight=20_000), ["room"])
    running = [programs.start("-c", OPEN, tmp_path) for _ in range(3)]
    assert [process.communicate(timeout=120)[0] for process in running] == [f"{MANY}\n"] * 3
    assert len(copies(cache)) == 1


def test_a_killed_preparation_leaves_nothing_that_looks_whole(tmp_path: Path, cache: Path) -> None:
    write_shard(tmp_path / "train.parquet", rows(MANY, weight=60_000), ["room"])
    process = programs.start("-c", OPEN, tmp_path)
    while not list(cache.rglob("*.unfinished")) and process.poll() is None:
        time.sleep(0.001)
    process.kill()
    process.communicate()
    if copies(cache):
        pytest.skip("the copy was made before the process could be killed")
    assert len(SceneParse150(tmp_path, "train")) == MANY
    assert list(cache.rglob("*.unfinished")) == []


def test_a_full_disk_is_told_with_the_space_that_it_takes_and_leaves_nothing(tmp_path: Path, cache: Path) -> None:
    write_shard(tmp_path / "train.parquet", rows(MANY, weight=20_000), ["room"])

    def small_files() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (5_000_000, 5_000_000))

    command = [sys.executable, "-c", OPEN, str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, preexec_fn=small_files, check=False)
    last = done.stderr.splitlines()[-1]
    assert done.returncode == 1
    assert "cannot write" in last
    assert "it takes 36 MiB and" in last
    assert "let HF_HOME name another disk" in last
    assert [path for path in cache.rglob("*") if path.suffix in (".arrow", ".unfinished")] == []


def test_a_cache_that_cannot_be_made_is_told_with_what_names_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("HF_HOME", str(tmp_path / "file"))
    write_shard(tmp_path / "train.parquet", rows(MANY, weight=20_000), ["room"])
    with pytest.raises(
        NotADirectoryError, match=r"cannot make .*file.*; let HF_HOME name a folder that can be written"
    ):
        SceneParse150(tmp_path, "train")


def test_a_damaged_copy_is_named(tmp_path: Path, cache: Path) -> None:
    write_shard(tmp_path / "train.parquet", rows(MANY), ["room"])
    SceneParse150(tmp_path, "train")
    (copy,) = copies(cache)
    copy.write_bytes(copy.read_bytes()[:-100])
    with pytest.raises(ValueError, match=rf"{copy.name} is damaged .* delete it, and it is made anew"):
        SceneParse150(tmp_path, "train")


def test_a_damaged_shard_is_named_and_leaves_no_copy(tmp_path: Path, cache: Path) -> None:
    path = tmp_path / "train.parquet"
    write_shard(path, rows(MANY), ["room"])
    content = bytearray(path.read_bytes())
    content[len(content) // 2 : len(content) // 2 + 5000] = bytes(5000)
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"train.parquet breaks off or is damaged in row group"):
        SceneParse150(tmp_path, "train")
    assert [path for path in cache.rglob("*") if path.suffix in (".arrow", ".unfinished")] == []


class _Numbers:
    """The number of each row, and what of the process's memory is its own."""

    def __init__(self, dataset: SceneParse150) -> None:
        self.dataset = dataset
        self.calls = 0
        self.own_memory_mib = 0.0

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[int, float, int]:
        self.calls += 1
        if self.calls % 100 == 1:  # it walks through all pages that are mapped
            self.own_memory_mib = _own_memory_mib()
        return number_of(self.dataset, index), self.own_memory_mib, os.getpid()


def _own_memory_mib() -> float:
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    own = [int(line.split()[1]) for line in lines if line.startswith(("Private_Clean", "Private_Dirty"))]
    return sum(own) / 1024


@pytest.mark.parametrize(("start", "counts"), [("fork", (0, 1, 4)), ("spawn", (2,))])  # a spawned one costs seconds
def test_rows_are_equal_with_any_number_of_workers(start: str, counts: tuple[int, ...], tmp_path: Path) -> None:
    write_shard(tmp_path / "train.parquet", rows(MANY), ["room"])
    dataset = SceneParse150(tmp_path, "train")
    order = random.Random(0).sample(range(MANY), 60)
    for workers in counts:
        context = start if workers else None
        loader = DataLoader(
            _Numbers(dataset), sampler=order, batch_size=5, num_workers=workers, multiprocessing_context=context
        )
        assert [number for numbers, _, _ in loader for number in numbers.tolist()] == order


def test_a_shard_that_was_replaced_is_prepared_again_whatever_its_time_says(tmp_path: Path) -> None:
    shard, before = tmp_path / "train.parquet", list(rows(5, weight=20_000))
    write_shard(shard, before, ["room"])
    names = [SceneParse150(tmp_path, "train").name(row) for row in range(5)]
    status = shard.stat()
    write_shard(shard, before[::-1], ["room"])
    os.utime(shard, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert shard.stat().st_size == status.st_size  # or this tests nothing
    assert [SceneParse150(tmp_path, "train").name(row) for row in range(5)] == names[::-1]


@pytest.mark.slow
def test_20000_rows_open_at_once_and_give_2000_a_second_to_workers_that_stay_small(tmp_path: Path) -> None:
    write_shard(tmp_path / "train.parquet", rows(20_000, weight=20_000), ["room"])
    SceneParse150(tmp_path, "train")
    started = time.perf_counter()
    dataset = SceneParse150(tmp_path, "train")
    opening_seconds = time.perf_counter() - started
    order = np.random.default_rng(0).permutation(20_000).tolist()
    started = time.perf_counter()
    for index in order[:5000]:
        dataset._row(index)
    rows_per_second = 5000 / (time.perf_counter() - started)
    loader = DataLoader(_Numbers(dataset), sampler=order, batch_size=50, num_workers=4)
    memory: dict[int, list[float]] = {}
    for _, own, process in loader:
        memory.setdefault(int(process[0]), []).append(float(own[-1]))
    growth = max(max(values) - values[0] for values in memory.values())
    print(f"opened in {opening_seconds:.3f} s, {rows_per_second:.0f} rows a second, workers grow by {growth:.1f} MiB")
    assert opening_seconds < 0.5
    assert rows_per_second > 2000
    assert len(memory) == 4
    assert growth < 60
