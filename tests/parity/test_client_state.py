"""Client state: weights of one client stay with it, the same in every way, and on resume."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from federated.aggregation import mean_of
from federated.algorithms import proximal
from federated.client_state import ClientStates, PersonalWeights, StateStore
from federated.engine.context import TrainingContext, assemble, owners_of
from federated.engine.execution import ExecutionPlan
from federated.engine.sequential import train_client
from federated.job import run_job
from federated.pools.inprocess import InProcessPool
from federated.updates import Instruction
from heliotrope.commands.evaluate import evaluate_run
from heliotrope.data import Dataset, Dense, Examples, Info, Traits, partition
from heliotrope.data.preparation import Preparation
from heliotrope.errors import CheckpointError, ConfigError
from heliotrope.evaluation import evaluate
from heliotrope.models import build
from heliotrope.runs.checkpoint import Checkpoint
from heliotrope.tasks import task_of
from tests.support import assert_same_tensors, compose, fresh_seed, saved_by

_USERS, _ITEMS = 7, 9
_MOVIES = (
    "data=movielens",
    "model=matrix_factorization",
    "model.width=3",
    "federated/partition=natural",
    "federated.clients_per_round=4",
    "federated.batch_size=4",
    "federated.holdout_fraction=0.2",
    "optimizer.lr=0.3",
)


def ratings(seed: int, count: int = 90) -> Dataset:
    """Ratings of which some are for testing; users give 1 to many of them."""
    draw = np.random.default_rng(seed)
    user = np.concatenate([np.arange(_USERS), draw.integers(0, _USERS - 2, count - _USERS)])

    def split(rows: slice) -> Examples:
        fields = {
            "user": Dense(user[rows]),
            "item": Dense(draw.integers(0, _ITEMS, len(user[rows]))),
            "rating": Dense(draw.integers(1, 6, len(user[rows])).astype(np.float32)),
        }
        return Examples(fields, user[rows])

    info = Info(task="rating", users=_USERS, items=_ITEMS, target_mean=3.0, target_std=1.2)
    train, test = split(slice(0, count - 20)), split(slice(count - 20, count))
    return Dataset(
        "ratings", train, test.subset(slice(0, 0)), test, info, Preparation((), "none", "")
    )


def clients_of(dataset: Dataset, *settings: str) -> TrainingContext:
    run = compose(
        "federated",
        *_MOVIES,
        *settings,
    )
    parts = partition(run.federated.partition, Traits.of(dataset.train), run.seed)
    central = {"test": dataset.test}
    owners = owners_of(run, central, dataset.train, parts)
    return assemble(run, task_of(dataset), dataset.train, parts, central, owners)


def trained(
    clients: TrainingContext, kind: str, rounds: int
) -> tuple[dict[str, Tensor], StateStore]:
    """Train some clients for `rounds`; return the global weights and all states."""
    pool, store = InProcessPool(clients, 1), StateStore(clients.personal)
    weights = dict(clients.global_weights)
    for number in range(1, rounds + 1):
        cohort = clients.population.draw(number, 4)
        order = Instruction(number, proximal(0.1), states=store.take(cohort))
        plan = ExecutionPlan(kind, 1, 3)
        (reply,) = pool.train(weights, order, cohort, plan, reduce=True)
        assert reply.failures == []
        assert reply.partial is not None
        for states in reply.states:
            store.put(states)
        weights = mean_of([reply.partial], weights).weights(weights)
    return weights, store


def test_a_users_vector_is_its_own_and_is_never_sent() -> None:
    clients = clients_of(ratings(fresh_seed()))
    assert set(clients.personal.built) == {"user.vector.weight", "user.bias.weight"}
    assert set(clients.global_weights) == {"item.vector.weight", "item.bias.weight"}
    store = StateStore(clients.personal)
    stack = train_client(clients, clients.global_weights, Instruction(1), 2)
    assert set(stack.arrays) == set(clients.global_weights)
    store.put(ClientStates(stack.clients, stack.states))
    for client in range(_USERS):
        own, built = store.take([client]).of(client), clients.personal.built
        changed = not torch.equal(own["user.vector.weight"], built["user.vector.weight"])
        assert changed == (client == 2)


@pytest.mark.parametrize("optimizer", ["optimizer=sgd", "optimizer=adamw"])
@pytest.mark.parametrize("kind", ["captured", "batched"])
def test_every_way_of_training_gives_the_same_weights_and_states(kind: str, optimizer: str) -> None:
    clients = clients_of(ratings(fresh_seed()), optimizer, "optimizer.lr=0.03")
    expected, states = trained(clients, "sequential", 3)
    found, others = trained(clients, kind, 3)
    everyone = range(_USERS)
    for ours, theirs in (
        (found, expected),
        (others.take(everyone).arrays, states.take(everyone).arrays),
    ):
        for name, value in theirs.items():
            torch.testing.assert_close(ours[name], value, rtol=1e-4, atol=1e-5)


def test_a_client_trained_from_its_state_goes_on_as_one_that_never_stopped() -> None:
    dataset = ratings(fresh_seed())
    clients = clients_of(dataset)
    weights, rounds = clients.global_weights, 3
    state: dict[str, Tensor] = {}
    store = StateStore(clients.personal)
    for number in range(1, rounds + 1):
        once = train_client(clients, {**weights, **state}, Instruction(number), 0)
        state = {name: value[0] for name, value in once.states.items()}
        order = Instruction(number, states=store.take([1, 0]))
        store.put(ClientStates((0,), train_client(clients, weights, order, 0).states))
        assert_same_tensors(dict(store.take([0]).of(0)), state)


def test_clients_evaluate_as_a_model_with_the_users_of_all() -> None:
    """What the clients evaluate is what a model of all users says of the whole split."""
    dataset = ratings(fresh_seed())
    clients = clients_of(dataset)
    weights, store = trained(clients, "batched", 4)
    task = clients.task
    whole = build(
        compose("federated", "data=movielens", "model=matrix_factorization", "model.width=3").model,
        task,
        0,
    )
    states = store.take(range(_USERS)).arrays
    together = {n: v[:, 0] for n, v in states.items()}
    whole.load_state_dict({**weights, **together})
    expected = evaluate(whole, task, dataset.test, 16)
    pool = InProcessPool(clients, 1)
    found = pool.evaluate_splits_of(weights, store.take(range(_USERS)))
    assert found["test"].count == len(dataset.test)
    assert found["test"].compute() == pytest.approx(expected.compute(), rel=1e-5)
    held = pool.evaluate(weights, [0, 1, 2], store.take([0, 1, 2]))
    rows = clients.population.holdout_examples([0, 1, 2])
    expected = evaluate(whole, task, dataset.train, 16, rows)
    assert held.total.compute() == pytest.approx(expected.compute(), rel=1e-5)


def test_pages_hold_what_was_put_and_are_not_changed_after_a_snapshot() -> None:
    seed = fresh_seed()
    generator = torch.Generator().manual_seed(seed)
    built = PersonalWeights({"big": torch.zeros(3, 9_000), "count": torch.tensor(4)})
    store, expected = StateStore(built), {}
    for number in range(6):
        some = tuple(torch.randperm(100, generator=generator)[:5].tolist())
        values = torch.randn(5, 3, 9_000, generator=generator)
        before = {name: value.clone() for name, value in store.snapshot().items()}
        snapshot = store.snapshot()
        store.put(ClientStates(some, {"big": values, "count": torch.full((5,), number)}))
        assert_same_tensors(snapshot, before)
        expected |= {client: (values[row], number) for row, client in enumerate(some)}
    other = StateStore(built)
    other.restore({"of the strategy": torch.zeros(2), **store.snapshot()})
    for each in (store, other):
        found = each.take(range(100))
        for client in range(100):
            big, count = expected.get(client, (built.built["big"], 4))
            assert torch.equal(found.of(client)["big"], big)
            assert found.of(client)["count"] == count
    assert len(store.snapshot()) < 2 * 100  # a page is of several clients
    with pytest.raises(CheckpointError, match="client state big of shape"):
        StateStore(PersonalWeights({"big": torch.zeros(2)})).restore(store.snapshot())


def test_the_state_of_other_clients_is_refused() -> None:
    """One that has joined since may come before the others, who would have its number."""
    built = PersonalWeights({"big": torch.zeros(3)})
    store, more = (StateStore(built, None, np.array(ids)) for ids in ([7, 9], [3, 7, 9]))
    store.put(ClientStates((0,), {"big": torch.ones(1, 3)}))
    with pytest.raises(CheckpointError, match="state of 2 clients, which are not the 3 of the da"):
        more.restore(store.snapshot())
    same = StateStore(built, None, np.array([7, 9]))
    same.restore(store.snapshot())
    assert same.take([0, 1]).arrays["big"].tolist() == [[1] * 3, [0] * 3]


def test_groups_must_be_clients() -> None:
    dataset = ratings(fresh_seed())
    with pytest.raises(ConfigError, match="Set federated/partition=natural"):
        clients_of(dataset, "federated/partition=iid", "federated.partition.clients=4")


def test_a_client_whose_vector_is_not_finite_keeps_the_one_it_had() -> None:
    dataset = ratings(fresh_seed())
    clients = clients_of(dataset)
    store = StateStore(clients.personal)
    broken = store.take([0, 1, 2])
    broken.arrays["user.bias.weight"][1] = float("inf")  # type: ignore[index]
    for reduce in (True, False):
        for kind in ("sequential", "batched"):
            (reply,) = InProcessPool(clients, 1).train(
                clients.global_weights,
                Instruction(1, states=broken),
                [0, 1, 2],
                ExecutionPlan(kind, 1, 3),
                reduce,
            )
            assert [failure.client for failure in reply.failures] == [1]
            assert sorted(c for states in reply.states for c in states.clients) == [0, 2]


@pytest.fixture
def few_ratings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have `data=movielens` read a few made-up ratings."""
    draw = np.random.default_rng(fresh_seed())
    rows = [
        (user, draw.integers(1, 60), draw.integers(1, 6), n)
        for n in range(9)
        for user in range(1, 9)
    ]
    file = tmp_path / "u.data"
    file.write_text("".join("\t".join(map(str, row)) + "\n" for row in rows))
    monkeypatch.setattr(
        "heliotrope.data.sources.movielens.collect", lambda *_, **__: {"u.data": file}
    )


