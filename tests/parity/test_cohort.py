"""Parity 5: sequential = batched = a plain loop."""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np
import pytest
import torch

from federated.aggregation import mean_of
from federated.algorithms import ControlVariates, proximal
from federated.algorithms.control_variates import STATE
from federated.client_state import ClientStates
from federated.engine.execution import ExecutionPlan
from federated.engine.stacked import FastTrainer
from federated.pools.cohort_worker import CohortWorker
from federated.updates import Instruction
from heliotrope.config import Run
from tests.parity.cohorts import (
    KINDS,
    MODELS,
    OPTIMIZERS,
    PARTITIONS,
    assert_agree,
    context_in_double,
    context_of,
    federated_run,
    plain_loop,
    rounding_after,
    weights_of,
)
from tests.support import (
    assert_same_tensors,
    fresh_seed,
    values_of,
)

# Of a client that is compared with a loop; a third of all examples, one by one, are fewer.
_MOST_STEPS = 500


def _check_all_kinds(
    run: Run, mu: float, cohort: Sequence[int], *, controlled: bool = False
) -> None:
    clients = context_in_double(run)
    weights = weights_of(clients)
    order = Instruction(3, proximal(mu))
    if controlled:
        server = {name: 0.01 * torch.randn_like(w) for name, w in weights.items()}
        own = {n: 0.01 * torch.randn(len(cohort), *w.shape).to(w) for n, w in weights.items()}
        states = ClientStates(tuple(cohort), {f"{STATE}{name}": v for name, v in own.items()})
        order = Instruction(3, (*proximal(mu), ControlVariates(server)), states=states)
    expected = {client: plain_loop(clients, order, client) for client in cohort}
    worker = CohortWorker(clients, 1)
    sizes = dict(zip(cohort, clients.population.train_sizes(cohort), strict=True))
    total = sum(sizes.values())
    mean = {
        name: sum(expected[c][name].double() * sizes[c] for c in cohort) / total for name in weights
    }
    losses = []
    for kind in KINDS:
        reply = worker.train(weights, order, cohort, ExecutionPlan(kind, 1, 3), reduce=False)
        assert not reply.failures
        assert [update.clients for update in reply.updates] == [(c,) for c in cohort]
        for update in reply.updates:
            (client,) = update.clients
            assert_agree(update.arrays, expected[client], rounding_after(update.steps))
            assert update.weight == sizes[client]
            assert update.seen == sizes[client] * run.federated.local_epochs
        losses.append(sum(update.loss_sum for update in reply.updates))
        rounding = rounding_after(max(update.steps for update in reply.updates))

        partial = worker.train(
            weights, order, cohort, ExecutionPlan(kind, 1, 3), reduce=True
        ).partial
        assert partial is not None
        assert partial.clients == tuple(cohort)
        assert partial.weight == total
        assert_agree(mean_of([partial], weights).weights(weights), mean, rounding)
        losses.append(sum(partial.loss_sums))
    assert losses == pytest.approx([losses[0]] * len(losses), rel=rounding)


@pytest.mark.parametrize(
    ("mu", "controlled"),
    [
        pytest.param(0.0, False, marks=pytest.mark.slow),
        pytest.param(0.1, False, marks=pytest.mark.slow),
        pytest.param(0.0, True, marks=pytest.mark.slow),
        (0.1, True),
    ],
)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_every_optimizer_trains_stacked_as_alone(
    optimizer: str, mu: float, controlled: bool
) -> None:
    run = federated_run(optimizer, MODELS[1], PARTITIONS[0], "federated.local_epochs=2 seed=5")
    _check_all_kinds(run, mu, cohort=[0, 2, 3, 7, 9], controlled=controlled)


@pytest.mark.parametrize("optimizer", [OPTIMIZERS[0], OPTIMIZERS[2], OPTIMIZERS[4]])
def test_smoothed_labels_and_penalties_train_stacked_as_alone(optimizer: str) -> None:
    loss = "loss.label_smoothing=0.1 loss.l1=0.0002 loss.l2=0.01"
    run = federated_run(optimizer, loss, MODELS[1], PARTITIONS[0], "seed=5")
    _check_all_kinds(run, mu=0.1, cohort=[0, 2, 3, 7, 9])


