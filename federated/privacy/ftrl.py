"""DP-FTRL: noise that partly cancels from round to round, over clients who take part in turn.

Kairouz et al. 2021, "Practical and private (deep) learning without sampling or shuffling",
arXiv:2103.00039. In place of their tree, the noise is that of a matrix factorisation
(`CorrelatedSums`), which leaves less of it in the model. Nothing is gained by who is drawn, and so
nothing depends on how secretly or evenly that is done.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from heliotrope.errors import ConfigError
from heliotrope.privacy.mechanisms import CorrelatedSums, GaussianMechanism

from .base import TRUSTED_SERVER, ClippedSum

__all__ = ["CorrelatedNormals", "Ftrl"]


@dataclass(frozen=True)
class Ftrl(ClippedSum):
    """The keys of `federated/privacy=ftrl`; see `choices.ftrl`."""

    band: int

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.band < 1:
            raise ConfigError(
                f"{self.key}.band={self.band} must be 1 or more. With 1, rounds have independent "
                "noise."
            )

    def released(self, cohort: int, population: int) -> CorrelatedSums:
        """Return the mechanism of the rounds, with a noise multiplier of 1."""
        return CorrelatedSums(1.0, cohort, population, self.band)

    def least_cohort(self, cohort: int, clients: int, rounds: int) -> int:
        """Return how many clients the smallest round has: the last of a pass has the rest."""
        full, rest = divmod(clients, cohort)
        return rest if rest and rounds > full else cohort

    def of_everybody(self, population: int, noise: float) -> CorrelatedSums:
        """Return the mechanism of one sum over all, with noise independent of the rounds'."""
        return CorrelatedSums(noise, population, population, 1, "statistics")

    def deviation(self, mechanism: GaussianMechanism) -> float:
        """Return the standard deviation of the independent numbers that the noise is made of."""
        return mechanism.noise_multiplier * self.clip

    def assumptions(self) -> list[str]:
        """Return what the figure depends on, a sentence each."""
        turns = (
            "clients take part in turn, in an order that does not depend on their data, and again "
            "only after everybody else: as many rounds are between any two turns of a client"
        )
        return [
            TRUSTED_SERVER,
            turns,
            "neighbours differ in one client, who sends nothing: who the clients are is public",
            "only models are released: losses and evaluations carry no noise, and stay inside",
        ]


class CorrelatedNormals:
    """Sums of standard normal numbers of several generators, each times a factor."""

    def __init__(self, parts: Sequence[tuple[float, np.random.Generator]]) -> None:
        self._parts = parts

    def standard_normal(self, size: tuple[int, ...], /) -> NDArray[np.float64]:
        """Return the next numbers, float64 [*size]."""
        total: Any = np.zeros(size)
        for factor, generator in self._parts:
            total += factor * generator.standard_normal(size)
        return np.asarray(total)
