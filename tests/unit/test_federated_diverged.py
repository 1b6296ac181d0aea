"""A federated run that diverges names the learning rate that is at fault."""

from __future__ import annotations

from pathlib import Path

import pytest

from federated.job import run_job
from heliotrope.errors import RunFailedError
from tests.support import compose


@pytest.mark.parametrize(
    ("overrides", "named", "others"),
    [
        (
            ("federated/strategy=fedadam", "federated.strategy.eta=1e38"),
            "federated.strategy.eta=1e+38",
            "optimizer.lr",
        ),
        (
            ("federated/strategy=fedadagrad", "federated.strategy.eta=1e30"),
            "federated.strategy.eta=1e+30",
            "optimizer.lr",
        ),
        (
            ("federated/strategy=fedavgm", "federated.strategy.server_learning_rate=1e37"),
            "federated.strategy.server_learning_rate=1e+37",
            "optimizer.lr",
        ),
        (("optimizer.lr=1e35",), "optimizer.lr=1e+35", "federated.strategy"),
        (
            ("federated/strategy=fedadam", "optimizer.lr=1e35"),
            "optimizer.lr=1e+35",
            "have led to weights",
        ),
    ],
)
@pytest.mark.usefixtures("no_report")
def test_the_rate_at_fault_is_named(
    overrides: tuple[str, ...], named: str, others: str, tmp_path: Path
) -> None:
    small = ("experiment=quickstart", "federated.rounds=4", "federated.local_epochs=1")
    run = compose("federated", *small, "federated.client_training=sequential", *overrides)
    with pytest.raises(RunFailedError) as caught:
        run_job(run, tmp_path / "run")
    assert named in str(caught.value)
    assert others not in str(caught.value)
