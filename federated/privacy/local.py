"""Local differential privacy: each client clips its own update and adds noise, for any server.

What leaves a client is a Gaussian mechanism of its own (Dwork and Roth 2014, appendix A; Duchi et
al. 2013 for the local model): whoever sees it, and whatever is made of it, such as a robust mean,
learns no more. Neighbours are any two sets of examples that the client might have, and so any two
clipped updates: twice the clip apart.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, NoReturn

import torch
from torch import Tensor

from heliotrope.privacy.mechanisms import Mechanism
from heliotrope.privacy.secure_noise import SecureNormals
from heliotrope.seeding import numpy_generator

from ..aggregation import ClipNorm, UpdateContext, UpdateTransform
from .base import ClientPrivacy, no_common_account
from .central import Normals

__all__ = ["Local", "NoisyUpdate"]

_REACH = 2  # clips that neighbours' updates can be apart
_DEVIATIONS = 8  # that no noise of a run exceeds: a chance of 1e-15 for each weight


@dataclass(frozen=True)
class NoisyUpdate(UpdateTransform):
    """Clips each update and adds Gaussian noise of the client's own.

    An update that is not finite is taken as one of zeros: that it is not would be told.

    Parameters
    ----------
    clip
        The Euclidean norm that an update may have.
    multiplier
        Standard deviation of the noise, in twice the clip; None: each client's in the context.
    secure
        Whether noise is from a cryptographic generator, which does not repeat.
    """

    clip: float
    multiplier: float | None = None
    secure: bool = False

    def apply(self, updates: Mapping[str, Tensor], context: UpdateContext) -> Mapping[str, Tensor]:
        """Return the noisy updates; `ValueError` if nobody says how much noise."""
        updates, factors = ClipNorm(self.clip).clipped(updates)
        finite = factors.isfinite().tolist()
        for row, client in enumerate(context.clients):
            multiplier = self._multiplier(client, context)
            deviation = multiplier * _REACH * self.clip
            generator = self._generator(client, context, multiplier)
            for update in updates.values():
                if not finite[row]:
                    update[row] = 0.0
                noise = torch.as_tensor(generator.standard_normal(tuple(update[row].shape)))
                update[row] += noise.to(update).mul_(deviation)
        return updates

    def _multiplier(self, client: int, context: UpdateContext) -> float:
        if self.multiplier is not None:
            return self.multiplier
        if context.noise is None:
            raise ValueError(f"client {client} is not told how much noise its update needs")
        return context.noise.multipliers[client]

    def _generator(self, client: int, context: UpdateContext, multiplier: float) -> Normals:
        if self.secure:
            return SecureNormals()
        stamp = "" if context.noise is None else context.noise.stamp
        # Of a target, the multiplier depends on the rounds: the same noise must not be used twice.
        path = (context.server_round, client, stamp, repr(multiplier))
        return numpy_generator(context.run_seed, "local privacy", *path)


@dataclass(frozen=True)
class Local(ClientPrivacy):
    """The keys of `federated/privacy=local`; see `choices.local`."""

    unit: ClassVar[str] = "client (local)"

    def own_transforms(self, *, deployed: bool) -> tuple[UpdateTransform, ...]:
        """Return what each client does to its update: deployed, with noise as its own keys say."""
        multiplier = self.noise_multiplier if deployed else None
        return (NoisyUpdate(self.clip, multiplier, secure=deployed),)

    def released(self, cohort: int, population: int) -> Mechanism:
        """Return the mechanism of a client's update, with a noise multiplier of 1."""
        return Mechanism("none", 1.0, cohort, population)

    def of_everybody(self, population: int, noise: float) -> NoReturn:  # noqa: ARG002
        """Raise `ConfigError`: nobody adds noise to a sum of all clients."""
        no_common_account("local")

    def uses(self, releases: int, cohort: int, population: int) -> int:
        """Return in how many of so many rounds a client takes part at most: all in turn."""
        return -(-releases * cohort // population)

    def mechanism(self, cohort: int, clients: int, rounds: int, noise: float | None) -> Mechanism:
        """Return the mechanism of an update where `cohort` of `clients` take part in a round.

        `noise` is the multiplier of a run that goes on; None: as the keys say, for so many rounds.
        """
        uses = self.uses(rounds, cohort, clients)
        return self.with_noise(self.released(cohort, clients), uses, noise)

    def limit(self, cohort: int, clients: int, rounds: int) -> float:
        """Return what no weight of a noisy update exceeds."""
        multiplier = self.mechanism(cohort, clients, rounds, None).noise_multiplier
        return self.clip * (1 + _DEVIATIONS * _REACH * multiplier)

    def assumptions(self) -> list[str]:
        """Return what the figure depends on, a sentence each."""
        trusted = (
            "each client clips its update and adds the noise by itself, so that nobody else is "
            "trusted; in a simulation one process does it for all"
        )
        released = (
            "clients tell their noisy updates alone: losses and evaluations in the record of a "
            "simulation are not told, and stay inside"
        )
        turns = "clients take part in turn, which tells nothing of their data and hides nobody"
        return [trusted, turns, released]
