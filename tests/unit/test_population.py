"""Who is drawn, what each client holds, and how a cohort is divided among workers."""

from __future__ import annotations

import numpy as np
import pytest

from federated.cohort import place
from federated.population import Population
from heliotrope.config import DirichletConfig
from heliotrope.data import Partition, partition
from heliotrope.errors import PartitionError
from tests.support import fresh_seed


def _parts(clients: int, seed: int) -> Partition:
    targets = np.random.default_rng(seed).integers(0, 10, 2000)
    cfg = DirichletConfig(name="dirichlet", clients=clients, alpha=0.3, min_size=1)
    return partition(cfg, targets, None, seed)


def test_a_cohort_is_drawn_without_repetition_and_the_same_again() -> None:
    seed = fresh_seed()
    population = Population(_parts(50, seed), 0.0, seed)
    for server_round in range(1, 20):
        cohort = population.draw(server_round, 12)
        assert cohort == sorted(set(cohort))
        assert len(cohort) == 12
        assert all(0 <= client < 50 for client in cohort)
        assert cohort == population.draw(server_round, 12)


def test_every_client_is_drawn_about_equally_often() -> None:
    seed = fresh_seed()
    population = Population(_parts(20, seed), 0.0, seed)
    drawn = np.zeros(20)
    for server_round in range(1000):
        drawn[population.draw(server_round, 5)] += 1
    assert abs(drawn - 250).max() < 6 * np.sqrt(1000 * 0.25 * 0.75)


@pytest.mark.parametrize("fraction", [0.0, 0.2, 0.9])
def test_held_out_examples_are_never_trained_on_and_none_is_lost(fraction: float) -> None:
    seed = fresh_seed()
    parts = _parts(40, seed)
    population = Population(parts, fraction, seed)
    for client in range(40):
        train, held = population.train_indices(client), population.holdout_indices(client)
        assert sorted([*train, *held]) == sorted(parts[client])
        assert len(train) == population.train_sizes([client])[0] >= 1
        assert len(held) <= fraction * len(parts[client])
        assert (client in population.evaluating()) == (len(held) > 0)


def test_a_client_without_examples_is_named() -> None:
    with pytest.raises(PartitionError, match="client 1 holds no examples, nor do 1 others"):
        Population(Partition(np.arange(5), np.array([0, 3, 3, 5, 5])), 0.0, 0)


@pytest.mark.parametrize("workers", [1, 2, 7])
def test_placement_gives_each_client_to_one_worker_and_balances_the_work(workers: int) -> None:
    generator = np.random.default_rng(fresh_seed())
    cohort = sorted(generator.choice(1000, 60, replace=False).tolist())
    costs = generator.integers(1, 500, 60).tolist()
    parts = place(costs, cohort, workers)
    assert len(parts) == workers
    assert sorted(client for part in parts for client in part) == cohort
    assert all(part == sorted(part) for part in parts)
    cost = dict(zip(cohort, costs, strict=True))
    loads = [sum(cost[client] for client in part) for part in parts]
    assert max(loads) - min(loads) <= max(costs)
