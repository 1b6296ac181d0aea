"""Gaussian mechanisms: what a release adds noise to, and what it must hardly tell apart.

Each has a cohort of a population, a noise multiplier, and `event`, which gives dp-accounting's
description of so many uses of it together.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any, ClassVar, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from heliotrope.privacy.lines import count_of

__all__ = [
    "LEAST_NOISE",
    "MOST_NOISE",
    "Adjacency",
    "CorrelatedSums",
    "GaussianMechanism",
    "Mechanism",
    "Sampling",
    "fields_of",
    "mechanism_of",
    "noise_weights",
]

LEAST_NOISE, MOST_NOISE = 1e-9, 1e8
"""Noise multipliers that accountants can compute with: less promises nothing to anybody."""

Sampling = Literal["poisson", "fixed", "none"]
_SAMPLINGS = get_args(Sampling)
Adjacency = Literal["add-or-remove-one", "replace-one", "replace-special"]


@dataclass(frozen=True)
class Mechanism:
    """A sum with Gaussian noise, over participants who are drawn anew each time.

    Parameters
    ----------
    sampling
        `poisson`: each of `population` takes part with probability `cohort / population`;
        neighbours have one participant more or less. `fixed`: exactly `cohort` of them, drawn
        without replacement; in neighbours one participant is another. `none`: each release is of
        one participant alone, who is known, and whose data are others in neighbours.
    noise_multiplier
        Standard deviation of the noise, in how far neighbours' sums can be apart.
    cohort
        How many take part, with `poisson` in expectation.
    population
        How many there are to be drawn.
    """

    sampling: Sampling
    noise_multiplier: float
    cohort: int
    population: int

    noise_unit: ClassVar[str] = "the sensitivity"

    @property
    def adjacency(self) -> Adjacency:
        """What neighbours are: data that the mechanism's result must hardly tell apart."""
        return "add-or-remove-one" if self.sampling == "poisson" else "replace-one"

    def event(self, dp: Any, uses: int) -> Any:
        """Return what `uses` of it are for dp-accounting, the module `dp`."""
        noise = dp.GaussianDpEvent(self.noise_multiplier)
        if self.noise_multiplier == 0:
            once = dp.NonPrivateDpEvent()
        elif self.sampling == "none":
            once = noise
        elif self.sampling == "fixed":
            once = dp.SampledWithoutReplacementDpEvent(self.population, self.cohort, noise)
        else:
            once = dp.PoissonSampledDpEvent(self.cohort / self.population, noise)
        return dp.SelfComposedDpEvent(once, uses)


@dataclass(frozen=True)
class CorrelatedSums:
    """Sums with noise that partly cancels from one to the next, over participants in turn.

    DP-FTRL by a banded inverse of the square-root factorisation: the prefix sums A x of sums x are
    told as B (C x + z) with independent Gaussian z, A = B C, where C^-1 is Toeplitz with the
    `noise_weights`. C x + z is one Gaussian mechanism, also where x depends on what was told
    before, since C is lower triangular. (Denisov et al. 2022, arXiv:2202.08312, theorem 2.1;
    Kalinin et al. 2025, arXiv:2505.12128.) Everybody takes part once in `separation` sums, always
    in the same order. In neighbours, one participant sends nothing.

    Parameters
    ----------
    noise_multiplier
        Standard deviation of z, in the norm that what a participant sends has at most.
    cohort
        How many take part in a sum.
    population
        How many take part in turn.
    band
        How many of z are in a sum; with 1, sums have independent noise.
    stream
        A name of z: sums of other streams have independent noise, and begin anew.
    """

    noise_multiplier: float
    cohort: int
    population: int
    band: int
    stream: str = ""

    sampling: ClassVar[str] = "in turn"
    adjacency: ClassVar[Adjacency] = "replace-special"

    @property
    def noise_unit(self) -> str:
        """What the noise multiplier is in, for messages."""
        return f"the clip, correlated over {self.band} rounds"

    @property
    def separation(self) -> int:
        """How many sums a participant's turns are apart."""
        return -(-self.population // self.cohort)

    def sensitivity(self, uses: int) -> float:
        """Return how far the C x of neighbours can be apart after so many sums, in that norm.

        Columns of C have no negative inner products, so the worst that a participant can do is to
        send the same each time; and of those who are `separation` apart, the first columns are the
        longest, since C is Toeplitz: the others are these, cut off.
        """
        return _sensitivity(self.band, self.separation, uses)

    def event(self, dp: Any, uses: int) -> Any:
        """Return what the first `uses` sums are together for dp-accounting, the module `dp`."""
        return dp.GaussianDpEvent(self.noise_multiplier / self.sensitivity(uses))


GaussianMechanism = Mechanism | CorrelatedSums


def noise_weights(band: int, count: int) -> NDArray[np.float64]:
    """Return how much of z_t, z_{t-1}, ... is in the noise of sum t: the first column of C^-1.

    The first `band` coefficients of (1 - x)^(1/2), and zeros, [count].
    """
    weights = np.zeros(count)
    weights[0] = 1.0
    for lag in range(1, min(band, count)):
        weights[lag] = weights[lag - 1] * (lag - 1.5) / lag
    return weights


@lru_cache(maxsize=256)
def _sensitivity(band: int, separation: int, uses: int) -> float:
    column = _column(band, 1 << max(uses - 1, 1).bit_length())[:uses]
    total = np.zeros(uses)
    for turn in range(0, uses, separation):
        total[turn:] += column[: uses - turn]
    return math.sqrt(float(total @ total))


@lru_cache(maxsize=16)
def _column(band: int, count: int) -> NDArray[np.float64]:
    """Return the first column of C, [count]: the power series of 1 / (C^-1's)."""
    weights = noise_weights(band, min(band, count))[1:]
    column = np.zeros(count)
    column[0] = 1.0
    for row in range(1, count):
        recent = column[max(0, row - len(weights)) : row][::-1]
        column[row] = -(weights[: len(recent)] @ recent)
    return column


_KINDS: dict[str, type[GaussianMechanism]] = {"correlated": CorrelatedSums}


def fields_of(mechanism: GaussianMechanism) -> dict[str, Any]:
    """Return a mechanism as JSON can hold it; of a `Mechanism`, the fields alone."""
    kind = next((name for name, each in _KINDS.items() if isinstance(mechanism, each)), None)
    return asdict(mechanism) | ({} if kind is None else {"kind": kind})


def mechanism_of(fields: Mapping[str, Any]) -> GaussianMechanism:
    """Return what `fields_of` gave.

    Raises `TypeError`, `KeyError` or `ValueError` if it is nothing of the kind.
    """
    given = dict(fields)
    kind = given.pop("kind", None)
    found = Mechanism(**given) if kind is None else _KINDS[kind](**given)
    drawn = count_of(found.cohort, 1) <= count_of(found.population, 1)
    noise = found.noise_multiplier
    noisy = type(noise) in (int, float) and (noise == 0 or LEAST_NOISE <= noise <= MOST_NOISE)
    if isinstance(found, CorrelatedSums):
        known = count_of(found.band, 1) > 0 and isinstance(found.stream, str)
    else:
        known = found.sampling in _SAMPLINGS
    if not (drawn and noisy and known):
        raise ValueError(f"{given} is no mechanism")
    return found
