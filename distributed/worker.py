"""THE worker: what one rank does, under every launcher.

1. Build the model from the run's seed, or load the checkpoint.
2. Each epoch: train on this rank's part of every global batch, then add the sums of all ranks.
3. When due: evaluate this rank's part of each split, add the sums; rank 0 saves a checkpoint.
4. Rank 0 says what came of it.

Every rank decides the same from the same sums (a diverged loss, a target reached), so none
waits for another that has stopped. Only rank 0 writes.
"""

from __future__ import annotations

import logging
import math
import os
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from typing import Any

import torch
from torch import nn

from heliotrope import checkpoint
from heliotrope.checkpoint import Checkpoint
from heliotrope.data import Dataset, Split
from heliotrope.errors import RunFailedError
from heliotrope.evaluation import evaluate, named
from heliotrope.metrics import ClassificationMetrics
from heliotrope.models import build
from heliotrope.resources import peak_rss_bytes
from heliotrope.result import Target
from heliotrope.rundir import RunDirectory
from heliotrope.tasks import task_of
from heliotrope.tracking import Clock, Progress, Tracker
from heliotrope.training import Batch

from .attempt import Attempt, Place, Trained
from .early_stopping import EarlyStopping
from .group import device_of, sum_over_ranks
from .live import reported
from .order import batches, part_of, permutation
from .schedule import scheduled
from .threads import useful_threads
from .trainee import trainee_of

__all__ = ["Worker"]

_log = logging.getLogger(__name__)


