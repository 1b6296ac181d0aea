"""Writing to the standard output, of which whoever reads may read only the beginning."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TextIO

from heliotrope.system.signals import output_closed

__all__ = ["aligned", "say", "standard_output", "to_nobody"]


@contextmanager
def standard_output() -> Iterator[TextIO]:
    """Give the standard output, and end without an error once nobody reads it."""
    try:
        yield sys.stdout
        sys.stdout.flush()
    except BrokenPipeError:  # whoever reads has read enough
        to_nobody()


def say(line: str) -> None:
    """Print a line of a command that is to stop once nobody reads it: see `output_closed`."""
    try:
        sys.stdout.write(f"{line}\n")
        sys.stdout.flush()
    except BrokenPipeError:
        to_nobody()
        output_closed()


def aligned(rows: Iterable[Sequence[str]]) -> list[str]:
    """Return rows as lines, indented, whose columns begin below each other."""
    lines = list(rows)
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    cells = [[f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)] for row in lines]
    return ["  " + "  ".join(row).rstrip() for row in cells]


def to_nobody() -> None:
    """Let what is printed from now on be read by nobody, without an error."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
