"""Federated evaluation: who is asked, what is written, and what is said of the model."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Message
from torch import Tensor, nn

from federated.engine.context import assemble, divide
from federated.flower.grid import CohortGrid
from federated.job import run_job
from heliotrope.data import load
from heliotrope.errors import ConfigError
from heliotrope.evaluation import evaluate
from heliotrope.tasks import task_of
from tests.support import compose, saved_by

pytestmark = pytest.mark.usefixtures("no_report")

_SMALL = (
    "model.hidden=[8]",
    "federated.partition.clients=20",
    "federated.clients_per_round=3",
    "federated.holdout_fraction=0.1",
    "federated.client_training=sequential",
    "federated.cpus_per_worker=1",
    "federated.rounds=4",
)


def _train(directory: Path, *more: str) -> list[dict[str, Any]]:
    """Return the events of federated evaluations."""
    run_job(compose("federated", *_SMALL, *more), directory)
    lines = (directory / "metrics.jsonl").read_text().splitlines()
    return [event for event in map(json.loads, lines) if event["event"] == "clients"]


def _holding(percent: int = 10) -> dict[int, int]:
    """Return how many examples each client that holds out any has, by exact arithmetic."""
    run = compose("federated", *_SMALL)
    parts = divide(run, load(run.data, run.seed))
    held = {client: int(size) * percent // 100 for client, size in enumerate(parts.sizes)}
    return {client: size for client, size in held.items() if size}


@pytest.mark.parametrize(
    ("setting", "asked"),
    [("evaluate_clients=5", 5), ("evaluate_fraction=0.29", None), ("evaluate_fraction=1e-3", 1)],
)
def test_as_many_clients_as_asked_are_drawn_anew_each_round(
    setting: str, asked: int | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    holding = _holding()
    asked = asked or len(holding) * 29 // 100
    events = _train(tmp_path / "once", f"federated.{setting}")
    drawn = [[row["client"] for row in event["clients"]] for event in events]
    assert [len(clients) for clients in drawn] == [asked] * 4
    assert len({tuple(clients) for clients in drawn}) > 1
    for event in events:
        assert event["evaluated"] == asked
        for row in event["clients"]:
            assert row["examples"] == holding[row["client"]]
        total = sum(row["examples"] for row in event["clients"])
        right = sum(row["accuracy"] * row["examples"] for row in event["clients"])
        assert event["clients/accuracy"] == pytest.approx(right / total)
    said = f"{len(holding)} of 20 clients hold out {sum(holding.values())} examples for evaluation"
    assert said in capsys.readouterr().out
    again = _train(tmp_path / "again", f"federated.{setting}")
    assert [event["clients"] for event in again] == [event["clients"] for event in events]


def test_rows_of_clients_are_written_as_often_as_asked_and_at_the_end(tmp_path: Path) -> None:
    every = ("federated.evaluate_every=1", "federated.client_rows_every=3")
    events = _train(tmp_path, *every)
    assert [event["round"] for event in events] == [1, 2, 3, 4]
    assert [event["round"] for event in events if "clients" in event] == [3, 4]
    assert all(event["evaluated"] == len(_holding()) for event in events)


def test_clients_say_the_same_with_a_message_to_each_and_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Messages to a million clients take longer than what they ask for."""
    calls: list[object] = []
    asks = CohortGrid.send_and_receive

    def counted(grid: CohortGrid, messages: Iterable[Message]) -> list[Message]:
        calls.append(messages)
        return asks(grid, messages)

    monkeypatch.setattr(CohortGrid, "send_and_receive", counted)
    without = _train(tmp_path / "without", "federated.rounds=2")
    assert len(calls) == 2  # to train
    monkeypatch.setattr("federated.server.adds_evaluations", lambda _: False)
    asked = _train(tmp_path / "asked", "federated.rounds=2")
    assert len(calls) == 2 + 4
    for ours, theirs in zip(without, asked, strict=True):
        differing = {name for name in ours if ours[name] != theirs[name]}
        assert differing <= {"time", "seconds"}


def test_more_clients_than_hold_out_examples_are_refused(tmp_path: Path) -> None:
    holding = len(_holding(percent=2))
    assert holding < 20
    settings = (*_SMALL, "federated.holdout_fraction=0.02", "federated.evaluate_clients=20")
    with pytest.raises(ConfigError, match=rf"evaluate_clients=20 is more than the {holding} clie"):
        run_job(compose("federated", *settings), tmp_path)
    assert not (tmp_path / "metrics.jsonl").exists()


class _Centred(nn.Module):
    """Takes the mean over the batch away."""

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs - 0.5 * inputs.mean(0, keepdim=True)


def test_a_model_with_statistics_of_the_batch_is_evaluated_client_by_client_and_it_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def build(*_: object) -> nn.Module:
        layers = [nn.Linear(64, 16), _Centred(), nn.ReLU(), nn.Linear(16, 10)]
        return nn.Sequential(nn.Flatten(), *layers)

    monkeypatch.setattr("federated.engine.context.build", build)
    events = _train(tmp_path, "federated.partition.clients=10", "federated.holdout_fraction=0.3")
    lines = [
        line for line in capsys.readouterr().out.splitlines() if "one client at a time" in line
    ]
    assert len(lines) == 1
    assert "depends on the rest of the batch" in lines[0]

    saved = saved_by(tmp_path)
    run = compose("federated", *_SMALL, "federated.partition.clients=10")
    run.federated.holdout_fraction = 0.3
    dataset = load(run.data, run.seed)
    clients = assemble(run, task_of(dataset), dataset.train, divide(run, dataset))
    model = build()
    model.load_state_dict(saved.model)
    assert len(events[-1]["clients"]) > 5
    for row in events[-1]["clients"]:
        held = clients.population.holdout_indices(row["client"]).tolist()
        expected = evaluate(model, clients.task, dataset.train, 256, held)
        assert row["loss"] == pytest.approx(expected.compute()["loss"], rel=1e-5)
