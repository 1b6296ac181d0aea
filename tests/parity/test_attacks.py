"""A run under attack gives the same wherever and however its clients are trained, and resumed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from federated.job import run_job
from heliotrope.runs import checkpoint
from tests.federated_runs import assert_same_end
from tests.support import compose, events_of

pytestmark = pytest.mark.usefixtures("no_report")

_SMALL = (
    "model.hidden=[8]",
    "federated.clients_per_round=6",
    "federated.partition.clients=7",
    "federated.client_momentum=0.9",
    "federated.checkpoint_every=2",
    "federated.cpus_per_worker=1",
    "federated.attack.attackers=2",
    "seed=11",
)
_KNOWING = ("federated/strategy=centered_clipping", "federated/attack=alie")
_ALONE = ("federated/strategy=fedavg", "federated/attack=scaling", "federated.attack.factor=-2.0")
_BUCKETS = (
    *("federated/strategy=fedmedian", "federated.bucket_size=2"),
    *("federated/attack=mimic", "federated.attack.attackers=1"),
)


def _run(directory: Path, rounds: int, *more: str, kind: str = "sequential") -> Path:
    training = f"federated.client_training={kind}"
    attacked = (*_SMALL, f"federated.rounds={rounds}", training)
    run_job(compose("federated", *attacked, *more), directory)
    return directory


@pytest.mark.parametrize("settings", [_KNOWING, _ALONE])
def test_a_run_under_attack_goes_on_as_if_it_had_not_been_cut(
    settings: tuple[str, ...], tmp_path: Path
) -> None:
    whole = _run(tmp_path / "whole", 3, *settings)
    _run(tmp_path / "parts", 1, *settings)
    parts = _run(tmp_path / "parts", 3, "resume=true", *settings)
    assert_same_end(whole, parts)
    (start,) = events_of(whole, "start")
    assert start["attack"]["name"] in settings[1]
    assert len(start["attack"]["clients"]) == 2
    assert json.loads((parts / "result.json").read_text())["attack"] == start["attack"]


@pytest.mark.parametrize("settings", [_KNOWING, _ALONE])
def test_a_stack_of_clients_is_attacked_as_clients_one_by_one_are(
    settings: tuple[str, ...], tmp_path: Path
) -> None:
    ends = []
    for kind in ("sequential", "batched"):
        found = checkpoint.latest(
            _run(tmp_path / kind, 2, *settings, kind=kind) / "checkpoints", pytest.fail
        )
        assert found is not None
        ends.append(found.model)
    for name, value in ends[0].items():
        torch.testing.assert_close(value, ends[1][name], rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.usefixtures("ray_session")
@pytest.mark.parametrize("settings", [_KNOWING, _ALONE, _BUCKETS])
def test_a_run_under_attack_on_ray_workers_is_one_in_this_process(
    settings: tuple[str, ...], tmp_path: Path
) -> None:
    here = _run(tmp_path / "here", 2, *settings)
    on_ray = ("federated.pool=ray", "federated.workers=2")
    there = _run(tmp_path / "there", 2, *settings, *on_ray)
    assert_same_end(here, there)
