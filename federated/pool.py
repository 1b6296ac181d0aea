"""Where clients are trained: in this process, or on persistent Ray actors (`ray_pool`)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from heliotrope.metrics import ClassificationMetrics

from .choice import Choice
from .client import Clients, Instruction, Weights
from .cohort import CohortWorker, Evaluations
from .lane import Reply

__all__ = ["InProcessPool", "Pool"]


class Pool(Protocol):
    """Persistent workers that hold the data and one model each."""

    def measure(self, weights: Weights, order: Instruction, cohort: Sequence[int]) -> Choice:
        """Return the fastest way to train clients like these."""

    def train(
        self,
        weights: Weights,
        order: Instruction,
        cohort: Sequence[int],
        choice: Choice,
        reduce: bool,
    ) -> list[Reply]:
        """Train a cohort; one reply a worker."""

    def evaluate(self, weights: Weights, cohort: Sequence[int]) -> Evaluations:
        """Evaluate each client on its held-out examples."""

    def evaluate_centrally(self, weights: Weights) -> dict[str, ClassificationMetrics]:
        """Return the metrics on the splits that no client holds, by name."""

    def peak_rss_bytes(self) -> int:
        """Return the peak memory of the workers that are not this process."""

    def close(self) -> None:
        """Stop the workers."""


class InProcessPool:
    """One worker: this process. No copies, no start-up."""

    def __init__(self, clients: Clients, threads: int) -> None:
        self._worker = CohortWorker(clients, threads)

    def measure(self, weights: Weights, order: Instruction, cohort: Sequence[int]) -> Choice:
        return self._worker.measure(weights, order, cohort)

    def train(
        self,
        weights: Weights,
        order: Instruction,
        cohort: Sequence[int],
        choice: Choice,
        reduce: bool,
    ) -> list[Reply]:
        return [self._worker.train(weights, order, cohort, choice, reduce)]

    def evaluate(self, weights: Weights, cohort: Sequence[int]) -> Evaluations:
        return self._worker.evaluate(weights, cohort)

    def evaluate_centrally(self, weights: Weights) -> dict[str, ClassificationMetrics]:
        return self._worker.evaluate_centrally(weights)

    def peak_rss_bytes(self) -> int:
        return 0

    def close(self) -> None:
        pass
