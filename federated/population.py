"""Who the clients are: their examples, their held-out parts, and who is drawn for a round."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from heliotrope.data import Partition
from heliotrope.errors import PartitionError
from heliotrope.seeding import numpy_generator

__all__ = ["Population"]

_Ints = NDArray[np.int64]


class Population:
    """All clients of a run. Nothing is kept per client but the partition itself.

    Raises `PartitionError` naming a client that holds no examples: it could not be trained.
    """

    def __init__(self, partition: Partition, holdout_fraction: float, run_seed: int) -> None:
        empty = np.flatnonzero(partition.sizes == 0)
        if len(empty):
            raise PartitionError(
                f"client {empty[0]} holds no examples, nor do {len(empty) - 1} others. Leave "
                "them out, or choose another federated/partition."
            )
        self.partition = partition
        self.holdout_fraction = holdout_fraction
        self._seed = run_seed

    def __len__(self) -> int:
        return len(self.partition)

    def _divided(self, client: int) -> tuple[_Ints, _Ints]:
        mine = self.partition[client]
        held = int(self._held(np.array([len(mine)]))[0])
        if held == 0:
            return mine, mine[:0]
        order = numpy_generator(self._seed, "holdout", client).permutation(len(mine))
        return mine[np.sort(order[held:])], mine[np.sort(order[:held])]

    def _held(self, sizes: _Ints) -> _Ints:
        """Return how many examples are held out; at least one stays for training."""
        return np.minimum((sizes * self.holdout_fraction).astype(np.int64), sizes - 1)

    def train_indices(self, client: int) -> _Ints:
        """Return the positions in the training split that `client` trains on, sorted."""
        return self._divided(client)[0]

    def holdout_indices(self, client: int) -> _Ints:
        """Return the positions that `client` keeps for evaluation, sorted; may be empty."""
        return self._divided(client)[1]

    def train_sizes(self, clients: Sequence[int]) -> list[int]:
        """Return the number of examples that each of `clients` trains on."""
        offsets, chosen = self.partition.offsets, np.asarray(clients)
        sizes = offsets[chosen + 1] - offsets[chosen]
        trained: list[int] = (sizes - self._held(sizes)).tolist()
        return trained

    def evaluating(self) -> list[int]:
        """Return the clients that hold out at least one example."""
        holding: list[int] = np.flatnonzero(self._held(self.partition.sizes)).tolist()
        return holding

    def draw(self, server_round: int, size: int) -> list[int]:
        """Return the round's cohort: `size` different clients, uniformly, in client order."""
        generator = numpy_generator(self._seed, "cohort", server_round)
        drawn = generator.choice(len(self), size=size, replace=False, shuffle=False)
        return sorted(drawn.tolist())
