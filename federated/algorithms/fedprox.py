"""FedProx: clients are held near the global weights (Li et al. 2020, arXiv:1812.06127)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from .base import ClientAlgorithm, GradientTerm, rows_at_work

__all__ = ["FedProx", "proximal"]


@dataclass(frozen=True)
class FedProx(ClientAlgorithm):
    """The gradient of (mu / 2) ||w - w0||^2, w0 being what a client began with: mu (w - w0)."""

    mu: float

    def start(self, weights: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> GradientTerm:
        """Return the term; there is no state."""
        del state

        def term(name: str, weight: Tensor) -> Tensor:
            # Of the difference: mu * w - mu * w0 would be mostly rounding.
            return (weight - rows_at_work(weights[name], weight)).mul_(self.mu)

        return term


def proximal(mu: float) -> tuple[ClientAlgorithm, ...]:
    """Return FedProx with this `mu`, nothing if it is 0."""
    return (FedProx(mu),) if mu else ()
