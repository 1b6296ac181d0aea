"""The metrics that a configuration names, as `SPLIT/NAME`: which there are, and which way is up."""

from __future__ import annotations

from collections.abc import Mapping

from heliotrope.config import Mode, Run
from heliotrope.errors import ConfigError, closest
from heliotrope.metrics import Direction

__all__ = ["check_chosen_metrics", "lower_is_better"]


def check_chosen_metrics(run: Run, mode: Mode, directions: Mapping[str, Direction]) -> None:
    """Raise `ConfigError` if `run` names a metric that its task does not have.

    `directions` are the task's; to be called as soon as the task is known.
    """
    splits = ("test", "validation") if run.data.validation_fraction else ("test",)
    there = [f"{split}/{name}" for split in splits for name in directions]
    named = {"target.metric": run.target.metric}
    if run.search is not None:
        named["search.metric"] = run.search.metric
    if mode == "distributed":
        named["distributed.best_metric"] = run.distributed.best_metric
        named["distributed.early_stopping.metric"] = run.distributed.early_stopping.metric
    for key, metric in named.items():
        if metric is not None and metric not in there:
            raise ConfigError(
                f"{key}={metric} is not one of {', '.join(there)}.{closest(metric, there)}"
            )


def lower_is_better(metric: str, directions: Mapping[str, Direction]) -> bool:
    """Return whether less of `SPLIT/NAME` is better, by the `directions` of the task's metrics."""
    return directions[metric.rpartition("/")[2]] == "min"
