"""Parity 6, federated: a run that was cut ends with the weights of one that was not."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from federated.job import run_job
from heliotrope.errors import RunDirectoryError
from tests.support import ROOT, compose, events_of, fresh_seed, weights_of

pytestmark = pytest.mark.usefixtures("no_report")

_SMALL = (
    "model.hidden=[8]",
    "model.dropout=0.2",
    "federated.clients_per_round=4",
    "federated.holdout_fraction=0.2",
    "federated.checkpoint_every=2",
    "federated.client_training=sequential",
    "federated.cpus_per_worker=1",
    "seed=11",
)


def _train(directory: Path, rounds: int, *more: str) -> None:
    run_job(compose("federated", *_SMALL, f"federated.rounds={rounds}", *more), directory)


def _same(one: Path, other: Path) -> None:
    left, right = weights_of(one), weights_of(other)
    assert left.keys() == right.keys()
    for name, value in left.items():
        assert torch.equal(value, right[name]), name
    assert events_of(one) == events_of(other)


@pytest.mark.parametrize(
    "strategy", ["fedavg", "fedadam", "fedyogi", "fedadagrad", "fedavgm", "qfedavg", "krum"]
)
def test_a_run_continued_equals_a_run_in_one_go(strategy: str, tmp_path: Path) -> None:
    choice = f"federated/strategy={strategy}"
    _train(tmp_path / "whole", 5, choice)
    _train(tmp_path / "parts", 2, choice)
    _train(tmp_path / "parts", 3, choice, "resume=true")
    _train(tmp_path / "parts", 5, choice, "resume=true")

    left, right = weights_of(tmp_path / "whole"), weights_of(tmp_path / "parts")
    assert all(torch.equal(value, right[name]) for name, value in left.items())


def test_a_requeued_job_begins_where_there_is_nothing_to_resume(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _train(tmp_path / "whole", 2)
    _train(tmp_path / "again", 2, "resume=true")
    said = [line for line in capsys.readouterr().out.splitlines() if "resume" in line]
    assert said == [f"there is nothing to resume in {tmp_path / 'again'} yet: beginning"]
    _same(tmp_path / "whole", tmp_path / "again")


def test_a_killed_run_continues_where_it_was(tmp_path: Path) -> None:
    rounds = 40
    overrides = [*_SMALL, f"federated.rounds={rounds}"]
    draw = random.Random(fresh_seed())
    _train(tmp_path / "whole", rounds)

    command = [sys.executable, "-m", "federated", *overrides, f"hydra.run.dir={tmp_path / 'cut'}"]
    environment = os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    for attempt in range(3):  # killed twice, at random moments, then left alone
        job = subprocess.Popen(
            [*command, f"resume={str(attempt > 0).lower()}"],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        if attempt < 2:
            _wait_for(tmp_path / "cut" / "metrics.jsonl", draw.randint(5, 30) + 40 * attempt)
            job.send_signal(signal.SIGKILL)
        _, error = job.communicate(timeout=120)
        assert attempt < 2 or job.returncode == 0, error

    _same(tmp_path / "whole", tmp_path / "cut")


def _wait_for(path: Path, lines: int) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if path.exists() and path.read_bytes().count(b"\n") >= lines:
            return
        time.sleep(0.01)
    pytest.fail(f"{path} never held {lines} lines")


def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _train(tmp_path / "whole", 6)
    _train(tmp_path / "cut", 4)
    newest = tmp_path / "cut" / "checkpoints" / "00000004" / "model.safetensors"
    data = bytearray(newest.read_bytes())
    data[-5] ^= 16
    newest.write_bytes(data)

    _train(tmp_path / "cut", 6, "resume=true")

    assert str(newest) in capsys.readouterr().out
    assert str(newest) in (tmp_path / "cut" / "run.log").read_text()
    left, right = weights_of(tmp_path / "whole"), weights_of(tmp_path / "cut")
    assert all(torch.equal(value, right[name]) for name, value in left.items())


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ("model.hidden=[9]", "model.hidden"),
        ("seed=12", "seed"),
        ("federated.strategy.proximal_mu=0.3", "federated.strategy.proximal_mu"),
    ],
)
def test_another_run_is_not_continued(change: str, key: str, tmp_path: Path) -> None:
    choice = "federated/strategy=fedprox"
    _train(tmp_path, 1, choice)
    with pytest.raises(RunDirectoryError, match=key):
        _train(tmp_path, 2, choice, "resume=true", change)
