"""Clients that fail, updates that are no numbers, and evaluations that hang."""

from __future__ import annotations

import gc
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import federated.engine.evaluation as evaluation_module
import federated.engine.thread_lane as lane_module
from federated.engine.client_metrics import Evaluations
from federated.engine.context import TrainingContext, assemble, divide
from federated.engine.evaluation import ClientEvaluator
from federated.engine.execution import ExecutionPlan
from federated.engine.sequential import evaluate_client, train_client
from federated.engine.time_limit import UNLIMITED, Limit, limit_of
from federated.job import run_job
from federated.pools.cohort_worker import CohortWorker
from federated.pools.ray_actor import Actor
from federated.updates import Instruction, Stack, Weights
from heliotrope.data import load
from heliotrope.errors import QuorumError, WorkerError
from heliotrope.tasks import task_of
from tests.federated_runs import SMALL, assert_same_end
from tests.support import (
    compose,
    events_of,
    saved_by,
    values_of,
    with_images,
)

pytestmark = pytest.mark.usefixtures("no_report")


@pytest.fixture
def spoiled(monkeypatch: pytest.MonkeyPatch) -> dict[int, str]:
    """Clients to spoil: what they do instead of training."""
    spoils: dict[int, str] = {}

    def train(
        clients: TrainingContext,
        weights: Weights,
        order: Instruction,
        client: int,
        limit: Limit = UNLIMITED,
    ) -> Stack:
        if spoils.get(client) == "raise":
            raise RuntimeError("disk on fire")
        if spoils.get(client) == "hang":
            time.sleep(60)
        stack = train_client(clients, weights, order, client, limit)
        if spoils.get(client) == "nan":
            arrays = dict(stack.arrays)
            arrays["1.weight"] = arrays["1.weight"].clone()
            arrays["1.weight"][0, 0, 0] = torch.nan
            return replace(stack, arrays=arrays)
        if spoils.get(client) == "reshape":
            arrays = dict(stack.arrays)
            arrays["1.bias"] = arrays["1.bias"][:, :1]  # would be broadcast in a sum
            return replace(stack, arrays=arrays)
        return stack

    monkeypatch.setattr(lane_module, "train_client", train)
    return spoils


@pytest.mark.parametrize("reduce", ["worker", "none"])
@pytest.mark.parametrize(
    ("what", "reason"),
    [
        ("raise", "disk on fire"),
        ("nan", "1.weight holds NaN"),
        ("reshape", "1.bias has shape (1,) instead of (8,)"),
        ("hang", "TimeoutError: not done after 0.3 s"),
    ],
)
def test_a_bad_client_is_named_and_left_out(
    what: str, reason: str, reduce: str, spoiled: dict[int, str], tmp_path: Path
) -> None:
    spoiled[3] = what
    settings = (f"federated.reduce={reduce}", "federated.quorum=0.8", "federated.rounds=2")
    run = compose("federated", *SMALL, *settings, "federated.client_timeout=0.3")

    run_job(run, tmp_path)

    failures = events_of(tmp_path, "failure")
    assert [(event["round"], event["client"]) for event in failures] == [(1, 3), (2, 3)]
    assert reason in failures[0]["reason"]
    final = saved_by(tmp_path)
    assert all(bool(torch.isfinite(value).all()) for value in final.model.values())
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["bytes_down"] > result["bytes_up"]


@pytest.mark.usefixtures("ray_session")
def test_clients_of_a_ray_worker_that_take_too_long_are_named(tmp_path: Path) -> None:
    settings = ("federated.pool=ray", "federated.workers=1", "federated.client_timeout=1e-4")
    with pytest.raises(QuorumError, match=r"0 of 5 clients .* client 0, .*not done after 0.0001 s"):
        run_job(compose("federated", *SMALL, *settings), tmp_path)
    assert [event["client"] for event in events_of(tmp_path, "failure")] == [0, 1, 2, 3, 4]


def test_a_round_below_its_quorum_ends_the_run_and_leaves_it_resumable(
    spoiled: dict[int, str], tmp_path: Path
) -> None:
    run_job(compose("federated", *SMALL), tmp_path / "whole")
    spoiled[3] = "nan"
    with pytest.raises(QuorumError, match=r"round 1: 4 of 5 clients .* client 3") as caught:
        run_job(compose("federated", *SMALL), tmp_path / "cut")
    assert caught.value.exit_code == 1
    assert not (tmp_path / "cut" / "result.json").exists()

    spoiled.clear()
    run_job(compose("federated", *SMALL, "resume=true"), tmp_path / "cut")
    assert_same_end(tmp_path / "whole", tmp_path / "cut")


