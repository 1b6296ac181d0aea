"""Parity 6, federated: however a round is cut off, the run goes on from the last whole one."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from federated.job import run_job
from federated.pools.cohort_worker import CohortWorker
from federated.pools.inprocess import InProcessPool
from federated.strategies.mean import FedAdam
from heliotrope.errors import QuorumError, RunFailedError
from heliotrope.runs.clock import clock_from_now
from heliotrope.runs.events import Tracker
from tests.support import LaterClock, assert_same_tensors, compose, events_of, saved_by

pytestmark = pytest.mark.usefixtures("no_report")

_SMALL = (
    "model.hidden=[8]",
    "federated.rounds=4",
    "federated.clients_per_round=4",
    "federated.partition.clients=5",
    "federated.holdout_fraction=0.2",
    "federated.checkpoint_every=100",
    "federated.client_training=sequential",
    "federated.cpus_per_worker=1",
    "federated/strategy=fedadam",  # its moments change before a model is accepted
    "target.metric=test/accuracy",
    "target.value=0.0",
    "target.stop=false",
    "seed=11",
)
_CUT = 3  # the round that is cut off


def _train(directory: Path, *more: str) -> None:
    run_job(compose("federated", *_SMALL, *more), directory)


def _nth(function: Callable[..., Any], number: int, instead: Callable[..., Any]) -> Any:
    """Return `function`, except that its call `number`, from 1, is one of `instead`."""
    calls = 0

    def replaced(*arguments: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        return (instead if calls == number else function)(*arguments, **options)

    return replaced


def _interrupt(*_arguments: Any, **_options: Any) -> None:
    raise KeyboardInterrupt


def _after(function: Callable[..., Any]) -> Callable[..., Any]:
    def interrupt(*arguments: Any, **options: Any) -> None:
        function(*arguments, **options)
        raise KeyboardInterrupt

    return interrupt


@pytest.mark.parametrize(
    ("owner", "method", "number", "reached"),
    [
        (CohortWorker, "train", _CUT, 2),
        (FedAdam, "aggregate_mean", _CUT, 2),
        (InProcessPool, "evaluate_centrally", _CUT, 3),
        (InProcessPool, "evaluate", _CUT, 3),
        (FedAdam, "aggregate_evaluate", _CUT, 3),
        (Tracker, "sync", 1, 4),  # of the checkpoint at the end: half saved
    ],
)
@pytest.mark.parametrize("when", ["before", "after"])
def test_an_interrupted_run_goes_on_from_the_last_whole_round(
    owner: type,
    method: str,
    number: int,
    reached: int,
    when: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _train(tmp_path / "whole")
    function = getattr(owner, method)
    instead = _interrupt if when == "before" else _after(function)
    monkeypatch.setattr(owner, method, _nth(function, number, instead))
    with pytest.raises(KeyboardInterrupt):
        _train(tmp_path / "cut")
    monkeypatch.undo()
    monkeypatch.setattr("heliotrope.report.write_report", lambda *_: None)
    assert saved_by(tmp_path / "cut").progress == reached

    _train(tmp_path / "cut", "resume=true")

    _assert_same(tmp_path / "whole", tmp_path / "cut")


def _assert_same(whole: Path, cut: Path) -> None:
    assert_same_tensors(dict(saved_by(whole).model), dict(saved_by(cut).model))
    assert_same_tensors(dict(saved_by(whole).arrays), dict(saved_by(cut).arrays))
    assert events_of(whole) == events_of(cut)
    results = [json.loads((path / "result.json").read_text()) for path in (whole, cut)]
    targets = [{k: v for k, v in r["target"].items() if k != "seconds"} for r in results]
    assert targets[0] == targets[1]
    assert targets[0]["reached"]


def _no_model(*_arguments: Any) -> None:
    return None


def _no_number(function: Callable[..., Any]) -> Callable[..., Any]:
    def spoil(*arguments: Any) -> Any:
        arrays = function(*arguments)
        name = next(iter(arrays))
        arrays[name] = type(arrays[name])(arrays[name].numpy() * torch.nan)
        return arrays

    return spoil


@pytest.mark.parametrize("what", ["no model", "no number"])
def test_a_strategy_without_a_usable_model_leaves_the_round_before(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _train(tmp_path / "whole")
    function = FedAdam.aggregate_mean
    instead = _no_model if what == "no model" else _no_number(function)
    with monkeypatch.context() as patched:
        patched.setattr(FedAdam, "aggregate_mean", _nth(function, _CUT, instead))
        with pytest.raises(RunFailedError, match="round 3: strategy fedadam"):
            _train(tmp_path / "cut")
    assert saved_by(tmp_path / "cut").progress == 2

    _train(tmp_path / "cut", "resume=true")

    _assert_same(tmp_path / "whole", tmp_path / "cut")


_WAYS = {
    "train": ["federated.engine.thread_lane.train_client"],
    "evaluate": [
        "federated.engine.evaluation." + what for what in ("evaluating", "evaluate_client")
    ],
}


@pytest.mark.parametrize(("method", "reached"), [("train", 2), ("evaluate", 3)])
def test_a_round_below_its_quorum_is_done_after_a_resume(
    method: str, reached: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _train(tmp_path / "whole")
    function = getattr(CohortWorker, method)

    def nobody(worker: CohortWorker, *arguments: Any) -> Any:
        def broken(*_: Any) -> None:
            raise RuntimeError("disk on fire")

        with pytest.MonkeyPatch.context() as inner:
            for what in _WAYS[method]:
                inner.setattr(what, broken)
            return function(worker, *arguments)

    with monkeypatch.context() as patched:
        patched.setattr(CohortWorker, method, _nth(function, _CUT, nobody))
        with pytest.raises(QuorumError, match=r"round 3: 0 of \d clients succeeded"):
            _train(tmp_path / "cut")
    assert saved_by(tmp_path / "cut").progress == reached

    _train(tmp_path / "cut", "resume=true")

    _assert_same(tmp_path / "whole", tmp_path / "cut")


def test_the_last_round_of_a_shorter_run_is_evaluated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seldom = "federated.evaluate_every=10"
    with monkeypatch.context() as patched:
        patched.setattr(CohortWorker, "train", _nth(CohortWorker.train, _CUT, _interrupt))
        with pytest.raises(KeyboardInterrupt):
            _train(tmp_path, seldom)
    assert not [e for e in events_of(tmp_path) if e["event"] in ("evaluate", "clients")]

    _train(tmp_path, seldom, "resume=true", "federated.rounds=2")

    rounds = [e["round"] for e in events_of(tmp_path) if e["event"] in ("evaluate", "clients")]
    assert rounds == [2, 2]
    result = json.loads((tmp_path / "result.json").read_text())
    assert (result["target"]["reached"], result["target"]["rounds"]) == (True, 2)


def test_time_goes_on_over_rounds_that_were_cut_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    later, before = LaterClock(), [0.0]  # what the run is known to have taken
    monkeypatch.setattr("heliotrope.runs.clock.time", later)

    def cut(*_arguments: Any) -> None:
        lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
        before.append(max([before[-1], *(json.loads(line).get("seconds", 0) for line in lines)]))
        later.add(1000.0)
        before[-1] += 1000.0
        raise KeyboardInterrupt

    def train(number: int, *more: str) -> None:
        with clock_from_now(), monkeypatch.context() as patched:
            patched.setattr(CohortWorker, "train", _nth(CohortWorker.train, number, cut))
            _train(tmp_path, "federated.checkpoint_every=1", *more)

    for number, more in ((_CUT, ()), (1, ("resume=true",)), (1, ("resume=true",))):
        with pytest.raises(KeyboardInterrupt):
            train(number, *more)
    train(100, "resume=true")
    times = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    rounds = [event["seconds"] for event in times if event["event"] == "train"]
    assert rounds == sorted(rounds)
    assert rounds[2] > before[-1] >= rounds[1] + 3000.0
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["wall_seconds"] >= rounds[-1] - 1e-3
    assert result["train_seconds"] < 1000.0, "of the rounds that count"


def test_a_new_target_sees_a_run_that_is_done(tmp_path: Path) -> None:
    _train(tmp_path, "target.value=2.0")
    assert not json.loads((tmp_path / "result.json").read_text())["target"]["reached"]
    _train(tmp_path, "target.value=0.01", "resume=true")
    assert json.loads((tmp_path / "result.json").read_text())["target"]["reached"]
