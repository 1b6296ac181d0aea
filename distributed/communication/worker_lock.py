"""Keeps the workers of two attempts at one run apart: a straggler must not write any more.

Each worker holds a shared lock in the run's directory while it trains; the kernel takes it
back however its process ends. Where the file system has no locks, nothing keeps them apart.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from heliotrope.errors import RunDirectoryError
from heliotrope.system.locks import LEASE, NoLocksError, lock

__all__ = ["held", "is_clear", "wait_until_clear"]

_NAME = ".workers"
_PATIENCE = LEASE
_QUIET = 2.0  # seconds of waiting before it is said; a killed worker is gone within milliseconds


@contextmanager
def held(directory: Path) -> Iterator[None]:
    """Mark this process as a worker of the run in `directory`, inside the block."""
    # Reading and writing: NFS grants a shared lock for the one, an exclusive one for the other.
    with (directory / _NAME).open("a+") as file:
        with suppress(NoLocksError):
            lock(file, shared=True, wait=True)
        yield


def is_clear(directory: Path) -> bool:
    """Return whether it is known that no worker is left."""
    with (directory / _NAME).open("a+") as file:
        try:
            return lock(file)
        except NoLocksError:
            return False


def wait_until_clear(directory: Path, say: Callable[[str], None]) -> None:
    """Return when no worker of an earlier attempt is left; `RunDirectoryError` if one stays.

    What is waited for is told to `say`.
    """
    path, began, said = directory / _NAME, time.monotonic(), False
    with path.open("a+") as file, suppress(NoLocksError):
        while not lock(file):
            waited = time.monotonic() - began
            if waited > _PATIENCE:
                raise RunDirectoryError(
                    f"hydra.run.dir={directory} is still in use by a worker process of an earlier "
                    f"attempt, {_PATIENCE:g} s later. Stop it (on its machine, fuser {path} names "
                    f"it); if its machine is gone for good, remove {path}; or choose another "
                    "directory."
                )
            if waited > _QUIET and not said:
                said = True
                say(
                    f"waiting up to {_PATIENCE:g} s for a worker of an earlier attempt: the lock "
                    "of a machine that died ends on a network file system after a while"
                )
            time.sleep(0.02)
