"""Writing to the standard output, of which whoever reads may read only the beginning."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

__all__ = ["standard_output"]


@contextmanager
def standard_output() -> Iterator[TextIO]:
    """Give the standard output, and end without an error once nobody reads it."""
    try:
        yield sys.stdout
        sys.stdout.flush()
    except BrokenPipeError:  # whoever reads has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
