"""The order of the training examples: of the run and the epoch, not of the number of workers.

Every epoch has one permutation of all examples. Global batch `b` is its entries `b*B` to
`(b+1)*B`, the last one shorter; each rank takes a contiguous part of every global batch. So two
workers see together, step by step, what one worker sees alone.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from heliotrope.data import Split
from heliotrope.seeding import seed, torch_generator
from heliotrope.training import Batch

from .attempt import Place
from .mixup import mixed

__all__ = ["batches", "part_of", "permutation"]


def permutation(run_seed: int, epoch: int, examples: int) -> Tensor:
    """Return the order of epoch `epoch`, counted from 1: int64 [examples]."""
    return torch.randperm(examples, generator=torch_generator(run_seed, "order", epoch))


def part_of(count: int, place: Place) -> slice:
    """Return one rank's part of `count` things; parts differ by at most one and never overlap."""
    first = count * place.rank // place.world_size
    return slice(first, count * (place.rank + 1) // place.world_size)


def batches(
    train: Split,
    order: Tensor,
    batch_size: int,
    place: Place,
    run_seed: int,
    steps_before: int,
    first: int = 0,
    mixup: float = 0.0,
) -> Iterator[Batch]:
    """Yield one rank's part of each global batch of an epoch, also where the part is empty.

    DDP averages gradients over the ranks, so each rank divides its sum of losses by
    global batch size / world size: the average is then the exact mean over the global batch.
    `steps_before` is the number of steps done in earlier epochs, `first` in this one; `mixup` is
    the alpha of `mixed`, 0 for none.
    """
    starts = range(first * batch_size, len(order), batch_size)
    for number, start in enumerate(starts, start=first):
        whole = order[start : start + batch_size]
        part = part_of(len(whole), place)
        mine = whole[part]
        step = steps_before + number
        batch = Batch(
            inputs=train.inputs.index_select(0, mine),
            targets=train.targets.index_select(0, mine),
            divisor=len(whole) / place.world_size,
            seed=seed(run_seed, "dropout", step),
            first=part.start,
        )
        yield mixed(batch, train, whole, mixup, run_seed, step) if mixup else batch
