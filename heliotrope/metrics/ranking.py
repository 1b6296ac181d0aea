"""Metrics of a ranking: each example scores M candidates, of which some are relevant.

Outputs are scores [B, M]. `batch[relevant]` is int64 [B], the place of the one relevant candidate,
or bool [B, M]. A candidate that is not to be ranked, such as an item of the training set, has the
score -inf. Equal scores count as those of candidates that are not relevant before those that are.
Examples without a relevant candidate are left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from heliotrope.metrics.base import Batch, Cell, Direction, Metric, Sums

__all__ = ["HitRate", "Ndcg", "Recall"]


@dataclass(frozen=True)
class _AtK(Metric):
    """The mean over examples of a number that follows from the best `k` candidates."""

    k: int = 10
    relevant: str = "relevant"
    name: ClassVar[str]

    @property
    def size(self) -> int:
        return 2

    @property
    def directions(self) -> Mapping[str, Direction]:
        return {f"{self.name}_at_{self.k}": "max"}

    def cells(self, outputs: Tensor, batch: Batch) -> list[Cell]:
        relevant = batch[self.relevant]
        if relevant.dim() == 1:
            relevant = functional.one_hot(relevant, outputs.shape[1]).bool()
        total = relevant.sum(1)
        values = self._values(_hits(outputs, relevant, self.k).double(), total.clamp(min=1))
        return [(0, values), (1, total > 0)]

    def _values(self, hits: Tensor, total: Tensor) -> Tensor:
        """Return each example's number, [B], from hits [B, k] and its relevant candidates [B]."""
        raise NotImplementedError

    def compute(self, sums: Sums) -> dict[str, Sums]:
        return {f"{self.name}_at_{self.k}": sums[..., 0] / sums[..., 1]}


@dataclass(frozen=True)
class HitRate(_AtK):
    """`hit_rate_at_10` (HR@10): the share of examples with a relevant candidate in the best 10."""

    name: ClassVar[str] = "hit_rate"

    def _values(self, hits: Tensor, total: Tensor) -> Tensor:  # noqa: ARG002
        return hits.amax(1)


@dataclass(frozen=True)
class Recall(_AtK):
    """`recall_at_10`: the share of an example's relevant candidates that are in the best 10."""

    name: ClassVar[str] = "recall"

    def _values(self, hits: Tensor, total: Tensor) -> Tensor:
        return hits.sum(1) / total


@dataclass(frozen=True)
class Ndcg(_AtK):
    """`ndcg_at_10`: the discounted gain of the best 10, as a share of the best there can be.

    A relevant candidate at rank r, from 1, gains 1 / log2(r + 1) (Jarvelin and Kekalainen 2002).
    """

    name: ClassVar[str] = "ndcg"

    def _values(self, hits: Tensor, total: Tensor) -> Tensor:
        gains = 1 / torch.arange(2, hits.shape[1] + 2, device=hits.device).double().log2()
        best = gains.cumsum(0)[total.clamp(max=hits.shape[1]) - 1]
        return (hits * gains).sum(1) / best


def _hits(scores: Tensor, relevant: Tensor, k: int) -> Tensor:
    """Return which of the best `k` candidates of each example are relevant, bool [B, k]."""
    scores = scores.nan_to_num(nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf)
    order = relevant.byte().argsort(dim=1, stable=True)  # of equal scores, the relevant ones last
    best = scores.gather(1, order).argsort(dim=1, descending=True, stable=True)[:, :k]
    return relevant.gather(1, order.gather(1, best))
