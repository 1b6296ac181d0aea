"""What TensorBoard and MLflow make of a run's events."""

from __future__ import annotations

import math
import os
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

from heliotrope.config import Run
from heliotrope.config.redaction import without_passwords
from heliotrope.runs.directory import flat
from heliotrope.runs.events import Event

__all__ = ["SHOWN", "MlFlow", "Sink", "TensorBoard"]

SHOWN = ("step", "train", "evaluate", "clients", "final")
_STATUS = {  # MLflow's names
    "completed": "FINISHED",
    "pruned": "FINISHED",
    "failed": "FAILED",
    "interrupted": "KILLED",
}
_POINTS, _PARAMS = 1000, 100  # MLflow takes no more at once
_MAKING = threading.Lock()  # of one follower that is slow, and the next of the same process
_NO_ADDRESS = "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"  # MLflow prints it, password and all
_LONGEST = 6000  # characters of a parameter


class Sink(Protocol):
    """A tracker, called from one thread; what it raises is the follower's to handle."""

    name: str

    def check(self) -> None:
        """Raise what it would not take a run for, without beginning one."""

    def begin(self, steps: int | None) -> None:
        """Begin a run, or go on with it after `steps`, the last of its record, if any."""

    def take(self, events: Sequence[Event]) -> None:
        """Show the numbers of some events, in their order."""

    def end(self, status: str) -> None:
        """Mark the run as `completed` or `pruned`, with all events taken, or as what else it is."""

    def close(self) -> None:
        """Let go of files and connections."""


def _values(event: Event) -> Iterator[tuple[str, float]]:
    """Yield the numbers of an event, such as `test/loss` and `timing/step_ms`; null is NaN."""
    timing = {f"timing/{name}": value for name, value in event.get("timing", {}).items()}
    for name, value in {**event, **timing}.items():
        if "/" in name and (value is None or isinstance(value, int | float)):
            yield name, math.nan if value is None else float(value)


class TensorBoard(Sink):
    """Writes event files that TensorBoard shows."""

    name = "TensorBoard"

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._writer: Any = None

    def check(self) -> None: ...

    def begin(self, steps: int | None) -> None:
        """Take back the points after `steps`: they are of an attempt that was given up."""
        if self._directory.exists():
            self._open(purge_step=0 if steps is None else steps + 1)

    def take(self, events: Sequence[Event]) -> None:
        if self._writer is None:
            self._open(purge_step=None)
        for event in events:
            for name, value in _values(event):
                self._writer.add_scalar(name, value, event["steps"], walltime=event["time"])
        self._writer.flush()

    def end(self, status: str) -> None: ...

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()

    def _open(self, purge_step: int | None) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.close()
        _await_a_later_second(self._directory)
        make: Any = SummaryWriter
        self._writer = make(str(self._directory), purge_step=purge_step)
        self._writer.flush()


def _await_a_later_second(directory: Path) -> None:
    """Wait until a new event file comes after those that are there; of a clock ahead, 2 s.

    TensorBoard reads files in the order of their names: the second of their beginning, the host
    and the process, as text.
    """
    begun = [int(file.name.split(".")[3]) for file in directory.glob("events.out.tfevents.*")]
    deadline = time.monotonic() + 2
    while begun and int(time.time()) <= max(begun) and time.monotonic() < deadline:
        time.sleep(0.02)


class MlFlow(Sink):
    """Logs into one MLflow run, whose id the run's directory keeps for a resume.

    MLflow's parameters never change: those that a resume has changed become tags of that name.
    """

    name = "MLflow"

    def __init__(self, run: Run, uri: str, kept: Path) -> None:
        self._run = run
        self._uri = uri
        self._kept = kept
        self._made: Any = None

    def check(self) -> None:
        """Raise `RuntimeError` if the experiment, or a run to go on with, has been deleted."""
        found = self._client.get_experiment_by_name(self._run.name)
        if found is not None and found.lifecycle_stage == "deleted":
            raise RuntimeError(
                f"its experiment {self._run.name} is deleted. Restore it: mlflow experiments "
                f"restore --experiment-id {found.experiment_id}; or set another name=..."
            )
        if self._kept.exists():
            run_id = self._kept.read_text()
            if self._client.get_run(run_id).info.lifecycle_stage == "deleted":
                raise RuntimeError(f"its run {run_id} is deleted. Restore it there")

    def begin(self, steps: int | None) -> None:  # noqa: ARG002 - points cannot be taken back
        """Let a run that is there already be running again."""
        if self._kept.exists():
            run_id = self._kept.read_text()
            self._client.update_run(run_id, status="RUNNING")
            self._describe(run_id)

    def take(self, events: Sequence[Event]) -> None:
        from mlflow.entities import Metric

        with _MAKING:
            if not self._kept.exists():
                self._kept.write_text(self._new_run())
                self._describe(self._kept.read_text())
        points = [
            Metric(name, value, int(event["time"] * 1000), event["steps"])
            for event in events
            for name, value in _values(event)
        ]
        for first in range(0, len(points), _POINTS):
            some = points[first : first + _POINTS]
            self._client.log_batch(self._kept.read_text(), metrics=some)

    def end(self, status: str) -> None:
        if self._kept.exists():  # otherwise the run never began
            self._client.set_terminated(self._kept.read_text(), _STATUS[status])

    def close(self) -> None: ...

    @property
    def _client(self) -> Any:
        if self._made is None:
            from mlflow import MlflowClient

            os.environ.setdefault(_NO_ADDRESS, "true")
            self._made = MlflowClient(self._uri)
        return self._made

    def _new_run(self) -> str:
        made = self._client.create_run(self._experiment(), run_name=self._kept.parent.name)
        return str(made.info.run_id)

    def _experiment(self) -> str:
        """Return the id of the experiment; of several jobs that start at once, one makes it."""
        name = self._run.name
        found = self._client.get_experiment_by_name(name)
        if found is None:
            try:
                return str(self._client.create_experiment(name))
            except Exception:
                found = self._client.get_experiment_by_name(name)
                if found is None:
                    raise
        return str(found.experiment_id)

    def _describe(self, run_id: str) -> None:
        """Log the parameters that MLflow does not have, and tag those that it has otherwise."""
        from mlflow.entities import Param, RunTag

        given = flat(asdict(without_passwords(self._run)))
        now = {key: str(value)[:_LONGEST] for key, value in given.items()}
        data = self._client.get_run(run_id).data
        new = [Param(key, value) for key, value in now.items() if key not in data.params]
        for first in range(0, len(new), _PARAMS):
            self._client.log_batch(run_id, params=new[first : first + _PARAMS])
        known = {**data.params, **data.tags}
        tags = [RunTag(key, value) for key, value in now.items() if known.get(key, value) != value]
        for first in range(0, len(tags), _PARAMS):
            self._client.log_batch(run_id, tags=tags[first : first + _PARAMS])
