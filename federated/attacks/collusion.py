"""Attackers who know what all honest clients of a round send: they act on unreduced updates.

Shape legend: H honest clients of a round.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace

import torch

from ..updates import Update, Weights
from .kinds import Collusion

__all__ = ["Colluders"]


class Colluders:
    """Puts what `attackers` agree on in place of their updates.

    Parameters
    ----------
    attack
        What they agree on.
    attackers
        Their numbers.
    parameters
        Names of the weights that they alter.
    """

    def __init__(
        self, attack: Collusion, attackers: Collection[int], parameters: Collection[str]
    ) -> None:
        self._attack, self._attackers, self._parameters = attack, attackers, parameters

    def __call__(self, updates: Sequence[Update], starts: Weights) -> list[Update]:
        """Return the updates of single clients, in the order given, those of attackers altered.

        Nothing depends on where clients were trained: the honest are taken in client order. In a
        round without honest clients, attackers send what they have trained.
        """
        honest = [update for update in updates if update.clients[0] not in self._attackers]
        if not honest or len(honest) == len(updates):
            return list(updates)
        honest.sort(key=lambda update: update.clients)
        forged = {}
        for name in self._parameters:
            start = starts[name].double()
            ways = torch.stack([update.arrays[name].double() for update in honest]) - start
            forged[name] = (start + self._attack.forged(ways)).to(starts[name].dtype)
        return [
            replace(update, arrays={**update.arrays, **forged})
            if update.clients[0] in self._attackers
            else update
            for update in updates
        ]
