"""Control variates against the drift of clients: the client's half of SCAFFOLD.

(Karimireddy et al. 2020, arXiv:1910.06378, equations 3 and 4, option II.)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from .base import ClientAlgorithm, GradientTerm, rows_at_work

__all__ = ["STATE", "ControlVariates"]

STATE = "control_variate/"


@dataclass(frozen=True, eq=False)
class ControlVariates(ClientAlgorithm):
    """Adds c - c_i to the gradients of client i, and makes c_i anew from how far it went.

    `server` holds c, by parameter. A client's state has its c_i, under names that begin with
    `STATE`; it is zero where there is none.
    """

    server: Mapping[str, Tensor]
    keeps_state = True

    def start(self, weights: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> GradientTerm:
        """Return the term c - c_i, constant over the steps of a round."""
        corrections = {}
        for name, weight in weights.items():
            correction = self.server[name].to(weight)
            own = state.get(f"{STATE}{name}")
            if own is not None:
                correction = correction - own.to(weight)
            corrections[name] = correction

        def term(name: str, weight: Tensor) -> Tensor:
            return rows_at_work(corrections[name], weight)

        return term

    def finish(
        self,
        differences: Mapping[str, Tensor],
        state: Mapping[str, Tensor],
        steps: Tensor,
        learning_rate: float,
    ) -> Mapping[str, Tensor]:
        """Return the new c_i: the mean gradient of plain SGD's steps, c_i - c - way / (K lr).

        A client that took no step keeps the c_i that it has.
        """
        kept = {}
        for name, difference in differences.items():
            server = self.server[name].to(difference)
            own = state.get(f"{STATE}{name}")
            old = torch.zeros_like(difference) if own is None else own.to(difference)
            column = steps.to(difference.device).view(-1, *[1] * server.dim())
            new = old - server - difference / (column.clamp(min=1) * learning_rate)
            kept[f"{STATE}{name}"] = torch.where(column > 0, new, old).to(self.server[name].dtype)
        return kept
