"""A stream of tokens in a file, as tokenizers write it: of any size, for it stays in the file."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from heliotrope.config.own_files import absent
from heliotrope.data.columns import Raw
from heliotrope.data.mapped import MappedArray, MappedRows
from heliotrope.data.preparation import Tokens
from heliotrope.data.sources.unprepared import Unprepared
from heliotrope.errors import DataError, closest

__all__ = ["token_stream"]

_TYPES = ("uint16", "uint32")


def token_stream(
    *,
    path: str,
    vocabulary: int,
    test: str | None = None,
    test_fraction: float = 0.1,
    length: int = 128,
    dtype: str = "uint16",
) -> Unprepared:
    """Tokens in a .bin or .npy file of any size, whose next token is to be told.

    The file is mapped, not loaded: a batch reads its windows. Windows follow each other, and what
    is left at the end of the file and fills none is not used.

    Parameters
    ----------
    path
        The file: tokens one after another, without a header (.bin), or an array [T] (.npy).
    vocabulary
        The number of different tokens: those of the file are less than it.
    test
        A file of test tokens; null: `test_fraction` is held out.
    test_fraction
        The share of the windows, at the end of `path`, that are the test split, without `test`.
    length
        Tokens of a window.
    dtype
        The type of a .bin file's tokens, uint16 or uint32, in this machine's byte order.

    Raises
    ------
    DataError
        If a file is not there, is cut off, is of another type or holds too few tokens.
    """
    if dtype not in _TYPES:
        raise DataError(
            f"data.dtype={dtype} is not one of {', '.join(_TYPES)}.{closest(dtype, _TYPES)}"
        )
    windows = _windows("data.path", Path(path), dtype, length)
    count = len(windows)
    if test is None:
        kept = count - int(count * test_fraction)
        train, tested = windows.subset(slice(0, kept)), windows.subset(slice(kept, count))
    else:
        train, tested = windows, _windows("data.test", Path(test), dtype, length)
    note = f"{path}: {count:,} windows of {length:,} tokens, {len(tested):,} windows for testing"
    return Unprepared(
        Raw({"tokens": train}, origin=path),
        Raw({"tokens": tested}, origin=path if test is None else test),
        steps=(Tokens(vocabulary),),
        task="next_token",
        notes=(note,),
    )


def _windows(key: str, path: Path, dtype: str, length: int) -> MappedRows:
    """Return windows of `length` tokens and the one that follows, [N, length + 1]."""
    if not path.is_file():
        raise absent(key, path)
    stream = MappedArray.npy(path) if path.suffix == ".npy" else _headerless(path, dtype)
    if len(stream.shape) != 1 or stream.dtype.name not in _TYPES:
        raise DataError(
            f"{path} holds {stream.dtype} {list(stream.shape)}; expected tokens of "
            f"{' or '.join(_TYPES)}, [T]. Convert it."
        )
    tokens, size = stream.shape[0], stream.dtype.itemsize
    count = (tokens - 1) // length
    if count < 1:
        raise DataError(
            f"{path} holds {tokens:,} tokens, but a window of data.length={length} needs "
            f"{length + 1:,} of them. Lower data.length, or bring more."
        )
    shape, strides = (count, length + 1), (length * size, size)
    return MappedRows.of(MappedArray(path, stream.dtype, shape, stream.offset, strides))


def _headerless(path: Path, dtype: str) -> MappedArray:
    kind = np.dtype(dtype)
    count, rest = divmod(path.stat().st_size, kind.itemsize)
    if rest:
        raise DataError(
            f"{path} holds {path.stat().st_size:,} bytes, which is no whole number of tokens of "
            f"data.dtype={dtype}: it is cut off, or of another type."
        )
    return MappedArray(path, kind, (count,))
