"""This process among those that ``torchrun`` started; a plain run is rank 0 of 1, and everything here does nothing."""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel


@dataclass(frozen=True)
class Ranks:
    """The number of this process and how many there are."""

    rank: int = 0
    count: int = 1

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

    def wait(self) -> None:
        """Go on when every rank has come here."""
        if self.count > 1:
            dist.barrier()


ALONE = Ranks()
_PATIENCE = timedelta(hours=2)  # while the writer downloads, the others wait


def join_ranks(device: torch.device) -> tuple[Ranks, torch.device]:
    """Join the processes that torchrun started, if it did: with NCCL, each on a GPU of its own, or with gloo."""
    if "RANK" not in os.environ:
        return ALONE, device
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    if not dist.is_initialized():
        backend = "nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, timeout=_PATIENCE)
    return Ranks(dist.get_rank(), dist.get_world_size()), device


def leave_ranks() -> None:
    """End what ``join_ranks`` began."""
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


def distribute(model: nn.Module, ranks: Ranks, device: torch.device) -> nn.Module:
    """The model with gradients averaged over the ranks and, on CUDA, with BatchNorm over the batch of all of them.

    torch's synchronised BatchNorm has no CPU version: there, each rank normalises with its own batch.
    """
    if ranks.count == 1:
        return model
    if device.type == "cuda":
        nn.SyncBatchNorm.convert_sync_batchnorm(model)  # type: ignore[no-untyped-call]
    # Buffers are not broadcast at every step: synchronised ones are equal, and evaluation takes the writer's.
    return DistributedDataParallel(
        model, device_ids=[device.index] if device.type == "cuda" else None, broadcast_buffers=False
    )


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
