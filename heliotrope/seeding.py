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

__all__ = ["isolated_rng", "numpy_generator", "seed", "torch_generator"]


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
