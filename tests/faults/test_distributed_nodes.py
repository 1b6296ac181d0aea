"""Nodes of a Ray cluster that go and come while a run trains on them."""

from __future__ import annotations

import os
import random
import re
import signal
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ray.cluster_utils import Cluster

from tests.distributed_runs import (
    RAY,
    TORCHRUN,
    checkpoints,
    process,
    process_of_rank,
    train,
    wait_until,
)
from tests.support import assert_same_tensors, events_of, fresh_seed, saved_by, weights_of

pytestmark = [pytest.mark.usefixtures("no_report"), pytest.mark.slow]

_EPOCHS = 200
_SELDOM = "distributed.evaluate_every=100"
_LONG = ("model.hidden=[300,300]", f"distributed.epochs={_EPOCHS}", _SELDOM)


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """A head of one CPU; nodes can be added. Only runs that this test starts find it."""
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as folder:
        monkeypatch.setenv("RAY_TMPDIR", folder)  # else others would find its address there
        started = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
        monkeypatch.setenv("RAY_ADDRESS", started.address)
        yield started
        started.shutdown()


def _added(cluster: Cluster) -> Any:
    """Add a node with an address of its own: on the head's, a driver could be at home on it."""
    return cluster.add_node(num_cpus=1, node_ip_address="127.0.0.2")


def _lost(cluster: Cluster, node: Any) -> None:
    cluster.remove_node(node, allow_graceful=False)


def test_a_node_that_dies_is_replaced_and_nothing_is_lost(cluster: Cluster, tmp_path: Path) -> None:
    node = _added(cluster)
    run = tmp_path / "run"
    with process(run, *RAY, *_LONG, "distributed.max_failures=1") as job:
        wait_until(lambda: checkpoints(run) > 1)
        _lost(cluster, node)
        _added(cluster)
        output = job.ended(240)
    assert job.returncode == 0, output
    [failure] = events_of(run, "failure")
    assert "node" in failure["reason"]
    whole = train(tmp_path / "whole", *TORCHRUN, *_LONG, epochs=_EPOCHS)
    assert_same_tensors(weights_of(whole), weights_of(run))


def test_a_node_that_is_not_replaced_ends_the_run_with_the_last_checkpoint(
    cluster: Cluster, tmp_path: Path
) -> None:
    node = _added(cluster)
    short = ("distributed.max_failures=1", "cluster.wait_seconds=10")
    with process(tmp_path, *RAY, *_LONG, *short) as job:
        wait_until(lambda: checkpoints(tmp_path) > 1)
        _lost(cluster, node)
        output = job.ended(240)
    assert job.returncode == 1, output
    assert "its process died, it seems with its node" in output
    assert "distributed.workers=2" in output
    assert "resume=true" in output
    assert "Traceback" not in output
    assert saved_by(tmp_path)


def test_an_elastic_run_goes_on_with_fewer_and_grows_again(
    cluster: Cluster, tmp_path: Path
) -> None:
    node = _added(cluster)
    run = tmp_path / "run"
    elastic = ("distributed.workers=[1,2]", "distributed.max_failures=1")
    with process(run, *RAY, *elastic, _SELDOM, "distributed.epochs=100000") as job:
        wait_until(lambda: _worlds(run) == [2] and checkpoints(run) > 1, seconds=120)
        _lost(cluster, node)
        wait_until(lambda: _worlds(run) == [2, 1], seconds=120)
        _added(cluster)
        wait_until(lambda: _worlds(run) == [2, 1, 2], seconds=120)
        wait_until(lambda: process_of_rank(run, 1, attempt=2), seconds=120)
        job.send_signal(signal.SIGTERM)
        output = job.ended(240)
    assert job.returncode == 143, output
    assert "room for more than 1 worker(s)" in output
    seen = [event["examples_seen"] for event in events_of(run, "train")]
    assert seen == [1294 * epoch for epoch in range(1, len(seen) + 1)]


def _worlds(directory: Path) -> list[int]:
    """The number of workers of each attempt that has begun, as the run's log tells."""
    log = directory / "run.log"
    lines = log.read_text().splitlines() if log.exists() else []
    return [int(line.split("ray: ")[1].split()[0]) for line in lines if "launcher ray:" in line]


def test_twenty_kills_in_a_row_lose_nothing(cluster: Cluster, tmp_path: Path) -> None:
    draw = random.Random(fresh_seed())
    node, run = _added(cluster), tmp_path / "run"
    long = ("model.hidden=[64]", "distributed.epochs=1000", _SELDOM)
    long += ("distributed.checkpoint_every_steps=3",)
    with process(run, *RAY, *long, "distributed.max_failures=20") as job:
        for kill in range(20):
            wait_until(
                lambda kill=kill: _ranks_of_attempt(run, kill + 1) or job.poll() is not None,
                seconds=180,
            )
            assert job.poll() is None, job.ended()
            pids = _ranks_of_attempt(run, kill + 1)
            time.sleep(draw.random())
            if draw.random() < 0.2:
                _lost(cluster, node)
                node = _added(cluster)
            else:
                os.kill(draw.choice(pids), signal.SIGKILL)
        output = job.ended(300)
    assert job.returncode == 0, output
    assert len(events_of(run, "failure")) == 20
    whole = train(tmp_path / "whole", *TORCHRUN, *long, epochs=1000)
    assert_same_tensors(weights_of(whole), weights_of(run))
    mine = [event for event in events_of(run) if event["event"] != "failure"]
    assert mine == events_of(whole)


def _ranks_of_attempt(directory: Path, attempt: int) -> list[int]:
    """The process ids of both ranks, once both of this attempt are there."""
    log = directory / "run.log"
    attempts = (log.read_text() if log.exists() else "").split("launcher ray:")
    found = (
        re.findall(r"ready: process (\d+) ", attempts[attempt]) if len(attempts) > attempt else []
    )
    return [int(pid) for pid in found] if len(found) == 2 else []
