"""Everything Heliotrope raises on purpose, and the exit code each ends a command with.

::

    HeliotropeError
    ├── ConfigError            exit 2   a key or value is wrong; nothing was started
    │   ├── DataError          exit 2   files are missing, truncated or of the wrong kind
    │   ├── LedgerError        exit 2   a project's privacy ledger is unusable, or has no room
    │   ├── PartitionError     exit 2   the data cannot be split among the clients as asked
    │   ├── ResourceError      exit 2   more CPUs or GPUs were asked for than there are
    │   └── RunDirectoryError  exit 2   the run's directory is in use, or holds another run
    └── RunFailedError         exit 1   the run started and could not be finished
        ├── CheckpointError    exit 1   a checkpoint fails its checksum or cannot be read
        ├── MessageError       exit 1   a message holds what was not asked for, or no arrays at all
        ├── WorkerError        exit 1   a worker process died or raised (names the rank)
        ├── QuorumError        exit 1   too few clients of a round succeeded
        └── SecureAggregationError  exit 1   too few clients are left to open their sum

A message says what was wrong, where (file, key, client, rank, round), and what to do next.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from heliotrope.shell import typed

__all__ = [
    "CheckpointError",
    "ConfigError",
    "DataError",
    "HeliotropeError",
    "LedgerError",
    "MessageError",
    "PartitionError",
    "QuorumError",
    "ResourceError",
    "RunDirectoryError",
    "RunFailedError",
    "SecureAggregationError",
    "WorkerError",
    "closest",
    "writing",
]


class HeliotropeError(Exception):
    """Base of all errors raised on purpose; `exit_code` is what a command ends with."""

    exit_code = 1


class ConfigError(HeliotropeError):
    """A configuration key or value is wrong; raised before any work."""

    exit_code = 2


class DataError(ConfigError):
    """A data file is missing, truncated or not what its name says."""


class LedgerError(ConfigError):
    """A project's privacy ledger cannot be kept, or has no room for a run."""


class PartitionError(ConfigError):
    """The examples cannot be divided among the clients as requested."""


class ResourceError(ConfigError):
    """The machine or cluster has fewer CPUs or GPUs than requested."""


class RunDirectoryError(ConfigError):
    """The run's directory is in use or holds something else."""


class RunFailedError(HeliotropeError):
    """The run started and could not be finished."""


class CheckpointError(RunFailedError):
    """A checkpoint is damaged or unreadable."""


class MessageError(RunFailedError):
    """A message of a client or server is not what it must be."""


class WorkerError(RunFailedError):
    """A worker process died or raised."""


class QuorumError(RunFailedError):
    """Fewer clients of a round succeeded than its quorum asks for."""


class SecureAggregationError(RunFailedError):
    """The sum of a round cannot be opened: too few clients are left, or their shares are wrong."""


def closest(word: str, choices: Iterable[str]) -> str:
    """Return `" Did you mean 'x'?"` for the choice nearest to `word`, or an empty string."""
    by_letters = {choice.casefold(): choice for choice in choices}
    match = difflib.get_close_matches(word.casefold(), list(by_letters), n=1, cutoff=0.6)
    return f" Did you mean '{by_letters[match[0]]}'?" if match else ""


@contextmanager
def writing(path: Path, key: str = "hydra.run.dir") -> Iterator[None]:
    """Raise a `RunFailedError` that names `path` if it takes no more.

    Its folder is that of a run, or what else `key` names.
    """
    try:
        yield
    except OSError as error:
        raise RunFailedError(
            f"{path} could not be written: {error}. Make room there and continue with resume=true "
            f"{typed(key, path.parent)}."
        ) from error
