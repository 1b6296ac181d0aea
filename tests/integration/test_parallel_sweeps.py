"""Sweeps whose jobs run at the same time: they end as those that run one after the other."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from heliotrope.privacy.project import ProjectLedger
from tests.support import ROOT, assert_same_tensors, environment, weights_of

pytestmark = pytest.mark.slow

_SMALL = (
    "experiment=quickstart",
    "federated.clients_per_round=4",
    "federated.cpus_per_worker=1",
)


def _command(sweep: Path, *arguments: str, mode: str = "federated") -> list[str]:
    told = ("-m", *(_SMALL if mode == "federated" else ()), *arguments, f"hydra.sweep.dir={sweep}")
    return [sys.executable, "-m", mode, *told]


def _swept(sweep: Path, *arguments: str, mode: str = "federated") -> tuple[int, str, str]:
    ended = subprocess.run(
        _command(sweep, *arguments, mode=mode),
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    return ended.returncode, ended.stdout, ended.stderr


def _metrics(job: Path) -> dict[str, Any]:
    values = json.loads((job / "result.json").read_text())["metrics"]
    assert isinstance(values, dict)
    return values


def _private(ledger: Path) -> tuple[str, ...]:
    return (
        "data.fit=none",
        "federated/privacy=central",
        "federated.privacy.noise_multiplier=8",  # its epsilon is quick to compute
        f"privacy.ledger={ledger}",
    )


def test_private_jobs_at_a_time_spend_what_jobs_in_turn_do(tmp_path: Path) -> None:
    one = ("federated.rounds=2", "optimizer.lr=0.05,-1", "seed=1,2")
    told, spent = {}, {}
    for way, parallel in (("in turn", 1), ("at a time", 2)):
        ledger = tmp_path / f"{way}.jsonl"
        more = (*one, *_private(ledger), f"sweep.parallel={parallel}")
        code, out, err = _swept(tmp_path / way, *more)
        assert code == 2, err
        assert "optimizer.lr=-1" in err
        told[way] = out
        entries = ProjectLedger(ledger).entries()
        assert all(entry.ended for entry in entries)
        spent[way] = sorted(
            (Path(entry.directory).name, entry.purpose, entry.spent) for entry in entries
        )
    assert spent["in turn"] == spent["at a time"]
    done = [name for name, _, _ in spent["in turn"]]
    assert done == ["0", "1"], "those with a rate below 0 are refused"
    for way, out in told.items():
        assert "±" in out, "two seeds of each rate are one line"
        assert "privacy: 2 trials of" in out, "what all have spent together"
        assert (tmp_path / way / "report.html").stat().st_size > 10_000


def test_a_killed_sweep_goes_on_with_what_is_left(tmp_path: Path) -> None:
    choices = ("federated.rounds=30", "federated.checkpoint_every=1", "seed=1,2,3")
    code, out, err = _swept(tmp_path / "whole", *choices)
    assert code == 0, err
    sweep = tmp_path / "cut"
    more = (*choices, "sweep.parallel=2")
    with subprocess.Popen(
        _command(sweep, *more), cwd=ROOT, env=environment(), stderr=subprocess.PIPE, text=True
    ) as job:
        _await(lambda: any(sweep.glob("*/result.json")), job)
        _await(lambda: len(list(sweep.glob("*/config.yaml"))) == 3, job)
        job.send_signal(signal.SIGTERM)
        _, said = job.communicate(timeout=60)
    assert job.returncode == 143, said
    assert "resume=true hydra.sweep.dir=" in said
    ended = {path.parent: path.stat().st_mtime_ns for path in sweep.glob("*/result.json")}
    assert 1 <= len(ended) < 3
    assert all(any((path / "checkpoints").iterdir()) for path in sweep.iterdir() if path.is_dir())
    code, out, err = _swept(sweep, *more, "resume=true")
    assert code == 0, err
    assert out.count("is completed") == len(ended)
    assert {path: (path / "result.json").stat().st_mtime_ns for path in ended} == ended
    for name in "012":
        assert _metrics(sweep / name) == _metrics(tmp_path / "whole" / name)


def test_jobs_whose_workers_ray_places_end_at_a_time_as_in_turn(tmp_path: Path) -> None:
    own = ("distributed.launcher=ray", "distributed.workers=1", "distributed.cpus_per_worker=1")
    for way, parallel in (("in turn", 1), ("at a time", 2)):
        more = (*own, "distributed.epochs=2", "seed=1,2,3", f"sweep.parallel={parallel}")
        code, _, err = _swept(tmp_path / way, *more, mode="distributed")
        assert code == 0, err
    for job in "012":
        alone, beside = tmp_path / "in turn" / job, tmp_path / "at a time" / job
        assert _metrics(alone) == _metrics(beside)
        assert_same_tensors(weights_of(alone), weights_of(beside))


def _await(seen: Any, job: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120
    while not seen():
        assert job.poll() is None, job.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_process_that_dies_fails_its_job_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(_FATAL)
    code, out, err = _swept(
        tmp_path / "sweep",
        "federated.rounds=1",
        f"plugins=[{tmp_path / 'mine.py'}]",
        "model=perhaps",
        "model.width=8,0,16,32",
        "sweep.parallel=2",
    )
    assert code == 1, (out, err)
    assert "[1] error: its process died" in err
    done = {path.parent.name for path in (tmp_path / "sweep").glob("*/result.json")}
    assert done == {"0", "2", "3"}


_FATAL = """
import os
from torch import nn
from heliotrope import plugin


@plugin.model
def perhaps(task, *, width: int) -> nn.Module:
    if not width:
        os._exit(9)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, width), nn.Linear(width, task.num_outputs))
"""
