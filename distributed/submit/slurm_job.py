"""A job of Slurm's: its state, what it prints, and its exit code."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from heliotrope.errors import RunFailedError

from .base import Job, show

__all__ = ["SlurmJob"]

_ASK_SECONDS = 2.0  # between two questions to Slurm, which serves all of its users
_READ_SECONDS = 0.2
_LATE_SECONDS = 2.0  # that a shared file system may take to show the last lines
_STOP_SECONDS = 120.0  # that a job may take to save a checkpoint
_LOST_SECONDS = 120.0  # that Slurm may be too busy to answer, or restarting

_ENDED = {
    *("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "PREEMPTED", "BOOT_FAIL"),
    *("DEADLINE", "OUT_OF_MEMORY"),
}


@dataclass(frozen=True)
class _State:
    """What Slurm says of a job: such as PENDING, for Resources, and the exit code it has so far."""

    name: str
    reason: str = ""
    code: int = 0
    signal: int = 0

    def __str__(self) -> str:
        return self.name if self.reason in ("", "None") else f"{self.name} ({self.reason})"

    @property
    def exit_code(self) -> int:
        """The exit code as shells have it; 1 where the job failed without one."""
        if self.code or self.signal:
            return self.code or 128 + self.signal
        return 0 if self.name == "COMPLETED" else 1


class SlurmJob(Job):
    """A job with its number, and the file that it prints into."""

    def __init__(self, number: str, log: Path) -> None:
        self._number = number
        self._log = log
        self._read = 0  # bytes of the file that have been shown

    @property
    def name(self) -> str:
        return f"job {self._number}"

    def follow(self) -> int:
        state = self._followed()
        if state.name not in ("COMPLETED", "FAILED"):
            sys.stderr.write(f"{self.name}: {state}; log {self._log}\n")
        return state.exit_code

    def stop(self) -> None:
        state = self._state()
        if state is not None and state.name == "RUNNING":
            subprocess.run(["scancel", "--batch", "--signal=INT", self._number], check=False)
            try:
                self._followed(_STOP_SECONDS)
            finally:
                self._cancel()
        else:
            self._cancel()

    def _cancel(self) -> None:
        state = self._state()
        if state is None or state.name not in _ENDED:
            subprocess.run(["scancel", self._number], check=False)

    def _followed(self, seconds: float = float("inf")) -> _State:
        """Show what the job prints until it has ended, `seconds` at most; return its state.

        Raises `RunFailedError` if Slurm does not know the job, or does not answer, for long.
        """
        deadline, ask, told = time.monotonic() + seconds, 0.0, ""
        answered, state = time.monotonic(), _State("PENDING")
        while True:
            if time.monotonic() >= ask:
                found = self._state()
                if found is not None:
                    answered, state = time.monotonic(), found
                elif time.monotonic() - answered > _LOST_SECONDS:
                    raise RunFailedError(
                        f"neither scontrol nor sacct has known {self.name} for {_LOST_SECONDS:g} "
                        f"s; it may be running. What it printed is in {self._log}. Send the same "
                        "words again to continue the run once it has ended."
                    )
                ask = time.monotonic() + _ASK_SECONDS
                if str(state) != told and state.name not in _ENDED:
                    told = str(state)
                    sys.stderr.write(f"{self.name}: {told}\n")
            self._show()
            if state.name in _ENDED:
                self._show_rest()
                return state
            if time.monotonic() > deadline:
                return state
            time.sleep(_READ_SECONDS)

    def _show(self) -> bool:
        """Print what is new in the file; return whether there was any."""
        try:
            with self._log.open("rb") as file:
                file.seek(self._read)
                new = file.read()
        except FileNotFoundError:  # not begun yet
            return False
        self._read += len(new)
        show(new)
        return bool(new)

    def _show_rest(self) -> None:
        deadline = time.monotonic() + _LATE_SECONDS
        while self._show() or (not self._log.exists() and time.monotonic() < deadline):
            time.sleep(_READ_SECONDS)

    def _state(self) -> _State | None:
        """Ask Slurm, which forgets a job minutes after its end; then its accounting.

        None if neither answers, or knows it.
        """
        shown = _output(["scontrol", "show", "job", self._number])
        if shown is not None:
            fields = dict(re.findall(r"\b(JobState|Reason|ExitCode)=(\S+)", shown))
            code, _, number = fields["ExitCode"].partition(":")
            return _State(fields["JobState"], fields["Reason"], int(code), int(number))
        shown = _output(
            ["sacct", "-X", "-n", "-P", "--format=State,Reason,ExitCode", "-j", self._number]
        )
        if not shown or not shown.strip():
            return None
        name, reason, exit_code = shown.splitlines()[-1].split("|")
        code, _, number = exit_code.partition(":")
        return _State(name.split()[0], reason, int(code), int(number or 0))


def _output(command: list[str]) -> str | None:
    """Return what a command of Slurm's prints; None if it is not there, or fails."""
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return None
