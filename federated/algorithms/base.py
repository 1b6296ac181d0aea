"""The client's half of a federated algorithm, the same code for one client and for a stack.

Shape legend: K clients of a stack that begin a round, A of them still at work (A <= K).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor

__all__ = ["ClientAlgorithm", "Finished", "GradientTerm", "gradient_term", "rows_at_work"]

GradientTerm = Callable[[str, Tensor], Tensor]
"""Of a parameter's name and its present value, [*shape] or [A, *shape]: what is added to its
gradient, of a shape that broadcasts to it. It must not be changed by who is given it."""


@dataclass(frozen=True)
class Finished:
    """What an algorithm makes of the training of K clients.

    Parameters
    ----------
    differences
        How far each client's weights are moved, float64 [K, *shape] of each trained parameter; and
        what it sends beside them, by the names that `ClientAlgorithm.sends` has.
    state
        What the clients keep until they are drawn again, [K, *shape], by names that no other
        algorithm uses.
    numbers
        Of each client, [K], by name: they are told with its loss, and their mean by the clients'
        weights is in the round's event.
    """

    differences: Mapping[str, Tensor]
    state: Mapping[str, Tensor] = field(default_factory=dict)
    numbers: Mapping[str, Tensor] = field(default_factory=dict)


class ClientAlgorithm(ABC):
    """What clients do in a round beside following the gradients of their data.

    It is a value that says all: it goes to other processes with a round's instruction. It works
    alike in sequential, captured and stacked training, on plain tensors and without autograd.
    """

    finishes = False
    """Whether `finish` does anything: it works in float64, on copies of all trained weights."""

    tells: ClassVar[tuple[str, ...]] = ()
    """The names of the numbers that `finish` gives."""

    def sends(self) -> Mapping[str, Tensor]:
        """Return what clients send beside their weights, by name: zeros of its shape and type.

        The server is given its mean, exactly as that of the weights. Names differ from those of
        weights; nothing is sent unless a subclass says so.
        """
        return {}

    @abstractmethod
    def start(
        self, weights: Mapping[str, Tensor], state: Mapping[str, Tensor]
    ) -> GradientTerm | None:
        """Begin a round, and return what is added to the gradient of each step.

        Parameters
        ----------
        weights
            The trained parameters as the clients begin with them, by name: [*shape], also in a
            stack where all begin alike, or [K, *shape].
        state
            What the clients keep from round to round, by name: [*shape], or [K, *shape] in a
            stack. Nothing if they keep none yet.

        Returns
        -------
        GradientTerm
            Added before gradients are clipped, as a penalty's gradient is; None for nothing.
        """

    def finish(
        self,
        differences: Mapping[str, Tensor],
        state: Mapping[str, Tensor],
        steps: Tensor,
        learning_rate: float,
    ) -> Finished:
        """End a round: what clients send, keep and tell; called only if it `finishes`.

        Parameters
        ----------
        differences
            How far the clients went, float64 [K, *shape] of each trained parameter that is sent,
            as the algorithms before this one left it. It must not be changed in place.
        state
            What they began with, [K, *shape].
        steps
            How many steps each took, int64 [K].
        learning_rate
            Of all these steps.
        """
        del state, steps, learning_rate
        return Finished(differences)


def rows_at_work(values: Tensor, weight: Tensor) -> Tensor:
    """Return the rows of a stack's `values`, [K, *shape], of the clients in `weight`.

    `weight` is [A, *shape]; what is one for all, [*shape], is returned as it is.
    """
    if values.dim() < weight.dim() or values.shape == weight.shape:
        return values
    return values[: len(weight)]


def gradient_term(
    algorithms: Sequence[ClientAlgorithm],
    weights: Mapping[str, Tensor],
    state: Mapping[str, Tensor],
) -> GradientTerm | None:
    """Start all of `algorithms` and return the sum of their terms, None if there are none.

    `weights` and `state` are those of `ClientAlgorithm.start`.
    """
    begun = [algorithm.start(weights, state) for algorithm in algorithms]
    terms = [term for term in begun if term is not None]
    if len(terms) < 2:
        return terms[0] if terms else None

    def total(name: str, weight: Tensor) -> Tensor:
        first, *others = (term(name, weight) for term in terms)
        for other in others:
            first = first + other
        return first

    return total
