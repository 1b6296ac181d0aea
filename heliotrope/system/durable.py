"""What is to be there after a loss of power: a file's entry in its folder, beside its content."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["sync_file", "sync_folder", "write_whole"]


def sync_folder(path: Path) -> None:
    """Return when the entries of the folder `path` are on the disk: files made, renamed, removed.

    Raises `OSError`.
    """
    sync_file(path)


def sync_file(path: Path) -> None:
    """Return when the content of the file `path`, which is written, is on the disk.

    Raises `OSError`.
    """
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


def write_whole(path: Path, data: bytes) -> None:
    """Write a file that is there whole or not at all, and is on the disk when this returns.

    Raises `OSError`; then nothing of it is left.
    """
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with unfinished.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
    except OSError:
        unfinished.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)
