"""A resume goes on only with data that are prepared as they were."""

from __future__ import annotations

from pathlib import Path

import pytest

import distributed.job
import federated.job
from heliotrope.errors import ConfigError
from heliotrope.runs import checkpoint
from tests.support import compose

_JOBS = {"distributed": distributed.job.run_job, "federated": federated.job.run_job}
_LENGTH = {"distributed": "distributed.epochs", "federated": "federated.rounds"}


def _write(path: Path, yes: str, shift: float) -> None:
    rows = [f"{n % 7 + shift},{('no', yes)[n % 7 > 3]}" for n in range(60)]
    path.write_text("\n".join(["income,answer", *rows, ""]))


@pytest.mark.usefixtures("no_report")
@pytest.mark.parametrize("mode", ["distributed", "federated"])
@pytest.mark.parametrize(("yes", "shift"), [("aye", 0.0), ("yes", 2.0)])
def test_other_classes_or_scales_are_refused(
    mode: str, yes: str, shift: float, tmp_path: Path
) -> None:
    table, directory = tmp_path / "mine.csv", tmp_path / "run"
    chosen = [
        *("data=table", f"data.path={table}", "data.target=answer", "model=logistic"),
        *("federated/partition=iid", "federated.partition.clients=3", "seed=3"),
        *("federated.clients_per_round=3", "federated.holdout_fraction=0"),
        *("distributed.launcher=inline", "distributed.workers=1"),
    ]

    def train(length: int, *more: str) -> None:
        run = compose(mode, *chosen, f"{_LENGTH[mode]}={length}", *more)  # type: ignore[arg-type]
        _JOBS[mode](run, directory)

    _write(table, "yes", 0.0)
    train(1)
    train(2, "resume=true")
    _write(table, yes, shift)
    with pytest.raises(ConfigError, match=r"The data have changed .* were \[.* and are now \["):
        train(3, "resume=true")
    assert checkpoint.latest(directory / "checkpoints", print) is not None
