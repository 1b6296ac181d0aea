"""Searches: trials from what those before reached, again after an interruption, in one journal."""

from __future__ import annotations

import json
import math
import random
import resource
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from heliotrope.config import Run, SearchConfig, chosen
from heliotrope.errors import ConfigError, RunDirectoryError, RunFailedError
from heliotrope.runs.clock import Clock
from heliotrope.runs.directory import RunDirectory
from heliotrope.runs.events import Progress, Tracker
from heliotrope.runs.finding import find_runs
from heliotrope.runs.pruning import Pruning, PruningRule
from heliotrope.search.journal import JOURNAL, Journal
from heliotrope.search.queue import TrialQueue
from heliotrope.search.space import Dimension
from heliotrope.search.trials import Ended, Trial
from tests.support import Started, Type, fresh_seed

_SEARCH = (
    "-m",
    "hydra.sweep.dir=found",
    "federated.rounds=3",
    "search.trials=4",
    "search.sampler.startup_trials=2",
    "search/pruner=median",
    "search.pruner.startup_trials=1",
    "optimizer.lr=tag(log,interval(0.001,1))",
)
_FOUND = Path("found")


def _score(run: Run) -> float:
    """Return what a trial reaches: a known function of what is searched."""
    return 1 / (1 + (math.log10(run.optimizer.lr) + 1) ** 2)


def _train(run: Run, directory: Path) -> None:
    """Stand in for a mode: evaluate three rounds, and leave what a run leaves."""
    there, last = RunDirectory(directory), run.federated.rounds
    there.begin(run)
    pruning = Pruning(PruningRule.read(directory), last)
    directions = {"score": "max"}
    with Tracker(there.metrics) as tracker:
        tracker.rewind(0)
        tracker.emit("start", mode="federated", name=run.name, directions=directions)
        for step in range(1, last + 1):
            value = _score(run) * step / last
            told = {"test/score": value}
            tracker.progress("evaluate", Progress(), Clock(), {"round": step}, **told)
            if pruning.observe(told, step):
                break
    status = "pruned" if pruning.pruned else "completed"
    result = {"mode": "federated", "status": status, "metrics": told, "directions": directions}
    there.write_result(result)


def _lines() -> list[dict[str, Any]]:
    return [json.loads(line) for line in (_FOUND / JOURNAL).read_text().splitlines()]


def _told() -> list[dict[str, Any]]:
    return [line for line in _lines() if line["event"] == "tell"]


def _values() -> list[dict[str, Any]]:
    return [line["values"] for line in _lines() if line["event"] == "ask"]


def test_a_search_tries_what_its_space_holds_and_names_the_best(
    type_: Type, capsys: pytest.CaptureFixture[str]
) -> None:
    job = Started(_train)
    assert type_("federated", *_SEARCH, job=job) == 0
    assert [directory.name for directory in job.directories] == [str(n) for n in range(4)]
    for run, values in zip(job.runs, _values(), strict=True):
        assert run.optimizer.lr == values["optimizer.lr"]
        assert 0.001 <= run.optimizer.lr <= 1
    told = _told()
    assert {line["state"] for line in told} == {"complete", "pruned"}
    states = {path.path.name: path.state for path in find_runs(_FOUND)}
    assert states == {
        str(line["trial"]): {"complete": "completed"}.get(line["state"], line["state"])
        for line in told
    }
    best = max((line for line in told if line["value"]), key=lambda line: line["value"])
    out = capsys.readouterr().out
    assert f"best: [{best['trial']}] test/score" in out
    assert "data.validation_fraction" in out  # it was chosen by the test split
    assert "pruned after round" in out
    assert (_FOUND / "report.html").exists()


def test_a_search_goes_on_with_the_trial_that_was_interrupted(type_: Type) -> None:
    def interrupted(run: Run, directory: Path) -> None:
        if directory.name == "1":
            RunDirectory(directory).begin(run)
            raise KeyboardInterrupt
        _train(run, directory)

    assert type_("federated", *_SEARCH, "search.trials=2", job=Started(interrupted)) == 130
    before = _values()
    job = Started(_train)
    assert type_("federated", *_SEARCH, "search.trials=3", "resume=true", job=job) == 0
    assert [directory.name for directory in job.directories] == ["1", "2"]
    assert all(run.resume for run in job.runs)
    assert _values()[:2] == before


def test_a_search_that_is_refused_or_complete_leaves_nothing_elsewhere(
    type_: Type, capsys: pytest.CaptureFixture[str]
) -> None:
    assert type_("federated", *_SEARCH, job=Started(_train)) == 0
    before = sorted(Path.cwd().iterdir())
    capsys.readouterr()
    assert type_("federated", *_SEARCH, job=Started(_train)) == 2
    out, err = capsys.readouterr()
    assert (out, "holds a search" in err) == ("", True)
    assert type_("federated", *_SEARCH, "resume=true", job=Started(_train)) == 0
    assert f"compare {_FOUND.absolute()}/*/" in capsys.readouterr().out
    assert sorted(Path.cwd().iterdir()) == before


