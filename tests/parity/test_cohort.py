"""Parity 5: sequential = batched = a plain loop; in-process = Ray; reduced = unreduced."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import ray
import torch
from torch import Tensor

from federated.aggregation import mean_of
from federated.algorithms import ControlVariates, FedProx, proximal
from federated.algorithms.control_variates import STATE
from federated.client_state import ClientStates
from federated.engine.context import TrainingContext, assemble, divide
from federated.engine.execution import Decision, ExecutionPlan, decide
from federated.engine.stacked import FastTrainer
from federated.engine.time_limit import Watch
from federated.pools.cohort_worker import CohortWorker
from federated.pools.inprocess import InProcessPool
from federated.pools.local_channel import LocalChannels
from federated.pools.ray_pool import RayPool
from federated.updates import Instruction
from heliotrope.cluster.connection import session
from heliotrope.cluster.placement import Request, room
from heliotrope.config import Run
from heliotrope.data import Dataset, load
from heliotrope.models.layers.seeded import reseed
from heliotrope.tasks import task_of
from tests.support import (
    assert_same_tensors,
    compose,
    confusion_of,
    fresh_seed,
    values_of,
    with_images,
)

_OPTIMIZERS = [
    "optimizer=sgd optimizer.lr=0.05",
    "optimizer=sgd optimizer.lr=0.01 optimizer.momentum=0.9 optimizer.weight_decay=0.01",
    "optimizer=sgd optimizer.lr=0.01 optimizer.momentum=0.8 optimizer.nesterov=true",
    "optimizer=adam optimizer.lr=0.003",
    "optimizer=adam optimizer.lr=0.003 optimizer.weight_decay=0.1 optimizer.betas=[0.8,0.9]",
    "optimizer=adamw optimizer.lr=0.003 optimizer.weight_decay=0.1",
    "optimizer=sgd optimizer.lr=0.05 optimizer.clip_norm=0.5",
    "optimizer=sgd optimizer.lr=0.05 optimizer.clip_norm=0.7 optimizer.momentum=0.9",
]
_MODELS = [
    "model=mlp model.hidden=[12]",
    "model=mlp model.hidden=[12,8] model.dropout=0.4 model.activation=tanh",
    "model=cnn model.channels=[4] model.kernel_size=3 model.hidden=[8] model.dropout=0.3",
    "model=cnn model.channels=[3] model.kernel_size=3 model.flip=true model.shift=2",
]
_USUAL = ((0, 1), (1, 2), (5, 2), (7, 2))  # optimizers and numbers of Ray workers
_KINDS = ("sequential", "captured", "batched")
_PARTITIONS = [
    "federated/partition=dirichlet federated.partition.alpha=0.2",
    "federated/partition=quantity federated.partition.alpha=0.3",
    "federated/partition=iid",
]


def _compose(*settings: str) -> Run:
    return compose("federated", *(word for setting in settings for word in setting.split()))


def _ready(run: Run) -> tuple[TrainingContext, Dataset]:
    dataset = load(run.data, run.seed)
    central = {"test": dataset.test}
    return assemble(run, task_of(dataset), dataset.train, divide(run, dataset), central), dataset


def _ready_in_double(run: Run) -> TrainingContext:
    """Float64 tells a wrong formula from rounding, which Adam can blow up to a whole step."""
    clients, dataset = _ready(run)
    clients.model.double()
    return replace(clients, train=with_images(dataset.train, Tensor.double))


def _weights(clients: TrainingContext) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in clients.model.state_dict().items()}


def _plain(clients: TrainingContext, order: Instruction, client: int) -> dict[str, Tensor]:
    """Train one client as a reader of the papers would write it."""
    model = copy.deepcopy(clients.model).train()
    start = [p.detach().clone() for p in model.parameters()]
    cfg = clients.optimizer
    common = {"lr": cfg.lr, "weight_decay": cfg.weight_decay}
    optimizer: torch.optim.Optimizer
    if cfg.name in ("adam", "adamw"):
        kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[cfg.name]
        optimizer = kind(model.parameters(), betas=cfg.betas, eps=cfg.eps, **common)
    else:
        optimizer = torch.optim.SGD(
            model.parameters(), momentum=cfg.momentum, nesterov=cfg.nesterov, **common
        )
    for rows, step_seed in clients.plan(order.server_round, [client]).batches():
        reseed(model, step_seed)
        batch = clients.train.take(rows)
        loss = torch.nn.functional.cross_entropy(
            model(batch["image"]),
            batch["label"],
            label_smoothing=clients.task.label_smoothing,  # type: ignore[attr-defined]
        )
        for p in model.parameters():
            loss = loss + clients.loss.l1 * p.abs().sum() + clients.loss.l2 / 2 * p.square().sum()
        for (name, p), w in zip(model.named_parameters(), start, strict=True):
            for algorithm in order.algorithms:
                if isinstance(algorithm, FedProx):
                    loss = loss + algorithm.mu / 2 * ((p - w) ** 2).sum()
                elif isinstance(algorithm, ControlVariates):
                    control = algorithm.server[name] - order.states_of(client)[f"{STATE}{name}"]
                    loss = loss + (control * p).sum()
        optimizer.zero_grad()
        loss.backward()
        if cfg.clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(model.parameters(), cfg.clip_norm)
        optimizer.step()
    return model.state_dict()


def _rounding(steps: int) -> float:
    """Float64's rounding after `steps`: training multiplies it, as it does any difference."""
    return 1e-9 if steps <= 60 else 1e-3


