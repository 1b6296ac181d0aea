"""Clients trained in this process."""

from __future__ import annotations

from collections.abc import Sequence

from heliotrope.metrics import Metrics

from ..algorithms import ClientAlgorithm
from ..client_state import ClientStates
from ..engine.client_metrics import Evaluations
from ..engine.context import TrainingContext
from ..engine.execution import Decision, ExecutionPlan
from ..engine.thread_lane import Reply
from ..updates import Instruction, Weights
from .base import Pool
from .cohort_worker import CohortWorker

__all__ = ["InProcessPool"]


class InProcessPool(Pool):
    """One worker: this process. No copies, no start-up."""

    def __init__(self, context: TrainingContext, threads: int) -> None:
        self._worker = CohortWorker(context, threads)

    def decide(self, cohort: int, algorithms: tuple[ClientAlgorithm, ...]) -> Decision:
        return self._worker.decide(cohort, algorithms)

    def train(
        self,
        weights: Weights,
        instruction: Instruction,
        cohort: Sequence[int],
        execution: ExecutionPlan,
        reduce: bool,
    ) -> list[Reply]:
        return [self._worker.train(weights, instruction, cohort, execution, reduce)]

    def evaluate(
        self, weights: Weights, cohort: Sequence[int], states: ClientStates | None = None
    ) -> Evaluations:
        return self._worker.evaluate(weights, cohort, states)

    def evaluate_splits_of(self, weights: Weights, states: ClientStates) -> dict[str, Metrics]:
        return self._worker.evaluate_splits_of(weights, states)

    def evaluate_centrally(self, weights: Weights) -> dict[str, Metrics]:
        return self._worker.evaluate_centrally(weights)

    def peak_rss_bytes(self) -> int:
        return 0

    def close(self) -> None:
        pass
