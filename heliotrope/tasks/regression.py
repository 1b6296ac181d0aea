"""One number per example."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import Tensor

from heliotrope.data import Batch
from heliotrope.metrics import Cell, Direction, Loss, Metric, MetricSet, RegressionErrors, Sums
from heliotrope.tasks.base import DataFacts, Task

__all__ = ["Regression", "regression"]


def regression(facts: DataFacts) -> Task:
    """One number per example: squared error; RMSE, MAE and R2."""
    return Regression(facts)


class Regression(Task):
    """Squared error of one number, [B, 1], in deviations of the training targets from their mean.

    The loss is that of the model's outputs, whose target is ``(target - mean) / std``; the errors
    that are told beside it are in the unit of the targets. `mean` and `std` are those of
    `heliotrope.data.Info`.
    """

    targets: tuple[str, ...] = ("target",)

    @property
    def num_outputs(self) -> int:
        return 1

    @cached_property
    def metrics(self) -> MetricSet:
        info = self.facts.info
        errors = _InUnits(RegressionErrors(self.targets[0]), info.target_mean, info.target_std)
        return MetricSet((errors, Loss(self.losses)), ("rmse", "loss"))

    def predictions(self, outputs: Tensor) -> dict[str, list[Any]]:
        """Return the number that is predicted of each row, in the unit of the targets."""
        info = self.facts.info
        numbers = outputs.double().flatten() * info.target_std + info.target_mean
        return {"prediction": numbers.tolist()}

    def losses(self, outputs: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
        info, target = self.facts.info, batch[self.targets[0]]
        wanted = (target.double() - info.target_mean) / info.target_std  # the mean may be large
        return (outputs.view_as(target) - wanted.to(target.dtype)).square()


@dataclass(frozen=True)
class _InUnits:
    """A metric of predictions, computed from outputs in deviations."""

    metric: Metric
    mean: float
    std: float

    @property
    def size(self) -> int:
        return self.metric.size

    @property
    def directions(self) -> Mapping[str, Direction]:
        return self.metric.directions

    def cells(self, outputs: Tensor, batch: Batch) -> Sequence[Cell]:
        return self.metric.cells(outputs.double() * self.std + self.mean, batch)

    def compute(self, sums: Sums) -> dict[str, Sums]:
        return self.metric.compute(sums)
