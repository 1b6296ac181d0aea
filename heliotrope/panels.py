"""What the report draws beside numbers: the keys under which metrics write it into a run's events.

Metrics write what the report reads, also of runs of earlier versions: a key must not change.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

__all__ = [
    "CONFUSION",
    "HISTOGRAM",
    "NAMES",
    "PRECISION_RECALL",
    "RELIABILITY",
    "ROC",
    "Curve",
]

CONFUSION, NAMES = "confusion_matrix", "class_names"
"""Counts [C, C], a row for each true class, and the names of the classes in that order."""

HISTOGRAM = "predictions"
"""`low`, `high` and, in between, `counts` [bins, bins]: a row for each bin of the targets."""


@dataclass(frozen=True)
class Curve:
    """A curve within the unit square: its key, and those of its points' x and y, lists each."""

    key: str
    x: str
    y: str

    def of(self, x: Iterable[float], y: Iterable[float]) -> dict[str, list[float]]:
        """Return what is kept under its key."""
        return {self.x: list(x), self.y: list(y)}


ROC = Curve("roc", "false_positive_rate", "true_positive_rate")
PRECISION_RECALL = Curve("precision_recall", "recall", "precision")
RELIABILITY = Curve("reliability", "confidence", "accuracy")
