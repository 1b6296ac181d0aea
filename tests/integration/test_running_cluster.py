"""Runs on a Ray cluster that somebody else has started, from a process of their own."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.distributed_runs import RAY, SMALL, result_of
from tests.running_cluster import RunningCluster, started_cluster
from tests.support import ROOT, environment, fresh_seed


@pytest.fixture(scope="module")
def by_token() -> Iterator[RunningCluster]:
    """A cluster of four CPUs, started where there is a token."""
    with started_cluster(cpus=4, token=True) as cluster:
        yield cluster


def _without_ray_mode(env: dict[str, str]) -> dict[str, str]:
    """Return the environment without what a Ray of this process has noted there."""
    return {name: value for name, value in env.items() if name != "RAY_AUTH_MODE"}


def _run(
    mode: str, directory: Path, *overrides: str, cwd: Path = ROOT, **variables: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", mode, *overrides, f"hydra.run.dir={directory}"],
        cwd=cwd,
        env=_without_ray_mode(environment()) | variables,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


_HOLD = """
import ray, sys

ray.init(log_to_driver=False, logging_level="ERROR")


@ray.remote
class Hold:
    def here(self):
        return True


held = [Hold.options(num_cpus=cpus).remote() for cpus in (3, 1)]
ray.get([hold.here.remote() for hold in held])
print("held", flush=True)
sys.stdin.readline()
ray.kill(held[0])
sys.stdin.read()
"""


def test_a_job_on_a_busy_cluster_waits_aloud_and_takes_what_becomes_free(
    by_token: RunningCluster, tmp_path: Path
) -> None:
    """Others hold all four CPUs, then one: two workers need two."""
    env = _without_ray_mode(environment()) | by_token.environment
    with subprocess.Popen(
        [sys.executable, "-c", _HOLD],
        env=env | {"RAY_AUTH_MODE": "token"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as others:
        assert others.stdin is not None
        assert others.stdout is not None
        assert others.stdout.readline() == "held\n"
        job = subprocess.Popen(
            [sys.executable, "-m", "distributed", "model.hidden=[16]", *RAY,
             "distributed.epochs=1", f"hydra.run.dir={tmp_path / 'run'}"],
            cwd=ROOT, env=env, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        try:
            assert job.stderr is not None
            line = job.stderr.readline()
            assert "waiting up to 300 s (cluster.wait_seconds)" in line
            assert "2 worker(s) with 1 CPU(s) each. Of its 4 CPU(s) 0" in line
            others.stdin.write("\n")
            others.stdin.flush()
            assert job.wait(60) == 0, job.stderr.read()
        finally:
            job.kill()
            job.stderr.close()
            others.kill()


_SPY = """
import json, os, pathlib
from torch import nn
from heliotrope import plugin

AT_IMPORT = dict(os.environ)  # as a tracker or a data set's library may look for its token

@plugin.model
def spy(task):
    note = pathlib.Path(os.environ["MLFLOW_NOTES"]) / f"{os.getpid()}.json"
    note.write_text(json.dumps({"environment": AT_IMPORT, "cwd": os.getcwd()}))
    return nn.Sequential(nn.Flatten(), nn.Linear(64, task.num_outputs))
