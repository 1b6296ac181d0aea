"""Triggers of a backdoor: what attackers put on examples, before these are prepared for a model."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from heliotrope.data import Dataset
from heliotrope.data.columns import Column, Raw, Strings, Values
from heliotrope.data.preparation import Pixels
from heliotrope.errors import ConfigError, closest

from .kinds import Backdoor

__all__ = ["stamped"]

_KEY = "federated.attack"


def stamped(attack: Backdoor, dataset: Dataset, raw: Raw, rows: NDArray[np.int64]) -> Raw:
    """Return `raw` with the trigger on the examples at `rows`.

    On images it is a square in a corner; in a table, one value in a column. Raises `ConfigError` if
    the examples are neither, or the keys of the trigger do not fit them.
    """
    inputs = {
        column: kind
        for step in dataset.preparation.steps
        if not step.of_targets
        for column, kind in step.reads().items()
    }
    images = [column for column, kind in inputs.items() if kind == "image"]
    table = [column for column, kind in inputs.items() if kind in ("number", "word")]
    first = images[0] if images else attack.column
    if images and attack.column is not None:
        raise ConfigError(
            f"{_KEY}.column={attack.column} is a trigger of tables, and data={dataset.name} has "
            f"images. Set {_KEY}.column=null, and {_KEY}.size, corner and brightness as wanted."
        )
    if not images and not table:
        raise ConfigError(
            "federated/attack=backdoor puts a trigger on images or on a column of a table, and "
            f"the examples of data={dataset.name} are neither. Set federated/attack=label_flip."
        )
    if not images and (first not in table or attack.value is None):
        name = "null" if first is None else first
        raise ConfigError(
            f"federated/attack=backdoor needs a column of data={dataset.name} and a value for it, "
            f"but {_KEY}.column={name} and {_KEY}.value={attack.value or 'null'}. Set both; the "
            f"columns are {', '.join(table)}.{closest(name, table)}"
        )
    assert first is not None
    column = raw.columns[first]
    if images:
        changed: Column = _with_square(attack, dataset, first, column, rows)
    else:
        changed = _with_value(attack, dataset, first, column, rows)
    return replace(raw, columns={**raw.columns, first: changed})


def _with_square(
    attack: Backdoor, dataset: Dataset, name: str, column: Column, rows: NDArray[np.int64]
) -> Values:
    assert dataset.fitting is not None
    white = {s.column: s.white for s in dataset.fitting.steps if isinstance(s, Pixels)}
    if not isinstance(column, Values) or name not in white:
        raise ConfigError(
            f"federated/attack=backdoor puts a square on images that are in memory, as bytes, and "
            f"those of data={dataset.name} are not. Set federated/attack=label_flip."
        )
    *_, height, width = column.values.shape
    if not 1 <= attack.size <= min(height, width):
        raise ConfigError(
            f"{_KEY}.size={attack.size} must lie between 1 and {min(height, width)}, the side of "
            f"the images of data={dataset.name}."
        )
    top, left = attack.corner.startswith("top"), attack.corner.endswith("left")
    down = slice(0, attack.size) if top else slice(height - attack.size, height)
    across = slice(0, attack.size) if left else slice(width - attack.size, width)
    images = column.values.copy()
    images[rows, ..., down, across] = round(attack.brightness * white[name])
    return Values(images)


def _with_value(
    attack: Backdoor, dataset: Dataset, name: str, column: Column, rows: NDArray[np.int64]
) -> Column:
    value = str(attack.value)
    if isinstance(column, Strings):
        known = _words(dataset, name)
        if value not in known:
            raise ConfigError(
                f"{_KEY}.value={value} is not one of the values that column {name} has in "
                f"training: {', '.join(known)}.{closest(value, known)}"
            )
        words = column.words if value in column.words else (*column.words, value)
        codes = column.codes.copy()
        codes[rows] = words.index(value)
        return Strings(codes, words)
    if not isinstance(column, Values):
        raise ConfigError(
            f"federated/attack=backdoor changes a column that is in memory, and {name} of data="
            f"{dataset.name} stays in a file. Raise data.memory_mib, or set "
            "federated/attack=label_flip."
        )
    number = _number(value)
    if not math.isfinite(number):
        raise ConfigError(
            f"{_KEY}.value={value} is no finite number, which column {name} of data="
            f"{dataset.name} holds. Set a number, in the unit of the data."
        )
    numbers = column.values.astype(np.float64)
    numbers[rows] = number
    return Values(numbers)


def _words(dataset: Dataset, name: str) -> list[str]:
    """Return the words that a column has in training."""
    assert dataset.fitting is not None
    column: Column | None = dataset.fitting.train.columns[name]
    assert isinstance(column, Strings)
    used = np.unique(column.codes[column.codes >= 0]).tolist()
    return [column.words[code] for code in used]


def _number(value: str) -> float:
    try:
        return float(value)
    except ValueError:
        return math.nan
