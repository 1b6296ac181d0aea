"""Parity 3: one full-batch step on every client, averaged, is one data-parallel step."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import distributed.job
import federated.job
from heliotrope import checkpoint
from tests.support import choices, compose

_EVERY_EXAMPLE = 10_000  # a batch size above the number of training examples


@pytest.mark.usefixtures("no_report")
@pytest.mark.parametrize("partition", sorted(set(choices("federated/partition")) - {"natural"}))
def test_a_federated_full_batch_step_is_a_distributed_step(partition: str, tmp_path: Path) -> None:
    shared = ("optimizer.lr=0.5", "model.hidden=[16]", "seed=4")
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

    one, other = (
        checkpoint.latest(tmp_path / mode / "checkpoints", pytest.fail)
        for mode in ("distributed", "federated")
    )
    assert one is not None
    assert other is not None
    for name, value in one.model.items():
        torch.testing.assert_close(other.model[name], value, rtol=1e-4, atol=1e-6, msg=name)
