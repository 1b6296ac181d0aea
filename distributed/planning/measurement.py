"""One worker's steps, taken here: how long they are, and how much memory they need.

They are the engine's own, in the run's precision, compiled, with recomputation, on examples of the
run. Nothing is exchanged, and the model is thrown away. A protected run is measured on examples of
zeros: no ledger would count what steps on others tell of them.
"""

from __future__ import annotations

import mmap
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from heliotrope.config import MeshConfig, Run
from heliotrope.data import Batch, Dataset
from heliotrope.models import build
from heliotrope.system.resources import pick_device
from heliotrope.system.tensor_memory import peak_tensor_bytes
from heliotrope.tasks import Task
from heliotrope.tasks.usable import examples_of_zeros
from heliotrope.training.loop import TrainingBatch

from ..communication.traffic import ModelSize
from ..loop.single_worker import SingleWorker
from ..loop.threads import useful_threads
from ..privacy.protection import Protection, protected
from ..strategies.buffers import SharedBuffers
from ..topology import Topology

__all__ = ["Measurement", "StepTime", "measured"]

_TRIES = 7  # steps that are timed, of which the median counts
_LONG = 10.0  # seconds, after which no more steps of a size are timed
_FEW = 2  # examples: on a single one, BatchNorm has no variance
_MANY = 4  # at least, to tell what examples take from what a step takes
_MOST_COPIED = 16 << 20  # values


@dataclass(frozen=True)
class StepTime:
    """How long a worker's step is, in seconds and without an exchange, for any number of examples.

    Parameters
    ----------
    examples, seconds
        The most examples that were tried, and the time of a step on them without the update.
    least
        The time of a step on two examples, without the update.
    update
        That of the optimizer's update of all weights.
    copied
        That of a byte that is copied into memory which is new, as what FSDP gathers is.
    """

    examples: int
    seconds: float
    least: float
    update: float
    copied: float

    def of(self, examples: int, shard: float = 1.0) -> float:
        """Return the time of a step on `examples`, of a worker that updates a part of the weights.

        It grows evenly from two examples on; fewer take as long as two.
        """
        slope = max(0.0, self.seconds - self.least) / (self.examples - _FEW)
        return self.least + slope * max(0, examples - _FEW) + self.update * shard


@dataclass(frozen=True)
class Measurement:
    """What was found of one worker with whole weights.

    Parameters
    ----------
    size
        What of the model is exchanged.
    weight_bytes, gradient_bytes, optimizer_bytes
        The weights with their buffers, the gradients, and the optimizer's state.
    step_bytes
        The most that a step needs beside weights and optimizer, where gradients are freed before
        it.
    kept_bytes
        The same where gradients are kept from step to step, as in the buckets of DDP.
    threads, device
        What it was measured with.
    time
        How long steps are.
    """

    size: ModelSize
    weight_bytes: int
    gradient_bytes: int
    optimizer_bytes: int
    step_bytes: int
    kept_bytes: int
    threads: int
    device: torch.device
    time: StepTime


def measured(run: Run, dataset: Dataset, task: Task, examples: int, cpus: int) -> Measurement:
    """Take some steps on `examples`, the largest part of a batch, with at most `cpus` threads."""
    cfg = replace(run.distributed, strategy="ddp", mesh=MeshConfig())
    cfg = replace(cfg, ema_decay=None, log_every_steps=None)
    run, device = replace(run, distributed=cfg), pick_device(run.device)
    before = torch.get_num_threads()
    try:
        with _protection(run, dataset, device) as protection:
            found = _found(_Worker(run, dataset, task, device, protection), examples, cpus)
        if cfg.privacy.name != "none":  # gradients are freed before each step
            return found
        # Of a batch cut in twice as many passes, the second pass finds the gradients of the first.
        cfg = replace(cfg, accumulation_steps=2 * cfg.accumulation_steps)
        twice = _Worker(replace(run, distributed=cfg), dataset, task, device, None)
        kept = twice.peak(2 * examples) - twice.batch_bytes(examples)
    finally:
        torch.set_num_threads(before)
    return replace(found, kept_bytes=max(found.step_bytes, kept))


@contextmanager
def _protection(run: Run, dataset: Dataset, device: torch.device) -> Iterator[Protection | None]:
    """Yield what protects the run, if anything does, with a ledger that is thrown away."""
    with tempfile.TemporaryDirectory() as folder:
        found = protected(run, dataset, Topology(), device, Path(folder) / "privacy.jsonl")
        if found is not None:
            found.begin(0)
        try:
            yield found
        finally:
            if found is not None:
                found.close()


