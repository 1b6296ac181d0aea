"""Steps of a run with DP-SGD, taken again on chosen examples, to see what they release.

The engine and the protection are the run's own. What differs is what they are given: examples
whose gradients are huge or no numbers, in batches of any size, on one worker or on several.
Optimizer, schedule and penalties of weights come after what is released, and are left out.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from heliotrope.audit.checks import (
    FALSE_ALARM,
    Check,
    Noise,
    check_denominator,
    check_noise,
    check_sensitivity,
)
from heliotrope.config import Run
from heliotrope.config.training import LossConfig
from heliotrope.data import Batch, Dataset
from heliotrope.data.canaries import with_canaries
from heliotrope.models import build
from heliotrope.seeding import seed
from heliotrope.tasks import task_of
from heliotrope.training.loop import TrainingBatch, TrainTotals

from ..privacy.names import privacy_of
from ..privacy.protection import Protection
from ..strategies.private import PrivateEngine
from ..topology import Topology

__all__ = ["mechanism_checks", "why_not_checked"]

_NUMBERS = 4000  # of noise that are looked at, at least
_WORKERS = 3
_HUGE = 1e3  # times an input
_SIZES = (0, 1, 7, 50)  # of batches

_Array = NDArray[np.float64]


def why_not_checked(run: Run) -> str | None:  # noqa: ARG001 - of all protected runs, none
    """Return why the steps of a protected run cannot be taken again; None if they can."""
    return None


def mechanism_checks(run: Run, dataset: Dataset, ledger: Path | None) -> list[Check]:
    """Return what was found of the steps of `run`; nothing if it is not protected.

    `ledger` is the run's, which stays as it is; None of a run that has not begun.
    """
    privacy = privacy_of(run.distributed)
    if privacy is None:
        return []
    dataset = with_canaries(dataset, run.audit.canaries, run.seed)
    with tempfile.TemporaryDirectory() as folder:
        copied = Path(folder) / "privacy.jsonl"
        if ledger is not None and ledger.exists():
            shutil.copyfile(ledger, copied)
        with _replay(run, dataset, copied) as replay:
            return replay.checks()


@contextmanager
def _replay(run: Run, dataset: Dataset, ledger: Path) -> Iterator[_Replay]:
    plain = replace(
        run,
        optimizer=replace(run.optimizer, clip_norm=None),
        loss=LossConfig(label_smoothing=run.loss.label_smoothing),
        # The noise is known by now: no budget needs to be divided again.
        distributed=replace(run.distributed, profile=False, ema_decay=None),
    )
    examples = len(dataset.train)
    protection = Protection(plain, examples, Topology(), torch.device("cpu"), ledger)
    try:
        protection.begin(0)
        yield _Replay(plain, dataset, protection)
    finally:
        protection.close()


class _Replay:
    """Takes single steps of a run, and returns what they release."""

    def __init__(self, run: Run, dataset: Dataset, protection: Protection) -> None:
        privacy = privacy_of(run.distributed)
        assert privacy is not None
        self._task = task_of(dataset, run)
        self._model = build(run.model, self._task, run.seed)
        self._start = {n: v.clone() for n, v in self._model.state_dict().items()}
        self._run_seed = run.seed
        self._trained = [p for p in self._model.parameters() if p.requires_grad]
        self._clip, self._protection = privacy.clip, protection
        # What was promised, from the ledger and the keys alone: not from what adds the noise.
        self._expected = min(run.distributed.batch_size, len(dataset.train))
        self._deviation = protection.noise_multiplier * privacy.clip
        self._rows = dataset.train.take(torch.arange(min(5, len(dataset.train))))
        self._alone = self._engine(run, Topology())
        self._sums: Callable[[Tensor], Tensor] = torch.clone
        self._weights = 1.0  # times those that the model begins with
        self._together = [
            self._engine(run, Topology(rank=rank, world_size=_WORKERS)) for rank in range(_WORKERS)
        ]

    def _engine(self, run: Run, topology: Topology) -> PrivateEngine:
        engine = PrivateEngine(
            run,
            self._model,
            self._task,
            topology,
            Path(),
            self._protection,
            self._exchanged,
        )
        engine.begin(TrainTotals())
        return engine

    def _exchanged(self, mine: Tensor) -> Tensor:
        return self._sums(mine)

    def checks(self) -> list[Check]:
        """Return what was found."""
        releases = max(2, -(-_NUMBERS // sum(p.numel() for p in self._trained)))
        nothing = self._batch(self._rows, 0)
        alone = [self._alone_sum(nothing, number) for number in range(releases)]
        together = [self._sum_together(nothing, number) for number in range(2)]
        found = [
            Noise("1 worker", np.stack(alone)),
            Noise(f"{_WORKERS} workers", np.stack(together)),
        ]
        return [
            check_sensitivity(self._moves(), self._clip),
            *check_noise(found, self._deviation, FALSE_ALARM),
            check_denominator(self._denominators(alone[0]), self._expected),
        ]

    def _moves(self) -> dict[str, float]:
        """Return how far the sum moves when an example joins others, by what is special about it.

        The noise of a step is the same with and without it, and so leaves the difference.
        """
        moves: dict[str, float] = {}
        for loud in (1.0, 10.0, 100.0):
            self._weights = loud
            before = self._alone_sum(self._rows, 1)
            for factor in (0.0, 1.0, -_HUGE, _HUGE, float("nan")):
                one = self._scaled(factor)
                both = {n: torch.cat([v, one[n]]) for n, v in self._rows.items()}
                moved = float(np.linalg.norm(self._alone_sum(both, 1) - before))
                long = self._length(one) > 1.05 * self._clip
                name = f"inputs times {factor:g}, weights times {loud:g}"
                moves[f"huge: {name}" if long else name] = moved
            if any(name.startswith("huge") for name in moves):
                break
        self._weights = 1.0
        return moves

    def _denominators(self, noise: _Array) -> dict[int, float]:
        """Return by what the sum is divided, by the size of the batch.

        Gradients that are no numbers add nothing, so that the noise is left, divided.
        """
        self._weights = float("nan")
        found = {}
        for size in _SIZES:
            alone = self._alone_sum(self._batch(self._rows, size), 0) / self._expected
            found[size] = float(noise @ noise / (noise @ alone)) if noise @ alone else 0.0
        self._weights = 1.0
        return found

    @staticmethod
    def _batch(rows: Batch, size: int) -> Batch:
        """Return `size` examples: the rows, again and again."""
        first = next(iter(rows.values()))
        return {name: value[torch.arange(size) % len(first)] for name, value in rows.items()}

    def _scaled(self, factor: float) -> Batch:
        """Return the first row, what is no target of it times `factor`."""
        return {
            name: value[:1] * factor
            if value.is_floating_point() and name not in self._task.targets
            else value[:1]
            for name, value in self._rows.items()
        }

    def _length(self, one: Batch) -> float:
        """Return the norm of an example's gradient, before it is clipped."""
        self._restore()
        loss = self._task.losses(self._task.call(self._model, one), one).sum()
        places = float(np.prod(self._task.output_shape(self._task.facts.example)[1:-1]))
        found = torch.autograd.grad(loss / places, self._trained, materialize_grads=True)
        return float(torch.stack([g.double().norm() for g in found]).norm())

    def _alone_sum(self, fields: Batch, number: int) -> _Array:
        """Return the noisy sum of a step of one worker, float64 [D]."""
        self._sums = torch.clone
        return self._step(self._alone, fields, number)

    def _sum_together(self, fields: Batch, number: int) -> _Array:
        """Return the noisy sum of a step of several workers, of which the first has all examples.

        Each takes it twice: to see what it hands over, and with the sum of all in return.
        """
        handed: list[Tensor] = []

        def note(mine: Tensor) -> Tensor:
            handed.append(mine.clone())
            return mine.clone()

        nothing = self._batch(fields, 0)
        parts = [fields, *[nothing] * (_WORKERS - 1)]
        self._sums = note
        for engine, part in zip(self._together, parts, strict=True):
            self._step(engine, part, number)
        whole = torch.stack(handed).sum(dim=0)
        self._sums = lambda _: whole.clone()
        each = [
            self._step(engine, part, number)
            for engine, part in zip(self._together, parts, strict=True)
        ]
        # Ranks that release different sums are seen as noise that one worker would not have.
        return max(each, key=lambda values: float(np.abs(values - each[0]).max()))

    def _step(self, engine: PrivateEngine, fields: Batch, number: int) -> _Array:
        self._restore()
        count = len(next(iter(fields.values())))
        drawn = seed(self._run_seed, "audited step", number)
        engine.step(TrainingBatch(fields, weight=count, divisor=max(1, count), seed=drawn))
        engine.finish()
        released = torch.cat([p.grad.reshape(-1) for p in self._trained if p.grad is not None])
        return released.double().numpy() * self._expected

    def _restore(self) -> None:
        """Put the weights back that the last step has changed, times what is asked for."""
        for name, value in self._model.state_dict().items():
            value.copy_(self._start[name])
        with torch.no_grad():
            for parameter in self._trained:
                parameter.mul_(self._weights)
