"""Metrics that a configuration adds to those of its task: `metrics=[NAME]`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import get_args

from heliotrope import plugin_loading, registry
from heliotrope.config.groups import defaults_of
from heliotrope.errors import ConfigError, HeliotropeError
from heliotrope.metrics import Accuracy, CalibrationError, Metric, MetricSet, ScoreCurves
from heliotrope.metrics.base import Direction
from heliotrope.tasks.base import Task
from heliotrope.tasks.usable import outputs_of_zeros, shown_to_metrics, why_mixing

__all__ = ["auroc", "calibration_error", "measure_too", "top_5_accuracy"]


def auroc(task: Task) -> Metric:
    """Areas under the ROC and the precision-recall curve, of classes."""
    _require_classes(task, "auroc")
    return ScoreCurves(task.num_outputs)


def calibration_error(task: Task) -> Metric:
    """Distance of confidence from accuracy, of classes (Guo et al. 2017)."""
    _require_classes(task, "calibration_error")
    return CalibrationError()


def top_5_accuracy(task: Task) -> Metric:
    """Share of labels that are among the five classes with the largest outputs."""
    _require_classes(task, "top_5_accuracy")
    if task.num_outputs <= 5:
        raise ConfigError(
            f"metrics=[top_5_accuracy] is 1 for any model: data={task.facts.name} has "
            f"{task.num_outputs} classes. Leave it out."
        )
    return Accuracy(k=5)


def _require_classes(task: Task, name: str) -> None:
    classes = len(task.facts.info.class_names)
    if "label" not in task.targets or task.num_outputs != classes:
        raise ConfigError(
            f"metrics=[{name}] is of the logits of classes, and {type(task).__name__} of "
            f"data={task.facts.name} has others. Leave it out, or choose task=classification."
        )


def measure_too(task: Task, names: Sequence[str]) -> None:
    """Add metrics to those of `task`, behind them.

    Raises
    ------
    ConfigError
        If there is no such metric, it does not fit the task, or a plug-in fails; names its file.
    """
    for name in names:
        entry = registry.entry("metric", name)
        what = f"metrics=[{name}] ({entry.where})"
        outputs, two = outputs_of_zeros(task)
        try:
            added = entry.build(defaults_of(entry), task=task)
            extended = replace(task.metrics, members=(*task.metrics.members, added))
            extended.measure(*shown_to_metrics(task, outputs, outputs, two)).compute()
            why = _bad_directions(added) or why_mixing(task, MetricSet((added,)))
        except HeliotropeError:
            raise
        except Exception as error:
            raise ConfigError(
                f"{what} cannot be measured with data={task.facts.name} and its task, on two "
                f"examples of zeros: {plugin_loading.raised(error, 'Mend it, or leave it out.')}"
            ) from error
        if why is not None:
            raise ConfigError(f"{what} cannot be measured with data={task.facts.name}: {why}")
        _extend(task, extended)


def _bad_directions(metric: Metric) -> str | None:
    """Return what is wrong if it is not said of each number whether more of it is better."""
    for name, way in metric.directions.items():
        if way not in get_args(Direction):
            return f"its direction of {name} is {way!r}. Say 'max' or 'min', whichever is better."
    return None


def _extend(task: Task, extended: MetricSet) -> None:
    vars(task)["metrics"] = extended
    if task.metrics is not extended:
        raise ConfigError(
            f"metrics=[...] cannot be added to those of {type(task).__name__}. Decorate its "
            "metrics with functools.cached_property."
        )
