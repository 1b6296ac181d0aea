"""What a run tells a tracker, and a server of MLflow's that can fail."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from heliotrope.config import Run
from heliotrope.config.checks import shared
from heliotrope.runs.clock import Clock
from heliotrope.runs.events import Progress, Tracker
from heliotrope.runs.trackers import listeners

SECRET = "http://me:pa55@server:5000"  # noqa: S105 - of nobody


@contextmanager
def tracker_of(
    run: Run, directory: Path, say: Callable[[str], None] | None = print
) -> Iterator[Tracker]:
    directory.mkdir(exist_ok=True)
    with Tracker(
        directory / "metrics.jsonl", listeners(run, directory, say, begun=True)
    ) as tracker:
        yield tracker


def train(tracker: Tracker, steps: Sequence[int], losses: Sequence[float]) -> None:
    """Emit what a run of some epochs does."""
    for done, loss in zip(steps, losses, strict=True):
        counts, unit = Progress(steps=done), {"epoch": done}
        timing = {"step_ms": 2.0 * loss}
        tracker.progress("train", counts, Clock(), unit, **{"train/loss": loss}, timing=timing)


def finish(tracker: Tracker, steps: int, **values: float) -> None:
    """Emit what a completed run does."""
    tracker.progress("final", Progress(steps=steps), Clock(), {"epoch": 1}, **values)
    tracker.emit("end", status="completed")


def wait_for(holds: Callable[[], object]) -> None:
    deadline = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.02)


class FakeMlFlow:
    """A tracking server, its client and the module, as far as they are used."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.answers = threading.Event()
        self.answers.set()
        self.delay = 0.0  # seconds of a call
        self.error: Exception | None = None
        self.stage = "active"
        self.asked: list[str] = []
        self.batches: list[list[tuple[str, float, int, int]]] = []
        self.params: dict[str, str] = {}
        self.statuses: list[str] = []
        entities = ModuleType("mlflow.entities")
        pair = lambda *both: both  # noqa: E731
        entities.__dict__.update(Metric=lambda *point: point, Param=pair, RunTag=pair)
        module = ModuleType("mlflow")
        module.__dict__.update(MlflowClient=self._connected, entities=entities)
        monkeypatch.setitem(sys.modules, "mlflow", module)
        monkeypatch.setitem(sys.modules, "mlflow.entities", entities)
        monkeypatch.setattr(shared, "find_spec", lambda name: name)

    def _connected(self, uri: str) -> FakeMlFlow:
        self.asked.append(uri)
        return self

    def get_experiment_by_name(self, _name: str) -> SimpleNamespace:
        return SimpleNamespace(experiment_id="1", lifecycle_stage=self.stage)

    def create_run(self, *_: object, **_named: object) -> SimpleNamespace:
        return SimpleNamespace(info=SimpleNamespace(run_id="r"))

    def get_run(self, _run: str) -> SimpleNamespace:
        return SimpleNamespace(data=SimpleNamespace(params=self.params, tags={}))

    def update_run(self, _run: str, status: str) -> None:
        self.statuses.append(status)

    def log_batch(
        self,
        _run: str,
        metrics: Sequence[Any] = (),
        params: Sequence[Any] = (),
        tags: Sequence[Any] = (),
    ) -> None:
        del tags
        assert len(metrics) <= 1000
        assert len(params) <= 100
        self.answers.wait()
        time.sleep(self.delay)
        if self.error is not None:
            raise self.error
        self.params |= dict(params)
        if metrics:
            self.batches.append(list(metrics))

    def set_terminated(self, _run: str, status: str) -> None:
        self.statuses.append(status)

    def points(self, wanted: str) -> list[tuple[int, float]]:
        each = [point for batch in self.batches for point in batch]
        return [(step, value) for name, value, _, step in each if name == wanted]


def log_steps(tracker: Tracker, number: int) -> None:
    for step in range(1, number + 1):
        fields = {"step/loss": 1.0 / step, "step/lr": 0.1}
        tracker.progress("step", Progress(steps=step), Clock(), {"epoch": 1}, **fields)
