"""The worker of the pool on Ray: a `CohortWorker` in a process of its own."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from heliotrope.config import Run
from heliotrope.data import Partition, Split
from heliotrope.metrics import ClassificationMetrics
from heliotrope.resources import peak_rss_bytes
from heliotrope.tasks import Task
from heliotrope.tracking import log_to

from .choice import Choice
from .client import Instruction, Update, Weights
from .cohort import CohortWorker, Evaluations
from .lane import Reply
from .setup import assemble
from .time_limit import Hung

__all__ = ["TRAIN", "Actor", "Arrays", "as_arrays", "as_tensors", "with_arrays"]

TRAIN = "train"  # name of the split that is divided among the clients

Arrays = dict[str, NDArray[Any]]


class Actor:
    """A `CohortWorker` in a Ray process; arrays cross as NumPy, read in place when they arrive."""

    def __init__(
        self,
        setting: tuple[Run, Task, Mapping[str, float], Path],
        note: Path | None,
        splits: Sequence[str],
        *arrays: NDArray[Any],
    ) -> None:
        run, task, share, log = setting
        threads = int(share["CPU"])
        torch.set_num_threads(threads)
        log_to(log, f"worker process {os.getpid()}")
        indices, offsets, *rest = arrays
        with warnings.catch_warnings():  # the shared arrays are read-only, and only read
            warnings.simplefilter("ignore", UserWarning)
            tensors = [torch.from_numpy(array) for array in rest]
        central = dict(zip(splits, map(Split, tensors[::2], tensors[1::2]), strict=True))
        parts = Partition(indices, offsets)
        clients = assemble(run, task, central.pop(TRAIN), parts, central)
        device = torch.device("cuda" if share.get("GPU") else "cpu")
        self._worker = CohortWorker(clients.on(device), threads, note)

    def do(self, method: str, hung: Hung, *arguments: Any) -> Any:
        """Call one of the methods below; clients in `hung` fail in it without being tried."""
        self._worker.watch.hung = hung
        return getattr(self, method)(*arguments)

    def process(self) -> int:
        """Return the process id, once the actor is set up."""
        return os.getpid()

    def measure(self, weights: Arrays, order: Instruction, cohort: Sequence[int]) -> Choice:
        return self._worker.measure(as_tensors(weights), order, cohort)

    def train(
        self,
        weights: Arrays,
        cohort: Sequence[int],
        order: Instruction,
        choice: Choice,
        reduce: bool,
    ) -> tuple[Reply, list[Arrays]]:
        reply = self._worker.train(as_tensors(weights), order, cohort, choice, reduce)
        arrays = [as_arrays(update.arrays) for update in reply.updates]
        return Reply([with_arrays(update, {}) for update in reply.updates], reply.failures), arrays

    def evaluate(self, weights: Arrays, cohort: Sequence[int]) -> Evaluations:
        return self._worker.evaluate(as_tensors(weights), cohort)

    def evaluate_centrally(
        self, weights: Arrays, part: int, parts: int
    ) -> dict[str, ClassificationMetrics]:
        return self._worker.evaluate_centrally(as_tensors(weights), part, parts)

    def peak_rss_bytes(self) -> int:
        return peak_rss_bytes()


def as_tensors(arrays: Arrays) -> dict[str, torch.Tensor]:
    """Return arrays, perhaps of read-only shared memory, as tensors that share it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return {name: torch.from_numpy(value) for name, value in arrays.items()}


def as_arrays(weights: Weights) -> Arrays:
    """Return tensors of any device as arrays that Ray can put into shared memory."""
    return {name: np.asarray(value.cpu().numpy(), order="C") for name, value in weights.items()}


def with_arrays(update: Update, arrays: Arrays) -> Update:
    """Return `update` with other arrays: they travel beside it, not in it."""
    return replace(update, arrays=as_tensors(arrays))
