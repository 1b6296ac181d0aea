"""A dataset for another task than it poses by itself."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from heliotrope.data.columns import Raw, Strings, Values
from heliotrope.data.preparation import Labels, Target
from heliotrope.data.sources.unprepared import Unprepared
from heliotrope.errors import DataError

__all__ = ["posing"]


def posing(found: Unprepared, task: str | None, name: str) -> Unprepared:
    """Return the dataset `name` as `task` needs it; None for the task that it poses.

    For a regression, classes that are called by numbers become these numbers.

    Raises
    ------
    DataError
        If classes are to be numbers and are called otherwise.
    """
    if task is None or task == found.task:
        return found
    labels = next((step for step in found.steps if isinstance(step, Labels)), None)
    if task != "regression" or labels is None:
        return replace(found, task=task)
    numbers = [_number(word) for word in labels.names]
    if any(math.isnan(number) for number in numbers):
        word = next(word for word, n in zip(labels.names, numbers, strict=True) if math.isnan(n))
        raise DataError(
            f"task=regression needs numbers to be predicted, but data={name} has classes in its "
            f"column {labels.column}, such as {word}. Choose task=classification, or other data."
        )
    steps = tuple(Target(column=s.column) if isinstance(s, Labels) else s for s in found.steps)
    train, test = (_numbered(raw, labels, numbers) for raw in (found.train, found.test))
    return replace(found, train=train, test=test, steps=steps, task=task)


def _number(word: str) -> float:
    """Return the number that a class is called by; NaN if it is none."""
    try:
        number = float(word)
    except ValueError:
        return math.nan
    return number if math.isfinite(number) else math.nan


def _numbered(raw: Raw, labels: Labels, numbers: Sequence[float]) -> Raw:
    """Return rows with the numbers of their classes; NaN for one that training has not."""
    column = raw.columns[labels.column]
    if isinstance(column, Strings):
        table = np.array([*(_number(word) for word in column.words), math.nan])
        values = table[column.codes]
    else:
        assert isinstance(column, Values)
        inside = (column.values >= 0) & (column.values < len(numbers))
        values = np.array([*numbers, math.nan])[np.where(inside, column.values, -1)]
    return replace(raw, columns={**raw.columns, labels.column: Values(values)})
