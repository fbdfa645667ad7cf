"""Training steps as CUDA graphs: which steps are captured, what they read anew, and that their numbers are the same.

Here a graph is a stand-in that can be had on a CPU: while it is captured the step does run, but what it changed is put
back, as nothing happens in a real capture; a replay is the step on what the graph holds. What a GPU makes of it,
tests/test_gpu.py shows.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import train as training
from segformer import Segformer
from segformer.training.graphs import MOST_SHAPES, STEPS_BEFORE, StepGraphs
from train import TrainConfig, build_optimizer, configure, parse_arguments, train, train_step

CUDA = torch.device("cuda")


class Card:
    """A stand-in for CUDA's graphs, and what was asked of it."""

    def __init__(self) -> None:
        self.captured = 0
        self.replayed = 0
        self.watched: tuple[Any, ...] = ()  # whose state a capture leaves as it is
        self.step: Callable[[], Any] | None = None
        self.error: Exception | None = None  # that a step raises while it is captured
        self.capturing = False

    @contextmanager
    def capture(self, graph: Any, **how: Any) -> Iterator[None]:
        assert how["capture_error_mode"] == "thread_local"
        states = [copy.deepcopy(each.state_dict()) for each in self.watched]
        draws = torch.get_rng_state()
        self.capturing = True
        try:
            yield
        finally:
            self.capturing = False
        for each, state in zip(self.watched, states, strict=True):
            each.load_state_dict(state)
        torch.set_rng_state(draws)
        self.captured += 1
        graph.step = self.step

    def graph(self) -> Any:
        card = self

        class Graph:
            step: Any = None

            def replay(self) -> None:
                card.replayed += 1
                self.step()

            def pool(self) -> int:
                return 0

        return Graph()


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> Card:
    """The stand-in, in CUDA's place."""
    card = Card()

    class Stream:
        def __init__(self, device: torch.device | None = None) -> None: ...

        def wait_stream(self, other: Any) -> None: ...

    monkeypatch.setattr(torch.cuda, "CUDAGraph", card.graph)
    monkeypatch.setattr(torch.cuda, "graph", card.capture)
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "current_stream", Stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: nullcontext())
    return card


