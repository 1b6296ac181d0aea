"""Runs on tables that stay in files: the digits of a table in memory, in both modes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from distributed.job import run_job
from federated.job import run_job as run_federated
from tests.distributed_runs import INLINE, RAY, assert_close, cut
from tests.support import assert_same_tensors, compose, events_of, weights_of

pytestmark = pytest.mark.usefixtures("no_report")


@pytest.fixture
def table(tmp_path: Path, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = tmp_path / "rows"
    folder.mkdir()
    for number, count in enumerate(rng.integers(60, 140, 3).tolist()):
        x = rng.normal(size=count)
        rows = {
            "x": pa.array(x, mask=rng.random(count) < 0.1),
            "kind": np.array(["a", "b", "c"])[rng.integers(0, 3, count)],
            "site": np.array(["n", "s", "w"])[rng.integers(0, 3, count)],
            "sick": (x + rng.normal(size=count) > 0).astype(np.int64),
        }
        pyarrow.parquet.write_table(pa.table(rows), folder / f"{number}.parquet")
    return folder


_KEYS = ("data=table", "data.target=sick", "model=mlp", "optimizer=sgd", "optimizer.lr=0.1")
_TRAINING = (
    *("data.client=site", "distributed.batch_size=16", "distributed.epochs=2"),
    *("distributed.cpus_per_worker=1", "distributed.checkpoint_every_steps=5"),
    "distributed.keep_last=99",
)


def _train(table: Path, directory: Path, memory: int, *overrides: str) -> Path:
    keys = (*_KEYS, *_TRAINING, f"data.path={table}", f"data.memory_mib={memory}", *overrides)
    run_job(compose("distributed", *keys), directory)
    return directory


def test_a_run_on_files_has_the_digits_of_one_in_memory_also_when_it_was_cut(
    table: Path, tmp_path: Path
) -> None:
    loaded = _train(table, tmp_path / "loaded", 99, *INLINE)
    stored = _train(table, tmp_path / "stored", 0, *INLINE)
    assert_same_tensors(weights_of(loaded), weights_of(stored))
    resumed = cut(stored, tmp_path / "cut", after=2)  # in mid-epoch
    _train(table, resumed, 0, *INLINE, "resume=true")
    assert_same_tensors(weights_of(stored), weights_of(resumed))
    assert events_of(stored) == events_of(resumed)


@pytest.mark.slow
@pytest.mark.usefixtures("ray_session")
def test_two_workers_that_read_files_train_as_one(table: Path, tmp_path: Path) -> None:
    one = _train(table, tmp_path / "one", 99, *INLINE)
    two = _train(table, tmp_path / "two", 0, *RAY)
    assert_close(one, two)


@pytest.mark.parametrize("training", ["sequential", "batched"])
def test_clients_by_key_have_the_digits_of_a_table_in_memory(
    training: str, table: Path, tmp_path: Path
) -> None:
    keys = (
        *(*_KEYS, f"data.path={table}", "data.client=site", "federated/partition=natural"),
        *("federated.clients_per_round=2", "federated.rounds=2", "federated.holdout_fraction=0"),
        f"federated.client_training={training}",
    )
    for name, memory in (("loaded", 99), ("stored", 0)):
        run_federated(compose("federated", *keys, f"data.memory_mib={memory}"), tmp_path / name)
    assert_same_tensors(weights_of(tmp_path / "loaded"), weights_of(tmp_path / "stored"))
