"""Jobs of a sweep are composed once, and told of before they run."""

from __future__ import annotations

from typing import Any

import pytest
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from omegaconf import DictConfig

from heliotrope import config
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
        (("fold=0,1", "folds=3"), (7, 2)),
        (("seed=range(5)", "hydra.sweeper.max_batch_size=2"), (0, 5)),
        (("seed=1,2", "distributed.epochs=1"), None),  # of the other mode
        (("seed=1,2", "hydra.run.dir=here"), None),
        (("seed=1,2", "data=table", "data.path=none.csv", "data.target=y"), None),
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
    type_("federated", "-m", "sweep.parallel=2", "experiment=quickstart", *words, job=Started())
    assert told == ([] if expected is None else [expected])


def test_what_is_wrong_with_ray_is_told_as_such(
    type_: Type, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Not as if Hydra could not make a directory: both raise `OSError`."""
    starts: list[str] = []

    def fail(self: ParallelJobs, runs: Any) -> None:
        starts.append("once")
        raise NotADirectoryError(20, "Not a directory", "/some/file/ray")

    monkeypatch.setattr(ParallelJobs, "_open", fail)
    assert type_("federated", "-m", "sweep.parallel=2", "seed=1,2", job=Started()) == 1
    assert starts == ["once"]
    assert "hydra.sweep.dir" not in capsys.readouterr().err


def test_a_first_job_that_is_refused_for_any_reason_ends_no_sweep(
    type_: Type, monkeypatch: pytest.MonkeyPatch
) -> None:
    load, job = config.load, Started()

    def loading(cfg: DictConfig, *arguments: Any, **named: Any) -> Run:
        if cfg.seed == 1:
            raise RuntimeError("a loop of links")
        return load(cfg, *arguments, **named)

    monkeypatch.setattr(config, "load", loading)
    assert type_("federated", "-m", "seed=1,2", job=job) == 1
    assert [run.seed for run in job.runs] == [2]
