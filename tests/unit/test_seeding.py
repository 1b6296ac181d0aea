"""Seeds are the same everywhere and for ever, and leave the process-wide generators alone."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from heliotrope.seeding import (
    hash_counters,
    hash_ranks,
    hashed,
    hashed_number,
    isolated_rng,
    numpy_generator,
    ranked,
    seed,
    torch_generator,
    wrapped,
)
from tests.support import fresh_seed, global_random_state_untouched


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ((0,), 8482559467159178675),
        ((7, "init"), 6275149518961096009),
        ((7, "order", 3, 12), 6743607266594946966),
        ((7, "order", "3", 12), 7912228228438373620),
        ((2**80, "x"), 1970733522544724796),
    ],
)
def test_seeds_never_change(path: tuple[int | str, ...], value: int) -> None:
    """Another value here means that no earlier run can be resumed or repeated."""
    assert seed(*path) == value


def test_generators_start_from_the_seed() -> None:
    assert torch_generator(7, "noise", 1).initial_seed() == seed(7, "noise", 1)
    ours = numpy_generator(7, "noise", 1).bit_generator.random_raw(3)
    assert ours.tolist() == np.random.PCG64(seed(7, "noise", 1)).random_raw(3).tolist()


def test_nearby_paths_have_unrelated_seeds() -> None:
    start = fresh_seed()
    paths = itertools.product(range(start, start + 5), ("order", "dropout"), range(20), range(20))
    seeds = [seed(*path) for path in paths]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= value < 2**63 for value in seeds)
    # As many ones as zeros in each bit, within five standard deviations.
    ones = np.array([[value >> bit & 1 for bit in range(63)] for value in seeds]).mean(axis=0)
    assert np.abs(ones - 0.5).max() < 5 * 0.5 / len(seeds) ** 0.5


def test_numbers_from_numpy_name_the_same_stream() -> None:
    assert seed(np.int64(7), "order", np.int32(3)) == seed(7, "order", 3)


def test_a_part_that_is_no_name_is_refused() -> None:
    with pytest.raises(TypeError):
        seed(7, 0.5)  # type: ignore[arg-type]


def test_the_quick_forms_of_a_hash_give_its_numbers() -> None:
    key = wrapped(seed(fresh_seed(), "key") * 3)
    counters = torch.arange(200)
    slow = hashed(key, counters)
    assert [hashed_number(key, n) for n in range(200)] == slow.tolist()
    quick = ranked(torch.tensor(key), counters[7:107])
    assert torch.equal(quick >> 33, slow[7:107] >> 33)


def test_ranks_by_hash_are_those_of_the_hashes() -> None:
    generator = np.random.default_rng(fresh_seed())
    identities = generator.integers(-(2**63), 2**63 - 1, 70_000)  # of more than two blocks
    key = seed(fresh_seed(), "key")
    ranks = hash_ranks(key, hash_counters(identities))
    slow = hashed(key, torch.from_numpy(identities)).numpy().view(np.uint64)
    assert ((ranks >> np.uint64(33)) == (slow >> np.uint64(33))).all()


def test_streams_depend_on_nothing_but_their_path() -> None:
    def draw() -> list[float]:
        return [
            *numpy_generator(3, "a", 1).random(4),
            *torch.rand(4, generator=torch_generator(3, "a", 1)).tolist(),
        ]

    before = draw()
    torch.manual_seed(fresh_seed())
    np.random.seed(fresh_seed())  # noqa: NPY002 - the state that must not matter
    numpy_generator(3, "a", 2).random(1000)
    assert draw() == before


def test_generators_leave_the_global_state_alone() -> None:
    with global_random_state_untouched():
        numpy_generator(fresh_seed(), "a").random(100)
        torch.rand(100, generator=torch_generator(fresh_seed(), "a"))


def test_isolated_draws_are_seeded_and_leave_no_trace() -> None:
    with global_random_state_untouched():
        with isolated_rng(5):
            inside = torch.rand(10)
        with isolated_rng(5):
            again = torch.rand(10)
    assert torch.equal(inside, again)
    assert torch.equal(inside, torch.rand(10, generator=torch.Generator().manual_seed(5)))


def test_isolated_draws_leave_no_trace_after_an_error() -> None:
    def fail() -> None:
        with isolated_rng(5):
            torch.rand(10)
            raise KeyError

    with global_random_state_untouched(), pytest.raises(KeyError):
        fail()
