"""The bound of canaries stays below what was promised, unless the promise is broken."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from rich.console import Console

from distributed.job import run_job
from distributed.privacy.protection import Protection
from federated.job import run_job as federated_job
from federated.protection import central
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


CLIENTS = (
    "data=digits",
    "data.fit=none",
    "federated/privacy=central",
    "federated.privacy.noise_multiplier=4.6",  # epsilon is just below 1
    "federated.privacy.delta=1e-5",
    "federated.pool=inprocess",
    "federated.partition.clients=100",
    "federated.clients_per_round=75",
    "federated.rounds=20",
    "federated.evaluate_every=20",
    "federated.checkpoint_every=20",
    "audit.canaries=200",
)


def of_clients(seed: int, directory: Path) -> Findings:
    federated_job(compose("federated", *CLIENTS, f"seed={seed}"), directory)
    return audit_run(directory, ["bound"], Console(quiet=True))


def of_records(seed: int, directory: Path) -> Findings:
    run_job(compose("distributed", *RECORDS, f"seed={seed}"), directory)
    return audit_run(directory, ["bound"], Console(quiet=True))


def leave_the_noise_out(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Protection, "noise", lambda _, __, count: torch.zeros(count))
    drawn = central.noisy_mean
    patch.setattr(central, "noisy_mean", lambda a, b, _, *more: drawn(a, b, 0.0, *more))


def bounds(kind: str, seeds: range, folder: Path) -> list[float]:
    found = []
    for seed in seeds:
        findings = KINDS[kind](seed, folder / str(seed))
        assert findings.bound is not None
        assert findings.promised is not None
        assert 0.8 < findings.promised["epsilon"] <= 1
        told = json.loads((folder / str(seed) / "audit.json").read_text())
        assert told["bound"]["epsilon"] == findings.bound.epsilon
        found.append(findings.bound.epsilon)
        above = findings.bound.epsilon > findings.promised["epsilon"]
        assert any("epsilon is at least" in alarm for alarm in findings.alarms) == above
    print(sorted(round(bound, 2) for bound in found))
    return found


KINDS = {"records": of_records, "clients": of_clients}


@pytest.mark.parametrize("kind", KINDS)
def test_the_bound_stays_below_what_was_promised(kind: str, tmp_path: Path) -> None:
    assert max(bounds(kind, range(1), tmp_path)) <= 1


@pytest.mark.parametrize("kind", KINDS)
def test_noise_that_is_left_out_is_seen(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    leave_the_noise_out(monkeypatch)
    assert min(bounds(kind, range(1), tmp_path)) > 1


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_the_bound_stays_below_what_was_promised_with_20_seeds(kind: str, tmp_path: Path) -> None:
    assert max(bounds(kind, range(20), tmp_path)) <= 1


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_noise_that_is_left_out_is_seen_with_18_of_20_seeds(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    leave_the_noise_out(monkeypatch)
    assert sum(bound > 1 for bound in bounds(kind, range(20), tmp_path)) >= 18
