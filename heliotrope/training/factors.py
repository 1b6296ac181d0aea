"""Layers whose gradients are products, and the norms of single examples' gradients.

Shape legend: B examples, I inputs, O outputs of a layer, D numbers of a parameter.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from heliotrope.data import Batch

__all__ = ["Factors", "flat", "is_product", "norms_of"]


class Factors(NamedTuple):
    """Of the gradients of a dense layer on one vector an example."""

    inputs: Tensor  # [B, I]
    by_outputs: Tensor  # [B, O]
    biased: bool


def norms_of(count: int, whole: Batch, factors: Mapping[str, Factors]) -> Tensor:
    """Return the norm of each example's gradient, [B]."""
    squares = [flat(value).square().sum(dim=1).double() for value in whole.values()]
    for inputs, by_outputs, biased in factors.values():
        # In float32 the square of a tiny factor is 0, also where the other one is as large.
        lengths = _squared_lengths(inputs) + biased  # a bias has an input of 1
        squares.append(lengths * _squared_lengths(by_outputs))
    return torch.stack(squares).sum(dim=0).sqrt() if squares else torch.zeros(count)


def _squared_lengths(rows: Tensor) -> Tensor:
    """Return the squared length of each row, float64 [B]."""
    lengths: Tensor = torch.linalg.vector_norm(rows, dim=1, dtype=torch.float64)
    return lengths.square()


def is_product(module: nn.Module) -> bool:
    """Return whether a layer's gradient is a product of what goes in and of that by the output."""
    hooked = module._forward_hooks or module._forward_pre_hooks or module._backward_hooks  # noqa: SLF001
    if hooked or "forward" in vars(module):  # what comes out may be something else
        return False
    if type(module) is nn.Linear:
        return True
    return (
        type(module) is nn.Conv2d
        and module.groups == 1
        and module.padding_mode == "zeros"
        and not isinstance(module.padding, str)
    )


def flat(values: Tensor) -> Tensor:
    """Return one row for each example, [B, D], also of single numbers and of none."""
    return values.reshape(len(values), math.prod(values.shape[1:]))
