"""Which task a run is about: the one that it chooses, or that its dataset poses."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from heliotrope import config, plugin_loading, registry
from heliotrope.config import Run
from heliotrope.data import Dataset
from heliotrope.errors import ConfigError, HeliotropeError
from heliotrope.registry import Entry
from heliotrope.tasks.base import DataFacts, Task
from heliotrope.tasks.measured import measure_too
from heliotrope.tasks.usable import why_unusable

__all__ = ["task_of"]


def task_of(dataset: Dataset, run: Run | None = None) -> Task:
    """Return the task that `run` chooses, else the one that `dataset` poses.

    Raises
    ------
    ConfigError
        If there is no such task, the data lacks what it needs, label smoothing has no effect on
        it, a metric does not fit it, or a plug-in fails or gives something else.
    """
    chosen = None if run is None else run.task
    name = dataset.info.task if chosen is None else chosen.name
    known = registry.names("task")
    if name not in known:
        raise ConfigError(
            f"data={dataset.name} poses a task that there is not yet: {name}. There are "
            f"{', '.join(known)}. Choose other data, or another task."
        )
    entry = registry.entry("task", name)
    smoothing = 0.0 if run is None else run.loss.label_smoothing
    if smoothing and "label_smoothing" not in entry.signature.given:
        raise ConfigError(
            f"loss.label_smoothing={smoothing:g} has no effect with data={dataset.name}, "
            f"whose task is {name}: only labels are smoothed. Set loss.label_smoothing=0."
        )
    values = vars(chosen if chosen is not None else config.chosen("task", name))
    given = {"facts": DataFacts.of(dataset), "label_smoothing": smoothing}
    task: Task
    task = (
        entry.build(values, **given) if entry.built_in else _built_by_plugin(entry, values, given)
    )
    if run is not None and run.metrics:
        measure_too(task, run.metrics)
    return task


def _built_by_plugin(entry: Entry, values: Mapping[str, Any], given: Mapping[str, Any]) -> Task:
    what = f"task={entry.name} ({entry.where})"
    try:
        task = entry.build(values, **given)
    except HeliotropeError:  # such as of a field that the data lacks
        raise
    except Exception as error:
        raise ConfigError(f"{what} cannot be built: {plugin_loading.raised(error)}") from error
    if not isinstance(task, Task):
        raise ConfigError(
            f"{what} gave a {type(task).__name__}. Return a heliotrope.tasks.Task, or decorate a "
            "class of it."
        )
    if (why := why_unusable(task)) is not None:
        raise ConfigError(f"{what} cannot be trained: {why}")
    return task
