"""`cluster=local`: the command on this machine, in the foreground."""

from __future__ import annotations

import os
import shlex
import sys
from dataclasses import dataclass

from .base import Cluster, Command, Job, Plan

__all__ = ["local"]


def local() -> Cluster[LocalPlan]:
    """Run on this machine, in the foreground, as if the command had been typed."""
    return _Local()


@dataclass(frozen=True)
class LocalPlan(Plan):
    """The words of a command line."""

    words: tuple[str, ...]


class _Local(Cluster[LocalPlan]):
    def prepare(self, command: Command) -> LocalPlan:
        words = (sys.executable, "-m", "heliotrope", *command.words)
        return LocalPlan(shlex.join(words), words)

    def send(self, plan: LocalPlan) -> Job:
        return _LocalJob(plan)


class _LocalJob(Job):
    """A command that this process becomes: signals, output and exit code need no forwarding."""

    def __init__(self, plan: LocalPlan) -> None:
        self._plan = plan

    @property
    def name(self) -> str:
        return f"process {os.getpid()}"

    def follow(self) -> int:
        sys.stdout.flush()
        sys.stderr.flush()
        os.execv(self._plan.words[0], self._plan.words)  # noqa: S606 - a list of words, no shell

    def stop(self) -> None:
        """Nothing: what stops this process is the command's own to answer."""
