"""Reading a ledger of lines: which one a crash has cut off, and what a number in it may be."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, TypeVar

__all__ = ["UNREADABLE", "count_of", "whole_lines"]

UNREADABLE = (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RecursionError)
"""What reading a line of others may raise."""

_MOST = 1 << 53  # as whole numbers that a float holds

_T = TypeVar("_T")


def whole_lines(
    data: bytes,
    beginning: bytes,
    read: Callable[[bytes], _T],
    refused: Callable[[int, int, bytes], Exception],
) -> Iterator[tuple[_T, int]]:
    """Yield what `read` makes of each line, and how many bytes there are up to its end.

    A last line without its end counts if it can be read: an editor may have left the end out. If
    not, and it begins as ours do, a crash has cut it off, perhaps with zeros in place of the rest:
    it was never released, and is left out.

    Parameters
    ----------
    beginning
        Of each line that we write.
    refused
        Returns what to raise for a line that cannot be read, from its number, its place and itself.
    """
    place = 0
    for number, line in enumerate(data.splitlines(keepends=True), 1):
        try:
            found = read(line)
        except UNREADABLE as error:
            left = line.rstrip(b"\0")
            if not line.endswith(b"\n") and (
                left.startswith(beginning) or beginning.startswith(left)
            ):
                return
            raise refused(number, place, line) from error
        place += len(line)
        yield found, place


def count_of(value: Any, least: int = 0) -> int:
    """Return a whole number from `least`; `ValueError` if it is none, or absurdly large."""
    if type(value) is not int or not least <= value < _MOST:
        raise ValueError(f"{value!r:.40} is no number from {least}")
    return value
