"""Parity 5: sequential = batched = a plain loop; in-process = Ray; reduced = unreduced."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import ray
import torch
from torch import Tensor

from federated.choice import Choice, candidates, check_kind
from federated.client import Clients, Instruction, Update
from federated.cohort import CohortWorker
from federated.pool import InProcessPool
from federated.ray_pool import RayPool
from federated.setup import assemble, divide
from federated.time_limit import Watch
from heliotrope.cluster import room, session
from heliotrope.config import AdamConfig, Run
from heliotrope.data import Dataset, load
from heliotrope.errors import ConfigError
from heliotrope.models.seeded import reseed
from heliotrope.tasks import task_of
from tests.support import compose, fresh_seed

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
_KINDS = ("sequential", "compiled", "batched")
_PARTITIONS = [
    "federated/partition=dirichlet federated.partition.alpha=0.2",
    "federated/partition=quantity federated.partition.alpha=0.3",
    "federated/partition=iid",
]


def _compose(*settings: str) -> Run:
    return compose("federated", *(word for setting in settings for word in setting.split()))


def _ready(run: Run) -> tuple[Clients, Dataset]:
    dataset = load(run.data, run.seed)
    central = {"test": dataset.test}
    return assemble(run, task_of(dataset), dataset.train, divide(run, dataset), central), dataset


def _ready_in_double(run: Run) -> Clients:
    """Float64 tells a wrong formula from rounding, which Adam can blow up to a whole step."""
    clients, dataset = _ready(run)
    clients.model.double()
    return replace(clients, train=replace(dataset.train, inputs=dataset.train.inputs.double()))


def _weights(clients: Clients) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in clients.model.state_dict().items()}


def _plain(clients: Clients, order: Instruction, client: int) -> dict[str, Tensor]:
    """Train one client as a reader of the papers would write it."""
    model = copy.deepcopy(clients.model).train()
    start = [p.detach().clone() for p in model.parameters()]
    cfg = clients.optimizer
    common = {"lr": cfg.lr, "weight_decay": cfg.weight_decay}
    optimizer: torch.optim.Optimizer
    if isinstance(cfg, AdamConfig):
        kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[cfg.name]
        optimizer = kind(model.parameters(), betas=cfg.betas, eps=cfg.eps, **common)
    else:
        optimizer = torch.optim.SGD(
            model.parameters(), momentum=cfg.momentum, nesterov=cfg.nesterov, **common
        )
    for rows, step_seed in clients.plan(order.server_round, [client]).batches():
        reseed(model, step_seed)
        logits = model(clients.train.inputs[rows])
        loss = torch.nn.functional.cross_entropy(
            logits,
            clients.train.targets[rows],
            label_smoothing=clients.task.label_smoothing,  # type: ignore[attr-defined]
        )
        for p in model.parameters():
            loss = loss + clients.loss.l1 * p.abs().sum() + clients.loss.l2 / 2 * p.square().sum()
        for (name, p), w in zip(model.named_parameters(), start, strict=True):
            loss = loss + order.proximal_mu / 2 * ((p - w) ** 2).sum()
            if order.controls is not None:
                loss = loss + (order.controls[client][name] * p).sum()
        optimizer.zero_grad()
        loss.backward()
        if cfg.clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(model.parameters(), cfg.clip_norm)
        optimizer.step()
    return model.state_dict()


def _rounding(steps: int) -> float:
    """Float64's rounding after `steps`: training multiplies it, as it does any difference."""
    return 1e-9 if steps <= 60 else 1e-3


def _agree(update: Update, expected: Mapping[str, Tensor], rounding: float = 1e-9) -> None:
    for name, value in expected.items():
        torch.testing.assert_close(update.arrays[name], value, rtol=rounding, atol=rounding)


