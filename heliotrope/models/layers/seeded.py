"""Layers whose random draws are a function of a key, not of a generator's history.

A layer that draws from the process-wide generator would treat a client differently with who
trained before it, and with whether clients are trained one by one or stacked. Here every draw
is a hash of the layer's key and a place in the batch: the same in any process, order or vmap.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from heliotrope.seeding import hashed, hashed_number, ranked, wrapped

__all__ = [
    "SeededLayer",
    "draw_numbers",
    "kept",
    "layer_keys",
    "reseed",
    "seeded_layers",
    "uniform",
]

_APART = 1 << 16  # from one place of a dimension to the next, in numbers of the dimension after it
_DIMENSIONS = 3  # of an example that are told apart so, lest 2^64 numbers are too few


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
    calls: int  # of this layer in the present step: each draws anew

    def __init__(self) -> None:
        super().__init__()
        self.begin()

    def begin(self) -> None:
        """Give the layer what it draws from."""
        self.register_buffer("key", torch.zeros((), dtype=torch.int64), persistent=False)
        self.register_buffer("first", torch.zeros((), dtype=torch.int64), persistent=False)
        self.calls = 0

    def next_key(self) -> Tensor:
        """Return the key of this call: a layer may stand at several places of a model."""
        key = self.key if self.calls == 0 else hashed(self.key, torch.tensor(self.calls - 1))
        self.calls += 1
        return key


def uniform(key: Tensor, start: Tensor, count: int) -> Tensor:
    """Return `count` floats in [0, 1), float32, from number `start` of the stream `key` on."""
    z = hashed(key, start + torch.arange(count, device=key.device))
    return ((z >> 40) & 0xFFFFFF).to(torch.float32) * 2.0**-24


def kept(key: Tensor, first: Tensor, shape: Sequence[int], p: float) -> Tensor:
    """Return draws of `shape`, bool, each false with probability `p`.

    The first dimension counts examples; `first` is the place of the first one. A draw follows from
    its place in every dimension, whatever their sizes up to 65,536: so an element of a sequence is
    treated alike however far its batch is padded.
    """
    return ranked(key, draw_numbers(first, shape)) >= int(p * 2**64) - 2**63


def draw_numbers(first: Tensor, shape: Sequence[int]) -> Tensor:
    """Return the number of each draw in its stream, int64 of `shape`; no two are the same."""
    examples, *inner = shape or (1,)
    if len(inner) > _DIMENSIONS:
        inner = [math.prod(inner[:-2]), *inner[-2:]]
    numbers, step = torch.zeros((), dtype=torch.int64, device=first.device), 1
    for size in reversed(inner):
        along = torch.arange(size, device=first.device) * wrapped(step)
        numbers = along.view(-1, *[1] * numbers.dim()) + numbers
        step *= max(_APART, 1 << (size - 1).bit_length())
    along = (first + torch.arange(examples, device=first.device)) * wrapped(step)
    return (along.view(-1, *[1] * numbers.dim()) + numbers).view(shape)


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
    for index, layer in enumerate(seeded_layers(model)):
        layer.key.fill_(hashed_number(step_seed, index))
        layer.first.fill_(first)
        layer.calls = 0


def seeded_layers(model: nn.Module) -> list[SeededLayer]:
    """Return the layers of `model` whose draws are seeded, in order."""
    return [layer for layer in model.modules() if isinstance(layer, SeededLayer)]
