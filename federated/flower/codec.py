"""Between tensors and Flower's arrays, which are .npy files: nothing else is read, and no pickle.

What arrives was written by someone else. Its claims are compared with what was expected before
any of it is read, and its bytes with its claims.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from flwr.app import Array, ArrayRecord
from numpy.typing import NDArray
from torch import Tensor

from heliotrope.errors import MessageError

__all__ = ["Form", "forms_of", "read_arrays", "to_record"]

Form = tuple[str, tuple[int, ...]]
"""Type and shape of an array, such as ("float32", (10, 784))."""

_FORMAT = "numpy.ndarray"  # the only one of Flower's that we write and read
_TYPES = {
    str(np.dtype(code)): np.dtype(code) for code in ("?", *"bhilBHILefdFD")
}  # such as float32; no objects, texts or records
_LONGEST_HEADER = 4096  # bytes: numpy's own are 128
_MOST_DIMENSIONS = 32


def to_record(arrays: Mapping[str, Tensor]) -> ArrayRecord:
    """Return tensors as Flower's serialised arrays, in order."""
    return ArrayRecord(
        {name: Array(value.detach().cpu().numpy()) for name, value in arrays.items()}
    )


def forms_of(arrays: Mapping[str, Tensor]) -> dict[str, Form]:
    """Return the type and shape of each tensor."""
    return {
        name: (str(value.dtype).removeprefix("torch."), tuple(value.shape))
        for name, value in arrays.items()
    }


def read_arrays(
    record: ArrayRecord, expected: Mapping[str, Form] | None = None
) -> dict[str, Tensor]:
    """Return Flower's arrays as tensors of the same dtypes, each with its own memory.

    With `expected`, they are these and no others, and come in that order. Raises `MessageError`
    naming the array that is not what it claims to be, or that was not expected.
    """
    if expected is not None:
        _refuse_unexpected(record, expected)
    names = record if expected is None else expected
    return {name: torch.from_numpy(_decoded(name, record[name])) for name in names}


def _refuse_unexpected(record: ArrayRecord, expected: Mapping[str, Form]) -> None:
    """Compare what arrays claim to be, without reading any."""
    for name in expected:
        if name not in record:
            raise MessageError(f"{name} is missing")
    for name, array in record.items():
        if name not in expected:
            raise MessageError(f"{_short(name)} is not among the {len(expected)} arrays asked for")
        dtype, shape = expected[name]
        if tuple(array.shape) != shape:
            raise MessageError(f"{name} has shape {_short(array.shape)} instead of {shape}")
        if array.dtype != dtype:
            raise MessageError(f"{name} is of type {_short(array.dtype)} instead of {dtype}")


def _decoded(name: str, array: Array) -> NDArray[Any]:
    """Return a copy of an array, if its bytes hold what it claims to be and no more."""
    dtype = _TYPES.get(array.dtype)
    if array.stype != _FORMAT or dtype is None:
        raise MessageError(
            f"{_short(name)} is {_short(array.dtype)} as {_short(array.stype)}, which is no array "
            f"of numbers as {_FORMAT}"
        )
    shape = tuple(array.shape)
    if len(shape) > _MOST_DIMENSIONS:
        raise MessageError(f"{_short(name)} has {len(shape)} dimensions")
    size = math.prod(shape) * dtype.itemsize
    header = len(array.data) - size
    if min(shape, default=0) < 0 or not 0 < header <= _LONGEST_HEADER:
        raise MessageError(
            f"{_short(name)} holds {len(array.data)} bytes and claims to be of shape "
            f"{_short(shape)} and type {array.dtype}"
        )
    head = array.data[:header]
    fortran = head == _header(dtype, shape, True)
    if not fortran and head != _header(dtype, shape, False):
        fortran = _read_header(name, head, dtype, shape)
    try:
        flat = np.frombuffer(array.data, dtype, math.prod(shape), header)
        values = flat.reshape(shape[::-1]).T if fortran else flat.reshape(shape)
        return values.copy(order="K")
    except (ValueError, OverflowError) as error:  # none of its numbers, and too many dimensions
        raise MessageError(f"{_short(name)} has shape {_short(shape)}: {error}") from error


@lru_cache(maxsize=4096)
def _header(dtype: np.dtype[Any], shape: tuple[int, ...], fortran: bool) -> bytes:
    """Return the header that numpy writes here; to compare takes less than to parse."""
    file = io.BytesIO()
    descr = np.lib.format.dtype_to_descr(dtype)
    described = {"descr": descr, "fortran_order": fortran, "shape": shape}
    np.lib.format.write_array_header_1_0(file, described)
    return file.getvalue()


def _read_header(name: str, head: bytes, dtype: np.dtype[Any], shape: tuple[int, ...]) -> bool:
    """Return whether an array is in Fortran's order, from a header of another version of numpy."""
    file = io.BytesIO(head)
    try:
        if np.lib.format.read_magic(file) == (1, 0):
            told_shape, fortran, told = np.lib.format.read_array_header_1_0(file)
        else:
            told_shape, fortran, told = np.lib.format.read_array_header_2_0(file)
    except Exception as error:
        raise MessageError(f"{_short(name)} is no .npy file: {_short(error)}") from error
    if (told_shape, told) != (shape, dtype) or file.tell() != len(head):
        raise MessageError(
            f"{_short(name)} claims to be of shape {_short(shape)} and type {dtype}, and holds "
            f"{_short(told_shape)} and {_short(told)}"
        )
    return bool(fortran)


def _short(value: object) -> str:
    """Return what someone else wrote as a part of a message, or the beginning of it."""
    text = " ".join(str(value).split())
    return text if len(text) <= 60 else f"{text[:57]}..."