@pytest.mark.parametrize("trial", range(20))
def test_random_configurations_agree_with_a_plain_loop(trial: int) -> None:
    seed = fresh_seed()
    draw = random.Random(seed)
    clients = draw.randint(3, 60)
    run = federated_run(
        draw.choice(OPTIMIZERS),
        draw.choice(MODELS),
        draw.choice(PARTITIONS),
        f"federated.partition.clients={clients} federated.clients_per_round=1",
        f"federated.local_epochs={draw.randint(1, 3)} seed={draw.randint(0, 10**6)}",
        f"federated.batch_size={draw.choice(['null', '1', '5', '8', '64'])}",
        f"federated.holdout_fraction={draw.choice([0.0, 0.2])}",
    )
    if run.federated.batch_size == 1:
        run.federated.local_epochs = 1
    sizes = context_in_double(run).population.train_sizes(range(clients))
    steps = -(-np.array(sizes) // (run.federated.batch_size or max(sizes)))
    # A loop that begins with weights changed by 1e-15 has others in the second digit after 1,000.
    short = np.flatnonzero(steps * run.federated.local_epochs <= _MOST_STEPS).tolist()
    cohort = sorted(draw.sample(short, draw.randint(1, min(len(short), 8))))
    mu, controlled = draw.choice([0.0, 0.5]), draw.choice([True, False])
    _check_all_kinds(run, mu, cohort, controlled=controlled)


@pytest.mark.parametrize("lanes", [2, 3, 5])
@pytest.mark.parametrize("kind", ["sequential", "captured"])
def test_lanes_train_side_by_side_as_one_after_another(kind: str, lanes: int) -> None:
    run = federated_run(OPTIMIZERS[0], MODELS[2], PARTITIONS[0], "seed=5")
    clients = context_in_double(run)
    worker, weights, order = CohortWorker(clients, lanes), weights_of(clients), Instruction(2)
    cohort, one, side = [0, 3, 4, 8], ExecutionPlan(kind, 1), ExecutionPlan(kind, 1, lanes=lanes)

    expected = worker.train(weights, order, cohort, one, reduce=False).updates
    workers = (worker, worker, CohortWorker(clients, 1))  # with fewer threads, one by one
    replies = [each.train(weights, order, cohort, side, reduce=False) for each in workers]
    for reply in replies:
        assert [update.clients for update in reply.updates] == [(c,) for c in cohort]
        for update, alone in zip(reply.updates, expected, strict=True):
            for name, value in alone.arrays.items():
                assert torch.equal(update.arrays[name], value)
            assert update.loss_sum == alone.loss_sum

    whole = worker.train(weights, order, cohort, one, reduce=True).partial
    lanes_sum = worker.train(weights, order, cohort, side, reduce=True).partial
    assert whole is not None
    assert lanes_sum is not None
    assert whole.clients == lanes_sum.clients == tuple(cohort)
    assert_same_tensors(
        dict(mean_of([whole], weights).differences), dict(mean_of([lanes_sum], weights).differences)
    )


def test_lanes_name_a_client_that_fails_and_go_on_with_the_others() -> None:
    run = federated_run(OPTIMIZERS[0], MODELS[0], PARTITIONS[2], "seed=5")
    clients, _ = context_of(run)
    values_of(clients.train, "label")[clients.population.train_indices(3)] = 99
    worker = CohortWorker(clients, 2)
    choice = ExecutionPlan("captured", 1, lanes=2)
    reply = worker.train(weights_of(clients), Instruction(1), [0, 1, 3, 4], choice, reduce=True)
    assert [failure.client for failure in reply.failures] == [3]
    assert reply.partial is not None
    assert reply.partial.clients == (0, 1, 4)


@pytest.mark.parametrize("model", MODELS)
def test_stacks_that_are_not_captured_agree_with_a_plain_loop(model: str) -> None:
    """As on a GPU, where autograd's threads cannot be watched."""
    run = federated_run(OPTIMIZERS[1], model, PARTITIONS[0], "federated.local_epochs=2 seed=5")
    clients = context_in_double(run)
    weights, order, cohort = weights_of(clients), Instruction(3, proximal(0.1)), [0, 2, 3, 7]
    trainer = FastTrainer(clients, captures=False)
    for update in trainer.train_stacked(weights, order, cohort).rows():
        assert_agree(
            update.arrays,
            plain_loop(clients, order, update.clients[0]),
            rounding_after(update.steps),
        )


@pytest.mark.parametrize("kind", KINDS)
def test_updates_are_clipped_alike_in_every_kind_of_training(kind: str) -> None:
    """The mean of the clipped updates is that of plain loops, clipped by hand."""
    run = federated_run(OPTIMIZERS[1], MODELS[1], PARTITIONS[0], "federated.clip_update_norm=0.05")
    clients, cohort, most = context_in_double(run), [1, 3, 4, 5, 8], 0.05
    weights, order = weights_of(clients), Instruction(2)
    expected, longest = {}, 0.0
    for client in cohort:
        plain = plain_loop(clients, order, client)
        steps = {name: plain[name] - weights[name] for name in weights}
        norm = float(torch.cat([step.flatten() for step in steps.values()]).norm())
        longest = max(longest, norm)
        scale = min(1.0, most / norm)
        expected[client] = {name: weights[name] + scale * step for name, step in steps.items()}
    assert longest > most
    worker, choice = CohortWorker(clients, 1), ExecutionPlan(kind, 1, 3)
    reply = worker.train(weights, order, cohort, choice, reduce=False)
    assert [update.clients for update in reply.updates] == [(client,) for client in cohort]
    for update in reply.updates:
        assert_agree(update.arrays, expected[update.clients[0]])
    partial = worker.train(weights, order, cohort, choice, reduce=True).partial
    assert partial is not None
    sizes = clients.population.train_sizes(cohort)
    found = mean_of([partial], weights).weights(weights)
    for name in weights:
        each = zip(cohort, sizes, strict=True)
        mean = sum(expected[client][name] * size for client, size in each) / sum(sizes)
        torch.testing.assert_close(found[name], mean, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("model", MODELS)
def test_a_cohort_of_any_size_is_trained_alike_whichever_came_before(model: str) -> None:
    """Steps for a new number of clients are made of earlier ones, to the bit."""
    seed = fresh_seed()
    draw = random.Random(seed)
    run = federated_run(model, PARTITIONS[0], "federated.partition.clients=30 seed=5")
    clients = context_of(run)[0]
    weights, order = clients.global_weights, Instruction(3)
    trainer = FastTrainer(clients)
    for size in draw.sample([1, 2, 19, *draw.sample(range(3, 19), 3)], 6):
        cohort = sorted(draw.sample(range(30), size))
        ours = trainer.train_stacked(weights, order, cohort)
        fresh = FastTrainer(clients).train_stacked(weights, order, cohort)
        assert ours.clients == fresh.clients
        assert ours.loss_sums == fresh.loss_sums
        assert_same_tensors(ours.arrays, fresh.arrays)