def _run(directory: Path, rounds: int, *more: str) -> Checkpoint:
    settings = (*_MOVIES, "federated.checkpoint_every=1", f"federated.rounds={rounds}", "seed=5")
    run_job(compose("federated", *settings, *more), directory)
    return saved_by(directory)


@pytest.mark.usefixtures("no_report", "few_ratings")
def test_a_resumed_run_has_the_states_of_one_in_one_go(tmp_path: Path) -> None:
    whole = _run(tmp_path / "whole", 3)
    _run(tmp_path / "parts", 2)
    parts = _run(tmp_path / "parts", 3, "resume=true")
    assert_same_tensors(dict(whole.model), dict(parts.model))
    assert_same_tensors(dict(whole.arrays), dict(parts.arrays))
    assert set(whole.model) == {"item.vector.weight", "item.bias.weight"}
    result = json.loads((tmp_path / "parts" / "result.json").read_text())
    sent = sum(value.nbytes for value in whole.model.values())
    assert result["bytes_up"] - result["preparation"]["bytes_up"] == 3 * 4 * sent
    with pytest.raises(ConfigError, match=r"keeps user\.vector\.weight with its clients"):
        evaluate_run(tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.usefixtures("no_report", "few_ratings", "ray_session")
def test_workers_on_ray_have_the_states_of_this_process(tmp_path: Path) -> None:
    kind = "federated.client_training=sequential"
    here = _run(tmp_path / "here", 3, kind)
    there = _run(tmp_path / "there", 3, kind, "federated.pool=ray", "federated.workers=2")
    assert_same_tensors(dict(here.model), dict(there.model))
    assert_same_tensors(dict(here.arrays), dict(there.arrays))
    values = [
        json.loads((tmp_path / name / "result.json").read_text())["metrics"]
        for name in ("here", "there")
    ]
    assert values[0] == pytest.approx(values[1])
