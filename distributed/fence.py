"""Keeps the workers of two attempts at one run apart: a straggler must not write any more.

Each worker holds a shared lock in the run's directory while it trains; the kernel takes it
back however its process ends.
"""

from __future__ import annotations

import fcntl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from heliotrope.errors import RunDirectoryError

__all__ = ["held", "wait_until_clear"]

_NAME = ".workers"
_PATIENCE = 20.0  # seconds; a killed worker is gone within milliseconds


@contextmanager
def held(directory: Path) -> Iterator[None]:
    """Mark this process as a worker of the run in `directory`, inside the block."""
    with (directory / _NAME).open("a") as file:
        fcntl.flock(file, fcntl.LOCK_SH)
        yield


def wait_until_clear(directory: Path) -> None:
    """Return when no worker of an earlier attempt is left; `RunDirectoryError` if one stays."""
    deadline = time.monotonic() + _PATIENCE
    with (directory / _NAME).open("a") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise RunDirectoryError(
                        f"hydra.run.dir={directory} is still in use by a worker process of an "
                        "earlier attempt. Stop it (fuser names it: fuser "
                        f"{directory / _NAME}), or choose another directory."
                    ) from None
                time.sleep(0.02)
