"""`heliotrope mirror`: a run whose machine is lost goes on from its storage, elsewhere."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from tests.distributed_runs import result_of
from tests.support import ROOT, environment, events_of, weights_of

_RUN = ("federated", "experiment=quickstart", "federated.pool=inprocess", "federated.rounds=150",
        "federated.clients_per_round=2", "federated.cpus_per_worker=1")  # fmt: skip


def _command(*words: str, cwd: Path = ROOT) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "heliotrope", *words],
        cwd=cwd,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


@pytest.mark.slow
def test_a_run_that_is_killed_ends_elsewhere_with_the_undisturbed_result(tmp_path: Path) -> None:
    whole, store = tmp_path / "whole", tmp_path / "store" / "mine"
    done = _command(*_RUN, f"hydra.run.dir={whole}")
    out = done.communicate(timeout=120)[0]
    assert done.returncode == 0, out
    mirror = ("mirror", f"storage=file://{store}", "--", *_RUN)
    lost = _command(*mirror, cwd=tmp_path)
    deadline = time.monotonic() + 60
    while not list(store.glob("checkpoints/*/manifest.json")):
        assert lost.poll() is None, lost.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.killpg(lost.pid, signal.SIGKILL)
    lost.communicate()
    assert not (store / "result.json").exists()
    again = _command(*mirror, cwd=tmp_path)
    out = again.communicate(timeout=120)[0]
    assert again.returncode == 0, out
    assert "resum" in out
    assert result_of(store)["status"] == "completed"
    expected, found = weights_of(whole), weights_of(store)
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    assert events_of(store, "round") == events_of(whole, "round")


def test_what_cannot_be_mirrored_is_refused(tmp_path: Path) -> None:
    for words, said in (
        (("storage=nowhere://x", "--", *_RUN), "storage=nowhere://x cannot be used"),
        (("storage=file:///tmp/x", "--", "list"), "mirror runs distributed or federated"),
        (("--", *_RUN), "mirror needs storage=URL"),
    ):
        refused = _command("mirror", *words, cwd=tmp_path)
        out = refused.communicate(timeout=60)[0]
        assert refused.returncode == 2, out
        assert said in out
