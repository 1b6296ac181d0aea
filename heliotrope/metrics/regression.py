"""Metrics of one number per example: outputs [B] or [B, 1], targets floating [B]."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from heliotrope.metrics.base import Batch, Cell, Direction, Metric, MetricWithPanels, Sums
from heliotrope.panels import HISTOGRAM

__all__ = ["PredictionHistogram", "RegressionErrors"]

_CANCELLED = 1e-12  # of the mean square: a variance below it is rounding


@dataclass(frozen=True)
class RegressionErrors(Metric):
    """`rmse`, `mae` (in the unit of the targets) and `r2`, from sums in float64.

    `r2` is 1 - (squared errors) / (squared distances of the targets from their own mean). It is
    NaN where these targets are all the same, or differ by less than a millionth of their mean.
    """

    target: str = "target"

    @property
    def size(self) -> int:
        return 5

    @property
    def directions(self) -> Mapping[str, Direction]:
        return {"rmse": "min", "mae": "min", "r2": "max"}

    def cells(self, outputs: Tensor, batch: Batch) -> list[Cell]:
        target = batch[self.target].double()
        error = outputs.view_as(target).double() - target
        return [(0, error.square()), (1, error.abs()), (2, target), (3, target.square()), (4, 1.0)]

    def compute(self, sums: Sums) -> dict[str, Sums]:
        squares, distances, total, total_squares, count = np.moveaxis(sums, -1, 0)
        spread = total_squares - total**2 / count
        spread = np.where(spread > _CANCELLED * total_squares, spread, np.nan)
        return {
            "rmse": np.sqrt(squares / count),
            "mae": distances / count,
            "r2": 1 - squares / spread,
        }


@dataclass(frozen=True)
class PredictionHistogram(MetricWithPanels):
    """How often each target met each prediction, as the report shows it: no number.

    Both are counted in `bins` bins of equal width from `low` to `high`; what lies outside counts
    in the nearest. Cells are [bins, bins], rows the targets.
    """

    low: float
    high: float
    bins: int = 24
    target: str = "target"

    @property
    def size(self) -> int:
        return self.bins**2

    @property
    def directions(self) -> Mapping[str, Direction]:
        return {}

    def cells(self, outputs: Tensor, batch: Batch) -> list[Cell]:
        target = batch[self.target]
        return [(self._bin(target) * self.bins + self._bin(outputs.view_as(target)), 1.0)]

    def _bin(self, values: Tensor) -> Tensor:
        part = (values.double().nan_to_num() - self.low) / (self.high - self.low)
        return (part.clamp(0, 1) * self.bins).long().clamp(max=self.bins - 1)

    def compute(self, sums: Sums) -> dict[str, Sums]:  # noqa: ARG002 - a metric's interface
        return {}

    def panels(self, sums: Sums) -> dict[str, Any]:
        counts = sums.reshape(self.bins, self.bins).astype(np.int64).tolist()
        return {HISTOGRAM: {"low": self.low, "high": self.high, "counts": counts}}
