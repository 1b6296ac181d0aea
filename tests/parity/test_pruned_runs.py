"""Parity 6 of a trial that a search gives up: cut off before that, it ends where it would have."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from federated.job import run_job
from heliotrope.config import Mode
from heliotrope.runs.finding import find_runs
from heliotrope.runs.pruning import PruningRule
from tests.distributed_runs import INLINE, TORCHRUN, cut, result_of, train
from tests.support import (
    MODES,
    assert_same_tensors,
    compose,
    events_of,
    fresh_seed,
    weights_of,
)

pytestmark = pytest.mark.usefixtures("no_report")

_LENGTH = 4
_UNREACHABLE = 2.0  # of an accuracy


def _distributed(directory: Path, *more: str) -> None:
    train(directory, *INLINE, *more, epochs=_LENGTH)


def _federated(directory: Path, *more: str) -> None:
    settings = (
        "model.hidden=[8]",
        "federated.clients_per_round=4",
        "federated.checkpoint_every=1",
        "federated.client_training=sequential",
        "federated.cpus_per_worker=1",
        f"federated.rounds={_LENGTH}",
    )
    run_job(compose("federated", *settings, *more), directory)


_TRAIN: dict[Mode, Callable[..., None]] = {"distributed": _distributed, "federated": _federated}


def _rule(last: int) -> PruningRule:
    """Return a rule that gives a run up after epoch or round `last`, by its best so far."""
    limits = dict.fromkeys(range(1, last), 0.0) | {last: _UNREACHABLE}
    return PruningRule("test/accuracy", False, limits, best=True)


@pytest.mark.parametrize("mode", MODES)
def test_a_pruned_run_ends_in_order_also_after_an_interruption(mode: Mode, tmp_path: Path) -> None:
    draw = random.Random(fresh_seed())
    last = draw.randrange(2, _LENGTH)
    whole = tmp_path / "whole"
    _rule(last).write(whole)
    _TRAIN[mode](whole)
    result = result_of(whole)
    assert (result["status"], result["epochs" if mode == "distributed" else "rounds"]) == (
        "pruned",
        last,
    )
    assert [run.state for run in find_runs(whole)] == ["pruned"]
    end = json.loads((whole / "metrics.jsonl").read_text().splitlines()[-1])
    assert (end["event"], end["status"]) == ("end", "pruned")
    parts = cut(whole, tmp_path / "parts", after=draw.randrange(1, last + 1))
    _TRAIN[mode](parts, "resume=true")
    assert_same_tensors(weights_of(whole), weights_of(parts))
    assert events_of(whole) == events_of(parts)
    assert result_of(parts)["status"] == "pruned"


@pytest.mark.parametrize("mode", MODES)
def test_a_run_that_reaches_its_end_is_completed(mode: Mode, tmp_path: Path) -> None:
    _rule(_LENGTH).write(tmp_path)
    _TRAIN[mode](tmp_path)
    assert result_of(tmp_path)["status"] == "completed"


@pytest.mark.slow
def test_all_ranks_give_a_run_up_together(tmp_path: Path) -> None:
    _rule(2).write(tmp_path)
    train(tmp_path, *TORCHRUN, epochs=_LENGTH)
    assert (result_of(tmp_path)["status"], result_of(tmp_path)["epochs"]) == ("pruned", 2)
