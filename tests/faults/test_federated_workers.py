"""Workers of a federated run that hang or are killed, and runs that are interrupted."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from federated.job import run_job
from federated.pools.local_channel import LocalChannels
from federated.pools.ray_pool import RayPool
from federated.updates import Instruction, Weights
from tests.distributed_runs import process, wait_until
from tests.federated_runs import SMALL, assert_same_end
from tests.support import (
    ROOT,
    compose,
    events_of,
    fresh_seed,
)

pytestmark = pytest.mark.usefixtures("no_report")


@pytest.mark.usefixtures("ray_session")
def test_a_worker_that_hangs_is_killed_and_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("federated.pools.ray_pool._GRACE", 2.0)
    train, stopped = RayPool.train, []

    def train_with_a_stop(pool: RayPool, *arguments: Any) -> Any:
        if not stopped:
            stopped.append(pool.processes()[0])
            os.kill(stopped[0], signal.SIGSTOP)
        return train(pool, *arguments)

    monkeypatch.setattr(RayPool, "train", train_with_a_stop)
    settings = ("federated.pool=ray", "federated.workers=1", "federated.client_timeout=0.5")
    run_job(compose("federated", *SMALL, *settings), tmp_path)
    (failure,) = events_of(tmp_path, "failure")
    assert failure["worker"] == 0
    assert json.loads((tmp_path / "result.json").read_text())["rounds"] == 3


@pytest.mark.parametrize(
    ("sent", "code"),
    [(signal.SIGINT, 130), pytest.param(signal.SIGTERM, 143, marks=pytest.mark.slow)],
)
def test_an_interrupted_run_stops_at_once_and_can_go_on(
    sent: signal.Signals, code: int, tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "federated", *SMALL, f"hydra.run.dir={tmp_path}"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    metrics = tmp_path / "metrics.jsonl"
    long = ("federated.rounds=100000", "federated.checkpoint_every=100000")
    with process(tmp_path, *SMALL, *long, mode="federated") as job:
        wait_until(lambda: metrics.exists() and metrics.read_bytes().count(b"\n") >= 40, 60)
        job.send_signal(sent)
        error = job.ended()
    assert job.returncode == code
    assert "Traceback" not in error
    assert f"continue it: resume=true hydra.run.dir={tmp_path}" in error
    assert not (tmp_path / "result.json").exists()

    reached = max(int(path.name) for path in (tmp_path / "checkpoints").glob("0*"))
    assert reached >= events_of(tmp_path, "train")[-1]["round"] - 1
    done = subprocess.run(
        [*command, f"federated.rounds={reached + 2}", "resume=true"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "result.json").read_text())["rounds"] == reached + 2


@pytest.mark.usefixtures("ray_session")
@pytest.mark.parametrize("where", ["here", pytest.param("elsewhere", marks=pytest.mark.slow)])
def test_a_killed_worker_is_replaced_and_its_clients_run_again(
    where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _kill_workers_at(monkeypatch, {2: 1})
    if where == "elsewhere":  # then Ray's own calls reach the workers
        monkeypatch.setattr(LocalChannels, "connect", lambda *_: None)
    settings = (*SMALL, "federated.pool=ray", "federated.workers=2")

    run_job(compose("federated", *settings), tmp_path / "cut")
    monkeypatch.undo()
    run_job(compose("federated", *settings), tmp_path / "whole")

    (failure,) = events_of(tmp_path / "cut", "failure")
    assert failure["worker"] == 1
    assert "died" in failure["reason"]
    assert_same_end(tmp_path / "whole", tmp_path / "cut")


def _kill_workers_at(monkeypatch: pytest.MonkeyPatch, victims: dict[int, int]) -> None:
    """Kill the process of worker `victims[round]` as soon as that round's work was handed out."""
    ready, train = RayPool._ready, RayPool.train
    current: dict[str, Any] = {}

    def train_noting_the_round(pool: RayPool, weights: Weights, order: Instruction, *rest: Any):
        current.update(round=order.server_round, victims=pool.processes())
        return train(pool, weights, order, *rest)

    def ready_after_the_kill(*arguments: Any) -> Any:
        victim = victims.pop(current.get("round"), None)
        if victim is not None:
            os.kill(current["victims"][victim], signal.SIGKILL)
        return ready(*arguments)

    monkeypatch.setattr(RayPool, "train", train_noting_the_round)
    monkeypatch.setattr(RayPool, "_ready", ready_after_the_kill)


@pytest.mark.slow
@pytest.mark.usefixtures("ray_session")
def test_twenty_kills_at_random_moments_change_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = (
        "federated.rounds=20",
        "federated.clients_per_round=8",
        "federated.client_training=captured",
        "federated.cpus_per_worker=1",
        "federated.pool=ray",
        "federated.workers=2",
        "model.hidden=[64,64]",
        "federated.local_epochs=60",  # rounds longer than the moments of the kills
    )
    run_job(compose("federated", *settings), tmp_path / "whole")
    draw = random.Random(fresh_seed())
    train, killed = RayPool.train, []

    def train_with_a_kill(pool: RayPool, *arguments: Any) -> Any:
        victim = pool.processes()[draw.randrange(2)]
        killed.append(victim)
        timer = threading.Timer(draw.uniform(0.0, 0.3), os.kill, (victim, signal.SIGKILL))
        timer.start()
        replies = train(pool, *arguments)
        timer.join()
        return replies

    monkeypatch.setattr(RayPool, "train", train_with_a_kill)
    run_job(compose("federated", *settings), tmp_path / "cut")

    assert len(set(killed)) == 20
    reasons = [event["reason"] for event in events_of(tmp_path / "cut", "failure")]
    assert sum("with clients" in reason for reason in reasons) >= 10  # others died between rounds
    assert_same_end(tmp_path / "whole", tmp_path / "cut")