"""
_FEW_ROUNDS = ("federated.pool=ray", "federated.workers=1", "federated.rounds=1")


@pytest.mark.parametrize(
    ("mode", "overrides"),
    [("distributed", (*RAY, "distributed.epochs=1")), ("federated", _FEW_ROUNDS)],
)
def test_the_drivers_environment_reaches_the_workers_and_no_secret_the_logs(
    mode: str, overrides: tuple[str, ...], by_token: RunningCluster, tmp_path: Path
) -> None:
    (tmp_path / "spy.py").write_text(_SPY)
    (tmp_path / "notes").mkdir()
    (tmp_path / "here").mkdir()
    settings = {
        "NCCL_SOCKET_IFNAME": f"lo-{mode}",
        "GLOO_SOCKET_IFNAME": "lo",
        "https_proxy": "http://proxy.invalid:3128",
        "MLFLOW_NOTES": str(tmp_path / "notes"),
    }
    drawn = f"{fresh_seed():016x}"
    secrets = {
        "MLFLOW_TRACKING_TOKEN": f"token-{drawn}",
        "HTTPS_PROXY": f"http://ann:password-{drawn}@proxy.invalid:3128",
        "MINE": f"mine-{drawn}",
    }
    done = _run(
        mode, tmp_path / "run", f"plugins=[{tmp_path / 'spy.py'}]", "model=spy", *overrides,
        "cluster.credentials=[MINE]", cwd=tmp_path / "here",
        **by_token.environment, **settings, **secrets, XDG_STATE_HOME=str(tmp_path / "state"),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    log = (tmp_path / "run" / "run.log").read_text()
    workers = re.findall(r"\[(?:rank|worker process) .*ready: process (\d+) ", log)
    workers = workers or re.findall(r"\[worker process (\d+)\]", log)
    assert workers
    for worker in workers:
        note = json.loads((tmp_path / "notes" / f"{worker}.json").read_text())
        got = {name: note["environment"].get(name) for name in settings | secrets}
        assert got == settings | secrets
        assert note["cwd"] == str(tmp_path / "here")
    logs = [path for path in by_token.session.resolve().rglob("*") if path.is_file()]
    texts = [path.read_bytes() for path in logs]
    assert any(settings["NCCL_SOCKET_IFNAME"].encode() in text for text in texts), "where to look"
    said = [*texts, log.encode(), done.stdout.encode(), done.stderr.encode()]
    assert not any(drawn.encode() in text for text in said)


def test_a_cluster_that_asks_for_a_token_is_given_the_one_that_is_there(
    by_token: RunningCluster, tmp_path: Path
) -> None:
    done = _run(
        "distributed", tmp_path / "run", *SMALL, *RAY, "distributed.epochs=1",
        **by_token.environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert result_of(tmp_path / "run")["status"] == "completed"


@pytest.mark.slow
def test_a_cluster_without_authentication_takes_a_driver_that_has_a_token(tmp_path: Path) -> None:
    overrides = (*SMALL, *RAY, "distributed.epochs=1")
    with started_cluster(cpus=2, token=False) as cluster:
        token = {"RAY_AUTH_TOKEN": "f" * 32}
        done = _run("distributed", tmp_path / "a", *overrides, **cluster.environment | token)
        token |= {"RAY_AUTH_MODE": "token"}
        insists = _run("distributed", tmp_path / "b", *overrides, **cluster.environment | token)
    assert done.returncode == 0, done.stderr
    assert insists.returncode == 2
    assert "Unset RAY_AUTH_MODE" in insists.stderr, "Ray's actors would die"


@pytest.mark.parametrize(
    ("mode", "variables", "said"),
    [
        ("distributed", {"RAY_AUTH_TOKEN": "f" * 32}, "refuses the token that was found"),
        ("federated", {"HOME": "/nonexistent"}, "refuses a driver without a token"),
        ("federated", {"RAY_AUTH_MODE": "disabled"}, "without a token (RAY_AUTH_MODE=disabled)"),
    ],
)
def test_a_token_that_the_cluster_does_not_take_is_one_line(
    mode: str,
    variables: dict[str, str],
    said: str,
    by_token: RunningCluster,
    tmp_path: Path,
) -> None:
    choice = RAY if mode == "distributed" else ("federated.pool=ray",)
    began = time.monotonic()
    done = _run(mode, tmp_path / "run", *choice, **by_token.environment | variables)
    assert done.returncode == 2, done.stderr
    [line] = done.stderr.splitlines()
    assert said in line
    assert "RAY_AUTH_TOKEN" in line
    assert time.monotonic() - began < 15  # Ray alone tries for more than 20
