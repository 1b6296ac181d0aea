"""Of the ranks that failed together, the one that the others followed."""

from __future__ import annotations

import re
from collections.abc import Sequence

from ..attempt import WorkerFailure

__all__ = ["RankError", "lost_a_peer", "reason_of", "root_cause"]

_PEER_IS_GONE = re.compile(
    r"gloo|NCCL|ConnectionError|Connection (closed|reset|refused)|Broken pipe", re.IGNORECASE
)


_NO_MEMORY = re.compile(r"^MemoryError|out of memory|can't allocate memory", re.IGNORECASE)


class RankError(Exception):
    """What a rank's code raised, said where its lines are known; it crosses to the driver."""


def reason_of(error: str) -> str:
    """Return why a rank failed; `error` is the exception's type, a colon, and what it says."""
    error = error.removeprefix(f"{RankError.__name__}: ")
    return f"ran out of memory: {error}" if _NO_MEMORY.search(error) else error


def lost_a_peer(failure: WorkerFailure) -> bool:
    """Return whether a rank failed only because another one did, and was gone."""
    return _PEER_IS_GONE.search(failure.reason) is not None


def root_cause(failures: Sequence[WorkerFailure]) -> WorkerFailure:
    """Return the failure that the others followed from."""
    return next((f for f in failures if not lost_a_peer(f)), failures[0])