def test_a_quorum_of_55_percent_is_met_by_55_of_100(
    spoiled: dict[int, str], tmp_path: Path
) -> None:
    spoiled |= dict.fromkeys(range(45), "raise")
    hundred = ("federated.clients_per_round=100", "federated.partition.clients=100")
    alike = ("federated/partition=iid", "federated.rounds=1", "federated.quorum=0.55")
    run_job(compose("federated", *SMALL, *alike, *hundred), tmp_path / "enough")
    spoiled[45] = "raise"
    with pytest.raises(QuorumError, match=r"54 of 100 clients .*quorum=0.55 asks for 55"):
        run_job(compose("federated", *SMALL, *alike, *hundred), tmp_path / "few")


def test_batched_training_leaves_out_only_the_diverging_client(tmp_path: Path) -> None:
    run = compose(
        "federated",
        *SMALL,
        "federated.client_training=batched",
        "federated.partition.alpha=100",
        "federated.quorum=0.2",
        "optimizer.lr=0.5",
    )
    dataset = load(run.data, run.seed)
    parts = divide(run, dataset)
    (broken,) = (client for client in range(5) if 0 in parts[client])  # with the first example
    mine = torch.from_numpy(parts[broken].copy())
    train = with_images(dataset.train, lambda images: images.index_fill(0, mine, torch.inf))
    worker = CohortWorker(assemble(run, task_of(dataset), train, parts), 1)
    weights = _weights(worker)

    reply = worker.train(
        weights, Instruction(1), [0, 1, 2, 3, 4], ExecutionPlan("batched", 1, 5), reduce=True
    )

    assert [failure.client for failure in reply.failures] == [broken]
    assert reply.partial is not None
    assert reply.partial.clients == tuple(client for client in range(5) if client != broken)


def _weights(worker: CohortWorker) -> Weights:
    """Return copies: training one by one uses the model's own tensors."""
    return {name: value.clone() for name, value in worker.context.model.state_dict().items()}


def _worker(*settings: str) -> CohortWorker:
    run = compose("federated", *SMALL, *settings)
    dataset = load(run.data, run.seed)
    clients = assemble(run, task_of(dataset), dataset.train, divide(run, dataset))
    return CohortWorker(clients, 1)


@pytest.mark.parametrize("kind", ["sequential", "captured", "batched"])
def test_clients_that_are_only_slow_leave_no_trace(kind: str) -> None:
    settings = ("federated.local_epochs=50", "federated.client_timeout=0.01")
    slow, fast = _worker(*settings), _worker("federated.local_epochs=1")
    weights = _weights(slow)
    cohort, choice = [0, 1, 2, 3, 4], ExecutionPlan(kind, 1, 5)
    gc.collect()  # nothing of other tests is to be freed when the time is over
    for server_round in range(40):
        reply = slow.train(weights, Instruction(server_round), cohort, choice, reduce=True)
        assert [failure.client for failure in reply.failures] == cohort
        assert "TimeoutError: not done after 0.01 s" in reply.failures[0].reason
    assert not fast.train(weights, Instruction(0), cohort, choice, reduce=True).failures


def test_a_broken_client_does_not_decide_how_the_others_are_trained() -> None:
    worker = _worker("federated.client_training=auto")
    mine = worker.context.population.train_indices(0)
    values_of(worker.context.train, "label")[mine] = 99
    weights = _weights(worker)
    choice = worker.decide(5, ()).execution
    assert choice is not None
    reply = worker.train(weights, Instruction(1), [0, 1, 2, 3, 4], choice, reduce=True)
    assert [failure.client for failure in reply.failures] == [0]


def test_equal_examples_do_not_upset_clipping() -> None:
    settings = ("federated.batch_size=null", "federated.local_epochs=100", "optimizer.clip_norm=1")
    worker = _worker(*settings, "optimizer.lr=0.005")
    images = values_of(worker.context.train, "image")
    images[:] = images[0].clone()
    weights = _weights(worker)
    losses = []
    for kind in ("sequential", "captured", "batched"):
        reply = worker.train(
            weights, Instruction(1), [0, 1, 2], ExecutionPlan(kind, 1, 3), reduce=True
        )
        assert not reply.failures
        assert reply.partial is not None
        losses.append(sum(reply.partial.loss_sums))
    assert losses == pytest.approx([losses[0]] * 3, rel=1e-3)


