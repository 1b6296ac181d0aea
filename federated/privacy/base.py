"""What every choice of `federated/privacy` has: where its keys are, and what clients do for it."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar, NoReturn

from heliotrope.errors import ConfigError
from heliotrope.privacy.accountant import Spent
from heliotrope.privacy.keys import NoiseKeys
from heliotrope.privacy.mechanisms import GaussianMechanism

from ..aggregation import ClipNorm, UpdateTransform

__all__ = ["TRUSTED_SERVER", "ClientPrivacy", "ClippedSum", "no_common_account"]

TRUSTED_SERVER = "the server is trusted: it sees each client's update and adds the noise"
"""An assumption of a `ClippedSum`, unless secure aggregation keeps updates from the server."""


@dataclass(frozen=True)
class ClientPrivacy(NoiseKeys):
    """The keys of a kind of protection; a subclass says whom it protects (`unit`)."""

    key: ClassVar[str] = "federated.privacy"
    everyone: ClassVar[str] = "clients"
    equal_weights: ClassVar[bool] = True
    """Whether each client weighs 1 in a round's sum, whatever its examples."""

    @abstractmethod
    def assumptions(self) -> list[str]:
        """Return what the figure depends on, a sentence each."""

    def transforms(self) -> tuple[UpdateTransform, ...]:
        """Return what is done to each client's update for the server, attackers' too."""
        return ()

    def least_cohort(self, cohort: int, clients: int, rounds: int) -> int:  # noqa: ARG002
        """Return how many clients the smallest round has that is not left to chance."""
        return cohort

    def own_transforms(self, *, deployed: bool) -> tuple[UpdateTransform, ...]:  # noqa: ARG002
        """Return what each client does to its update by itself, `deployed` or simulated."""
        return ()


@dataclass(frozen=True)
class ClippedSum(ClientPrivacy):
    """The keys of a kind with a trusted server, which adds noise to the sum of clipped updates."""

    unit: ClassVar[str] = "client"

    def transforms(self) -> tuple[UpdateTransform, ...]:
        """Return what each client does to its update."""
        return (ClipNorm(self.clip),)

    def mechanism(
        self,
        cohort: int,
        clients: int,
        rounds: int,
        noise: float | None,
        before: Spent = (),
    ) -> GaussianMechanism:
        """Return the mechanism of a round of `cohort` of `clients`.

        `noise` is the multiplier of a run that goes on; None: as the keys say, for so many rounds
        beside what is spent `before`.
        """
        return self.with_noise(self.released(cohort, clients), rounds, noise, before)

    @abstractmethod
    def deviation(self, mechanism: GaussianMechanism) -> float:
        """Return the standard deviation of the noise on the sum, in units of the weights."""


def no_common_account(name: str) -> NoReturn:
    """Refuse statistics of all clients together where each client has an account of its own."""
    raise ConfigError(
        f"federated/privacy={name} has an account for each client, and data.fit=private charges "
        "all of them alike. Set data.fit=none, with which nothing is told, or federated/privacy="
        "central."
    )
