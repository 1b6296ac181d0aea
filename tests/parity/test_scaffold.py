"""SCAFFOLD against loops written from its Algorithm 1, in every way of training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from flwr.app import ConfigRecord
from torch import Tensor

from federated.algorithms.control_variates import CONTROL_CHANGE, STATE
from federated.client_state import StateStore
from federated.engine.context import TrainingContext, assemble, divide
from federated.engine.execution import ExecutionPlan
from federated.flower.grid import CohortGrid
from federated.flower.messages import read_arrays, to_record
from federated.job import run_job
from federated.pools.inprocess import InProcessPool
from federated.strategies import ModelFacts, build_strategy
from federated.strategies.scaffold import Scaffold
from heliotrope.config import Run
from heliotrope.data import load
from heliotrope.runs.checkpoint import Checkpoint
from heliotrope.tasks import task_of
from tests.support import assert_same_tensors, compose, saved_by, with_images

_CLIENTS, _RATE, _SERVER_RATE = 5, 0.1, 0.7
_COHORTS = ([0, 2, 3], [1, 2, 4], [0, 2, 4])
_SMALL = (
    "federated/strategy=scaffold",
    f"federated.strategy.server_learning_rate={_SERVER_RATE}",
    f"federated.partition.clients={_CLIENTS}",
    "federated.clients_per_round=3",
    "federated.batch_size=64",
    "federated.local_epochs=2",
    "model.hidden=[4]",
    f"optimizer.lr={_RATE}",
    "seed=5",
)

_Vectors = dict[str, Tensor]


def _in_double(run: Run) -> TrainingContext:
    """Clients in float64, which tells a wrong formula from rounding."""
    dataset = load(run.data, run.seed)
    clients = assemble(run, task_of(dataset), dataset.train, divide(run, dataset))
    clients.model.double()
    return replace(clients, train=with_images(dataset.train, Tensor.double))


def _gradient(clients: TrainingContext, weights: _Vectors, rows: Tensor) -> _Vectors:
    leaves = {name: value.clone().requires_grad_() for name, value in weights.items()}
    batch = clients.train.take(rows)
    outputs = torch.func.functional_call(clients.model, leaves, (batch["image"],))
    loss = torch.nn.functional.cross_entropy(outputs, batch["label"])
    return dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values())), strict=True))


def _by_hand(
    clients: TrainingContext, cohorts: Sequence[Sequence[int]]
) -> tuple[_Vectors, _Vectors, list[_Vectors], float]:
    """Return x, c, all c_i, and the mean length of the last round's changes: Algorithm 1."""
    x = {name: value.clone() for name, value in clients.model.state_dict().items()}
    c = {name: torch.zeros_like(value) for name, value in x.items()}
    own = [dict(c) for _ in range(_CLIENTS)]
    length = 0.0
    for number, cohort in enumerate(cohorts, start=1):
        ways, changes = [], []
        for i in cohort:
            y, steps = dict(x), 0
            for rows, _ in clients.plan(number, [i]).batches():
                g = _gradient(clients, y, rows)
                y = {n: y[n] - _RATE * (g[n] - own[i][n] + c[n]) for n in y}
                steps += 1
            new = {n: own[i][n] - c[n] + (x[n] - y[n]) / (steps * _RATE) for n in x}
            ways.append({n: y[n] - x[n] for n in x})
            changes.append({n: new[n] - own[i][n] for n in x})
            own[i] = new
        x = {n: x[n] + _SERVER_RATE * _mean(ways, n) for n in x}
        c = {n: c[n] + len(cohort) / _CLIENTS * _mean(changes, n) for n in c}
        lengths = [torch.cat([v.flatten() for v in change.values()]).norm() for change in changes]
        length = float(sum(lengths)) / len(lengths)
    return x, c, own, length


def _mean(each: Sequence[Mapping[str, Tensor]], name: str) -> Tensor:
    return torch.stack([vectors[name] for vectors in each]).mean(dim=0)


