"""A run under attack gives the same wherever and however its clients are trained, and resumed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from federated.components import build_components
from federated.job import run_job
from heliotrope.data import Dense, load
from heliotrope.runs import checkpoint
from tests.federated_runs import assert_same_end
from tests.support import compose, events_of, values_of, weights_of

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
_MIMIC = (*("federated/strategy=krum", "federated/attack=mimic"), "federated.attack.attackers=1")
_MIMIC = (*_MIMIC, "federated.strategy.num_malicious_nodes=1", "federated.attack.learning_rounds=2")
_DOOR = ("federated.attack.boost=2", "federated/attack=backdoor", "federated.attack.size=2")
_FLIP = ("federated/attack=label_flip",)


def _run(directory: Path, rounds: int, *more: str, kind: str = "sequential") -> Path:
    training = f"federated.client_training={kind}"
    attacked = (*_SMALL, f"federated.rounds={rounds}", training)
    run_job(compose("federated", *attacked, *more), directory)
    return directory


@pytest.mark.parametrize("settings", [_KNOWING, _ALONE, _MIMIC, _DOOR])
def test_a_run_under_attack_goes_on_as_if_it_had_not_been_cut(
    settings: tuple[str, ...], tmp_path: Path
) -> None:
    whole = _run(tmp_path / "whole", 3, *settings)
    _run(tmp_path / "parts", 1, *settings)
    parts = _run(tmp_path / "parts", 3, "resume=true", *settings)
    assert_same_end(whole, parts)
    (start,) = events_of(whole, "start")
    assert start["attack"]["name"] in settings[1]
    assert len(start["attack"]["clients"]) == start["attack"]["attackers"]
    results = [json.loads((run / "result.json").read_text()) for run in (whole, parts)]
    assert results[0]["attack"] == results[1]["attack"]
    assert results[0]["attack"] | start["attack"] == results[0]["attack"]
    if settings is _DOOR:
        told = [event["attack/success"] for event in events_of(whole, "evaluate")]
        assert len(told) == 3
        for result in results:
            assert result["metrics"]["attack/success"] == told[-1]
            assert result["attack"]["success_rate"] == told[-1]
    else:
        assert "attack/success" not in results[0]["metrics"]


@pytest.mark.parametrize("settings", [_KNOWING, _ALONE, _DOOR])
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
@pytest.mark.parametrize("settings", [_KNOWING, _ALONE, _BUCKETS, _MIMIC, _DOOR, _FLIP])
def test_a_run_under_attack_on_ray_workers_is_one_in_this_process(
    settings: tuple[str, ...], tmp_path: Path
) -> None:
    here = _run(tmp_path / "here", 2, *settings)
    on_ray = ("federated.pool=ray", "federated.workers=2")
    there = _run(tmp_path / "there", 2, *settings, *on_ray)
    assert_same_end(here, there)


def test_success_is_the_share_of_stamped_examples_that_are_taken_for_the_target(
    tmp_path: Path,
) -> None:
    """By hand, from the weights at the end: of test examples whose label is another."""
    run = compose("federated", *_SMALL, *_DOOR, "federated.rounds=2", "federated.attack.target=3")
    run_job(run, tmp_path)
    model = build_components(run).context.fresh_model(weights_of(tmp_path))
    dataset = load(run.data, run.seed)
    raw = values_of(dataset.test, "image")[values_of(dataset.test, "label") != 3].clone()
    raw[:, :, -2:, -2:] = 16
    images = Dense(raw, dataset.test.fields["image"].transform).take("x", torch.arange(len(raw)))
    with torch.no_grad():
        taken = (model(images["x"]).argmax(dim=1) == 3).double().mean()
    found = json.loads((tmp_path / "result.json").read_text())["attack"]["success_rate"]
    assert found == pytest.approx(float(taken))
    assert 0 < found < 1
