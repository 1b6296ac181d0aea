"""What passes between the server and its clients: an instruction and weights; updates, failures."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor

from heliotrope.config import OptimizerConfig
from heliotrope.plugin_loading import raised

from .algorithms import ClientAlgorithm
from .client_state import ClientStates
from .secure_aggregation.masking import Masking

__all__ = [
    "UNCLIPPED",
    "Failure",
    "Instruction",
    "Scaling",
    "Stack",
    "StepNoise",
    "Update",
    "Weights",
    "is_finite",
]

Weights = Mapping[str, Tensor]
"""A model's weights and buffers by name, [*shape] each."""

UNCLIPPED = "privacy.unclipped"
"""What clients send beside their weights where a round has a clip: 1 if it left theirs alone."""


@dataclass(frozen=True)
class StepNoise:
    """The noise that clients add: to the sums of their local steps, or to their updates.

    Parameters
    ----------
    multipliers
        Standard deviation by client, in how far what is protected can move that: one example a
        sum, all of a client's examples its update.
    stamp
        What the noise depends on beside the run's seed, the round, the client and the step; see
        `heliotrope.privacy.ledger.release_stamp`.
    """

    multipliers: Mapping[int, float]
    stamp: str


@dataclass(frozen=True)
class Instruction:
    """What the strategy asks of the clients of a round.

    `algorithms` say what clients do beside following the gradients of their data. `states` are
    those that the clients keep, if they keep any; they are not sent. `lr` is the learning rate of
    the round, if it is not that of the config. With `start_loss`, clients also tell their loss at
    the global weights. With `equal_weights` each weighs 1 in the mean, whatever its examples.
    `clip` is the Euclidean norm that an update may have in this round, if it is not the config's:
    whether theirs was shorter, clients tell as `UNCLIPPED`. With `masking` they hide what they
    send, each under its own masks.
    `noise` is what clients add, where they protect their examples themselves.
    """

    server_round: int
    algorithms: tuple[ClientAlgorithm, ...] = ()
    lr: float | None = None
    start_loss: bool = False
    equal_weights: bool = False
    clip: float | None = None
    states: ClientStates | None = None
    noise: StepNoise | None = None
    masking: Masking | None = None

    def of(self, cohort: Sequence[int]) -> Instruction:
        """Return the same for a part of the clients."""
        order = self
        if order.states is not None:
            order = replace(order, states=order.states.take(cohort))
        if order.noise is not None:
            mine = {client: order.noise.multipliers[client] for client in cohort}
            order = replace(order, noise=replace(order.noise, multipliers=mine))
        if order.masking is not None:
            order = replace(order, masking=order.masking.of(cohort))
        return order

    def starts(self, weights: Weights) -> Weights:
        """Return what clients' arrays start from: the global weights, and zeros beside them."""
        starts = dict(weights)
        for algorithm in self.algorithms:
            starts.update(algorithm.sends())
        if self.clip is not None:
            starts[UNCLIPPED] = torch.zeros((), dtype=torch.int64)
        return starts

    def sent_bytes(self, weights: Weights) -> int:
        """Return the bytes that a client is sent in the round, and as many that it sends back."""
        return sum(value.nbytes for value in self.starts(weights).values())

    def optimizer(self, cfg: OptimizerConfig) -> OptimizerConfig:
        """Return the optimizer of the clients in this round."""
        return cfg if self.lr is None else replace(cfg, lr=self.lr)

    def states_of(self, clients: Sequence[int] | int) -> Weights:
        """Return the state that algorithms begin with, [*shape] each, or [K, *shape] of several."""
        if self.states is None or not self.algorithms:
            return {}
        if isinstance(clients, int):
            return self.states.of(clients)
        each = [self.states.of(client) for client in clients]
        return {name: torch.stack([state[name] for state in each]) for name in each[0]}


@dataclass(frozen=True)
class Update:
    """Weights after local training, of one client or the weighted mean of several.

    `weight` is that in the strategy's mean: the sum of the weights of the clients' examples, such
    as their number. `seen` counts examples with repetition over local epochs; `loss_sum` is the
    sum of their losses, and `weight_seen` of their weights. `numbers` are what algorithms tell, of
    several clients their mean by `weight`.
    """

    clients: tuple[int, ...]
    arrays: Weights
    weight: int
    loss_sum: float
    seen: int
    weight_seen: int
    steps: int
    numbers: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Scaling:
    """How far updates of K clients count that are clipped when they are added up.

    Parameters
    ----------
    factors
        float64 [K], of how far the weights in `names` went; NaN where they are not finite.
    names
        Of the weights that are clipped.
    most
        The Euclidean norm that all of them together have then, at most.
    """

    factors: Tensor
    names: frozenset[str]
    most: float


