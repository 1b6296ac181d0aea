"""The keys that every choice of a Gaussian mechanism has, and what follows from them."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar, TypeVar

from heliotrope.errors import ConfigError
from heliotrope.privacy.accountant import Spent, noise_for
from heliotrope.privacy.mechanisms import (
    LEAST_NOISE,
    MOST_NOISE,
    GaussianMechanism,
    Mechanism,
)

__all__ = ["NoiseKeys", "RecordKeys"]

_M = TypeVar("_M", bound=GaussianMechanism)
_FEWEST = 10  # participants for whom delta has a default, of at most 0.08


@dataclass(frozen=True)
class NoiseKeys:
    """How much is clipped, how much noise is added, and what may be spent.

    A subclass says whom it protects (`unit`), what it calls all of those (`everyone`), and where
    its keys are (`key`). Raises `ConfigError` for values that promise nothing.
    """

    clip: float
    noise_multiplier: float | None
    delta: float | None
    target_epsilon: float | None

    key: ClassVar[str]
    unit: ClassVar[str]
    everyone: ClassVar[str]

    def __post_init__(self) -> None:
        for name in ("clip", "noise_multiplier", "target_epsilon"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ConfigError(f"{self.key}.{name}={value:g} must be above 0, and a number.")
        noise = self.noise_multiplier
        if noise is not None and not LEAST_NOISE <= noise <= MOST_NOISE:
            raise ConfigError(
                f"{self.key}.noise_multiplier={noise:g} is beyond what epsilon can be computed "
                f"for, {LEAST_NOISE:g} to {MOST_NOISE:g}. Set one such as 1."
            )
        if self.noise_multiplier is None and self.target_epsilon is None:
            raise ConfigError(
                f"{self.key}.noise_multiplier is not set. Set it, such as 1, or "
                f"{self.key}.target_epsilon, from which it follows."
            )

    def delta_for(self, count: int) -> float:
        """Return the delta for so many; `ConfigError` if it promises too little."""
        if self.delta is None:
            if count < _FEWEST:
                raise ConfigError(
                    f"{self.key}.delta=null has no default for {count} of the {self.everyone}: "
                    f"{count}^-1.1 is {_default(count):.2g}, and a promise that may fail with such "
                    f"a probability says little. Set {self.key}.delta, such as 1e-5."
                )
            return _default(count)
        if self.delta == count == 1:
            raise ConfigError(f"{self.key}.delta=1 promises nothing. Set it lower, such as 1e-5.")
        if not 0 < self.delta <= 1 / count:
            remedy = "=null for {count}^-1.1" if count >= _FEWEST else ", such as 1e-5"
            raise ConfigError(
                f"{self.key}.delta={self.delta:g} must lie above 0 and be at most 1/{count}="
                f"{1 / count:g}: with more, to publish the data of one of the {count} "
                f"{self.everyone} would count as private. Set {self.key}.delta"
                f"{remedy.format(count=count)}."
            )
        return self.delta

    def released(self, cohort: int, population: int) -> GaussianMechanism:
        """Return the mechanism of a release, with a noise multiplier of 1."""
        return Mechanism("poisson", 1.0, cohort, population)

    def of_everybody(self, population: int, noise: float) -> GaussianMechanism:
        """Return the mechanism of one sum over all, with noise of this multiplier.

        Neighbours are those of `released`, so that both compose. Raises `ConfigError` where each
        has an account of its own.
        """
        return replace(self.released(population, population), noise_multiplier=noise)

    def uses(self, releases: int, cohort: int, population: int) -> int:  # noqa: ARG002
        """Return how many of so many releases concern one participant, in the worst case."""
        return releases

    def with_noise(
        self, mechanism: _M, releases: int, noise: float | None, before: Spent = ()
    ) -> _M:
        """Return `mechanism` with its noise for so many releases.

        `noise` is the multiplier of a run that goes on; None: as the keys say. `before` is what is
        spent beside the releases.
        """
        noise = noise or self.noise_multiplier
        if noise is None:
            assert self.target_epsilon is not None
            delta = self.delta_for(mechanism.population)
            try:
                target, spent = self.target_epsilon, tuple(before)
                noise = noise_for(mechanism, releases, delta, target, spent)
            except ConfigError as error:
                raise ConfigError(f"{self.key}.{error}") from error
        return replace(mechanism, noise_multiplier=noise)


@dataclass(frozen=True)
class RecordKeys(NoiseKeys):
    """The keys of DP-SGD (Abadi et al. 2016, arXiv:1607.00133), wherever its examples lie."""

    unit: ClassVar[str] = "record"
    everyone: ClassVar[str] = "training examples"

    def mechanism(
        self, batch: int, examples: int, steps: int, noise: float | None, before: Spent = ()
    ) -> Mechanism:
        """Return the mechanism of a step that expects `batch` of `examples`, of so many `steps`.

        `noise` is the multiplier of a run that goes on; None: as the keys say, beside what is
        spent `before`.
        """
        expected = min(batch, examples)
        return self.with_noise(Mechanism("poisson", 1.0, expected, examples), steps, noise, before)


def _default(count: int) -> float:
    """Return a delta that is below one in `count`."""
    return float(count**-1.1)