def _check_all_kinds(
    run: Run, mu: float, cohort: Sequence[int], *, controlled: bool = False
) -> None:
    clients = _ready_in_double(run)
    weights = _weights(clients)
    controls = {c: {n: 0.01 * torch.randn_like(w) for n, w in weights.items()} for c in cohort}
    order = Instruction(3, mu, controls if controlled else None)
    expected = {client: _plain(clients, order, client) for client in cohort}
    worker = CohortWorker(clients, 1)
    sizes = dict(zip(cohort, clients.population.train_sizes(cohort), strict=True))
    total = sum(sizes.values())
    mean = {
        name: sum(expected[c][name].double() * sizes[c] for c in cohort) / total for name in weights
    }
    losses = []
    for kind in _KINDS:
        reply = worker.train(weights, order, cohort, Choice(kind, 1, 3), reduce=False)
        assert not reply.failures
        assert [update.clients for update in reply.updates] == [(c,) for c in cohort]
        for update in reply.updates:
            (client,) = update.clients
            _agree(update, expected[client], _rounding(update.steps))
            assert update.examples == sizes[client]
            assert update.seen == sizes[client] * run.federated.local_epochs
        losses.append(sum(update.loss_sum for update in reply.updates))
        rounding = _rounding(max(update.steps for update in reply.updates))

        (reduced,) = worker.train(weights, order, cohort, Choice(kind, 1, 3), reduce=True).updates
        assert reduced.clients == tuple(cohort)
        assert reduced.examples == total
        _agree(reduced, mean, rounding)
        losses.append(reduced.loss_sum)
    assert losses == pytest.approx([losses[0]] * len(losses), rel=rounding)


@pytest.mark.parametrize("controlled", [False, True])
@pytest.mark.parametrize("mu", [0.0, 0.1])
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
@pytest.mark.parametrize("kind", ["sequential", "compiled"])
def test_lanes_train_side_by_side_as_one_after_another(kind: str, lanes: int) -> None:
    run = _compose(_OPTIMIZERS[0], _MODELS[2], _PARTITIONS[0], "seed=5")
    clients = _ready_in_double(run)
    worker, weights, order = CohortWorker(clients, lanes), _weights(clients), Instruction(2)
    cohort, one, side = [0, 3, 4, 8], Choice(kind, 1), Choice(kind, 1, lanes=lanes)

    expected = worker.train(weights, order, cohort, one, reduce=False).updates
    workers = (worker, worker, CohortWorker(clients, 1))  # with fewer threads, one by one
    replies = [each.train(weights, order, cohort, side, reduce=False) for each in workers]
    for reply in replies:
        assert [update.clients for update in reply.updates] == [(c,) for c in cohort]
        for update, alone in zip(reply.updates, expected, strict=True):
            for name, value in alone.arrays.items():
                assert torch.equal(update.arrays[name], value)
            assert update.loss_sum == alone.loss_sum

    (whole,) = worker.train(weights, order, cohort, one, reduce=True).updates
    means = worker.train(weights, order, cohort, side, reduce=True).updates
    assert len(means) == min(lanes, len(cohort))
    assert sorted(c for mean in means for c in mean.clients) == cohort
    for name, value in whole.arrays.items():
        mean = sum(m.arrays[name] * (m.examples / whole.examples) for m in means)
        torch.testing.assert_close(mean, value, rtol=1e-12, atol=1e-12)


def test_lanes_name_a_client_that_fails_and_go_on_with_the_others() -> None:
    run = _compose(_OPTIMIZERS[0], _MODELS[0], _PARTITIONS[2], "seed=5")
    clients, _ = _ready(run)
    clients.train.targets[clients.population.train_indices(3)] = 99
    worker = CohortWorker(clients, 2)
    choice = Choice("compiled", 1, lanes=2)
    reply = worker.train(_weights(clients), Instruction(1), [0, 1, 3, 4], choice, reduce=True)
    assert [failure.client for failure in reply.failures] == [3]
    assert sorted(c for update in reply.updates for c in update.clients) == [0, 1, 4]


