"""Which rows every step sees: a function of the seed and of where the run is, so nothing about it is ever saved."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch.utils.data import Sampler

Place = tuple[int, int]  # epoch and row
NO_ROW = -1  # stands in where the last rows of an epoch do not go round all ranks; it has nothing to learn from


class StepSampler(Sampler[list[Place]]):
    """The places of every step from ``first_step`` to ``last_step``, counted from 1, that this rank is dealt.

    Each epoch has an order of its own, the one that Trainer has for this seed. A step takes ``rows_per_step`` rows over
    all ranks, fewer at the end of an epoch; with ``drop_last`` there is no such step, and every epoch leaves out other
    rows. Every rank gets equally many places.
    """

    def __init__(
        self,
        num_rows: int,
        rows_per_step: int,
        seed: int,
        first_step: int,
        last_step: int,
        rank: int = 0,
        num_ranks: int = 1,
        drop_last: bool = False,
    ) -> None:
        self.num_rows = num_rows
        self.rows_per_step = rows_per_step
        self.seed = seed
        self.steps = range(first_step, last_step + 1)
        self.rank = rank
        self.num_ranks = num_ranks
        self.steps_per_epoch = num_rows // rows_per_step if drop_last else math.ceil(num_rows / rows_per_step)

    def __len__(self) -> int:
        return len(self.steps)

    def __iter__(self) -> Iterator[list[Place]]:
        epoch, order = -1, torch.empty(0)
        for step in self.steps:
            if (step - 1) // self.steps_per_epoch != epoch:
                epoch = (step - 1) // self.steps_per_epoch
                order = torch.randperm(self.num_rows, generator=torch.Generator().manual_seed(self.seed + epoch))
            first = (step - 1) % self.steps_per_epoch * self.rows_per_step
            rows = order[first : first + self.rows_per_step].tolist()
            dealt = rows[self.rank :: self.num_ranks]
            missing = math.ceil(len(rows) / self.num_ranks) - len(dealt)
            yield [(epoch, row) for row in dealt + [NO_ROW] * missing]
