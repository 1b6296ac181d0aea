"""Who the clients are: their examples, their held-out parts, and who is drawn for a round.

All draws are hashes of the run's seed, the round and the client's identity (see
`Partition.identities`), so that a client's presence changes nothing for the others: with one
client fewer, the others hold out the same examples and visit theirs in the same order, and a
cohort is the same but for that client and who takes its place.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from heliotrope.data import Partition
from heliotrope.errors import PartitionError
from heliotrope.seeding import hash_counters, hash_ranks, hashed, seed

from ..fractions import fractions_rounded_down

__all__ = ["Population"]

_Ints = NDArray[np.int64]


class Population:
    """All clients of a run: beside the partition, four numbers are kept of each.

    Those that are `idle` are never drawn for training.

    Raises `PartitionError` naming a client that holds no examples, since it could not be
    trained, and if `holdout_fraction` leaves every client without a held-out example.
    """

    def __init__(
        self,
        partition: Partition,
        holdout_fraction: float,
        run_seed: int,
        idle: Sequence[int] = (),
    ) -> None:
        empty = np.flatnonzero(partition.sizes == 0)
        if len(empty):
            raise PartitionError(
                f"client {empty[0]} holds no examples, nor do {len(empty) - 1} others. Leave "
                "them out, or choose another federated/partition."
            )
        self.partition = partition
        self._seed = run_seed
        self._counters = hash_counters(partition.identities)
        # At least one example stays for training.
        held = fractions_rounded_down(holdout_fraction, partition.sizes)
        self._held = np.minimum(held, partition.sizes - 1)  # [clients]
        self._evaluating = np.flatnonzero(self._held)
        self._training = np.setdiff1d(np.arange(len(partition)), np.asarray(idle, dtype=np.int64))
        if holdout_fraction and not len(self._evaluating):
            raise PartitionError(_nothing_held(holdout_fraction, int(partition.sizes.max())))

    def __len__(self) -> int:
        return len(self.partition)

    def _divided(self, clients: Sequence[int]) -> tuple[_Ints, NDArray[np.bool_]]:
        """Return the positions of these clients' examples, client by client, and which are held."""
        chosen = np.asarray(clients, dtype=np.int64)
        starts = self.partition.offsets[chosen]
        counts = self.partition.offsets[chosen + 1] - starts
        owner = np.repeat(np.arange(len(chosen)), counts)
        index_in_client = np.arange(len(owner)) - (np.cumsum(counts) - counts)[owner]
        positions = self.partition.indices[starts[owner] + index_in_client]
        held = np.zeros(len(owner), dtype=np.bool_)
        if self._held[chosen].any():
            identities = torch.from_numpy(self.partition.identities[chosen])
            keys = hashed(seed(self._seed, "holdout"), identities)
            drawn = hashed(keys[owner], torch.from_numpy(index_in_client)).numpy()
            held[np.lexsort((drawn, owner))] = index_in_client < self._held[chosen][owner]
        return positions, held

    def train_indices(self, client: int) -> _Ints:
        """Return the positions in the training split that `client` trains on, sorted."""
        return self.train_examples([client])

    def train_examples(self, clients: Sequence[int]) -> _Ints:
        """Return the `train_indices` of each of `clients`, one after the other."""
        positions, held = self._divided(clients)
        return positions[~held]

    def holdout_indices(self, client: int) -> _Ints:
        """Return the positions that `client` keeps for evaluation, sorted; may be empty."""
        return self.holdout_examples([client])

    def holdout_examples(self, clients: Sequence[int]) -> _Ints:
        """Return the `holdout_indices` of each of `clients`, one after the other."""
        positions, held = self._divided(clients)
        return positions[held]

    def train_sizes(self, clients: Sequence[int]) -> list[int]:
        """Return the number of examples that each of `clients` trains on."""
        offsets, chosen = self.partition.offsets, np.asarray(clients, dtype=np.int64)
        sizes: list[int] = (offsets[chosen + 1] - offsets[chosen] - self._held[chosen]).tolist()
        return sizes

    def holdout_sizes(self, clients: Sequence[int]) -> list[int]:
        """Return the number of examples that each of `clients` keeps for evaluation."""
        sizes: list[int] = self._held[np.asarray(clients, dtype=np.int64)].tolist()
        return sizes

    def evaluating(self) -> list[int]:
        """Return the clients that hold out at least one example."""
        holding: list[int] = self._evaluating.tolist()
        return holding

    def training(self) -> list[int]:
        """Return the clients that are drawn: all but the `idle`."""
        drawn: list[int] = self._training.tolist()
        return drawn

    def draw(
        self,
        server_round: int,
        size: int,
        among: Sequence[int] | None = None,
        stream: Sequence[str] = (),
    ) -> list[int]:
        """Return the round's cohort: `size` different clients, uniformly, in client order.

        They are drawn `among` these, which are sorted; None: among all that train. Cohorts of
        another `stream` are independent.
        """
        key, able = seed(self._seed, "cohort", server_round, *stream), self._training
        if among is not None:
            able = np.asarray(among, dtype=np.int64)
        counters = self._counters if len(able) == len(self) else self._counters[able]
        drawn: list[int] = able[self._lowest(key, counters, size)].tolist()
        return drawn

    def draw_each(self, server_round: int, expected: int, stream: Sequence[str] = ()) -> list[int]:
        """Return a cohort in which each client is with the same probability, by itself.

        `expected` is the mean size; in client order, perhaps empty. (Poisson sampling.) Cohorts of
        another `stream` are independent.
        """
        able = self._training
        if expected >= len(able):
            return self.training()
        key = seed(self._seed, "poisson cohort", server_round, *stream)
        counters = self._counters if len(able) == len(self) else self._counters[able]
        below = np.uint64(expected * 2**64 // len(able))
        drawn: list[int] = able[hash_ranks(key, counters) < below].tolist()
        return drawn

    def draw_in_turn(self, server_round: int, size: int) -> list[int]:
        """Return the next `size` clients of an order that is the same in each pass.

        In client order; the last cohort of a pass is the rest. So everybody takes part once before
        anybody does again, and with as many rounds from one turn to the next.
        """
        order = self._order()
        turn = (server_round - 1) % -(-len(order) // size)
        drawn: list[int] = np.sort(order[turn * size : (turn + 1) * size]).tolist()
        return drawn

    def draw_around(self, server_round: int, size: int) -> list[int]:
        """Return the next `size` clients of the same order, which begins again where it ends.

        In client order, always as many. So nobody takes part twice more often than anybody else.
        """
        order = self._order()
        places = np.arange((server_round - 1) * size, server_round * size) % len(order)
        drawn: list[int] = np.sort(order[places]).tolist()
        return drawn

    def _order(self) -> _Ints:
        """Return the clients that are drawn, in an order of the seed."""
        able = self._training
        counters = self._counters if len(able) == len(self) else self._counters[able]
        order: _Ints = able[np.argsort(hash_ranks(seed(self._seed, "turns"), counters))]
        return order

    def attackers(self, size: int) -> frozenset[int]:
        """Return `size` different clients of `training`, uniformly, the same in every round."""
        able = self._training
        key = seed(self._seed, "attackers")
        lowest = self._lowest(key, self._counters[able], min(size, len(able)))
        return frozenset(able[lowest].tolist())

    def draw_evaluating(self, server_round: int, size: int) -> list[int]:
        """Return `size` different clients of `evaluating`, uniformly, in client order."""
        if size >= len(self._evaluating):
            return self.evaluating()
        counters = self._counters[self._evaluating]
        lowest = self._lowest(seed(self._seed, "evaluation", server_round), counters, size)
        drawn: list[int] = self._evaluating[lowest].tolist()
        return drawn

    @staticmethod
    def _lowest(key: int, counters: NDArray[np.uint64], size: int) -> _Ints:
        """Return the places of the `size` lowest hashes, sorted."""
        ranks = hash_ranks(key, counters)
        # Hashes are uniform, so only those below a bound need to be looked at: 8 deviations more
        # than wanted are expected below it, and in the rare other case all are looked at.
        wanted = size + 8 * size**0.5 + 64
        low = np.arange(len(ranks))
        if wanted < len(ranks):
            below = np.flatnonzero(ranks < np.uint64(int(wanted / len(ranks) * 2**64)))
            low = below if len(below) >= size else low
        if size < len(low):
            low = low[np.argpartition(ranks[low], size - 1)[:size]]
        return np.sort(low)


def _nothing_held(fraction: float, largest: int) -> str:
    problem = f"federated.holdout_fraction={fraction:g}, but no client holds out an example: "
    if largest == 1:
        return problem + (
            "each has a single one, which it trains on. Set federated.holdout_fraction=0, or "
            "divide the data among fewer clients."
        )
    return problem + (
        f"of {largest} examples, the most that one has, that is less than one. Set "
        f"federated.holdout_fraction to at least {_ceiled(1 / largest)}, or to 0."
    )


def _ceiled(share: float) -> str:
    """Return a share in (0, 1] with 3 digits, rounded up: it must suffice as it is printed."""
    return f"{-(-share * 10**4 // 1) / 10**4:g}"
