"""The order of the training examples: of the run and the epoch, not of the number of workers.

Every epoch has one permutation of all examples. Global batch `b` is its entries `b*B` to
`(b+1)*B`, the last one shorter; each rank takes a contiguous part of every global batch. So two
workers see together, step by step, what one worker sees alone.

With record-level privacy a step draws each example by itself, with probability B/N (Poisson
sampling), which is what its noise is accounted for; an epoch has as many steps, ceil(N/B).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate

import torch
from torch import Tensor

from heliotrope.data import Examples
from heliotrope.seeding import seed, torch_generator
from heliotrope.training.loop import TrainingBatch
from heliotrope.training.noisy_steps import poisson_batches

from ..topology import Topology

__all__ = ["batches", "permutation", "poisson_draws", "rank_slice"]


def permutation(run_seed: int, epoch: int, examples: int) -> Tensor:
    """Return the order of epoch `epoch`, counted from 1: int64 [examples]."""
    return torch.randperm(examples, generator=torch_generator(run_seed, "order", epoch))


def poisson_draws(
    run_seed: int, steps: range, examples: int, expected: int, stream: Sequence[str] = ()
) -> list[Tensor]:
    """Return the positions that each of `steps` draws, int64 in their order; perhaps none.

    Each of the `examples` is drawn by itself, with probability `expected / examples`. `steps` are
    counted from the beginning of the run. Draws of another `stream` are independent.
    """
    keys = (seed(run_seed, "poisson batch", step, *stream) for step in steps)
    return poisson_batches(keys, examples, expected)


def rank_slice(count: int, topology: Topology) -> slice:
    """Return one rank's part of `count` things; parts differ by at most one and never overlap."""
    first = count * topology.rank // topology.world_size
    return slice(first, count * (topology.rank + 1) // topology.world_size)


def batches(
    train: Examples,
    weights: Tensor,
    order: Tensor,
    sizes: int | list[int],
    topology: Topology,
    run_seed: int,
    steps_before: int,
    first: int = 0,
    change: Callable[[TrainingBatch, Tensor, int], TrainingBatch] | None = None,
) -> Iterator[TrainingBatch]:
    """Yield one rank's part of each global batch of an epoch, also where the part is empty.

    DDP averages gradients over the ranks, so each rank divides its sum of losses by the weight of
    the global batch / world size: the average is then the exact mean over the global batch.
    `weights` are those of all examples, int64 [N], and `order` the positions of an epoch, which is
    cut into global batches of `sizes`: all alike but the last, or one for each.
    `steps_before` is the number of steps done in earlier epochs, `first` in this one. `change`
    makes another of each batch, from the positions of its global batch and the step's number.
    """
    sums = torch.cat([torch.zeros(1, dtype=torch.int64), weights[order].cumsum(0)]).numpy()
    wholes = torch.split(order.to(train.device), sizes)
    starts = [0, *accumulate(map(len, wholes))]
    mine = (whole[rank_slice(len(whole), topology)] for whole in wholes[first:])
    for number, fields in enumerate(train.batches(mine), start=first):
        start, whole = starts[number], wholes[number]
        part = rank_slice(len(whole), topology)
        step = steps_before + number
        weight = int(sums[start + len(whole)] - sums[start])
        batch = TrainingBatch(
            fields=fields,
            weight=int(sums[start + part.stop] - sums[start + part.start]),
            divisor=max(1, weight) / topology.world_size,
            seed=seed(run_seed, "dropout", step),
            first=part.start,
        )
        yield batch if change is None else change(batch, whole, step)
