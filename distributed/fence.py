"""Keeps the workers of two attempts at one run apart: a straggler must not write any more.

Each worker holds a shared lock in the run's directory for as long as its process lives; the
kernel takes it back however the process ends.
"""

from __future__ import annotations

import fcntl
import time
from pathlib import Path

from heliotrope.errors import RunDirectoryError

__all__ = ["hold", "wait_until_clear"]

_NAME = ".workers"
_PATIENCE = 20.0  # seconds; a killed worker is gone within milliseconds

_held: list[object] = []  # open files, until this process ends


def hold(directory: Path) -> None:
    """Mark this process as a worker of the run in `directory`."""
    file = (directory / _NAME).open("a")
    fcntl.flock(file, fcntl.LOCK_SH)
    _held.append(file)


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
