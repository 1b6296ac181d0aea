"""The client's half of a federated algorithm, the same code for one client and for a stack.

Shape legend: K clients of a stack that begin a round, A of them still at work (A <= K).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence

from torch import Tensor

__all__ = ["ClientAlgorithm", "GradientTerm", "gradient_term", "rows_at_work"]

GradientTerm = Callable[[str, Tensor], Tensor]
"""Of a parameter's name and its present value, [*shape] or [A, *shape]: what is added to its
gradient, of a shape that broadcasts to it. It must not be changed by who is given it."""


class ClientAlgorithm(ABC):
    """What clients do in a round beside following the gradients of their data.

    It is a value that says all: it goes to other processes with a round's instruction. It works
    alike in sequential, captured and stacked training, on plain tensors and without autograd.
    """

    keeps_state = False
    """Whether clients keep what `finish` returns until they are drawn again."""

    @abstractmethod
    def start(self, weights: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> GradientTerm:
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
            Added before gradients are clipped, as a penalty's gradient is.
        """

    def finish(
        self,
        differences: Mapping[str, Tensor],
        state: Mapping[str, Tensor],
        steps: Tensor,
        learning_rate: float,
    ) -> Mapping[str, Tensor]:
        """End a round, and return the state that clients keep; only if it `keeps_state`.

        Parameters
        ----------
        differences
            How far the clients went, float64 [K, *shape] of each trained parameter.
        state
            What they began with, [K, *shape].
        steps
            How many steps each took, int64 [K].
        learning_rate
            Of all these steps.

        Returns
        -------
        Mapping[str, Tensor]
            [K, *shape], by names that no other algorithm uses.
        """
        del differences, state, steps, learning_rate
        return {}


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
    """Start all of `algorithms` and return the sum of their terms, None if there are none."""
    terms = [algorithm.start(weights, state) for algorithm in algorithms]
    if len(terms) < 2:
        return terms[0] if terms else None

    def total(name: str, weight: Tensor) -> Tensor:
        first, *others = (term(name, weight) for term in terms)
        for other in others:
            first = first + other
        return first

    return total
