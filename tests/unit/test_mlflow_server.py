"""Servers of MLflow's that are slow, fail or stay away."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

import heliotrope.runs.trackers
from heliotrope.errors import ResourceError, RunFailedError
from heliotrope.runs.clock import Clock
from heliotrope.runs.display import OUTPUT_CLOSED
from heliotrope.runs.events import Progress, Tracker, log_to, stop_logging
from heliotrope.runs.lifecycle import run_directory
from heliotrope.runs.trackers import check_trackers, listeners, tell_end
from tests.support import compose
from tests.tracked_runs import SECRET, FakeMlFlow, finish, log_steps, tracker_of, train, wait_for


def test_every_step_and_the_final_numbers_reach_a_slow_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = FakeMlFlow(monkeypatch)
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
    server = FakeMlFlow(monkeypatch)
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
    server = FakeMlFlow(monkeypatch)
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
    server = FakeMlFlow(monkeypatch)
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
    server = FakeMlFlow(monkeypatch)
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
    server = FakeMlFlow(monkeypatch)
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
    server = FakeMlFlow(monkeypatch)
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
    server = FakeMlFlow(monkeypatch)
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
    server = FakeMlFlow(monkeypatch)
    run = compose("distributed", "tracking.mlflow=http://here")
    tell_end(run, tmp_path, "failed", print)
    assert server.statuses == []
