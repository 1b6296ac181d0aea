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
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn

from heliotrope import checkpoint
from heliotrope.checkpoint import Checkpoint, Part
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
from heliotrope.training import Batch, TrainTotals

from .attempt import Attempt, Place, Trained
from .early_stopping import EarlyStopping
from .group import device_of, sum_over_ranks
from .live import reported
from .order import batches, part_of, permutation
from .retention import Best
from .saver import Saver
from .schedule import scheduled
from .step_log import StepLog
from .stop import Agreement
from .threads import useful_threads
from .trainee import trainee_of

__all__ = ["Worker"]

_log = logging.getLogger(__name__)


class Worker:
    """One rank's model, optimizer and progress. The process group must have been joined.

    `asked` says whether this rank was asked to stop. `tracker` is rank 0's, None on the others;
    `report` takes the epochs done, as a fraction.
    """

    def __init__(
        self,
        attempt: Attempt,
        place: Place,
        dataset: Dataset,
        asked: Callable[[], bool],
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
        self._agreement = Agreement(asked, place, self._device)
        self._epoch = 0  # epochs done
        self._step = 0  # steps done of the next one
        self._plan: Iterator[Batch] | None = None  # what is left of that one
        self._totals = TrainTotals()  # what this rank has summed up in it
        self._counts = Progress()
        self._clock = Clock.since(attempt.started)
        self._startup_seconds: float | None = None
        self._target = Target(run.target)
        self._early = EarlyStopping(self._cfg.early_stopping)
        self._best = Best(self._cfg.best_metric, self._cfg.keep_best)
        self._final: dict[str, ClassificationMetrics] = {}
        self._saver = self._saver_of(attempt)
        self._step_log = self._step_log_of()
        if attempt.checkpoint is not None:
            self._resume(attempt.checkpoint)
        self._timed = self._counts.examples_seen  # up to here the speed is told
        _log.info(
            "ready: process %d on %s, %s, %d thread(s)",
            os.getpid(),
            socket.gethostname(),
            self._device,
            torch.get_num_threads(),
        )

    def _saver_of(self, attempt: Attempt) -> Saver | None:
        """Return rank 0's saver, or that of this rank's part; None if this rank has none."""
        cfg, place, part = self._cfg, self._place, None
        if cfg.sharded_checkpoints:
            token = f"{attempt.started:.6f}".replace(".", "-")
            part = Part(place.rank, place.world_size, token, cfg.collective_timeout)
        if self._tracker is None and part is None:
            return None
        root, optimizer = self._home.checkpoints, self._trainee.optimizer
        return Saver(root, optimizer, self._tracker, cfg.keep_last, part)

    def _step_log_of(self) -> StepLog | None:
        every = self._cfg.log_every_steps
        if every is None:
            return None
        log = StepLog(every, self._trainee.optimizer, self._tracker, self._sum)
        self._trainee.note_losses(log.note_loss)
        return log

    def _threads(self, share: int) -> int:
        """Return the threads to use of this worker's share; as many as are asked for, if so."""
        if self._cfg.cpus_per_worker is not None or self._device.type != "cpu":
            return share
        parts = self._place.world_size * self._cfg.accumulation_steps
        largest = -(-self._cfg.batch_size // parts)
        return useful_threads(self._model, self._task, largest, share)

    def train(self) -> Trained:
        """Train the remaining epochs, up to the target, or until asked to stop.

        Every rank returns the same counts. Raises `RunFailedError` naming the epoch if the loss
        is not finite any more.
        """
        with self._saver or nullcontext():
            return self._train_all()

    def _train_all(self) -> Trained:
        done = self._target.stop or self._early.stop or self._epoch == self._cfg.epochs
        while not done:
            due = self._train_steps()
            if self._step == self._steps:
                done, due = self._end_epoch()
            if due:
                self._save()
            if self._agreement.reached and not done:
                return self._trained(stopped=True)
        if not self._final:  # nothing was left to train
            self._evaluate()
        return self._trained(stopped=False)

    @property
    def _steps(self) -> int:
        """Steps of an epoch."""
        return -(-len(self._train) // self._cfg.batch_size)

    def _train_steps(self) -> bool:
        """Train up to the end of the epoch, or until a checkpoint is due; return whether it is."""
        started = time.perf_counter()
        if self._plan is None:
            self._plan = self._batches()
        self._trainee.train(self._task, self._until_due(self._plan), self._totals)
        self._clock.train_seconds += time.perf_counter() - started
        return self._due()

    def _batches(self) -> Iterator[Batch]:
        """Yield this rank's part of what is left of the epoch."""
        cfg, steps, seed = self._cfg, self._steps, self._run.seed
        order = permutation(seed, self._epoch + 1, len(self._train)).to(self._device)
        before = self._counts.steps - self._step
        plan = batches(
            self._train,
            order,
            cfg.batch_size,
            self._place,
            seed,
            before,
            first=self._step,
            mixup=cfg.mixup,
        )
        if self._startup_seconds is None:
            self._startup_seconds = time.time() - self._began
        place = (self._counts.steps, cfg.epochs * steps)
        plan = scheduled(plan, self._trainee.optimizer, self._run.optimizer.lr, cfg, place)
        return reported(plan, steps, self._epoch + self._step / steps, self._report)

    def _until_due(self, plan: Iterator[Batch]) -> Iterator[Batch]:
        """Pass batches on and count the steps, up to one after which something is due."""
        counts = self._counts
        examples, size = len(self._train), self._cfg.batch_size
        for batch in plan:
            yield batch
            seen = min(size, examples - self._step * size)
            counts.examples_seen += seen
            counts.steps += 1
            self._step += 1
            sent, received = self._trainee.after_step(self._step, self._steps)
            counts.bytes_up += sent
            counts.bytes_down += received
            if self._step_log is not None:
                self._step_log.after_step(self._epoch + 1, seen, counts, self._clock)
            if self._saver is not None:
                self._saver.raise_if_failed()
            if self._agreement.after_step() or self._due():
                return

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
        self._plan, self._totals = None, TrainTotals()
        self._check_finite("training loss", loss_sum)
        timing = self._trainee.take_timing(self._counts.examples_seen - self._timed)
        self._timed = self._counts.examples_seen
        self._emit("train", {"train/loss": loss_sum / len(self._train)}, timing=timing)
        last = self._epoch == self._cfg.epochs
        due = due or self._epoch % self._cfg.checkpoint_every == 0
        if last or self._epoch % self._cfg.evaluate_every == 0:
            values = self._evaluate_epoch()
            due = self._best.offer(values, self._counts.steps) or due
            unit = {"epoch": self._epoch}
            last = self._target.observe(values, unit, self._counts, self._clock) or last
            if self._early.observe(values):
                _log.info("stopping early after epoch %d: %s", self._epoch, self._early)
                last = True
        return last, due or last

    def _evaluate_epoch(self) -> dict[str, float]:
        values = self._evaluate()
        averaged = {} if self._cfg.ema_decay is None else {"weights": "ema"}
        self._emit("evaluate", values, **averaged)
        return values

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
            epoch = self._epoch + (self._step > 0)
            raise RunFailedError(
                f"The {what} is {loss_sum} in epoch {epoch}: training has diverged. Lower "
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
        if self._step_log is not None:
            self._step_log.flush()
        sums = [0.0] * self._place.world_size
        sums[self._place.rank] = self._totals.loss_sum
        sums = self._sum(sums)  # each rank's own, for all to know
        self._check_finite("training loss", sum(sums))
        snapshot = self._trainee.snapshot()
        if self._saver is None:
            return
        state = {
            **snapshot.rest,
            "epoch": self._epoch,
            "step": self._step,
            "loss_sums": sums,
            "scaling": asdict(self._dataset.scaling),
            "counts": asdict(self._counts),
            "seconds": self._clock.seconds,
            "train_seconds": self._clock.train_seconds,
            "target": self._target.saved(),
            "early_stopping": self._early.saved(),
            "best": self._best.saved(),
            "metrics_offset": 0 if self._tracker is None else self._tracker.offset,
        }
        # A forward pass may change buffers, and the saver copies beside the next one.
        buffers = {name for name, _ in self._model.named_buffers()}
        model, arrays = (_cloned(buffers, some) for some in (snapshot.model, snapshot.arrays))
        present = Checkpoint(self._counts.steps, model, arrays, state)
        self._saver.save(present, self._best.progresses)
        _log.info("step %d: saving epoch %d, step %d", self._counts.steps, self._epoch, self._step)

    def _resume(self, progress: int) -> None:
        path = checkpoint.path_of(self._home.checkpoints, progress)
        saved = checkpoint.load(path)
        state = saved.state
        self._trainee.restore(saved, path)
        self._epoch = state["epoch"]
        self._step = state.get("step", 0)  # version 0.1 saved at the end of epochs only
        self._totals.loss_sum = self._own(state.get("loss_sums", [0.0]))
        self._counts = Progress(**state["counts"])
        self._clock.seconds_before = state["seconds"]
        self._clock.train_seconds = state["train_seconds"]
        self._target.restore(state["target"])
        if "early_stopping" in state:  # version 0.1 knew of neither
            self._early.restore(state["early_stopping"])
        if "best" in state:
            self._best.restore(state["best"])
        _log.info(
            "resumed from checkpoint %s, after epoch %d, step %d",
            path.name,
            self._epoch,
            self._step,
        )

    def _own(self, sums: list[float]) -> float:
        """Return this rank's of the saved sums; with another world size, rank 0 takes them all."""
        if len(sums) == self._place.world_size:
            return sums[self._place.rank]
        return math.fsum(sums) if self._place.rank == 0 else 0.0

    def _trained(self, *, stopped: bool) -> Trained:
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
            stopped=stopped,
        )


def _on(device: torch.device, split: Split) -> Split:
    return Split(split.inputs.to(device), split.targets.to(device))


def _cloned(buffers: Collection[str], tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return `tensors`, copies of those that are `buffers`, of the raw weights too."""
    own = {name: name.rpartition("weights/")[2] for name in tensors}
    return {name: v.clone() if own[name] in buffers else v for name, v in tensors.items()}
