"""Parity 3: one full-batch step on every client, averaged, is one data-parallel step."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import distributed.job
import federated.job
from heliotrope import plugin_loading
from tests.support import choices, compose, saved_by

_EVERY_EXAMPLE = 10_000  # a batch size above the number of training examples


@pytest.mark.usefixtures("no_report")
@pytest.mark.parametrize("partition", sorted(set(choices("federated/partition")) - {"natural"}))
def test_a_federated_full_batch_step_is_a_distributed_step(partition: str, tmp_path: Path) -> None:
    _expect_equal(tmp_path, partition, "optimizer.lr=0.5", "model.hidden=[16]", "seed=4")


_PLUG_IN = """
import torch
from torch import nn
from heliotrope import plugin
from heliotrope.tasks import Regression
from torch.utils.data import TensorDataset

@plugin.data
def own_points(*, count: int = 200):
    points = torch.randn(count, 3)
    return TensorDataset(points, points.sum(dim=1) + 0.1 * torch.randn(count))

@plugin.task
class own_task(Regression):
    def weights(self, batch):
        return 1 + (batch["target"] > 0).long()

    def losses(self, outputs, batch):
        return super().losses(outputs, batch) * self.weights(batch)

@plugin.model
def own_model(task, *, width: int = 5):
    return nn.Sequential(nn.Linear(3, width), nn.Tanh(), nn.Linear(width, 1))
"""


@pytest.mark.usefixtures("no_report")
def test_so_it_is_with_data_task_and_model_of_a_plug_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    file = tmp_path / "mine.py"
    file.write_text(_PLUG_IN)
    plugin_loading.load([str(file)])
    chosen = ("data=own_points", "task=own_task", "model=own_model")
    _expect_equal(tmp_path, "dirichlet", f"plugins=[{file}]", *chosen, "seed=4")


def _expect_equal(tmp_path: Path, partition: str, *shared: str) -> None:
    """Train in both modes, one step an epoch and a round, and compare the weights."""
    data_parallel = compose(
        "distributed",
        *shared,
        "distributed.launcher=inline",
        "distributed.workers=1",
        "distributed.epochs=3",
        f"distributed.batch_size={_EVERY_EXAMPLE}",
    )
    clients = compose(
        "federated",
        *shared,
        f"federated/partition={partition}",
        "federated.partition.clients=7",
        "federated.clients_per_round=7",
        "federated.rounds=3",
        "federated.batch_size=null",
    )
    distributed.job.run_job(data_parallel, tmp_path / "distributed")
    federated.job.run_job(clients, tmp_path / "federated")

    one, other = (saved_by(tmp_path / mode) for mode in ("distributed", "federated"))
    for name, value in one.model.items():
        torch.testing.assert_close(other.model[name], value, rtol=1e-4, atol=1e-6, msg=name)
