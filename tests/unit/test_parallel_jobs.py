"""Jobs of a sweep at a time: how many, what each has, and which are completed already."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from heliotrope.cluster.connection import Cluster
from heliotrope.commands.parallel_jobs import PlannedJob, share_of
from heliotrope.commands.sweeps import is_completed, place
from heliotrope.config import Mode, SweepConfig
from heliotrope.errors import ConfigError, ResourceError
from heliotrope.runs.directory import RunDirectory
from tests.support import Started, Type, compose


def _share(mode: Mode, cluster: Cluster, jobs: int, *overrides: str) -> tuple[int, int, float]:
    planned = [PlannedJob(n, compose(mode, *overrides), Path(str(n))) for n in range(jobs)]
    share = share_of(planned, mode, cluster)
    return share.jobs, share.threads, share.gpus


def _machine(cpus: int, gpus: int = 0, *, can_grow: bool = False) -> Cluster:
    return Cluster(node_cpus=(cpus,), node_gpus=(gpus,), can_grow=can_grow)


@pytest.mark.parametrize(
    ("overrides", "jobs", "expected"),
    [
        (("sweep.parallel=auto",), 20, (8, 1, 0)),
        (("sweep.parallel=auto",), 3, (3, 2, 0)),
        (("sweep.parallel=4",), 20, (4, 2, 0)),
        (("sweep.parallel=auto", "federated.cpus_per_worker=4"), 20, (2, 4, 0)),
        (("sweep.parallel=auto", "federated.pool=ray", "federated.workers=4"), 20, (2, 4, 0)),
        (("sweep.parallel=auto", "federated.cpus_per_worker=9"), 20, (1, 9, 0)),
    ],
)
def test_the_cpus_are_divided_among_the_jobs(
    overrides: tuple[str, ...], jobs: int, expected: tuple[int, int, float]
) -> None:
    assert _share("federated", _machine(8), jobs, *overrides) == expected


def test_workers_of_a_data_parallel_job_count() -> None:
    launched = ("distributed.workers=3", "sweep.parallel=auto")
    assert _share("distributed", _machine(8), 20, *launched)[0] == 2
    inline = ("distributed.launcher=inline", "distributed.workers=1", "sweep.parallel=auto")
    assert _share("distributed", _machine(8), 20, *inline)[0] == 8


def test_gpus_are_divided_too_unless_all_jobs_are_on_cpus() -> None:
    assert _share("federated", _machine(8, 2), 20, "sweep.parallel=4")[2] == 0.5
    assert _share("federated", _machine(8, 2), 20, "sweep.parallel=4", "device=cpu")[2] == 0


def test_more_jobs_than_ever_fit_are_refused_on_this_machine_alone() -> None:
    wanted = ("sweep.parallel=4", "federated.cpus_per_worker=3")
    with pytest.raises(ResourceError, match=r"sweep\.parallel=4 .* at most 2"):
        _share("federated", _machine(8), 20, *wanted)
    assert _share("federated", _machine(8, can_grow=True), 20, *wanted)[0] == 4


@pytest.mark.parametrize("given", ["0", "-1", "1.5", "true", "many", "null"])
def test_what_is_no_number_of_jobs_is_refused(given: str) -> None:
    with pytest.raises(ConfigError, match=r"sweep\.parallel=.* auto"):
        compose("federated", f"sweep.parallel={given}")


@pytest.mark.parametrize("override", ["+optimizer.lrr=1,2", "optimizer.lrr=1,2", "seed=1,x"])
def test_a_sweep_over_what_there_is_not_starts_no_job(
    override: str, type_: Type, capsys: pytest.CaptureFixture[str]
) -> None:
    job = Started()
    assert type_("federated", "-m", override, "sweep.parallel=2", job=job) == 2
    assert job.runs == []
    assert "error: " in capsys.readouterr().err


def test_only_a_run_with_a_result_and_the_same_keys_is_completed(tmp_path: Path) -> None:
    run = compose("federated", "privacy.budget=null")
    there = RunDirectory(tmp_path)
    assert not is_completed(run, tmp_path)
    there.begin(run)
    assert not is_completed(run, tmp_path)
    there.write_result({})
    again: Any = replace(run, resume=True, sweep=SweepConfig(parallel="auto"))
    assert is_completed(again, tmp_path)
    longer = replace(again, federated=replace(run.federated, rounds=run.federated.rounds + 1))
    assert not is_completed(longer, tmp_path)
    there.config.write_text("no: config")
    assert not is_completed(again, tmp_path)


def test_jobs_are_sorted_by_their_number() -> None:
    names = ["10", "2", "other", "1"]
    assert sorted(map(Path, names), key=place) == [Path(n) for n in ("other", "1", "2", "10")]
