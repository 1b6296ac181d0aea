"""What attackers do: to their data, to their own updates, or together, knowing all honest ones.

An update is how far a client went from the global weights, as it would send it: after its own
momentum and `clip_update_norm`, which attackers need not heed. Buffers are left as they are.

Shape legend: K clients of a stack, H honest clients of a round.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from torch import Tensor

from heliotrope.errors import ConfigError

from ..aggregation import UpdateContext, UpdateTransform

__all__ = ["Attack", "Collusion", "LabelFlip", "LittleIsEnough", "Mimic", "NegativeMean", "Scaling"]


@dataclass(frozen=True)
class Attack:
    """An attack by `attackers` of all clients; `name` is that of the choice."""

    name: str
    attackers: int

    def __post_init__(self) -> None:
        if self.attackers < 1:
            raise ConfigError(
                f"federated.attack.attackers={self.attackers} must be 1 or more. Without "
                "attackers, set federated/attack=none."
            )

    def transforms(self, attackers: Collection[int]) -> tuple[UpdateTransform, ...]:  # noqa: ARG002
        """Return what is done to the updates of stacks in which some are of `attackers`."""
        return ()


@dataclass(frozen=True)
class LabelFlip(Attack):
    """Attackers train as they are told, on the label C - 1 - y in place of y."""

    def labels(self, labels: Tensor, classes: int) -> Tensor:
        """Return the labels of attackers' examples, for the true ones, [N]."""
        return classes - 1 - labels


@dataclass(frozen=True)
class Scaling(Attack):
    """Attackers multiply their updates."""

    factor: float

    def transforms(self, attackers: Collection[int]) -> tuple[UpdateTransform, ...]:
        return (ScaleUpdates(frozenset(attackers), self.factor),)


@dataclass(frozen=True)
class ScaleUpdates(UpdateTransform):
    """Multiplies the updates of `attackers` with `factor`."""

    attackers: frozenset[int]
    factor: float

    def apply(self, updates: Mapping[str, Tensor], context: UpdateContext) -> Mapping[str, Tensor]:
        """Return the updates, those of attackers multiplied."""
        rows = [row for row, client in enumerate(context.clients) if client in self.attackers]
        for update in updates.values() if rows else ():
            update[rows] *= self.factor
        return updates


@dataclass(frozen=True)
class Collusion(Attack):
    """Attackers know all honest updates of a round, and send the same."""

    def forged(self, honest: Tensor) -> Tensor:
        """Return what each attacker sends of a parameter, [*shape].

        `honest` are the updates of the honest clients, float64 [H, *shape] in client order, at
        least one.
        """
        raise NotImplementedError


@dataclass(frozen=True)
class LittleIsEnough(Collusion):
    """The mean and `tau` standard deviations (of n - 1); of one honest client, what it sends."""

    tau: float

    def forged(self, honest: Tensor) -> Tensor:
        mean = honest.mean(dim=0)
        return mean if len(honest) == 1 else mean + self.tau * honest.std(dim=0, correction=1)


@dataclass(frozen=True)
class NegativeMean(Collusion):
    """-`tau` times the mean."""

    tau: float

    def forged(self, honest: Tensor) -> Tensor:
        return honest.mean(dim=0) * -self.tau


@dataclass(frozen=True)
class Mimic(Collusion):
    """The update of the honest client with the lowest number, in each round that it is part of."""

    def forged(self, honest: Tensor) -> Tensor:
        return honest[0]
