"""A signal to a command that runs on Ray: to it, its group, or every process below it."""

from __future__ import annotations

import fcntl
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from heliotrope.runs.display import OUTPUT_CLOSED
from tests.distributed_runs import Job, alive, process, wait_until
from tests.support import environment, fresh_seed, saved_by

_ENDLESS = {
    "distributed": ("distributed.epochs=100000",),
    "federated": (
        "federated.rounds=100000",
        "federated.checkpoint_every=100000",
        "federated.pool=ray",
        "federated.workers=2",
        "federated.clients_per_round=4",
    ),
}


def _family(root: int) -> list[int]:
    """Return a process and all processes below it."""
    found = [root]
    for process_id in found:
        for task in Path(f"/proc/{process_id}/task").glob("*/children"):
            found += map(int, task.read_text().split())
    return found


def _send(job: Job, sent: signal.Signals, to: str) -> list[int]:
    """Send a signal; return the processes that there were."""
    family = _family(job.pid)
    if to == "group":  # a shell's `timeout`, a terminal
        os.killpg(job.pid, sent)
    elif to == "all":  # systemd, Slurm
        for process_id in family:
            os.kill(process_id, sent)
    else:
        job.send_signal(sent)
    return family


def _assert_ended(
    job: Job, directory: Path, family: list[int], code: int, began: float, within: float = 3.0
) -> str:
    """Fail unless the command ends as it should and leaves nothing; return what it printed."""
    output = job.ended()
    seconds = time.monotonic() - began
    assert job.returncode == code, output
    assert seconds < within, output
    for noise in ("Traceback", "***", " E ", "terminate called"):
        assert noise not in output, output
    wait_until(lambda: not any(map(alive, family)), 5)
    for name in (".lock", ".workers"):
        if (directory / name).exists():
            with (directory / name).open("r+") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return output


def _trained(directory: Path) -> bool:
    metrics = directory / "metrics.jsonl"
    return metrics.exists() and metrics.read_text().count('"train"') >= 3


@pytest.mark.parametrize("mode", ["distributed", "federated"])
@pytest.mark.parametrize(
    ("sent", "to", "code"),
    [
        (signal.SIGTERM, "all", 143),
        pytest.param(signal.SIGINT, "group", 130, marks=pytest.mark.slow),
    ],
)
def test_a_run_on_ray_that_is_stopped_saves_and_leaves_nothing(
    mode: str, sent: signal.Signals, to: str, code: int, tmp_path: Path
) -> None:
    directory = tmp_path / "run"
    with process(directory, *_ENDLESS[mode], mode=mode) as job:
        wait_until(lambda: _trained(directory), 120)
        began, family = time.monotonic(), _send(job, sent, to)
        output = _assert_ended(job, directory, family, code, began)
    assert f"continue it: resume=true hydra.run.dir={directory}" in output
    saved = saved_by(directory)
    if mode == "distributed":
        assert f"stopped after step {saved.progress}, which is saved" in output
    else:
        last = (directory / "metrics.jsonl").read_text().count('"train"')
        assert saved.progress in (last, last - 1)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["distributed", "federated"])
def test_a_run_whose_output_nobody_reads_saves_and_says_why(mode: str, tmp_path: Path) -> None:
    directory = tmp_path / "run"
    words = ("experiment=quickstart", *_ENDLESS[mode], f"hydra.run.dir={directory}")
    with subprocess.Popen(
        [sys.executable, "-m", mode, *words],
        cwd=tmp_path,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as job:
        assert job.stdout is not None
        assert job.stderr is not None
        while "accuracy" not in job.stdout.readline():
            pass
        job.stdout.close()
        errors = job.stderr.read()
    assert job.returncode == 141, errors
    assert f"the run is stopped: {OUTPUT_CLOSED}" in errors
    assert f"continue it: resume=true hydra.run.dir={directory}" in errors
    saved = saved_by(directory)
    assert saved.progress > 0
    events = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    assert (events[-1]["status"], events[-1]["reason"]) == ("interrupted", OUTPUT_CLOSED)
    assert f"interrupted: {OUTPUT_CLOSED}" in (directory / "run.log").read_text()


def _ray_comes_up(job: Job) -> bool:
    return any(
        "gcs_server" in Path(f"/proc/{process_id}/cmdline").read_text()
        for process_id in _family(job.pid)
        if Path(f"/proc/{process_id}").exists()
    )


@pytest.mark.parametrize("to", ["group", "all"])
def test_a_signal_while_ray_starts_ends_the_run_at_once(to: str, tmp_path: Path) -> None:
    directory, draw = tmp_path / "run", random.Random(fresh_seed())
    with process(directory, *_ENDLESS["federated"], mode="federated") as job:
        wait_until(lambda: _ray_comes_up(job), 60)
        time.sleep(draw.uniform(0.0, 1.0))
        began, family = time.monotonic(), _send(job, signal.SIGTERM, to)
        _assert_ended(job, directory, family, 143, began)


@pytest.mark.parametrize("launcher", [pytest.param("ray", marks=pytest.mark.slow), "torchrun"])
def test_a_signal_before_the_first_step_does_not_wait_for_it(launcher: str, tmp_path: Path) -> None:
    directory, draw = tmp_path / "run", random.Random(fresh_seed())
    choice = (f"distributed.launcher={launcher}", "distributed.workers=2")
    # Workers of torchrun that start after it must be ended too: they import torch for two seconds.
    within = 1.5 if launcher == "torchrun" else 3.0
    with process(directory, *_ENDLESS["distributed"], *choice) as job:
        wait_until((directory / "config.yaml").exists, 60)
        time.sleep(draw.choice([0.0, draw.uniform(0.0, 0.5)]))
        began, family = time.monotonic(), _send(job, signal.SIGTERM, "group")
        output = _assert_ended(job, directory, family, 143, began, within)
    assert f"continue it: resume=true hydra.run.dir={directory}" in output


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["distributed", "federated"])
def test_signals_at_random_moments(mode: str, tmp_path: Path) -> None:
    draw = random.Random(fresh_seed())
    for number in range(20):
        directory = tmp_path / str(number)
        sent, to = draw.choice(
            [(signal.SIGTERM, "process"), (signal.SIGTERM, "group"), (signal.SIGTERM, "all")]
        )
        with process(directory, *_ENDLESS[mode], mode=mode) as job:
            time.sleep(draw.uniform(1.5, 10.0))  # before, nothing but Python itself is there
            began, family = time.monotonic(), _send(job, sent, to)
            output = _assert_ended(job, directory, family, 143, began)
        begun = (directory / "config.yaml").exists()
        assert ("continue it: resume=true" in output) == begun