@dataclass(frozen=True)
class Stack:
    """The results of K clients: arrays [K, *shape], numbers [K], as in `Update`.

    `states` are what the clients keep, [K, *shape] each; `numbers` hold [K] by name. With
    `scaling` the arrays are as trained, and what adds them up clips them.
    """

    clients: tuple[int, ...]
    arrays: Weights
    weights: tuple[int, ...]
    loss_sums: tuple[float, ...]
    seen: tuple[int, ...]
    weights_seen: tuple[int, ...]
    steps: tuple[int, ...]
    states: Weights = field(default_factory=dict)
    numbers: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    scaling: Scaling | None = None  # None: nothing is clipped, or it is already

    def rows(self) -> list[Update]:
        """Return each client's result."""
        return [
            Update(
                clients=(client,),
                arrays={name: value[row] for name, value in self.arrays.items()},
                weight=self.weights[row],
                loss_sum=self.loss_sums[row],
                seen=self.seen[row],
                weight_seen=self.weights_seen[row],
                steps=self.steps[row],
                numbers={name: values[row] for name, values in self.numbers.items()},
            )
            for row, client in enumerate(self.clients)
        ]

    def without(self, rows: Collection[int]) -> Stack:
        """Return the same without these rows."""
        if not rows:
            return self
        kept = [row for row in range(len(self.clients)) if row not in rows]
        return Stack(
            clients=tuple(self.clients[row] for row in kept),
            arrays={name: value[kept] for name, value in self.arrays.items()},
            weights=tuple(self.weights[row] for row in kept),
            loss_sums=tuple(self.loss_sums[row] for row in kept),
            seen=tuple(self.seen[row] for row in kept),
            weights_seen=tuple(self.weights_seen[row] for row in kept),
            steps=tuple(self.steps[row] for row in kept),
            states={name: value[kept] for name, value in self.states.items()},
            numbers={n: tuple(values[row] for row in kept) for n, values in self.numbers.items()},
            scaling=self.scaling
            and replace(
                self.scaling, factors=self.scaling.factors[torch.tensor(kept, dtype=torch.int64)]
            ),
        )

    def rejections(self, weights: Weights) -> dict[int, Failure]:
        """Return the rows that must not be averaged with updates of `weights`, and why."""
        found: dict[int, Failure] = {}
        if (wrong := self._unlike(weights)) is not None:
            return {
                row: Failure(who, f"update rejected: {wrong}")
                for row, who in enumerate(self.clients)
            }
        for row, weight in enumerate(self.weights):
            if weight < 0:
                why = f"update rejected: it weighs {weight}"
                found[row] = Failure(self.clients[row], why)
        for name, value in (*self.arrays.items(), *self.states.items()):
            if is_finite(value):
                continue
            finite = torch.isfinite(value.reshape(len(value), -1)).all(dim=1)
            for row in torch.nonzero(~finite).view(-1).tolist():
                reason = f"update rejected: {name} holds NaN or infinite values"
                found.setdefault(row, Failure(self.clients[row], reason, "diverged"))
        if self.scaling is not None:
            for row in torch.nonzero(~self.scaling.factors.isfinite()).view(-1).tolist():
                reason = "update rejected: its length is not finite"
                found.setdefault(row, Failure(self.clients[row], reason, "diverged"))
        return found

    def _unlike(self, weights: Weights) -> str | None:
        """Return in what the arrays are not those of updates of `weights`; None if in nothing.

        A shape that could be broadcast is another shape, and whole numbers are no real ones.
        """
        if self.arrays.keys() != weights.keys():
            for name in [*weights, *self.arrays]:
                if name not in self.arrays:
                    return f"{name} is missing"
                if name not in weights:
                    return f"there is no array {name} to be trained"
        for name, value in self.arrays.items():
            shape, wanted = tuple(value.shape[1:]), tuple(weights[name].shape)
            if shape != wanted:
                return f"{name} has shape {shape} instead of {wanted}"
            if value.is_floating_point() != weights[name].is_floating_point():
                return f"{name} is of type {value.dtype} instead of {weights[name].dtype}"
        return None


@dataclass(frozen=True)
class Failure:
    """A client that gave no usable update, and why.

    From `kind` follows what to do about it: something was raised, it took longer than
    `federated.client_timeout`, or there are numbers that are not finite.
    """

    client: int
    reason: str
    kind: Literal["raised", "late", "diverged"] = "raised"

    @classmethod
    def of(cls, client: int, error: Exception, doing: str = "") -> Failure:
        """Return that of a client who raised `error`; a line of a plug-in is named."""
        kind: Literal["raised", "late"] = "late" if isinstance(error, TimeoutError) else "raised"
        return cls(client, f"{doing}{raised(error, '')}", kind)


def is_finite(values: Tensor) -> bool:
    """Return whether no value is NaN or infinite; reads them once, and writes nothing."""
    if not values.is_floating_point() or not values.numel():
        return True
    return all(math.isfinite(extreme) for extreme in values.aminmax())
