"""`heliotrope submit` on this machine: the command's output and its exit code."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.distributed_runs import result_of
from tests.support import ROOT, environment


def _submit(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "heliotrope", "submit", *words],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_a_local_run_streams_and_carries_its_exit_code(tmp_path: Path) -> None:
    run = ("--", "distributed", "model.hidden=[8]", "distributed.launcher=inline")
    small = ("distributed.workers=1", "distributed.epochs=1", f"hydra.run.dir={tmp_path / 'run'}")
    done = _submit("cluster=local", *run, *small)
    assert done.returncode == 0, done.stderr
    assert f"run directory {tmp_path / 'run'}" in done.stderr
    assert "test accuracy" in done.stdout
    assert result_of(tmp_path / "run")["status"] == "completed"
    again = _submit("cluster=local", *run, *small, "model.hidden=[9]")
    assert again.returncode == 2
    assert "model.hidden" in again.stderr
