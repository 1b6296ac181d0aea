"""Writing to the standard output, of which whoever reads may read only the beginning."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

from heliotrope.system.signals import output_closed

__all__ = ["say", "standard_output"]


@contextmanager
def standard_output() -> Iterator[TextIO]:
    """Give the standard output, and end without an error once nobody reads it."""
    try:
        yield sys.stdout
        sys.stdout.flush()
    except BrokenPipeError:  # whoever reads has read enough
        _to_nobody()


def say(line: str) -> None:
    """Print a line of a command that is to stop once nobody reads it: see `output_closed`."""
    try:
        sys.stdout.write(f"{line}\n")
        sys.stdout.flush()
    except BrokenPipeError:
        _to_nobody()
        output_closed()


def _to_nobody() -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
