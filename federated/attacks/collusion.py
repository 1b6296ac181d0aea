"""Attackers who know what all honest clients of a round send: they act on unreduced updates.

Shape legend: H honest clients of a round, D numbers in trained parameters.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ..updates import Update, Weights, is_finite
from .kinds import Collusion, Mimic
from .mimicry import Mimicry

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
    trained
        Those of them that clients train, one name each.
    run_seed
        Of the run.
    """

    def __init__(
        self,
        attack: Collusion,
        attackers: Collection[int],
        parameters: Collection[str],
        trained: Collection[str] = (),
        run_seed: int = 0,
    ) -> None:
        self._attack, self._attackers, self._parameters = attack, attackers, parameters
        self._trained = sorted(trained)
        self._mimicry = (
            Mimicry(attack.learning_rounds, run_seed) if isinstance(attack, Mimic) else None
        )

    def __call__(self, updates: Sequence[Update], starts: Weights) -> list[Update]:
        """Return the updates of single clients, in the order given, those of attackers altered.

        Nothing depends on where clients were trained: the honest are taken in client order. In a
        round without honest clients, attackers send what they have trained.
        """
        honest = [update for update in updates if update.clients[0] not in self._attackers]
        if not honest:
            return list(updates)
        honest.sort(key=lambda update: update.clients)
        if self._mimicry is not None:
            forged = self._mimicked(self._mimicry, honest, starts)
        else:
            forged = self._agreed(honest, starts) if len(honest) < len(updates) else {}
        return [
            replace(update, arrays={**update.arrays, **forged})
            if update.clients[0] in self._attackers
            else update
            for update in updates
        ]

    def _agreed(self, honest: Sequence[Update], starts: Weights) -> dict[str, Tensor]:
        forged = {}
        for name in self._parameters:
            start = starts[name].double()
            ways = torch.stack([update.arrays[name].double() for update in honest]) - start
            forged[name] = (start + self._attack.forged(ways)).to(starts[name].dtype)
        return forged

    def _mimicked(
        self, mimicry: Mimicry, honest: Sequence[Update], starts: Weights
    ) -> dict[str, Tensor]:
        """Return the weights of the client that is mimicked; none whose are not finite is."""
        finite = [u for u in honest if all(map(is_finite, u.arrays.values()))]
        if not finite:
            return {}
        ways = torch.stack(
            [
                torch.cat(
                    [
                        (update.arrays[name].double() - starts[name].double()).reshape(-1)
                        for name in self._trained
                    ]
                )
                for update in finite
            ]
        )
        place = mimicry.place([update.clients[0] for update in finite], ways)
        return {name: finite[place].arrays[name] for name in self._parameters}

    def snapshot(self) -> dict[str, Tensor]:
        """Return what a checkpoint holds of what they have learned."""
        return {} if self._mimicry is None else self._mimicry.snapshot()

    def restore(self, arrays: Mapping[str, Tensor]) -> None:
        """Go on from the arrays of a checkpoint, among which are those of `snapshot`."""
        if self._mimicry is not None:
            self._mimicry.restore(arrays)