def _actor_with_a_bad_client(bad: int, what: str) -> type[Actor]:
    """Return a worker in whose process client `bad` fails in round 1 as told.

    It is local, so that Ray sends its code: a worker does not find this module.
    """

    class Spoiled(Actor):
        def __init__(self, *arguments: Any) -> None:
            import ctypes
            import signal

            from federated.engine import stacked, thread_lane, time_limit

            def fail() -> None:
                if what == "raise":
                    raise TimeoutError
                signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGALRM})
                ctypes.PyDLL(None).sleep(1000)  # in C, and holding Python's lock

            alone, together = thread_lane.train_client, stacked.FastTrainer.train_stacked

            def train_client(*arguments: Any) -> Any:
                _, _, order, client, _ = arguments
                if client == bad and order.server_round == 1:
                    fail()
                return alone(*arguments)

            def train_stacked(*arguments: Any) -> Any:
                _, _, order, part, _ = arguments
                if bad in part and order.server_round == 1:
                    fail()
                return together(*arguments)

            thread_lane.train_client = train_client
            stacked.FastTrainer.train_stacked = train_stacked
            time_limit._DEAF_SECONDS = 0.5
            super().__init__(*arguments)

    return Spoiled


@pytest.mark.slow
@pytest.mark.usefixtures("ray_session")
@pytest.mark.parametrize(("kind", "workers"), [("sequential", 2), ("batched", 1)])
def test_a_client_that_no_signal_stops_is_named_and_left_out(
    kind: str, workers: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = (
        "federated.pool=ray",
        f"federated.workers={workers}",
        f"federated.client_training={kind}",
        "federated.stack_size=3",
        "federated.rounds=2",
        "federated.quorum=0.8",
        "federated.client_timeout=0.5",
    )
    for what in ("hang", "raise"):
        actor = _actor_with_a_bad_client(3, what)
        monkeypatch.setattr("federated.pools.ray_pool.Actor", actor)
        run_job(compose("federated", *SMALL, *settings), tmp_path / what)

    (failure,) = events_of(tmp_path / "hang", "failure")
    assert (failure["round"], failure["client"]) == (1, 3)
    assert "not done after 0.5 s, in code that could not be interrupted" in failure["reason"]
    assert "in train_client" in (tmp_path / "hang" / "run.log").read_text()  # says where
    assert not list((tmp_path / "hang").glob("*.note"))
    assert_same_end(tmp_path / "hang", tmp_path / "raise")


@pytest.mark.parametrize("what", ["raise", "hang"])
def test_a_client_that_cannot_be_evaluated_is_named_and_left_out(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def spoiled(client: int) -> None:
        if client == 3 and what == "raise":
            raise RuntimeError("disk on fire")
        if client == 3:
            time.sleep(60)

    def together(evaluator: ClientEvaluator, model: Any, block: tuple[int, ...]) -> Evaluations:
        for client in block:
            with evaluator._watch.over(block, limit_of(0.3)):
                spoiled(client)
        return evaluate_together(evaluator, model, block)

    def alone(clients: TrainingContext, model: Any, client: int, limit: Limit) -> Any:
        spoiled(client)
        return evaluate_client(clients, model, client, limit)

    evaluate_together = ClientEvaluator._together
    monkeypatch.setattr(ClientEvaluator, "_together", together)
    monkeypatch.setattr(evaluation_module, "evaluate_client", alone)
    settings = ("federated.holdout_fraction=0.2", "federated.client_timeout=0.3")
    enough = ("federated.quorum=0.8", "federated.rounds=1")
    run_job(compose("federated", *SMALL, *settings, *enough), tmp_path / "on")

    (failure,) = events_of(tmp_path / "on", "failure")
    assert (failure["round"], failure["client"]) == (1, 3)
    reason = {"raise": "disk on fire", "hang": "TimeoutError: not done after 0.3 s"}[what]
    assert failure["reason"].startswith("evaluation: ")
    assert reason in failure["reason"]
    (event,) = events_of(tmp_path / "on", "clients")
    assert [one["client"] for one in event["clients"]] == [0, 1, 2, 4]
    examples = [one["examples"] for one in event["clients"]]
    right = [one["accuracy"] * one["examples"] for one in event["clients"]]
    assert event["clients/accuracy"] == pytest.approx(sum(right) / sum(examples))

    with pytest.raises(QuorumError, match=r"round 1: 4 of 5 clients .* client 3 \(evaluation: "):
        run_job(compose("federated", *SMALL, *settings), tmp_path / "off")


@pytest.mark.usefixtures("ray_session")
def test_a_central_evaluation_that_hangs_ends_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Hanging(Actor):
        def evaluate_centrally(self, *arguments: Any) -> Any:
            import time

            time.sleep(1000)

    monkeypatch.setattr("federated.pools.ray_pool.Actor", Hanging)
    monkeypatch.setattr("federated.pools.ray_pool._GRACE", 10.0)
    settings = ("federated.pool=ray", "federated.workers=1", "federated.client_timeout=0.5")
    with pytest.raises(WorkerError, match=r"worker 0: central evaluation was not done after 1\d"):
        run_job(compose("federated", *SMALL, *settings), tmp_path)
