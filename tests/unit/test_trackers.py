"""TensorBoard and MLflow show the numbers of metrics.jsonl, all of them, or it is said."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from heliotrope.config.checks import shared
from heliotrope.errors import ConfigError
from heliotrope.runs.events import Tracker
from heliotrope.runs.sinks import MlFlow
from heliotrope.runs.trackers import check_trackers
from tests.support import compose
from tests.tracked_runs import finish, tracker_of, train, wait_for


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
