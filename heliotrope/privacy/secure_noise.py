"""Normal numbers that nobody can foresee: from the operating system's cryptographic generator."""

from __future__ import annotations

import os

import numpy as np
from numpy.typing import NDArray

__all__ = ["SECURE_SOURCE", "SEEDED_SOURCE", "SecureNormals"]

SEEDED_SOURCE = "seeded generator (PCG64): a simulation, which repeats itself"
SECURE_SOURCE = (
    "the operating system's cryptographic generator (os.urandom), by Box and Muller in float64"
)
"""What a run says of where its noise is from."""

_BITS = 53  # of each uniform number: as many as float64 holds


class SecureNormals:
    """Standard normal numbers, in place of a NumPy generator of a known seed.

    By the transform of Box and Muller 1958, of uniform numbers of 53 bits. They are of float64, in
    whose lowest bits no Gaussian is exact (Mironov 2012, "On significance of the least significant
    bits for differential privacy"), and none is beyond 8.7.
    """

    def standard_normal(self, size: tuple[int, ...], /) -> NDArray[np.float64]:
        """Return fresh numbers, float64 [*size]."""
        count = int(np.prod(size, dtype=np.int64))
        pairs = -(-count // 2)
        drawn = np.frombuffer(os.urandom(16 * pairs), dtype="<u8") >> np.uint64(64 - _BITS)
        uniform = (drawn.astype(np.float64) + 0.5) * 2.0**-_BITS  # above 0, as a logarithm needs
        radius, angle = np.sqrt(-2 * np.log(uniform[:pairs])), 2 * np.pi * uniform[pairs:]
        both = np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])
        return both[:count].reshape(size)
