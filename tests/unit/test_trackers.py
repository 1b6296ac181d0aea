"""TensorBoard and MLflow show the numbers of metrics.jsonl, all of them, or it is said."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import yaml

import heliotrope.runs.trackers
from heliotrope.config import Run
from heliotrope.config.checks import shared
from heliotrope.errors import ConfigError, ResourceError, RunFailedError
from heliotrope.runs.clock import Clock
from heliotrope.runs.directory import RunDirectory
from heliotrope.runs.display import OUTPUT_CLOSED
from heliotrope.runs.events import Progress, Tracker, log_to, stop_logging
from heliotrope.runs.lifecycle import run_directory
from heliotrope.runs.sinks import MlFlow
from heliotrope.runs.trackers import check_trackers, listeners, tell_end
from heliotrope.system.redaction import masked
from tests.support import Started, compose, type_command

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


def shown_by_tensorboard(directory: Path) -> dict[str, list[tuple[int, float]]]:
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    found = reader.EventAccumulator(str(directory / "tensorboard"))
    found.Reload()
    return {
        name: [(point.step, point.value) for point in found.Scalars(name)]
        for name in found.Tags()["scalars"]
    }


def test_tensorboard_shows_each_number_at_its_step_also_after_a_resume(tmp_path: Path) -> None:
    run = compose("distributed", "tracking.tensorboard=true")
    with tracker_of(run, tmp_path) as tracker:
        train(tracker, [10, 20], [3.0, 2.0])
        checkpoint = tracker.offset
        train(tracker, [30], [1.0])
    with Tracker(tmp_path / "metrics.jsonl") as tracker:  # as the driver does
        tracker.rewind(checkpoint)
    with tracker_of(run, tmp_path) as tracker:
        train(tracker, [30, 40], [1.5, 0.5])
        finish(tracker, 40, **{"test/loss": 0.25})
    losses = [(10, 3.0), (20, 2.0), (30, 1.5), (40, 0.5)]
    assert shown_by_tensorboard(tmp_path) == {
        "train/loss": losses,
        "timing/step_ms": [(step, 2.0 * loss) for step, loss in losses],
        "test/loss": [(40, 0.25)],
    }


@pytest.mark.parametrize("rewound_by", ["the driver", "the tracker itself"])
def test_tensorboard_takes_back_what_a_dead_attempt_did_after_its_checkpoint(
    rewound_by: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # File names count the writers of a process: the tenth comes before the ninth as text.
    writers = pytest.importorskip("tensorboard.summary.writer.event_file_writer")
    monkeypatch.setattr(writers, "_global_uid", writers.AtomicCounter(9))
    run = compose("distributed", "tracking.tensorboard=true")
    with tracker_of(run, tmp_path) as tracker:
        train(tracker, [10, 20], [3.0, 2.0])
        checkpoint = tracker.offset
        train(tracker, [25, 28, 60], [1.9, 1.8, 1.0])  # and then it died
    if rewound_by == "the driver":
        with Tracker(tmp_path / "metrics.jsonl") as tracker:
            tracker.rewind(checkpoint)
    with tracker_of(run, tmp_path) as tracker:
        tracker.rewind(checkpoint)
        train(tracker, [30], [1.5])
    losses = [(10, 3.0), (20, 2.0), (30, 1.5)]
    assert shown_by_tensorboard(tmp_path)["train/loss"] == losses


@pytest.mark.filterwarnings("ignore")  # of MLflow, about its own dependencies
def test_mlflow_has_one_run_with_its_parameters_and_numbers(tmp_path: Path) -> None:
    mlflow = pytest.importorskip("mlflow")
    pytest.importorskip("sqlalchemy")
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    run = compose("distributed", f"tracking.mlflow={uri}", "name=tracked", "seed=11")
    with tracker_of(run, tmp_path / "one") as tracker:
        train(tracker, [10, 20], [3.0, 2.0])
        checkpoint = tracker.offset
        finish(tracker, 20, **{"test/accuracy": 0.5})
    client = mlflow.MlflowClient(uri)
    experiment = client.get_experiment_by_name("tracked")
    [found] = client.search_runs([experiment.experiment_id])
    assert found.info.status == "FINISHED"
    assert (found.data.params["seed"], found.data.params["distributed.epochs"]) == ("11", "5")
    assert len(found.data.params) > 70, "not all keys are there"

    run.distributed.epochs = 9
    with Tracker(tmp_path / "one" / "metrics.jsonl") as tracker:
        tracker.rewind(checkpoint)
    with tracker_of(run, tmp_path / "one") as tracker:
        train(tracker, [30], [1.0])
        wait_for(lambda: client.get_run(found.info.run_id).info.status == "RUNNING")
        finish(tracker, 30, **{"test/accuracy": 0.75})
    [found] = client.search_runs([experiment.experiment_id])
    assert found.info.status == "FINISHED"
    assert found.data.tags["distributed.epochs"] == "9"
    assert found.data.metrics["test/accuracy"] == 0.75
    points = client.get_metric_history(found.info.run_id, "train/loss")
    assert [(point.step, point.value) for point in points] == [(10, 3.0), (20, 2.0), (30, 1.0)]

    client.delete_experiment(experiment.experiment_id)
    said: list[str] = []
    check_trackers(run, tmp_path / "two", said.append).join()
    [line] = said
    assert "its experiment tracked is deleted" in line


@pytest.mark.filterwarnings("ignore")  # of MLflow, about its own dependencies
def test_an_experiment_that_another_job_has_just_made_is_used(tmp_path: Path) -> None:
    mlflow = pytest.importorskip("mlflow")
    pytest.importorskip("sqlalchemy")
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    client = mlflow.MlflowClient(uri)
    made = client.create_experiment("shared")
    asked: list[str] = []

    def not_at_first(name: str) -> Any:
        asked.append(name)
        return client.get_experiment_by_name(name) if len(asked) > 1 else None

    late = SimpleNamespace(
        get_experiment_by_name=not_at_first,
        create_experiment=client.create_experiment,
        create_run=client.create_run,
        get_run=client.get_run,
        log_batch=client.log_batch,
    )
    sink = MlFlow(compose("distributed", "name=shared"), uri, tmp_path / ".mlflow")
    sink._made = late
    sink.take([{"event": "train", "time": 1.0, "steps": 3, "train/loss": 0.5}])
    [found] = client.search_runs([made])
    assert found.data.metrics["train/loss"] == 0.5


def wait_for(holds: Callable[[], object]) -> None:
    deadline = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.02)


class _FakeMlFlow:
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

    def _connected(self, uri: str) -> _FakeMlFlow:
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


def test_every_step_and_the_final_numbers_reach_a_slow_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = _FakeMlFlow(monkeypatch)
    server.delay = 0.1
    run = compose("distributed", "tracking.mlflow=http://slow")
    said: list[str] = []
    with tracker_of(run, tmp_path, said.append) as tracker:
        log_steps(tracker, 1944)
        finish(tracker, 1944, **{"test/accuracy": 0.5})
    assert sorted(server.points("step/loss")) == [(s, 1.0 / s) for s in range(1, 1945)]
    assert server.points("test/accuracy") == [(1944, 0.5)]
    assert server.statuses == ["FINISHED"]
    assert said == []


def test_final_numbers_that_an_evaluation_has_shown_are_not_shown_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = _FakeMlFlow(monkeypatch)
    run = compose("distributed", "tracking.mlflow=http://here")
    with tracker_of(run, tmp_path, print) as tracker:
        values = {"test/accuracy": 0.5, "test/loss": 2.0}
        tracker.progress("evaluate", Progress(steps=7), Clock(), {"epoch": 1}, **values)
        finish(tracker, 7, **{**values, "validation/loss": 3.0})
    assert server.points("test/accuracy") == [(7, 0.5)]
    assert server.points("validation/loss") == [(7, 3.0)]


def test_what_a_server_does_not_take_is_said_and_the_next_process_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = _FakeMlFlow(monkeypatch)
    server.answers.clear()
    monkeypatch.setattr(heliotrope.runs.trackers, "_PATIENCE", 0.1)
    run = compose("distributed", "tracking.mlflow=http://gone")
    said: list[str] = []
    with tracker_of(run, tmp_path, said.append) as tracker:
        log_steps(tracker, 30)
        finish(tracker, 30, **{"test/accuracy": 0.5})
    [line] = said
    assert "MLflow" in line
    assert "31 events" in line
    assert str(tmp_path / "metrics.jsonl") in line
    assert server.statuses == [], "an incomplete record is marked as finished"

    server.answers.set()
    monkeypatch.setattr(heliotrope.runs.trackers, "_PATIENCE", 10.0)
    with tracker_of(run, tmp_path, said.append):
        pass
    assert set(server.points("step/loss")) == {(s, 1.0 / s) for s in range(1, 31)}
    assert (30, 0.5) in server.points("test/accuracy")
    assert server.statuses[-1] == "FINISHED"
    assert len(said) == 1


def test_what_matters_most_is_sent_first_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = _FakeMlFlow(monkeypatch)
    run = compose("distributed", "tracking.mlflow=http://slow")
    server.answers.clear()
    with tracker_of(run, tmp_path) as tracker:
        train(tracker, [0], [3.0])
        wait_for((tmp_path / ".mlflow").exists)  # a call is under way by now
        log_steps(tracker, 1500)
        finish(tracker, 1500, **{"test/accuracy": 0.5})
        server.answers.set()
    names = [{name for name, *_ in batch} for batch in server.batches]
    assert "test/accuracy" in names[1]
    assert len(server.points("step/loss")) == 1500


def test_a_server_that_fails_and_comes_back_misses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = _FakeMlFlow(monkeypatch)
    run = compose("distributed", "tracking.mlflow=http://here")
    said: list[str] = []
    with tracker_of(run, tmp_path, said.append) as tracker:
        server.error = OSError("away")
        train(tracker, [1], [3.0])
        time.sleep(0.2)
        server.error = None
        train(tracker, [2], [2.0])
        finish(tracker, 2, **{"test/accuracy": 0.5})
    assert server.points("train/loss") == [(1, 3.0), (2, 2.0)]
    assert (said, server.statuses[-1:]) == ([], ["FINISHED"])


def test_a_server_that_stays_away_is_named_without_its_password(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = _FakeMlFlow(monkeypatch)
    server.error = OSError(f"no answer from {SECRET}/api")
    run = compose("distributed", f"tracking.mlflow={SECRET}")
    said: list[str] = []
    handler = log_to(tmp_path / "run.log", "driver")
    with tracker_of(run, tmp_path, said.append) as tracker:
        train(tracker, [1, 2], [3.0, 2.0])
        finish(tracker, 2, **{"test/accuracy": 0.5})
    stop_logging(handler)
    [line] = said
    assert "no answer from http://me:***@server:5000/api" in line
    assert "3 events" in line
    log = (tmp_path / "run.log").read_text()
    assert "no answer from http://me:***@server:5000/api" in log
    assert "pa55" not in log
    assert server.statuses == []


@pytest.mark.parametrize(
    ("error", "status", "reason"),
    [
        (RunFailedError("diverged"), ["FAILED"], "diverged"),
        (ValueError("not foreseen"), ["FAILED"], "ValueError: not foreseen"),
        (KeyboardInterrupt(), ["KILLED"], "SIGINT"),
        (SystemExit(143), ["KILLED"], "SIGTERM"),
        (SystemExit(141), ["KILLED"], OUTPUT_CLOSED),
        (ResourceError("no room"), [], None),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else "",
)
def test_a_run_that_is_not_completed_says_why_and_is_not_left_running(
    error: BaseException,
    status: list[str],
    reason: str | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    server = _FakeMlFlow(monkeypatch)
    run = compose("distributed", "tracking.mlflow=http://here")

    def begin_and_fail() -> None:
        with run_directory(run, "distributed", tmp_path, "driver") as (home, display):
            followers = listeners(run, home.path, display.say, begun=True)
            with Tracker(home.metrics, followers) as tracker:
                tracker.progress("train", Progress(), Clock(), {"epoch": 1}, **{"train/loss": 1.0})
            raise error

    with pytest.raises(type(error)):
        begin_and_fail()
    assert [told for told in server.statuses if told != "RUNNING"] == status
    assert server.statuses[-1:] == status
    last = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[-1])
    assert last.get("reason") == reason
    if reason is not None:
        how = "failed" if status == ["FAILED"] else "interrupted"
        assert last["status"] == how
        assert f"{how}: {reason}" in (tmp_path / "run.log").read_text()


def test_a_tracker_that_will_not_take_the_run_says_so_at_its_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = _FakeMlFlow(monkeypatch)
    run = compose("distributed", "tracking.mlflow=http://here", "tracking.tensorboard=true")
    said: list[str] = []
    check_trackers(run, tmp_path, said.append).join()
    assert said == []
    server.stage = "deleted"
    check_trackers(run, tmp_path, said.append).join()
    [line] = said
    assert line.startswith("MLflow shows nothing of this run, which goes on without it: its exp")
    assert "mlflow experiments restore --experiment-id 1; or set another name" in line
    assert not (tmp_path / ".mlflow").exists()


def test_a_run_that_failed_before_its_first_event_is_not_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = _FakeMlFlow(monkeypatch)
    run = compose("distributed", "tracking.mlflow=http://here")
    tell_end(run, tmp_path, "failed", print)
    assert server.statuses == []


# --- passwords ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("http://me:pa55@server:5000/x", "http://me:***@server:5000/x"),
        ("http://me:p@a:55@server", "http://me:***@server"),
        ("postgresql+psycopg2://u:pa55@h/db", "postgresql+psycopg2://u:***@h/db"),
        ("postgresql://h/db?user=u&password=pa55&x=1", "postgresql://h/db?user=u&password=***&x=1"),
        ("sqlite:///mlflow.db", "sqlite:///mlflow.db"),
        ("http://server:5000", "http://server:5000"),
        ("http://server/a:b@c", "http://server/a:b@c"),
        ("http://server:5000/a@b", "http://server:5000/a@b"),
        ("http://server/a?at=x:y@z", "http://server/a?at=x:y@z"),
        ("http://u:pa/55@server/x", "http://u:***@server/x"),
        ("postgresql://u:pa/55@h/db", "postgresql://u:***@h/db"),
        ("postgresql://u:55/pa@h/db", "postgresql://u:***@h/db"),
        ("mysql+pymysql://h:3306/db", "mysql+pymysql://h:3306/db"),
        ("https://pa55@server/x.mlflow", "https://***@server/x.mlflow"),
        ("postgresql://me@h/db", "postgresql://me@h/db"),
        ("https://server/x?access_token=pa55&y=1", "https://server/x?access_token=***&y=1"),
        ("https://server/x?sv=1&sig=pa55", "https://server/x?sv=1&sig=***"),
        ("https://server/x?api_key=pa55", "https://server/x?api_key=***"),
        (
            "mssql+pyodbc:///?odbc_connect=DRIVER%3DX%3BPWD%3Dpa%2F55%3BUID%3Du",
            "mssql+pyodbc:///?odbc_connect=DRIVER%3DX%3BPWD%3D***%3BUID%3Du",
        ),
    ],
)
def test_a_password_in_an_address_is_masked(address: str, shown: str) -> None:
    assert masked(f"before {address} after") == f"before {shown} after"


def test_the_password_stands_in_no_file_and_reaches_the_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = _FakeMlFlow(monkeypatch)
    run = compose("distributed", f"tracking.mlflow={SECRET}")
    home = RunDirectory(tmp_path)
    home.claim(run, "distributed")
    home.begin(run)
    with tracker_of(run, tmp_path) as tracker:
        train(tracker, [1], [3.0])
    home.release()
    saved = yaml.safe_load(home.config.read_text())
    assert saved["tracking"]["mlflow"] == "http://me:***@server:5000"
    assert server.params["tracking.mlflow"] == "http://me:***@server:5000"
    assert set(server.asked) == {SECRET}
    for path in tmp_path.iterdir():
        assert "pa55" not in path.read_text()
    run.resume = True
    home.claim(run, "distributed")  # with the password again, it is the same run
    home.release()


@pytest.mark.parametrize(
    "copied", ["http://me:***@server:5000", "'postgresql://h/db?user=u&password=***'"]
)
def test_an_address_copied_from_a_run_is_refused(
    copied: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared, "find_spec", lambda name: name)
    with pytest.raises(ConfigError, match=r"tracking\.mlflow.*with the password"):
        compose("distributed", f"tracking.mlflow={copied}")


def test_a_sweep_shows_no_password(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(shared, "find_spec", lambda name: name)
    monkeypatch.chdir(tmp_path)

    def fail(*_arguments: object) -> None:
        raise ValueError(f"no answer from {SECRET}")

    job = Started(fail)
    typed = ("-m", "seed=1,2", f"tracking.mlflow={SECRET}", "hydra.sweep.dir=sweep")
    assert type_command(monkeypatch, "federated", *typed, job=job) == 1
    assert [run.tracking.mlflow for run in job.runs] == [SECRET, SECRET]
    shown = "".join(capsys.readouterr())
    assert "[1] seed=2 tracking.mlflow=" in shown
    assert shown.count(":***@server") == 4, shown
    assert "ValueError: no answer from http://me:***@server:5000" in shown
    assert "pa55" not in shown
    assert "pa55" not in (tmp_path / "sweep" / "multirun.yaml").read_text()


# --- packages -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "package"),
    [("tracking.tensorboard=true", "tensorboard"), ("tracking.mlflow=sqlite:////x.db", "mlflow")],
)
def test_a_missing_package_is_named_with_how_to_install_it(
    override: str, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared, "find_spec", lambda name: None)
    with pytest.raises(ConfigError) as caught:
        compose("distributed", override)
    assert override in str(caught.value)
    assert f"pip install heliotrope[{package}]" in str(caught.value)
