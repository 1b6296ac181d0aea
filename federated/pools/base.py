"""Where clients are trained: in this process (`inprocess`), or on Ray actors (`ray_pool`)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from heliotrope.metrics import Metrics

from ..algorithms import ClientAlgorithm
from ..client_state import ClientStates
from ..engine.client_metrics import Evaluations
from ..engine.execution import Decision, ExecutionPlan
from ..engine.thread_lane import Reply
from ..secure_rounds import Opened, SecureRound
from ..updates import Instruction, Weights

__all__ = ["Pool"]


class Pool(Protocol):
    """Persistent workers that hold the data and one model each."""

    keeps_states: bool = False
    """Whether clients' state stays where they are trained: nobody else has it."""

    def decide(self, cohort: int, algorithms: tuple[ClientAlgorithm, ...]) -> Decision:
        """Return how the workers train `cohort` clients a round."""

    def train(
        self,
        weights: Weights,
        instruction: Instruction,
        cohort: Sequence[int],
        execution: ExecutionPlan,
        reduce: bool,
    ) -> list[Reply]:
        """Train a cohort; one reply a worker."""

    def train_secretly(
        self,
        secret: SecureRound,
        weights: Weights,
        instruction: Instruction,
        execution: ExecutionPlan,
    ) -> Opened:
        """Train the cohort of a round under secure aggregation, and open the sum of what it sends.

        Here the protocol is simulated: workers mask what their clients send.
        """

        def train(told: Instruction) -> list[Reply]:
            return self.train(weights, told, secret.cohort, execution, reduce=True)

        return secret.simulated(instruction, train)

    def evaluate(
        self, weights: Weights, cohort: Sequence[int], states: ClientStates | None = None
    ) -> Evaluations:
        """Evaluate each client on its held-out examples, with its state if it keeps any."""

    def evaluate_splits_of(self, weights: Weights, states: ClientStates) -> dict[str, Metrics]:
        """Return the metrics on the splits that no client trains on, evaluated by their clients."""

    def evaluate_centrally(self, weights: Weights) -> dict[str, Metrics]:
        """Return the metrics on the splits that no client holds, by name."""

    def peak_rss_bytes(self) -> int:
        """Return the peak memory of the workers that are not this process."""

    def close(self) -> None:
        """Stop the workers."""
