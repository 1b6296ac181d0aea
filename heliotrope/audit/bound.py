"""A lower bound on epsilon from canaries of one run (Steinke et al. 2023, arXiv:2305.08846).

Fair coins have decided which of m canaries took part. An auditor who sees what was released guesses
r of the coins. If training is (epsilon, delta)-differentially private for each canary, the number
of right guesses is hardly above that of r coins that fall right with probability e^epsilon / (1 +
e^epsilon): Theorem 5.2. So many right guesses refute a small epsilon.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from heliotrope.errors import ConfigError

__all__ = ["Bound", "Guesses", "bound_of", "lower_bound", "p_value"]

_SHARES = (1 / 8, 1 / 4, 1 / 2, 1.0)  # of all canaries, that are guessed: fixed before any score
_STEPS = 50  # of the bisection, which are more than a double has digits


def p_value(canaries: int, guesses: int, correct: int, epsilon: float, delta: float) -> float:
    """Return how probable at least `correct` right guesses are, at most, under (epsilon, delta).

    Theorem 5.2: P[V >= v] <= P[X >= v] + 2 m delta max_i P[v > X >= v - i] / i, where X counts
    right ones of r independent guesses.
    """
    from scipy.stats import binom  # here: it takes a second to import

    right = 1 / (1 + math.exp(-epsilon))
    tail = float(binom.sf(correct - 1, guesses, right))
    if not correct or not delta:
        return min(1.0, tail)
    below = np.cumsum(binom.pmf(np.arange(correct - 1, -1, -1), guesses, right))
    steepest = float((below / np.arange(1, correct + 1)).max())
    return min(1.0, tail + 2 * canaries * delta * steepest)


def lower_bound(
    canaries: int, guesses: int, correct: int, delta: float = 0.0, confidence: float = 0.95
) -> float:
    """Return the epsilon that so many right guesses refute: the true one is larger, or luck was.

    `guesses` must have been fixed before the coins were looked at. Luck alone goes beyond with a
    probability of at most 1 - `confidence`. 0 if nothing is refuted.
    """
    if not 0 <= correct <= guesses <= canaries:
        raise ValueError(f"{correct} of {guesses} guesses cannot be right of {canaries} canaries")
    luck = 1 - confidence
    if p_value(canaries, guesses, correct, 0.0, delta) > luck:
        return 0.0
    low, high = 0.0, 1.0
    while p_value(canaries, guesses, correct, high, delta) <= luck:
        low, high = high, 2 * high
    for _ in range(_STEPS):
        middle = (low + high) / 2
        if p_value(canaries, guesses, correct, middle, delta) <= luck:
            low = middle
        else:
            high = middle
    return low


@dataclass(frozen=True)
class Guesses:
    """Some guesses, those right, and the epsilon that they refute by themselves."""

    guesses: int
    correct: int
    epsilon: float


@dataclass(frozen=True)
class Bound:
    """A lower bound on epsilon.

    Parameters
    ----------
    epsilon
        The largest of those `tried`, which holds with `confidence` for all of them together.
    delta, confidence
        At which delta, and how surely.
    canaries, included
        How many there are, and how many of them took part.
    tried
        For each number of guesses what they refute, each at its share of 1 - `confidence`.
    """

    epsilon: float
    delta: float
    confidence: float
    canaries: int
    included: int
    tried: tuple[Guesses, ...]


def bound_of(
    scores: ArrayLike, included: Sequence[bool], delta: float, confidence: float = 0.95
) -> Bound:
    """Return the bound that scores of canaries give: the higher, the rather one took part.

    Half of the guesses say of the highest scores that they took part, half of the lowest that they
    did not. The numbers of guesses that are tried are fixed shares of all canaries, and divide what
    luck may do between them (a union bound). Canaries of one score are taken in their order, which
    knows nothing of the coins; a score that is no number says nothing and stands in the middle.

    Raises `ConfigError` if there are fewer than two canaries.
    """
    values, took_part = np.asarray(scores, dtype=np.float64), np.asarray(included, dtype=np.bool_)
    count = len(values)
    if values.shape != took_part.shape or values.ndim != 1:
        raise ValueError(f"{values.shape} scores of {took_part.shape} canaries")
    if count < 2:
        raise ConfigError(f"{count} canaries give no bound. Set audit.canaries=1000.")
    finite = np.isfinite(values)
    middle = float(np.median(values[finite])) if finite.any() else 0.0
    ranked = np.argsort(-np.where(np.isnan(values), middle, values), kind="stable")
    halves = sorted({max(1, int(count * share) // 2) for share in _SHARES})
    each = 1 - (1 - confidence) / len(halves)
    tried = []
    for half in halves:
        right = int(took_part[ranked[:half]].sum() + (~took_part[ranked[-half:]]).sum())
        found = lower_bound(count, 2 * half, right, delta, each)
        tried.append(Guesses(2 * half, right, found))
    best = max(guesses.epsilon for guesses in tried)
    return Bound(best, delta, confidence, count, int(took_part.sum()), tuple(tried))