def _agree(
    arrays: Mapping[str, Tensor], expected: Mapping[str, Tensor], rounding: float = 1e-9
) -> None:
    for name, value in expected.items():
        torch.testing.assert_close(arrays[name], value, rtol=rounding, atol=rounding)


def _check_all_kinds(
    run: Run, mu: float, cohort: Sequence[int], *, controlled: bool = False
) -> None:
    clients = _ready_in_double(run)
    weights = _weights(clients)
    order = Instruction(3, proximal(mu))
    if controlled:
        server = {name: 0.01 * torch.randn_like(w) for name, w in weights.items()}
        own = {n: 0.01 * torch.randn(len(cohort), *w.shape).to(w) for n, w in weights.items()}
        states = ClientStates(tuple(cohort), {f"{STATE}{name}": v for name, v in own.items()})
        order = Instruction(3, (*proximal(mu), ControlVariates(server)), states=states)
    expected = {client: _plain(clients, order, client) for client in cohort}
    worker = CohortWorker(clients, 1)
    sizes = dict(zip(cohort, clients.population.train_sizes(cohort), strict=True))
    total = sum(sizes.values())
    mean = {
        name: sum(expected[c][name].double() * sizes[c] for c in cohort) / total for name in weights
    }
    losses = []
    for kind in _KINDS:
        reply = worker.train(weights, order, cohort, ExecutionPlan(kind, 1, 3), reduce=False)
        assert not reply.failures
        assert [update.clients for update in reply.updates] == [(c,) for c in cohort]
        for update in reply.updates:
            (client,) = update.clients
            _agree(update.arrays, expected[client], _rounding(update.steps))
            assert update.weight == sizes[client]
            assert update.seen == sizes[client] * run.federated.local_epochs
        losses.append(sum(update.loss_sum for update in reply.updates))
        rounding = _rounding(max(update.steps for update in reply.updates))

        partial = worker.train(
            weights, order, cohort, ExecutionPlan(kind, 1, 3), reduce=True
        ).partial
        assert partial is not None
        assert partial.clients == tuple(cohort)
        assert partial.weight == total
        _agree(mean_of([partial], weights).weights(weights), mean, rounding)
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
@pytest.mark.parametrize("optimizer", _OPTIMIZERS)
def test_every_optimizer_trains_stacked_as_alone(
    optimizer: str, mu: float, controlled: bool
) -> None:
    run = _compose(optimizer, _MODELS[1], _PARTITIONS[0], "federated.local_epochs=2 seed=5")
    _check_all_kinds(run, mu, cohort=[0, 2, 3, 7, 9], controlled=controlled)


