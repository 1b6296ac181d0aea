"""The mean loss, and what language models are compared by."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from heliotrope.metrics.base import Batch, Cell, Direction, Metric, Sums

__all__ = ["Loss", "TokenLoss"]


@dataclass(frozen=True)
class Loss(Metric):
    """`loss`: the sum of the examples' losses over the sum of their weights.

    `losses(outputs, batch)` returns each example's sum of losses, [B]; `weights(batch)` its
    weight, [B], such as its number of target tokens. Without `weights` each example counts 1.
    """

    losses: Callable[[Tensor, Batch], Tensor]
    weights: Callable[[Batch], Tensor] | None = None

    @property
    def size(self) -> int:
        return 2

    @property
    def directions(self) -> Mapping[str, Direction]:
        return {"loss": "min"}

    def cells(self, outputs: Tensor, batch: Batch) -> list[Cell]:
        weight = 1.0 if self.weights is None else self.weights(batch)
        return [(0, self.losses(outputs, batch)), (1, weight)]

    def compute(self, sums: Sums) -> dict[str, Sums]:
        return {"loss": sums[..., 0] / sums[..., 1]}


@dataclass(frozen=True)
class TokenLoss(Loss):
    """`loss` per target token, in nats, and `perplexity`, which is exp(loss).

    Where tokens are `characters`, also `bits_per_character`, which is loss / ln 2.
    """

    characters: bool = False

    @property
    def directions(self) -> Mapping[str, Direction]:
        bits: dict[str, Direction] = {"bits_per_character": "min"} if self.characters else {}
        return {"loss": "min", "perplexity": "min", **bits}

    def compute(self, sums: Sums) -> dict[str, Sums]:
        loss = super().compute(sums)["loss"]
        bits = {"bits_per_character": loss / np.log(2)} if self.characters else {}
        return {"loss": loss, "perplexity": np.exp(loss), **bits}
