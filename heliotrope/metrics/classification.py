"""Metrics of labels, from logits: B examples, C classes, T tokens of the longest text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from heliotrope.metrics.base import Batch, Cell, Direction, Metric, MetricWithPanels, Sums
from heliotrope.panels import CONFUSION, NAMES, RELIABILITY

__all__ = ["Accuracy", "CalibrationError", "Confusion"]


@dataclass(frozen=True)
class Confusion(MetricWithPanels):
    """The confusion matrix of C classes, and from it `accuracy` and `macro_f1`.

    Outputs are [B, C], of which the largest is the prediction; labels are int64 [B] in [0, C).
    Cells are [C, C], rows the true class, columns the predicted one. `macro_f1` is the unweighted
    mean over the classes that occur as a label or a prediction; a class never predicted and never
    right counts as 0.
    """

    class_names: tuple[str, ...]
    label: str = "label"

    @property
    def size(self) -> int:
        return len(self.class_names) ** 2

    @property
    def directions(self) -> Mapping[str, Direction]:
        return {"accuracy": "max", "macro_f1": "max"}

    def cells(self, outputs: Tensor, batch: Batch) -> list[Cell]:
        predicted = outputs.max(dim=1).indices  # argmax gives the same and takes longer
        return [(batch[self.label] * len(self.class_names) + predicted, 1.0)]

    def compute(self, sums: Sums) -> dict[str, Sums]:
        confusion = self._matrix(sums)
        right = np.diagonal(confusion, axis1=-2, axis2=-1)
        # Four times as fast as `sum` over many small matrices.
        seen = np.einsum("...ij->...i", confusion) + np.einsum("...ij->...j", confusion)
        f1 = np.where(seen > 0, 2 * right / seen, 0.0)
        return {
            "accuracy": 2 * right.sum(axis=-1) / seen.sum(axis=-1),
            "macro_f1": f1.sum(axis=-1) / (seen > 0).sum(axis=-1),
        }

    def panels(self, sums: Sums) -> dict[str, Any]:
        counts = self._matrix(sums).astype(np.int64)
        return {CONFUSION: counts.tolist(), NAMES: list(self.class_names)}

    def _matrix(self, sums: Sums) -> Sums:
        classes = len(self.class_names)
        return sums.reshape(*sums.shape[:-1], classes, classes)


@dataclass(frozen=True)
class Accuracy(Metric):
    """`accuracy`, or `top_5_accuracy` for `k` of 5, without a confusion matrix.

    The share of labels whose class is among the `k` of the largest outputs. Equal outputs of
    other classes count as larger, so a model that gives all classes the same is never right.

    Outputs are [B, C] and labels int64 [B]; or [B, T, C] and [B, T], of which the first
    `batch[length]` [B] of each example count.
    """

    k: int = 1
    label: str = "label"
    length: str | None = None

    @property
    def size(self) -> int:
        return 2

    @property
    def directions(self) -> Mapping[str, Direction]:
        return {self._name: "max"}

    @property
    def _name(self) -> str:
        return "accuracy" if self.k == 1 else f"top_{self.k}_accuracy"

    def cells(self, outputs: Tensor, batch: Batch) -> list[Cell]:
        own = outputs.gather(-1, batch[self.label].unsqueeze(-1))
        ahead = (~(outputs < own)).sum(-1)  # the class itself is one of them; NaN is ahead of all
        right = ahead <= self.k
        if self.length is None:
            return [(0, right), (1, 1.0)]
        lengths = batch[self.length]
        counts = torch.arange(right.shape[1], device=right.device) < lengths[:, None]
        return [(0, (right & counts).sum(1)), (1, lengths)]

    def compute(self, sums: Sums) -> dict[str, Sums]:
        return {self._name: sums[..., 0] / sums[..., 1]}


@dataclass(frozen=True)
class CalibrationError(MetricWithPanels):
    """`calibration_error`: how far confidence is from accuracy, 0 to 1.

    The expected calibration error of the predicted class (Guo et al. 2017, equation 3) with
    `bins` of equal width, which are closed on the right. Outputs are logits [B, C], labels int64
    [B]. Cells are [3, bins]: examples, their confidences, how many were right.
    """

    bins: int = 15
    label: str = "label"

    @property
    def size(self) -> int:
        return 3 * self.bins

    @property
    def directions(self) -> Mapping[str, Direction]:
        return {"calibration_error": "min"}

    def cells(self, outputs: Tensor, batch: Batch) -> list[Cell]:
        confidence, predicted = outputs.softmax(dim=1).max(dim=1)
        known = confidence.nan_to_num(nan=0.0)
        index = ((known * self.bins).ceil().long() - 1).clamp(0, self.bins - 1)
        right = predicted == batch[self.label]
        return [(index, 1.0), (index + self.bins, confidence), (index + 2 * self.bins, right)]

    def compute(self, sums: Sums) -> dict[str, Sums]:
        count, confidence, right = self._rows(sums)
        return {"calibration_error": np.abs(confidence - right).sum(axis=-1) / count.sum(axis=-1)}

    def panels(self, sums: Sums) -> dict[str, Any]:
        count, confidence, right = self._rows(sums)
        some = count > 0
        n = count[some]
        means = RELIABILITY.of((confidence[some] / n).tolist(), (right[some] / n).tolist())
        return {RELIABILITY.key: {"count": n.tolist(), **means}}

    def _rows(self, sums: Sums) -> tuple[Sums, Sums, Sums]:
        count, confidence, right = np.moveaxis(sums.reshape(*sums.shape[:-1], 3, -1), -2, 0)
        return count, confidence, right
