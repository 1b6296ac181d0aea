"""Federations of real SuperNodes, of which something is refused, is killed, or returns."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from federated.deploy.certificates import write_certificates, write_node_key
from federated.deploy.comparison import compare
from federated.deploy.deployment import Deployment, prepare
from federated.deploy.trial import Federation, simulate_again, started
from heliotrope.errors import RunFailedError, WorkerError
from tests.support import compose, events_of

pytestmark = pytest.mark.slow

_SMALL = (
    "experiment=quickstart",
    "federated.partition.clients=2",
    "federated.clients_per_round=2",
    "federated.holdout_fraction=0",
    "federated.checkpoint_every=1",
    "model.hidden=[8]",
)
_LONG = 180.0  # seconds that something may take on a machine with other work


def _deployment(root: Path, *settings: str) -> Deployment:
    return prepare(compose("federated", *_SMALL, *settings), root, ["127.0.0.1"])


def _wait(until: Callable[[], bool], seconds: float = _LONG) -> None:
    deadline = time.monotonic() + seconds
    while not until():
        assert time.monotonic() < deadline, "it has not happened in time"
        time.sleep(0.2)


def _rounds(deployment: Deployment) -> int:
    try:
        return len(events_of(deployment.layout.run, "train"))
    except (OSError, json.JSONDecodeError):  # not begun yet, or a line is being written
        return 0


class _Running:
    """A federation's run in a thread of its own."""

    def __init__(self, federation: Federation) -> None:
        self.error: Exception | None = None

        def run() -> None:
            try:
                federation.run()
            except Exception as error:  # noqa: BLE001 - it is looked at by the test
                self.error = error

        self._thread = threading.Thread(target=run)
        self._thread.start()

    def ended(self) -> Exception | None:
        """Wait until it ends; return what it raised."""
        self._thread.join(2 * _LONG)
        assert not self._thread.is_alive()
        return self.error


def test_nodes_without_the_right_key_or_certificate_are_refused(tmp_path: Path) -> None:
    deployment = _deployment(tmp_path)
    layout, rejected = deployment.layout, tmp_path / "rejected"
    with started(deployment) as federation:
        federation.programs["client-0"].stop()
        write_node_key(rejected, "client-0")  # a key that nobody has registered
        (rejected / "client-0.key").replace(layout.key(0))
        federation.start_node(0)
        with pytest.raises(WorkerError, match="SuperNode of client-0 has been refused"):
            federation.await_node(0)
        write_certificates(rejected, ["127.0.0.1"])  # of an authority that has not signed ours
        (rejected / "ca.crt").replace(layout.certificates / "ca.crt")
        federation.programs["client-1"].stop()
        federation.start_node(1)
        with pytest.raises(WorkerError, match="CERTIFICATE_VERIFY_FAILED"):
            federation.await_node(1)


def test_a_server_that_is_killed_goes_on_to_the_undisturbed_result(tmp_path: Path) -> None:
    deployment = _deployment(tmp_path, "federated.rounds=4", "federated/strategy=scaffold")
    with started(deployment) as federation:
        running = _Running(federation)
        _wait(lambda: _rounds(deployment) >= 2)
        federation.programs["SuperLink"].kill()
        assert isinstance(running.ended(), RunFailedError)
        assert not (deployment.layout.run / "result.json").exists()
        federation.start_link()
        federation.run(resume=True)
    simulate_again(deployment)
    compare(deployment.layout.run, deployment.layout.simulation).check()


def test_a_node_that_dies_and_returns_loses_nothing_but_its_rounds(tmp_path: Path) -> None:
    settings = ("federated.rounds=8", "federated.quorum=0.5", "federated.client_timeout=90")
    deployment = _deployment(tmp_path, *settings)
    with started(deployment) as federation:
        running = _Running(federation)
        _wait(lambda: _rounds(deployment) >= 1)
        federation.programs["client-1"].kill()
        federation.start_node(1)  # at once: the SuperLink takes the dead one for connected
        federation.await_node(1)
        assert running.ended() is None
    result = json.loads((deployment.layout.run / "result.json").read_text())
    assert result["rounds"] == 8
    failures = events_of(deployment.layout.run, "failure")
    assert {event["client"] for event in failures} == {1}
    assert max(event["round"] for event in failures) < 8  # it has returned
