"""Rounds over nodes with their own rows give what the simulation gives, in each kind of training.

The nodes run in this process, behind a grid that stands in for a SuperLink's.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from flwr.app import ConfigRecord, Context, Message, RecordDict

from federated import components as components_module
from federated.components import build_components
from federated.deploy.comparison import compare
from federated.deploy.deployment import prepare
from federated.deploy.layout import Layout
from federated.deploy.node_pool import NodePool, node_name
from federated.deploy.server_data import server_components
from federated.flower.app import client_app
from federated.flower.messages import error_reply, stamp
from federated.flower.passing_grid import PassingGrid
from federated.flower.secure_codec import SECURE
from federated.job import run_job
from federated.pools.base import Pool
from federated.simulation import train_clients
from heliotrope.config import Run
from heliotrope.errors import QuorumError, SecureAggregationError
from tests.support import compose, events_of, fresh_seed

_SMALL = (
    "experiment=quickstart",
    "federated.partition.clients=4",
    "federated.clients_per_round=3",
    "federated.rounds=3",
    "federated.client_training=sequential",
    "model.hidden=[8]",
)
_PRIVATE = (
    "data.fit=none",
    "federated.privacy.noise_multiplier=0.5",
    "federated.privacy.delta=1e-3",
    "federated.holdout_fraction=0",
)
_SECURE = ("federated/secure_aggregation=secagg", "federated.clients_per_round=4")


def _slow(*settings: str) -> Any:
    return pytest.param(settings, marks=pytest.mark.slow)


@dataclass(frozen=True)
class _Node:
    name: str
    node_id: int


class _Nodes(PassingGrid):
    """A grid whose nodes are in this process; those in `absent` are not connected."""

    def __init__(self, run: Run, layout: Layout, clients: int) -> None:
        self.layout, self.preparation = layout, build_components(run).preparation
        self._app = client_app(run, json.dumps(self.preparation.to_json()))
        self._folders = {700 + n: layout.node(n) for n in range(clients)}
        self._answers: dict[str, Message] = {}
        self._states: dict[tuple[int, int], RecordDict] = {}
        self.absent: frozenset[int] = frozenset()
        self.failing_stages: dict[int, str] = {}  # of nodes, messages of secure aggregation
        self.run_number = 1

    def get_nodes(self) -> list[_Node]:
        ids = sorted(set(self._folders) - self.absent)
        return [_Node(node_name(node - 700), node) for node in reversed(ids)]

    def push_messages(self, messages: Iterable[Message]) -> Sequence[str]:
        ids = []
        for message in map(stamp, messages):
            folder = self._folders[message.metadata.dst_node_id]
            config = {"data-folder": str(folder)}
            # A new process for each message; its SuperNode keeps a state for one run of Flower's.
            node = message.metadata.dst_node_id
            kept = self._states.setdefault((self.run_number, node), RecordDict())
            context = Context(self.run_number, node, config, kept, {})
            ids.append(message.metadata.message_id)
            stage = message.content.config_records.get(SECURE, ConfigRecord()).get("kind")
            if stage is not None and stage == self.failing_stages.get(node):
                self._answers[ids[-1]] = error_reply("its disk is full", message)
                continue
            try:
                self._answers[ids[-1]] = self._app(message, context)
            except Exception as error:  # noqa: BLE001 - as Flower does it
                self._answers[ids[-1]] = error_reply(str(error), message)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Sequence[Message]:
        return [self._answers.pop(each) for each in message_ids if each in self._answers]

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Sequence[Message]:
        del timeout
        return self.pull_messages(self.push_messages(messages))


def _train(run: Run, directory: Path, grid: _Nodes) -> None:
    with patch.object(
        components_module, "load", side_effect=AssertionError("of all clients' rows")
    ):
        components = server_components(run, grid.layout.server, grid.preparation)

    @contextmanager
    def pool(*_: object) -> Iterator[Pool]:
        yield NodePool(components.context, grid, "ab12")

    train_clients(run, directory, components, pool, ("flwr",))


def _federation(tmp_path: Path, *settings: str) -> tuple[Run, _Nodes]:
    run = compose("federated", *_SMALL, f"seed={fresh_seed() % 1000}", *settings)
    deployment = prepare(run, tmp_path / "site", ["localhost"])
    return run, _Nodes(run, deployment.layout, deployment.clients)


@pytest.mark.parametrize(
    "settings",
    [
        ("model.dropout=0.2", "federated.lr_schedule=linear"),
        ("federated/strategy=scaffold",),
        _slow("federated/strategy=flower_fedadam", "federated.reduce=none"),
        _slow("federated/strategy=krum", "federated.client_momentum=0.5"),
        _slow("federated/strategy=fltrust", "federated.strategy.root_examples=50"),
        _slow("federated/strategy=qfedavg"),
        _slow(*_SECURE),
        _slow(*_SECURE, "federated/strategy=scaffold", "federated.holdout_fraction=0"),
        _slow(*_SECURE, "federated/privacy=central", "federated.privacy.clip=0.5", *_PRIVATE),
        _slow("federated/privacy=central", *_PRIVATE),
        _slow("federated/privacy=adaptive", "federated.privacy.count_noise=2", *_PRIVATE),
        _slow("federated/privacy=ftrl", "federated.privacy.clip=0.5", *_PRIVATE),
    ],
    ids=[
        *(
            "fedavg",
            "scaffold",
            "flower",
            "krum",
            "fltrust",
            "qfedavg",
            "secure",
            "secure-scaffold",
        ),
        *("secure-central", "central", "adaptive", "ftrl"),
    ],
)
def test_nodes_give_what_the_simulation_gives(tmp_path: Path, settings: tuple[str, ...]) -> None:
    run, nodes = _federation(tmp_path, *settings)
    _train(run, tmp_path / "deployed", nodes)
    run_job(run, tmp_path / "simulated")
    compare(tmp_path / "deployed", tmp_path / "simulated").check()
    deployed, simulated = (
        [{k: e[k] for k in e if k.startswith("bytes") or k in ("steps", "clients")} for e in each]
        for each in (
            events_of(tmp_path / name, "train", "clients") for name in ("deployed", "simulated")
        )
    )
    assert deployed == simulated


def test_a_run_over_nodes_goes_on_to_the_undisturbed_result(tmp_path: Path) -> None:
    settings = ("federated/strategy=scaffold", "federated.checkpoint_every=2")
    run, nodes = _federation(tmp_path, *settings)
    begun = replace(run, federated=replace(run.federated, rounds=2))
    _train(begun, tmp_path / "deployed", nodes)
    nodes.run_number = 2  # the server is another process: Flower's own state is gone
    _train(replace(run, resume=True), tmp_path / "deployed", nodes)
    run_job(run, tmp_path / "simulated")
    compare(tmp_path / "deployed", tmp_path / "simulated").check()


def test_an_absent_node_loses_its_rounds_alone(tmp_path: Path) -> None:
    run, nodes = _federation(tmp_path, "federated.quorum=0.5", "federated.clients_per_round=4")
    nodes.absent = frozenset([702])
    _train(run, tmp_path / "deployed", nodes)
    failures = events_of(tmp_path / "deployed", "failure")
    assert {failure["client"] for failure in failures} == {2}
    assert "client-2 is not connected" in failures[0]["reason"]
    whole = replace(run, federated=replace(run.federated, quorum=1.0))
    with pytest.raises(QuorumError, match="client-2 is not connected"):
        _train(whole, tmp_path / "strict", nodes)


def test_nodes_lost_in_a_stage_of_secure_aggregation_are_survived_or_named(tmp_path: Path) -> None:
    keys = ("federated.quorum=0.5", "federated.secure_aggregation.threshold=3")
    small = ("federated.rounds=1", "federated.holdout_fraction=0")
    run, nodes = _federation(tmp_path, *_SECURE, *keys, *small)
    nodes.failing_stages = {702: "ForwardedShares"}
    _train(run, tmp_path / "deployed", nodes)
    (failure,) = events_of(tmp_path / "deployed", "failure")
    assert (failure["client"], failure["reason"]) == (2, "its disk is full")
    result = json.loads((tmp_path / "deployed" / "result.json").read_text())
    assert result["secure_aggregation"]["simulated"] is False
    nodes.absent = frozenset([701])
    why = r"2 of 4 clients are left.*Client 1 was lost: its node client-1 is not connected"
    with pytest.raises(SecureAggregationError, match=why):
        _train(run, tmp_path / "lost", nodes)


@pytest.mark.slow
def test_local_noise_is_the_nodes_own_and_counted_in_their_folders(tmp_path: Path) -> None:
    settings = ("federated/privacy=local", "federated.privacy.clip=0.5", *_PRIVATE)
    run, nodes = _federation(tmp_path, *settings)
    for name in ("one", "other"):
        _train(run, tmp_path / name, nodes)
    assert compare(tmp_path / "one", tmp_path / "other").weights > 0
    ledgers = sorted((tmp_path / "site" / "nodes").glob("*/privacy-ledger.jsonl"))
    rounds = sum(len(path.read_text().splitlines()) for path in ledgers)
    assert rounds == 2 * run.federated.rounds * run.federated.clients_per_round
