"""Client-level differential privacy by a trusted server: what is clipped, and what noise is added.

McMahan et al. 2018, arXiv:1710.06963. A client's update is how far its trained parameters went. It
is clipped to a norm C, and counts once whatever its examples. Gaussian noise is added to the sum,
which is divided by the number of clients that a round is expected to have, not by those it had.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import ClassVar, cast

import numpy as np
import torch
from torch import Tensor

from heliotrope.errors import ConfigError
from heliotrope.privacy.accountant import Mechanism, Sampling

from ..aggregation import ClipNorm, UpdateTransform
from .base import ClientPrivacy

__all__ = ["Central"]


@dataclass(frozen=True)
class Central(ClientPrivacy):
    """The keys of `federated/privacy=central`; see `choices.central`."""

    sampling: str

    unit: ClassVar[str] = "client"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.sampling not in ("poisson", "fixed"):
            raise ConfigError(
                f"{self.key}.sampling={self.sampling}: no other than poisson and fixed can be "
                f"accounted for. Set {self.key}.sampling=poisson."
            )

    def transforms(self) -> tuple[UpdateTransform, ...]:
        """Return what each client does to its update."""
        return (ClipNorm(self.clip),)

    def mechanism(self, cohort: int, clients: int, rounds: int, noise: float | None) -> Mechanism:
        """Return the mechanism of a round of `cohort` of `clients`.

        `noise` is the multiplier of a run that goes on; None: as the keys say.
        """
        mechanism = Mechanism(cast(Sampling, self.sampling), 1.0, cohort, clients)
        return self.with_noise(mechanism, rounds, noise)

    def reach(self, mechanism: Mechanism) -> int:
        """Return how many clips the sums of neighbours can be apart."""
        return 2 if mechanism.adjacency == "replace-one" else 1

    def deviation(self, mechanism: Mechanism) -> float:
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
            "the server is trusted: it sees each client's update and adds the noise",
            drawn,
            released,
        ]


def noisy_mean(
    total: Mapping[str, Tensor],
    trained: Collection[str],
    deviation: float,
    cohort: int,
    generator: np.random.Generator,
) -> dict[str, Tensor]:
    """Return (total + noise) / cohort of the `trained` parameters, and zeros of everything else.

    Parameters
    ----------
    total
        The sum of updates, float64 [*shape] each, by name.
    trained
        One name of each trained parameter. Nothing else is released, such as buffers.
    deviation
        Standard deviation of the noise on each number of the sum.
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
        noise = torch.from_numpy(generator.standard_normal(tuple(value.shape)))
        found[name] = noise.mul_(deviation).add_(value).div_(cohort)
    return found
