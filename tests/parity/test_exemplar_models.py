"""The models that come with the exemplars train alike in every way of both modes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from federated.engine.context import TrainingContext
from federated.engine.local_optimizer import LocalOptimizer
from federated.engine.sequential import train_client
from federated.engine.stacked import FastTrainer
from federated.pools.cohort_worker import CohortWorker
from federated.population import Population
from federated.updates import Instruction, Stack
from heliotrope.config import chosen
from heliotrope.config.training import LossConfig
from heliotrope.data import Dense, Examples, Partition
from tests.exemplars import EXEMPLARS
from tests.parity.cohorts import weights_of
from tests.support import compose, fresh_seed

_SIZES = [7, 23, 12]  # examples of each client: their batches of five are not all full


def _clients(name: str, seed: int, *settings: str) -> TrainingContext:
    run = compose(
        "federated",
        "experiment=quickstart",
        "federated.batch_size=5",
        "optimizer.lr=0.1",
        *settings,
    )
    exemplar = EXEMPLARS[name]
    examples = exemplar.examples(sum(_SIZES), seed)
    task = exemplar.task_of(examples)
    parts = Partition(np.arange(sum(_SIZES)), np.cumsum([0, *_SIZES]))
    return TrainingContext(
        model=exemplar.model_of(task, seed),
        task=task,
        train=examples,
        population=Population(parts, 0.0, seed),
        optimizer=run.optimizer,
        loss=run.loss,
        federated=run.federated,
        run_seed=seed,
        evaluation_batch_size=8,
        central={},
    )


def _in_double(clients: TrainingContext) -> TrainingContext:
    fields = {
        name: Dense(field.values.double())
        if isinstance(field, Dense) and field.values.is_floating_point()
        else field
        for name, field in clients.train.fields.items()
    }
    model = clients.fresh_model(weights_of(clients)).double()
    return replace(clients, model=model, train=Examples(fields))


def _apart(ours: Mapping[str, Tensor], theirs: Stack, start: Mapping[str, Tensor]) -> float:
    pairs = [(ours[n].double(), v[0].double(), start[n].double()) for n, v in theirs.arrays.items()]
    difference = sum(float((a - b).square().sum()) for a, b, _ in pairs)
    return float((difference / sum(float((b - w).square().sum()) for _, b, w in pairs)) ** 0.5)


@pytest.mark.parametrize("name", EXEMPLARS)
def test_stacked_and_captured_clients_are_trained_as_one_by_one(name: str) -> None:
    clients = _in_double(_clients(name, fresh_seed(), "federated.local_epochs=2"))
    weights, order = weights_of(clients), Instruction(1)
    cohort = range(len(_SIZES))
    alone = [train_client(clients, weights, order, client) for client in cohort]
    trainer = FastTrainer(clients)
    ways = {
        "stacked": trainer.train_stacked(weights, order, cohort).rows(),
        "by autograd": FastTrainer(clients, captures=False)
        .train_stacked(weights, order, cohort)
        .rows(),
        "captured": [trainer.train_one(weights, order, client).rows()[0] for client in cohort],
    }
    assert trainer.costs() is not None  # nothing fell back to autograd
    for way, updates in ways.items():
        for update in updates:
            expected = alone[update.clients[0]]
            assert _apart(update.arrays, expected, weights) < 1e-9, way
            assert update.loss_sum == pytest.approx(expected.loss_sums[0], rel=1e-9), way
            assert update.weight == expected.weights[0]


@pytest.mark.parametrize("name", EXEMPLARS)
def test_no_model_is_left_to_the_slow_way(name: str) -> None:
    decision = CohortWorker(_clients(name, fresh_seed()), 1).decide(3, ())
    assert decision.execution is not None
    assert decision.execution.kind != "sequential", decision.line()
    assert not decision.reasons, decision.line()


# Of weights, and of how many examples: long sums, narrow weights, and both in a stack.
@pytest.mark.parametrize(
    ("shape", "examples"),
    [((12, 9), 5000), ((10, 4), 64), ((20, 11), 64), ((3, 40), 64), ((7, 10, 4), 64)],
)
def test_a_product_of_factors_rounds_the_weights_once(
    shape: tuple[int, ...], examples: int
) -> None:
    generator = torch.Generator().manual_seed(fresh_seed())
    *stack, rows, columns = shape
    shapes = (shape, (*stack, rows, examples), (*stack, examples, columns))
    weight, a, b = (torch.randn(s, generator=generator) for s in shapes)
    exact = weight.double() - 1e-6 * (a.double() @ b.double())
    sgd = chosen("optimizer", "sgd", lr=1e-6)
    optimizer = LocalOptimizer(sgd, LossConfig(), [weight], stacked=bool(stack))
    optimizer.step([weight], [(a, b)])
    once = exact.float().double() - exact
    assert (weight.double() - exact).norm() <= 1.5 * once.norm()
