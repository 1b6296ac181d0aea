"""What follows from the evaluations of a run: when it ends, and which checkpoints are kept."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from heliotrope.config import Run
from heliotrope.metrics import Direction
from heliotrope.runs.clock import Clock
from heliotrope.runs.events import Progress
from heliotrope.runs.outcome import Target
from heliotrope.runs.pruning import Pruning

from .early_stopping import EarlyStopping
from .retention import Best

__all__ = ["Criteria"]

_log = logging.getLogger(__name__)


class Criteria:
    """A run's target, early stopping and best checkpoints; `directions` are of its metrics.

    `pruning` is that of the search whose trial the run is.
    """

    def __init__(self, run: Run, directions: Mapping[str, Direction], pruning: Pruning) -> None:
        cfg = run.distributed
        self._every = cfg.evaluate_every
        self._target = Target(run.target, directions, pruning)
        self._early = EarlyStopping(cfg.early_stopping, directions)
        self._best = Best(cfg.best_metric, cfg.keep_best, directions)

    @property
    def stop(self) -> bool:
        """Whether the run is to end where it is."""
        return self._target.stop or self._early.stop

    @property
    def pruned(self) -> bool:
        """Whether that was the search's decision."""
        return self._target.pruned

    @property
    def kept(self) -> list[int]:
        """The progress of each checkpoint that is kept for being among the best."""
        return self._best.progresses

    def observe_best(self, values: Mapping[str, float], progress: int) -> bool:
        """Take in what was measured at `progress`; return whether it is among the best."""
        return self._best.offer(values, progress)

    def observe_target(
        self, values: Mapping[str, float], epoch: int, counts: Progress, clock: Clock
    ) -> None:
        """Take in what was measured after `epoch`, for the target."""
        self._target.observe(values, {"epoch": epoch}, counts, clock)

    def observe_early_stopping(self, values: Mapping[str, float], epoch: int) -> None:
        """Take in what was measured in the course of the run after `epoch`, for early stopping.

        An evaluation at the end alone would count again in a run that is longer.
        """
        if epoch % self._every == 0 and self._early.observe(values):
            _log.info("stopping early after epoch %d: %s", epoch, self._early)

    def summary(self) -> dict[str, Any] | None:
        """Return when the target was reached, None without a target."""
        return self._target.summary()

    def saved(self) -> dict[str, Any]:
        """Return what a checkpoint keeps."""
        return {
            "target": self._target.saved(),
            "early_stopping": self._early.saved(),
            "best": self._best.saved(),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take over what `saved` gave."""
        self._target.restore(state["target"])
        if "early_stopping" in state:  # version 0.1 knew of neither
            self._early.restore(state["early_stopping"])
        if "best" in state:
            self._best.restore(state["best"])
