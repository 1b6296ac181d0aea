"""What is submitted, and what a kind of cluster does with it.

What `dry_run=true` prints is the `Plan` that would be sent: nothing is decided after `prepare`.
"""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic, TypeVar

from heliotrope.config import ClusterConfig
from heliotrope.registry import Source

__all__ = ["Cluster", "Command", "Job", "NobodyReadsError", "Plan", "show"]


@dataclass(frozen=True)
class Command:
    """A command of ours, as `heliotrope` takes it.

    Parameters
    ----------
    words
        The verb and its arguments. Those of a mode name the directory of the run and say
        resume=true, so that the same words begin the run and continue it.
    directory
        Of the run, or of the sweep; None for a verb that trains nothing.
    plugins
        The plug-ins that it loads.
    paths
        The user's own files that the run names, by key, such as data.path; absolute.
    cluster
        What of the environment the run takes along.
    """

    words: tuple[str, ...]
    directory: Path | None = None
    plugins: tuple[Source, ...] = ()
    paths: Mapping[str, Path] = field(default_factory=dict)
    cluster: ClusterConfig = field(default_factory=ClusterConfig)


@dataclass(frozen=True)
class Plan:
    """What would be sent. A kind of cluster adds what `send` needs in a class of its own.

    Parameters
    ----------
    text
        All of it, for `dry_run=true` to print: a command line, a script or a manifest.
    """

    text: str


class NobodyReadsError(Exception):
    """The output is closed, as with `| head`; not one of the errors of a connection."""


def show(printed: str | bytes) -> None:
    """Print a part of what a job has printed; raises `NobodyReadsError` once nobody reads it."""
    try:
        if isinstance(printed, bytes):
            sys.stdout.buffer.write(printed)
        else:
            sys.stdout.write(printed)
        sys.stdout.flush()
    except BrokenPipeError as error:
        raise NobodyReadsError from error


class Job(ABC):
    """A job that was sent."""

    @property
    @abstractmethod
    def name(self) -> str:
        """What the cluster calls it."""

    @abstractmethod
    def follow(self) -> int:
        """Print what the job prints until it ends; return its exit code.

        Raises `RunFailedError` if the cluster loses it, `NobodyReadsError` as `show` does.
        """

    @abstractmethod
    def stop(self) -> None:
        """Have the cluster end the job as a signal would, so that it saves a checkpoint."""


P = TypeVar("P", bound=Plan)


class Cluster(ABC, Generic[P]):
    """A kind of cluster with the values of its keys, made by an entry of the registry."""

    @abstractmethod
    def prepare(self, command: Command) -> P:
        """Return what would be sent, without a cluster or its client being there.

        Raises `ConfigError` naming a key whose value cannot be sent.
        """

    @abstractmethod
    def send(self, plan: P) -> Job:
        """Send it, and return the job.

        Raises `ConfigError` if a client is missing or a value is refused, `ResourceError` if the
        cluster does not answer.
        """
