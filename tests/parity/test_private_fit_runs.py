"""Runs with `data.fit=private`: charged once before they train, by the accountant of training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from dp_accounting import (
    GaussianDpEvent,
    NeighboringRelation,
    PoissonSampledDpEvent,
    SampledWithoutReplacementDpEvent,
    SelfComposedDpEvent,
    pld,
    rdp,
)

from distributed.job import run_job as train_distributed
from federated.job import run_job as train_federated
from federated.protection.central import NoisySum
from heliotrope.commands.privacy import plan_of
from heliotrope.errors import ConfigError, LedgerError
from heliotrope.privacy.mechanisms import CorrelatedSums
from heliotrope.privacy.project import ProjectLedger
from heliotrope.privacy.told import promise
from tests.distributed_runs import INLINE, TORCHRUN, assert_close, train
from tests.support import assert_same_tensors, compose, events_of, saved_by, weights_of

pytestmark = pytest.mark.usefixtures("no_report")

_FIT = ("data=heart", "model=logistic", "data.fit=private")
_FEDERATED = (
    *_FIT,
    "data.fit_noise_multiplier=3",
    "federated.partition.clients=40",
    "federated.clients_per_round=8",
    "federated.cpus_per_worker=1",
    "federated/privacy=central",
    "federated.privacy.noise_multiplier=1.5",
)
_DISTRIBUTED = (
    *INLINE,
    *_FIT,
    "data.fit_noise_multiplier=6",
    "distributed.batch_size=100",
    "distributed/privacy=dpsgd",
    "distributed.privacy.noise_multiplier=1.2",
)


def _federated(directory: Path, rounds: int, *more: str) -> dict[str, Any]:
    run = compose("federated", *_FEDERATED, f"federated.rounds={rounds}", *more)
    train_federated(run, directory)
    return _privacy(directory)


def _distributed(directory: Path, epochs: int, *more: str) -> dict[str, Any]:
    run = compose("distributed", *_DISTRIBUTED, f"distributed.epochs={epochs}", *more)
    train_distributed(run, directory)
    return _privacy(directory)


def _privacy(directory: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((directory / "result.json").read_text())["privacy"]
    return found


def _charged(directory: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (directory / "privacy.jsonl").read_text().splitlines()]


def _pld(delta: float, *events: Any) -> float:
    accountant = pld.PLDAccountant()
    for event in events:
        accountant.compose(event)
    return float(accountant.get_epsilon(delta))


def test_client_statistics_are_composed_with_the_rounds(tmp_path: Path) -> None:
    told = _federated(tmp_path, 3)
    rounds = SelfComposedDpEvent(PoissonSampledDpEvent(8 / 40, GaussianDpEvent(1.5)), 3)
    wanted = _pld(told["delta"], GaussianDpEvent(3.0), rounds)
    assert told["epsilon"] == pytest.approx(wanted, abs=1e-3)
    assert told["statistics"] == {
        "epsilon": pytest.approx(_pld(told["delta"], GaussianDpEvent(3.0)), abs=1e-3),
        "noise_multiplier": 3.0,
        "releases": 1,
    }
    assert told["releases"] == 4
    assert any("bounds of their columns are public" in each for each in told["assumptions"])
    (*_, last) = [event["privacy/epsilon_rdp"] for event in events_of(tmp_path, "train")]
    assert told["epsilon"] < last == pytest.approx(told["epsilon_rdp"])
    first, *others = _charged(tmp_path)
    assert (first["purpose"], first["noise_multiplier"]) == ("statistics", 3.0)
    assert all("purpose" not in each for each in others)
    preparation = json.loads((tmp_path / "result.json").read_text())["preparation"]
    assert (preparation["fit"], preparation["charged"]) == ("private", True)
    assert preparation["bytes_up"] == 40 * 6 * 24


def test_record_statistics_are_composed_with_the_steps(tmp_path: Path) -> None:
    told = _distributed(tmp_path, 2)
    (_, statistics, epoch, _) = _charged(tmp_path)
    assert statistics["purpose"] == "statistics"
    examples, steps = epoch["population"], epoch["count"]
    once = PoissonSampledDpEvent(100 / examples, GaussianDpEvent(1.2))
    wanted = _pld(told["delta"], SelfComposedDpEvent(once, 2 * steps), GaussianDpEvent(6.0))
    assert told["epsilon"] == pytest.approx(wanted, abs=1e-3)
    assert (told["unit"], told["releases"]) == ("record", 2 * steps + 1)
    (*_, last) = [event["privacy/epsilon_rdp"] for event in events_of(tmp_path, "train")]
    assert last == pytest.approx(told["epsilon_rdp"])


@pytest.mark.parametrize("kind", ["fixed", "adaptive", "ftrl"])
def test_every_kind_with_one_account_charges_for_statistics(kind: str, tmp_path: Path) -> None:
    choices = {
        "fixed": ("federated.privacy.sampling=fixed",),
        "adaptive": ("federated/privacy=adaptive", "federated.privacy.count_noise=4"),
        "ftrl": ("federated/privacy=ftrl",),
    }
    told = _federated(tmp_path, 3, *choices[kind])
    statistics = GaussianDpEvent(3.0)
    if kind == "fixed":
        once = SampledWithoutReplacementDpEvent(40, 8, GaussianDpEvent(1.5))
        accountant = rdp.RdpAccountant(neighboring_relation=NeighboringRelation.REPLACE_ONE)
        accountant.compose(SelfComposedDpEvent(once, 3)).compose(statistics)
        wanted = accountant.get_epsilon(told["delta"])
    elif kind == "adaptive":
        once = PoissonSampledDpEvent(8 / 40, GaussianDpEvent(1.5))
        wanted = _pld(told["delta"], SelfComposedDpEvent(once, 3), statistics)
    else:
        (_, line, *_) = _charged(tmp_path)
        reach = CorrelatedSums(1.5, 8, 40, line["band"]).sensitivity(3)
        wanted = _pld(told["delta"], GaussianDpEvent(1.5 / reach), statistics)
    assert told["epsilon"] == pytest.approx(wanted, abs=1e-3)


@pytest.mark.parametrize("mode", ["federated", "distributed"])
def test_a_run_that_goes_on_has_the_same_statistics_and_pays_once(
    mode: str, tmp_path: Path
) -> None:
    trained = _federated if mode == "federated" else _distributed
    whole = trained(tmp_path / "whole", 4)
    trained(tmp_path / "parts", 2)
    before = saved_by(tmp_path / "parts").state["preparation"]
    parts = trained(tmp_path / "parts", 4, "resume=true")
    assert saved_by(tmp_path / "parts").state["preparation"] == before
    assert_same_tensors(weights_of(tmp_path / "whole"), weights_of(tmp_path / "parts"))
    assert parts == whole
    charged = [each.get("purpose") for each in _charged(tmp_path / "parts")]
    assert charged.count("statistics") == 1


def test_statistics_are_charged_before_the_first_round_and_again_if_they_are_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(NoisySum, "draw", killed)
        with pytest.raises(KeyboardInterrupt):
            _federated(tmp_path / "a", 2)
    (line,) = _charged(tmp_path / "a")
    assert line["purpose"] == "statistics"
    told = _federated(tmp_path / "a", 2, "resume=true")
    assert told["statistics"]["releases"] == 1
    # Of a run that began there with other data, and has no checkpoint: noise is drawn afresh.
    (tmp_path / "b").mkdir()
    other = json.dumps(line | {"release": "statistics of other data"})
    (tmp_path / "b" / "privacy.jsonl").write_text(f"{other}\n")
    told = _federated(tmp_path / "b", 2)
    assert told["statistics"]["releases"] == 2
    rounds = SelfComposedDpEvent(PoissonSampledDpEvent(8 / 40, GaussianDpEvent(1.5)), 2)
    twice = SelfComposedDpEvent(GaussianDpEvent(3.0), 2)
    assert told["epsilon"] == pytest.approx(_pld(told["delta"], twice, rounds), abs=1e-3)
    assert told["noise_multiplier"] == 1.5


def test_nothing_is_trained_if_the_charge_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_: object) -> None:
        raise OSError("the disk is full")

    monkeypatch.setattr("heliotrope.privacy.ledger.os.fdatasync", failing)
    for trained, folder in ((_federated, "a"), (_distributed, "b")):
        with pytest.raises(Exception, match="the disk is full"):
            trained(tmp_path / folder, 1)
        assert not (tmp_path / folder / "checkpoints").exists()


@pytest.mark.slow
def test_a_target_is_for_statistics_and_training_together(tmp_path: Path) -> None:
    target = ("federated.privacy.noise_multiplier=null", "federated.privacy.target_epsilon=1.2")
    for more in ((), ("resume=true",)):
        told = _federated(tmp_path / "a", 3, *target, *more)
        assert 1.15 < told["epsilon"] <= 1.2
    target = ("distributed.privacy.noise_multiplier=null", "distributed.privacy.target_epsilon=1")
    told = _distributed(tmp_path / "b", 2, *target)
    assert 0.95 < told["epsilon"] <= 1


@pytest.mark.slow
def test_a_run_stops_before_it_spends_more_than_statistics_leave(tmp_path: Path) -> None:
    told = _federated(tmp_path, 9, "federated.privacy.target_epsilon=0.8")
    rounds = json.loads((tmp_path / "result.json").read_text())["rounds"]
    assert 0.7 < told["epsilon"] <= 0.8
    assert told["releases"] == rounds + 1 < 10
    again = _federated(tmp_path, 12, "federated.privacy.target_epsilon=0.8", "resume=true")
    assert again == told


def test_what_is_predicted_is_what_is_spent(tmp_path: Path) -> None:
    for mode, told in (
        ("federated", _federated(tmp_path / "a", 2)),
        ("distributed", _distributed(tmp_path / "b", 2)),
    ):
        choices = _FEDERATED if mode == "federated" else _DISTRIBUTED
        run = compose(mode, *choices, "federated.rounds=2", "distributed.epochs=2")  # type: ignore[arg-type]
        plan = plan_of(run, mode)  # type: ignore[arg-type]
        assert plan is not None
        mechanism = plan.keys.with_noise(plan.mechanism, plan.uses, None, plan.before)
        spent = [*plan.before, (mechanism, plan.uses)]
        line = promise(plan.keys, mechanism, spent, told["delta"], "the end")
        assert f"epsilon {told['epsilon']:.3g} at" in line
        assert plan.noise(1e-3, told["delta"]) is None  # statistics alone spend more


def test_a_project_has_an_entry_for_statistics(tmp_path: Path) -> None:
    shared = (f"privacy.ledger={tmp_path / 'l.jsonl'}", "privacy.budget=9", "privacy.delta=0.01")
    _federated(tmp_path / "a", 2, *shared)
    _federated(tmp_path / "a", 3, *shared, "resume=true")
    found = {each.purpose: each for each in ProjectLedger(tmp_path / "l.jsonl").entries()}
    assert list(found) == ["training", "statistics"]
    spent = {name: [n for _, n in each.spent] for name, each in found.items()}
    assert (spent, {each.ended for each in found.values()}) == (
        {"training": [3], "statistics": [1]},
        {True},
    )


@pytest.mark.slow
def test_a_projects_budget_counts_statistics_of_both_modes(tmp_path: Path) -> None:
    shared = (f"privacy.ledger={tmp_path / 'l.jsonl'}", "privacy.budget=9", "privacy.delta=0.01")
    _federated(tmp_path / "a", 1, *shared)
    with pytest.raises(LedgerError, match=r"more than privacy\.budget=9"):
        _federated(tmp_path / "b", 2, *shared, "data.fit_noise_multiplier=0.02")
    assert not (tmp_path / "b" / "config.yaml").exists()
    entries = ProjectLedger(tmp_path / "l.jsonl").entries()
    assert [e.spent for e in entries if e.directory.endswith("b")] in ([], [(), ()])
    alone = f"privacy.ledger={tmp_path / 'd.jsonl'}"
    _distributed(tmp_path / "d", 1, alone)
    _distributed(tmp_path / "d", 2, alone, "resume=true")
    found = {each.purpose: each for each in ProjectLedger(tmp_path / "d.jsonl").entries()}
    assert [n for _, n in found["statistics"].spent] == [1]
    assert found["statistics"].people.unit == "record"


@pytest.mark.slow
def test_each_rank_finds_the_same_statistics(tmp_path: Path) -> None:
    choices = ("data.fit=private", "data.fit_noise_multiplier=6", *_DISTRIBUTED[-2:])
    one = train(tmp_path / "one", *INLINE, *choices, epochs=1)
    two = train(tmp_path / "two", *TORCHRUN, *choices, epochs=1)
    assert saved_by(one).state["preparation"] == saved_by(two).state["preparation"]
    assert (one / "privacy.jsonl").read_text() == (two / "privacy.jsonl").read_text()
    assert_close(one, two)


def test_other_data_are_refused_where_a_run_goes_on(tmp_path: Path) -> None:
    _federated(tmp_path, 1)
    with pytest.raises(ConfigError, match="fit_noise_multiplier"):
        _federated(tmp_path, 2, "data.fit_noise_multiplier=4", "resume=true")
