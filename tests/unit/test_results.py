"""What a finished run leaves and says is of its own task's metrics."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from heliotrope.metrics import Loss, MetricSet, PredictionHistogram, RegressionErrors
from heliotrope.runs.clock import Clock
from heliotrope.runs.directory import RunDirectory
from heliotrope.runs.display import Display
from heliotrope.runs.events import Progress, Tracker
from heliotrope.runs.outcome import Outcome
from heliotrope.runs.results import write_outcome
from tests.support import compose


def test_a_regression_leaves_its_own_numbers_and_panels(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    losses = Loss(lambda outputs, batch: (outputs - batch["target"]).square())
    histogram = PredictionHistogram(0.0, 4.0, bins=4)
    metrics = MetricSet((losses, RegressionErrors(), histogram), ("rmse", "r2"))
    target = torch.tensor([0.5, 1.5, 2.5, 3.5])
    final = metrics.measure(target + torch.tensor([1.0, -1.0, 1.0, -1.0]), {"target": target})
    run, run_dir = compose("federated"), RunDirectory(tmp_path)
    run_dir.begin(run)
    outcome = Outcome({}, {"rounds": 3}, Progress(1, 2, 3, 4), Clock(), 1.0, 10, 2**20, None)
    with Tracker(run_dir.metrics) as tracker, Display("t", "round", 3) as display:
        write_outcome(run, "federated", run_dir, tracker, {"test": final}, outcome, display)
    assert "test RMSE 1.0000" in capsys.readouterr().out
    result = json.loads((tmp_path / "result.json").read_text())
    assert list(result["metrics"]) == ["test/rmse", "test/r2", "test/loss", "test/mae"]
    assert result["directions"] == {"rmse": "min", "r2": "max", "loss": "min", "mae": "min"}
    page = (tmp_path / "report.html").read_text()
    assert "Predicted against true" in page
    assert "onfusion" not in page
    assert "accuracy" not in page.partition("<main>")[2].partition("config.yaml")[0]
