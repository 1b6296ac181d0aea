"""The batches of an epoch: one permutation cut in pieces, or with privacy independent draws."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from heliotrope.config import Run
from heliotrope.data import Examples
from heliotrope.tasks import Task
from heliotrope.training.loop import TrainingBatch

from ..topology import Topology
from .example_order import batches, permutation, poisson_draws
from .mixup import Mixup

__all__ = ["EpochBatches"]


class EpochBatches:
    """One rank's part of every global batch.

    Parameters
    ----------
    run
        Whose seed, batch size and mixup are meant.
    train, weights
        The training examples, and the weight of each: int64 [N].
    task, topology
        The task, and which rank this is.
    present
        Which of the examples take part, bool [N]; None for all.
    stream
        Where each step draws every example by itself, what draws depend on beside the run's seed;
        it is asked for when an epoch begins.
    """

    def __init__(
        self,
        run: Run,
        train: Examples,
        weights: Tensor,
        task: Task,
        topology: Topology,
        *,
        present: Tensor | None = None,
        stream: Callable[[], Sequence[str]] | None,
    ) -> None:
        cfg = run.distributed
        self._run, self._train, self._weights, self._topology = run, train, weights, topology
        self._size, self._stream = cfg.batch_size, stream
        self._mixup = Mixup(train, task.inputs, cfg.mixup, run.seed) if cfg.mixup else None
        self._sizes: list[int] = []
        self._present = present
        # With independent draws, those who are absent are drawn as well, and add nothing: so the
        # others' chances do not tell how many there are.
        drawn = len(train) if stream or present is None else int(present.sum())
        self.steps = -(-drawn // cfg.batch_size)
        """Of an epoch."""
        self.weight = 0
        """That of all examples of the epoch that was begun last."""

    def begin(self, epoch: int, first: int, done: int) -> Iterator[TrainingBatch]:
        """Return what is left of `epoch`, counted from 1, from its step `first` on.

        `done` is the number of steps of the run before that.
        """
        before = done - first
        if self._stream is not None:
            steps = range(before, before + self.steps)
            run_seed, examples = self._run.seed, len(self._train)
            draws = poisson_draws(run_seed, steps, examples, self._size, self._stream())
            draws = [self._of_present(draw) for draw in draws]
            order, self._sizes = torch.cat(draws), [len(draw) for draw in draws]
            self.weight = int(self._weights[order].sum())
        else:
            order = self._of_present(permutation(self._run.seed, epoch, len(self._train)))
            last = len(order) - self._size * (self.steps - 1)
            self._sizes = [self._size] * (self.steps - 1) + [last]
            self.weight = int(self._weights[order].sum())
        return batches(
            self._train,
            self._weights,
            order,
            self._sizes,
            self._topology,
            self._run.seed,
            steps_before=before,
            first=first,
            change=self._mixup,
        )

    def _of_present(self, rows: Tensor) -> Tensor:
        return rows if self._present is None else rows[self._present[rows]]

    def examples(self, step: int) -> int:
        """Return the number of examples of the global batch of a step of the epoch."""
        return self._sizes[step]
