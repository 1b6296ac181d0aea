"""Checkpoints written beside training: what they hold, how many there are, what goes wrong."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from distributed.retention import Best
from distributed.saver import Saver
from heliotrope import checkpoint, optimizer_state
from heliotrope.checkpoint import Checkpoint
from heliotrope.errors import CheckpointError
from heliotrope.tracking import Tracker
from tests.support import assert_same_tensors, fresh_seed, weights


class _Training:
    """A model that is trained on noise, and its saver."""

    def __init__(self, directory: Path) -> None:
        self.model = torch.nn.Linear(40, 30)
        self.optimizer = torch.optim.Adam(self.model.parameters())
        self.root = directory / "checkpoints"
        self.tracker = Tracker(directory / "metrics.jsonl")
        self.saver = Saver(self.root, self.optimizer, self.tracker, keep_last=3)

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


def _slow(monkeypatch: pytest.MonkeyPatch, may_write: threading.Event) -> None:
    """Let checkpoints be written only once `may_write` is set."""
    at_once: Callable[..., Path] = checkpoint.save

    def save(*arguments: Any) -> Path:
        may_write.wait()
        return at_once(*arguments)

    monkeypatch.setattr(checkpoint, "save", save)


def test_training_goes_on_and_the_checkpoint_holds_what_was_there_when_it_was_asked_for(
    training: _Training, monkeypatch: pytest.MonkeyPatch
) -> None:
    may_write = threading.Event()
    _slow(monkeypatch, may_write)
    with training.saver:
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


def test_the_last_checkpoint_is_awaited(
    training: _Training, monkeypatch: pytest.MonkeyPatch
) -> None:
    may_write = threading.Event()
    _slow(monkeypatch, may_write)
    with training.saver:
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
    for metric, sign in (("test/loss", 1), ("validation/accuracy", -1)):
        count = draw.randint(1, 4)
        best, offered = Best(metric, count), []
        for progress in range(20):
            offered.append((draw.randint(0, 9) / 10, progress))
            wanted = sorted(offered, key=lambda e: (sign * e[0], e[1]))[:count]
            assert best.offer({metric: offered[-1][0]}, progress) == (offered[-1] in wanted)
            assert best.progresses == [progress for _, progress in wanted]
            again = Best(metric, count)
            again.restore(best.saved())
            assert again.progresses == best.progresses