def _trained(
    run: Run, clients: TrainingContext, kind: str, *, reduce: bool
) -> tuple[_Vectors, Scaffold, CohortGrid]:
    weights = clients.global_weights
    strategy = build_strategy(run, ModelFacts.of(clients.model, clients.total_weight, _CLIENTS))
    assert isinstance(strategy, Scaffold)
    store = StateStore(clients.personal, strategy.beside(weights))
    grid = CohortGrid(InProcessPool(clients, 1), reduce, takes_mean=True, states=store)
    grid.execution, arrays = ExecutionPlan(kind, 1, 2), to_record(weights)
    for number, cohort in enumerate(_COHORTS, start=1):
        grid.offer(cohort)
        messages = strategy.configure_train(number, arrays, ConfigRecord(), grid)
        replies = grid.send_and_receive(messages)
        assert grid.failures == []
        if grid.mean is None:
            found, _ = strategy.aggregate_train(number, replies)
            assert found is not None
            arrays = found
        else:
            arrays = strategy.aggregate_mean(number, grid.mean)
        grid.keep_states()
    return read_arrays(arrays), strategy, grid


@pytest.mark.parametrize("reduce", [True, False])
@pytest.mark.parametrize("kind", ["sequential", "captured", "batched"])
def test_rounds_are_those_of_the_papers_algorithm(kind: str, *, reduce: bool) -> None:
    run = compose("federated", *_SMALL)
    clients = _in_double(run)
    sizes = clients.population.train_sizes(range(_CLIENTS))
    assert len(set(sizes)) > 1, "clients that count by their examples would not show"
    x, c, own, length = _by_hand(clients, _COHORTS)
    found, strategy, grid = _trained(run, clients, kind, reduce=reduce)
    assert grid.states is not None
    states = grid.states.take(range(_CLIENTS))
    for name, value in x.items():
        _close(found[name], value)
        _close(strategy.state_dict()["control"][f"{STATE}{name}"], c[name])
        _close(c[name], _mean(own, name))
        for client in range(_CLIENTS):
            _close(states.of(client)[f"{STATE}{name}"], own[client][name])
    assert grid.numbers == pytest.approx({CONTROL_CHANGE: length}, rel=1e-6)
    assert grid.bytes_each == 2 * sum(value.nbytes for value in x.values())


def _close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-10)


def _job(directory: Path, rounds: int, *more: str) -> Checkpoint:
    run_job(compose("federated", *_SMALL, f"federated.rounds={rounds}", *more), directory)
    return saved_by(directory)


@pytest.mark.usefixtures("no_report")
def test_a_resumed_run_has_the_control_variates_of_one_in_one_go(tmp_path: Path) -> None:
    whole = _job(tmp_path / "whole", 3)
    _job(tmp_path / "parts", 1)
    parts = _job(tmp_path / "parts", 3, "resume=true")
    assert_same_tensors(dict(whole.model), dict(parts.model))
    assert_same_tensors(dict(whole.arrays), dict(parts.arrays))
    pages = [name for name in whole.arrays if name.startswith("client_state/")]
    assert len(pages) == len(whole.model), "c_i are kept in pages, here one of all clients"
    lines = [(tmp_path / part / "metrics.jsonl").read_text() for part in ("whole", "parts")]
    assert all(text.count('"train/control_change"') == 3 for text in lines)


@pytest.mark.slow
@pytest.mark.usefixtures("no_report", "ray_session")
def test_workers_on_ray_have_the_control_variates_of_this_process(tmp_path: Path) -> None:
    kind = "federated.client_training=sequential"
    here = _job(tmp_path / "here", 3, kind)
    for reduce in ("worker", "none"):
        more = ("federated.pool=ray", "federated.workers=2", f"federated.reduce={reduce}")
        there = _job(tmp_path / reduce, 3, kind, *more)
        assert_same_tensors(dict(here.model), dict(there.model))
        assert_same_tensors(dict(here.arrays), dict(there.arrays))
