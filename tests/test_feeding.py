"""Batches on their way to a device: in order, on a GPU ahead of their turn and without a wait; and their workers."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from fake_cuda import FakeCard, fake_cuda
from torch import Tensor

from data.batches import count_workers, on_device

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def batches(count: int, failing: int | None = None) -> Iterator[dict[str, Any]]:
    """Batches with numbers in them, of which one cannot be made."""
    for number in range(count):
        if number == failing:
            raise ValueError(f"batch {number} cannot be made")
        yield {"images": torch.full((2, 3), number), "views": [[torch.full((1,), number)]], "place": [(0, number)]}


class Streams:
    """Stand-ins for CUDA's streams, and what happened on them, in order."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.events: list[str] = []
        self.inside = False
        streams = self

        class Stream:
            def __init__(self, device: torch.device | None = None, name: str = "copying") -> None:
                self.name = name

            def wait_stream(self, other: Stream) -> None:
                streams.events.append(f"{self.name} waits for {other.name}")

        @contextmanager
        def stream(entered: Stream) -> Iterator[None]:
            streams.inside = True
            yield
            streams.inside = False

        def to(values: Tensor, device: torch.device, non_blocking: bool = False) -> Tensor:
            assert streams.inside
            assert non_blocking
            streams.events.append(f"copy {int(values.flatten()[0])}")
            return values

        monkeypatch.setattr(torch.cuda, "Stream", Stream)
        monkeypatch.setattr(torch.cuda, "current_stream", lambda device: Stream(name="computing"))
        monkeypatch.setattr(torch.cuda, "stream", stream)
        monkeypatch.setattr(Tensor, "to", to)
        monkeypatch.setattr(
            Tensor, "record_stream", lambda values, stream: streams.events.append(stream.name + " reads")
        )


def test_on_a_cpu_the_batches_are_what_they_were() -> None:
    given = list(batches(3))
    for one, other in zip(on_device(given, CPU), given, strict=True):
        assert one["images"] is other["images"]
        assert one["views"][0][0] is other["views"][0][0]
        assert one["place"] == other["place"]


def test_on_a_gpu_the_batches_come_in_their_order_with_the_next_one_on_its_way(monkeypatch: pytest.MonkeyPatch) -> None:
    streams = Streams(monkeypatch)
    came = []
    for batch in on_device(batches(3), CUDA):
        streams.events.append(f"step {len(came)}")
        came.append(int(batch["images"][0, 0]))
    assert came == [0, 1, 2]
    reads = ["computing waits for copying", "computing reads", "computing reads"]
    copies = [["copy 0"] * 2, ["copy 1"] * 2, ["copy 2"] * 2]
    expected = [*copies[0], *reads, *copies[1], "step 0", *reads, *copies[2], "step 1", *reads, "step 2"]
    assert streams.events == expected


@pytest.mark.parametrize("device", [CPU, CUDA])
def test_what_goes_wrong_with_a_batch_is_raised_when_its_turn_has_come(
    device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    if device.type == "cuda":
        Streams(monkeypatch)
    coming = on_device(batches(4, failing=2), device)
    assert [int(next(coming)["images"][0, 0]) for _ in range(2)] == [0, 1]
    with pytest.raises(ValueError, match="batch 2 cannot be made"):
        next(coming)


def test_no_batch_is_no_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    Streams(monkeypatch)
    assert list(on_device([], CUDA)) == []


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeCard]:
    with fake_cuda(monkeypatch) as card:
        yield card


@pytest.mark.skipif(not torch.backends.cuda.is_built(), reason="this torch was built without CUDA")
@pytest.mark.parametrize("pinned", [True, False])
def test_pinned_batches_are_copied_without_a_wait(
    pinned: bool, card: FakeCard, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("Stream", "current_stream"):
        monkeypatch.setattr(torch.cuda, name, lambda *_: _Still())
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: stream)
    monkeypatch.setattr(Tensor, "record_stream", lambda values, stream: None)
    source = [{"images": torch.zeros(2, 3).pin_memory() if pinned else torch.zeros(2, 3)} for _ in range(3)]
    card.forget()
    assert [batch["images"].device.type for batch in on_device(source, CUDA)] == ["cuda"] * 3
    assert len(card.waits) == (0 if pinned else 3)


class _Still:
    """A stream on which nothing is to be seen."""

    def wait_stream(self, other: _Still) -> None: ...

    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None: ...


@pytest.mark.parametrize(
    ("asked", "device", "cores", "processes", "count"),
    [
        (None, CPU, 8, 1, 0),
        (None, torch.device("mps"), 8, 1, 0),
        (None, CUDA, 8, 1, 7),
        (None, CUDA, 8, 4, 1),
        (None, CUDA, 1, 1, 1),
        (None, CUDA, 96, 1, 16),
        (0, CUDA, 8, 1, 0),
        (3, CPU, 8, 1, 3),
    ],
)
def test_workers_are_as_many_as_are_asked_for_or_for_a_gpu_as_the_cores_allow(
    asked: int | None,
    device: torch.device,
    cores: int,
    processes: int,
    count: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(cores), raising=False)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
    assert count_workers(asked, device) == count
