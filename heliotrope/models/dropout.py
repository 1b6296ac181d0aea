"""Dropout that gives every example the same mask wherever and with whom it is trained."""

from __future__ import annotations

from math import prod

from torch import Tensor

from heliotrope.models.seeded import SeededLayer, kept

__all__ = ["SeededDropout"]


class SeededDropout(SeededLayer):
    """Zero each element with probability `p` and scale the rest by 1/(1-p), while training."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, inputs: Tensor) -> Tensor:
        if not self.training or self.p == 0.0:
            return inputs
        start = self.first * prod(inputs.shape[1:])
        mask = kept(self.key, start, inputs.numel(), self.p).view(inputs.shape)
        return inputs * (mask.to(inputs.dtype) * (1.0 / (1.0 - self.p)))

    def extra_repr(self) -> str:
        return f"p={self.p}"
