"""Dropout whose mask is a function of a key, not of a generator's history.

`torch.nn.Dropout` draws from the process-wide generator, so a client's mask would depend on
who trained before it, and on whether clients are trained one by one or stacked. Here the mask
of element `i` of a batch is a hash of (key, i): the same in any process, order or vmap.
"""

from __future__ import annotations

from math import prod

import torch
from torch import Tensor, nn

from heliotrope.seeding import hashed

__all__ = ["SeededDropout", "dropout_keys", "reseed"]


def _uniform(key: Tensor, start: int, count: int) -> Tensor:
    """Return floats in [0, 1), float32, hashed from an int64 scalar `key` and each place."""
    z = hashed(key, torch.arange(start, start + count, device=key.device))
    return ((z >> 40) & 0xFFFFFF).to(torch.float32) * 2.0**-24


class SeededDropout(nn.Module):
    """Zero each element with probability `p` and scale the rest by 1/(1-p), while training.

    The buffer `key` (int64 scalar, not saved) must be set before each step: see `reseed`.
    Elements are counted along the flattened input, examples first, so padding at the end of
    a batch does not change the mask of the real examples. `first` is the place of the first
    example in a batch that several workers share: each draws its part of the batch's one mask.
    """

    key: Tensor

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p
        self.first = 0
        self.register_buffer("key", torch.zeros((), dtype=torch.int64), persistent=False)

    def forward(self, inputs: Tensor) -> Tensor:
        if not self.training or self.p == 0.0:
            return inputs
        start = self.first * prod(inputs.shape[1:])
        kept = _uniform(self.key, start, inputs.numel()).view(inputs.shape) >= self.p
        return inputs * kept / (1.0 - self.p)

    def extra_repr(self) -> str:
        return f"p={self.p}"


def dropout_keys(model: nn.Module, step_seeds: Tensor) -> dict[str, Tensor]:
    """Return the keys of every dropout layer, shaped as `step_seeds`, by the name of its buffer.

    Layers are told apart by their order, so that a wrapper around the model changes nothing.
    """
    names = [name for name, layer in model.named_modules() if isinstance(layer, SeededDropout)]
    return {
        f"{name}.key": hashed(step_seeds, torch.tensor(index)) for index, name in enumerate(names)
    }


def reseed(model: nn.Module, step_seed: int, first: int = 0) -> None:
    """Set the key of every dropout layer of `model` for the next step.

    `first` is the place of the step's first example in a batch shared among workers.
    """
    layers = [layer for layer in model.modules() if isinstance(layer, SeededDropout)]
    for index, layer in enumerate(layers):
        layer.key.copy_(hashed(step_seed, torch.tensor(index)))
        layer.first = first
