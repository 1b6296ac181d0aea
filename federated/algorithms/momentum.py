"""Momentum of each client over its own updates (Karimireddy et al. 2021, arXiv:2012.10333).

What an attacker can hide behind is the variance of honest updates, which their history averages
away: robust rules need it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from .base import ClientAlgorithm, Finished

__all__ = ["MOMENTUM", "ClientMomentum", "client_momentum"]

MOMENTUM = "client_momentum/"


@dataclass(frozen=True)
class ClientMomentum(ClientAlgorithm):
    """Clients send m_i <- beta m_i + (1 - beta) x_i in place of how far they went, x_i.

    m_i begins at 0, and stays as it is in rounds that client i has no part in. It is kept in
    float64, under names that begin with `MOMENTUM`.
    """

    beta: float
    finishes = True

    def start(self, weights: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> None:
        """Nothing is added to gradients."""
        del weights, state

    def finish(
        self,
        differences: Mapping[str, Tensor],
        state: Mapping[str, Tensor],
        steps: Tensor,
        learning_rate: float,
    ) -> Finished:
        """Return m_i, which is sent and kept."""
        del steps, learning_rate
        sent, kept = {}, {}
        for name, way in differences.items():
            own = state.get(f"{MOMENTUM}{name}")
            if own is None:  # personal, and so never sent, or a client without state
                own = way.new_zeros(())
            sent[name] = (1 - self.beta) * way + self.beta * own.to(way)
            kept[f"{MOMENTUM}{name}"] = sent[name].clone()  # what is sent may be clipped in place
        return Finished(sent, kept)


def client_momentum(beta: float) -> tuple[ClientAlgorithm, ...]:
    """Return the momentum of each client, nothing if it is 0."""
    return (ClientMomentum(beta),) if beta else ()