@pytest.mark.parametrize("optimizer", [_OPTIMIZERS[0], _OPTIMIZERS[2], _OPTIMIZERS[4]])
def test_smoothed_labels_and_penalties_train_stacked_as_alone(optimizer: str) -> None:
    loss = "loss.label_smoothing=0.1 loss.l1=0.0002 loss.l2=0.01"
    run = _compose(optimizer, loss, _MODELS[1], _PARTITIONS[0], "seed=5")
    _check_all_kinds(run, mu=0.1, cohort=[0, 2, 3, 7, 9])


@pytest.mark.parametrize("trial", range(20))
def test_random_configurations_agree_with_a_plain_loop(trial: int) -> None:
    seed = fresh_seed()
    draw = random.Random(seed)
    clients = draw.randint(3, 60)
    run = _compose(
        draw.choice(_OPTIMIZERS),
        draw.choice(_MODELS),
        draw.choice(_PARTITIONS),
        f"federated.partition.clients={clients} federated.clients_per_round=1",
        f"federated.local_epochs={draw.randint(1, 3)} seed={draw.randint(0, 10**6)}",
        f"federated.batch_size={draw.choice(['null', '1', '5', '8', '64'])}",
        f"federated.holdout_fraction={draw.choice([0.0, 0.2])}",
    )
    if run.federated.batch_size == 1:
        run.federated.local_epochs = 1
    cohort = sorted(draw.sample(range(clients), draw.randint(1, min(clients, 8))))
    mu, controlled = draw.choice([0.0, 0.5]), draw.choice([True, False])
    _check_all_kinds(run, mu, cohort, controlled=controlled)


@pytest.mark.parametrize("lanes", [2, 3, 5])
@pytest.mark.parametrize("kind", ["sequential", "captured"])
def test_lanes_train_side_by_side_as_one_after_another(kind: str, lanes: int) -> None:
    run = _compose(_OPTIMIZERS[0], _MODELS[2], _PARTITIONS[0], "seed=5")
    clients = _ready_in_double(run)
    worker, weights, order = CohortWorker(clients, lanes), _weights(clients), Instruction(2)
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
    run = _compose(_OPTIMIZERS[0], _MODELS[0], _PARTITIONS[2], "seed=5")
    clients, _ = _ready(run)
    values_of(clients.train, "label")[clients.population.train_indices(3)] = 99
    worker = CohortWorker(clients, 2)
    choice = ExecutionPlan("captured", 1, lanes=2)
    reply = worker.train(_weights(clients), Instruction(1), [0, 1, 3, 4], choice, reduce=True)
    assert [failure.client for failure in reply.failures] == [3]
    assert reply.partial is not None
    assert reply.partial.clients == (0, 1, 4)


def _decide(clients: TrainingContext, threads: int = 2) -> Decision:
    return decide(clients, 4, threads, (), Watch())


def test_clients_with_a_time_limit_have_no_lanes() -> None:
    """A client is cut off by a signal, which only the main thread hears."""
    for timeout, most in (("null", 2), ("5", 1)):
        clients, _ = _ready(
            _compose(
                "model=mlp model.hidden=[2000,200] federated.client_training=captured",
                f"federated.client_timeout={timeout} federated.batch_size=16",
            )
        )
        choice = _decide(clients).execution
        assert choice is not None
        assert choice.lanes == most


def test_lanes_and_stacks_are_as_asked_for() -> None:
    for kind, key, asked in (("captured", "lanes", 3), ("batched", "stack_size", 3)):
        settings = f"federated.client_training={kind} federated.{key}={asked}"
        clients, _ = _ready(_compose(_MODELS[0], _PARTITIONS[2], settings))
        choice = _decide(clients).execution
        assert choice == ExecutionPlan(kind, 1, **{key.removesuffix("_size"): asked})


