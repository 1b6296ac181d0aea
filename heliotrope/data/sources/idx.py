"""The IDX file format of MNIST and its relatives, read and checked.

A file is two zero bytes, a type byte (8: unsigned byte), the number of dimensions, each
dimension as a big-endian 32-bit count, then the values in row-major order.
"""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from heliotrope.errors import DataError

__all__ = ["read_idx"]

_GZIP_MAGIC = b"\x1f\x8b"
_UNSIGNED_BYTE = 8
_CHUNK = 1 << 22


class _Readable(Protocol):
    def read(self, size: int, /) -> bytes: ...


def read_idx(path: Path, item_shape: tuple[int, ...]) -> npt.NDArray[np.uint8]:
    """Read unsigned bytes ``[N, *item_shape]``, N at least 1, from a plain or gzip IDX file.

    Whether the file is compressed is told by its first bytes, not by its name: browsers and
    proxies unpack files without renaming them.

    Raises
    ------
    DataError
        If the file is unreadable, of another type or shape, truncated, too long or damaged;
        it names the file, what was found and what was expected.
    """
    try:
        with path.open("rb") as file:
            compressed = file.read(2) == _GZIP_MAGIC
        if compressed:
            with gzip.open(path, "rb") as stream:
                return _read(stream, path, item_shape)
        with path.open("rb") as file:
            return _read(file, path, item_shape)
    except EOFError as error:
        raise _damaged(path, "the gzip stream ends early", "a complete file") from error
    except (gzip.BadGzipFile, zlib.error) as error:
        raise _damaged(path, f"damaged gzip data ({error})", "an intact file") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}.") from error


def _read(stream: _Readable, path: Path, item_shape: tuple[int, ...]) -> npt.NDArray[np.uint8]:
    dimensions = 1 + len(item_shape)
    magic = bytes((0, 0, _UNSIGNED_BYTE, dimensions))
    found = stream.read(4)
    if found != magic:
        raise _damaged(
            path,
            f"it starts with the bytes {found.hex(' ') or '(none: it is empty)'}",
            f"{magic.hex(' ')} (IDX, unsigned bytes, {dimensions} dimension"
            f"{'s' if dimensions > 1 else ''})",
        )
    sizes = stream.read(4 * dimensions)
    if len(sizes) < 4 * dimensions:
        raise _damaged(path, "the header ends early", f"{dimensions} dimension sizes")
    shape = struct.unpack(f">{dimensions}I", sizes)
    if shape[1:] != item_shape or shape[0] == 0:
        wanted = ("N", *map(str, item_shape))
        raise _damaged(
            path,
            f"its dimensions are {'x'.join(map(str, shape))}",
            f"{'x'.join(wanted)} with N at least 1",
        )
    expected = math.prod(shape)
    # One byte more than expected shows trailing data. In chunks, because the header may lie
    # about the size and a single read would first allocate all of it.
    data = bytearray()
    while chunk := stream.read(min(_CHUNK, expected + 1 - len(data))):
        data += chunk
    if len(data) < expected:
        raise _damaged(
            path,
            f"{len(data):,} bytes of values",
            f"{expected:,} ({'x'.join(map(str, shape))}): the file is truncated",
        )
    if len(data) > expected:
        raise _damaged(
            path,
            f"more data after the last of {expected:,} values",
            f"nothing there, by its dimensions {'x'.join(map(str, shape))}",
        )
    return np.frombuffer(data, dtype=np.uint8).reshape(shape)


def _damaged(path: Path, found: str, expected: str) -> DataError:
    return DataError(
        f"{path}: found {found}; expected {expected}. "
        "Remove this file and put an intact copy in its place."
    )
