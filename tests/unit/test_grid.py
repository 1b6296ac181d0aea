"""What the grid takes from a pool, and what it leaves out."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord
from flwr.serverapp.strategy import FedAvg

from federated.algorithms import ClientAlgorithm
from federated.engine.client_metrics import Evaluations
from federated.engine.execution import Decision, ExecutionPlan
from federated.engine.thread_lane import Reply
from federated.flower.grid import CohortGrid
from federated.flower.messages import read_arrays, to_record
from federated.updates import Failure, Instruction, Update, Weights
from heliotrope.metrics import Metrics
from tests.support import small_task


class _Answers:
    """A pool that answers with what it was given."""

    def __init__(self, *replies: Reply) -> None:
        self._replies = list(replies)

    def decide(self, cohort: int, algorithms: tuple[ClientAlgorithm, ...]) -> Decision:
        return Decision(ExecutionPlan("sequential", 1), {})

    def train(
        self,
        weights: Weights,
        order: Instruction,
        cohort: Sequence[int],
        choice: ExecutionPlan,
        reduce: bool,
    ) -> list[Reply]:
        return self._replies

    def evaluate(self, weights: Weights, cohort: Sequence[int]) -> Evaluations:
        return Evaluations.of_nobody(small_task(2).metrics)

    def evaluate_centrally(self, weights: Weights) -> dict[str, Metrics]:
        return {}

    def peak_rss_bytes(self) -> int:
        return 0

    def close(self) -> None:
        pass


def _update(value: float, *clients: int) -> Update:
    return Update(clients, {"w": torch.tensor([value])}, len(clients), 1.0, 1, 1, 1)


def _round(*replies: Reply, cohort: Sequence[int] = (0, 1, 2)) -> tuple[CohortGrid, ArrayRecord]:
    grid = CohortGrid(_Answers(*replies), reduce=False)
    grid.execution = ExecutionPlan("sequential", 1)
    grid.offer(cohort)
    strategy = FedAvg(min_train_nodes=1, min_available_nodes=1)
    start = to_record({"w": torch.tensor([0.0])})
    answers = grid.send_and_receive(strategy.configure_train(1, start, ConfigRecord(), grid))
    arrays, _ = strategy.aggregate_train(1, answers)
    assert arrays is not None
    return grid, arrays


def test_the_mean_of_what_the_pool_answers_is_the_new_model() -> None:
    grid, arrays = _round(Reply([_update(1.0, 0), _update(2.0, 1)]), Reply([_update(6.0, 2)]))
    assert read_arrays(arrays)["w"].tolist() == [3.0]
    assert grid.failures == []


@pytest.mark.parametrize("client", [1, 9])
def test_who_answers_twice_or_was_not_asked_is_named_and_left_out(client: int) -> None:
    first = Reply([_update(1.0, 0), _update(2.0, 1), _update(3.0, 2)])
    grid, arrays = _round(first, Reply([_update(100.0, client)]))
    assert read_arrays(arrays)["w"].tolist() == [2.0]
    (failure,) = grid.failures
    assert failure.client == client
    assert ("answered before" if client == 1 else "not asked") in failure.reason
    assert [update.clients for update in grid.updates] == [(0,), (1,), (2,)]


def test_a_failure_is_passed_on_and_not_averaged() -> None:
    reply = Reply([_update(1.0, 0), _update(3.0, 2)], [Failure(1, "disk on fire")])
    grid, arrays = _round(reply)
    assert read_arrays(arrays)["w"].tolist() == [2.0]
    assert grid.failures == [Failure(1, "disk on fire")]


def test_a_mean_with_a_client_that_has_answered_is_left_out_and_says_whose() -> None:
    grid, arrays = _round(Reply([_update(1.0, 0)]), Reply([_update(100.0, 0, 1, 2)]))
    assert read_arrays(arrays)["w"].tolist() == [1.0]
    reasons = {failure.client: failure.reason for failure in grid.failures}
    assert "has answered before" in reasons[0]
    assert "part of a mean" in reasons[1]
    assert "part of a mean" in reasons[2]
