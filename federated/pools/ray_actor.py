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
from heliotrope.data import Examples, Partition
from heliotrope.metrics import Metrics
from heliotrope.runs.events import log_to
from heliotrope.system.resources import peak_rss_bytes
from heliotrope.tasks import Task

from ..algorithms import ClientAlgorithm
from ..client_state import ClientStates
from ..engine.client_metrics import Evaluations
from ..engine.context import assemble
from ..engine.execution import Decision, ExecutionPlan
from ..engine.thread_lane import Reply
from ..engine.time_limit import Hung
from ..updates import Instruction, Weights
from .cohort_worker import CohortWorker
from .local_channel import serve

__all__ = ["TRAIN", "Actor", "Arrays", "as_arrays", "as_tensors", "unpacked"]

TRAIN = "train"  # name of the split that is divided among the clients

Arrays = dict[str, NDArray[Any]]


class Actor:
    """A `CohortWorker` in a Ray process; arrays cross as NumPy, read in place when they arrive.

    `names` are those of the splits, of which the training split is divided as the arrays say.
    """

    def __init__(
        self,
        setting: tuple[Run, Task, Mapping[str, Partition], Mapping[str, float], Path],
        note: Path | None,
        names: Sequence[str],
        indices: NDArray[np.int64],
        offsets: NDArray[np.int64],
        identities: NDArray[np.int64],
        *splits: Examples,
    ) -> None:
        run, task, owners, resources, log = setting
        threads = int(resources["CPU"])
        torch.set_num_threads(threads)
        log_to(log, f"worker process {os.getpid()}")
        central = dict(zip(names, splits, strict=True))
        partition = Partition(indices, offsets, identities)
        context = assemble(run, task, central.pop(TRAIN), partition, central, owners)
        device = torch.device("cuda" if resources.get("GPU") else "cpu")
        self._worker = CohortWorker(context.on(device), threads, note)

    def do(self, method: str, hung: Hung, *arguments: Any) -> Any:
        """Call one of the methods below; clients in `hung` fail in it without being tried."""
        self._worker.watch.hung = hung
        return getattr(self, method)(*arguments)

    def serve(self, address: str, token: bytes) -> None:
        """Call `do` as the driver says over a channel; returns at once on another machine."""
        serve(self.do, address, token)

    def process(self) -> int:
        """Return the process id, once the actor is set up."""
        return os.getpid()

    def decide(self, cohort: int, algorithms: tuple[ClientAlgorithm, ...]) -> Decision:
        """As `CohortWorker.decide`."""
        return self._worker.decide(cohort, algorithms)

    def train(
        self,
        weights: Arrays,
        cohort: Sequence[int],
        instruction: Instruction,
        execution: ExecutionPlan,
        reduce: bool,
    ) -> tuple[Reply, list[Arrays]]:
        """As `CohortWorker.train`; the reply is `packed`."""
        return packed(
            self._worker.train(as_tensors(weights), instruction, cohort, execution, reduce)
        )

    def evaluate(
        self, weights: Arrays, cohort: Sequence[int], states: ClientStates | None
    ) -> Evaluations:
        """As `CohortWorker.evaluate`."""
        return self._worker.evaluate(as_tensors(weights), cohort, states)

    def evaluate_splits_of(
        self,
        weights: Arrays,
        cohort: Sequence[int],  # noqa: ARG002 - it is that of the states
        states: ClientStates,
    ) -> dict[str, Metrics]:
        """As `CohortWorker.evaluate_splits_of`."""
        return self._worker.evaluate_splits_of(as_tensors(weights), states)

    def evaluate_centrally(self, weights: Arrays, part: int, parts: int) -> dict[str, Metrics]:
        """As `CohortWorker.evaluate_centrally`."""
        return self._worker.evaluate_centrally(as_tensors(weights), part, parts)

    def peak_rss_bytes(self) -> int:
        """Return the most memory that this process has had resident, in bytes."""
        return peak_rss_bytes()


def as_tensors(arrays: Arrays) -> dict[str, torch.Tensor]:
    """Return arrays, perhaps of read-only shared memory, as tensors that share it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return {name: torch.from_numpy(value) for name, value in arrays.items()}


def as_arrays(weights: Weights) -> Arrays:
    """Return tensors of any device as arrays that Ray can put into shared memory."""
    return {name: np.asarray(value.cpu().numpy(), order="C") for name, value in weights.items()}


def packed(reply: Reply) -> tuple[Reply, list[Arrays]]:
    """Return a reply without its arrays, and these: they travel beside it, in shared memory."""
    arrays = [as_arrays(update.arrays) for update in reply.updates]
    updates = [replace(update, arrays={}) for update in reply.updates]
    if reply.partial is None:
        return replace(reply, updates=updates), arrays
    sums = as_arrays(reply.partial.sums)
    partial = replace(reply.partial, sums={})
    return replace(reply, updates=updates, partial=partial), [*arrays, sums]


def unpacked(reply: Reply, arrays: Sequence[Arrays]) -> Reply:
    """Undo `packed`."""
    pairs = zip(reply.updates, arrays, strict=reply.partial is None)
    updates = [replace(update, arrays=as_tensors(own)) for update, own in pairs]
    if reply.partial is None:
        return replace(reply, updates=updates)
    partial = replace(reply.partial, sums=as_tensors(arrays[-1]))
    return replace(reply, updates=updates, partial=partial)
