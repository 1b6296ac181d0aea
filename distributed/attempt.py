"""What passes between the driver and its workers: an attempt, a place in it, what came of it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from heliotrope.config import Run
from heliotrope.metrics import ClassificationMetrics
from heliotrope.tracking import Progress

__all__ = ["Attempt", "Place", "Share", "Trained", "WorkerFailure"]


@dataclass(frozen=True)
class Share:
    """What each worker has of the machine: CPU threads, and its device, `cpu` or `cuda`."""

    threads: int
    device: str


@dataclass(frozen=True)
class Attempt:
    """What every worker is told. An attempt that fails may be followed by another.

    `directory` is the run's, on a file system that all workers share; `checkpoint` the
    progress to resume from, None to begin; `started` when the attempt began, in unix seconds.
    """

    run: Run
    directory: Path
    checkpoint: int | None
    started: float
    share: Share


@dataclass(frozen=True)
class Place:
    """Which of the workers one is. `local_rank` counts on its own machine."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0


@dataclass(frozen=True)
class Trained:
    """What rank 0 says at the end of training; it crosses processes as JSON.

    `stopped` says that there was more to train, but the workers were asked to stop.
    `final` holds each split's metrics; `peak_rss_bytes` is the sum over the workers;
    `seconds_before` and `train_seconds` are those of `heliotrope.tracking.Clock`.
    """

    epochs: int
    counts: Progress
    final: Mapping[str, ClassificationMetrics]
    target: Mapping[str, Any] | None
    seconds_before: float
    train_seconds: float
    startup_seconds: float
    peak_rss_bytes: int
    stopped: bool = False

    def to_json(self) -> str:
        """Return all of it, floats exactly."""
        final = {name: metrics.to_vector().tolist() for name, metrics in self.final.items()}
        fields = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return json.dumps(fields | {"counts": asdict(self.counts), "final": final})

    @classmethod
    def from_json(cls, text: str) -> Trained:
        """Undo `to_json`."""
        fields = json.loads(text)
        counts = Progress(**fields.pop("counts"))
        final = {
            name: ClassificationMetrics.from_vector(np.array(vector))
            for name, vector in fields.pop("final").items()
        }
        return cls(counts=counts, final=final, **fields)


class WorkerFailure(Exception):  # noqa: N818 - the failure of a worker, not a user's error
    """A worker died or raised what was not expected; another attempt may succeed."""

    def __init__(self, rank: int, reason: str) -> None:
        super().__init__(f"rank {rank}: {reason}")
        self.rank = rank
        self.reason = reason