class Worker:
    """One rank's model, optimizer and progress. The process group must have been joined.

    `tracker` is rank 0's, None on the others; `report` takes the epochs done, as a fraction.
    """

    def __init__(
        self,
        attempt: Attempt,
        place: Place,
        dataset: Dataset,
        tracker: Tracker | None,
        report: Callable[[float], None],
    ) -> None:
        run = attempt.run
        self._run, self._cfg = run, run.distributed
        self._place = place
        self._tracker = tracker
        self._report = report
        self._began = attempt.started
        self._home = RunDirectory(attempt.directory)
        self._device = device_of(attempt.share.device, place)
        self._dataset = dataset
        self._train = _on(self._device, dataset.train)
        self._task = task_of(dataset, run.loss.label_smoothing)
        self._model = build(run.model, self._task, run.seed).to(self._device)
        torch.set_num_threads(self._threads(attempt.share.threads))
        self._trainee = trainee_of(run, self._model, self._task, place, self._home.path)
        self._epoch = 0
        self._counts = Progress()
        self._clock = Clock.since(attempt.started)
        self._startup_seconds: float | None = None
        self._target = Target(run.target)
        self._early = EarlyStopping(self._cfg.early_stopping)
        self._final: dict[str, ClassificationMetrics] = {}
        if attempt.checkpoint is not None:
            self._resume(attempt.checkpoint)
        _log.info(
            "ready: process %d on %s, %s, %d thread(s)",
            os.getpid(),
            socket.gethostname(),
            self._device,
            torch.get_num_threads(),
        )

    def _threads(self, share: int) -> int:
        """Return the threads to use of this worker's share; as many as are asked for, if so."""
        if self._cfg.cpus_per_worker is not None or self._device.type != "cpu":
            return share
        parts = self._place.world_size * self._cfg.accumulation_steps
        largest = -(-self._cfg.batch_size // parts)
        return useful_threads(self._model, self._task, largest, share)

    def train(self) -> Trained:
        """Train the remaining epochs, or up to the target; every rank returns the same counts.

        Raises `RunFailedError` naming the epoch if the loss is not finite any more.
        """
        stop = self._target.stop or self._early.stop
        while self._epoch < self._cfg.epochs and not stop:
            self._epoch += 1
            self._train_epoch()
            last = self._epoch == self._cfg.epochs
            if last or self._epoch % self._cfg.evaluate_every == 0:
                stop = self._evaluate_epoch()
            if last or stop or self._epoch % self._cfg.checkpoint_every == 0:
                self._save()
        if not self._final:  # nothing was left to train
            self._evaluate()
        return self._trained()

    def _train_epoch(self) -> None:
        started = time.perf_counter()
        totals = self._trainee.train(self._task, self._batches())
        self._clock.train_seconds += time.perf_counter() - started
        loss_sum, examples = self._sum([totals.loss_sum, totals.examples])
        counts, (sent, received) = self._counts, self._trainee.exchanged
        counts.steps += totals.steps
        counts.examples_seen += int(examples)
        counts.bytes_up += totals.steps * sent
        counts.bytes_down += totals.steps * received
        self._check_finite("training loss", loss_sum)
        timing = self._trainee.take_timing(examples)
        self._emit("train", {"train/loss": loss_sum / examples}, timing=timing)

    def _batches(self) -> Iterator[Batch]:
        examples, size = len(self._train), self._cfg.batch_size
        order = permutation(self._run.seed, self._epoch, examples).to(self._device)
        plan = batches(
            self._train,
            order,
            size,
            self._place,
            self._run.seed,
            self._counts.steps,
            self._cfg.mixup,
        )
        if self._startup_seconds is None:
            self._startup_seconds = time.time() - self._began
        steps = -(-examples // size)
        cfg, place = self._cfg, (self._counts.steps, self._cfg.epochs * steps)
        lr = self._run.optimizer.lr
        plan = scheduled(plan, self._trainee.optimizer, lr, cfg, place)
        return reported(plan, steps, self._epoch - 1, self._report)

    def _evaluate_epoch(self) -> bool:
        """Evaluate, tell, and return whether the run is to stop here."""
        values = self._evaluate()
        averaged = {} if self._cfg.ema_decay is None else {"weights": "ema"}
        self._emit("evaluate", values, **averaged)
        if early := self._early.observe(values):
            _log.info("stopping early after epoch %d: %s", self._epoch, self._early)
        unit = {"epoch": self._epoch}
        return self._target.observe(values, unit, self._counts, self._clock) or early

    def _evaluate(self) -> dict[str, float]:
        """Measure each split that has examples; every rank a part of it, the sums are exact."""
        values: dict[str, float] = {}
        splits = {"validation": self._dataset.validation, "test": self._dataset.test}
        model = self._trainee.evaluated()
        for name, split in splits.items():
            if len(split):
                self._final[name] = self._measure(model, split)
                values |= named(self._final[name], name)
                self._check_finite(f"{name} loss", self._final[name].loss_sum)
        return values

    def _measure(self, model: nn.Module, split: Split) -> ClassificationMetrics:
        part = part_of(len(split), self._place)
        mine = evaluate(
            model,
            self._task,
            Split(split.inputs[part], split.targets[part]),
            self._run.evaluation_batch_size,
        )
        total = sum_over_ranks(torch.from_numpy(mine.to_vector()), self._place, self._device)
        return type(mine).from_vector(total.numpy())

    def _check_finite(self, what: str, loss_sum: float) -> None:
        if not math.isfinite(loss_sum):
            raise RunFailedError(
                f"The {what} is {loss_sum} in epoch {self._epoch}: training has diverged. Lower "
                f"optimizer.lr={self._run.optimizer.lr:g} and start again in another "
                "hydra.run.dir; the checkpoints here hold the epochs before."
            )

    def _sum(self, values: list[float]) -> list[float]:
        shared = torch.tensor(values, dtype=torch.float64)
        total: list[float] = sum_over_ranks(shared, self._place, self._device).tolist()
        return total

    def _emit(self, event: str, values: Mapping[str, float], **others: Any) -> None:
        unit = {"epoch": self._epoch}
        if self._tracker is not None:
            self._tracker.progress(event, self._counts, self._clock, unit, **values, **others)
            said = "  ".join(f"{name} {value:.6g}" for name, value in values.items())
            _log.info("epoch %d: %s", self._epoch, said)

    def _save(self) -> None:
        snapshot = self._trainee.snapshot()
        if self._tracker is None:
            return
        self._tracker.sync()
        path = checkpoint.save(
            self._home.checkpoints,
            Checkpoint(
                progress=self._counts.steps,
                model=snapshot.model,
                arrays=snapshot.arrays,
                state={
                    **snapshot.rest,
                    "epoch": self._epoch,
                    "scaling": asdict(self._dataset.scaling),
                    "counts": asdict(self._counts),
                    "seconds": self._clock.seconds,
                    "train_seconds": self._clock.train_seconds,
                    "target": self._target.saved(),
                    "early_stopping": self._early.saved(),
                    "metrics_offset": self._tracker.offset,
                },
            ),
        )
        _log.info("checkpoint %s holds %d epochs", path.name, self._epoch)

    def _resume(self, progress: int) -> None:
        path = checkpoint.path_of(self._home.checkpoints, progress)
        saved = checkpoint.load(path)
        state = saved.state
        self._trainee.restore(saved, path)
        self._epoch = state["epoch"]
        self._counts = Progress(**state["counts"])
        self._clock.seconds_before = state["seconds"]
        self._clock.train_seconds = state["train_seconds"]
        self._target.restore(state["target"])
        if "early_stopping" in state:  # version 0.1 did not stop early
            self._early.restore(state["early_stopping"])
        _log.info("resumed from checkpoint %s, after epoch %d", path.name, self._epoch)

    def _trained(self) -> Trained:
        self._trainee.close()
        now = time.time() - self._began
        [peak] = self._sum([float(peak_rss_bytes())])
        return Trained(
            epochs=self._epoch,
            counts=self._counts,
            final=self._final,
            target=self._target.summary(),
            seconds_before=self._clock.seconds_before,
            train_seconds=self._clock.train_seconds,
            startup_seconds=now if self._startup_seconds is None else self._startup_seconds,
            peak_rss_bytes=int(peak),
        )


def _on(device: torch.device, split: Split) -> Split:
    return Split(split.inputs.to(device), split.targets.to(device))
