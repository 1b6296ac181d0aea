"""Runs of both modes in a project's privacy ledger: charged once, before any work, or refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from distributed.job import run_job as train_distributed
from federated.components import build_components
from federated.job import run_job as train_federated
from heliotrope.errors import ConfigError, LedgerError, RunDirectoryError
from heliotrope.privacy.mechanisms import Mechanism
from heliotrope.privacy.project import Entry, ProjectLedger
from tests.distributed_runs import INLINE
from tests.support import MODES, compose

pytestmark = pytest.mark.usefixtures("no_report")

_FEDERATED = (
    "model.hidden=[8]",
    "data.fit=none",
    "federated.clients_per_round=4",
    "federated.cpus_per_worker=1",
    "federated/privacy=central",
    "federated.privacy.noise_multiplier=2",
)
_DISTRIBUTED = (
    *INLINE,
    "model.hidden=[8]",
    "data.fit=none",
    "distributed/privacy=dpsgd",
    "distributed.privacy.noise_multiplier=1",
    "distributed.batch_size=400",
)
_ROUND = Mechanism("poisson", 2.0, 4, 10)


def _federated(directory: Path, rounds: int, *more: str) -> None:
    ledger = f"privacy.ledger={directory.parent / 'ledger.jsonl'}"
    choices = (*_FEDERATED, f"federated.rounds={rounds}", ledger, *more)
    train_federated(compose("federated", *choices), directory)


def _distributed(directory: Path, epochs: int, *more: str) -> None:
    ledger = f"privacy.ledger={directory.parent / 'ledger.jsonl'}"
    choices = (*_DISTRIBUTED, f"distributed.epochs={epochs}", ledger, *more)
    train_distributed(compose("distributed", *choices), directory)


def _entries(folder: Path) -> list[Entry]:
    return ProjectLedger(folder / "ledger.jsonl").entries()


def test_a_run_that_goes_on_is_charged_once_and_a_copy_is_another(tmp_path: Path) -> None:
    _federated(tmp_path / "a", 2)
    (entry,) = _entries(tmp_path)
    assert (entry.spent, entry.ended) == (((_ROUND, 2),), True)
    assert entry.directory == str(tmp_path / "a")
    assert (entry.purpose, entry.people.source, entry.people.unit) == (
        "training",
        "digits",
        "client",
    )
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    _federated(tmp_path / "a", 4, "resume=true")
    _federated(tmp_path / "a", 4, "resume=true")
    (entry,) = _entries(tmp_path)
    assert entry.spent == ((_ROUND, 4),)
    _federated(tmp_path / "b", 3, "resume=true")
    _federated(tmp_path / "c", 1, "seed=9", "data.validation_fraction=0.2")
    found = {Path(entry.directory).name: entry for entry in _entries(tmp_path)}
    assert {name: entry.spent for name, entry in found.items()} == {
        "a": ((_ROUND, 4),),
        "b": ((_ROUND, 3),),
        "c": ((_ROUND, 1),),
    }
    assert len({entry.people for entry in found.values()}) == 1  # however they divide the data


def test_a_run_that_was_killed_has_spent_what_it_reserved_until_it_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr("heliotrope.privacy.charges.ProjectCharges.end", lambda *_: None)
        _federated(tmp_path / "a", 3)
    (entry,) = _entries(tmp_path)
    assert (entry.spent, entry.ended) == (((_ROUND, 3),), False)
    _federated(tmp_path / "a", 3, "resume=true")
    (entry,) = _entries(tmp_path)
    assert (entry.spent, entry.ended) == (((_ROUND, 3),), True)


def test_a_budget_refuses_the_run_that_would_exceed_it_before_any_work(tmp_path: Path) -> None:
    budget = ("privacy.budget=1.5", "privacy.delta=0.01")
    _federated(tmp_path / "a", 6, *budget)
    for _ in range(2):
        with pytest.raises(LedgerError, match=r"ledger\.jsonl: with this run.*budget=1\.5"):
            _federated(tmp_path / "b", 6, *budget)
    assert not (tmp_path / "b" / "config.yaml").exists()
    assert [Path(entry.directory).name for entry in _entries(tmp_path)] == ["a"]
    assert LedgerError.exit_code == 2
    _federated(tmp_path / "b", 1, *budget)
    with pytest.raises(LedgerError, match="No accountant composes them"):
        _distributed(tmp_path / "d", 1, *budget[:1], "privacy.delta=1e-4")


def test_steps_of_data_parallel_training_are_charged_once(tmp_path: Path) -> None:
    _distributed(tmp_path / "a", 1)
    _distributed(tmp_path / "a", 3, "resume=true")
    (entry,) = _entries(tmp_path)
    count = sum(count for _, count in entry.spent)
    charged = (tmp_path / "a" / "privacy.jsonl").read_text().splitlines()
    assert count == sum(json.loads(line).get("count", 1) for line in charged) == 3 * 4
    assert (entry.ended, entry.people.unit, entry.mode) == (True, "record", "distributed")


def test_a_run_that_fails_gives_back_what_it_did_not_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from distributed.privacy.protection import Protection

    charge = Protection.charge

    def failing(self: Protection, epoch: int) -> None:
        if epoch == 2:
            raise KeyboardInterrupt
        charge(self, epoch)

    monkeypatch.setattr(Protection, "charge", failing)
    with pytest.raises(KeyboardInterrupt):
        _distributed(tmp_path / "a", 5)
    (entry,) = _entries(tmp_path)
    assert (sum(count for _, count in entry.spent), entry.ended) == (4, True)


def test_a_run_cannot_leave_its_ledger(tmp_path: Path) -> None:
    _federated(tmp_path / "a", 1)
    run = compose("federated", *_FEDERATED, "federated.rounds=2", "resume=true")
    with pytest.raises(RunDirectoryError, match=r"privacy\.ledger="):
        train_federated(run, tmp_path / "a")


def test_a_run_that_is_not_protected_has_no_place_in_a_ledger() -> None:
    for mode in MODES:
        with pytest.raises(ConfigError, match=f"{mode}/privacy=none: what an unprotected run"):
            compose(mode, "privacy.ledger=ledger.jsonl")


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["privacy.budget=3", "privacy.ledger=null"], r"Set privacy\.ledger=FILE"),
        (["privacy.budget=3"], r"privacy\.budget=3 needs a delta"),
        (["privacy.budget=0", "privacy.delta=0.1"], r"privacy\.budget=0.*greater than 0"),
        (["privacy.delta=0.0"], r"privacy\.delta=0"),
        (["privacy.delta=0.5"], r"privacy\.delta=0\.5 must be at most 1/10"),
    ],
)
def test_keys_that_promise_nothing_are_refused(more: list[str], said: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=said):
        _federated(tmp_path / "a", 1, *more)


def test_accounts_of_single_clients_are_refused_before_any_work(tmp_path: Path) -> None:
    record = "federated/privacy=record"
    with pytest.raises(ConfigError, match=r"each client .* Set privacy\.ledger=null"):
        _federated(tmp_path / "a", 1, record)
    assert not (tmp_path / "a" / "config.yaml").exists()


@pytest.mark.parametrize("fit", ["training", "per_client"])
def test_statistics_without_noise_are_refused_with_a_remedy_that_works(fit: str) -> None:
    choices = (*_FEDERATED[2:], "experiment=diabetes", "federated.clients_per_round=4")
    with pytest.raises(ConfigError, match=r"mean, deviation .* Set data\.fit=none, with which"):
        build_components(compose("federated", *choices, f"data.fit={fit}"))
    assert not build_components(compose("federated", *choices, "data.fit=none")).exchange.told
