"""The local steps of clients whose examples are protected: each step draws them anew.

The number of steps is that of local epochs, ceil(n / batch size) each; which examples a step has
is drawn for each example by itself (Poisson sampling), so that steps may have none, and a client's
steps together some of its examples twice and others never.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from heliotrope.seeding import hashed_number, seed
from heliotrope.training.noisy_steps import poisson_batches

from ..population import Population
from ..privacy.record import local_steps
from .batch_plan import BatchPlan, first_rows, row_seeds

__all__ = ["make_poisson_plan"]


def make_poisson_plan(
    population: Population,
    cohort: Sequence[int],
    path: tuple[int, int],
    epochs: int,
    batch_size: int | None,
    max_steps: int | None = None,
    stream: Sequence[str] = (),
) -> BatchPlan:
    """Plan the local epochs of `cohort`, as `make_batch_plan` does, with steps of random sizes.

    Each example is drawn with probability batch size / n, by the hash of (run seed, round,
    `stream`, the client's identity, step, its place among the client's examples); None takes all,
    each time.
    """
    sizes = dict(zip(cohort, population.train_sizes(cohort), strict=True))
    steps_of = {client: local_steps(n, epochs, batch_size) for client, n in sizes.items()}
    clients = sorted(cohort, key=lambda client: (-steps_of[client], client))
    total = np.array([steps_of[client] for client in clients])
    total = np.minimum(total, max_steps or total[0])
    counts = [sizes[client] for client in clients]
    mine = torch.split(torch.from_numpy(population.train_examples(clients)), counts)
    identities = population.partition.identities[clients]

    key = seed(path[0], "poisson batch", path[1], *stream)
    drawn = []
    for identity, steps, own in zip(identities.tolist(), total.tolist(), mine, strict=True):
        keys = (hashed_number(hashed_number(key, identity), step) for step in range(steps))
        places = poisson_batches(keys, len(own), batch_size or len(own))
        drawn.append([own[chosen] for chosen in places])

    first = first_rows(total)
    step = np.repeat(np.arange(len(first) - 1), np.diff(first))
    client = np.arange(first[-1]) - first[step]
    rows = [
        drawn[who][number] if number < total[who] else mine[who][:0]
        for who, number in zip(client.tolist(), step.tolist(), strict=True)
    ]
    row_sizes = torch.tensor([len(row) for row in rows])
    # Padding repeats an example of the client itself, as in other plans.
    width = max(1, int(row_sizes.max()))
    positions = torch.stack([own[0] for own in mine])[client][:, None].repeat(1, width)
    for row, chosen in zip(positions, rows, strict=True):
        row[: len(chosen)] = chosen
    return BatchPlan(
        clients=tuple(clients),
        steps=tuple(total.tolist()),
        seen=tuple(sum(map(len, batches)) for batches in drawn),
        first=tuple(first.tolist()),
        positions=positions,
        sizes=row_sizes,
        seeds=row_seeds(path, torch.from_numpy(identities), client, step),
    )
