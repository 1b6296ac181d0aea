"""A linear layer of sequences as one product, whatever the order of their dimensions in memory."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["linear"]

_kernel = torch.nn.functional.linear


def linear(inputs: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """In the place of `torch.nn.functional.linear`.

    Where `inputs` are transposed, vmap would copy the weights for each step in time.
    """
    if inputs.dim() < 3:
        return _kernel(inputs, weight, bias)
    outputs = _kernel(inputs.flatten(0, -2), weight, bias)
    return outputs.view(*inputs.shape[:-1], -1)
