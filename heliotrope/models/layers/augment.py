"""Random changes to images that leave their class as it is, while training."""

from __future__ import annotations

import torch
from torch import Tensor

from heliotrope.models.layers.seeded import SeededLayer, uniform

__all__ = ["SeededAugment"]


class SeededAugment(SeededLayer):
    """Move each image [C, H, W] of a batch by up to `shift` pixels, and mirror every other one.

    Both directions are drawn evenly from -shift to shift; what moves in at an edge repeats the
    edge. Mirrored are left and right, with probability 1/2 if `flip` is set.
    """

    def __init__(self, *, flip: bool, shift: int) -> None:
        super().__init__()
        self.flip = flip
        self.shift = shift

    def forward(self, inputs: Tensor) -> Tensor:
        if not self.training:
            return inputs
        count, channels, height, width = inputs.shape
        drawn = uniform(self.next_key(), 3 * self.first, 3 * count).view(count, 3).to(inputs.device)
        moves = (drawn[:, :2] * (2 * self.shift + 1)).long() - self.shift
        columns = torch.arange(width, device=inputs.device) + moves[:, 1:]
        if self.flip:
            mirrored = drawn[:, 2:] < 0.5
            columns = torch.where(mirrored, width - 1 - columns, columns)
        rows = torch.arange(height, device=inputs.device) + moves[:, :1]
        rows = rows.clamp(0, height - 1).view(count, 1, height, 1)
        columns = columns.clamp(0, width - 1).view(count, 1, 1, width)
        moved = inputs.gather(2, rows.expand(count, channels, height, width))
        return moved.gather(3, columns.expand(count, channels, height, width))

    def extra_repr(self) -> str:
        return f"flip={self.flip}, shift={self.shift}"