def test_a_failing_trial_does_not_stop_a_search(
    type_: Type, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail_or_diverge(run: Run, directory: Path) -> None:
        if directory.name == "0":
            raise RunFailedError("worker 1 died")
        _train(run, directory)
        if directory.name == "1":
            result = {"mode": "federated", "status": "completed", "metrics": {"test/score": None}}
            RunDirectory(directory).write_result(result)

    job = Started(fail_or_diverge)
    assert type_("federated", *_SEARCH, "search.trials=2", job=job) == 1
    assert type_("federated", *_SEARCH, "search.trials=3", "resume=true", job=job) == 0
    assert [line["state"] for line in _told()] == ["failed", "failed", "complete"]
    out, err = capsys.readouterr()
    assert "1 complete, 2 failed" in out
    assert err == "error: worker 1 died\n"


def test_a_first_trial_that_is_refused_ends_the_search(type_: Type) -> None:
    def refuse(_run: Run, _directory: Path) -> None:
        raise ConfigError("search.metric=test/skore is not one of test/score")

    job = Started(refuse)
    assert type_("federated", *_SEARCH, job=job) == 2
    assert len(job.runs) == 1
    assert not (_FOUND / JOURNAL).exists()


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("optimizer.lrr=1,2",), "Did you mean 'optimizer.lr'?"),
        (("optimizer.lr=interval(-1,1)",), "optimizer.lr=-1.0 must be greater than 0"),
        (("federated.local_epochs=interval(0,2)",), "federated.local_epochs=0"),
        (("search.trials=0",), "search.trials=0 must be at least 1"),
        (("search/sampler=tpee",), "Did you mean 'tpe'?"),
        (("search/pruner=halving", "search.pruner.reduction_factor=1"), "at least 2"),
        (("sweep.parallel=2",), "sweep.parallel=2"),
        (("privacy.selection=poisson", "privacy.trials=3", "privacy.ledger=l"), "depend"),
        (("hydra.sweep.subdir=x",), "hydra.sweep.subdir"),
        (("hydra/sweeper=optuna",), "search.trials"),
    ],
)
def test_what_no_trial_could_do_is_refused_before_any(
    more: tuple[str, ...], said: str, type_: Type, capsys: pytest.CaptureFixture[str]
) -> None:
    job = Started(_train)
    keys = {word.partition("=")[0] for word in more}
    kept = [word for word in _SEARCH if word.partition("=")[0] not in keys]
    kept = [word for word in kept if not ("search/pruner" in keys and "pruner" in word)]
    assert type_("federated", *kept, *more, job=job) == 2
    assert job.runs == []
    assert said in capsys.readouterr().err
    assert not (_FOUND / JOURNAL).exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("-m", "search.trials=3"), "nothing to search over"),
        (("search.trials=3",), "search.trials=3 has no effect without -m"),
        (("search/sampler=random",), "no effect without -m"),
        (("-m", "optimizer.lr=interval(0.1,1)"), "search it: search.trials=20"),
        (("-m", "search.trials=3", "seed=1,2", "resume=true"), "there is none"),
    ],
)
def test_half_a_search_is_refused(
    arguments: tuple[str, ...], said: str, type_: Type, capsys: pytest.CaptureFixture[str]
) -> None:
    job = Started(_train)
    assert type_("federated", *arguments, job=job) == 2
    assert job.runs == []
    assert said in capsys.readouterr().err


