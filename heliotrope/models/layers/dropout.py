"""Dropout that gives every example the same mask wherever and with whom it is trained."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from heliotrope.models.layers.seeded import SeededLayer, kept

__all__ = ["SeededDropout", "VariationalDropout", "seed_dropout"]


class SeededDropout(SeededLayer, nn.Dropout):
    """Zero each element with probability `p` and scale the rest by 1/(1-p), while training.

    The first dimension of what it is given counts the examples.
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p
        self.inplace = False

    def forward(self, inputs: Tensor) -> Tensor:
        if not self.training or self.p == 0.0:
            return inputs
        if self.p == 1.0:
            return inputs.zero_() if self.inplace else torch.zeros_like(inputs)
        mask = kept(self.next_key(), self.first, self._mask_shape(inputs), self.p)
        scale = mask.to(inputs.dtype) * (1.0 / (1.0 - self.p))
        return inputs.mul_(scale) if self.inplace else inputs * scale

    def _mask_shape(self, inputs: Tensor) -> Sequence[int]:
        return inputs.shape

    def extra_repr(self) -> str:
        return f"p={self.p}"


class VariationalDropout(SeededDropout):
    """Dropout of sequences [B, L, D] by one mask for all L positions of a sequence.

    Source: Gal and Ghahramani (2016), as Merity et al. (2018) apply it between recurrent layers.
    """

    def _mask_shape(self, inputs: Tensor) -> Sequence[int]:
        return inputs.shape[0], 1, inputs.shape[2]


def seed_dropout(model: nn.Module) -> None:
    """Turn every `nn.Dropout` of a user's model, in place, into one that is drawn from seeds."""
    for layer in model.modules():
        if type(layer) is nn.Dropout:
            layer.__class__ = SeededDropout
            assert isinstance(layer, SeededDropout)
            layer.begin()
