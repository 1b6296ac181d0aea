"""A plug-in that calls sys.exit where it trains: named with its line, and the rest is not lost."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import ROOT, environment

# Exits in a forward pass of training, of the smallest client alone, or of any after some steps.
_MODEL = """
import sys
from torch import nn
from heliotrope import plugin

@plugin.model
class Leaving(nn.Module):
    def __init__(self, task, *, size: int = 0, after: int = 0):
        super().__init__()
        self.layer = nn.Linear(64, task.num_outputs)
        self.size, self.after, self.steps = size, after, 0

    def forward(self, image):
        if self.training and image.requires_grad is False:
            self.steps += len(image) > 1
            if len(image) == self.size or self.after and self.steps > self.after:
                sys.exit(0)
        return self.layer(image.flatten(1))
"""


def run(mode: str, directory: Path, *words: str) -> subprocess.CompletedProcess[str]:
    (directory / "mine.py").write_text(_MODEL)
    return subprocess.run(
        [sys.executable, "-m", mode, "plugins=[mine.py]", "model=Leaving", *words],
        cwd=directory, env=environment() | {"PYTHONPATH": str(ROOT)}, capture_output=True,
        text=True, timeout=150, check=False,
    )  # fmt: skip


@pytest.mark.parametrize("pool", ["inprocess", pytest.param("ray", marks=pytest.mark.slow)])
def test_a_client_that_ends_the_process_is_left_out_by_name(tmp_path: Path, pool: str) -> None:
    words = (
        "experiment=quickstart",
        "federated/partition=iid",
        "federated.partition.clients=5",
        "federated.clients_per_round=5",
        "federated.rounds=2",
        "federated.batch_size=null",
        "federated.client_training=sequential",
        "federated.quorum=0.5",
        f"federated.pool={pool}",
        "federated.workers=1",
        "hydra.run.dir=run",
    )
    done = run("federated", tmp_path, *words, "model.size=233")  # the smallest of the five
    assert done.returncode == 0, done.stderr
    events = [
        json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()
    ]
    failures = [event for event in events if event["event"] == "failure"]
    assert {event["round"] for event in failures} == {1, 2}
    for event in failures:
        assert "ends the process" in event["reason"]
        assert "mine.py, line 17" in event["reason"]
    assert len(failures) < 10, "the others' work is lost"
    assert json.loads((tmp_path / "run/result.json").read_text())["status"] == "completed"


def test_a_rank_on_ray_that_ends_its_process_ends_the_run_with_its_line(tmp_path: Path) -> None:
    words = (
        "experiment=quickstart",
        "distributed.launcher=ray",
        "distributed.workers=1",
        "distributed.epochs=3",
        "distributed.checkpoint_every_steps=1",
        "distributed.max_failures=0",
        "hydra.run.dir=run",
    )
    done = run("distributed", tmp_path, *words, "model.after=30")
    assert done.returncode == 1
    assert "SystemExit: 0 in " in done.stderr
    assert "mine.py, line 17" in done.stderr
    assert "Traceback" not in done.stderr
    assert any((tmp_path / "run/checkpoints").glob("[0-9]*")), "what was trained before is kept"
