"""Which examples each of some clients trains on, step by step: the same for every pool and kind.

The clients advance in lockstep, step s of each together, sorted by their number of steps,
longest first, so that those at work are always the first ones. The rows of a plan are its
(step, client) pairs, step by step; a step has a row for each client at work, and as many more
as bring their number to the next power of two, so that few shapes occur.

All draws are hashes of (run seed, round, the client's identity): a client's batches depend neither
on who is planned with it nor on which other clients there are.

Shape legend: K clients, S steps of the longest, R rows, B largest batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from heliotrope.seeding import hashed, seed

from ..population import Population

__all__ = ["BatchPlan", "first_rows", "make_batch_plan", "row_seeds"]

_Ints = NDArray[np.int64]


@dataclass(frozen=True)
class BatchPlan:
    """The local steps of K clients.

    Parameters
    ----------
    clients
        Longest first, as all that follows.
    steps
        Of each client.
    seen
        Examples of each client's batches, with repetition.
    first
        Row of each step's first client, [S + 1].
    positions
        int64 [R, B]: examples in the training split; beyond a row's size, padding.
    sizes
        int64 [R]: 0 for a client that has no such step.
    seeds
        int64 [R]: of what the model draws in the step, such as dropout masks.
    """

    clients: tuple[int, ...]
    steps: tuple[int, ...]
    seen: tuple[int, ...]
    first: tuple[int, ...]
    positions: Tensor
    sizes: Tensor
    seeds: Tensor

    def rows(self, step: int) -> slice:
        """Return the rows of one step."""
        return slice(self.first[step], self.first[step + 1])

    @property
    def clients_of_rows(self) -> Tensor:
        """The place among `clients` of each row's client, int64 [R]."""
        first = torch.tensor(self.first)
        return torch.arange(self.first[-1]) - torch.repeat_interleave(first[:-1], first.diff())

    def finishing(self, step: int) -> slice:
        """Return the places of the clients whose last step this is."""
        working = [sum(done > number for done in self.steps) for number in (step, step + 1)]
        return slice(working[1], working[0])

    def batches(self) -> Iterator[tuple[Tensor, int]]:
        """Yield positions and seed of each step of a plan for one client."""
        for row, size in enumerate(self.sizes.tolist()):
            yield self.positions[row, :size], int(self.seeds[row])


def make_batch_plan(
    population: Population,
    cohort: Sequence[int],
    path: tuple[int, int],
    epochs: int,
    batch_size: int | None,
    max_steps: int | None = None,
) -> BatchPlan:
    """Plan the local epochs of `cohort`; `path` is (run seed, round).

    Each epoch visits a client's examples in an order of its own, its last batch may be smaller.
    None as batch size takes a client's examples whole; at most `max_steps` steps if given.
    """
    size_of = dict(zip(cohort, population.train_sizes(cohort), strict=True))
    steps_of = {
        client: epochs * -(-size // (batch_size or size)) for client, size in size_of.items()
    }
    clients = sorted(cohort, key=lambda client: (-steps_of[client], client))
    counts = np.array([size_of[client] for client in clients])
    batch = counts if batch_size is None else np.full_like(counts, batch_size)
    per_epoch = -(-counts // batch)
    total = np.minimum(epochs * per_epoch, max_steps or epochs * per_epoch[0])
    first = first_rows(total)

    step = np.repeat(np.arange(len(first) - 1), np.diff(first))
    client = np.arange(first[-1]) - first[step]
    mine = torch.from_numpy(population.train_examples(clients))
    # Padding repeats an example of the client itself: another's could be NaN, and so its own sum.
    width = int(np.minimum(batch, counts).max())
    own = mine[(np.cumsum(counts) - counts)[client]]
    positions = own[:, None].repeat(1, width)
    owner = np.repeat(np.arange(len(clients)), counts)
    index_in_client = np.arange(len(owner)) - np.repeat(np.cumsum(counts) - counts, counts)
    identities = torch.from_numpy(population.partition.identities[clients])
    for epoch in range(int((-(-total // per_epoch)).max())):
        keys = hashed(seed(path[0], "order", path[1], epoch), identities)
        order = _shuffled(keys, owner, index_in_client)
        when = epoch * per_epoch[owner] + index_in_client // batch[owner]
        wanted = when < total[owner]
        row = first[when[wanted]] + owner[wanted]
        positions[row, (index_in_client % batch[owner])[wanted]] = mine[order[wanted]]

    left = counts[client] - step % per_epoch[client] * batch[client]
    sizes = np.where(step < total[client], np.minimum(left, batch[client]), 0)
    return BatchPlan(
        clients=tuple(clients),
        steps=tuple(total.tolist()),
        seen=tuple(np.bincount(client, sizes, len(clients)).astype(np.int64).tolist()),
        first=tuple(first.tolist()),
        positions=positions,
        sizes=torch.from_numpy(sizes),
        seeds=row_seeds(path, identities, client, step),
    )


def row_seeds(path: tuple[int, int], identities: Tensor, client: _Ints, step: _Ints) -> Tensor:
    """Return the seed of each row, int64 [R], of the step of a client: its place among K."""
    keys = hashed(seed(path[0], "dropout", path[1]), identities)
    return hashed(keys[client], torch.from_numpy(step))


def first_rows(total: _Ints) -> _Ints:
    """Return the first row of each step, [S + 1], from the clients' steps, longest first."""
    working = np.searchsorted(-total, -np.arange(total[0]), side="left")
    padded = 1 << np.ceil(np.log2(working)).astype(np.int64)
    return np.concatenate([[0], np.cumsum(np.minimum(padded, len(total)))])


def _shuffled(keys: Tensor, owner: _Ints, index_in_client: _Ints) -> _Ints:
    """Return an order that keeps the owners together and shuffles within each by its key."""
    drawn = hashed(keys[owner], torch.from_numpy(index_in_client)).numpy()
    order = np.argsort(drawn)
    few = owner.astype(np.uint16) if owner[-1] < 1 << 16 else owner  # sorted by radix
    shuffled: _Ints = order[np.argsort(few[order], kind="stable")]
    return shuffled
