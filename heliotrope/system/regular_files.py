"""Files that others may have left: regular ones are read, links, pipes and devices are not."""

from __future__ import annotations

import os
import stat

__all__ = ["open_regular", "read_regular"]

_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


def open_regular(path: str | os.PathLike[str]) -> tuple[int, os.stat_result]:
    """Return the descriptor of a regular file and what `fstat` says; `OSError` for another one."""
    descriptor = os.open(path, _FLAGS)
    about = os.fstat(descriptor)
    if stat.S_ISREG(about.st_mode):
        return descriptor, about
    os.close(descriptor)
    raise OSError(None, "not a regular file")


def read_regular(path: str | os.PathLike[str], most: int) -> bytes:
    """Return the first `most` bytes of a regular file; `OSError` for another one."""
    descriptor, about = open_regular(path)
    try:
        return os.read(descriptor, min(most, about.st_size))
    finally:
        os.close(descriptor)
