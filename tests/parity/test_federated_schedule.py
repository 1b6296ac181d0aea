"""The clients' learning rate over rounds, and over a resumed run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from federated.engine.thread_lane import ThreadLane
from federated.job import run_job
from heliotrope.errors import ConfigError
from tests.support import assert_same_tensors, compose, weights_of

pytestmark = pytest.mark.usefixtures("no_report")

_SMALL = (
    "model.hidden=[4]",
    "federated.clients_per_round=3",
    "federated.client_training=sequential",
    "federated.cpus_per_worker=1",
    "optimizer.lr=0.5",
)


@pytest.fixture
def rates(monkeypatch: pytest.MonkeyPatch) -> list[float | None]:
    """The rates of the rounds that are trained from now on."""
    seen: list[float | None] = []
    real = ThreadLane.train

    def train(self: ThreadLane, weights: Any, order: Any, *rest: Any) -> Any:
        seen.append(order.lr)
        return real(self, weights, order, *rest)

    monkeypatch.setattr(ThreadLane, "train", train)
    return seen


def _run(directory: Path, *settings: str) -> None:
    run_job(compose("federated", *_SMALL, *settings), directory)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (("lr_schedule=linear",), [0.5, 0.375, 0.25, 0.125]),
        (("lr_schedule=cosine",), [0.25 * (1 + math.cos(math.pi * i / 4)) for i in range(4)]),
        (("lr_schedule=linear", "lr_horizon=2"), [0.5, 0.25, 0.25, 0.25]),
        (
            ("lr_schedule=step", "lr_decay_rounds=2", "lr_decay_factor=0.2"),
            [0.5, 0.5, 0.1, 0.1],
        ),
        (("lr_warmup_rounds=3",), [0.125, 0.25, 0.375, 0.5]),
        (("lr_schedule=constant",), [None] * 4),
    ],
)
def test_each_round_has_the_rate_of_its_schedule(
    settings: Sequence[str], expected: list[float], rates: list[float | None], tmp_path: Path
) -> None:
    _run(tmp_path, "federated.rounds=4", *(f"federated.{setting}" for setting in settings))
    assert rates == pytest.approx(expected)


def test_the_rate_of_the_round_is_that_of_qfedavg_too(tmp_path: Path) -> None:
    """A round at half the rate, as of a schedule, is a round of a run with half the rate."""
    strategy = "federated/strategy=qfedavg"
    _run(tmp_path / "half", strategy, "federated.rounds=1", "optimizer.lr=0.25")
    warmed = ("federated.lr_warmup_rounds=1", "federated.lr_horizon=2")
    run = compose("federated", *_SMALL, strategy, "federated.rounds=1")
    run.federated.lr_warmup_rounds = 1  # ends after it: refused on the command line
    run_job(run, tmp_path / "warm")
    assert_same_tensors(weights_of(tmp_path / "half"), weights_of(tmp_path / "warm"))
    with pytest.raises(ConfigError, match=r"federated.lr_horizon=2 has no effect"):
        compose("federated", "federated.rounds=1", *warmed)


def test_a_scheduled_run_is_lengthened_only_with_a_horizon(tmp_path: Path) -> None:
    cosine = "federated.lr_schedule=cosine"
    _run(tmp_path / "cut", cosine, "federated.rounds=2")
    with pytest.raises(ConfigError, match=r"federated.lr_horizon=2 to keep.*federated.rounds=2"):
        _run(tmp_path / "cut", cosine, "federated.rounds=4", "resume=true")

    four = (cosine, "federated.lr_horizon=4")
    _run(tmp_path / "whole", *four, "federated.rounds=4")
    _run(tmp_path / "planned", *four, "federated.rounds=2")
    _run(tmp_path / "planned", *four, "federated.rounds=4", "resume=true")
    assert_same_tensors(weights_of(tmp_path / "whole"), weights_of(tmp_path / "planned"))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (("lr_schedule=cosin",), ("lr_schedule=cosin", "'cosine'")),
        (("lr_warmup_rounds=10",), ("lr_warmup_rounds=10", "federated.rounds=10")),
        (("lr_schedule=step",), ("federated.lr_decay_rounds", "Set it")),
        (("lr_decay_rounds=3",), ("Set federated.lr_schedule=step",)),
        (("lr_schedule=one_cycle", "lr_warmup_rounds=1"), ("Set federated.lr_warmup_rounds=0",)),
        (("lr_schedule=linear", "lr_horizon=0"), ("federated.lr_horizon=0",)),
    ],
)
def test_a_schedule_that_means_nothing_is_refused(
    settings: Sequence[str], words: Sequence[str]
) -> None:
    with pytest.raises(ConfigError) as caught:
        compose("federated", *(f"federated.{setting}" for setting in settings))
    for word in words:
        assert word in str(caught.value)
