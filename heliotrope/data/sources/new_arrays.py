"""New arrays for a trained model, from an .npz file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from heliotrope.data.columns import Column, Raw, Values, item_array
from heliotrope.data.preparation import Kind
from heliotrope.data.sources.arrays import columns_of, read_npz
from heliotrope.errors import DataError

__all__ = ["read_new_arrays"]


def read_new_arrays(path: Path, inputs: Mapping[str, Kind], array: str | None) -> Raw:
    """Return the columns `inputs` of a file of arrays, [N, ...] each.

    Parameters
    ----------
    path
        An .npz file. Its only array may have any name.
    inputs
        What the preparation reads.
    array
        What `data=arrays` called its inputs; None for a user's own dataset, whose arrays are called
        as the columns.

    Raises
    ------
    DataError
        If the file cannot be read, or its arrays are not what the model takes; names the array.
    """
    found = read_npz("input", path)
    columns: dict[str, Column] = {}
    if array is not None:
        values = _array(path, found, array, alone=True)
        columns, _ = columns_of(path, array, values)
        if columns.keys() != inputs.keys():
            raise DataError(
                f"{path}: {array} is {values.dtype} of the shape {values.shape}, but the model was "
                f"trained with {', '.join(inputs)} of each row. Give it as many columns."
            )
    else:
        for name in inputs:
            given = _array(path, found, name, alone=len(inputs) == 1)
            columns[name] = Values(_as_items(path, name, given))
    rows = len(next(iter(columns.values())))
    return Raw(columns, origin=str(path), numbers=np.arange(1, rows + 1))


def _array(
    path: Path, found: Mapping[str, NDArray[Any]], name: str, *, alone: bool
) -> NDArray[Any]:
    """Return an array by its name; the only one, if one alone is wanted, may have another."""
    values = next(iter(found.values())) if alone and len(found) == 1 else found.get(name)
    if values is None:
        raise DataError(
            f"{path} has no array {name}, which the model takes. It has {', '.join(found)}."
        )
    if not values.ndim or not len(values):
        raise DataError(f"{path}: {name} holds no rows. Give it a row for each prediction.")
    return values


def _as_items(path: Path, name: str, values: NDArray[Any]) -> NDArray[Any]:
    """Return arrays as the items of a dataset were read: types alike, images with channels."""
    items = [item_array(value) for value in values]
    kept = [item for item in items if item is not None]
    if len(kept) < len(items):
        raise DataError(f"{path}: {name} is {values.dtype}. Convert it to numbers.")
    found = np.stack(kept)
    if found.dtype == np.uint8 and found.ndim == 3:
        found = found[:, np.newaxis]
    if name in ("numeric", "image") and found.dtype == np.int64:
        found = found.astype(np.float32)
    bad = np.flatnonzero(~np.isfinite(found).reshape(len(found), -1).all(axis=1))
    if len(bad):
        raise DataError(
            f"{path}, row {bad[0] + 1}: its {name} holds a number that is missing (NaN), infinite "
            "or too large for float32. Mend it, or leave the row out."
        )
    return found
