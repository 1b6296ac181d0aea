"""Which checkpoints are the best: kept when older ones are dropped."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from heliotrope.metrics import Direction
from heliotrope.metrics.chosen import lower_is_better

__all__ = ["Best"]


class Best:
    """The `count` checkpoints with the best values of `metric`, the best first.

    Which way is better, the task's `directions` say; of equals the earlier is better, and NaN is
    never among the best.
    """

    def __init__(self, metric: str | None, count: int, directions: Mapping[str, Direction]) -> None:
        self._metric = metric
        self._lower = metric is not None and lower_is_better(metric, directions)
        self._count = count
        self._kept: list[tuple[float, int]] = []

    def offer(self, values: Mapping[str, float], progress: int) -> bool:
        """Take in what was measured at `progress`; return whether to keep a checkpoint of it."""
        if self._metric is None or math.isnan(values.get(self._metric, math.nan)):
            return False
        others = [entry for entry in self._kept if entry[1] != progress]
        sign = 1 if self._lower else -1
        ranked = sorted(
            [*others, (values[self._metric], progress)], key=lambda e: (sign * e[0], e[1])
        )
        self._kept = ranked[: self._count]
        return progress in self.progresses

    @property
    def progresses(self) -> list[int]:
        """The progress of each."""
        return [progress for _, progress in self._kept]

    def saved(self) -> dict[str, Any]:
        """Return what a checkpoint keeps."""
        return {"metric": self._metric, "kept": self._kept}

    def restore(self, saved: Mapping[str, Any]) -> None:
        """Take over what `saved` gave, unless the metric has been changed since."""
        if saved["metric"] == self._metric:
            self._kept = [(value, progress) for value, progress in saved["kept"]][: self._count]
