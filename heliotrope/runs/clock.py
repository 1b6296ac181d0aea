"""How long a run has taken: one clock over its attempts, its processes, and its resumptions.

Time is measured by the monotonic clock, which no one sets. It is the same for all processes of one
host since its boot, but means nothing on another host: a clock that comes from there goes on from
the moment when it was received.

Checkpoints and events tell how long the run has taken. What they do not tell is kept in a file of
its own (`keep_seconds`); only a process that is killed leaves no word of the time since its last
event.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path

__all__ = ["Clock", "Reading", "clock_from_now", "keep_seconds", "kept_seconds", "process_age"]

_KEPT = ".seconds"  # in the run's directory

_BOOT = Path("/proc/sys/kernel/random/boot_id")
_TIME_NAMESPACE = Path("/proc/self/ns/time")  # a container may have a monotonic clock of its own


def _host() -> str | None:
    """Name what has one monotonic clock: this host since its boot; None if that is unknown."""
    try:
        boot = _BOOT.read_text().strip()
    except OSError:  # not Linux
        return None
    with suppress(OSError):  # before Linux 5.6 there was only one
        boot += f" {_TIME_NAMESPACE.readlink()}"
    return boot


@dataclass(frozen=True)
class Reading:
    """What a clock said, and when, for another process to go on from. It can pass as JSON.

    `seconds` are those of the run; `at` is what the monotonic clock of `host` said.
    """

    seconds: float
    at: float
    host: str | None

    def received(self) -> Reading:
        """Return it as a reading of this host: one of another host counts from now on."""
        now, host = time.monotonic(), _host()
        if host is not None and host == self.host and self.at <= now:
            return self
        return Reading(self.seconds, now, host)

    @property
    def known(self) -> bool:
        """Whether it was read on this host, so that the time since then is known."""
        return self.received() is self


@dataclass
class Clock:
    """Seconds since the run began, and of these spent training, across attempts and resumes.

    `train_seconds` belong to the steps that the present weights come from: steps that were lost
    with a failed attempt are part of `seconds` alone.
    """

    seconds_before: float = 0.0
    train_seconds: float = 0.0
    _started: float = field(default_factory=lambda: time.monotonic() - _job_age())
    _resumed: bool = False  # what the run has on record is part of it

    @property
    def seconds(self) -> float:
        """Wall-clock seconds of all attempts, without the time between two commands.

        From process start; in a sweep, from the job's own start.
        """
        return self.seconds_before + time.monotonic() - self._started

    def resume(self, recorded: float) -> None:
        """Go on from what the run has on record, in seconds.

        At first that is the time of earlier processes. When this one begins another attempt, its
        own time is part of it, and the clock stands still or is put forward.
        """
        if self._resumed:
            self.at_least(recorded)
        else:
            self.seconds_before += recorded
            self._resumed = True

    def at_least(self, seconds: float) -> None:
        """Put the clock forward to `seconds`, as another host has counted, if it is behind."""
        self.seconds_before += max(0.0, seconds - self.seconds)

    @contextmanager
    def kept_in(self, directory: Path) -> Iterator[None]:
        """Leave the time in the run's directory if the block, in which it goes on, is cut off."""
        try:
            yield
        except BaseException:
            if self._resumed:
                keep_seconds(directory, self.seconds)
            raise

    def read(self) -> Reading:
        """Return what the clock says now, for another process."""
        return Reading(self.seconds, time.monotonic(), _host())

    @classmethod
    def going_on(cls, reading: Reading) -> Clock:
        """Return a clock that goes on from `reading`, which may come from another process."""
        here = reading.received()
        return cls(seconds_before=here.seconds, _started=here.at, _resumed=True)


def keep_seconds(directory: Path, seconds: float) -> None:
    """Leave in the run's directory that it has taken so long, for when it goes on.

    For time of which neither a checkpoint nor an event tells; without room on the disk it is lost.
    """
    path = directory / _KEPT
    temporary = path.with_name(f"{_KEPT}.tmp")
    with suppress(OSError):
        temporary.write_text(f"{max(seconds, kept_seconds(directory)):.4f}\n")
        temporary.replace(path)


def kept_seconds(directory: Path) -> float:
    """Return what `keep_seconds` has left in the run's directory; 0 if nothing."""
    try:
        return float((directory / _KEPT).read_text())
    except (OSError, ValueError):
        return 0.0


@contextmanager
def clock_from_now() -> Iterator[None]:
    """Let clocks made inside start here: this process has done other jobs of a sweep before."""
    token = _JOB_STARTED.set(time.monotonic())
    try:
        yield
    finally:
        _JOB_STARTED.reset(token)


def _job_age() -> float:
    started = _JOB_STARTED.get()
    return process_age() if started is None else time.monotonic() - started


def process_age() -> float:
    """Return the seconds since this process was started, interpreter and imports included."""
    try:
        started = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
        uptime = float(Path("/proc/uptime").read_text().split()[0])
        return max(0.0, uptime - started / os.sysconf("SC_CLK_TCK"))
    except (OSError, ValueError, IndexError):  # not Linux
        return time.monotonic() - _IMPORTED


_IMPORTED = time.monotonic()
_JOB_STARTED: ContextVar[float | None] = ContextVar("job_started", default=None)