def test_without_optuna_the_extra_is_named(
    type_: Type, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    monkeypatch.setattr("heliotrope.search.study.find_spec", lambda _name: None)
    assert type_("federated", *_SEARCH, job=Started(_train)) == 2
    assert "pip install 'heliotrope[search]'" in capsys.readouterr().err


def test_another_search_does_not_go_on_with_this_one(
    type_: Type, capsys: pytest.CaptureFixture[str]
) -> None:
    few = (*_SEARCH, "search.trials=1")
    assert type_("federated", *few, job=Started(_train)) == 0
    job = Started(_train)
    assert type_("federated", *few, job=job) == 2
    assert "Set resume=true" in capsys.readouterr().err
    for changed, said in (
        ("optimizer.lr=tag(log,interval(0.01,1))", "space.optimizer.lr.low=0.001, not"),
        ("federated.rounds=4", "federated.rounds=3, not federated.rounds=4"),
    ):
        assert type_("federated", *few, "resume=true", changed, job=job) == 2
        assert said in capsys.readouterr().err
    assert job.runs == []


_SPACE = {
    "a": Dimension("float", 0.01, 1.0, log=True),
    "b": Dimension("int", 1, 8),
    "c": Dimension("choice", choices=("x", "y")),
}


def _queue(journal: Journal, sampler: str = "tpe", seed: int = 0) -> TrialQueue:
    parts = chosen("search/sampler", sampler), chosen("search/pruner", "median", startup_trials=2)
    if sampler == "tpe":
        parts[0].startup_trials = 3
    return TrialQueue(journal, _SPACE, SearchConfig(12, None, seed, *parts))


def _reached(trial: Trial) -> Ended:
    """Return what becomes of a trial: a function of its values, and of its rule."""
    level = float(trial.values["a"]) + (trial.values["c"] == "x") - abs(int(trial.values["b"]) - 3)
    if trial.number % 5 == 4:
        return Ended("failed")
    watch, curve = Pruning(trial.rule, 4), {}
    for step in range(1, 5):
        curve[step] = level * step
        if watch.observe({"test/score": curve[step]}, step):
            return Ended("pruned", "test/score", False, None, curve)
    return Ended("complete", "test/score", False, curve[4], curve)


def _searched(directory: Path, events: int, sampler: str = "tpe", seed: int = 0) -> int:
    """Search until so many more lines are written, or to the end; return how many were."""
    journal = Journal(directory)
    if journal.settings is None:
        journal.begin({})
    queue, written = _queue(journal, sampler, seed), 0
    while written < events and (trial := queue.next()) is not None:
        written += trial.number + 1 == len(journal.trials)
        if written < events:
            queue.tell(trial.number, _reached(trial))
            written += 1
    journal.close()
    return written


@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_a_search_that_is_killed_ends_as_one_that_is_not(sampler: str, tmp_path: Path) -> None:
    draw = random.Random(fresh_seed())
    _searched(tmp_path / "whole", 1000, sampler)
    whole = (tmp_path / "whole" / JOURNAL).read_bytes()
    for part in range(4):
        parts = tmp_path / str(part)
        while _searched(parts, draw.randrange(1, 12), sampler):
            path = parts / JOURNAL
            if draw.random() < 0.5:  # the last line was being written
                lines = path.read_bytes().splitlines(keepends=True)
                kept = draw.randrange(len(lines[-1]))
                path.write_bytes(b"".join(lines[:-1]) + lines[-1][:kept])
        assert (parts / JOURNAL).read_bytes() == whole
    _searched(tmp_path / "other", 1000, sampler, seed=1)
    assert (tmp_path / "other" / JOURNAL).read_bytes() != whole


def test_trials_at_the_same_time_differ(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.begin({})
    queue = _queue(journal)
    running = [queue.next() for _ in range(12)]
    assert queue.next() is None
    assert [trial.number for trial in running if trial] == list(range(12))
    assert len({str(trial.values) for trial in running if trial}) > 9
    journal.close()


def _some(draw: random.Random) -> Ended:
    if draw.random() < 0.3:
        return Ended("failed")
    curve = {step: draw.choice([draw.gauss(0, 1), math.nan]) for step in range(1, 4)}
    if draw.random() < 0.5:
        return Ended("pruned", "test/score", True, None, curve)
    return Ended("complete", "test/score", True, draw.gauss(0, 1), curve)


def test_a_journal_is_read_as_it_was_written(tmp_path: Path) -> None:
    draw = random.Random(fresh_seed())
    journal = Journal(tmp_path)
    journal.begin({"seed": 3})
    for number in range(20):
        rule = PruningRule("test/score", True, {1: draw.random()}, best=False)
        values = {"a": draw.random(), "b": draw.randrange(9), "c": "[1]"}
        journal.ask(Trial(number, values, draw.choice([rule, None])))
        if draw.random() < 0.9:
            journal.tell(number, _some(draw))
    with pytest.raises(RunDirectoryError, match="in use by another search"):
        Journal(tmp_path)
    journal.close()
    again = Journal(tmp_path)
    assert again.settings == {"seed": 3}
    assert repr(again.trials) == repr(journal.trials)  # NaN equals none
    again.close()


def test_a_disk_that_takes_no_more_is_told_of(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.begin({})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (journal.path.stat().st_size, hard))
    try:
        with (
            pytest.raises(RunFailedError, match=r"resume=true hydra\.sweep\.dir="),
            closing(journal),
        ):
            journal.ask(Trial(0, {"seed": 1}))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    with closing(Journal(tmp_path)) as again:
        assert (again.settings, again.trials) == ({}, [])


@pytest.mark.parametrize(
    "damage",
    [
        lambda lines: [*lines[1:]],
        lambda lines: [lines[0], *lines],
        lambda lines: [*lines, lines[-1]],
        lambda lines: [*lines[:2], b"x", *lines[2:]],
        lambda lines: [*lines, b'{"event": "ask", "trial": 7, "values": {}, "rule": null}'],
        lambda lines: [*lines, b"[]"],
    ],
)
def test_a_damaged_journal_is_refused(
    damage: Callable[[list[bytes]], list[bytes]], tmp_path: Path
) -> None:
    journal = Journal(tmp_path)
    journal.begin({})
    journal.ask(Trial(0, {"a": 1}))
    journal.tell(0, Ended("failed"))
    journal.close()
    path = tmp_path / JOURNAL
    path.write_bytes(b"\n".join(damage(path.read_bytes().splitlines())) + b"\n")
    with pytest.raises(RunDirectoryError, match="no search has written"):
        Journal(tmp_path)
