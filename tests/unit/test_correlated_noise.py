"""DP-FTRL: sensitivity and noise are those of the dense matrices, and clients take turns."""

from __future__ import annotations

import itertools
import math
from contextlib import closing
from pathlib import Path

import dp_accounting
import numpy as np
import pytest
from dp_accounting.rdp import RdpAccountant

from federated.engine.context import assemble, divide
from federated.population import Population
from federated.privacy.ftrl import Ftrl
from federated.protection.ftrl import CorrelatedNoise
from heliotrope.data import Partition, load
from heliotrope.errors import ConfigError
from heliotrope.privacy.accountant import RunningBound, epsilon, noise_for, rounds_within
from heliotrope.privacy.ledger import Ledger
from heliotrope.privacy.mechanisms import CorrelatedSums, noise_weights
from heliotrope.tasks import task_of
from tests.support import compose

_BANDS = [1, 2, 3, 7, 40]


def _matrices(band: int, rounds: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return A, B and C of prefix sums A = B C, float64 [rounds, rounds]."""
    prefix = np.tril(np.ones((rounds, rounds)))
    weights = noise_weights(band, rounds)
    lags = np.subtract.outer(np.arange(rounds), np.arange(rounds))
    inverse = np.where(lags >= 0, weights[np.maximum(lags, 0)], 0.0)
    return prefix, prefix @ inverse, np.linalg.inv(inverse)


@pytest.mark.parametrize("band", _BANDS)
@pytest.mark.parametrize("separation", [1, 3, 5, 12, 20])
def test_the_sensitivity_is_that_of_the_dense_matrix(band: int, separation: int) -> None:
    """For whoever begins when, and sends whatever it likes each time."""
    rounds = 12
    prefix, b, c = _matrices(band, rounds)
    np.testing.assert_allclose(b @ c, prefix, atol=1e-12)
    assert (c.T @ c >= -1e-12).all()  # so that to send the same each time is the worst
    mechanism = CorrelatedSums(1.0, 10, 10 * separation - 3, band)
    assert mechanism.separation == separation
    generator = np.random.default_rng(band)
    for uses in range(1, rounds + 1):
        worst = 0.0
        for begin in range(min(separation, uses)):
            turns = c[:uses, begin:uses:separation]
            worst = max(worst, float(np.linalg.norm(turns.sum(axis=1))))
            sent = generator.standard_normal((turns.shape[1], 4))
            sent /= np.linalg.norm(sent, axis=1, keepdims=True)
            assert np.linalg.norm(turns @ sent) <= mechanism.sensitivity(uses) + 1e-12
        assert mechanism.sensitivity(uses) == pytest.approx(worst, rel=1e-12)


def test_independent_noise_and_everybody_each_round_is_the_plain_gaussian_mechanism() -> None:
    found = epsilon([(CorrelatedSums(5.0, 10, 10, 1), 100)], 1e-5)
    assert found.value == pytest.approx(9.9973, abs=1e-3)
    assert found.rdp == pytest.approx(10.7255, abs=1e-3)
    assert found.accountant == "PLD"


def test_less_is_told_than_by_a_tree_of_the_same_noise() -> None:
    """The reference is dp-accounting's tree over 1000 rounds, in each of which others take part.

    A leaf is in 10 whole nodes, and moves the tree by 10^(1/2); here the sensitivity is 1.45.
    """
    tree = RdpAccountant(neighboring_relation=dp_accounting.NeighboringRelation.REPLACE_SPECIAL)
    tree.compose(dp_accounting.SingleEpochTreeAggregationDpEvent(5.0, 1000))
    assert tree.get_epsilon(1e-5) == pytest.approx(2.8137, abs=1e-3)
    as_one = CorrelatedSums(5.0 / math.sqrt(10), 1, 1000, 1)
    assert epsilon([(as_one, 1000)], 1e-5).rdp == pytest.approx(2.8137, abs=1e-3)
    ours = CorrelatedSums(5.0, 1, 1000, 16)
    assert epsilon([(ours, 1000)], 1e-5).rdp < 2.8137 / 2
    told = np.cumsum(np.cumsum(noise_weights(16, 1000)) ** 2)  # variances of prefix sums
    in_nodes = [bin(round_).count("1") for round_ in range(1, 1001)]
    ratio = ours.sensitivity(1000) ** 2 * told.mean() / (10 * np.mean(in_nodes))
    assert ratio < 0.52, "the model's variance, at the same epsilon"


def test_what_is_spent_grows_with_the_rounds_of_a_stream_and_streams_compose() -> None:
    first, other = CorrelatedSums(3.0, 5, 20, 4, "a"), CorrelatedSums(3.0, 5, 20, 4, "b")
    one = epsilon([(first, 6)], 1e-3)
    assert epsilon([(first, 2), (first, 4)], 1e-3) == one
    both = epsilon([(first, 6), (other, 6)], 1e-3)
    sensitivity = math.sqrt(2) * first.sensitivity(6)
    plain = epsilon([(CorrelatedSums(3.0 / sensitivity, 1, 1, 1), 1)], 1e-3)
    assert both.value == pytest.approx(plain.value, abs=1e-3)
    bound = RunningBound(first, 1e-3, [(first, 2)])
    assert bound.after(4) == pytest.approx(one.rdp, rel=1e-9)
    assert bound.after(0) < bound.after(1) < bound.after(4)
    within = rounds_within(first, 100, 1e-3, 4.0, [(first, 2)])
    assert epsilon([(first, 2 + within)], 1e-3).value <= 4.0
    assert epsilon([(first, 3 + within)], 1e-3).value > 4.0


def test_the_least_noise_for_a_target_is_found() -> None:
    noise = noise_for(CorrelatedSums(1.0, 5, 50, 8), 40, 1e-3, 3.0)
    assert epsilon([(CorrelatedSums(noise, 5, 50, 8), 40)], 1e-3).value <= 3.0
    assert epsilon([(CorrelatedSums(noise - 5e-3, 5, 50, 8), 40)], 1e-3).value > 3.0


def test_clients_take_part_once_in_a_pass_and_always_as_many_rounds_apart() -> None:
    sizes = np.arange(0, 24)
    population = Population(Partition(np.arange(23), sizes), 0.0, 3, idle=[7])
    cohorts = [population.draw_in_turn(number, 5) for number in range(1, 16)]
    assert [len(cohort) for cohort in cohorts[:5]] == [5, 5, 5, 5, 2]
    everybody = sorted(itertools.chain.from_iterable(cohorts[:5]))
    assert everybody == [client for client in range(23) if client != 7]
    assert cohorts[5:10] == cohorts[:5] == cohorts[10:]
    assert all(cohort == sorted(cohort) for cohort in cohorts)
    other = Population(Partition(np.arange(23), sizes), 0.0, 4, idle=[7])
    assert [other.draw_in_turn(number, 5) for number in range(1, 6)] != cohorts[:5]


def _protection(path: Path, band: int, *more: str) -> CorrelatedNoise:
    settings = ("model.hidden=[4]", "federated.rounds=12", "federated.privacy.noise_multiplier=2")
    run = compose("federated", "federated/privacy=ftrl", *settings, *more)
    dataset = load(run.data, run.seed)
    context = assemble(run, task_of(dataset), dataset.train, divide(run, dataset))
    return CorrelatedNoise(Ftrl(0.5, 2.0, None, None, band), run, context, path)


@pytest.mark.parametrize("band", _BANDS)
def test_the_noise_in_the_model_has_the_covariance_of_the_matrix(band: int, tmp_path: Path) -> None:
    rounds, size = 12, 20_000
    with closing(_protection(tmp_path / "privacy.jsonl", band)) as protection:
        protection.begin(0, {})
        each = [protection._generator(n).standard_normal((size,)) for n in range(1, rounds + 1)]
        again = protection._generator(7).standard_normal((size,))
    assert np.array_equal(again, each[6])  # from the seeds alone
    told = np.cumsum(each, axis=0)
    _, b, _ = _matrices(band, rounds)
    wanted = b @ b.T
    deviations = np.sqrt(np.diag(wanted))
    # The deviation of a covariance of n draws is (s_ij^2 + s_ii s_jj)^(1/2) / n^(1/2).
    allowed = 5 * np.sqrt(wanted**2 + np.outer(deviations, deviations) ** 2) / math.sqrt(size)
    assert (abs(told @ told.T / size - wanted) < allowed).all()


def test_a_run_goes_on_with_its_stream_and_one_that_may_differ_begins_another(
    tmp_path: Path,
) -> None:
    path, changed = tmp_path / "privacy.jsonl", ("federated.client_timeout=60",)

    def numbers(protection: CorrelatedNoise, server_round: int) -> np.ndarray:
        return protection._generator(server_round).standard_normal((100,))

    with closing(_protection(path, 4)) as protection:
        protection.begin(0, {})
        for number in (1, 2, 3):
            protection.draw(number)
        before, stream = numbers(protection, 4), protection._mechanism.stream
    with closing(_protection(path, 4)) as protection:
        protection.begin(2, {})
        protection.draw(3)
        assert protection._mechanism.stream == stream
        assert np.array_equal(numbers(protection, 4), before)
        assert sum(count for _, count in protection._ledger.spent) == 3
    with closing(_protection(path, 4, *changed)) as protection:
        protection.begin(2, {})
        for number in (3, 4):
            protection.draw(number)
        other = protection._mechanism
        assert other.stream != stream
        first = protection._generator(3)
        assert [weight for weight, _ in first._parts] == [1.0], "nothing of the other's noise"
        assert abs(np.corrcoef(before, numbers(protection, 4))[0, 1]) < 0.5
    with closing(_protection(path, 4)) as protection:
        protection.begin(4, {})
        assert protection._mechanism.stream.endswith("from round 5")
        assert dict(protection._ledger.spent) == {
            CorrelatedSums(2.0, 10, 10, 4, stream): 3,
            other: 2,
        }


def test_a_ledger_holds_both_kinds_of_mechanisms(tmp_path: Path) -> None:
    mechanism = CorrelatedSums(2.0, 10, 100, 4, "a from round 1")
    with closing(Ledger(tmp_path / "privacy.jsonl")) as ledger:
        ledger.charge("round 1 a", mechanism)
        ledger.charge("round 2 a", mechanism)
        saved = ledger.saved()
    with closing(Ledger(tmp_path / "privacy.jsonl")) as ledger:
        assert dict(ledger.spent) == {mechanism: 2}
    with closing(Ledger(tmp_path / "other.jsonl")) as ledger:
        ledger.restore(saved)
        assert dict(ledger.spent) == {mechanism: 2}


@pytest.mark.parametrize("band", [0, -1])
def test_a_band_of_nothing_is_refused(band: int) -> None:
    with pytest.raises(ConfigError, match=rf"federated.privacy.band={band}"):
        Ftrl(1.0, 1.0, None, None, band)
