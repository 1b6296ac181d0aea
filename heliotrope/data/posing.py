"""A dataset for another task than it poses by itself."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from heliotrope.data.columns import Raw, Strings, Values
from heliotrope.data.preparation import Labels, Target
from heliotrope.data.preparation.counts import in_order
from heliotrope.data.sources.unprepared import Unprepared
from heliotrope.errors import DataError

__all__ = ["posing"]

_MOST_CLASSES = 1000
_FEW_ROWS = 20  # of which any number of classes may be


def posing(found: Unprepared, task: str | None, name: str) -> Unprepared:
    """Return the dataset `name` as `task` needs it; None for the task that it poses.

    One that poses a classification of too many classes does so by mistake, unless `task` says it.

    For a regression, classes that are called by numbers become these numbers; for a
    classification, whole numbers become classes, also those that a file has as 1.0.

    Raises
    ------
    DataError
        If classes are to be numbers and are called otherwise, or numbers are to be classes and
        are not whole, or there are too many classes.
    """
    if task is None:
        _refuse_many_classes(found, name)
    if task is None or task == found.task:
        return found
    target = next((step for step in found.steps if isinstance(step, Target)), None)
    if task == "classification" and target is not None:
        return _classified(found, target, name)
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


def _refuse_many_classes(found: Unprepared, name: str) -> None:
    rows = len(found.train) + len(found.test)
    for step in found.steps:
        if not isinstance(step, Labels):
            continue
        count = len(step.names)
        if count > _MOST_CLASSES or (rows >= _FEW_ROWS and 2 * count > rows):
            raise DataError(
                f"data={name} has {count:,} classes in its column {step.column}, in {rows:,} rows. "
                "Set task=regression if they are numbers to be predicted, or task=classification "
                "if they are classes."
            )


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


def _classified(found: Unprepared, target: Target, name: str) -> Unprepared:
    """Return the dataset with a class for each number of its training rows."""
    train, test = (_named(raw, target.column) for raw in (found.train, found.test))
    column = train.columns[target.column]
    assert isinstance(column, Strings)
    names = in_order(column.words)
    fraction = next((word for word in names if not float(word).is_integer()), None)
    if fraction is not None:
        raise DataError(
            f"task=classification needs classes, but data={name} has numbers in its column "
            f"{target.column} that are not whole, such as {fraction}. Choose task=regression, or "
            "other data."
        )
    labels = Labels(names, target.column)
    steps = tuple(labels if isinstance(step, Target) else step for step in found.steps)
    return replace(found, train=train, test=test, steps=steps, task="classification")


def _named(raw: Raw, name: str) -> Raw:
    """Return rows with the numbers of a column as words, whole ones without a fraction."""
    column = raw.columns[name]
    assert isinstance(column, Values)
    words = [_word(number) for number in column.values.astype(np.float64).tolist()]
    return replace(raw, columns={**raw.columns, name: Strings.of(words)})


def _word(number: float) -> str | None:
    """Return what a number is called as a class; None for a missing one."""
    if math.isnan(number):
        return None
    return str(int(number)) if number.is_integer() else str(number)
