"""What to set before a run: a learning rate, and a batch size, found by trying some.

Both train a model in this process, on the training data of a run, and throw it away.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import count
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from heliotrope.config import Run
from heliotrope.data import load
from heliotrope.errors import ConfigError, RunFailedError
from heliotrope.models import build
from heliotrope.seeding import seed, torch_generator
from heliotrope.system.resources import pick_device
from heliotrope.tasks import Task, example_weights, task_of
from heliotrope.training.loop import (
    Recipe,
    TrainingBatch,
    penalty_of,
    train_batches,
)
from heliotrope.training.optimizers import GroupRates, build_optimizer
from heliotrope.training.trial import check_step

__all__ = ["Finding", "Trainer", "find_batch_size", "find_lr"]

_LOWEST, _HIGHEST, _STEPS = 1e-6, 10.0, 120  # learning rates tried, evenly on a log scale
_SMOOTHING = 0.9
_ROUGH = 10  # losses at the start that are averages of few
_BELOW = 10.0  # a larger part of it, 1/7 or 1/5, is too much for Adam with 8 examples a batch
_DIVERGED = 4.0  # times the best loss
_SMALLEST = 8  # examples
_LONG = 5.0  # seconds: larger batches are not tried after a step this long


@dataclass(frozen=True)
class Finding:
    """What was tried and measured, and which of it to take."""

    tried: Sequence[float]
    measured: Sequence[float]
    best: float


class Trainer(Protocol):
    """What takes steps: `optimizer` is what sets their rate."""

    optimizer: Optimizer

    def step(self, batch: TrainingBatch) -> float:
        """Take one step and return the mean loss before it."""


class _Plain:
    """The steps of the inner loop that both modes share."""

    def __init__(self, run: Run, model: nn.Module, task: Task) -> None:
        self.optimizer = build_optimizer(run.optimizer, model.parameters())
        recipe = Recipe(clip_norm=run.optimizer.clip_norm)
        self._train = partial(
            train_batches,
            model,
            self.optimizer,
            task,
            penalty=penalty_of(model, run.loss),
            recipe=recipe,
        )

    def step(self, batch: TrainingBatch) -> float:
        return self._train([batch]).loss


_MakeTrainer = Callable[[Run, nn.Module, Task], Trainer]


class _Trial:
    """A model of `run` in training, from its first weights on.

    Raises `ConfigError` for privacy, whose promise would not count these steps.
    """

    def __init__(self, run: Run, trainer: _MakeTrainer = _Plain) -> None:
        if (privacy := run.distributed.privacy.name) != "none":
            raise ConfigError(
                f"distributed/privacy={privacy} accounts for the steps of a run, not for those "
                "that are tried before, and what is found by them tells of the examples. Set "
                "distributed/privacy=none to try some, on data that need not be protected."
            )
        dataset = load(run.data, run.seed, task=run.task_name, fold=run.data_fold)
        device = pick_device(run.device)
        self._seed = run.seed
        self._task = task_of(dataset, run)
        built = build(run.model, self._task, run.seed)
        check_step(run, built, self._task)
        self._model = built.to(device)
        self._trainer = trainer(run, self._model, self._task)
        self._lr, self._rates = run.optimizer.lr, GroupRates(self._trainer.optimizer)
        self.train = dataset.train.to(device)
        self._weights = example_weights(self._task, dataset.train)

    def batches(self, size: int) -> Iterator[TrainingBatch]:
        """Yield batches of `size`, none smaller, for ever, in an order anew each epoch."""
        step, size = count(), min(size, len(self.train))
        for epoch in count(1):
            generator = torch_generator(self._seed, "find", epoch)
            order = torch.randperm(len(self.train), generator=generator)
            whole = order[: len(order) // size * size]
            for rows in torch.split(whole, size):
                yield self._batch(rows, seed(self._seed, "dropout", next(step)))

    def _batch(self, rows: Tensor, step_seed: int) -> TrainingBatch:
        weight = int(self._weights[rows].sum())
        return TrainingBatch(self.train.take(rows), weight, max(1, weight), step_seed)

    def step(self, batch: TrainingBatch, lr: float) -> float:
        """Take one step and return the mean loss before it."""
        self._rates.multiply(lr / self._lr)
        return self._trainer.step(batch)


def find_lr(run: Run) -> Finding:
    """Train with a learning rate that rises each step; take one below that of the lowest loss.

    The range test of Smith (2017): `measured` is the smoothed loss at each rate, up to where
    training diverges. It is lowest just before that, and a tenth of the rate there trains well;
    where it falls fastest is a matter of chance in small batches. Raises `RunFailedError` if the
    loss does not fall at any.
    """
    trial = _Trial(run)
    tried: list[float] = []
    measured: list[float] = []
    average = 0.0
    for number, batch in zip(range(_STEPS), trial.batches(run.distributed.batch_size)):  # noqa: B905 - the batches have no end
        lr = _LOWEST * (_HIGHEST / _LOWEST) ** (number / (_STEPS - 1))
        average = _SMOOTHING * average + (1 - _SMOOTHING) * trial.step(batch, lr)
        smooth = average / (1 - _SMOOTHING ** (number + 1))
        if not math.isfinite(smooth) or (measured and smooth > _DIVERGED * min(measured)):
            break
        tried.append(lr)
        measured.append(smooth)
    settled = measured[_ROUGH:]
    if not settled or min(settled) == settled[0]:
        raise RunFailedError(
            f"The loss falls at no learning rate from {_LOWEST:g} to {_HIGHEST:g}. Look at the "
            "data, or set optimizer by hand."
        )
    lowest = tried[_ROUGH + settled.index(min(settled))]
    return Finding(tried, measured, lowest / _BELOW)


def find_batch_size(run: Run, trainer: _MakeTrainer) -> Finding:
    """Time a step of ever larger batches; take the smallest that is nearly as fast as any.

    `trainer` takes the steps as a worker of the run will: in its precision, compiled, and so on.
    `tried` are examples a worker, doubled up to the training set, a step of seconds, or the
    memory of the GPU; `measured` examples a second; within a tenth of the best is near. Raises
    `RunFailedError` if the smallest batch does not fit the GPU.
    """
    trial = _Trial(run, trainer)
    tried: list[int] = []
    measured: list[float] = []
    size = min(_SMALLEST, len(trial.train))
    while size <= len(trial.train):
        try:
            seconds = _seconds(trial, size)
        except torch.cuda.OutOfMemoryError:
            break
        tried.append(size)
        measured.append(size / seconds)
        if seconds > _LONG:
            break
        size *= 2
    if not tried:
        raise RunFailedError(
            f"A step on {_SMALLEST} examples does not fit the GPU. Use a smaller model."
        )
    near = (n for n, rate in zip(tried, measured, strict=True) if rate >= 0.9 * max(measured))
    return Finding(tried, measured, next(near))


def _seconds(trial: _Trial, size: int) -> float:
    """Return the seconds of the fastest of a few steps, after one that does not count."""
    best = math.inf
    batches = trial.batches(size)
    for number in range(4):
        batch = next(batches)
        started = time.perf_counter()
        trial.step(batch, lr=1e-9)  # its result waits for the GPU
        if number:
            best = min(best, time.perf_counter() - started)
    return best
