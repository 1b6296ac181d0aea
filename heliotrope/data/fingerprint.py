"""A hash of rows, by which runs on the same data are known."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from heliotrope.data.columns import Items, Pieces, Raw, Strings, Texts, Values
from heliotrope.data.mapped import MappedRows
from heliotrope.data.stored import StoredColumn, StoredWords

__all__ = ["fingerprint"]

_AT_ONCE = 64  # items


def fingerprint(raw: Raw) -> str:
    """Return a hash of the rows, in this order, column by column: 16 hexadecimal digits.

    Items that are read when they are asked for are read once for it, which takes as long as an
    epoch's reading. Where a sample differs between two reads, as when items are drawn anew each
    time, all that is known of them is their number, shape and type.
    """
    found = hashlib.sha256()

    def add(values: np.ndarray[tuple[int, ...], np.dtype[np.generic]]) -> None:
        found.update(f"{values.dtype.str} {values.shape}".encode())
        found.update(np.ascontiguousarray(values).reshape(-1).view(np.uint8).data)

    def add_texts(texts: object) -> None:
        found.update(repr(texts).encode(errors="surrogatepass"))

    for name, column in sorted(raw.columns.items()):
        add_texts((name, len(raw)))
        match column:
            case Values():
                add(column.values)
            case Strings():
                add_texts(column.words)
                add(column.codes)
            case Texts():
                for text in column.texts:
                    add_texts(text)
            case Pieces():
                for values in (column.stream, column.starts, column.lengths):
                    add(values)
            case StoredColumn():
                if isinstance(column, StoredWords):
                    add_texts(column.words)
                for block in column.blocks():
                    add(block)
            case MappedRows():
                for block in column.blocks():
                    add(block)
            case Items():
                add_texts((type(column.dataset).__name__, column.shape, str(column.dtype)))
                for inputs in _read(column):
                    add(inputs)
    return found.hexdigest()[:16]


def _read(items: Items) -> Iterator[NDArray[Any]]:
    """Yield the inputs, some at a time; nothing if they are others at each read."""
    blocks = [range(len(items))[at : at + _AT_ONCE] for at in range(0, len(items), _AT_ONCE)]
    if blocks and not np.array_equal(items.read(blocks[0]), items.read(blocks[0])):
        return
    for block in blocks:
        yield items.read(block)
