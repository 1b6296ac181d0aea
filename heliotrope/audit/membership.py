"""Membership inference: telling whether a model was trained on an example.

Two attacks give each example a score, the higher the rather it is a member: the loss alone (Yeom et
al. 2018, arXiv:1709.01604), and the likelihood ratio of LiRA (Carlini et al. 2022,
arXiv:2112.03570), which compares with models that were trained with and without the example.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "RATES",
    "Attack",
    "Membership",
    "Rate",
    "attack_of",
    "confidences",
    "halves",
    "likelihood_ratios",
]

RATES = (0.001, 0.01)
"""Shares of false positives that an attacker may be content with."""

_CONFIDENCE = 0.95
_QUANTILE = 1.959964  # of the normal distribution, on both sides
_STEPS = 50  # of the bisection, which are more than a double has digits
_CLOSEST = 1e-15  # a probability to 1: that of a loss of 0, in float64
_LEAST_VARIANCE = 1e-12

_Array = NDArray[np.float64]


@dataclass(frozen=True)
class Rate:
    """How many members are found at a share of non-members that are taken for some.

    Parameters
    ----------
    false_positives
        The share, and below it how many `allowed` are of the non-members there are.
    found, low, high
        The share of members that are found, and its interval at 95 % (Clopper and Pearson).
    """

    false_positives: float
    allowed: int
    found: float
    low: float
    high: float


@dataclass(frozen=True)
class Attack:
    """How well an attack tells members from others.

    Parameters
    ----------
    name
        Of the attack.
    members, others
        How many of each there were.
    auc, low, high
        The probability that a member has a higher score than another example, half of it where
        they are equal; and its interval at 95 %, see `_interval`. 0.5 is chance.
    rates
        At few false positives.
    """

    name: str
    members: int
    others: int
    auc: float
    low: float
    high: float
    rates: tuple[Rate, ...]


@dataclass(frozen=True)
class Membership:
    """What attacks found; and the shadow models, and how often each went through its examples."""

    attacks: tuple[Attack, ...]
    shadows: int
    epochs: int


def attack_of(name: str, members: _Array, others: _Array) -> Attack:
    """Return how well scores tell `members`, [M], from `others`, [N]: one of each at least.

    A score that is no number counts as the lowest.
    """
    inside, outside = (np.nan_to_num(each, nan=-np.inf) for each in (members, others))
    if not (len(inside) and len(outside)):
        raise ValueError(f"{len(inside)} members and {len(outside)} others cannot be compared")
    auc, low, high = _interval(inside, outside)
    rates = tuple(_rate(inside, outside, share) for share in RATES)
    return Attack(name, len(inside), len(outside), auc, low, high, rates)


def _interval(inside: _Array, outside: _Array) -> tuple[float, float, float]:
    """Return the area under the curve, and its interval at 95 %.

    It is the union of two: that of the variance of the scores that were seen (DeLong et al. 1988),
    which has no width where these few do not overlap; and that of the areas which are not refuted
    (Newcombe 2006, doi:10.1002/sim.2324, method 5), which at 0.5 is the test of Mann and Whitney
    with its correction for continuity.
    """
    above = _placements(inside, outside)  # of each member, the share of others below it
    below = 1 - _placements(outside, inside)
    auc = float(above.mean())
    variance = sum(float(each.var(ddof=1)) / len(each) for each in (above, below) if len(each) > 1)
    spread = _QUANTILE * math.sqrt(variance)
    counts = len(inside), len(outside)
    low = min(auc - spread, _last_refuted(auc, *counts))
    high = max(auc + spread, 1 - _last_refuted(1 - auc, *counts))
    return auc, max(0.0, low), min(1.0, high)


def _last_refuted(auc: float, members: int, others: int) -> float:
    """Return the largest area below `auc` from which that is further than luck goes."""
    pairs, more = members * others, (members + others) / 2 - 1
    low, high = 0.0, auc
    for _ in range(_STEPS):
        area = (low + high) / 2
        ties = 1 + more * (1 - area) / (2 - area) + more * area / (1 + area)
        if auc - area - 0.5 / pairs > _QUANTILE * math.sqrt(area * (1 - area) * ties / pairs):
            low = area
        else:
            high = area
    return low


def _placements(values: _Array, among: _Array) -> _Array:
    """Return for each value which share of `among` lies below it, half of those that are equal."""
    ordered = np.sort(among)
    left = np.searchsorted(ordered, values, side="left")
    right = np.searchsorted(ordered, values, side="right")
    shares: _Array = (left + right) / (2 * len(ordered))
    return shares


def _rate(inside: _Array, outside: _Array, share: float) -> Rate:
    """Return how many members lie above all but `share` of the others."""
    from scipy.stats import beta  # here: it takes a second to import

    allowed = int(share * len(outside))
    threshold = np.sort(outside)[len(outside) - 1 - allowed]
    hits, count = int((inside > threshold).sum()), len(inside)
    edge = (1 - _CONFIDENCE) / 2
    low = float(beta.ppf(edge, hits, count - hits + 1)) if hits else 0.0
    high = float(beta.ppf(1 - edge, hits + 1, count - hits)) if hits < count else 1.0
    return Rate(share, allowed, hits / count, low, high)


def confidences(losses: _Array, *, probable: bool) -> _Array:
    """Return what LiRA takes for normally distributed: log(p / (1 - p)), where p = e^-loss.

    Where a loss is not `probable`, the negative logarithm of a probability, it is -loss.
    """
    if not probable:
        return -losses
    wrong = -np.expm1(-np.maximum(losses, 0.0))
    return -losses - np.log(np.maximum(wrong, _CLOSEST))


def likelihood_ratios(target: _Array, shadows: _Array, trained_on: NDArray[np.bool_]) -> _Array:
    """Return log N(t; mean, std of models trained with an example) - the same without it, [N].

    The standard deviations are those of all examples together, as Carlini et al. have it for few
    shadow models.

    Parameters
    ----------
    target
        The confidence of the attacked model in each example, [N].
    shadows
        That of each shadow model, [S, N].
    trained_on
        Which of them was trained with which example, [S, N]: some were and some were not.
    """
    inside, std_inside = _normal(shadows, trained_on)
    outside, std_outside = _normal(shadows, ~trained_on)
    density_in = -(((target - inside) / std_inside) ** 2) / 2 - math.log(std_inside)
    density_out = -(((target - outside) / std_outside) ** 2) / 2 - math.log(std_outside)
    return density_in - density_out


def _normal(shadows: _Array, chosen: NDArray[np.bool_]) -> tuple[_Array, float]:
    """Return each example's mean over the chosen models, [N], and the deviation of all from it."""
    values = np.ma.masked_array(np.nan_to_num(shadows), ~chosen)
    means = values.mean(axis=0)
    count = int(chosen.sum()) - int(chosen.any(axis=0).sum())
    squares = float(((values - means) ** 2).sum())
    return np.asarray(means.filled(0.0)), math.sqrt(max(squares / max(1, count), _LEAST_VARIANCE))


def halves(models: int, examples: int, generator: np.random.Generator) -> NDArray[np.bool_]:
    """Return which model is trained with which example, [S, N]: each example with half of them."""
    drawn = generator.random((models, examples)).argsort(axis=0)
    return np.asarray(drawn < models // 2)
