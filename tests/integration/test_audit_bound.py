"""The bound of canaries stays below what was promised, unless the promise is broken."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from rich.console import Console

from distributed.job import run_job
from distributed.privacy.protection import Protection
from heliotrope.audit.findings import Findings
from heliotrope.commands.audit import audit_run
from tests.support import compose

RECORDS = (
    "data=digits",
    "data.fit=none",
    "model.hidden=[128]",
    "distributed/privacy=dpsgd",
    "distributed.privacy.noise_multiplier=4.6",  # epsilon is just below 1
    "distributed.launcher=inline",
    "distributed.workers=1",
    "distributed.batch_size=128",
    "distributed.epochs=30",
    "distributed.evaluate_every=30",
    "distributed.checkpoint_every=30",
    "optimizer.lr=2",
    "optimizer.momentum=0",
    "audit.canaries=500",
)


def of_records(seed: int, directory: Path) -> Findings:
    run_job(compose("distributed", *RECORDS, f"seed={seed}"), directory)
    return audit_run(directory, ["bound"], Console(quiet=True))


def leave_the_noise_out(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Protection, "noise", lambda _, __, count: torch.zeros(count))


def bounds(seeds: range, folder: Path) -> list[float]:
    found = []
    for seed in seeds:
        findings = of_records(seed, folder / str(seed))
        assert findings.bound is not None
        assert findings.promised is not None
        assert 0.9 < findings.promised["epsilon"] <= 1
        told = json.loads((folder / str(seed) / "audit.json").read_text())
        assert told["bound"]["epsilon"] == findings.bound.epsilon
        found.append(findings.bound.epsilon)
    print(sorted(round(bound, 2) for bound in found))
    return found


def test_records_stay_below_what_was_promised(tmp_path: Path) -> None:
    assert max(bounds(range(2), tmp_path)) <= 1


def test_records_without_noise_are_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    leave_the_noise_out(monkeypatch)
    assert min(bounds(range(2), tmp_path)) > 1


@pytest.mark.slow
def test_records_stay_below_what_was_promised_with_20_seeds(tmp_path: Path) -> None:
    assert max(bounds(range(20), tmp_path)) <= 1


@pytest.mark.slow
def test_records_without_noise_are_seen_with_18_of_20_seeds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    leave_the_noise_out(monkeypatch)
    assert sum(bound > 1 for bound in bounds(range(20), tmp_path)) >= 18
