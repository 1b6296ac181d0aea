"""Whom attackers mimic: the client by whom a rule is led astray farthest (Karimireddy et al. 2022).

arXiv:2006.09365, appendix: z is the direction of largest variance of honest updates, learned in
the first rounds by Oja's rule, and the client is argmax_i |sum_t z^T x_i^t| of these rounds.

Shape legend: H honest clients of a round, D numbers in trained parameters.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from heliotrope.seeding import numpy_generator

__all__ = ["Mimicry"]

_PREFIX = "mimicry/"  # in a checkpoint


class Mimicry:
    """Learns for `rounds` rounds, and then keeps to what it has learned.

    In the sum over rounds, each round's update is projected on z as it is then. z begins at
    random, by the run's seed.
    """

    def __init__(self, rounds: int, run_seed: int) -> None:
        self._rounds, self._seed = rounds, run_seed
        self._done = 0  # rounds
        self._direction = torch.zeros(0).double()  # z, [D]
        self._mean = torch.zeros(0).double()  # of honest updates in the rounds so far, [D]
        self._sums: dict[int, float] = {}  # of each client's projections

    def place(self, clients: Sequence[int], updates: Tensor) -> int:
        """Take in a round, and return which of its honest clients is mimicked.

        `updates` are float64 [H, D], those of `clients`, in client order. Where several went as
        far, or nobody is known, it is the one with the lowest number.
        """
        if self._done < self._rounds:
            self._learn(updates)
            along = (updates @ self._direction).tolist()
            for client, projection in zip(clients, along, strict=True):
                self._sums[client] = self._sums.get(client, 0.0) + projection
        far = [abs(self._sums.get(client, 0.0)) for client in clients]
        return far.index(max(far))

    def _learn(self, updates: Tensor) -> None:
        mean, new = updates.mean(dim=0), 1 / (1 + self._done)
        if self._done == 0:
            drawn = numpy_generator(self._seed, "mimic").standard_normal(len(mean))
            self._direction = torch.from_numpy(drawn / max(1e-300, float((drawn**2).sum() ** 0.5)))
            self._mean = mean
        self._mean = (1 - new) * self._mean + new * mean
        deviations = updates - self._mean
        step = (deviations @ self._direction) @ deviations
        length = step.norm()
        if length > 0:  # else all are alike
            moved = (1 - new) * self._direction + new * step / length
            self._direction = moved / moved.norm()
        self._done += 1

    def snapshot(self) -> dict[str, Tensor]:
        """Return what a checkpoint holds, by name."""
        clients = sorted(self._sums)
        kept = {
            "rounds": torch.tensor(self._done),
            "direction": self._direction,
            "mean": self._mean,
            "clients": torch.tensor(clients, dtype=torch.int64),
            "sums": torch.tensor([self._sums[c] for c in clients], dtype=torch.float64),
        }
        return {f"{_PREFIX}{name}": value for name, value in kept.items()}

    def restore(self, arrays: Mapping[str, Tensor]) -> None:
        """Go on from the arrays of a checkpoint, among which are those of `snapshot`."""
        rounds, direction, mean, clients, sums = (
            arrays[f"{_PREFIX}{name}"]
            for name in ("rounds", "direction", "mean", "clients", "sums")
        )
        self._done, self._direction, self._mean = int(rounds), direction, mean
        self._sums = dict(zip(clients.tolist(), sums.tolist(), strict=True))
