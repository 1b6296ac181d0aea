"""Removing run directories: only what was listed, none that a process has, through no link."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import IO

from heliotrope.errors import RunDirectoryError, RunFailedError
from heliotrope.runs.config_values import at
from heliotrope.runs.finding import FOREIGN, FoundRun
from heliotrope.system.locks import Holder, NoLocksError, lock

__all__ = ["kept_because", "remove_run"]


def kept_because(run: FoundRun, found: Sequence[FoundRun]) -> str | None:
    """Return why a run must not be removed, or None; `found` are all that lie there."""
    if run.state in ("running", FOREIGN):
        return run.state
    if any(run.path in other.path.parents for other in found):
        return "other runs lie in it"
    ledger = at(run.config, "privacy.ledger")
    if isinstance(ledger, str) and Path(ledger).resolve().is_relative_to(run.path.resolve()):
        return "the privacy ledger that it shares with others lies in it"
    return None


def remove_run(run: FoundRun) -> None:
    """Remove a run's directory with all that it holds; links in it go, what they lead to stays.

    Raises `RunDirectoryError` if a process has the run by now, `RunFailedError` if some of it
    cannot be removed.
    """
    try:
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        with os.fdopen(os.open(run.path / ".lock", flags, 0o666), "r+") as file:
            if not _lock(file):
                raise RunDirectoryError(f"{run.path} is in use by now and was not removed.")
            shutil.rmtree(run.path)
    except OSError as error:
        raise RunFailedError(
            f"{error.filename or run.path} cannot be removed: {error.strerror or error}. What is "
            f"left of {run.path} is no whole run."
        ) from error


def _lock(file: IO[str]) -> bool:
    """Keep other processes from the run until it is removed; False if one has it."""
    try:
        return lock(file)
    except NoLocksError:
        holder = Holder.named_in(file)
        return holder is None or not holder.alive
