"""Seeds derived from names, so that no result depends on the order in which things happen.

Every random draw takes its generator from the run's seed and a path such as
`("order", round, client)`. Nothing reads or moves the process-wide random state.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager
from operator import index
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = [
    "generator_states",
    "hash_counters",
    "hash_ranks",
    "hashed",
    "hashed_number",
    "isolated_rng",
    "numpy_generator",
    "ranked",
    "same_generator_states",
    "seed",
    "splitmix",
    "torch_generator",
    "wrapped",
]

# splitmix64 (Steele et al. 2014), as signed 64-bit integers: torch's int64 wraps like uint64.
_GAMMA = 0x9E3779B97F4A7C15 - (1 << 64)
_MIX_1 = 0xBF58476D1CE4E5B9 - (1 << 64)
_MIX_2 = 0x94D049BB133111EB - (1 << 64)

_BLOCK = 1 << 15  # numbers that `hash_ranks` mixes at a time, so that they stay in the cache


def seed(run_seed: int, *path: int | str) -> int:
    """Return a 63-bit seed for the stream named by `path` within the run.

    SHA-256 over the parts: streams are independent, and the same on every platform and
    Python version. `1` and `"1"` name different streams; `1` and NumPy's `int64(1)` the same.
    """
    text = "/".join(
        f"str:{part}" if isinstance(part, str) else f"int:{index(part)}"
        for part in (run_seed, *path)
    )
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1


def numpy_generator(run_seed: int, *path: int | str) -> np.random.Generator:
    """Return a NumPy generator for the stream named by `path`."""
    return np.random.Generator(np.random.PCG64(seed(run_seed, *path)))


def torch_generator(run_seed: int, *path: int | str) -> torch.Generator:
    """Return a CPU torch generator for the stream named by `path`."""
    return torch.Generator().manual_seed(seed(run_seed, *path))


def hashed(key: Tensor | int, counter: Tensor) -> Tensor:
    """Return number `counter` of the stream `key`, element by element: int64, all bits random.

    Generators that need no state: thousands of streams are drawn from in one call, and each
    number is the same whatever else is drawn with it. `counter` counts from 0; both are int64 and
    broadcast.
    """
    return splitmix(key + (counter + 1) * _GAMMA)


def hashed_number(key: int, counter: int) -> int:
    """Return what `hashed` gives for one number, without tensors: some thirty times faster."""
    z = (key + (counter + 1) * _GAMMA) % (1 << 64)
    z = ((z ^ z >> 30) * _MIX_1) % (1 << 64)
    z = ((z ^ z >> 27) * _MIX_2) % (1 << 64)
    return wrapped(z ^ z >> 31)


def ranked(key: Tensor, counters: Tensor) -> Tensor:
    """Return the numbers `counters` of the stream `key`, for comparisons only.

    These are `hashed` but for the last of its operations, which leaves the upper 31 bits alone.
    """
    return _mixed(counters * _GAMMA + (key + _GAMMA))


def hash_counters(counters: NDArray[np.int64]) -> NDArray[np.uint64]:
    """Return what `hash_ranks` needs of `counters`, [N], to be computed once for many keys."""
    return (counters.astype(np.uint64) + np.uint64(1)) * np.uint64(_GAMMA % (1 << 64))


def hash_ranks(key: int, counters: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Return numbers of the stream `key`, for comparisons only: a million take 1 ms.

    `counters` come from `hash_counters`, [N], as are the numbers. The upper 31 bits are those of
    `hashed`; different counters never give equal numbers.
    """
    ranks = np.empty_like(counters)
    shifted = np.empty(min(len(counters), _BLOCK), dtype=np.uint64)
    for start in range(0, len(counters), _BLOCK):
        z = ranks[start : start + _BLOCK]
        s = shifted[: len(z)]
        np.add(counters[start : start + _BLOCK], np.uint64(key % (1 << 64)), out=z)
        for bits, factor in ((30, _MIX_1), (27, _MIX_2)):
            np.right_shift(z, np.uint64(bits), out=s)
            np.bitwise_xor(z, s, out=z)
            np.multiply(z, np.uint64(factor % (1 << 64)), out=z)
    return ranks


def splitmix(state: Tensor) -> Tensor:
    """Return the output of splitmix64 (Steele et al. 2014) for each int64 state; one-to-one."""
    z = _mixed(state)
    return z ^ _shift(z, 31)


def wrapped(number: int) -> int:
    """Return an integer as int64 arithmetic leaves it: modulo 2^64, with a sign."""
    return (number + (1 << 63)) % (1 << 64) - (1 << 63)


def _mixed(state: Tensor) -> Tensor:
    z = (state ^ _shift(state, 30)) * _MIX_1
    return (z ^ _shift(z, 27)) * _MIX_2


def _shift(z: Tensor, bits: int) -> Tensor:
    """Logical right shift; torch's `>>` on int64 keeps the sign."""
    return (z >> bits) & ((1 << (64 - bits)) - 1)


@contextmanager
def isolated_rng(value: int) -> Iterator[None]:
    """Seed the process-wide generators of Python, NumPy and torch inside the block.

    For code that can draw from nowhere else: the initialisers of `torch.nn` layers, and modules
    of users. Their states are put back after the block. Only torch's CPU generator is meant: to
    look at those of the GPUs would start CUDA.
    """
    before = generator_states()
    random.seed(value)
    np.random.seed(value % (1 << 32))  # noqa: NPY002 - the generator that users' code draws from
    torch.default_generator.manual_seed(value)
    try:
        yield
    finally:
        python, numpy, torch_state = before
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002 - as above
        torch.default_generator.set_state(torch_state)


def generator_states() -> tuple[Any, Any, Tensor]:
    """Return the states of the process-wide generators of Python, NumPy and torch (CPU)."""
    numpy_state = np.random.get_state()  # noqa: NPY002 - the generator that users' code draws from
    return random.getstate(), numpy_state, torch.default_generator.get_state()


def same_generator_states(a: tuple[Any, Any, Tensor], b: tuple[Any, Any, Tensor]) -> bool:
    """Return whether nothing was drawn between two results of `generator_states`."""
    (kind, key, *places), (other_kind, other_key, *other_places) = a[1], b[1]
    numpy_same = [kind, *places] == [other_kind, *other_places] and np.array_equal(key, other_key)
    return a[0] == b[0] and numpy_same and torch.equal(a[2], b[2])
