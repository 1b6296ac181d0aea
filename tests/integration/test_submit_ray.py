"""`heliotrope submit cluster=ray` to a cluster of two nodes, from a process with its own home."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.distributed_runs import result_of
from tests.running_cluster import RunningCluster, started_cluster
from tests.support import ROOT, environment, weights_of

pytest.importorskip("aiohttp", reason="the extra cluster is not installed")
pytestmark = pytest.mark.slow  # a cluster with a dashboard takes 20 s to start

_TWO = ("distributed", "model.hidden=[16]", "distributed.launcher=ray", "distributed.workers=2",
        "distributed.cpus_per_worker=1")  # fmt: skip


@pytest.fixture(scope="module")
def cluster() -> Iterator[RunningCluster]:
    """Two nodes of one CPU each: two workers need both."""
    with started_cluster(1, token=True, jobs=True, nodes=2) as started:
        yield started


def _started(cluster: RunningCluster, *command: str, **variables: str) -> subprocess.Popen[str]:
    env = {name: value for name, value in environment().items() if not name.startswith("RAY_")}
    words = ["submit", "cluster=ray", f"cluster.address={cluster.dashboard}", "--", *command]
    return subprocess.Popen(
        [sys.executable, "-m", "heliotrope", *words],
        cwd=ROOT,
        env={**env, "HOME": str(cluster.home), **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def _ended(job: subprocess.Popen[str]) -> tuple[int, str, str]:
    try:
        out, err = job.communicate(timeout=180)
    finally:
        job.kill()
    return job.returncode, out, err


def test_a_job_that_is_stopped_and_sent_again_ends_with_the_undisturbed_result(
    cluster: RunningCluster, tmp_path: Path
) -> None:
    epochs = "distributed.epochs=30"
    whole = _ended(_started(cluster, *_TWO, epochs, f"hydra.run.dir={tmp_path / 'whole'}"))
    assert whole[0] == 0, whole
    assert "test accuracy" in whole[1]
    run = tmp_path / "stopped"
    job = _started(cluster, *_TWO, epochs, f"hydra.run.dir={run}")
    assert job.stdout is not None
    while "epoch 2/" not in (line := job.stdout.readline()):
        assert line, _ended(job)
    os.kill(job.pid, signal.SIGINT)
    code, _, err = _ended(job)
    assert (code, "interrupted" in err) == (130, True)
    assert not (run / "result.json").exists()
    again = _ended(_started(cluster, *_TWO, epochs, f"hydra.run.dir={run}"))
    assert again[0] == 0, again
    assert result_of(run)["status"] == "completed"
    expected, found = weights_of(tmp_path / "whole"), weights_of(run)
    assert all(torch.equal(expected[name], found[name]) for name in expected)


def test_the_exit_code_of_a_job_comes_back(cluster: RunningCluster, tmp_path: Path) -> None:
    code, out, _ = _ended(_started(cluster, "evaluate", f"run={tmp_path / 'none'}"))
    assert code == 2
    assert str(tmp_path / "none") in out


def test_another_clusters_token_is_refused(cluster: RunningCluster, tmp_path: Path) -> None:
    for token, said in (("f" * 32, "refuses the token"), ("", "asks for a token")):
        code, _, err = _ended(_started(cluster, "list", HOME=str(tmp_path), RAY_AUTH_TOKEN=token))
        assert code == 2
        assert said in err
