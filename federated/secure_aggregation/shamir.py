"""Shamir's secret sharing, of several secrets at once, over the field of pycryptodome.

Shares are those of `Crypto.Protocol.SecretSharing.Shamir`, bit for bit: elements of GF(2^128)
modulo x^128 + x^7 + x^2 + x + 1, blocks of 16 bytes, big-endian, with the secret as the
polynomial's constant term. The library computes them one by one, in some milliseconds each; here
all holders' shares are computed together, and the weights of one set of holders once.

Shape legend: N holders, B blocks of 16 bytes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from .primitives import random_bytes

__all__ = ["combined", "split"]

_BLOCK = 16
_FIELD = (1 << 128) | 0x87  # x^128 + x^7 + x^2 + x + 1
_Words = NDArray[np.uint64]


def split(secret: bytes, threshold: int, points: Sequence[int]) -> list[bytes]:
    """Return a share of `secret` for each of `points`, of which any `threshold` give it back.

    Parameters
    ----------
    secret
        Of a multiple of 16 bytes.
    threshold
        The number of coefficients of the polynomial, all drawn anew but for the secret.
    points
        Different whole numbers from 1, below 2^16.
    """
    if len(secret) % _BLOCK or not 1 <= threshold <= len(points):
        raise ValueError(f"{threshold} of {len(points)} shares of {len(secret)} bytes")
    if len(set(points)) < len(points) or min(points) < 1 or max(points) >= 1 << 16:
        raise ValueError("points must differ, from 1 to 65535")
    drawn = random_bytes(len(secret) * (threshold - 1))
    whole = np.frombuffer(drawn + secret, ">u8").astype(np.uint64)
    coefficients = whole.reshape(threshold, -1, 2)  # [threshold, B, (high, low)], constant last
    high, low = (np.zeros((len(points), coefficients.shape[1]), np.uint64) for _ in range(2))
    chosen = _bits(np.asarray(points, np.uint64)[:, None])
    for coefficient in coefficients:  # Horner's rule
        high, low = _times(high, low, chosen)
        high ^= coefficient[:, 0]
        low ^= coefficient[:, 1]
    shares = np.stack([high, low], axis=2).astype(">u8")
    return [share.tobytes() for share in shares]


def combined(shares: Mapping[int, bytes], threshold: int) -> bytes:
    """Return the secret from the shares at `threshold` or more points.

    Raises `ValueError` if they are too few, or of different lengths.
    """
    if len(shares) < threshold:
        raise ValueError(f"{len(shares)} shares where {threshold} are needed")
    points = tuple(sorted(shares)[:threshold])
    if len({len(shares[point]) for point in points}) != 1:
        raise ValueError("shares of different lengths")
    weights = _weights(points)
    secret = b""
    for start in range(0, len(shares[points[0]]), _BLOCK):
        total = 0
        for point, weight in zip(points, weights, strict=True):
            value = int.from_bytes(shares[point][start : start + _BLOCK], "big")
            total ^= _product(value, weight)
        secret += _reduced(total).to_bytes(_BLOCK, "big")
    return secret


def _bits(points: _Words) -> list[tuple[np.uint64, _Words]]:
    """Return each bit of `points` [N, 1], and all ones where a point has it."""
    count = int(points.max()).bit_length()
    return [
        (np.uint64(bit), np.uint64(0) - (points >> np.uint64(bit) & np.uint64(1)))
        for bit in range(count)
    ]


def _times(
    high: _Words, low: _Words, chosen: Sequence[tuple[np.uint64, _Words]]
) -> tuple[_Words, _Words]:
    """Return elements [N, B] times the small numbers of `_bits`, without a branch on them."""
    word = np.uint64(64)
    (_, first), *others = chosen
    upper, lower = high & first, low & first
    over = np.zeros_like(high)  # what goes beyond x^127
    for bit, has in others:
        back = word - bit
        over ^= high >> back & has
        upper ^= (high << bit | low >> back) & has
        lower ^= low << bit & has
    for shift in (0, 1, 2, 7):  # x^128 = x^7 + x^2 + x + 1; `over` has 15 bits at most
        lower ^= over << np.uint64(shift)
    return upper, lower


@lru_cache(maxsize=1024)
def _weights(points: tuple[int, ...]) -> tuple[int, ...]:
    """Return what each point's share counts in the polynomial's value at 0 (Lagrange)."""
    found = []
    for point in points:
        above, below = 1, 1
        for other in points:
            if other != point:
                above = _reduced(_product(above, other))
                below = _reduced(_product(below, other ^ point))
        found.append(_reduced(_product(above, _inverse(below))))
    return tuple(found)


def _product(one: int, other: int) -> int:
    """Return the product of two polynomials over GF(2), not reduced."""
    if one.bit_length() < other.bit_length():
        one, other = other, one
    total = 0
    while other:
        lowest = other & -other
        total ^= one * lowest
        other ^= lowest
    return total


def _reduced(value: int) -> int:
    while (excess := value.bit_length() - 129) >= 0:
        value ^= _FIELD << excess
    return value


def _inverse(value: int) -> int:
    """Return the inverse by Euclid's algorithm over polynomials."""
    before, now, last, this = _FIELD, value, 0, 1
    while now != 1:
        shift = before.bit_length() - now.bit_length()
        if shift < 0:
            before, now, last, this, shift = now, before, this, last, -shift
        before ^= now << shift
        last ^= this << shift
        if before.bit_length() < now.bit_length():
            before, now, last, this = now, before, this, last
    return this
