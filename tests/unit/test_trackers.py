"""TensorBoard and MLflow show the numbers of metrics.jsonl."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

import heliotrope.trackers
from heliotrope.config import Run
from heliotrope.errors import ConfigError
from heliotrope.trackers import listeners
from heliotrope.tracking import Clock, Progress, Tracker
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

        def close(self) -> None: ...

    monkeypatch.setattr(heliotrope.trackers, "find_spec", lambda name: name)
    monkeypatch.setattr(heliotrope.trackers, "_TensorBoard", Broken)
    run = compose("distributed", "tracking.tensorboard=true")
    with caplog.at_level(logging.ERROR):
        _tell(run, tmp_path, [10, 20], [2.0, 1.0])
    assert len(calls) == 1
    assert "the server is gone" in caplog.text
    assert (tmp_path / "metrics.jsonl").read_text().count("train/loss") == 2
