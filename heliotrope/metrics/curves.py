"""The areas under the ROC and the precision-recall curve, from histograms of the scores."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from heliotrope.metrics.base import Batch, Cell, Direction, MetricWithPanels, Sums
from heliotrope.panels import PRECISION_RECALL, ROC

__all__ = ["ScoreCurves"]

_LARGEST = 1e30  # of a score: beyond it all are the same
_DIGITS = 6  # of what is drawn


@dataclass(frozen=True)
class ScoreCurves(MetricWithPanels):
    """`auroc` and `average_precision`, from counts in `bins` fixed bins of the score.

    The score of a class is the logit of its probability, x = log(p / (1 - p)); of two classes that
    of the second alone, of C > 2 each against the rest, and the numbers are means over the classes
    that have examples of both kinds. The bins are of equal width in x / (1 + |x|), so that no
    score lies outside them. Outputs are logits [B, C], labels int64 [B]. Cells are
    [curves, 2, bins]: negatives and positives, scores rising.

    Without bins they are what scikit-learn's `roc_auc_score` and `average_precision_score` give.
    Examples in one bin count as ties. Let p and n be the shares of the positives and negatives
    that lie in a bin, TP and FP the numbers that lie in it or above, tp and fp those above it.
    Then `auroc` is off by at most sum(p n) / 2, and `average_precision` by at most
    sum(p (TP / (TP + fp) - (tp + 1) / (tp + 1 + FP))), summed over the bins; both are far less
    where scores spread over many bins, and nothing where no bin holds two different scores.
    """

    classes: int = 2
    bins: int = 512
    label: str = "label"

    @property
    def size(self) -> int:
        return self._curves * 2 * self.bins

    @property
    def directions(self) -> Mapping[str, Direction]:
        return {"auroc": "max", "average_precision": "max"}

    @property
    def _curves(self) -> int:
        return 1 if self.classes == 2 else self.classes

    def cells(self, outputs: Tensor, batch: Batch) -> list[Cell]:
        labels = batch[self.label]
        if self.classes == 2:
            scores, positive = outputs[:, 1:].double() - outputs[:, :1], labels[:, None]
        else:
            chances = outputs.double().log_softmax(dim=1)
            scores = chances - torch.log(-torch.expm1(chances))
            positive = functional.one_hot(labels, self.classes)
        scores = scores.nan_to_num(nan=0.0, posinf=_LARGEST, neginf=-_LARGEST)
        part = (scores / (1 + scores.abs()) + 1) / 2
        index = (part * self.bins).long().clamp(0, self.bins - 1)
        curve = torch.arange(self._curves, device=outputs.device)
        return [((2 * curve + positive) * self.bins + index, 1.0)]

    def compute(self, sums: Sums) -> dict[str, Sums]:
        found, wrong = self._falling(sums)
        right, errors = np.cumsum(found, axis=-1), np.cumsum(wrong, axis=-1)
        positives, negatives = right[..., -1], errors[..., -1]
        area = (_dot(wrong, right) - _dot(wrong, found) / 2) / (positives * negatives)
        average = _dot(found, right / np.maximum(right + errors, 1)) / positives
        both = (positives > 0) & (negatives > 0)
        return {
            name: np.where(both, values, 0.0).sum(axis=-1) / both.sum(axis=-1)
            for name, values in (("auroc", area), ("average_precision", average))
        }

    def panels(self, sums: Sums) -> dict[str, Any]:
        if self.classes != 2:
            return {}
        found, wrong = (counts[0] for counts in self._falling(sums))
        there = found + wrong > 0
        if not found.any() or not wrong.any():
            return {}
        found, wrong = np.cumsum(found)[there], np.cumsum(wrong)[there]
        shares = (found / found[-1], wrong / wrong[-1], found / (found + wrong))
        recall, false, precision = (share.round(_DIGITS).tolist() for share in shares)
        return {
            ROC.key: ROC.of([0.0, *false], [0.0, *recall]),
            PRECISION_RECALL.key: PRECISION_RECALL.of(recall, precision),
        }

    def _falling(self, sums: Sums) -> tuple[Sums, Sums]:
        """Return the positives and negatives of each bin, [..., curves, bins], scores falling."""
        counts = sums.reshape(*sums.shape[:-1], self._curves, 2, self.bins)[..., ::-1]
        return counts[..., 1, :], counts[..., 0, :]


def _dot(a: Sums, b: Sums) -> Sums:
    product: Sums = np.einsum("...b,...b->...", a, b)
    return product
