"""THE worker: what one rank does, under every launcher.

1. Build the model from the run's seed, or load the checkpoint.
2. Each epoch: train on this rank's part of every global batch, then add the sums of all ranks.
3. When due: evaluate this rank's part of each split, add the sums; rank 0 saves a checkpoint,
   in mid-epoch too: after any step, what is left of the epoch follows from its number.
4. Rank 0 says what came of it.

Every rank decides the same from the same sums (a diverged loss, a target reached, a request to
stop), so none waits for another that has stopped. Only rank 0 writes.
"""

from __future__ import annotations

import logging
import math
import os
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from heliotrope.data import Dataset
from heliotrope.evaluation import named
from heliotrope.metrics import Metrics
from heliotrope.runs import checkpoint
from heliotrope.runs.checkpoint import Checkpoint
from heliotrope.runs.clock import Clock
from heliotrope.runs.directory import RunDirectory
from heliotrope.runs.events import Progress, Tracker
from heliotrope.runs.pruning import Pruning
from heliotrope.system.resources import peak_rss_bytes
from heliotrope.tasks import example_weights, task_of
from heliotrope.training.loop import TrainingBatch, TrainTotals

from ..attempt import RunAttempt, TrainingResult
from ..communication.process_group import device_of, sum_over_ranks
from ..privacy.protection import protected
from ..strategies.buffers import synchronised, with_own_buffers
from ..strategies.build import build_engine, build_model
from ..topology import Topology
from .criteria import Criteria
from .divergence import check_finite
from .epoch_batches import EpochBatches
from .evaluation import evaluate_splits
from .progress import Reporter
from .saver import saver_of
from .schedule import LearningRate
from .step_log import StepLog
from .stopping import Agreement
from .threads import worker_threads

__all__ = ["Worker"]

_log = logging.getLogger(__name__)


