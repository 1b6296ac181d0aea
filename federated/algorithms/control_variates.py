"""Control variates against the drift of clients: the client's half of SCAFFOLD.

(Karimireddy et al. 2020, arXiv:1910.06378, equations 3 and 4, option II.)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .base import ClientAlgorithm, Finished, GradientTerm, rows_at_work

__all__ = ["CONTROL_CHANGE", "STATE", "ControlVariates"]

STATE = "control_variate/"
CONTROL_CHANGE = "control_change"
"""Among a client's numbers: the length of c_i+ - c_i, which tends to 0 as training converges."""


@dataclass(frozen=True, eq=False)
class ControlVariates(ClientAlgorithm):
    """Adds c - c_i to the gradients of client i; makes and sends the change of its c_i.

    `server` holds c of each trained parameter that is sent, in its type. A client's state has its
    c_i, and what it sends has c_i+ - c_i, under names that begin with `STATE`; c_i is zero where
    there is none. Personal weights, which are no other client's, have none and need none.
    """

    server: Mapping[str, Tensor]
    finishes = True
    tells = (CONTROL_CHANGE,)

    def sends(self) -> Mapping[str, Tensor]:
        """Return zeros under the names of the changes of c_i, [*shape] each."""
        return {f"{STATE}{name}": torch.zeros_like(c) for name, c in self.server.items()}

    def start(self, weights: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> GradientTerm:
        """Return the term c - c_i, constant over the steps of a round."""
        corrections = {}
        for name, weight in weights.items():
            if name not in self.server:
                corrections[name] = weight.new_zeros(())
                continue
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
    ) -> Finished:
        """Return the new c_i: the mean gradient of plain SGD's steps, c_i - c - way / (K lr).

        A client that took no step keeps the c_i that it has. The changes are differences of c_i
        as they are kept: the sum of all that was ever sent is the sum of all c_i, to rounding.
        """
        kept, changes = {}, {}
        for name, c in self.server.items():
            difference = differences[name]
            own = state.get(f"{STATE}{name}")
            old = torch.zeros_like(difference) if own is None else own.to(difference)
            column = steps.to(difference).view(-1, *[1] * c.dim())
            gradient = -difference / (column.clamp(min=1) * learning_rate)
            new = torch.where(column > 0, old - c.to(difference) + gradient, old).to(c.dtype)
            kept[f"{STATE}{name}"] = new
            changes[f"{STATE}{name}"] = (new.to(old) - old).to(c.dtype).to(old)
        squares = [change.flatten(1).square().sum(dim=1) for change in changes.values()]
        length = torch.stack(squares).sum(dim=0).sqrt()
        return Finished({**differences, **changes}, kept, {CONTROL_CHANGE: length})

    def __reduce__(self) -> tuple[Any, ...]:
        # Arrays of NumPy cross to other processes without torch's own shared memory.
        return _control_variates, ({name: c.cpu().numpy() for name, c in self.server.items()},)


def _control_variates(arrays: Mapping[str, Any]) -> ControlVariates:
    return ControlVariates({name: torch.from_numpy(value) for name, value in arrays.items()})
