"""Local steps: every example once an epoch, the same whoever is planned with a client."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from federated.engine.batch_plan import BatchPlan, make_batch_plan
from federated.population import Population
from heliotrope.data import Partition
from tests.support import fresh_seed


def _population(sizes: list[int], held: float = 0.0) -> Population:
    indices = np.random.default_rng(fresh_seed()).permutation(sum(sizes))
    offsets = np.concatenate([[0], np.cumsum(sizes)])
    return Population(Partition(indices, offsets), held, fresh_seed())


def _of(plan: BatchPlan, client: int) -> list[list[int]]:
    """Return the batches of one client of a plan."""
    place = plan.clients.index(client)
    batches = []
    for step in range(plan.steps[place]):
        row = plan.first[step] + place
        batches.append(plan.positions[row, : plan.sizes[row]].tolist())
    return batches


def _flat(batches: list[list[int]]) -> list[int]:
    return [position for batch in batches for position in batch]


@pytest.mark.parametrize("batch_size", [1, 7, None])
def test_an_epoch_visits_each_example_once_in_an_order_of_its_own(batch_size: int | None) -> None:
    population = _population([25, 40])
    mine = sorted(population.train_indices(0))
    batches = _of(make_batch_plan(population, [0], (5, 1), 2, batch_size), 0)
    half = len(batches) // 2
    first, second = _flat(batches[:half]), _flat(batches[half:])
    assert sorted(first) == sorted(second) == mine
    assert first != second
    assert all(len(batch) == (batch_size or 25) for batch in batches[: half - 1])
    assert _flat(_of(make_batch_plan(population, [0], (5, 2), 2, batch_size), 0))[:25] != first
    assert _flat(_of(make_batch_plan(population, [0], (6, 1), 2, batch_size), 0))[:25] != first


@pytest.mark.parametrize("trial", range(10))
def test_a_client_is_planned_among_others_as_alone(trial: int) -> None:
    draw = np.random.default_rng(fresh_seed())
    population = _population(draw.integers(1, 60, 30).tolist(), draw.choice([0.0, 0.3]))
    cohort = sorted(draw.choice(30, draw.integers(1, 20), replace=False).tolist())
    epochs, batch_size = int(draw.integers(1, 4)), draw.choice([None, 1, 8, 100])
    limit = draw.choice([None, 1, 5])
    together = make_batch_plan(population, cohort, (1, 2), epochs, batch_size, limit)
    assert sorted(together.clients) == cohort
    assert list(together.steps) == sorted(together.steps, reverse=True)
    for place, client in enumerate(together.clients):
        alone = make_batch_plan(population, [client], (1, 2), epochs, batch_size, limit)
        assert _of(together, client) == _of(alone, client)
        assert together.steps[place] == alone.steps[0] == len(_of(alone, client))
        assert together.seen[place] == alone.seen[0] == sum(map(len, _of(alone, client)))
        rows = [together.first[step] + place for step in range(together.steps[place])]
        assert torch.equal(together.seeds[rows], alone.seeds)


def test_finished_clients_weigh_nothing_and_leave_at_their_last_step() -> None:
    population = _population([20, 3, 9])
    plan = make_batch_plan(population, [0, 1, 2], (0, 1), 1, 4)
    assert plan.clients == (0, 2, 1)
    assert plan.steps == (5, 3, 1)
    assert [plan.finishing(step) for step in range(5)] == [
        slice(2, 3),
        slice(2, 2),
        slice(1, 2),
        slice(1, 1),
        slice(0, 1),
    ]
    assert [plan.sizes[plan.rows(step)].tolist() for step in range(5)] == [
        [4, 4, 3],
        [4, 4],
        [4, 1],
        [4],
        [4],
    ]


def test_every_order_is_equally_likely() -> None:
    population = _population([3])
    orders: dict[tuple[int, ...], int] = {}
    for server_round in range(6000):
        ((positions, _),) = make_batch_plan(population, [0], (9, server_round), 1, None).batches()
        key = tuple(positions.tolist())
        orders[key] = orders.get(key, 0) + 1
    assert len(orders) == 6
    assert max(abs(count - 1000) for count in orders.values()) < 6 * (6000 * 5 / 36) ** 0.5
