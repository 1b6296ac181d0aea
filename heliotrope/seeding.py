"""Seeds derived from names, so that no result depends on the order in which things happen.

Every random draw takes its generator from the run's seed and a path such as
`("order", round, client)`. Nothing reads or moves the process-wide random state.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from operator import index

import numpy as np
import torch
from torch import Tensor

__all__ = [
    "hashed",
    "hashed_number",
    "isolated_rng",
    "numpy_generator",
    "ranked",
    "seed",
    "splitmix",
    "torch_generator",
    "wrapped",
]

# splitmix64 (Steele et al. 2014), as signed 64-bit integers: torch's int64 wraps like uint64.
_GAMMA = 0x9E3779B97F4A7C15 - (1 << 64)
_MIX_1 = 0xBF58476D1CE4E5B9 - (1 << 64)
_MIX_2 = 0x94D049BB133111EB - (1 << 64)


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
    number is the same whatever else is drawn with it. `counter` counts from 0.
    """
    return splitmix(key + (counter + 1) * _GAMMA)


def hashed_number(key: int, counter: int) -> int:
    """Return what `hashed` gives for one number, without tensors: some thirty times faster."""
    z = (key + (counter + 1) * _GAMMA) % (1 << 64)
    z = ((z ^ z >> 30) * _MIX_1) % (1 << 64)
    z = ((z ^ z >> 27) * _MIX_2) % (1 << 64)
    return wrapped(z ^ z >> 31)


def ranked(key: Tensor, start: Tensor, count: int) -> Tensor:
    """Return `count` numbers of the stream `key` from number `start` on, for comparisons only.

    These are `hashed` but for the last of its operations, which leaves the upper 31 bits alone.
    """
    state = torch.arange(1, count + 1, device=key.device) * _GAMMA + (key + start * _GAMMA)
    return _mixed(state)


def splitmix(state: Tensor) -> Tensor:
    """Return the output of splitmix64 for each int64 state; one-to-one."""
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
    """Seed torch's process-wide CPU generator with `value` inside the block, restore it after.

    For library code that can draw from nowhere else (the initialisers of `torch.nn` layers).
    Those of the GPUs are left alone: to look at them would start CUDA.
    """
    generator = torch.default_generator
    before = generator.get_state()
    generator.manual_seed(value)
    try:
        yield
    finally:
        generator.set_state(before)
