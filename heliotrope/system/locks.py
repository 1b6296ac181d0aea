"""Locks on files, which end with the process that holds them, on any file system that has them.

On a network file system a lock also outlives a machine that died, until the server misses it:
Linux's NFS server takes 90 s. Some file systems have no locks at all.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import IO, Any

__all__ = ["LEASE", "Holder", "NoLocksError", "file_system", "lock"]

LEASE = 120.0  # seconds after which no server keeps the lock of a machine that has died

_HELD = (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES)


class NoLocksError(Exception):
    """The file system has no locks; says so, with its type and where it is mounted."""


def lock(file: IO[Any], *, shared: bool = False, wait: bool = False) -> bool:
    """Lock `file`, which must be open for reading and writing; return False if others have it.

    With `wait`, return when they have given it up. Raises `NoLocksError`.
    """
    operation = (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB)
    try:
        fcntl.flock(file, operation)
    except OSError as error:
        if error.errno in _HELD:
            return False
        raise NoLocksError(
            f"{file_system(Path(file.name))} has no file locks ({error.strerror or error})"
        ) from error
    return True


@dataclass(frozen=True)
class Holder:
    """The process that holds a lock, as it says itself in the locked file."""

    pid: int
    host: str
    boot: str

    @classmethod
    def this(cls) -> Holder:
        """Return this process."""
        return cls(os.getpid(), socket.gethostname(), _boot())

    @classmethod
    def named_in(cls, file: IO[str]) -> Holder | None:
        """Return who `file` names; None if nobody, or not in this way."""
        file.seek(0)
        return cls.named(file.read())

    @classmethod
    def named(cls, text: str | bytes) -> Holder | None:
        """Return who the text of a file names; None if nobody, or not in this way."""
        try:
            return cls(**json.loads(text))
        except (ValueError, TypeError):
            return None

    def write(self, file: IO[str]) -> None:
        """Let `file` name this process and nobody else."""
        file.truncate(0)
        file.write(json.dumps(asdict(self)))
        file.flush()

    @property
    def near(self) -> bool:
        """Whether it is of this machine, whose kernel takes back a lock when a process ends."""
        return self.boot == _boot()

    @property
    def alive(self) -> bool:
        """Whether it is a process of this machine that still runs."""
        return self.near and Path(f"/proc/{self.pid}").exists()

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"


@cache
def _boot() -> str:
    """Return what tells this machine, since it was started, from all others."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:  # not Linux
        return socket.gethostname()


def file_system(path: Path) -> str:
    """Return the type of the file system that `path` is on, and where it is mounted."""
    resolved = path.resolve()
    try:
        mounts = [line.split(" ") for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    except OSError:  # not Linux
        return f"the file system of {resolved}"
    found = [
        (mount, fields[fields.index("-") + 1])
        for fields in mounts
        if resolved.is_relative_to(mount := fields[4].replace("\\040", " "))
    ]
    if not found:  # in a chroot, whose root is not mounted itself
        return f"the file system of {resolved}"
    mount, kind = max(found, key=lambda pair: len(pair[0]))
    return f"the {kind} file system at {mount}"
