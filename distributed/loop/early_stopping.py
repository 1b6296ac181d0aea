"""Early stopping: a run ends when a metric has not improved for a while."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from heliotrope.config.distributed import EarlyStoppingConfig
from heliotrope.metrics import Direction
from heliotrope.metrics.chosen import lower_is_better

__all__ = ["EarlyStopping"]


class EarlyStopping:
    """Watches one metric of the evaluations; never stops while `cfg.metric` is None.

    A value improves if it is better than the best before by more than `min_delta`; mode `auto`
    is the metric's own of the task's `directions`. NaN is no improvement.
    """

    def __init__(self, cfg: EarlyStoppingConfig, directions: Mapping[str, Direction]) -> None:
        self._cfg, self._directions = cfg, directions
        self._best: float | None = None
        self._stale = 0  # evaluations since the best one

    @property
    def stop(self) -> bool:
        """Whether `patience` evaluations in a row have brought no improvement."""
        return self._cfg.metric is not None and self._stale >= self._cfg.patience

    def observe(self, values: Mapping[str, float]) -> bool:
        """Take in an evaluation; True if the run should stop here."""
        if self._cfg.metric is not None:
            value = values[self._cfg.metric]
            if self._improves(value):
                self._best, self._stale = value, 0
            else:
                self._stale += 1
        return self.stop

    def _improves(self, value: float) -> bool:
        if self._best is None:
            return value == value
        gain = self._best - value if self._lower_is_better else value - self._best
        return gain > self._cfg.min_delta

    @property
    def _lower_is_better(self) -> bool:
        if self._cfg.mode == "auto" and self._cfg.metric is not None:
            return lower_is_better(self._cfg.metric, self._directions)
        return self._cfg.mode == "min"

    def saved(self) -> dict[str, Any]:
        """Return what a checkpoint keeps."""
        watched = {"metric": self._cfg.metric, "lower_is_better": self._lower_is_better}
        return {**watched, "best": self._best, "stale": self._stale}

    def restore(self, saved: Mapping[str, Any]) -> None:
        """Take over what `saved` gave, unless another metric is watched since."""
        watched = (self._cfg.metric, self._lower_is_better)
        if (saved["metric"], saved["lower_is_better"]) == watched:
            self._best, self._stale = saved["best"], saved["stale"]

    def __str__(self) -> str:
        return (
            f"{self._cfg.metric} has not improved on {self._best:.6g} in {self._stale} evaluations"
        )
