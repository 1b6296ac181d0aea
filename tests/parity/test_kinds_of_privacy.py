"""Every kind of client-level privacy: the same however it is trained, on Ray, and after a crash."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from federated.job import run_job
from heliotrope.errors import ConfigError
from heliotrope.privacy.accountant import epsilon
from heliotrope.privacy.ledger import PLANNED
from heliotrope.privacy.mechanisms import CorrelatedSums, Mechanism
from tests.federated_runs import assert_same_end
from tests.support import compose, weights_of

pytestmark = pytest.mark.usefixtures("no_report")

_SMALL = (
    "model.hidden=[8]",
    "data.fit=none",
    "federated.partition.clients=12",
    "federated.clients_per_round=4",
    "federated.cpus_per_worker=1",
    "federated.checkpoint_every=1",
    "federated.evaluate_every=100",
    "seed=5",
)
_KINDS = {
    "adaptive": (
        "federated/privacy=adaptive",
        "federated.privacy.clip=0.3",
        "federated.privacy.noise_multiplier=0.7",
        "federated.privacy.count_noise=1",
    ),
    "ftrl": (
        "federated/privacy=ftrl",
        "federated.privacy.clip=0.3",
        "federated.privacy.noise_multiplier=2",
        "federated.privacy.band=3",
    ),
    "central": (
        "federated/privacy=central",
        "federated.privacy.clip=0.3",
        "federated.privacy.noise_multiplier=0.7",
    ),
    "local": (
        "federated/privacy=local",
        "federated.privacy.clip=0.3",
        "federated.privacy.noise_multiplier=0.5",
    ),
}
_EACH = pytest.mark.parametrize("kind", _KINDS)


def _train(directory: Path, rounds: int, kind: str, *more: str) -> dict[str, Any]:
    settings = (*_SMALL, *_KINDS[kind], f"federated.rounds={rounds}", *more)
    run_job(compose("federated", *settings), directory)
    result: dict[str, Any] = json.loads((directory / "result.json").read_text())
    return result


def _told(directory: Path) -> list[dict[str, float]]:
    """Return what each round's event says of privacy."""
    events = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    return [
        {name: value for name, value in event.items() if name.startswith("privacy/")}
        for event in events
        if event["event"] == "train"
    ]


@_EACH
@pytest.mark.parametrize(
    "way",
    [
        ("federated.client_training=sequential",),
        ("federated.client_training=captured", "federated.lanes=2", "federated.cpus_per_worker=2"),
    ],
)
def test_every_way_of_training_gives_the_same_private_model(
    kind: str, way: tuple[str, ...], tmp_path: Path
) -> None:
    _train(tmp_path / "batched", 3, kind, "federated.client_training=batched")
    _train(tmp_path / "other", 3, kind, *way)
    one, other = weights_of(tmp_path / "batched"), weights_of(tmp_path / "other")
    for name, value in one.items():
        torch.testing.assert_close(other[name], value, rtol=0, atol=2e-6)
    assert _told(tmp_path / "other") == _told(tmp_path / "batched")


@_EACH
@pytest.mark.parametrize("more", [(), ("federated.client_momentum=0.5",)])
def test_a_run_that_crashed_goes_on_as_if_it_had_not(
    kind: str, more: tuple[str, ...], tmp_path: Path
) -> None:
    """Its last rounds are charged, but no checkpoint has them."""
    whole = _train(tmp_path / "whole", 5, kind, *more)
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    saved = sorted((tmp_path / "cut" / "checkpoints").iterdir(), key=lambda path: int(path.name))
    assert 0 < int(saved[0].name) < 5
    for path in saved[1:]:
        shutil.rmtree(path)
    cut = _train(tmp_path / "cut", 5, kind, *more, "resume=true")
    assert cut["privacy"] == whole["privacy"]
    assert_same_end(tmp_path / "cut", tmp_path / "whole")
    assert _told(tmp_path / "cut") == _told(tmp_path / "whole")
    assert len(_told(tmp_path / "cut")) == 5


def _released(directory: Path) -> set[str]:
    lines = map(json.loads, (directory / "privacy.jsonl").read_text().splitlines())
    return {line["release"] for line in lines} - {PLANNED}


@_EACH
def test_rounds_that_follow_others_of_other_settings_share_no_noise_with_a_run_without_these(
    kind: str, tmp_path: Path
) -> None:
    """Else the difference of both, from models that are not the same, would have none."""
    for run, devices in (("changed", ("auto", "cpu", "auto")), ("other", ("cpu", "auto", "auto"))):
        for number, device in enumerate(devices, start=1):
            resumed = (f"device={device}", f"resume={str(number > 1).lower()}")
            _train(tmp_path / run, number, kind, *resumed)
    _train(tmp_path / "whole", 3, kind)
    whole, changed, other = (_released(tmp_path / run) for run in ("whole", "changed", "other"))
    last = {name for name in changed if name.startswith("round 3")}
    assert last
    assert not last & (whole | other)