def test_an_optimizer_without_a_stacked_form_trains_one_client_at_a_time() -> None:
    clients, _ = _ready(_compose("optimizer=adafactor", _MODELS[0], _PARTITIONS[2]))
    decision = _decide(clients)
    assert decision.execution is not None
    assert decision.execution.kind == "sequential"
    assert "optimizer=adafactor" in decision.line()
    for kind in ("batched", "captured"):
        clients.federated.client_training = kind
        assert _decide(clients).execution is None


def test_the_choice_is_the_same_every_time() -> None:
    """It follows a rule: nothing is timed."""
    for model in _MODELS:
        run = _compose(model, _PARTITIONS[0], "seed=5")
        first, again = (_decide(_ready(run)[0]) for _ in range(2))
        assert first == again


@pytest.mark.parametrize("model", _MODELS)
def test_stacks_that_are_not_captured_agree_with_a_plain_loop(model: str) -> None:
    """As on a GPU, where autograd's threads cannot be watched."""
    run = _compose(_OPTIMIZERS[1], model, _PARTITIONS[0], "federated.local_epochs=2 seed=5")
    clients = _ready_in_double(run)
    weights, order, cohort = _weights(clients), Instruction(3, proximal(0.1)), [0, 2, 3, 7]
    trainer = FastTrainer(clients, captures=False)
    for update in trainer.train_stacked(weights, order, cohort).rows():
        _agree(update.arrays, _plain(clients, order, update.clients[0]), _rounding(update.steps))


@contextmanager
def _ray_pool(run: Run, workers: int, log: Path) -> Iterator[RayPool]:
    clients, _ = _ready(run)
    run.federated.workers = workers

    def on_failure(worker: int, reason: str) -> None:
        pytest.fail(f"worker {worker}: {reason}")

    request = Request(workers, {"CPU": 1})
    with session(ray) as cluster, room(ray, cluster, "workers", request, 30) as group:
        pool = RayPool(run, clients, {"CPU": 1}, group, log, on_failure)
        try:
            yield pool
        finally:
            pool.close()


@pytest.mark.parametrize("kind", _KINDS)
def test_updates_are_clipped_alike_in_every_kind_of_training(kind: str) -> None:
    """The mean of the clipped updates is that of plain loops, clipped by hand."""
    run = _compose(_OPTIMIZERS[1], _MODELS[1], _PARTITIONS[0], "federated.clip_update_norm=0.05")
    clients, cohort, most = _ready_in_double(run), [1, 3, 4, 5, 8], 0.05
    weights, order = _weights(clients), Instruction(2)
    expected, longest = {}, 0.0
    for client in cohort:
        plain = _plain(clients, order, client)
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
        _agree(update.arrays, expected[update.clients[0]])
    partial = worker.train(weights, order, cohort, choice, reduce=True).partial
    assert partial is not None
    sizes = clients.population.train_sizes(cohort)
    found = mean_of([partial], weights).weights(weights)
    for name in weights:
        each = zip(cohort, sizes, strict=True)
        mean = sum(expected[client][name] * size for client, size in each) / sum(sizes)
        torch.testing.assert_close(found[name], mean, rtol=1e-9, atol=1e-9)


