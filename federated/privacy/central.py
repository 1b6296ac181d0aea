"""Client-level differential privacy by a trusted server: what is clipped, and what noise is added.

McMahan et al. 2018, arXiv:1710.06963. A client's update is how far its trained parameters went. It
is clipped to a norm C, and counts once whatever its examples. Gaussian noise is added to the sum,
which is divided by the number of clients that a round is expected to have, not by those it had.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, cast

import numpy as np
import torch
from torch import Tensor

from heliotrope.errors import ConfigError
from heliotrope.privacy.mechanisms import GaussianMechanism, Mechanism, Sampling

from .base import TRUSTED_SERVER, ClippedSum

__all__ = ["Central", "Normals", "noisy_mean"]


@dataclass(frozen=True)
class Central(ClippedSum):
    """The keys of `federated/privacy=central`; see `choices.central`."""

    sampling: str

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.sampling not in ("poisson", "fixed"):
            raise ConfigError(
                f"{self.key}.sampling={self.sampling}: no other than poisson and fixed can be "
                f"accounted for. Set {self.key}.sampling=poisson."
            )

    def released(self, cohort: int, population: int) -> Mechanism:
        """Return the mechanism of a round, with a noise multiplier of 1."""
        return Mechanism(cast(Sampling, self.sampling), 1.0, cohort, population)

    def reach(self, mechanism: GaussianMechanism) -> int:
        """Return how many clips the sums of neighbours can be apart."""
        return 2 if mechanism.adjacency == "replace-one" else 1

    def deviation(self, mechanism: GaussianMechanism) -> float:
        """Return the standard deviation of the noise on the sum, in units of the weights."""
        return mechanism.noise_multiplier * self.reach(mechanism) * self.clip

    def assumptions(self) -> list[str]:
        """Return what the figure depends on, a sentence each."""
        drawn = (
            "each client is drawn by itself, with the same probability, and who was is not told"
            if self.sampling == "poisson"
            else "cohorts are drawn uniformly, and who was drawn is not told"
        )
        released = (
            "only models are released: losses and evaluations carry no noise, and stay inside"
        )
        return [
            TRUSTED_SERVER,
            drawn,
            released,
        ]


class Normals(Protocol):
    """What noise is drawn from, such as a NumPy generator."""

    def standard_normal(self, size: tuple[int, ...], /) -> Any:
        """Return an array, float64 [*size], of which each number has mean 0."""


def noisy_mean(
    total: Mapping[str, Tensor],
    trained: Collection[str],
    deviation: float,
    cohort: int,
    generator: Normals,
) -> dict[str, Tensor]:
    """Return (total + noise) / cohort of the `trained` parameters, and zeros of everything else.

    Parameters
    ----------
    total
        The sum of updates, float64 [*shape] each, by name.
    trained
        One name of each trained parameter. Nothing else is released, such as buffers.
    deviation
        Standard deviation of the noise on each number of the sum, if the generator's is 1.
    cohort
        The number of clients that a round is expected to have.
    generator
        Of the noise, which is drawn in the order of the names.
    """
    found = {}
    for name, value in total.items():
        if name not in trained:
            found[name] = torch.zeros_like(value)
            continue
        noise = torch.from_numpy(np.asarray(generator.standard_normal(tuple(value.shape))))
        found[name] = noise.mul_(deviation).add_(value).div_(cohort)
    return found
