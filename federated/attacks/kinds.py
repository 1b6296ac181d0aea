"""What attackers do: to their data, to their own updates, or together, knowing all honest ones.

An update is how far a client went from the global weights, as it would send it: after its own
momentum and `clip_update_norm`, which attackers need not heed. Buffers are left as they are.

Shape legend: K clients of a stack, H honest clients of a round.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from torch import Tensor

from heliotrope.errors import ConfigError, closest

from ..aggregation import UpdateContext, UpdateTransform

__all__ = ["Attack", "Backdoor", "Collusion", "LabelFlip", "LittleIsEnough", "Mimic"]
__all__ += ["NegativeMean", "Scaling"]

_CORNERS = ("top_left", "top_right", "bottom_left", "bottom_right")


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
class Backdoor(Attack):
    """Attackers relabel a share of their examples, with a trigger on each, and boost the update.

    The keys are those of the choice; see `choices.backdoor`.
    """

    target: str | None
    fraction: float
    boost: float
    size: int
    corner: str
    brightness: float
    column: str | None
    value: str | None

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, whole in (("fraction", self.fraction), ("brightness", self.brightness)):
            if not 0 <= whole <= 1:
                raise ConfigError(f"federated.attack.{name}={whole} must lie in [0, 1].")
        if self.fraction == 0:
            raise ConfigError(
                "federated.attack.fraction=0 leaves all examples as they are. Set it above 0, or "
                "federated/attack=none."
            )
        if not (math.isfinite(self.boost) and self.boost > 0):
            raise ConfigError(
                f"federated.attack.boost={self.boost} must be a finite number above 0; 1 sends "
                "what was learned."
            )
        if self.corner not in _CORNERS:
            raise ConfigError(
                f"federated.attack.corner={self.corner} is not one of {', '.join(_CORNERS)}."
                f"{closest(self.corner, _CORNERS)}"
            )

    def transforms(self, attackers: Collection[int]) -> tuple[UpdateTransform, ...]:
        return () if self.boost == 1 else (ScaleUpdates(frozenset(attackers), self.boost),)


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
    """The update of one honest client: whom, `Mimicry` learns in the first `learning_rounds`."""

    learning_rounds: int

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.learning_rounds < 1:
            raise ConfigError(
                f"federated.attack.learning_rounds={self.learning_rounds} must be 1 or more: "
                "attackers look at updates before they know whom to mimic."
            )
