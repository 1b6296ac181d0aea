"""Metrics as sums and counts: `a + b` is associative and commutative, so any split is exact."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["ClassificationMetrics"]


@dataclass(frozen=True)
class ClassificationMetrics:
    """Counts from which every classification metric follows.

    `confusion` is int64 [C, C], rows the true class, columns the predicted one; `loss_sum`
    the sum of the examples' losses, accumulated in float64.
    """

    confusion: NDArray[np.int64]
    loss_sum: float

    @classmethod
    def zero(cls, classes: int) -> ClassificationMetrics:
        """Return the metrics of no examples."""
        return cls(np.zeros((classes, classes), dtype=np.int64), 0.0)

    @property
    def count(self) -> int:
        """Number of examples."""
        return int(self.confusion.sum())

    def __add__(self, other: ClassificationMetrics) -> ClassificationMetrics:
        return ClassificationMetrics(
            self.confusion + other.confusion, self.loss_sum + other.loss_sum
        )

    def compute(self) -> dict[str, float]:
        """Return accuracy, loss (mean over examples) and macro_f1; NaN for no examples.

        macro_f1 is the unweighted mean over the classes that occur as a label or a
        prediction; a class never predicted and never right counts as 0.
        """
        count = self.count
        if count == 0:
            return {"accuracy": float("nan"), "loss": float("nan"), "macro_f1": float("nan")}
        right = np.diag(self.confusion)
        seen = self.confusion.sum(axis=0) + self.confusion.sum(axis=1)
        f1 = 2 * right[seen > 0] / seen[seen > 0]
        return {
            "accuracy": float(right.sum() / count),
            "loss": self.loss_sum / count,
            "macro_f1": float(f1.mean()),
        }

    def to_vector(self) -> NDArray[np.float64]:
        """Return all sums as one float64 vector [C*C + 1], exact for counts below 2**53."""
        return np.append(self.confusion.astype(np.float64).ravel(), self.loss_sum)

    @classmethod
    def from_vector(cls, vector: NDArray[np.float64]) -> ClassificationMetrics:
        """Undo `to_vector`, also after vectors were added."""
        classes = int(np.sqrt(len(vector) - 1))
        confusion = vector[:-1].round().astype(np.int64).reshape(classes, classes)
        return cls(confusion, float(vector[-1]))
