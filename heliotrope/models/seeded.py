"""Layers whose random draws are a function of a key, not of a generator's history.

A layer that draws from the process-wide generator would treat a client differently with who
trained before it, and with whether clients are trained one by one or stacked. Here every draw
is a hash of the layer's key and a place in the batch: the same in any process, order or vmap.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from heliotrope.seeding import hashed, hashed_number, ranked

__all__ = ["SeededLayer", "kept", "layer_keys", "reseed", "uniform"]


class SeededLayer(nn.Module):
    """Base of such layers.

    The buffers `key` and `first` (int64 scalars, not saved) must be set before each step: see
    `reseed`. Both are tensors, for a compiled step is compiled anew for every other number.
    Draws are counted along the batch, so padding at its end does not change those of the real
    examples. `first` is the place of the first example in a batch that several workers share:
    each draws its part of the batch's one sequence.
    """

    key: Tensor
    first: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("key", torch.zeros((), dtype=torch.int64), persistent=False)
        self.register_buffer("first", torch.zeros((), dtype=torch.int64), persistent=False)


def uniform(key: Tensor, start: Tensor, count: int) -> Tensor:
    """Return `count` floats in [0, 1), float32, from number `start` of the stream `key` on."""
    z = hashed(key, start + torch.arange(count, device=key.device))
    return ((z >> 40) & 0xFFFFFF).to(torch.float32) * 2.0**-24


def kept(key: Tensor, start: Tensor, count: int, p: float) -> Tensor:
    """Return `count` draws, bool, each false with probability `p`, from number `start` on."""
    return ranked(key, start, count) >= int(p * 2**64) - 2**63


def layer_keys(model: nn.Module, step_seeds: Tensor) -> dict[str, Tensor]:
    """Return the keys of every seeded layer, shaped as `step_seeds`, by the name of its buffer.

    Layers are told apart by their order, so that a wrapper around the model changes nothing.
    """
    names = [name for name, layer in model.named_modules() if isinstance(layer, SeededLayer)]
    return {
        f"{name}.key": hashed(step_seeds, torch.tensor(index)) for index, name in enumerate(names)
    }


def reseed(model: nn.Module, step_seed: int, first: int = 0) -> None:
    """Set the key of every seeded layer of `model` for the next step.

    `first` is the place of the step's first example in a batch shared among workers.
    """
    layers = [layer for layer in model.modules() if isinstance(layer, SeededLayer)]
    for index, layer in enumerate(layers):
        layer.key.fill_(hashed_number(step_seed, index))
        layer.first.fill_(first)