def _found(worker: _Worker, examples: int, cpus: int) -> Measurement:
    model, device, cfg = worker.model, worker.device, worker.cfg
    threads = cpus
    if device.type == "cpu" and cfg.cpus_per_worker is None:
        passed = -(-examples // cfg.accumulation_steps)
        threads = useful_threads(model, worker.task, passed, cpus)
    torch.set_num_threads(threads)
    time_ = worker.time(max(examples, _MANY))
    peak = worker.peak(examples)
    return Measurement(
        size=ModelSize.of(model, SharedBuffers(model, Topology()).nbytes),
        weight_bytes=sum(value.nbytes for value in (*model.parameters(), *model.buffers())),
        gradient_bytes=sum(p.nbytes for p in model.parameters() if p.requires_grad),
        optimizer_bytes=worker.state_bytes(),
        step_bytes=peak,
        kept_bytes=peak,
        threads=threads,
        device=device,
        time=time_,
    )


def _new_like(source: Tensor) -> Tensor:
    """Return as many values, float32 [n], in memory that the system has just given."""
    if source.device.type != "cpu":  # a GPU's allocator keeps what is freed
        return torch.empty_like(source)
    pages = mmap.mmap(-1, source.nbytes)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with suppress(OSError):  # a kernel without them
            pages.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(pages, dtype=source.dtype)


class _Worker:
    """Takes steps on the first examples of a run's training data."""

    def __init__(
        self,
        run: Run,
        dataset: Dataset,
        task: Task,
        device: torch.device,
        protection: Protection | None,
    ) -> None:
        self.cfg, self.task, self.device = run.distributed, task, device
        self.model = build(run.model, task, run.seed).to(device)
        self._worker = SingleWorker(run, self.model, task, protection)
        self._train = None if protection is not None else dataset.train.to(device)

    def _batch(self, examples: int) -> Batch:
        if self._train is not None:
            return self._train.take(torch.arange(examples) % len(self._train))
        zeros = examples_of_zeros(self.task, examples)
        return {name: value.to(self.device).contiguous() for name, value in zeros.items()}

    def batch_bytes(self, examples: int) -> int:
        """Return the bytes of as many examples."""
        return sum(value.nbytes for value in self._batch(examples).values())

    def _step(self, examples: int) -> None:
        fields = self._batch(examples)
        weight = max(1, int(self.task.weights(fields).sum()))
        self._worker.step(TrainingBatch(fields, weight, weight, seed=0))

    def time(self, examples: int) -> StepTime:
        """Return how long steps are, up to `examples`."""
        seconds = self._seconds(lambda: self._step(examples))
        update = self._seconds(self._worker.optimizer.step)
        least = self._seconds(lambda: self._step(_FEW))
        spent, least = max(0.0, seconds - update), max(0.0, least - update)
        return StepTime(examples, spent, min(least, spent), update, self._copied())

    def _copied(self) -> float:
        """Return how long it takes to copy a byte into new memory."""
        count = sum(value.numel() for value in self.model.parameters())
        source = torch.ones(max(1, min(count, _MOST_COPIED)), device=self.device)
        return self._seconds(lambda: _new_like(source).copy_(source)) / source.nbytes

    def _seconds(self, work: Callable[[], object]) -> float:
        """Return the median time of some runs of `work`, after one that does not count."""
        taken: list[float] = []
        self._timed(work)
        while len(taken) < _TRIES and sum(taken) < _LONG:
            taken.append(self._timed(work))
        return statistics.median(taken)

    def _timed(self, work: Callable[[], object]) -> float:
        started = time.perf_counter()
        work()
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter() - started

    def peak(self, examples: int) -> int:
        """Return the most bytes that a step needs beside weights and optimizer's state."""
        self._step(examples)  # builds the state, and what is allocated once
        self._worker.optimizer.zero_grad(set_to_none=True)
        return peak_tensor_bytes(lambda: self._step(examples), self.device)

    def state_bytes(self) -> int:
        """Return the bytes of the optimizer's state."""
        states = self._worker.optimizer.state.values()
        return sum(v.nbytes for state in states for v in state.values() if isinstance(v, Tensor))