@pytest.mark.usefixtures("ray_session")
@pytest.mark.parametrize(
    ("optimizer", "workers"),
    [
        pytest.param(
            optimizer, workers, marks=() if (place, workers) in _USUAL else pytest.mark.slow
        )
        for place, optimizer in enumerate(_OPTIMIZERS)
        for workers in (1, 2)
    ]
    + [(f"{_OPTIMIZERS[0]} federated.clip_update_norm=0.1", 2)],
)
def test_ray_workers_give_what_this_process_gives(
    optimizer: str, workers: int, tmp_path: Path
) -> None:
    run = _compose(optimizer, _MODELS[1], _PARTITIONS[0], "federated.holdout_fraction=0.2")
    clients, _ = _ready(run)
    weights, order, cohort = _weights(clients), Instruction(2, proximal(0.1)), [1, 3, 4, 5, 8]
    here = InProcessPool(clients, 1)
    with _ray_pool(run, workers, tmp_path / "run.log") as there:
        for kind in _KINDS:
            (expected,) = here.train(
                weights, order, cohort, ExecutionPlan(kind, 1, 3), reduce=False
            )
            replies = there.train(weights, order, cohort, ExecutionPlan(kind, 1, 3), reduce=False)
            assert len(replies) == workers
            updates = {u.clients: u for reply in replies for u in reply.updates}
            assert sorted(updates) == [(client,) for client in cohort]
            for update in expected.updates:
                _agree(updates[update.clients].arrays, update.arrays, rounding=1e-5)

            (whole,) = here.train(weights, order, cohort, ExecutionPlan(kind, 1, 3), reduce=True)
            replies = there.train(weights, order, cohort, ExecutionPlan(kind, 1, 3), reduce=True)
            parts = [reply.partial for reply in replies if reply.partial is not None]
            assert whole.partial is not None
            assert len(parts) == workers
            mean = mean_of([whole.partial], weights).differences
            found = mean_of(parts, weights).differences
            if kind == "batched":  # other stacks, whose clients round differently
                _agree(found, mean, rounding=1e-6)
            else:
                assert_same_tensors(dict(found), dict(mean))
        everyone = clients.population.evaluating()
        mine, theirs = here.evaluate(weights, everyone), there.evaluate(weights, everyone)
        assert list(mine.clients) == list(theirs.clients) == everyone
        assert mine.alone is theirs.alone is None
        assert mine.rows() == [pytest.approx(row) for row in theirs.rows()]
        assert (confusion_of(mine.total) == confusion_of(theirs.total)).all()
        mine, theirs = here.evaluate_centrally(weights), there.evaluate_centrally(weights)
        assert (confusion_of(mine["test"]) == confusion_of(theirs["test"])).all()
        assert mine["test"].compute() == pytest.approx(theirs["test"].compute())


@pytest.mark.usefixtures("ray_session")
def test_workers_on_other_machines_give_what_those_here_give(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = _compose(_OPTIMIZERS[0], _MODELS[0], _PARTITIONS[0], "federated.holdout_fraction=0.2")
    clients, _ = _ready(run)
    weights, order, cohort = _weights(clients), Instruction(2), [1, 3, 4, 5, 8]
    connect = LocalChannels.connect
    found = []
    for elsewhere in ([], [1], [0, 1]):

        def connect_here(local: LocalChannels, worker: int, *how: Any, gone: list[int] = elsewhere):
            if worker not in gone:
                connect(local, worker, *how)

        monkeypatch.setattr(LocalChannels, "connect", connect_here)
        with _ray_pool(run, 2, tmp_path / "run.log") as pool:
            for reduce in (True, False):
                replies = pool.train(weights, order, cohort, ExecutionPlan("batched", 1, 3), reduce)
            evaluated = pool.evaluate(weights, cohort)
            assert sorted(pool._local.channels) == sorted({0, 1} - set(elsewhere))
        found.append((replies, evaluated))
    for replies, evaluated in found[1:]:
        for reply, expected in zip(replies, found[0][0], strict=True):
            for update, same in zip(reply.updates, expected.updates, strict=True):
                assert update.clients == same.clients
                for name, value in same.arrays.items():
                    assert torch.equal(update.arrays[name], value)
        assert evaluated.clients == found[0][1].clients
        assert (evaluated.numbers == found[0][1].numbers).all()
        assert (evaluated.total.sums == found[0][1].total.sums).all()
