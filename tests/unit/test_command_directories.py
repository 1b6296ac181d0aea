"""Which directory a command means: names below runs/, runs and sweeps that are resumed."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from heliotrope.config import Mode, Run
from tests.support import MODES, Started, type_command

Type = Callable[..., int]


@pytest.fixture
def type_(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Type:
    """Type a command in an empty folder: `type_(mode, *arguments, job=job) -> exit code`."""
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.chdir(home)

    def typed(mode: Mode, *arguments: str, job: Started) -> int:
        return type_command(monkeypatch, mode, *arguments, job=job)

    return typed


def _begun(_run: Run, directory: Path) -> None:
    (directory / "config.yaml").touch()


def _job() -> Started:
    return Started(_begun)


@pytest.mark.parametrize("name", ["../../x", "/x", "a/../../../x", "..", "..\\\\..\\\\x"])
@pytest.mark.parametrize("more", [(), ("-m", "seed=1,2"), ("hydra.run.dir=chosen",)])
def test_a_name_that_leads_out_of_runs_is_refused(
    name: str,
    more: tuple[str, ...],
    type_: Type,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    job = _job()
    assert type_("federated", f"name={name}", *more, job=job) == 2
    assert job.runs == []
    error = capsys.readouterr().err
    assert error.startswith("error: name=")
    assert "leads out of runs/" in error
    assert [path for path in tmp_path.rglob("*") if path.name != "home"] == []


@pytest.mark.parametrize(
    "typed", ["name=", "name=''", "name=.", "name=' '", "hydra.run.dir=", "hydra.run.dir=''"]
)
def test_an_empty_name_or_directory_is_refused(
    typed: str, type_: Type, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    job = _job()
    assert type_("federated", typed, job=job) == 2
    assert job.runs == []
    error = capsys.readouterr().err
    assert error.startswith(f"error: {typed.partition('=')[0]}=")
    assert "Set one" in error or "Choose a name" in error
    assert [path for path in tmp_path.rglob("*") if path.name != "home"] == []


def test_a_name_may_have_folders(type_: Type) -> None:
    job = _job()
    assert type_("federated", "name=mine/first", job=job) == 0
    assert job.directories[0].parent == Path.cwd() / "runs/mine/first/federated"


@pytest.mark.parametrize("mode", MODES)
def test_resume_without_a_directory_names_the_newest_and_the_command(
    mode: Mode, type_: Type, capsys: pytest.CaptureFixture[str]
) -> None:
    job = _job()
    for _ in range(3):
        assert type_(mode, "experiment=quickstart", job=job) == 0
    made = list(job.directories)
    for age, path in enumerate([made[1], made[0], made[2]]):  # the second is the newest
        os.utime(path / "config.yaml", (1e9 - age, 1e9 - age))

    assert type_(mode, "experiment=quickstart", "resume=true", "seed=3", job=job) == 2

    assert len(job.runs) == 3
    command = f"python -m {mode} experiment=quickstart resume=true seed=3 hydra.run.dir={made[1]}"
    assert capsys.readouterr().err.rstrip().endswith(command)
    assert sorted(made[0].parent.iterdir()) == sorted(made), "the new directory is gone"


def test_resume_where_there_is_no_run_says_so(
    type_: Type, capsys: pytest.CaptureFixture[str]
) -> None:
    assert type_("federated", "experiment=quickstart", "resume=true", job=_job()) == 2
    error = capsys.readouterr().err
    assert "there is none in" in error
    assert "runs/quickstart/federated" in error


def test_resume_with_a_directory_that_is_empty_is_the_jobs_to_begin(type_: Type) -> None:
    job = _job()
    assert type_("federated", "resume=true", "hydra.run.dir=requeued", job=job) == 0
    assert job.directories == [Path.cwd() / "requeued"]


def test_resume_of_a_sweep_without_a_directory_names_the_newest_once(
    type_: Type, capsys: pytest.CaptureFixture[str]
) -> None:
    job = _job()
    assert type_("federated", "-m", "seed=1,2", job=job) == 0
    sweep = job.directories[0].parent
    assert type_("federated", "-m", "seed=1,2", "resume=true", job=job) == 2
    assert len(job.runs) == 2
    error = capsys.readouterr().err
    assert error.count("error:") == 1
    assert error.rstrip().endswith(f"seed=1,2 resume=true -m hydra.sweep.dir={sweep}")
    assert list(sweep.parent.iterdir()) == [sweep]


def _resumed(type_: Type, *arguments: str) -> dict[int, str]:
    """Resume the sweep; return in which directory each seed went on."""
    job = _job()
    assert type_("federated", "-m", *arguments, "hydra.sweep.dir=sweep", job=job) == 0
    return {run.seed: path.name for run, path in zip(job.runs, job.directories, strict=True)}


def test_jobs_of_a_resumed_sweep_are_matched_by_their_overrides(type_: Type) -> None:
    assert _resumed(type_, "seed=1,2,3") == {1: "0", 2: "1", 3: "2"}
    assert _resumed(type_, "seed=3,1", "resume=true") == {3: "2", 1: "0"}
    assert _resumed(type_, "seed=2", "resume=true") == {2: "1"}
    assert _resumed(type_, "federated.rounds=99", "seed=2,1", "resume=true") == {2: "1", 1: "0"}
    # One that is new has a number of its own, also where it takes the place of another.
    assert _resumed(type_, "seed=4,2", "resume=true") == {4: "3", 2: "1"}
    assert _resumed(type_, "seed=4,3", "resume=true") == {4: "3", 3: "2"}
    assert sorted(path.name for path in Path("sweep").glob("[0-9]*")) == ["0", "1", "2", "3"]


def test_jobs_that_differ_in_what_may_change_keep_to_their_own(type_: Type) -> None:
    job = _job()
    sweep = ("-m", "hydra.sweep.dir=sweep", "seed=5")
    assert type_("federated", *sweep, "federated.rounds=10,20", job=job) == 0
    again = _job()
    assert type_("federated", *sweep, "federated.rounds=30,20,10", "resume=true", job=again) == 0
    rounds = [run.federated.rounds for run in again.runs]
    assert rounds == [30, 20, 10]
    assert [path.name for path in again.directories] == ["2", "1", "0"]


@pytest.mark.parametrize("left", ["", "{", "[]", '{"overrides": 1, "swept": []}'])
def test_a_job_whose_overrides_a_full_disk_has_cut_off_goes_on(left: str, type_: Type) -> None:
    assert _resumed(type_, "seed=1,2,3") == {1: "0", 2: "1", 3: "2"}
    note = Path("sweep/1/overrides.json")
    whole = note.read_text()
    note.write_text(left)
    assert _resumed(type_, "seed=1,2,3", "resume=true") == {1: "0", 2: "1", 3: "2"}
    assert note.read_text() == whole
    assert _resumed(type_, "seed=2", "resume=true") == {2: "1"}


@pytest.mark.parametrize("stop", [KeyboardInterrupt(), SystemExit(143)])
def test_a_stopped_sweep_says_how_to_continue_all_of_it(
    stop: BaseException, type_: Type, capsys: pytest.CaptureFixture[str]
) -> None:
    def second_stops(run: Run, directory: Path) -> None:
        if run.seed == 2:
            raise stop
        _begun(run, directory)

    job = Started(second_stops)
    command = ("federated", "-m", "seed=1,2,3", "hydra.sweep.dir=sweep")
    if isinstance(stop, SystemExit):
        with pytest.raises(SystemExit):
            type_(*command, job=job)
    else:
        assert type_(*command, job=job) == 130
    said = f"continue it: resume=true hydra.sweep.dir={Path.cwd() / 'sweep'}\n"
    assert said in capsys.readouterr().err
