"""Training steps as CUDA graphs: what the host would start kernel by kernel is captured once and replayed at once.

A step of a B0 starts about a thousand kernels, and with few images in it a GPU is done with them sooner than the host.
The first steps with batches of a shape run as they are; the next one is captured, which runs nothing, and from then on
replayed, with its batch and its learning rates copied to where the graph reads them. What comes out is that of steps
which run as they are, bit for bit: a graph draws from the seed that stands when it is replayed, and fused AdamW, which
of a graph reads its rates as float32, is given no others on CUDA in any case. Evaluations between steps run as ever.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

STEPS_BEFORE = 3  # of a shape run as they are, in which all is made that outlives a step
MOST_SHAPES = 4  # have a graph of their own, with memory of its own; batches of others run as they are

Batch = Mapping[str, Any]
Shapes = tuple[tuple[str, tuple[int, ...], torch.dtype], ...]

logger = logging.getLogger(__name__)


class Captured(NamedTuple):
    """A graph, and where it reads its batch and its rates from and leaves what it measured."""

    graph: torch.cuda.CUDAGraph
    batch: dict[str, Any]
    rates: list[Tensor]
    result: Any

    def replay(self, batch: Batch, optimizer: torch.optim.Optimizer) -> Any:
        """The step with another batch and with the optimiser's present rates."""
        for name, values in self.batch.items():
            if isinstance(values, Tensor):
                values.copy_(batch[name])
        for rate, group in zip(self.rates, optimizer.param_groups, strict=True):
            rate.fill_(group["lr"])
        self.graph.replay()
        return type(self.result)(*(each.clone() for each in self.result))  # which the next replay overwrites


class StepGraphs:
    """Takes the steps of a run: as they are, or where ``wanted`` as graphs.

    Several ranks go on without graphs, and so does a run whose step cannot be captured; both are said in one line.
    Raises ValueError for another device than a GPU.
    """

    def __init__(self, wanted: bool, device: torch.device, num_ranks: int = 1) -> None:
        if wanted and device.type != "cuda":
            raise ValueError(f"cuda_graph takes a CUDA device; this run is on {device.type}, so leave it out")
        if wanted and num_ranks > 1:
            logger.warning("cuda_graph is for a single GPU; these %d go on without", num_ranks)
        self.wanted = wanted and num_ranks == 1
        self._device = device
        self._seen: Counter[Shapes] = Counter()
        self._graphs: dict[Shapes, Captured] = {}

    def take(
        self,
        step: Callable[..., Any],
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        scaler: torch.amp.GradScaler,
        batch: Batch,
        config: Any,
    ) -> Any:
        """One ``step(model, optimizer, scaler, batch, config)``, which returns a named tuple of tensors."""
        if self._device.type == "cuda":
            for group in optimizer.param_groups:
                group["lr"] = torch.tensor(group["lr"], dtype=torch.float32).item()

        def run(batch: Batch) -> Any:
            return step(model, optimizer, scaler, batch, config)

        if not self.wanted:
            return run(batch)
        shapes = _shapes(batch)
        self._seen[shapes] += 1
        if shapes not in self._graphs:
            if self._seen[shapes] <= STEPS_BEFORE or len(self._graphs) == MOST_SHAPES:
                return self._beside(run, batch)
            if not self._capture(run, shapes, batch, optimizer, scaler):
                return run(batch)
        return self._graphs[shapes].replay(batch, optimizer)

    def _beside(self, run: Callable[[Batch], Any], batch: Batch) -> Any:
        """A step as it is, on a stream of its own as a capture will be."""
        stream, usual = self._stream, torch.cuda.current_stream(self._device)
        stream.wait_stream(usual)
        with torch.cuda.stream(stream):
            result = run(batch)
        usual.wait_stream(stream)
        return result

    @property
    def _stream(self) -> torch.cuda.Stream:
        if not hasattr(self, "_own_stream"):
            self._own_stream = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
        return self._own_stream

    def _capture(
        self,
        run: Callable[[Batch], Any],
        shapes: Shapes,
        batch: Batch,
        optimizer: torch.optim.Optimizer,
        scaler: torch.amp.GradScaler,
    ) -> bool:
        """Take down a step with such a batch; whether that could be done."""
        seed = torch.initial_seed()
        held = {name: values.clone() if isinstance(values, Tensor) else values for name, values in batch.items()}
        graph = torch.cuda.CUDAGraph()
        pool = next((each.graph.pool() for each in self._graphs.values()), None)  # no two are ever replayed at once
        try:
            with (
                _rates_as_tensors(optimizer) as rates,
                # Other threads pin memory meanwhile, which a capture of all threads would not allow.
                torch.cuda.graph(graph, pool=pool, stream=self._stream, capture_error_mode="thread_local"),
            ):
                result = run(held)
        except RuntimeError as error:  # memory that runs out is one
            logger.warning("cuda_graph: a step cannot be captured (%s); going on without", str(error).splitlines()[0])
            self.wanted = False
            self._graphs.clear()
            if scaler.is_enabled():
                scaler._per_optimizer_states.clear()  # of half a step
            optimizer.zero_grad(set_to_none=True)
            torch.manual_seed(seed)
            return False
        self._graphs[shapes] = Captured(graph, held, rates, result)
        return True


@contextmanager
def _rates_as_tensors(optimizer: torch.optim.Optimizer) -> Iterator[list[Tensor]]:
    """While this lasts, the optimiser has its rates in tensors, which a graph reads anew in every replay."""
    groups = optimizer.param_groups
    before = [(group["lr"], group["capturable"]) for group in groups]
    rates = [torch.tensor(group["lr"], dtype=torch.float32, device=group["params"][0].device) for group in groups]
    try:
        for group, rate in zip(groups, rates, strict=True):
            group["lr"], group["capturable"] = rate, True
        yield rates
    finally:
        for group, (number, capturable) in zip(optimizer.param_groups, before, strict=True):
            group["lr"], group["capturable"] = number, capturable


def _shapes(batch: Batch) -> Shapes:
    return tuple((name, tuple(each.shape), each.dtype) for name, each in batch.items() if isinstance(each, Tensor))