def test_clients_with_a_time_limit_have_no_lanes() -> None:
    """A client is cut off by a signal, which only the main thread hears."""
    for timeout, most in (("null", 2), ("5", 1)):
        run = _compose(_MODELS[0], _PARTITIONS[2], f"federated.client_timeout={timeout}")
        clients, _ = _ready(run)
        assert max(choice.lanes for choice in candidates(clients, range(4), 2, Watch())) == most


def test_lanes_are_as_many_as_asked_for() -> None:
    for asked in (1, 3):
        run = _compose(_MODELS[0], _PARTITIONS[2], f"federated.lanes={asked}")
        clients, _ = _ready(run)
        found = candidates(clients, range(4), 2, Watch())
        assert {choice.lanes for choice in found if choice.kind == "compiled"} == {asked}


def test_an_optimizer_without_a_stacked_form_trains_one_client_at_a_time() -> None:
    clients, _ = _ready(_compose("optimizer=adafactor", _MODELS[0], _PARTITIONS[2]))
    assert {choice.kind for choice in candidates(clients, range(4), 1, Watch())} == {"sequential"}
    check_kind(clients)
    for kind in ("batched", "compiled"):
        clients.federated.client_training = kind
        with pytest.raises(ConfigError, match=f"client_training={kind}.*optimizer=adafactor"):
            check_kind(clients)


@contextmanager
def _ray_pool(run: Run, workers: int, log: Path) -> Iterator[RayPool]:
    clients, _ = _ready(run)
    run.federated.workers = workers

    def on_failure(worker: int, reason: str) -> None:
        pytest.fail(f"worker {worker}: {reason}")

    with session(ray) as cluster, room(ray, cluster, "workers", workers, {"CPU": 1}) as group:
        pool = RayPool(run, clients, {"CPU": 1}, group, log, on_failure)
        try:
            yield pool
        finally:
            pool.close()


@pytest.mark.usefixtures("ray_session")
@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("optimizer", _OPTIMIZERS)
def test_ray_workers_give_what_this_process_gives(
    optimizer: str, workers: int, tmp_path: Path
) -> None:
    run = _compose(optimizer, _MODELS[1], _PARTITIONS[0], "federated.holdout_fraction=0.2")
    clients, _ = _ready(run)
    weights, order, cohort = _weights(clients), Instruction(2, 0.1), [1, 3, 4, 5, 8]
    here = InProcessPool(clients, 1)
    with _ray_pool(run, workers, tmp_path / "run.log") as there:
        for kind in _KINDS:
            (expected,) = here.train(weights, order, cohort, Choice(kind, 1, 3), reduce=False)
            replies = there.train(weights, order, cohort, Choice(kind, 1, 3), reduce=False)
            assert len(replies) == workers
            updates = {u.clients: u for reply in replies for u in reply.updates}
            assert sorted(updates) == [(client,) for client in cohort]
            for update in expected.updates:
                _agree(updates[update.clients], update.arrays, rounding=1e-5)

            (whole,) = here.train(weights, order, cohort, Choice(kind, 1, 3), reduce=True)
            parts = [
                u
                for reply in there.train(weights, order, cohort, Choice(kind, 1, 3), reduce=True)
                for u in reply.updates
            ]
            assert len(parts) == workers
            total = sum(part.examples for part in parts)
            for name, value in whole.updates[0].arrays.items():
                mean = sum(part.arrays[name] * (part.examples / total) for part in parts)
                torch.testing.assert_close(mean, value, rtol=1e-4, atol=2e-6)
        everyone = clients.population.evaluating()
        mine, theirs = here.evaluate(weights, everyone), there.evaluate(weights, everyone)
        assert list(mine.metrics) == list(theirs.metrics) == everyone
        for client in everyone:
            assert (mine.metrics[client].confusion == theirs.metrics[client].confusion).all()
        mine, theirs = here.evaluate_centrally(weights), there.evaluate_centrally(weights)
        assert (mine["test"].confusion == theirs["test"].confusion).all()
        assert mine["test"].loss_sum == pytest.approx(theirs["test"].loss_sum)
