"""Checkpoints written beside training: what they hold, how many there are, what goes wrong."""

from __future__ import annotations

import math
import random
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

import distributed.driver
import distributed.strategies.build
import distributed.strategies.engine
import distributed.strategies.local_sgd
from distributed.loop.retention import Best
from distributed.loop.saver import Saver
from heliotrope.errors import CheckpointError
from heliotrope.metrics import Direction
from heliotrope.models import build
from heliotrope.runs import checkpoint
from heliotrope.runs.checkpoint import Checkpoint, Shard
from heliotrope.runs.events import Tracker
from heliotrope.system.tensor_file import Digest
from heliotrope.training import optimizer_state
from tests.distributed_runs import INLINE, train
from tests.support import assert_same_tensors, fresh_seed, weights


class _Training:
    """A model that is trained on noise, and its saver."""

    def __init__(self, directory: Path, part: Shard | None = None) -> None:
        self.model = torch.nn.Linear(40, 30)
        self.optimizer = torch.optim.Adam(self.model.parameters())
        self.root = directory / "checkpoints"
        self.tracker = Tracker(directory / "metrics.jsonl")
        self.saver = Saver(self.root, self.optimizer, self.tracker, 3, part)

    def step(self) -> None:
        self.optimizer.zero_grad()
        self.model(torch.randn(8, 40)).square().sum().backward()
        self.optimizer.step()

    def save(self, progress: int) -> None:
        arrays, rest = optimizer_state.flatten(self.optimizer)
        state = {"optimizer": rest}
        self.saver.save(Checkpoint(progress, self.model.state_dict(), arrays, state), ())


@pytest.fixture
def training(tmp_path: Path) -> Iterator[_Training]:
    started = _Training(tmp_path)
    yield started
    started.tracker.close()


def _copying_slowly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let training come to its next step before anything is copied, if it does not wait."""
    at_once: Callable[..., dict[str, torch.Tensor]] = Saver._copy

    def copy(*arguments: Any) -> dict[str, torch.Tensor]:
        time.sleep(0.1)
        return at_once(*arguments)

    monkeypatch.setattr(Saver, "_copy", copy)


@contextmanager
def _slow(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Let checkpoints be written only once the event given is set, or after the block."""
    _copying_slowly(monkeypatch)
    may_write = threading.Event()
    at_once: Callable[..., Path] = checkpoint.save

    def save(*arguments: Any) -> Path:
        may_write.wait()
        return at_once(*arguments)

    monkeypatch.setattr(checkpoint, "save", save)
    try:
        yield may_write
    finally:
        may_write.set()


def test_training_goes_on_and_the_checkpoint_holds_what_was_there_when_it_was_asked_for(
    training: _Training, monkeypatch: pytest.MonkeyPatch
) -> None:
    with training.saver, _slow(monkeypatch) as may_write:
        for number in range(3):
            training.step()
            then = weights(training.model)
            state, _ = optimizer_state.flatten(training.optimizer)
            state = {name: value.clone() for name, value in state.items()}
            training.save(number)
            training.step()  # while nothing can be written
            may_write.set()
            training.save(number + 10)  # waits for the one before
            may_write.clear()
            found = checkpoint.load(checkpoint.path_of(training.root, number))
            assert_same_tensors(dict(found.model), then)
            assert_same_tensors(dict(found.arrays), state)
            may_write.set()
            training.saver.__exit__(None, None, None)
            may_write.clear()


def test_a_part_is_written_from_where_it_is_before_it_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_once = checkpoint.write_tensors

    def write(path: Path, tensors: Mapping[str, torch.Tensor]) -> Digest:
        time.sleep(0.1)  # training comes to its next step, if it does not wait
        return at_once(path, tensors)

    monkeypatch.setattr(checkpoint, "write_tensors", write)
    monkeypatch.setattr(Saver, "_copy", None)  # there may be no room for one
    training = _Training(tmp_path, Shard(0, 1, "one"))
    training.step()
    then = weights(training.model)
    with closing(training.tracker), training.saver:
        training.save(1)
        training.step()
    assert_same_tensors(dict(checkpoint.load(checkpoint.path_of(training.root, 1)).model), then)


def test_the_last_checkpoint_is_awaited(
    training: _Training, monkeypatch: pytest.MonkeyPatch
) -> None:
    with _slow(monkeypatch) as may_write, training.saver:
        training.save(7)
        threading.Timer(0.2, may_write.set).start()
    assert checkpoint.load(checkpoint.path_of(training.root, 7)).progress == 7


@pytest.mark.parametrize("when", ["at a step", "at the next one", "at the end"])
def test_an_error_of_the_writer_is_raised_in_training(training: _Training, when: str) -> None:
    training.root.write_text("a file in the way")

    def train() -> None:
        with training.saver:
            training.save(1)
            if when == "at the next one":
                training.save(2)
            while when == "at a step":
                training.saver.raise_if_failed()

    with pytest.raises(CheckpointError, match="could not be written"):
        train()


def test_the_best_are_those_a_sort_puts_first() -> None:
    draw = random.Random(fresh_seed())
    directions: dict[str, Direction] = {"loss": "min", "accuracy": "max", "rmse": "min"}
    for metric, sign in (("test/loss", 1), ("validation/accuracy", -1), ("test/rmse", 1)):
        count = draw.randint(1, 4)
        best, offered = Best(metric, count, directions), []
        for progress in range(20):
            offered.append((draw.randint(0, 9) / 10, progress))
            wanted = sorted(offered, key=lambda e: (sign * e[0], e[1]))[:count]
            assert best.offer({metric: offered[-1][0]}, progress) == (offered[-1] in wanted)
            assert best.progresses == [progress for _, progress in wanted]
            again = Best(metric, count, directions)
            again.restore(best.saved())
            assert again.progresses == best.progresses


def test_a_metric_that_is_not_defined_is_never_the_best() -> None:
    best = Best("test/accuracy", 2, {"accuracy": "max"})
    assert [best.offer({"test/accuracy": value}, n) for n, value in enumerate((math.nan, 0.5))] == [
        False,
        True,
    ]
    assert best.progresses == [1]


class _Counting(torch.nn.Module):
    """Knows how many batches it was trained on, as batch normalisation does."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("batches", torch.tensor(0))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        if self.training:
            self.batches += 1
        return inputs


@pytest.mark.usefixtures("no_report")
@pytest.mark.parametrize(
    ("choice", "where"),
    [
        ("distributed.strategy=ddp", ("0.batches",)),
        ("distributed.ema_decay=0.5", ("0.batches", "weights/0.batches")),
        ("distributed.strategy=local_sgd", ("0/weights/0.batches",)),
    ],
)
def test_buffers_are_saved_as_they_were_though_the_next_pass_changes_them(
    choice: str, where: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def build_counting(*arguments: Any) -> torch.nn.Module:
        return torch.nn.Sequential(_Counting(), build(*arguments))

    for module in (
        distributed.strategies.local_sgd,
        distributed.driver,
        distributed.strategies.engine,
        distributed.strategies.build,
    ):
        monkeypatch.setattr(module, "build", build_counting)
    _copying_slowly(monkeypatch)
    often = "distributed.checkpoint_every_steps=5"
    train(tmp_path, *INLINE, often, choice, "distributed.keep_last=9", epochs=1)
    for step in (5, 10, 11):
        found = checkpoint.load(checkpoint.path_of(tmp_path / "checkpoints", step))
        saved = {**found.model, **found.arrays}
        assert [int(saved[name]) for name in where] == [step] * len(where)
