"""What a round changes, and how it is kept in checkpoints."""

from __future__ import annotations

import logging
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from flwr.app import ArrayRecord
from torch import Tensor

from heliotrope.config import Run
from heliotrope.errors import ConfigError, HeliotropeError, RunFailedError
from heliotrope.runs import checkpoint
from heliotrope.runs.changed_plugins import going_on
from heliotrope.runs.checkpoint import Checkpoint
from heliotrope.runs.clock import Clock
from heliotrope.runs.directory import RunDirectory
from heliotrope.runs.events import Progress, Tracker
from heliotrope.runs.outcome import Target

from .components import Components
from .engine.execution import ExecutionPlan
from .flower.grid import CohortGrid
from .flower.messages import read_arrays, to_record
from .protection import Protection
from .strategies.state import restore, snapshot

__all__ = ["RoundSaver", "ServerState"]

_log = logging.getLogger(__name__)

_SAVE_SECONDS = 30.0  # a checkpoint is also due when the last one is this old


@dataclass
class ServerState:
    """What a round changes, and a checkpoint holds."""

    arrays: ArrayRecord
    server_round: int = 0
    counts: Progress = field(default_factory=Progress)
    clock: Clock = field(default_factory=Clock)
    startup_seconds: float | None = None
    evaluated: bool = True  # this round, or there is nothing to evaluate yet


@dataclass(frozen=True)
class _Noted:
    """What a checkpoint holds, of the moment when it was noted."""

    model: ArrayRecord
    arrays: dict[str, Tensor]  # of the strategy
    state: dict[str, Any]


class RoundSaver:
    """Keeps what the last whole round left behind, and goes on from it.

    Parameters
    ----------
    run, components, directory
        Of the run.
    grid, tracker, target, protection
        That have a state of their own beside the server's.
    """

    def __init__(
        self,
        run: Run,
        components: Components,
        grid: CohortGrid,
        tracker: Tracker,
        directory: RunDirectory,
        target: Target,
        protection: Protection | None,
    ) -> None:
        self._run = run
        self._start = components.context.global_weights
        self._preparation = components.data
        self._strategy = components.strategy
        self._grid = grid
        self._tracker = tracker
        self._directory = directory.path
        self._checkpoints = directory.checkpoints
        self._target = target
        self._protection = protection
        self._saved_at = time.monotonic()
        self._noted: _Noted
        self._saved: _Noted | None = None

    def note(self, state: ServerState) -> None:
        """Note what a checkpoint of the present `state` holds.

        The next round changes the strategy before its model is accepted, and may be cut off
        anywhere: then this is what is saved.
        """
        try:
            arrays, shapes = snapshot(self._strategy)
        except ConfigError as error:
            done = state.server_round
            if done == 0:  # nothing was trained yet
                raise
            raise RunFailedError(
                f"round {done}: {error} What was trained up to round {done - 1} is saved. Mend it "
                f"and go on: {going_on(self._run, self._directory)}."
            ) from error
        if self._grid.states is not None:
            arrays |= self._grid.states.snapshot()
        arrays |= self._grid.attackers_snapshot()
        self._noted = _Noted(
            state.arrays,
            arrays,
            {
                "round": state.server_round,
                "evaluated": state.evaluated,
                "preparation": self._preparation,
                "strategy": shapes,
                "counts": asdict(state.counts),
                "train_seconds": state.clock.train_seconds,
                "target": self._target.saved(),
                "metrics_offset": self._tracker.offset,
                "privacy": None if self._protection is None else self._protection.saved(),
            },
        )

    @property
    def is_old(self) -> bool:
        """Whether a checkpoint is due for the age of the last one."""
        return time.monotonic() - self._saved_at > _SAVE_SECONDS

    def save(self, state: ServerState) -> None:
        """Write a checkpoint of the last whole round, evaluated or not."""
        noted = self._noted
        self._tracker.sync()
        checkpoint.save(
            self._checkpoints,
            Checkpoint(
                progress=noted.state["round"],
                model=read_arrays(noted.model),
                arrays=noted.arrays,
                state={
                    **noted.state,
                    "client_training": asdict(self._grid.execution)
                    if self._grid.execution
                    else None,
                    "seconds": state.clock.seconds,
                },
            ),
        )
        self._saved_at, self._saved = time.monotonic(), noted

    def save_last(self, state: ServerState) -> None:
        """Save the last whole round, if it is not saved yet.

        The reason why the run ends is told in any case.
        """
        try:
            if self._noted is not self._saved:
                self.save(state)
        except (HeliotropeError, OSError):
            _log.exception("the last round could not be saved")

    def restore(self, saved: Checkpoint, state: ServerState) -> None:
        """Make everything, `state` too, what it was; events after it are dropped."""
        path = checkpoint.path_of(self._checkpoints, saved.progress)
        checkpoint.check_weights(self._start, saved.model, path)
        with checkpoint.understood(path):
            self._restore(saved, path, state)

    def _restore(self, saved: Checkpoint, path: Path, state: ServerState) -> None:
        kept = saved.state
        checkpoint.check_preparation(self._preparation, kept, path)
        restore(self._strategy, saved.arrays, kept["strategy"])
        if self._protection is not None:
            self._protection.begin(saved.progress, kept.get("privacy") or {})
        if self._grid.states is not None:
            self._grid.states.restore(saved.arrays)
        self._grid.restore_attackers(saved.arrays)
        execution = kept["client_training"]
        self._grid.execution = None if execution is None else ExecutionPlan(**execution)
        self._target.restore(kept["target"])
        state.arrays = to_record(saved.model)
        state.server_round = saved.progress
        state.evaluated = kept.get("evaluated", True)  # before, only then it was saved
        state.counts = Progress(**kept["counts"])
        state.clock.train_seconds = float(kept["train_seconds"])
        # Last, for it drops what the run has said: of a state that makes sense, nothing fails now.
        seconds, offset = float(kept["seconds"]), int(kept["metrics_offset"])
        state.clock.resume(max(seconds, self._tracker.rewind(offset)))
