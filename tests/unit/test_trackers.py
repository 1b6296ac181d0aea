"""TensorBoard and MLflow show the numbers of metrics.jsonl."""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

import heliotrope.trackers
from heliotrope.config import Run
from heliotrope.errors import ConfigError, ResourceError, RunFailedError
from heliotrope.home import at_home
from heliotrope.trackers import listeners, tell_end
from heliotrope.tracking import Clock, Progress, Tracker
from tests.distributed_runs import wait_until
from tests.support import compose


def _tell(run: Run, directory: Path, steps: list[int], losses: list[float]) -> None:
    """Emit what a run of some epochs does."""
    directory.mkdir(exist_ok=True)
    tracker = Tracker(directory / "metrics.jsonl", listeners(run, directory))
    tracker.emit("start", mode="distributed", name=run.name, seed=run.seed)
    for done, loss in zip(steps, losses, strict=True):
        counts, unit = Progress(steps=done), {"epoch": done}
        timing = {"step_ms": 2.0 * loss}
        tracker.progress("train", counts, Clock(), unit, **{"train/loss": loss}, timing=timing)
    tracker.emit("end", status="completed")
    tracker.close()


def test_tensorboard_shows_each_number_at_its_step_also_after_a_resume(tmp_path: Path) -> None:
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    run = compose("distributed", "tracking.tensorboard=true")
    _tell(run, tmp_path, [10, 20, 30], [3.0, 2.0, 1.0])
    _tell(run, tmp_path, [30, 40], [1.5, 0.5])  # resumed from the checkpoint at 20
    found = reader.EventAccumulator(str(tmp_path / "tensorboard"))
    found.Reload()
    shown = {
        name: [(point.step, point.value) for point in found.Scalars(name)]
        for name in found.Tags()["scalars"]
    }
    losses = [(10, 3.0), (20, 2.0), (30, 1.5), (40, 0.5)]
    times = [(step, 2.0 * loss) for step, loss in losses]
    assert shown == {"train/loss": losses, "timing/step_ms": times}


@pytest.mark.filterwarnings("ignore")  # of MLflow, about its own dependencies
def test_mlflow_has_one_run_with_its_parameters_and_numbers(tmp_path: Path) -> None:
    mlflow = pytest.importorskip("mlflow")
    pytest.importorskip("sqlalchemy")
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    run = compose("distributed", f"tracking.mlflow={uri}", "name=tracked", "seed=11")
    _tell(run, tmp_path / "one", [10, 20], [3.0, 2.0])
    _tell(run, tmp_path / "one", [30], [1.0])
    client = mlflow.MlflowClient(uri)
    experiment = client.get_experiment_by_name("tracked")
    [found] = client.search_runs([experiment.experiment_id])
    assert found.info.status == "FINISHED"
    assert found.data.params["seed"] == "11"
    points = client.get_metric_history(found.info.run_id, "train/loss")
    assert [(point.step, point.value) for point in points] == [(10, 3.0), (20, 2.0), (30, 1.0)]


class _FakeMlFlow:
    """A tracking server, its client and the module, as far as they are used."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.answers = threading.Event()
        self.answers.set()
        self.points: list[tuple[str, float, int, int]] = []
        self.statuses: list[str] = []
        entities = ModuleType("mlflow.entities")
        entities.__dict__.update(Metric=lambda *point: point, Param=lambda *_: None)
        module = ModuleType("mlflow")
        module.__dict__.update(MlflowClient=lambda _uri: self, entities=entities)
        monkeypatch.setitem(sys.modules, "mlflow", module)
        monkeypatch.setitem(sys.modules, "mlflow.entities", entities)
        monkeypatch.setattr(heliotrope.trackers, "find_spec", lambda name: name)

    def get_experiment_by_name(self, _name: str) -> SimpleNamespace:
        return SimpleNamespace(experiment_id="1")

    def create_run(self, *_: object, **_named: object) -> SimpleNamespace:
        return SimpleNamespace(info=SimpleNamespace(run_id="r"))

    def log_batch(self, _run: str, metrics: Sequence[Any] = (), params: object = None) -> None:
        self.answers.wait()
        self.points += metrics

    def set_terminated(self, _run: str, status: str) -> None:
        self.statuses.append(status)


def test_a_slow_server_holds_up_neither_a_step_nor_the_end_for_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    server = _FakeMlFlow(monkeypatch)
    server.answers.clear()
    monkeypatch.setattr(heliotrope.trackers, "_PATIENCE", 0.1)
    run = compose("distributed", "tracking.mlflow=http://gone")
    _tell(run, tmp_path, [10, 20], [2.0, 1.0])  # returns
    assert "left behind" in caplog.text
    assert server.points == []
    server.answers.set()
    wait_until(lambda: server.statuses)
    assert [(name, step) for name, _, _, step in server.points if name == "train/loss"] == [
        ("train/loss", 10),
        ("train/loss", 20),
    ]


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (RunFailedError("diverged"), ["FAILED"]),
        (ValueError("not foreseen"), ["FAILED"]),
        (KeyboardInterrupt(), ["KILLED"]),
        (SystemExit(143), ["KILLED"]),
        (ResourceError("no room"), []),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else "",
)
def test_a_run_that_is_not_completed_is_not_left_running(
    error: BaseException, status: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = _FakeMlFlow(monkeypatch)
    run = compose("distributed", "tracking.mlflow=http://here")

    def train() -> None:
        with at_home(run, "distributed", tmp_path, "driver") as (home, _):
            with Tracker(home.metrics, listeners(run, home.path)) as tracker:
                tracker.progress("train", Progress(), Clock(), {"epoch": 1}, **{"train/loss": 1.0})
            raise error

    with pytest.raises(type(error)):
        train()
    assert server.statuses == status


def test_a_run_that_failed_before_its_first_event_is_not_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = _FakeMlFlow(monkeypatch)
    tell_end(compose("distributed", "tracking.mlflow=http://here"), tmp_path, "failed")
    assert server.statuses == []


@pytest.mark.parametrize(
    ("override", "package"),
    [("tracking.tensorboard=true", "tensorboard"), ("tracking.mlflow=sqlite:///x.db", "mlflow")],
)
def test_a_missing_package_is_named_with_how_to_install_it(
    override: str, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(heliotrope.trackers, "find_spec", lambda name: None)
    with pytest.raises(ConfigError) as caught:
        compose("distributed", override)
    assert override in str(caught.value)
    assert f"pip install heliotrope[{package}]" in str(caught.value)


def test_a_tracker_that_fails_is_left_out_and_the_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    calls = []

    class Broken:
        def __init__(self, *arguments: object) -> None: ...

        def __call__(self, event: object) -> None:
            calls.append(event)
            raise OSError("the server is gone")

        def close(self) -> None:
            raise OSError("and stays so")

    monkeypatch.setattr(heliotrope.trackers, "find_spec", lambda name: name)
    monkeypatch.setattr(heliotrope.trackers, "_TensorBoard", Broken)
    run = compose("distributed", "tracking.tensorboard=true")
    with caplog.at_level(logging.ERROR):
        _tell(run, tmp_path, [10, 20], [2.0, 1.0])
    assert len(calls) == 1
    assert "the server is gone" in caplog.text
    assert (tmp_path / "metrics.jsonl").read_text().count("train/loss") == 2
