"""A step of DP-SGD (Abadi et al. 2016, arXiv:1607.00133): who is drawn, and what is released.

Of N examples each is drawn by itself, with probability B/N. To the sum of their clipped gradients
(see `per_example`) noise is added once, and the result is divided by B, the number that is
expected, not by the number that was drawn.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from heliotrope.seeding import hash_counters, hash_ranks, numpy_generator

__all__ = ["poisson_batches", "release_sums", "step_noise"]


def poisson_batches(keys: Iterable[int], examples: int, expected: int) -> list[Tensor]:
    """Return the places that a step with each of `keys` draws, int64 in their order; perhaps none.

    Each of `examples` is drawn by itself, with probability `expected / examples`.
    """
    if expected >= examples:
        return [torch.arange(examples) for _ in keys]
    counters = hash_counters(np.arange(examples, dtype=np.int64))
    below = np.uint64(expected * 2**64 // examples)
    return [torch.from_numpy(np.flatnonzero(hash_ranks(key, counters) < below)) for key in keys]


def step_noise(step_seed: int, stamp: str, count: int, deviation: float) -> Tensor:
    """Return the noise on a step's sum of gradients, float32 [count].

    `step_seed` follows from the run and the step, `stamp` says what else the sum depends on (see
    `heliotrope.privacy.ledger.release_stamp`). `deviation` is in units of the gradients;
    noise of another deviation is independent.
    """
    generator = numpy_generator(step_seed, "privacy", stamp, repr(deviation))
    drawn = torch.from_numpy(generator.standard_normal(count, dtype=np.float32))
    return drawn.mul_(deviation)


def release_sums(
    parameters: Sequence[nn.Parameter],
    noise: Tensor,
    expected: int,
    penalty: Callable[[], Tensor] | None = None,
) -> None:
    """Make of the parameters' gradients, which are clipped sums, a noisy mean.

    Parameters
    ----------
    parameters
        Those trained, each once; all have a gradient.
    noise
        [D], of all of them one after the other.
    expected
        How many examples a step expects.
    penalty
        Of the weights, which tells nothing of the examples: its gradient is added as it is.
    """
    parts = torch.split(noise, [p.numel() for p in parameters])
    for parameter, part in zip(parameters, parts, strict=True):
        gradient = parameter.grad
        assert gradient is not None
        gradient.add_(part.view_as(gradient).to(gradient)).div_(expected)
    if penalty is not None:
        torch.autograd.backward(penalty())
