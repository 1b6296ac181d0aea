"""Jobs of a sweep are composed once, and told of before they run."""

from __future__ import annotations

from typing import Any

import pytest
from hydra._internal.config_loader_impl import ConfigLoaderImpl

from heliotrope.commands import composed_jobs
from heliotrope.commands.parallel_jobs import ParallelJobs
from heliotrope.config import Run
from tests.support import Started, Type


@pytest.fixture
def composed(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Return what is composed from now on: the overrides of each job."""
    found: list[Any] = []
    real = ConfigLoaderImpl.load_sweep_config

    def load(self: ConfigLoaderImpl, master: Any, overrides: list[str]) -> Any:
        found.append(tuple(overrides))
        return real(self, master, overrides)

    monkeypatch.setattr(ConfigLoaderImpl, "load_sweep_config", load)
    return found


@pytest.mark.parametrize(("most", "times"), [(100, 4), (3, 5), (0, 8)])
def test_a_job_is_composed_as_it_is_checked_and_no_more(
    most: int, times: int, composed: list[Any], type_: Type, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(composed_jobs, "_MOST", most)
    job = Started()
    assert type_("federated", "-m", "seed=1,2", "optimizer.lr=0.1,0.2", job=job) == 0
    assert len(composed) == times
    found = [(run.seed, run.optimizer.lr) for run in job.runs]
    assert found == [(1, 0.1), (1, 0.2), (2, 0.1), (2, 0.2)]
    assert [path.name for path in job.directories] == ["0", "1", "2", "3"]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("seed=range(20)",), (0, 20)),
        (("seed=3,2", "optimizer.lr=0.1,0.2", "model.hidden=[8,16]"), (3, 4)),
        (("seed=1,2", "folds=3"), (1, 6)),
        (("seed=1,2", "resume=true", "hydra.sweep.dir=sweep"), None),  # all may be completed
        (("seed=1,2", "sweep.parallel=1"), None),
        (("federated.rounds=0,1,2",), None),  # the first is refused
    ],
)
def test_processes_are_prepared_for_as_many_jobs_as_there_are(
    words: tuple[str, ...],
    expected: tuple[int, int] | None,
    type_: Type,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told: list[tuple[int, int]] = []

    def prepare(_self: ParallelJobs, run: Run, count: int) -> None:
        told.append((run.seed, count))

    monkeypatch.setattr(ParallelJobs, "run", lambda *_: None)
    monkeypatch.setattr(ParallelJobs, "prepare", prepare)
    type_("federated", "-m", "sweep.parallel=2", *words, job=Started())
    assert told == ([] if expected is None else [expected])
