"""Parity 5: workers of Ray, on this machine and on others, give what this process gives."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import ray
import torch

from federated.aggregation import mean_of
from federated.algorithms import proximal
from federated.engine.execution import ExecutionPlan
from federated.pools.inprocess import InProcessPool
from federated.pools.local_channel import LocalChannels
from federated.pools.ray_pool import RayPool
from federated.updates import Instruction
from heliotrope.cluster.connection import session
from heliotrope.cluster.placement import Request, room
from heliotrope.config import Run
from tests.parity.cohorts import (
    KINDS,
    MODELS,
    OPTIMIZERS,
    PARTITIONS,
    assert_agree,
    context_of,
    federated_run,
    weights_of,
)
from tests.support import (
    assert_same_tensors,
    confusion_of,
)

_USUAL = ((0, 1), (1, 2), (5, 2), (7, 2))  # optimizers and numbers of Ray workers


@contextmanager
def _ray_pool(run: Run, workers: int, log: Path) -> Iterator[RayPool]:
    clients, _ = context_of(run)
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


@pytest.mark.usefixtures("ray_session")
@pytest.mark.parametrize(
    ("optimizer", "workers"),
    [
        pytest.param(
            optimizer, workers, marks=() if (place, workers) in _USUAL else pytest.mark.slow
        )
        for place, optimizer in enumerate(OPTIMIZERS)
        for workers in (1, 2)
    ]
    + [(f"{OPTIMIZERS[0]} federated.clip_update_norm=0.1", 2)],
)
def test_ray_workers_give_what_this_process_gives(
    optimizer: str, workers: int, tmp_path: Path
) -> None:
    run = federated_run(optimizer, MODELS[1], PARTITIONS[0], "federated.holdout_fraction=0.2")
    clients, _ = context_of(run)
    weights, order, cohort = weights_of(clients), Instruction(2, proximal(0.1)), [1, 3, 4, 5, 8]
    here = InProcessPool(clients, 1)
    with _ray_pool(run, workers, tmp_path / "run.log") as there:
        for kind in KINDS:
            (expected,) = here.train(
                weights, order, cohort, ExecutionPlan(kind, 1, 3), reduce=False
            )
            replies = there.train(weights, order, cohort, ExecutionPlan(kind, 1, 3), reduce=False)
            assert len(replies) == workers
            updates = {u.clients: u for reply in replies for u in reply.updates}
            assert sorted(updates) == [(client,) for client in cohort]
            for update in expected.updates:
                assert_agree(updates[update.clients].arrays, update.arrays, rounding=1e-5)

            (whole,) = here.train(weights, order, cohort, ExecutionPlan(kind, 1, 3), reduce=True)
            replies = there.train(weights, order, cohort, ExecutionPlan(kind, 1, 3), reduce=True)
            parts = [reply.partial for reply in replies if reply.partial is not None]
            assert whole.partial is not None
            assert len(parts) == workers
            mean = mean_of([whole.partial], weights).differences
            found = mean_of(parts, weights).differences
            if kind == "batched":  # other stacks, whose clients round differently
                assert_agree(found, mean, rounding=1e-6)
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


@pytest.mark.slow
@pytest.mark.usefixtures("ray_session")
def test_workers_on_other_machines_give_what_those_here_give(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = federated_run(OPTIMIZERS[0], MODELS[0], PARTITIONS[0], "federated.holdout_fraction=0.2")
    clients, _ = context_of(run)
    weights, order, cohort = weights_of(clients), Instruction(2), [1, 3, 4, 5, 8]
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
