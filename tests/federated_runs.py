"""Small federated runs, and what two of them must share at the end."""

from __future__ import annotations

from pathlib import Path

from tests.support import assert_same_tensors, weights_of

SMALL = (
    "model.hidden=[8]",
    "federated.rounds=3",
    "federated.clients_per_round=5",
    "federated.partition.clients=5",
    "federated.client_training=sequential",
    "federated.cpus_per_worker=1",
)


def assert_same_end(*directories: Path) -> None:
    """Fail unless two runs ended with the same weights, bit for bit."""
    left, right = map(weights_of, directories)
    assert_same_tensors(left, right)
