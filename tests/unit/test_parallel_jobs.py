"""Jobs of a sweep at a time: how many, what each has, and which are completed already."""

from __future__ import annotations

import signal
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from heliotrope.cluster.connection import Cluster
from heliotrope.commands.parallel_jobs import (
    ParallelJobs,
    PlannedJob,
    share_of,
)
from heliotrope.commands.sweeps import is_completed, place
from heliotrope.config import Mode, SweepConfig
from heliotrope.errors import ConfigError, ResourceError
from heliotrope.runs.directory import RunDirectory
from tests.support import Started, Type, compose


def _share(mode: Mode, cluster: Cluster, jobs: int, *overrides: str) -> tuple[int, int, float]:
    share = share_of([compose(mode, *overrides)] * jobs, mode, cluster)
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
    assert not is_completed(run, "federated", tmp_path)
    there.begin(run)
    assert not is_completed(run, "federated", tmp_path)
    there.write_result({"mode": "federated"})
    again: Any = replace(run, resume=True, sweep=SweepConfig(parallel="auto"))
    assert is_completed(again, "federated", tmp_path)
    assert not is_completed(again, "distributed", tmp_path)
    longer = replace(again, federated=replace(run.federated, rounds=run.federated.rounds + 1))
    assert not is_completed(longer, "federated", tmp_path)
    there.config.write_text("no: config")
    assert not is_completed(again, "federated", tmp_path)


def test_jobs_are_sorted_by_their_number() -> None:
    names = ["10", "2", "other", "1"]
    assert sorted(map(Path, names), key=place) == [Path(n) for n in ("other", "1", "2", "10")]


# --- the order in which jobs run ----------------------------------------------------------


class _FakeRay(ModuleType):
    """Stands in for Ray, of 4 CPUs: the job with number n ends when `end(n, code)` is called.

    With None for a code, its process dies. `begin` is called whenever a job has begun.
    """

    def __init__(self) -> None:
        super().__init__("fake_ray")
        self.begin: Callable[[], None] = lambda: None
        self.started: list[int] = []
        self.actors = 0
        self.killed = 0
        self._answers: dict[int, Future[tuple[int, str]]] = {}

    def is_initialized(self) -> bool:
        return True

    def nodes(self) -> list[dict[str, Any]]:
        return [{"Alive": True, "Resources": {"CPU": 4}}]

    def get_runtime_context(self) -> Any:
        return SimpleNamespace(get_node_id=lambda: "here")

    def remote(self, **_options: Any) -> Any:
        return lambda _kind: SimpleNamespace(
            options=lambda **_: SimpleNamespace(remote=self._actor)
        )

    def kill(self, _actor: object) -> None:
        self.killed += 1

    def end(self, number: int, code: int | None) -> None:
        answer = self._answers.pop(number)
        if code is None:
            answer.set_exception(RuntimeError("The actor died."))
        else:
            answer.set_result((code, "error: too high\n" if code else ""))

    def under_way(self) -> list[int]:
        return sorted(self._answers)

    def _actor(self, *_arguments: Any) -> Any:
        self.actors += 1
        up: Future[tuple[str, int]] = Future()
        up.set_result(("here", 1000 + self.actors))
        process = SimpleNamespace(remote=lambda: SimpleNamespace(future=lambda: up))
        return _Actor(process=process, do=SimpleNamespace(remote=self._do))

    def _do(self, _run: object, directory: Path) -> Any:
        number, answer = int(directory.name), Future[tuple[int, str]]()
        self.started.append(number)
        self._answers[number] = answer
        self.begin()
        return SimpleNamespace(future=lambda: answer)


class _Actor(SimpleNamespace):
    __hash__ = object.__hash__


def _run_six(ray: _FakeRay, prepared: int = 0) -> list[tuple[int, int]]:
    run = compose("federated", "sweep.parallel=2")
    jobs = [PlannedJob(str(n), run, Path(str(n))) for n in range(6)]
    ended: list[tuple[int, int]] = []
    with ParallelJobs(lambda: ray, "federated") as parallel:
        if prepared:
            parallel.prepare(run, prepared)
        parallel.run(jobs, lambda path, code: ended.append((int(path.name), code)))
    return ended


def test_a_process_goes_from_job_to_job_and_one_that_died_is_replaced(
    capsys: pytest.CaptureFixture[str],
) -> None:
    ray = _FakeRay()
    outcomes: dict[int, int | None] = {0: 0, 1: 1, 2: None, 3: 0, 4: 2, 5: 0}

    def begin() -> None:
        under_way = ray.under_way()
        assert len(under_way) <= 2
        if len(under_way) == 2 or ray.started[-1] == 5:
            for number in under_way:
                ray.end(number, outcomes[number])

    ray.begin = begin
    ended = _run_six(ray)
    assert ray.started == list(range(6))
    assert sorted(ended) == [(0, 0), (1, 1), (2, 1), (3, 0), (4, 2), (5, 0)]
    assert (ray.actors, ray.killed) == (3, 2)
    out, err = capsys.readouterr()
    assert "[1] error: too high" in err
    assert "[2] error: its process died: The actor died." in err
    assert out.count("completed after") == 3
    assert out.count("failed after") == 3


@pytest.mark.parametrize(("prepared", "actors"), [(6, 2), (2, 2), (1, 3)])
def test_processes_that_were_prepared_take_the_jobs_unless_their_share_is_another(
    prepared: int, actors: int
) -> None:
    ray = _FakeRay()
    ray.begin = lambda: ray.end(ray.started[-1], 0)
    assert sorted(_run_six(ray, prepared)) == [(number, 0) for number in range(6)]
    assert ray.actors == ray.killed == actors


def test_a_signal_ends_the_jobs_under_way_and_begins_no_other(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ray = _FakeRay()
    signalled: list[tuple[int, int]] = []

    def kill(process: int, number: int) -> None:
        signalled.append((process, number))
        ray.end(ray.under_way()[0], 143)

    def begin() -> None:
        if len(ray.under_way()) == 2:
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr("heliotrope.commands.parallel_jobs.os.kill", kill)
    ray.begin = begin
    with pytest.raises(SystemExit) as stopped:
        _run_six(ray)
    assert stopped.value.code == 143
    assert ray.started == [0, 1]
    assert signalled == [(1001, signal.SIGTERM), (1002, signal.SIGTERM)]
    assert capsys.readouterr().out.count("stopped after") == 2
