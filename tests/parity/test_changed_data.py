"""A resume goes on only with data that are prepared as they were."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
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


@pytest.mark.usefixtures("no_report")
@pytest.mark.parametrize(("mode", "memory"), [("distributed", 0), ("federated", 99)])
def test_other_rows_in_a_parquet_file_are_refused_also_where_nothing_was_fitted(
    mode: str, memory: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    table, directory = tmp_path / "mine.parquet", tmp_path / "run"
    chosen = [
        *("data=table", f"data.path={table}", "data.target=answer", "model=logistic"),
        *("federated/partition=iid", "federated.partition.clients=3", "data.fit=none"),
        *("federated.clients_per_round=3", "federated.holdout_fraction=0"),
        *("distributed.launcher=inline", "distributed.workers=1", f"data.memory_mib={memory}"),
    ]

    def train(shift: float, length: int) -> None:
        rows = {"income": [n % 7 + shift for n in range(60)], "answer": ["no", "yes"] * 30}
        pyarrow.parquet.write_table(pa.table(rows), table)
        run = compose(mode, *chosen, f"{_LENGTH[mode]}={length}", "resume=true")  # type: ignore[arg-type]
        _JOBS[mode](run, directory)

    train(0.0, 1)
    train(0.0, 2)  # written anew, with the same content
    with pytest.raises(ConfigError, match=r"The data have changed .*: files were written anew"):
        train(0.5, 3)


_CENTRAL = "federated/privacy=central federated.privacy.noise_multiplier=1"


@pytest.mark.usefixtures("no_report")
@pytest.mark.parametrize(
    ("mode", "privacy"),
    [
        ("distributed", "distributed/privacy=dpsgd distributed.privacy.noise_multiplier=1"),
        ("federated", f"{_CENTRAL} federated.privacy.delta=1e-3"),
    ],
)
def test_private_runs_on_data_that_differ_have_noise_of_their_own(
    mode: str, privacy: str, tmp_path: Path
) -> None:
    table = tmp_path / "mine.csv"

    def charged(name: str, changed: str) -> list[str]:
        """Return the names of a run's releases, from which their noise follows."""
        rows = [f"{n % 7},{('no', 'yes')[n % 7 > 3]}" for n in range(60)]
        table.write_text("\n".join(["income,answer", changed, *rows[1:], ""]))
        chosen = [
            *("data=table", f"data.path={table}", "data.target=answer", "model=logistic"),
            *("federated/partition=iid", "federated.partition.clients=3", "data.fit=none"),
            *("federated.clients_per_round=3", f"{_LENGTH[mode]}=1", *privacy.split()),
            *("distributed.launcher=inline", "distributed.workers=1"),
        ]
        _JOBS[mode](compose(mode, *chosen), tmp_path / name)  # type: ignore[arg-type]
        lines = (tmp_path / name / "privacy.jsonl").read_text().splitlines()
        return [json.loads(line)["release"] for line in lines if "planned" not in line]

    first, again, other = (charged(*of) for of in (("a", "0,no"), ("b", "0,no"), ("c", "0,yes")))
    assert first == again
    assert first != other
