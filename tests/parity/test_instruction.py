"""What a round asks of its clients besides training: a rate of its own, the loss beforehand."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from federated.engine.context import TrainingContext, assemble, divide
from federated.engine.execution import ExecutionPlan
from federated.pools.cohort_worker import CohortWorker
from federated.updates import Instruction
from heliotrope.data import load
from heliotrope.tasks import task_of
from tests.parity.cohorts import weights_of
from tests.support import assert_same_tensors, compose


def _clients(*settings: str) -> TrainingContext:
    run = compose("federated", "model.hidden=[6]", "model.dropout=0.4", *settings)
    dataset = load(run.data, run.seed)
    task = task_of(dataset, run)
    return assemble(run, task, dataset.train, divide(run, dataset))


@pytest.mark.parametrize(
    ("optimizer", "kinds"),
    [
        (["optimizer=sgd", "optimizer.momentum=0.9"], ("sequential", "captured", "batched")),
        (["optimizer=adamw"], ("sequential", "captured", "batched")),
        (["optimizer=adafactor"], ("sequential",)),
    ],
)
def test_the_rate_of_a_round_takes_the_place_of_the_configs(
    optimizer: list[str], kinds: tuple[str, ...]
) -> None:
    clients = _clients(*optimizer, "optimizer.lr=0.5")
    slow = replace(clients, optimizer=replace(clients.optimizer, lr=0.01))
    weights = weights_of(clients)
    for kind in kinds:
        choice = ExecutionPlan(kind, 1, 2)
        worker, other = CohortWorker(clients, 1), CohortWorker(slow, 1)
        asked = worker.train(weights, Instruction(2, lr=0.01), [1, 4], choice, reduce=False)
        configured = other.train(weights, Instruction(2), [1, 4], choice, reduce=False)
        for update, expected in zip(asked.updates, configured.updates, strict=True):
            assert_same_tensors(dict(update.arrays), dict(expected.arrays))


@pytest.mark.parametrize("kind", ["sequential", "captured", "batched"])
def test_the_loss_at_the_global_weights_is_told_where_it_is_asked_for(kind: str) -> None:
    clients = _clients("loss.label_smoothing=0.1", "evaluation_batch_size=16")
    weights, cohort = weights_of(clients), [0, 3, 7]
    worker, choice = CohortWorker(clients, 1), ExecutionPlan(kind, 1, 2)
    reply = worker.train(weights, Instruction(1, start_loss=True), cohort, choice, reduce=False)
    assert sorted(reply.start_losses) == cohort
    clients.model.load_state_dict(weights)
    clients.model.eval()
    for client, loss in reply.start_losses.items():
        mine = torch.from_numpy(clients.population.train_indices(client))
        batch = clients.train.take(mine)
        outputs = clients.model(batch["image"])
        expected = torch.nn.functional.cross_entropy(outputs, batch["label"], label_smoothing=0.1)
        assert loss == pytest.approx(expected.item(), rel=1e-5)

    silent = worker.train(weights, Instruction(1), cohort, choice, reduce=False)
    assert silent.start_losses == {}


@pytest.mark.parametrize("loss", [None, float("nan"), float("inf")])
def test_a_client_whose_loss_cannot_be_told_is_named_and_left_out(
    loss: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    import federated.engine.thread_lane as lane_module

    real = lane_module.start_loss

    def fails(
        clients: TrainingContext,
        weights: dict[str, Tensor],
        instruction: Instruction,
        client: int,
        *rest: object,
    ) -> float:
        if client == 3 and loss is not None:
            return loss
        if client == 3:
            raise RuntimeError("disk on fire")
        return real(clients, weights, instruction, client, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(lane_module, "start_loss", fails)
    clients = _clients()
    order = Instruction(1, start_loss=True)
    reply = CohortWorker(clients, 1).train(
        weights_of(clients), order, [0, 3, 7], ExecutionPlan("sequential", 1), reduce=False
    )
    assert [update.clients for update in reply.updates] == [(0,), (7,)]
    [failure] = reply.failures
    assert failure.client == 3
    assert ("disk on fire" if loss is None else f"global weights is {loss}") in failure.reason
