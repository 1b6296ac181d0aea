"""A user's own arrays: images or rows of numbers in an .npz file, or images of any number."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from heliotrope.config.own_files import absent
from heliotrope.data.columns import Column, Raw, Strings, Values
from heliotrope.data.mapped import MappedArray, MappedRows
from heliotrope.data.preparation import Labels, Numbers, Pixels, Step, Target
from heliotrope.data.preparation.counts import in_order
from heliotrope.data.preparation.numbers import as_float32, refuse_infinite
from heliotrope.data.sources.unprepared import Unprepared, held_out
from heliotrope.data.stored import Selection, StoredNumbers
from heliotrope.errors import DataError, closest

__all__ = ["arrays", "columns_of", "read_npz"]

_LARGEST_NUMBER = 8  # bytes: torch knows no longer ones
_Arrays = Mapping[str, NDArray[Any]] | Mapping[str, MappedArray]


def arrays(
    *,
    path: str,
    test: str | None = None,
    test_fraction: float = 0.2,
    input: str = "x",  # noqa: A002 - what the key is called
    target: str = "y",
    client: str | None = None,
) -> Unprepared:
    """Rows of your own arrays in an .npz file: images or numbers, and what is to be predicted.

    In a folder each array is a file of its name, such as x.npy and y.npy, and the inputs are
    mapped, not loaded: there can be more than fit into memory.

    A target of fractions means regression, any other classification; `task=regression` and
    `task=classification` say otherwise.

    Parameters
    ----------
    path
        The file, or a folder of .npy files.
    test
        A file or folder of test rows; null: `test_fraction` is held out, always the same.
    test_fraction
        The share of the training data that is held out for testing, if there is no `test`.
    input
        The array of the inputs: images in bytes, [N, channels, height, width] or
        [N, height, width], or numbers, [N, K].
    target
        The array of what is to be predicted, [N].
    client
        The array of the natural groups, [N]; null: there is none.

    Raises
    ------
    DataError
        If a file cannot be read, has no such array, or its arrays do not belong together; names
        file and array.
    """
    train, steps, task = _read("data.path", Path(path), input, target, client)
    if test is not None:
        tested, test_steps, _ = _read("data.test", Path(test), input, target, client)
        if test_steps[0] != steps[0] or type(test_steps[1]) is not type(steps[1]):
            raise DataError(
                f"data.test={test}: its arrays are of another type or shape than those of "
                f"data.path={path}. Convert them."
            )
    else:
        column = train.columns["target"]
        values = column.codes if isinstance(column, Strings) else _values(column)
        keys = [] if train.keys is None else [train.keys]
        mask = held_out(test_fraction, *keys, values, count=len(train))
        train, tested = train.parted(mask)
    return Unprepared(train, tested, steps, task, drawn=test is None)


def _read(
    key: str, path: Path, inputs_in: str, target_in: str, client_in: str | None
) -> tuple[Raw, tuple[Step, ...], str]:
    found: _Arrays = _mapped(path) if path.is_dir() else read_npz(key, path)
    inputs = _array(path, found, "data.input", inputs_in)
    rows = inputs.shape[0] if inputs.shape else 0
    target = _loaded(_array(path, found, "data.target", target_in))
    keys = None if client_in is None else _loaded(_array(path, found, "data.client", client_in))
    for name, array in ((target_in, target), (client_in, keys)):
        if array is not None and array.shape != (rows,):
            raise DataError(
                f"{path}: {name} has the shape {array.shape}; expected ({rows},), a value "
                f"for each row of {inputs_in}."
            )
    columns, step = columns_of(path, inputs_in, inputs)
    if np.issubdtype(target.dtype, np.floating):
        columns["target"] = Values(target)
        return Raw(columns, keys, str(path)), (step, Target()), "regression"
    values, indices = np.unique(target, return_inverse=True)
    classes = Strings.of([str(value) for value in values.tolist()])
    columns["target"] = classes.subset(indices)
    steps = (step, Labels(in_order(classes.words), "target"))
    return Raw(columns, keys, str(path)), steps, "classification"


def _mapped(folder: Path) -> dict[str, MappedArray]:
    """Return the arrays of a folder of .npy files, by name; raises `DataError`."""
    files = sorted(folder.glob("*.npy"))
    if not files:
        raise DataError(f"{folder} holds no .npy files. Name a folder of them, or an .npz file.")
    return {file.stem: MappedArray.npy(file) for file in files}


def _loaded(array: NDArray[Any] | MappedArray) -> NDArray[Any]:
    return array.values.copy() if isinstance(array, MappedArray) else array


def read_npz(key: str, path: Path) -> dict[str, NDArray[Any]]:
    """Return the arrays of a file that `key` names, by name; raises `DataError`."""
    if not path.exists():
        raise absent(key, path)
    try:
        # np.load itself would leave a damaged file open.
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except (OSError, EOFError, ValueError, AttributeError, zipfile.BadZipFile) as error:
        raise DataError(f"{path} cannot be read as an .npz file of arrays: {error}.") from error


def _array(path: Path, found: _Arrays, key: str, name: str) -> NDArray[Any] | MappedArray:
    if name not in found:
        raise DataError(
            f"{key}={name}: {path} has no such array. It has {', '.join(found)}."
            f"{closest(name, found)}"
        )
    return found[name]


def columns_of(
    path: Path, name: str, inputs: NDArray[Any] | MappedArray
) -> tuple[dict[str, Column], Step]:
    """Return columns of the inputs, and the step that they go through.

    Inputs are bytes [N, channels, height, width] or [N, height, width], or numbers [N, K];
    raises `DataError` naming the file, and `name`, if they are none of these.
    """
    if isinstance(inputs, MappedArray):
        return _mapped_columns(path, name, inputs)
    if inputs.dtype == np.uint8 and inputs.ndim in (3, 4) and inputs.size:
        images = inputs if inputs.ndim == 4 else inputs[:, np.newaxis]
        return {"image": Values(images)}, Pixels(images.shape[1:])
    if inputs.ndim == 2 and inputs.dtype.kind in "iuf" and inputs.size:
        names = tuple(f"{name}{column}" for column in range(inputs.shape[1]))
        columns: dict[str, Column] = {
            column: Values(values) for column, values in zip(names, inputs.T, strict=True)
        }
        return columns, Numbers(names)
    raise DataError(
        f"{path}: {name} is {inputs.dtype} of the shape {inputs.shape}; expected images in bytes "
        "(uint8), [N, channels, height, width] or [N, height, width], or numbers [N, K]."
    )


def _mapped_columns(path: Path, name: str, inputs: MappedArray) -> tuple[dict[str, Column], Step]:
    """Return columns of inputs that stay in their file, and the step that they go through."""
    rows, *shape = inputs.shape
    if inputs.dtype == np.uint8 and len(shape) in (2, 3) and 0 not in inputs.shape:
        image = (1, *shape) if len(shape) == 2 else tuple(shape)
        column = MappedRows.of(replace(inputs, shape=(rows, *image)))
        return {"image": column}, Pixels(image)
    numbers = inputs.dtype.kind in "iuf" and inputs.dtype.itemsize <= _LARGEST_NUMBER
    if len(shape) != 1 or not numbers or 0 in inputs.shape:
        raise DataError(
            f"{inputs.path} holds {inputs.dtype} of the shape {inputs.shape}; expected images "
            "in bytes (uint8), [N, channels, height, width] or [N, height, width], or numbers "
            "[N, K]."
        )
    names = tuple(f"{name}{column}" for column in range(shape[0]))
    first = 1
    for block in MappedRows.of(inputs).blocks():
        refuse_infinite(as_float32(block), names, partial(_row, path, first))
        first += len(block)
    selection = Selection(range(rows))
    columns: dict[str, Column] = {
        column: StoredNumbers(inputs, index, selection) for index, column in enumerate(names)
    }
    return columns, Numbers(names)


def _row(path: Path, first: int, row: int) -> str:
    return f"{path}, row {first + row}"


def _values(column: Column) -> NDArray[Any]:
    assert isinstance(column, Values)
    return column.values