@pytest.mark.slow
@_EACH
@pytest.mark.usefixtures("ray_session")
def test_a_private_run_on_ray_workers_is_one_in_this_process(kind: str, tmp_path: Path) -> None:
    _train(tmp_path / "here", 3, kind)
    _train(tmp_path / "there", 3, kind, "federated.pool=ray", "federated.workers=2")
    assert_same_end(tmp_path / "here", tmp_path / "there")
    assert _told(tmp_path / "here") == _told(tmp_path / "there")


def test_an_adaptive_clip_is_told_each_round_and_at_the_end(tmp_path: Path) -> None:
    said = _train(tmp_path, 3, "adaptive")["privacy"]
    told = _told(tmp_path)
    assert told[0]["privacy/clip"] == said["clip_start"] == 0.3
    assert told[1]["privacy/clip"] != told[2]["privacy/clip"]
    assert said["clip"] not in [each["privacy/clip"] for each in told]
    assert said["noise_multiplier_of_updates"] > said["noise_multiplier"] == 0.7
    assert said["releases"] == 3


def test_correlated_noise_is_charged_as_it_grows_and_a_budget_ends_it(tmp_path: Path) -> None:
    said = _train(tmp_path / "all", 5, "ftrl")["privacy"]
    mechanism = CorrelatedSums(2.0, 4, 12, 3)
    assert said["epsilon"] == pytest.approx(epsilon([(mechanism, 5)], 12**-1.1).value)
    assert (said["participations"], said["rounds_between_turns"]) == (2, 3)
    told = [each["privacy/epsilon_rdp"] for each in _told(tmp_path / "all")]
    assert told == pytest.approx([epsilon([(mechanism, n)], 12**-1.1).rdp for n in range(1, 6)])
    budget = epsilon([(mechanism, 3)], 12**-1.1).value + 1e-3
    ends = _train(tmp_path / "ends", 5, "ftrl", f"federated.privacy.target_epsilon={budget}")
    assert ends["rounds"] == 3
    more = _train(
        tmp_path / "ends", 9, "ftrl", f"federated.privacy.target_epsilon={budget}", "resume=true"
    )
    assert more["rounds"] == 3
    assert more["privacy"] == ends["privacy"]


def test_a_client_pays_for_its_own_rounds_and_a_budget_ends_them(tmp_path: Path) -> None:
    said = _train(tmp_path / "all", 5, "local")["privacy"]
    each, delta = Mechanism("none", 0.5, 4, 12), 12**-1.1
    assert said["epsilon"] == pytest.approx(epsilon([(each, 2)], delta).value)
    assert (said["unit"], said["adjacency"]) == ("client (local)", "replace-one")
    assert (said["participations"], said["releases"]) == (2, 20)
    told = [each["privacy/epsilon_rdp"] for each in _told(tmp_path / "all")]
    by_turns = [epsilon([(each, turns)], delta).rdp for turns in (1, 1, 1, 2, 2)]
    assert told == pytest.approx(by_turns)
    budget = epsilon([(each, 1)], delta).value + 1e-3
    ends = _train(tmp_path / "ends", 5, "local", f"federated.privacy.target_epsilon={budget}")
    assert ends["rounds"] == 3
    more = _train(
        tmp_path / "ends", 9, "local", f"federated.privacy.target_epsilon={budget}", "resume=true"
    )
    assert more["rounds"] == 3
    assert more["privacy"] == ends["privacy"]


@pytest.mark.parametrize("strategy", ["fedmedian", "geometric_median", "flower_fedavg", "fedadam"])
def test_whatever_is_made_of_noisy_updates_is_as_private(strategy: str, tmp_path: Path) -> None:
    ends = []
    for way in ("sequential", "batched"):
        said = _train(
            tmp_path / way,
            2,
            "local",
            f"federated/strategy={strategy}",
            f"federated.client_training={way}",
        )
        ends.append(weights_of(tmp_path / way))
        assert said["privacy"]["participations"] == 1
    for name, value in ends[0].items():
        torch.testing.assert_close(ends[1][name], value, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "more", "named"),
    [
        ("adaptive", ("federated/strategy=krum",), "federated/strategy=krum"),
        ("adaptive", ("federated.clip_update_norm=1",), "federated.clip_update_norm=1"),
        ("adaptive", ("data.fit=training",), "data.fit=training"),
        ("ftrl", ("federated/strategy=fedmedian",), "federated/strategy=fedmedian"),
        ("ftrl", ("federated.privacy.band=0",), "privacy.band=0"),
        ("local", ("federated/strategy=scaffold",), "federated/strategy=scaffold"),
        ("local", ("federated/strategy=qfedavg",), "federated/strategy=qfedavg"),
        ("local", ("federated.clip_update_norm=1",), "federated.clip_update_norm=1"),
        ("local", ("data.fit=training",), "data.fit=training"),
        ("local", ("federated.privacy.delta=0.2",), "federated.privacy.delta=0.2"),
        ("adaptive", ("federated.privacy.count_noise=null",), "privacy.count_noise=0.2"),
    ],
)
def test_what_cannot_be_accounted_for_is_refused(
    kind: str, more: tuple[str, ...], named: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=named):
        _train(tmp_path / "run", 2, kind, *more)
    assert not (tmp_path / "run").exists()
