"""Adaptive clipping: the clip follows a quantile of the norms, told by one noisy bit a client.

Andrew et al. 2021, "Differentially private learning with adaptive clipping", arXiv:1905.03871.
Notation of its Algorithm 1: the clip C, the quantile gamma, the rate eta_C, the cohort m, the noise
z of the round as a whole, z_Delta of the updates, and sigma_b of the sum of bits. A bit b is 1 if
an update was *not* clipped; centred, b - 1/2, one client moves their sum by 1/2.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from heliotrope.errors import ConfigError
from heliotrope.privacy.mechanisms import GaussianMechanism

from ..aggregation import UpdateTransform
from .central import Central

__all__ = ["Adaptive", "update_noise"]

_HIGHEST = 700.0  # exponent of a float64 that is finite


def update_noise(noise: float, count_noise: float) -> float | None:
    """Return z_Delta = (z^-2 - z_b^-2)^-1/2, with which sum and count make a mechanism of noise z.

    `count_noise` is z_b: sigma_b in how far neighbours' counts can be apart. (Theorem 1.) None if
    the count alone tells more than `noise` allows.
    """
    left = noise**-2 - count_noise**-2
    return None if left <= 0 else left**-0.5


@dataclass(frozen=True)
class Adaptive(Central):
    """The keys of `federated/privacy=adaptive`; see `choices.adaptive`."""

    quantile: float
    clip_learning_rate: float
    count_noise: float | None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.quantile < 1:
            raise ConfigError(
                f"{self.key}.quantile={self.quantile:g} must lie between 0 and 1: it is the share "
                "of updates that the clip leaves alone."
            )
        for name in ("clip_learning_rate", "count_noise"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ConfigError(f"{self.key}.{name}={value:g} must be above 0, and a number.")

    def transforms(self) -> tuple[UpdateTransform, ...]:
        """Return nothing: clients are told the clip of each round."""
        return ()

    def count_deviation(self, cohort: int) -> float:
        """Return sigma_b, the standard deviation of the noise on the sum of bits."""
        return cohort / 20 if self.count_noise is None else self.count_noise

    def update_multiplier(self, mechanism: GaussianMechanism) -> float:
        """Return z_Delta of a mechanism of noise z; `ConfigError` if the bits leave no room.

        A client who comes or goes moves the bits' sum by 1/2; where one is replaced, by 1.
        """
        noise, cohort = mechanism.noise_multiplier, mechanism.cohort
        reach = self.reach(mechanism) / 2
        found = update_noise(noise, self.count_deviation(cohort) / reach)
        if found is None:
            least = math.ceil(200 * noise * reach) / 100  # twice: updates get 1.15 z then
            raise ConfigError(
                f"{self.key}.count_noise={self.count_deviation(cohort):g} on the number of clients "
                f"that were not clipped tells more than {self.key}.noise_multiplier={noise:g} "
                f"allows for all of a round. Choose {self.key}.count_noise={least:g}, or another "
                f"above {noise * reach:.4g}; the more clients a round has, the less it matters."
            )
        return found

    def deviation(self, mechanism: GaussianMechanism, clip: float | None = None) -> float:
        """Return the standard deviation of the noise on the sum, where updates have `clip`."""
        clip = self.clip if clip is None else clip
        return self.update_multiplier(mechanism) * self.reach(mechanism) * clip

    def next_clip(self, clip: float, unclipped: float) -> float:
        """Return C exp(-eta_C (b - gamma)): shorter where more than gamma were left alone.

        Where the noise on the share is too large, that may be infinite or 0, with which no round
        can be done.
        """
        exponent = -self.clip_learning_rate * (unclipped - self.quantile)
        return clip * math.exp(exponent) if exponent < _HIGHEST else math.inf

    def assumptions(self) -> list[str]:
        """Return what the figure depends on, a sentence each."""
        counted = "the noisy share of clients that were not clipped is released too, and charged"
        return [*super().assumptions(), counted]
