"""What clients and server send each other: plain values, one class a message.

In the order of the four stages. A client is its number; public keys are 32 bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "Advertisement",
    "EncryptedShares",
    "ForwardedShares",
    "MaskedInput",
    "RefusedMessageError",
    "RevealedShares",
    "Roster",
    "Setup",
    "Survivors",
    "Vector",
]


class RefusedMessageError(ValueError):
    """A message that its receiver does not act on: what is wrong with it, and who is named."""


@dataclass(frozen=True)
class Setup:
    """From the server to all, before anything else: what the round is.

    Parameters
    ----------
    session
        32 bytes of public randomness, new in each round: the graph and all keys depend on it.
    threshold
        Clients that must be left at the end for the sum to be opened.
    neighbours
        With how many others each client shares masks and secrets.
    bits
        Of one masked value: 16, 32 or 64.
    size
        The number of values.
    numbers
        How many numbers of 64 bits are masked beside them.
    """

    session: bytes
    threshold: int
    neighbours: int
    bits: int
    size: int
    numbers: int

    @property
    def dtype(self) -> np.dtype[Any]:
        """The type of a masked value."""
        return np.dtype(f"uint{self.bits}")


@dataclass(frozen=True)
class Vector:
    """What is added up: unsigned integers modulo 2^bits [size], and modulo 2^64 [numbers]."""

    values: NDArray[Any]
    numbers: NDArray[np.uint64]

    @classmethod
    def zeros(cls, setup: Setup) -> Vector:
        """Return the sum of nothing."""
        return cls(np.zeros(setup.size, setup.dtype), np.zeros(setup.numbers, np.uint64))

    @property
    def parts(self) -> tuple[NDArray[Any], NDArray[Any]]:
        """Both arrays, in the order that masks go over them."""
        return self.values, self.numbers

    def copy(self) -> Vector:
        """Return one that shares no memory with this."""
        return Vector(self.values.copy(), self.numbers.copy())

    def add(self, other: Vector) -> None:
        """Add another in place, modulo the words' size."""
        for own, more in zip(self.parts, other.parts, strict=True):
            np.add(own, more, out=own)

    def fits(self, setup: Setup) -> bool:
        """Return whether it is of the round's lengths and types."""
        wanted = (setup.dtype, np.dtype(np.uint64)), (setup.size, setup.numbers)
        return (tuple(a.dtype for a in self.parts), tuple(a.size for a in self.parts)) == wanted


@dataclass(frozen=True)
class Advertisement:
    """Stage 1, from a client: its public keys, for sealed shares and for pairwise masks."""

    client: int
    sealing_key: bytes
    masking_key: bytes


@dataclass(frozen=True)
class Roster:
    """Stage 2, to a client: who takes part, and its neighbours' advertisements."""

    clients: tuple[int, ...]
    neighbours: tuple[Advertisement, ...]


@dataclass(frozen=True)
class EncryptedShares:
    """Stage 2, from a client: a share of both its secrets for each neighbour, sealed for it.

    `commitment` is that of the seed of its own mask.
    """

    client: int
    commitment: bytes
    shares: Mapping[int, bytes]


@dataclass(frozen=True)
class ForwardedShares:
    """Stage 3, to a client: its neighbours' sealed shares for it, by who sent them."""

    shares: Mapping[int, bytes]


@dataclass(frozen=True)
class MaskedInput:
    """Stage 3, from a client: its vector under its own mask and those that it has with others."""

    client: int
    vector: Vector


@dataclass(frozen=True)
class Survivors:
    """Stage 4, to a client: whose input has arrived, of its neighbours and itself, and whose not.

    Only those are `dropped` whose shares were forwarded before.
    """

    alive: tuple[int, ...]
    dropped: tuple[int, ...]


@dataclass(frozen=True)
class RevealedShares:
    """Stage 4, from a client: its shares of the seeds of those alive, and of the keys of others."""

    client: int
    seeds: Mapping[int, bytes]
    keys: Mapping[int, bytes]
