"""Sweeps: every combination of values is a run of its own."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from heliotrope.config import Run
from heliotrope.errors import WorkerError
from heliotrope.runs.clock import Clock
from heliotrope.shell import typed
from tests.support import Started, Type, choices, raising


def test_a_sweep_runs_every_combination_in_its_own_directory(
    type_: Type, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    job = Started()
    sweep = ("-m", "hydra.sweep.dir=sweep", "seed=1,2", "federated/partition=iid,dirichlet")
    assert type_("federated", *sweep, job=job) == 0
    assert [(run.seed, run.federated.partition.name) for run in job.runs] == [
        (1, "iid"),
        (1, "dirichlet"),
        (2, "iid"),
        (2, "dirichlet"),
    ]
    assert job.directories == [tmp_path / "sweep" / str(number) for number in range(4)]
    out, err = capsys.readouterr()
    assert err == ""
    assert "[2] seed=2 federated/partition=iid" in out
    assert f"compare {tmp_path}/sweep/*/" in out


def test_a_sweep_goes_on_after_a_failing_job_and_ends_in_its_code(
    type_: Type, capsys: pytest.CaptureFixture[str]
) -> None:
    def second_fails(run: Run, _directory: Path) -> None:
        if run.seed == 2:
            raise WorkerError("worker 1 died")

    job = Started(second_fails)
    assert type_("federated", "-m", "seed=1,2,3", job=job) == 1
    assert [run.seed for run in job.runs] == [1, 2, 3]
    out, err = capsys.readouterr()
    assert err == "error: worker 1 died\n"
    compared = out.splitlines()[-1].split("heliotrope compare ")[1].split()
    assert compared == [str(job.directories[0]), str(job.directories[2])]


def test_a_sweep_goes_on_after_an_unforeseen_error(
    type_: Type, capsys: pytest.CaptureFixture[str]
) -> None:
    def first_breaks(run: Run, _directory: Path) -> None:
        if run.seed == 1:
            raise ZeroDivisionError

    job = Started(first_breaks)
    assert type_("federated", "-m", "seed=1,2", job=job) == 1
    assert [run.seed for run in job.runs] == [1, 2]
    assert "ZeroDivisionError" in capsys.readouterr().err


def test_a_sweep_goes_on_after_a_value_out_of_range(
    type_: Type, capsys: pytest.CaptureFixture[str]
) -> None:
    job = Started()
    assert type_("federated", "-m", "optimizer.lr=-1,0.1", job=job) == 2
    assert [run.optimizer.lr for run in job.runs] == [0.1]
    assert "optimizer.lr=-1" in capsys.readouterr().err


def test_a_sweep_with_a_typo_starts_nothing(
    type_: Type, capsys: pytest.CaptureFixture[str]
) -> None:
    job = Started()
    assert type_("federated", "-m", "seed=1,2", "model=mlp,cn", job=job) == 2
    assert job.runs == []
    assert "model=cn is not one of" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        ("-m", "experiment=quickstart", "seed=1,2"),
        ("experiment=quickstart", "-m", "seed=1,2"),
        ("experiment=quickstart", "seed=1,2", "--multirun"),
    ],
)
def test_flags_stand_anywhere(arguments: tuple[str, ...], type_: Type) -> None:
    job = Started()
    assert type_("federated", *arguments, job=job) == 0
    assert [(run.name, run.seed) for run in job.runs] == [("quickstart", 1), ("quickstart", 2)]


@pytest.mark.parametrize(
    ("pattern", "wanted"),
    [
        ("glob(*)", choices("federated/partition")),
        ("glob([*i*,shards],exclude=dir*)", ["iid", "quantity", "shards"]),
    ],
)
def test_glob_sweeps_the_choices_and_nothing_else(
    pattern: str, wanted: list[str], type_: Type
) -> None:
    job = Started()
    assert type_("federated", "-m", f"federated/partition={pattern}", job=job) == 0
    assert [run.federated.partition.name for run in job.runs] == wanted


def test_a_value_in_quotes_arrives_as_it_is(type_: Type) -> None:
    for text in ("a=b", "a#b", "~/x", "café", "it's", "a(b", 'say "a"', "a b", "plain"):
        job = Started()
        [argument] = shlex.split(typed("data.dir", text))
        assert type_("federated", "data=mnist", argument, job=job) == 0
        assert job.runs[0].data.dir == text


def test_ctrl_c_stops_the_whole_sweep(type_: Type) -> None:
    job = raising(KeyboardInterrupt())
    assert type_("federated", "-m", "seed=1,2,3", job=job) == 130
    assert [run.seed for run in job.runs] == [1]


def test_one_directory_for_all_jobs_of_a_sweep_is_refused(
    type_: Type, capsys: pytest.CaptureFixture[str]
) -> None:
    job = Started()
    assert type_("federated", "-m", "seed=1,2", "hydra.run.dir=one", job=job) == 2
    assert job.runs == []
    assert "hydra.sweep.dir" in capsys.readouterr().err


def test_each_job_of_a_sweep_has_its_own_clock(type_: Type) -> None:
    seconds: list[float] = []
    job = Started(lambda _run, _directory: seconds.append(Clock().seconds))
    assert type_("federated", "-m", "seed=1,2", job=job) == 0
    first, second = seconds
    assert second < first, "the second job's time includes the first's, and the interpreter's"
