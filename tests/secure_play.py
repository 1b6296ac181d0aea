"""Rounds of the secure sum, in which clients leave and the server is sent what it is sent."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from federated.secure_aggregation.client import Client
from federated.secure_aggregation.messages import (
    ForwardedShares,
    Roster,
    Setup,
    Survivors,
    Vector,
)
from federated.secure_aggregation.server import Server

__all__ = ["Play", "new_play", "new_setup", "random_vectors", "same", "sum_of"]


def new_setup(threshold: int, neighbours: int, bits: int = 32, size: int = 50) -> Setup:
    """Return a round's settings, of a session of its own."""
    return Setup(secrets.token_bytes(32), threshold, neighbours, bits, size, 3)


def random_vectors(setup: Setup, clients: Sequence[int]) -> dict[int, Vector]:
    """Return an input for each client, of random whole numbers."""
    seed = secrets.randbits(32)
    print("seed of the vectors", seed)
    rng = np.random.default_rng(seed)
    return {
        client: Vector(
            rng.integers(0, 2**setup.bits, setup.size, setup.dtype),
            rng.integers(0, 2**64, setup.numbers, np.uint64),
        )
        for client in clients
    }


def sum_of(setup: Setup, vectors: Sequence[Vector]) -> Vector:
    """Add Python's whole numbers, and take the remainder once."""
    values = np.sum([v.values.astype(object) for v in vectors], axis=0) % 2**setup.bits
    numbers = np.sum([v.numbers.astype(object) for v in vectors], axis=0) % 2**64
    return Vector(values.astype(setup.dtype), numbers.astype(np.uint64))


def same(one: Vector, other: Vector) -> bool:
    """Return whether two vectors are equal in all parts."""
    return all(np.array_equal(a, b) for a, b in zip(one.parts, other.parts, strict=True))


@dataclass
class Play:
    """A round: who leaves before which stage, and all that the server was sent."""

    setup: Setup
    vectors: dict[int, Vector]
    leaving: dict[int, frozenset[int]] = field(default_factory=dict)
    sent: list[Any] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.server = Server(self.setup, list(self.vectors))
        self.clients = {number: Client(number, self.setup) for number in self.vectors}
        self.gone: set[int] = set()

    def _here(self, stage: int, asked: Any) -> list[int]:
        self.gone |= self.leaving.get(stage, frozenset())
        return [number for number in asked if number not in self.gone]

    def advertise(self) -> dict[int, Roster]:
        for number in self._here(1, self.clients):
            self.sent.append(self.clients[number].advertise())
            self.server.receive_advertisement(self.sent[-1])
        return self.server.rosters()

    def share(self, rosters: dict[int, Roster]) -> dict[int, ForwardedShares]:
        for number in self._here(2, rosters):
            self.sent.append(self.clients[number].share_keys(rosters[number]))
            self.server.receive_shares(self.sent[-1])
        return self.server.forwarded()

    def mask(self, forwarded: dict[int, ForwardedShares]) -> dict[int, Survivors]:
        for number in self._here(3, forwarded):
            self.clients[number].receive_shares(forwarded[number])
            self.sent.append(self.clients[number].masked_input(self.vectors[number]))
            self.server.receive_input(self.sent[-1])
        return self.server.survivors()

    def open(self, survivors: dict[int, Survivors]) -> Vector:
        for number in self._here(4, survivors):
            self.sent.append(self.clients[number].reveal(survivors[number]))
            self.server.receive_revealed(self.sent[-1])
        return self.server.total()

    def run(self) -> Vector:
        return self.open(self.mask(self.share(self.advertise())))


def new_play(clients: int, threshold: int, neighbours: int, bits: int = 32, size: int = 50) -> Play:
    """Return a round of random clients, none of whom leaves."""
    setup = new_setup(threshold, neighbours, bits, size)
    numbers = sorted(secrets.SystemRandom().sample(range(1000), clients))
    return Play(setup, random_vectors(setup, numbers))
