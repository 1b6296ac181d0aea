"""The lower bound on epsilon from right guesses about canaries."""

from __future__ import annotations

import math

import numpy as np
import pytest

from heliotrope.audit.bound import bound_of, lower_bound, p_value
from heliotrope.errors import ConfigError


@pytest.mark.parametrize(
    ("canaries", "guesses", "correct", "epsilon"),
    [
        (1000, 100, 100, 3.4930),
        (1000, 100, 90, 1.6308),
        (1000, 1000, 600, 0.2975),
        (1000, 1000, 1000, 5.8091),
        (1000, 100, 50, 0.0),
        (10, 0, 0, 0.0),
    ],
)
def test_reference_values(canaries: int, guesses: int, correct: int, epsilon: float) -> None:
    assert lower_bound(canaries, guesses, correct) == pytest.approx(epsilon, abs=1e-4)


def test_all_right_is_known_in_closed_form() -> None:
    right = 0.05 ** (1 / 30)
    assert lower_bound(500, 30, 30) == pytest.approx(math.log(right / (1 - right)), abs=1e-9)


def test_delta_lowers_the_bound_and_the_theorems_sum_is_taken_as_it_is_written() -> None:
    bounds = [lower_bound(1000, 100, 95, delta) for delta in (0.0, 1e-6, 1e-4, 1e-2, 0.5)]
    assert bounds == sorted(bounds, reverse=True)
    assert bounds[-1] == 0
    m, r, v, epsilon, delta = 40, 12, 9, 1.2, 1e-3
    right = math.exp(epsilon) / (1 + math.exp(epsilon))
    mass = [math.comb(r, k) * right**k * (1 - right) ** (r - k) for k in range(r + 1)]
    worst = max(2 / i * sum(mass[v - i : v]) for i in range(1, v + 1))
    assert p_value(m, r, v, epsilon, delta) == pytest.approx(sum(mass[v:]) + delta * m * worst)


def test_a_bound_that_is_true_of_randomised_answers() -> None:
    """Answers that tell each coin with e^eps / (1 + e^eps) are eps-private, and nearly refuted."""
    generator, epsilon, found = np.random.default_rng(3), 1.5, []
    for _ in range(200):
        coins = generator.integers(0, 2, 600).astype(bool)
        right = generator.random(600) < 1 / (1 + math.exp(-epsilon))
        answers = np.where(right, coins, ~coins) + 0.0
        found.append(bound_of(answers, coins.tolist(), 0.0).epsilon)
    assert sum(bound > epsilon for bound in found) <= 0.05 * 200 + 3 * math.sqrt(0.05 * 200)
    assert np.median(found) > 1.0


def test_scores_that_say_nothing_refute_nothing() -> None:
    generator = np.random.default_rng(4)
    above = 0
    for _ in range(200):
        coins = generator.integers(0, 2, 300).astype(bool).tolist()
        above += bound_of(generator.standard_normal(300), coins, 0.0).epsilon > 0
    assert above <= 0.05 * 200 + 3 * math.sqrt(0.05 * 200)


def test_ties_infinity_and_nan() -> None:
    coins = [True, False] * 50
    assert bound_of([1.0] * 100, coins, 0.0).epsilon == 0  # in their order: half are right
    scores = np.where(coins, np.inf, -np.inf)
    assert bound_of(scores, coins, 0.0).epsilon > 2
    scores[:10] = np.nan
    assert bound_of(scores, coins, 0.0).epsilon > 2
    assert bound_of([math.nan] * 100, coins, 0.0).epsilon == 0
    assert bound_of([0.0, 1.0], [False, True], 0.0).epsilon == 0
    with pytest.raises(ConfigError, match=r"audit\.canaries"):
        bound_of([1.0], [True], 0.0)
    with pytest.raises(ValueError, match="guesses"):
        lower_bound(10, 11, 3)
