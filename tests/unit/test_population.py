"""Who is drawn, what each client holds, and how a cohort is divided among workers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from federated.engine.batch_plan import make_batch_plan
from federated.pools.cohort_worker import assign_clients
from federated.population import Population
from heliotrope.config import chosen
from heliotrope.data import Partition, Traits, partition
from heliotrope.errors import PartitionError
from heliotrope.seeding import hash_counters, hash_ranks
from heliotrope.seeding import seed as draw_seed
from tests.support import fresh_seed


def _parts(clients: int, seed: int) -> Partition:
    targets = np.random.default_rng(seed).integers(0, 10, 2000)
    cfg = chosen("federated/partition", "dirichlet", clients=clients, alpha=0.3, min_size=1)
    return partition(cfg, Traits(len(targets), labels=targets), seed)


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


def _hospitals(keys: NDArray[Any], seed: int) -> tuple[Population, list[str]]:
    parts = partition(chosen("federated/partition", "natural"), Traits(len(keys), keys=keys), seed)
    return Population(parts, 0.3, seed), [str(key) for key in np.unique(keys)]


@pytest.mark.parametrize("numbered", [False, True])
def test_without_a_hospital_the_others_draw_what_they_drew(numbered: bool) -> None:
    """Its key is what a client is, its number changes: also from 10 to 9 as text or as number."""
    seed = fresh_seed()
    generator = np.random.default_rng(seed)
    keys = np.array([str(n) if numbered else f"hospital {n}" for n in range(30)])
    keys = generator.permutation(np.repeat(keys, generator.integers(2, 20, 30)))
    gone = keys[0]
    kept = np.flatnonzero(keys != gone)
    rest = keys[kept].astype(np.int64) if numbered else keys[kept]
    (all_of_them, names), (others, fewer) = _hospitals(keys, seed), _hospitals(rest, seed)

    for name in fewer:
        before, after = names.index(name), fewer.index(name)
        assert (all_of_them.train_indices(before) == kept[others.train_indices(after)]).all()
        assert (all_of_them.holdout_indices(before) == kept[others.holdout_indices(after)]).all()
        plans = [
            make_batch_plan(population, [client], (seed, 3), 2, 4)
            for population, client in ((all_of_them, before), (others, after))
        ]
        assert (plans[0].positions.numpy() == kept[plans[1].positions.numpy()]).all()
        assert (plans[0].seeds == plans[1].seeds).all()

    for server_round in range(40):
        for draw in (Population.draw, Population.draw_evaluating):
            whole = {names[client] for client in draw(all_of_them, server_round, 8)}
            without = {fewer[client] for client in draw(others, server_round, 8)}
            assert whole - without == whole & {str(gone)}
            assert len(without - whole) == len(whole & {str(gone)})


def test_a_population_that_grows_at_its_end_keeps_its_draws() -> None:
    seed = fresh_seed()
    offsets = np.arange(0, 5001, 10)
    small = Population(Partition(np.arange(4990), offsets[:-1]), 0.35, seed)
    large = Population(Partition(np.arange(5000), offsets), 0.35, seed)
    for server_round in range(20):
        drawn = large.draw(server_round, 100)
        assert set(drawn) - {499} <= set(small.draw(server_round, 100))
    assert (small.holdout_examples(range(499)) == large.holdout_examples(range(499))).all()


@pytest.mark.parametrize("size", [1, 10, 900, 990, 999, 1000])
def test_a_cohort_has_the_lowest_hashes_of_all(size: int) -> None:
    seed = fresh_seed()
    population = Population(Partition(np.arange(1000), np.arange(1001)), 0.0, seed)
    ranks = hash_ranks(draw_seed(seed, "cohort", 7), hash_counters(np.arange(1000)))
    assert population.draw(7, size) == sorted(np.argsort(ranks)[:size].tolist())


@pytest.mark.parametrize("fraction", [0.0, 0.2, 0.9])
def test_held_out_examples_are_never_trained_on_and_none_is_lost(fraction: float) -> None:
    seed = fresh_seed()
    parts = _parts(40, seed)
    population = Population(parts, fraction, seed)
    for client in range(40):
        train, held = population.train_indices(client), population.holdout_indices(client)
        assert sorted([*train, *held]) == sorted(parts[client])
        assert len(train) == population.train_sizes([client])[0] >= 1
        assert len(held) == population.holdout_sizes([client])[0] <= fraction * len(parts[client])
        assert (client in population.evaluating()) == (len(held) > 0)


def test_a_held_out_share_is_exact() -> None:
    """0.29 * 100 is a little less than 29 in floating point."""
    population = Population(Partition(np.arange(100), np.array([0, 100])), 0.29, 0)
    assert population.holdout_sizes([0]) == [29]
    assert len(population.holdout_indices(0)) == 29


@pytest.mark.parametrize(
    ("size", "remedies"),
    [(7, ("of 7 examples", "at least 0.1429")), (1, ("a single one", "fewer clients"))],
)
def test_a_held_out_share_that_leaves_nobody_an_example_is_refused(
    size: int, remedies: tuple[str, ...]
) -> None:
    parts = Partition(np.arange(5 * size), np.arange(6) * size)
    with pytest.raises(PartitionError, match=r"holdout_fraction=0\.14, but no client") as caught:
        Population(parts, 0.14, 0)
    assert all(remedy in str(caught.value) for remedy in remedies)
    if size == 7:
        assert Population(parts, 0.1429, 0).evaluating() == [0, 1, 2, 3, 4]


def test_a_client_without_examples_is_named() -> None:
    with pytest.raises(PartitionError, match="client 1 holds no examples, nor do 1 others"):
        Population(Partition(np.arange(5), np.array([0, 3, 3, 5, 5])), 0.0, 0)


def test_clients_that_are_left_out_are_not_drawn_and_the_others_are_as_before() -> None:
    seed = fresh_seed()
    population = Population(_parts(50, seed), 0.0, seed)
    fewer = Population(_parts(50, seed), 0.0, seed, [3, 17])
    assert fewer.training() == [client for client in range(50) if client not in (3, 17)]
    for server_round in range(1, 20):
        cohort = fewer.draw(server_round, 12)
        assert len(cohort) == 12
        first = population.draw(server_round, 14)
        assert (
            set(first) - {3, 17} >= set(cohort) >= set(population.draw(server_round, 12)) - {3, 17}
        )
    assert fewer.draw(1, 48) == fewer.training()


@pytest.mark.parametrize("workers", [1, 2, 7])
def test_placement_gives_each_client_to_one_worker_and_balances_the_work(workers: int) -> None:
    generator = np.random.default_rng(fresh_seed())
    cohort = sorted(generator.choice(1000, 60, replace=False).tolist())
    costs = generator.integers(1, 500, 60).tolist()
    parts = assign_clients(costs, cohort, workers)
    assert len(parts) == workers
    assert sorted(client for part in parts for client in part) == cohort
    assert all(part == sorted(part) for part in parts)
    cost = dict(zip(cohort, costs, strict=True))
    loads = [sum(cost[client] for client in part) for part in parts]
    assert max(loads) - min(loads) <= max(costs)
