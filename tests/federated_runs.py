"""Small federated runs, their events, and what two of them must share at the end."""

from __future__ import annotations

from pathlib import Path

import pytest

from heliotrope.runs import checkpoint
from tests.support import (
    assert_same_tensors,
)

SMALL = (
    "model.hidden=[8]",
    "federated.rounds=3",
    "federated.clients_per_round=5",
    "federated.partition.clients=5",
    "federated.client_training=sequential",
    "federated.cpus_per_worker=1",
)


def assert_same_end(*directories: Path) -> None:
    left, right = (
        checkpoint.latest(directory / "checkpoints", pytest.fail) for directory in directories
    )
    assert left is not None
    assert right is not None
    assert_same_tensors(left.model, right.model)
