"""A run whose clients protect each example: accounts, budgets, and what is refused."""

from __future__ import annotations

import json
import os
import shutil
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch
from dp_accounting import GaussianDpEvent, PoissonSampledDpEvent, SelfComposedDpEvent, pld

from federated.flower.app import client_app
from federated.job import run_job
from heliotrope.errors import ConfigError
from heliotrope.privacy.accounts import Account, Accounts
from heliotrope.privacy.ledger import Ledger
from heliotrope.privacy.mechanisms import Mechanism
from tests.support import assert_same_tensors, compose, events_of, weights_of

pytestmark = pytest.mark.usefixtures("no_report")

_HEART = (
    "experiment=heart",
    "data.fit=none",
    "federated.batch_size=64",
    "federated.cpus_per_worker=1",
    "federated.checkpoint_every=2",
    "federated/privacy=record",
    "federated.privacy.clip=0.5",
    "federated.privacy.noise_multiplier=4",
)
# Of data.validation_fraction=0.1 and a test split of a fifth.
_SIZES = {"Budapest": 215, "Cleveland": 215, "Long Beach": 144, "Zurich and Basel": 88}
_STEPS = {"Budapest": 4, "Cleveland": 4, "Long Beach": 3, "Zurich and Basel": 2}


def _train(directory: Path, rounds: int, *more: str) -> dict[str, Any]:
    run_job(compose("federated", *_HEART, f"federated.rounds={rounds}", *more), directory)
    result: dict[str, Any] = json.loads((directory / "result.json").read_text())
    return result


def _epsilon(examples: int, noise: float, steps: int, delta: float) -> float:
    once = PoissonSampledDpEvent(min(64, examples) / examples, GaussianDpEvent(noise))
    spent = pld.PLDAccountant().compose(SelfComposedDpEvent(once, steps))
    return float(spent.get_epsilon(delta))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("runs") / "whole"
    _train(directory, 4)
    return directory


def _told(directory: Path) -> dict[str, Any]:
    result = json.loads((directory / "result.json").read_text())
    told: dict[str, Any] = result["privacy"]
    return told


def test_each_client_has_the_epsilon_of_its_own_steps(whole: Path) -> None:
    told = _told(whole)
    assert (told["unit"], told["adjacency"]) == ("record", "add-or-remove-one")
    assert (told["sampling"], told["accountant"]) == ("poisson", "PLD")
    assert told["clients"].keys() == _SIZES.keys()
    for name, said in told["clients"].items():
        assert (said["examples"], said["releases"]) == (_SIZES[name], 4 * _STEPS[name])
        assert said["delta"] == pytest.approx(_SIZES[name] ** -1.1)
        wanted = _epsilon(_SIZES[name], 4.0, 4 * _STEPS[name], said["delta"])
        assert said["epsilon"] == pytest.approx(wanted, abs=1e-3)
    assert told["epsilon"] == max(said["epsilon"] for said in told["clients"].values())
    assert told["delta"] == max(said["delta"] for said in told["clients"].values())
    events = events_of(whole, "train")
    bounds = [event["privacy/epsilon_rdp"] for event in events]
    assert bounds == sorted(bounds)
    assert told["epsilon"] < bounds[-1] == pytest.approx(told["epsilon_rdp"])
    for name in _SIZES:
        assert events[-1][f"privacy/epsilon_rdp/{name}"] <= bounds[-1]


def test_a_run_that_goes_on_forgets_nothing_and_pays_once(whole: Path, tmp_path: Path) -> None:
    _train(tmp_path, 3)
    saved = sorted((tmp_path / "checkpoints").iterdir(), key=lambda path: int(path.name))
    shutil.rmtree(saved[-1])  # as if killed before round 3 was saved: it was charged
    ledger = tmp_path / "privacy.jsonl"
    assert "round 3" in ledger.read_text()
    _train(tmp_path, 4, "resume=true")
    assert_same_tensors(weights_of(whole), weights_of(tmp_path))
    assert _told(tmp_path) == _told(whole)
    assert ledger.read_text() == (whole / "privacy.jsonl").read_text()
    ledger.unlink()  # the checkpoint knows what was spent
    more = _train(tmp_path, 5, "resume=true")["privacy"]["clients"]
    assert {name: said["releases"] for name, said in more.items()} == {
        name: 5 * steps for name, steps in _STEPS.items()
    }


def test_noise_follows_from_a_target_for_each_client_and_is_kept(tmp_path: Path) -> None:
    target = ("federated.privacy.noise_multiplier=null", "federated.privacy.target_epsilon=0.7")
    told = _train(tmp_path, 3, *target)["privacy"]
    for name, said in told["clients"].items():
        assert 0.69 < said["epsilon"] <= 0.7
        less = _epsilon(
            _SIZES[name], said["noise_multiplier"] - 0.01, said["releases"], said["delta"]
        )
        assert less > 0.7
    assert len({said["noise_multiplier"] for said in told["clients"].values()}) == 3
    before = weights_of(tmp_path)
    again = _train(tmp_path, 6, *target, "resume=true")
    assert again["rounds"] == 3  # all of the budget is spent
    assert again["privacy"] == told
    assert_same_tensors(before, weights_of(tmp_path))


