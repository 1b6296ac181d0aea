"""Ending a process: taking torch apart, module by module, would take Python a second."""

from __future__ import annotations

import atexit
import logging
import os
import sys
from collections.abc import Callable
from typing import NoReturn

__all__ = ["as_process", "leave"]


def as_process(main: Callable[[], int]) -> NoReturn:
    """Be the process of `main`: run it, and end with its exit code once exit handlers have run.

    What ends otherwise, such as by a signal, ends as Python does.
    """
    codes: list[int] = []
    atexit.register(lambda: leave(codes[0]) if codes else None)  # the first of them runs last
    codes.append(main())
    sys.exit(codes[0])


def leave(code: int) -> NoReturn:
    """End this process now, with all that was logged and printed written."""
    logging.shutdown()
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except OSError:  # nobody reads any more
        code = code or 1
    os._exit(code)