class Steps:
    """A model on the CPU that takes its steps by graphs, or as they are."""

    def __init__(self, start: Segformer, card: Card, wanted: bool, **settings: Any) -> None:
        self.model = copy.deepcopy(start).train()
        self.config = TrainConfig(amp="off", **settings)
        self.optimizer = build_optimizer(self.model, self.config)
        self.scaler = torch.amp.GradScaler("cpu", enabled=False)
        self.graphs, self.card = StepGraphs(wanted, CUDA), card
        card.watched = self.model, self.optimizer

    def take(self, number: int, batch: dict[str, Tensor], rate: float = 1e-3) -> Any:
        """A step with the draws of its number, at a rate."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        torch.manual_seed(number)
        return self.graphs.take(self._step, self.model, self.optimizer, self.scaler, batch, self.config)

    def _step(self, *operands: Any) -> Any:
        if self.card.capturing and self.card.error:
            torch.rand(5)
            raise self.card.error
        result = train_step(*operands)

        def again() -> None:
            for place, value in zip(result, train_step(*operands), strict=True):
                place.copy_(value)

        rates = [group["lr"] for group in self.optimizer.param_groups]

        def replayed() -> None:
            kept = [group["lr"] for group in self.optimizer.param_groups]
            for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
                group["lr"] = rate
            again()
            for group, rate in zip(self.optimizer.param_groups, kept, strict=True):
                group["lr"] = rate

        self.card.step = replayed
        return result


@pytest.fixture
def start(tiny_config: Any) -> Segformer:
    torch.manual_seed(0)
    return Segformer(tiny_config)


def some_batch(number: int, images: int = 2) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(number)
    labels = torch.randint(0, 7, (images, 32, 48), generator=generator)
    return {"images": torch.randn(images, 3, 32, 48, generator=generator), "labels": labels}


@pytest.mark.parametrize(
    "settings", [{}, {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 2}], ids=str
)
def test_replayed_steps_have_the_bits_of_steps_as_they_are(
    settings: dict[str, Any], start: Segformer, card: Card
) -> None:
    plain, ours = (Steps(start, card, wanted, **settings) for wanted in (False, True))
    for number in range(1, STEPS_BEFORE + 5):
        rate = 1e-3 / number  # of which some are no float32
        expected, found = (steps.take(number, some_batch(number), rate) for steps in (plain, ours))
        assert [*map(float, found)] == [*map(float, expected)], number
        assert [group["lr"] for group in ours.optimizer.param_groups] == [
            group["lr"] for group in plain.optimizer.param_groups
        ]
    for name, weight in plain.model.state_dict().items():
        assert torch.equal(ours.model.state_dict()[name], weight), name
    assert (card.captured, card.replayed) == (1, 5 - 1)


def test_what_a_step_measured_is_not_overwritten_by_the_next(start: Segformer, card: Card) -> None:
    steps = Steps(start, card, wanted=True)
    results = [steps.take(number, some_batch(number)) for number in range(1, STEPS_BEFORE + 4)]
    losses = [float(result.loss) for result in results]
    assert len(set(losses)) == len(losses)
    assert type(results[-1]) is training.StepResult


def test_batches_of_another_shape_have_a_graph_of_their_own_up_to_a_number(start: Segformer, card: Card) -> None:
    steps = Steps(start, card, wanted=True)
    for images in range(1, MOST_SHAPES + 3):
        for number in range(STEPS_BEFORE + 2):
            steps.take(number, some_batch(number, images))
    assert (card.captured, card.replayed) == (MOST_SHAPES, 2 * MOST_SHAPES)


def test_a_rare_shape_is_never_captured(start: Segformer, card: Card) -> None:
    steps = Steps(start, card, wanted=True)
    for number in range(STEPS_BEFORE):
        steps.take(number, some_batch(number, images=1))
    assert (card.captured, card.replayed) == (0, 0)


def test_the_optimiser_is_left_as_it_was(start: Segformer, card: Card) -> None:
    steps = Steps(start, card, wanted=True)
    before = [{name: group[name] for name in group if name != "params"} for group in steps.optimizer.param_groups]
    for number in range(STEPS_BEFORE + 2):
        steps.take(number, some_batch(number), rate=0.5)
    after = [{name: group[name] for name in group if name != "params"} for group in steps.optimizer.param_groups]
    assert after == [{**group, "lr": 0.5} for group in before]


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory. Tried"), RuntimeError("not permitted")])
def test_a_step_that_cannot_be_captured_goes_on_as_it_is(
    error: Exception, start: Segformer, card: Card, caplog: pytest.LogCaptureFixture
) -> None:
    card.error = error
    plain, ours = (Steps(start, card, wanted) for wanted in (False, True))
    with caplog.at_level(logging.WARNING):
        for number in range(1, STEPS_BEFORE + 3):
            assert float(ours.take(number, some_batch(number)).loss) == float(
                plain.take(number, some_batch(number)).loss
            )
    said = [record.message for record in caplog.records]
    assert said == [f"cuda_graph: a step cannot be captured ({error}); going on without"]


def test_several_ranks_go_on_without_and_say_so(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert not StepGraphs(True, CUDA, num_ranks=4).wanted
    assert [record.message for record in caplog.records] == ["cuda_graph is for a single GPU; these 4 go on without"]


@pytest.mark.parametrize("device", ["cpu", "mps"])
def test_another_device_than_a_gpu_is_refused(device: str) -> None:
    with pytest.raises(ValueError, match=f"cuda_graph takes a CUDA device; this run is on {device}"):
        StepGraphs(True, torch.device(device))


def test_a_run_on_a_cpu_is_refused_before_anything_is_opened(tmp_path: Path) -> None:
    config = configure(
        "guide", device="cpu", cuda_graph=True, dataset="nowhere/at/all", output_dir=str(tmp_path / "run")
    )
    with pytest.raises(ValueError, match="cuda_graph takes a CUDA device"):
        train(config)
    assert not (tmp_path / "run").exists()
    assert parse_arguments(["--recipe", "guide", "--cuda-graph"]).cuda_graph


def test_on_a_cpu_rates_are_not_rounded(start: Segformer) -> None:
    taken: list[float] = []
    optimizer = build_optimizer(start, TrainConfig())
    optimizer.param_groups[0]["lr"] = 1 / 3
    StepGraphs(False, torch.device("cpu")).take(
        lambda model, optimizer, *_: taken.append(optimizer.param_groups[0]["lr"]), start, optimizer, None, {}, None
    )
    assert taken == [1 / 3]
