"""`folds=3` is three jobs and one result: begun, resumed, failed, refused, swept over."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

import pytest

from heliotrope import cli
from heliotrope.commands.evaluate import evaluate_run
from heliotrope.config import Run
from heliotrope.errors import ConfigError, DataError, WorkerError
from heliotrope.runs.directory import RunDirectory
from tests.support import Started, Type

_ACCURACY = (0.5, 0.7, 0.9)


def train(run: Run, directory: Path) -> None:
    """Leave a run behind whose accuracy is that of its fold, and of its width."""
    there = RunDirectory(directory)
    there.claim(run, "federated")
    there.begin(run)
    there.metrics.write_text(json.dumps({"event": "start", "mode": "federated"}) + "\n")
    score = _ACCURACY[run.fold or 0] - (0.1 if run.optimizer.lr > 0.1 else 0)
    told: dict[str, Any] = {"mode": "federated", "experiment": run.name, "seed": run.seed}
    metrics = {"test/accuracy": score, "test/loss": 1 - score}
    there.write_result({**told, "metrics": metrics, "wall_seconds": 2.0, "parameters": 7})
    there.release()


def result(directory: Path) -> dict[str, Any]:
    found = json.loads((directory / "result.json").read_text())
    assert isinstance(found, dict)
    return found


@pytest.mark.usefixtures("no_report")
def test_each_fold_is_a_run_and_all_have_one_result(
    type_: Type, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    job = Started(train)
    assert type_("federated", "folds=3", "hydra.run.dir=cv", job=job) == 0
    assert [run.fold for run in job.runs] == [0, 1, 2]
    assert job.directories == [tmp_path / "cv" / f"fold-{fold}" for fold in range(3)]
    whole = result(tmp_path / "cv")
    assert whole["metrics"]["test/accuracy"] == pytest.approx(0.7)
    assert whole["deviations"]["test/loss"] == pytest.approx(statistics.stdev(_ACCURACY))
    assert [fold["metrics"]["test/accuracy"] for fold in whole["folds"]] == list(_ACCURACY)
    assert (whole["wall_seconds"], whole["parameters"]) == (6, 7)
    out, err = capsys.readouterr()
    assert err == ""
    assert "0.7000 ± 0.2000" in out
    assert "0, 1, 2" in out
    assert f"compare {tmp_path}/cv/*/" in out
    assert cli.main(["compare", "cv"]) == 0
    assert "0.7000 ± 0.2000" in capsys.readouterr().out
    assert cli.main(["runs", "cv", "where=fold=null"]) == 0
    assert "test/accuracy 0.7000" in capsys.readouterr().out


@pytest.mark.usefixtures("no_report")
@pytest.mark.parametrize("name", ["config.yaml", "result.json"])
def test_a_result_of_all_folds_that_cannot_be_written_is_named(
    name: str, type_: Type, capsys: pytest.CaptureFixture[str]
) -> None:
    def blocks(run: Run, directory: Path) -> None:
        train(run, directory)
        (directory.parent / name).mkdir(exist_ok=True)  # what stands for a full disk

    words = ("federated", "folds=3", "hydra.run.dir=cv")
    assert type_(*words, job=Started(blocks)) == 1
    err = capsys.readouterr().err
    assert err.startswith("error: ")
    assert f"{name} could not be written" in err
    assert "resume=true hydra.run.dir=" in err
    Path("cv", name).rmdir()
    again = Started(train)
    assert type_(*words, "resume=true", job=again) == 0
    assert not again.runs, "what each fold has reached is there"
    assert result(Path("cv"))["status"] == "completed"


@pytest.mark.usefixtures("no_report")
def test_only_folds_that_are_not_completed_are_run_again(
    type_: Type, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def second_fails(run: Run, directory: Path) -> None:
        if run.fold == 1:
            raise WorkerError("worker 1 died")
        train(run, directory)

    words = ("folds=3", "hydra.run.dir=cv")
    job = Started(second_fails)
    assert type_("federated", *words, job=job) == 1
    assert [run.fold for run in job.runs] == [0, 1, 2]
    assert not (tmp_path / "cv" / "result.json").exists()
    assert "0.7000 ± 0.2828" in capsys.readouterr().out, "those that are there are told of"
    again = Started(train)
    assert type_("federated", *words, "resume=true", job=again) == 0
    assert [run.fold for run in again.runs] == [1]
    assert result(tmp_path / "cv")["metrics"]["test/accuracy"] == pytest.approx(0.7)
    stopped = Started(second_fails)
    longer = (*words, "resume=true", "federated.rounds=99")
    assert type_("federated", *longer, job=stopped) == 1
    assert len(stopped.runs) == 3
    assert not (tmp_path / "cv" / "result.json").exists(), "it is that of shorter runs"


@pytest.mark.usefixtures("no_report")
def test_a_refused_resume_leaves_the_result_as_it_was(type_: Type, tmp_path: Path) -> None:
    def refuse(_run: Run, _directory: Path) -> None:
        raise ConfigError("federated.rounds=2: it cannot change")

    words = ("folds=2", "hydra.run.dir=cv")
    assert type_("federated", *words, job=Started(train)) == 0
    before = (tmp_path / "cv" / "result.json").read_bytes()
    changed = (*words, "resume=true", "federated.rounds=2")
    assert type_("federated", *changed, job=Started(refuse)) == 2
    assert (tmp_path / "cv" / "result.json").read_bytes() == before
    with pytest.raises(ConfigError, match=r"cross-validation.*run=.*/cv/fold-0"):
        evaluate_run(tmp_path / "cv")


def test_what_is_refused_is_refused_once(
    type_: Type, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def refuse(_run: Run, _directory: Path) -> None:
        raise DataError("too few examples")

    job = Started(refuse)
    assert type_("federated", "folds=3", "hydra.run.dir=cv", job=job) == 2
    assert len(job.runs) == 1
    assert capsys.readouterr().err == "error: too few examples\n"
    assert not (tmp_path / "cv").exists()


@pytest.mark.usefixtures("no_report")
def test_a_sweep_has_one_line_for_the_folds_of_each_value(
    type_: Type, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    job = Started(train)
    sweep = ("-m", "folds=2", "optimizer.lr=0.1,0.5", "hydra.sweep.dir=sweep")
    assert type_("federated", *sweep, job=job) == 0
    assert [(run.optimizer.lr, run.fold) for run in job.runs] == [
        (0.1, 0),
        (0.1, 1),
        (0.5, 0),
        (0.5, 1),
    ]
    out = capsys.readouterr().out
    assert "0.6000 ± 0.1414" in out
    assert "0.5000 ± 0.1414" in out
    assert f"compare {tmp_path}/sweep/*/" in out
    assert result(tmp_path / "sweep" / "1")["metrics"]["test/accuracy"] == pytest.approx(0.5)
    again = Started(train)
    assert type_("federated", *sweep, "resume=true", job=again) == 0
    assert again.runs == []


def test_one_fold_alone_is_a_run_like_any_other(type_: Type, tmp_path: Path) -> None:
    job = Started(train)
    assert type_("federated", "folds=3", "fold=1", "hydra.run.dir=one", job=job) == 0
    assert job.directories == [tmp_path / "one"]
    assert "folds" not in result(tmp_path / "one")


def test_folds_run_beside_each_other_without_a_sweep(
    type_: Type, capsys: pytest.CaptureFixture[str]
) -> None:
    job = Started(train)
    assert type_("federated", "folds=3", "sweep.parallel=3", job=job) == 2
    assert "sweep.parallel needs Ray" in capsys.readouterr().err, "this command has no Ray"
    assert type_("federated", "folds=3", "fold=0", "sweep.parallel=3", job=job) == 2
    assert "has no effect without -m" in capsys.readouterr().err
    assert job.runs == []


@pytest.mark.usefixtures("no_report")
def test_a_cross_validation_that_is_not_named_is_not_resumed(
    type_: Type, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    job = Started(train)
    assert type_("federated", "folds=3", job=job) == 0
    (found,) = {directory.parent for directory in job.directories}
    (found / "config.yaml").unlink()
    capsys.readouterr()
    assert type_("federated", "folds=3", "resume=true", job=job) == 2
    assert f"hydra.run.dir={found}" in capsys.readouterr().err
    assert tmp_path in found.parents
