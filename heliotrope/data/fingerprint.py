"""A hash of rows, by which runs on the same data are known."""

from __future__ import annotations

import hashlib

import numpy as np

from heliotrope.data.columns import Items, Pieces, Raw, Strings, Texts, Values

__all__ = ["fingerprint"]


def fingerprint(raw: Raw) -> str:
    """Return a hash of the rows, in this order, column by column: 16 hexadecimal digits.

    Of a dataset whose items are read when they are asked for, only their number and shape.
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
            case Items():
                add_texts((type(column.dataset).__name__, column.shape, str(column.dtype)))
    return found.hexdigest()[:16]