class Worker:
    """One rank's model, optimizer and progress. The process group must have been joined.

    `asked` says whether this rank was asked to stop. `tracker` is rank 0's, None on the others;
    `report` takes the epochs done, as a fraction.
    """

    def __init__(
        self,
        attempt: RunAttempt,
        topology: Topology,
        dataset: Dataset,
        asked: Callable[[], bool],
        tracker: Tracker | None,
        report: Callable[[float], None],
    ) -> None:
        run = attempt.run
        self._run, self._cfg = run, run.distributed
        self._topology = topology
        self._tracker = tracker
        self._progress = Reporter(report)
        self._run_dir = RunDirectory(attempt.directory)
        self._device = device_of(attempt.resources.device, topology)
        self._dataset = dataset
        self._train = dataset.train.to(self._device)
        self._task = task_of(dataset, run)
        self._model = self._built(attempt.resources.threads)
        ledger, where = self._run_dir.ledger, self._run_dir.path
        self._protection = protected(run, dataset, topology, self._device, ledger)
        self._engine = build_engine(run, self._model, self._task, topology, where, self._protection)
        self._order = EpochBatches(
            run,
            self._train,
            example_weights(self._task, dataset.train),
            self._task,
            topology,
            present=dataset.present,
            stream=None if self._protection is None else self._protection.stream,
        )
        self._learning_rate = LearningRate(run, self._engine.optimizer, self._order.steps)
        self._agreement = Agreement(asked, topology, self._device)
        self._epoch = 0  # epochs done
        self._step = 0  # steps done of the next one
        self._batches: Iterator[TrainingBatch] | None = None  # what is left of that one
        self._totals = TrainTotals()  # what this rank has summed up in it
        self._evaluated = True  # the last epoch done, or there is nothing to evaluate yet
        self._counts = Progress()
        self._clock = Clock.going_on(attempt.start.clock)
        self._seconds_before = attempt.start.before
        self._startup_seconds: float | None = None
        pruning = Pruning(attempt.pruning, self._last_epoch)
        self._criteria = Criteria(run, self._task.metrics.directions, pruning)
        self._final: dict[str, Metrics] = {}
        self._saver = saver_of(attempt, topology, self._engine.optimizer, tracker)
        self._step_log = self._step_log_of()
        if attempt.checkpoint is not None:
            self._resume(attempt.checkpoint)
        if self._protection is not None:
            self._protection.begin(self._epoch)
        self._timed = self._counts.examples_seen  # up to here the speed is told
        _log.info(
            "ready: process %d on %s, %s, %d thread(s)",
            os.getpid(),
            socket.gethostname(),
            self._device,
            torch.get_num_threads(),
        )

    def _built(self, share: int) -> nn.Module:
        """Return the model; from here on torch uses as many threads of this worker's as help."""
        where, workers = self._run_dir.path, self._topology.world_size
        model = build_model(self._run, self._task, where, self._device)
        if self._cfg.sync_batchnorm:
            model = synchronised(model)
        threads = worker_threads(self._cfg, model, self._task, self._device, workers, share)
        torch.set_num_threads(threads)
        return model

    def _step_log_of(self) -> StepLog | None:
        every = self._cfg.log_every_steps
        if every is None:
            return None
        log = StepLog(every, self._engine.optimizer, self._tracker, self._sum)
        self._engine.note_losses(log.note_loss)
        return log

    def train(self) -> TrainingResult:
        """Train the remaining epochs, up to the target, or until asked to stop.

        Every rank returns the same counts. Raises `RunFailedError` naming the epoch if the loss
        is not finite any more.
        """
        ledger = nullcontext() if self._protection is None else closing(self._protection)
        with ledger, self._saver or nullcontext():
            return self._train_all()

    def _train_all(self) -> TrainingResult:
        done = self._criteria.stop or self._epoch >= self._last_epoch
        while not done:
            due = self._train_steps()
            if self._step == self._order.steps:
                done, due = self._end_epoch()
            if due:
                self._save()
            if self._agreement.reached and not done:
                return self._trained(stopped=True)
        if not self._final:  # nothing was left to train
            self._judge_epoch()
            self._save()
        return self._trained(stopped=False)

    @property
    def _last_epoch(self) -> int:
        return self._cfg.epochs if self._protection is None else self._protection.last_epoch

    def _train_steps(self) -> bool:
        """Train up to the end of the epoch, or until a checkpoint is due; return whether it is.

        Each step:

        1. Take this rank's part of the next global batch, and set the learning rate.
        2. Let the engine take the step: gradients are exchanged in its backward pass.
        3. Count, and let the engine do what is due between steps, such as an exchange of weights.
        4. Keep the step's loss; stop where the ranks agree to, or where a checkpoint is due.
        """
        started = time.perf_counter()
        if self._batches is None:
            self._batches = self._order.begin(self._epoch + 1, self._step, self._counts.steps)
            if self._protection is not None:
                self._protection.charge(self._epoch + 1)
        if self._startup_seconds is None:
            self._startup_seconds = self._clock.seconds - self._seconds_before
        self._engine.begin(self._totals)
        for batch in self._batches:
            self._progress.before_step(self._epoch, self._step, self._order.steps)
            self._learning_rate.set(self._counts.steps)
            self._engine.step(batch)
            self._count_step(*self._engine.after_step(self._step + 1, self._order.steps))
            if self._step_log is not None:
                weight = round(batch.divisor * self._topology.world_size)
                self._step_log.after_step(self._epoch + 1, weight, self._counts, self._clock)
            if self._saver is not None:
                self._saver.raise_if_failed()
            if self._agreement.after_step() or self._due():
                break
        self._engine.finish()
        self._clock.train_seconds += time.perf_counter() - started
        return self._due()

    def _count_step(self, sent: int, received: int) -> None:
        counts = self._counts
        counts.examples_seen += self._order.examples(self._step)
        counts.steps += 1
        counts.bytes_up += sent
        counts.bytes_down += received
        self._step += 1

    def _due(self) -> bool:
        """Return whether the step just done is one to save."""
        every = self._cfg.checkpoint_every_steps
        return self._agreement.reached or (every is not None and self._counts.steps % every == 0)

    def _end_epoch(self) -> tuple[bool, bool]:
        """Tell of the epoch; return whether it was the last, and whether it is to be saved."""
        due = self._due()
        if self._step_log is not None:
            self._step_log.flush()
        [loss_sum] = self._sum([self._totals.loss_sum])
        self._epoch, self._step = self._epoch + 1, 0
        weight = self._order.weight
        self._batches, self._totals = None, TrainTotals()
        self._check_trained(loss_sum)
        timing = self._engine.take_timing(self._counts.examples_seen - self._timed)
        self._timed = self._counts.examples_seen
        spent = {} if self._protection is None else self._protection.told(self._epoch)
        values = {"train/loss": loss_sum / max(1, weight), **spent}
        self._emit("train", values, timing=timing)
        last = self._epoch >= self._last_epoch
        due = due or self._epoch % self._cfg.checkpoint_every == 0
        self._evaluated = False
        if last or self._epoch % self._cfg.evaluate_every == 0:
            measured, best = self._judge_epoch()
            self._criteria.observe_early_stopping(measured, self._epoch)
            due, last = due or best, last or self._criteria.stop
        return last, due or last

    def _judge_epoch(self) -> tuple[dict[str, float], bool]:
        """Evaluate the last epoch done; return the values, and if they are the best so far.

        If that was done before, nothing is told again, but a new target sees it.
        """
        values, best = self._evaluate(), False
        if not self._evaluated:
            averaged = {} if self._cfg.ema_decay is None else {"weights": "ema"}
            self._emit("evaluate", values, **averaged)
            best = self._criteria.observe_best(values, self._counts.steps)
        self._criteria.observe_target(values, self._epoch, self._counts, self._clock)
        self._evaluated = True
        return values, best

    def _evaluate(self) -> dict[str, float]:
        """Measure each split that has examples; every rank a part of it, the sums are exact."""
        size, where = self._run.evaluation_batch_size, (self._topology, self._device)
        self._final = evaluate_splits(self._engine, self._task, self._dataset, size, *where)
        values: dict[str, float] = {}
        for name, metrics in self._final.items():
            values |= named(metrics, name)
            self._check_finite(f"{name} loss", float(metrics.sums.sum()))
        return values

    def _check_trained(self, loss_sum: float) -> None:
        """Raise if training has diverged, unless a single protected example may have such a loss.

        Its gradient adds nothing; a run that ends would tell of it.
        """
        if self._protection is None:
            self._check_finite("training loss", loss_sum)

    def _check_finite(self, what: str, loss_sum: float) -> None:
        check_finite(self._run, self._epoch + (self._step > 0), what, loss_sum)

    def _sum(self, values: list[float]) -> list[float]:
        shared = torch.tensor(values, dtype=torch.float64)
        total: list[float] = sum_over_ranks(shared, self._topology, self._device).tolist()
        return total

    def _emit(self, event: str, values: Mapping[str, float], **others: Any) -> None:
        unit = {"epoch": self._epoch}
        if self._tracker is not None:
            self._tracker.progress(event, self._counts, self._clock, unit, **values, **others)
            said = "  ".join(f"{name} {value:.6g}" for name, value in values.items())
            _log.info("epoch %d: %s", self._epoch, said)

    def _save(self) -> None:
        if self._step_log is not None:
            self._step_log.flush()
        sums = [0.0] * self._topology.world_size
        sums[self._topology.rank] = self._totals.loss_sum
        sums = self._sum(sums)  # each rank's own, for all to know
        self._check_trained(sum(sums))
        snapshot = self._engine.snapshot()
        if self._saver is None:
            return
        state = {
            **snapshot.rest,
            "epoch": self._epoch,
            "step": self._step,
            "evaluated": self._evaluated,
            "loss_sums": sums,
            "preparation": self._dataset.kept,
            "counts": asdict(self._counts),
            "seconds": self._clock.seconds,
            "train_seconds": self._clock.train_seconds,
            **self._criteria.saved(),
            "privacy": None if self._protection is None else self._protection.saved(),
            "metrics_offset": 0 if self._tracker is None else self._tracker.offset,
        }
        # A forward pass may change buffers, and the saver copies beside the next one.
        model = with_own_buffers(self._model, snapshot.model)
        arrays = with_own_buffers(self._model, snapshot.arrays)
        present = Checkpoint(self._counts.steps, model, arrays, state)
        self._saver.save(present, self._criteria.kept)
        _log.info("step %d: saving epoch %d, step %d", self._counts.steps, self._epoch, self._step)

    def _resume(self, progress: int) -> None:
        path = checkpoint.path_of(self._run_dir.checkpoints, progress)
        saved = checkpoint.load(path, mapped=True)
        with checkpoint.understood(path):
            self._restore(saved, path)
        reached = (path.name, self._epoch, self._step)
        _log.info("resumed from checkpoint %s, after epoch %d, step %d", *reached)

    def _restore(self, saved: Checkpoint, path: Path) -> None:
        state = saved.state
        checkpoint.check_preparation(self._dataset.kept, state, path)
        self._engine.restore(saved, path)
        self._epoch = state["epoch"]
        self._step = state.get("step", 0)  # version 0.1 saved at the end of epochs only
        self._evaluated = state.get("evaluated", True)
        self._totals.loss_sum = self._own(state.get("loss_sums", [0.0]))
        self._counts = Progress(**state["counts"])
        self._clock.train_seconds = state["train_seconds"]
        self._criteria.restore(state)

    def _own(self, sums: list[float]) -> float:
        """Return this rank's of the saved sums; with another world size, rank 0 takes them all."""
        if len(sums) == self._topology.world_size:
            return sums[self._topology.rank]
        return math.fsum(sums) if self._topology.rank == 0 else 0.0

    def _trained(self, *, stopped: bool) -> TrainingResult:
        self._engine.close()
        [peak] = self._sum([float(peak_rss_bytes())])
        now, startup = self._clock.seconds, self._startup_seconds
        return TrainingResult(
            epochs=self._epoch,
            counts=self._counts,
            final={name: metrics.to_vector() for name, metrics in self._final.items()},
            target=self._criteria.summary(),
            seconds=now,
            train_seconds=self._clock.train_seconds,
            startup_seconds=now - self._seconds_before if startup is None else startup,
            peak_rss_bytes=int(peak),
            stopped=stopped,
            pruned=self._criteria.pruned,
        )
