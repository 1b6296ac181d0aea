"""What passes between the driver and its workers: an attempt, a place in it, what came of it."""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from heliotrope.config import Run
from heliotrope.runs.clock import Clock, Reading
from heliotrope.runs.events import Progress
from heliotrope.runs.pruning import PruningRule

if TYPE_CHECKING:
    from heliotrope.metrics import Sums  # it needs torch, which a Ray worker imports later

__all__ = [
    "AttemptStart",
    "RunAttempt",
    "TrainingResult",
    "WorkerFailure",
    "WorkerResources",
]


@dataclass(frozen=True)
class WorkerResources:
    """What each worker has of the machine: CPU threads, and its device, `cpu` or `cuda`."""

    threads: int
    device: str


@dataclass(frozen=True)
class AttemptStart:
    """When an attempt began. It passes between processes and hosts, as JSON too.

    `clock` is the driver's as it starts the workers; of its seconds, `before` had passed when the
    attempt began. `token` tells the files of this attempt from those of any other.
    """

    clock: Reading
    before: float
    token: str

    @classmethod
    def now(cls, clock: Clock, before: float) -> AttemptStart:
        """Return that of an attempt whose workers are about to be started."""
        return cls(clock.read(), before, uuid.uuid4().hex)

    def received(self) -> AttemptStart:
        """Return it with a clock that goes on here: to be called as soon as it has come."""
        return replace(self, clock=self.clock.received())

    def to_dict(self) -> dict[str, Any]:
        """Return all of it for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> AttemptStart:
        """Undo `to_dict`, where it is received."""
        clock = Reading(**fields["clock"])
        return cls(clock, fields["before"], fields["token"]).received()


@dataclass(frozen=True)
class RunAttempt:
    """What every worker is told. An attempt that fails may be followed by another.

    `directory` is the run's, or one that stands for it on a node that does not share it;
    `checkpoint` the progress to resume from, None to begin; `pruning` when a search gives the run
    up.
    """

    run: Run
    directory: Path
    checkpoint: int | None
    start: AttemptStart
    resources: WorkerResources
    pruning: PruningRule | None = None


@dataclass(frozen=True)
class TrainingResult:
    """What rank 0 says at the end of training; it crosses processes as JSON.

    `stopped` says that there was more to train, but the workers were asked to stop; `pruned` that
    a search has given the run up.
    `final` holds each split's sums of metrics, [S]; `peak_rss_bytes` is the sum over the workers;
    `seconds` and `train_seconds` are what its `heliotrope.runs.clock.Clock` said.
    """

    epochs: int
    counts: Progress
    final: Mapping[str, Sums]
    target: Mapping[str, Any] | None
    seconds: float
    train_seconds: float
    startup_seconds: float
    peak_rss_bytes: int
    stopped: bool = False
    pruned: bool = False

    def to_json(self) -> str:
        """Return all of it, floats exactly."""
        final = {name: sums.tolist() for name, sums in self.final.items()}
        fields = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return json.dumps(fields | {"counts": asdict(self.counts), "final": final})

    @classmethod
    def from_json(cls, text: str) -> TrainingResult:
        """Undo `to_json`."""
        fields = json.loads(text)
        counts = Progress(**fields.pop("counts"))
        final = {name: np.array(sums) for name, sums in fields.pop("final").items()}
        return cls(counts=counts, final=final, **fields)


class WorkerFailure(Exception):  # noqa: N818 - the failure of a worker, not a user's error
    """A worker died or raised what was not expected; another attempt may succeed."""

    def __init__(self, rank: int, reason: str) -> None:
        super().__init__(f"rank {rank}: {reason}")
        self.rank = rank
        self.reason = reason
