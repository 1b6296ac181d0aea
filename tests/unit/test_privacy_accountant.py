"""Epsilon of published and independently computed settings; calibration and budgets."""

from __future__ import annotations

import logging
import math

import pytest

from distributed.privacy.dpsgd import DpSgd
from heliotrope.errors import ConfigError
from heliotrope.privacy import accountant
from heliotrope.privacy.accountant import (
    Mechanism,
    RunningBound,
    epsilon,
    noise_for,
    rounds_within,
)

# cohort, population, noise, steps, delta: PLD and RDP, beside Opacus' PRV accountant.
_POISSON = [
    (256, 60000, 1.1, 14062, 1e-5, 2.3817, 2.5966),
    (64, 60000, 1.0, 9370, 1e-5, 0.4936, 0.8034),
    (100, 3400, 1.0, 1500, 1 / 3400, 5.9684, 6.6974),
    (100, 1000, 1.0, 100, 1e-3, 4.7844, 5.6551),
    (1, 1, 5.0, 100, 1e-5, 9.9973, 10.7255),
    (5000, 763430, 1.0, 5000, 763430**-1.1, 3.1238, 3.3790),
]


@pytest.mark.parametrize(("cohort", "clients", "noise", "steps", "delta", "pld", "rdp"), _POISSON)
def test_epsilon_is_that_of_the_reference_table(
    cohort: int, clients: int, noise: float, steps: int, delta: float, pld: float, rdp: float
) -> None:
    mechanism = Mechanism("poisson", noise, cohort, clients)
    found = epsilon([(mechanism, steps)], delta)
    assert found.accountant == "PLD"
    assert found.value == pytest.approx(pld, abs=1e-3)
    assert found.rdp == pytest.approx(rdp, abs=1e-3)
    assert RunningBound(mechanism, delta).after(steps) == pytest.approx(rdp, abs=1e-3)


def test_fixed_cohorts_are_another_mechanism() -> None:
    found = epsilon([(Mechanism("fixed", 1.0, 100, 1000), 100)], 1e-3)
    assert found.accountant == "RDP"
    assert found.value == pytest.approx(10.8154, abs=1e-3)


def test_mechanisms_of_two_adjacencies_are_not_composed() -> None:
    both = [(Mechanism("fixed", 1.0, 1, 10), 1), (Mechanism("poisson", 1.0, 1, 10), 1)]
    with pytest.raises(ValueError, match="replace-one"):
        epsilon(both, 1e-3)


def test_without_noise_epsilon_is_infinite_and_without_rounds_zero() -> None:
    silent = Mechanism("poisson", 0.0, 1, 10)
    assert epsilon([(silent, 1)], 1e-3).value == math.inf
    assert RunningBound(silent, 1e-3).after(1) == math.inf
    assert epsilon([(silent, 0)], 1e-3).value == 0


def test_a_running_bound_goes_on_from_what_was_spent() -> None:
    first, second = Mechanism("poisson", 1.0, 10, 100), Mechanism("poisson", 2.0, 10, 100)
    bound = RunningBound(second, 1e-3, [(first, 5)]).after(7)
    assert bound == pytest.approx(epsilon([(first, 5), (second, 7)], 1e-3).rdp, rel=1e-9)


def test_the_least_noise_for_a_target_is_found() -> None:
    mechanism = Mechanism("poisson", 1.0, 10, 1000)
    noise = noise_for(mechanism, 1000, 1e-5, 3.0)
    assert noise == pytest.approx(0.8136, abs=2e-4)
    assert epsilon([(Mechanism("poisson", noise, 10, 1000), 1000)], 1e-5).value <= 3.0
    less = Mechanism("poisson", noise - 2e-4, 10, 1000)
    assert epsilon([(less, 1000)], 1e-5).value > 3.0


@pytest.mark.parametrize(
    ("cohort", "population", "rounds", "target"), [(10, 100, 20, 8.0), (100, 1000, 100, 10.8)]
)
def test_the_least_noise_of_fixed_cohorts_is_found(
    cohort: int, population: int, rounds: int, target: float
) -> None:
    noise = noise_for(Mechanism("fixed", 1.0, cohort, population), rounds, 1e-3, target)
    for less, fits in ((0.0, True), (2e-4, False)):
        mechanism = Mechanism("fixed", noise - less, cohort, population)
        assert (epsilon([(mechanism, rounds)], 1e-3).value <= target) == fits


def test_a_budget_says_how_many_rounds_there_are() -> None:
    mechanism = Mechanism("fixed", 1.0, 10, 100)
    left = rounds_within(mechanism, 50, 1e-3, 5.0, [(mechanism, 3)])
    assert epsilon([(mechanism, 3 + left)], 1e-3).value <= 5.0
    assert epsilon([(mechanism, 4 + left)], 1e-3).value > 5.0
    assert rounds_within(mechanism, 2, 1e-3, 100.0) == 2
    assert rounds_within(mechanism, 50, 1e-3, 0.01) == 0


@pytest.mark.parametrize("found", ["0.0.2", "0.5.1", "1.0"])
def test_another_dp_accounting_is_refused_by_name(
    found: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(accountant, "version", lambda _: found)
    with pytest.raises(ConfigError, match=rf"dp-accounting {found}.*attrs>=22,<24"):
        epsilon([(Mechanism("poisson", 1.7, 3, 11), 1)], 1e-3)


def test_noise_that_protects_nobody_is_counted_by_rdp_in_little_memory() -> None:
    hardly_any = Mechanism("poisson", 1e-3, 10, 100)  # by PLD: a table of 38 GiB

    spent = epsilon([(hardly_any, 60)], 1e-3)

    assert spent.accountant == "RDP"
    assert 1e5 < spent.value == spent.rdp < math.inf


@pytest.mark.parametrize("target", [1e3, 1e6])
def test_noise_for_an_epsilon_that_promises_nothing_is_found_at_once(target: float) -> None:
    mechanism = Mechanism("poisson", 1.0, 10, 10)
    noise = noise_for(mechanism, 3, 0.08, target)
    assert target / 2 < epsilon([(Mechanism("poisson", noise, 10, 10), 3)], 0.08).rdp <= target


def test_a_target_that_no_noise_reaches_is_refused_with_its_key() -> None:
    keys = DpSgd(1.0, None, 1e-6, 1e-9)
    with pytest.raises(ConfigError, match=r"^distributed\.privacy\.target_epsilon=1e-09 .* 41 rel"):
        keys.mechanism(32, 1294, 41, None)


def test_accounting_leaves_the_root_logger_without_a_handler(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    epsilon([(Mechanism("poisson", 0.05, 5, 20), 3)], 0.037)  # RDP warns that it leaves out orders
    assert logging.getLogger().handlers == []


def test_noise_leaves_room_for_what_is_spent_beside_the_rounds() -> None:
    mechanism, target = Mechanism("poisson", 1.0, 20, 200), 1.0
    before = ((Mechanism("poisson", 4.6, 200, 200), 1),)  # about half of it
    alone = epsilon(before, 1e-3)
    assert 0.45 < alone.value < alone.rdp < target
    noise = noise_for(mechanism, 20, 1e-3, target, before)
    for multiplier, fits in ((noise, True), (noise - 0.01, False)):
        rounds = (Mechanism("poisson", multiplier, 20, 200), 20)
        assert (epsilon([*before, rounds], 1e-3).value <= target) == fits