@pytest.mark.slow
def test_a_client_without_budget_is_no_longer_drawn_also_over_resumes(tmp_path: Path) -> None:
    limited = ("federated.privacy.target_epsilon=1", "federated.privacy.delta=1e-3")
    result = _train(tmp_path / "whole", 9, *limited)
    clients = result["privacy"]["clients"]
    for name, said in clients.items():
        assert said["epsilon"] <= 1
        one_more = said["releases"] + _STEPS[name]
        if said["releases"] < 9 * _STEPS[name]:
            assert _epsilon(_SIZES[name], 4.0, one_more, 1e-3) > 1.0
    rounds = {name: said["releases"] // _STEPS[name] for name, said in clients.items()}
    assert 0 < rounds["Zurich and Basel"] < rounds["Long Beach"] < rounds["Cleveland"] <= 9
    cohorts = [event["clients"] for event in events_of(tmp_path / "whole", "train")]
    assert cohorts[0] == 4
    assert cohorts == sorted(cohorts, reverse=True)
    assert cohorts[-1] == 2
    assert result["rounds"] == len(cohorts) == max(rounds.values())

    _train(tmp_path / "parts", rounds["Zurich and Basel"] + 1, *limited)
    shutil.rmtree(max((tmp_path / "parts" / "checkpoints").iterdir(), key=lambda p: int(p.name)))
    parts = _train(tmp_path / "parts", 9, *limited, "resume=true")
    assert parts["privacy"] == result["privacy"]
    assert_same_tensors(weights_of(tmp_path / "whole"), weights_of(tmp_path / "parts"))


def test_a_round_is_on_the_disk_before_its_clients_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    synced = os.fdatasync
    monkeypatch.setattr(os, "fdatasync", lambda number: (order.append("disk"), synced(number)))
    with closing(Ledger(tmp_path / "privacy.jsonl")) as ledger:
        once = Mechanism("poisson", 4.0, 8, 80)
        account = Account("Basel", once, 10, 1e-3, 80)
        accounts = Accounts(ledger, {3: account}, (), 5, None)
        accounts.charge("round 1", [3])
        order.append("told")
        assert accounts.highest == accounts.bound(3) == pytest.approx(accounts.after(3, 1).rdp)
    assert order == ["disk", "told"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "strategy",
    [
        "fedprox federated.strategy.proximal_mu=0.1",
        "scaffold",
        "krum federated.strategy.num_malicious_nodes=0",
        "geometric_median",
        "fedtrimmedavg federated.strategy.beta=0.3",
        "fedadam",
        "flower_fedavg",
        "fedavg federated.client_momentum=0.5",
    ],
)
def test_any_strategy_takes_private_updates(strategy: str, whole: Path, tmp_path: Path) -> None:
    result = _train(tmp_path, 4, *f"federated/strategy={strategy}".split())
    assert result["rounds"] == 4
    assert result["privacy"] == _told(whole)
    assert all(bool(value.isfinite().all()) for value in weights_of(tmp_path).values())


@pytest.mark.slow
def test_clients_on_ray_release_what_those_in_this_process_do(
    whole: Path, ray_session: object, tmp_path: Path
) -> None:
    _train(tmp_path, 4, "federated.pool=ray", "federated.workers=2")
    for name, value in weights_of(whole).items():
        torch.testing.assert_close(weights_of(tmp_path)[name], value, rtol=1e-5, atol=1e-6)
    assert _told(tmp_path) == _told(whole)


def test_a_deployed_client_refuses_what_only_a_simulation_can() -> None:
    with pytest.raises(ConfigError, match=r"federated/privacy=record .* deployed"):
        client_app(compose("federated", *_HEART))


def test_a_robust_rule_ends_the_run_while_enough_clients_have_room(tmp_path: Path) -> None:
    limited = ("federated.privacy.target_epsilon=1", "federated.privacy.delta=1e-3")
    krum = ("federated/strategy=krum", "federated.strategy.num_malicious_nodes=0")
    run_job(compose("federated", *_HEART, "federated.rounds=9", *limited, *krum), tmp_path)
    cohorts = [event["clients"] for event in events_of(tmp_path, "train")]
    assert cohorts == [4, 4, 3]  # two clients are too few for it


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("data.fit=training",), r"data\.fit=training lets clients tell"),
        (("data.fit=per_client",), r"data\.fit=per_client prepares .* Set data\.fit=none"),
        (("federated.privacy.delta=0.005",), r"Client Cleveland: .*delta=0\.005 .* 1/215"),
        (("federated.privacy.clip=0",), r"clip=0 must be above 0"),
        (("federated.privacy.noise_multiplier=null",), "noise_multiplier is not set"),
        (("federated/strategy=qfedavg",), "tell their loss"),
        (("federated/strategy=flower_qfedavg",), "tell their loss"),
        (("privacy.ledger=all.jsonl",), r"Set privacy\.ledger=null"),
        (("federated/strategy=fltrust",), "trains on examples of its own"),
        (("federated.client_training=batched",), "client_training=batched is not possible"),
        (
            ("federated.privacy.noise_multiplier=4", "federated.privacy.target_epsilon=0.1"),
            r"Set federated\.privacy\.noise_multiplier=null",
        ),
    ],
)
def test_what_promises_nothing_is_refused(more: tuple[str, ...], said: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=said) as refused:
        _train(tmp_path / "run", 2, *more)
    assert refused.value.exit_code == 2
