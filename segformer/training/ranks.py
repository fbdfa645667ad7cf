"""This process among those that ``torchrun`` started; a plain run is rank 0 of 1, and everything here does nothing."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel


@dataclass(frozen=True)
class Ranks:
    """The number of this process and how many there are."""

    rank: int = 0
    count: int = 1
    hosts: Any = None  # a group of the host processes: what they agree on waits for no device

    @property
    def is_writer(self) -> bool:
        """Whether this is the one process that writes files and talks to the terminal."""
        return self.rank == 0

    def share(self, value: Any) -> Any:
        """The writer's value, on every rank."""
        if self.count == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values, src=0)
        return values[0]

    def decide(self, choose: Callable[[], Any]) -> Any:
        """What the writer chooses, on every rank; where it refuses, the others are told no more than that."""
        if self.count == 1:
            return choose()
        if not self.is_writer:
            chosen, refused = self.share(None)
            if refused:
                raise ValueError("rank 0 refused to start")
            return chosen
        try:
            return self.share((choose(), False))[0]
        except (ValueError, OSError):
            self.share((None, True))
            raise

    def any(self, value: bool) -> bool:
        """Whether the value is true on any rank; every rank has to ask."""
        return not self.least(not value)

    def least(self, value: int) -> int:
        """The least of all ranks' values; every rank has to ask."""
        if self.count == 1:
            return value
        told = torch.tensor(int(value), dtype=torch.int64)
        dist.all_reduce(told, dist.ReduceOp.MIN, group=self.hosts)
        return int(told)

    @contextmanager
    def writer_first(self) -> Iterator[None]:
        """Have the writer go through this block before the others."""
        if not self.is_writer:
            self.wait()
        yield
        if self.is_writer:
            self.wait()

    def wait(self) -> None:
        """Go on when every rank has come here."""
        if self.count > 1:
            dist.barrier()


ALONE = Ranks()
_PATIENCE = timedelta(hours=2)  # while the writer downloads, the others wait


def own_device(asked: str | None) -> str | None:
    """The device to ask for in place of ``asked``: under torchrun, of GPUs, that of this process alone.

    To be called before anything touches CUDA, which else begins on the first GPU, in every process. Raises ValueError
    where there are more processes than GPUs.
    """
    if "LOCAL_RANK" not in os.environ or not torch.cuda.is_available():
        return asked
    if asked is not None and not asked.startswith("cuda"):
        return asked
    number, count = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
    if number >= count:
        raise ValueError(f"process {number} has no GPU of its own; there are {count}, so --nproc-per-node is {count}")
    torch.cuda.set_device(number)
    return f"cuda:{number}"


def join_ranks(device: torch.device) -> tuple[Ranks, torch.device]:
    """Join the processes that torchrun started, if it did: with NCCL, each on a GPU of its own, or with gloo.

    ``device`` is what was found for ``own_device``.
    """
    if "RANK" not in os.environ:
        return ALONE, device
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    if not dist.is_initialized():
        backend = "nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, timeout=_PATIENCE)
    return Ranks(dist.get_rank(), dist.get_world_size(), dist.new_group(backend="gloo", timeout=_PATIENCE)), device


def leave_ranks() -> None:
    """End what ``join_ranks`` began."""
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


def is_lost_rank(error: RuntimeError) -> bool:
    """Whether an error says that another rank has ended in the middle of what all do together."""
    return "RANK" in os.environ and (isinstance(error, dist.DistError) or "gloo" in str(error))


def distribute(model: nn.Module, ranks: Ranks, device: torch.device) -> nn.Module:
    """The model with gradients averaged over the ranks, and with BatchNorm over the batch of all of them.

    torch's synchronised BatchNorm runs on CUDA only; elsewhere it is ``SumOfRanksBatchNorm``.
    """
    if ranks.count == 1:
        return model
    if device.type == "cuda":
        nn.SyncBatchNorm.convert_sync_batchnorm(model)  # type: ignore[no-untyped-call]
    else:
        SumOfRanksBatchNorm.take_over(model)
    # Buffers are not broadcast at every step: synchronised ones are equal, and evaluation takes the writer's.
    return DistributedDataParallel(
        model, device_ids=[device.index] if device.type == "cuda" else None, broadcast_buffers=False
    )


class SumOfRanksBatchNorm(nn.BatchNorm2d):
    """BatchNorm whose mean and variance are those of the batches of all ranks together, on any device.

    Shapes: (B, C, H, W) -> (B, C, H, W). In eval mode it is BatchNorm.
    """

    @classmethod
    def take_over(cls, model: nn.Module) -> None:
        """Turn every BatchNorm of a model into this one, with the same parameters and buffers."""
        for module in model.modules():
            if type(module) is nn.BatchNorm2d:
                module.__class__ = cls

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        axes, values = (0, 2, 3), x.float()
        count = sum_over_ranks(torch.tensor(values.numel() / values.shape[1], device=x.device))
        mean = _Sum.apply(values.sum(axes)) / count
        centred = values - mean[:, None, None]
        variance = _Sum.apply((centred * centred).sum(axes)) / count
        self._remember(mean.detach(), variance.detach() * count / (count - 1))
        scale = self.weight * torch.rsqrt(variance + self.eps)
        return (centred * scale[:, None, None] + self.bias[:, None, None]).to(x.dtype)

    @torch.no_grad()
    def _remember(self, mean: Tensor, variance: Tensor) -> None:
        for running, value in ((self.running_mean, mean), (self.running_var, variance)):
            cast(Tensor, running).lerp_(value, self.momentum or 0.0)
        cast(Tensor, self.num_batches_tracked).add_(1)


class _Sum(torch.autograd.Function):
    """The sum over the ranks; what flows back to a rank is the sum of what all of them made of it."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        return sum_over_ranks(value.clone())

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return sum_over_ranks(gradient.clone())


def sum_over_ranks(value: Tensor) -> Tensor:
    """The sum of a tensor over all ranks, in place; the host does not wait for it."""
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(value)
    return value


def take_writers_buffers(model: nn.Module, ranks: Ranks) -> None:
    """Give every rank the BatchNorm statistics of the writer, so that all evaluate one model."""
    if ranks.count > 1:
        for buffer in model.buffers():
            dist.broadcast(buffer, src=0)


def compute_deterministically() -> None:
    """Have torch choose only operations that give the same bits every time, also on CUDA, before it starts there.

    It would also fill all memory that it takes anew, for whoever reads it before writing: nothing here does.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.backends.cudnn.benchmark = False
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
