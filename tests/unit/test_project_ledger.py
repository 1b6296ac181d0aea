"""A project's privacy ledger: nothing is lost, whoever writes, and the budget is that of all."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import dp_accounting
import pytest
from dp_accounting import pld

from heliotrope.errors import LedgerError, RunFailedError
from heliotrope.privacy.accountant import epsilon
from heliotrope.privacy.ledger import Ledger
from heliotrope.privacy.mechanisms import CorrelatedSums, Mechanism
from heliotrope.privacy.project import Budget, People, ProjectLedger
from heliotrope.privacy.totals import groups
from tests.project_ledgers import DIGITS, FIXED, ONE, OTHER, QUIET, charges_of, spent_in
from tests.support import environment

_WRITER = """
import sys
from pathlib import Path
from heliotrope.privacy.mechanisms import CorrelatedSums, Mechanism
from heliotrope.privacy.accountant import epsilon
from heliotrope.privacy.charges import ProjectCharges
from heliotrope.privacy.project import Entry, People, ProjectLedger
people = People("digits", "abc", "client")
for n in range(200):
    entry = Entry(f"{sys.argv[2]}{n}", "/runs", "m", "federated", "training", people, 1e-3)
    charges = ProjectCharges(ProjectLedger(Path(sys.argv[1])), entry)
    charges.reserve([(Mechanism("poisson", 1.0, 10, 100), n + 1)])
"""


def test_a_new_file_is_durable_with_its_name(tmp_path: Path, synced: list[Path]) -> None:
    path = tmp_path / "ledger.jsonl"
    charges_of(path).reserve([(ONE, 1)])
    assert set(synced) == {tmp_path, path}
    synced.clear()
    path.write_bytes(b"")  # of one that died between the two
    charges_of(path).reserve([(ONE, 1)])
    assert set(synced) == {tmp_path, path}
    synced.clear()
    charges_of(path).reserve([(ONE, 2)])
    assert synced == [path]


def test_two_processes_that_write_at_the_same_time_lose_nothing(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    command = [sys.executable, "-c", _WRITER, str(path)]
    writers = [subprocess.Popen([*command, name], env=environment()) for name in "ab"]
    assert [writer.wait(120) for writer in writers] == [0, 0]
    lines = path.read_text().splitlines()
    assert len(lines) == 400
    assert {json.loads(line)["run"] for line in lines} == {
        f"{w}{n}" for w in "ab" for n in range(200)
    }
    assert spent_in(path) == {ONE: 2 * 200 * 201 // 2}


_BUYER = """
import sys, time
from pathlib import Path
from heliotrope.errors import LedgerError
from heliotrope.privacy.accountant import epsilon
from heliotrope.privacy.mechanisms import CorrelatedSums, Mechanism
from heliotrope.privacy.accountant import epsilon
from heliotrope.privacy.charges import ProjectCharges
from heliotrope.privacy.project import Budget, Entry, People, ProjectLedger
people = People("digits", "abc", "client")
epsilon([(Mechanism("poisson", 4.0, 10, 100), 1)], 1e-3)  # imports before the race
entry = Entry(sys.argv[2], "/runs", "m", "federated", "training", people, 1e-3,
              budget=Budget(float(sys.argv[3]), 1e-3))
print("ready", flush=True)
sys.stdin.readline()
try:
    charges = ProjectCharges(ProjectLedger(Path(sys.argv[1])), entry)
    charges.reserve([(Mechanism("poisson", 4.0, 10, 100), 100)])
except LedgerError:
    sys.exit(2)
"""


def test_of_runs_that_begin_at_the_same_time_only_those_begin_that_fit(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    # 100 rounds spend 0.62, 200 more than 0.8.
    command = [sys.executable, "-c", _BUYER, str(path)]
    pipe = subprocess.PIPE
    with ExitStack() as stack:
        buyers = [
            stack.enter_context(
                subprocess.Popen(
                    [*command, name, "0.65"], env=environment(), stdin=pipe, stdout=pipe, text=True
                )
            )
            for name in "ab"
        ]
        for buyer in buyers:
            assert buyer.stdout is not None
            assert buyer.stdout.readline() == "ready\n"
        for buyer in buyers:
            assert buyer.stdin is not None
            buyer.stdin.write("go\n")
            buyer.stdin.flush()
        codes = [buyer.wait(120) for buyer in buyers]
    assert sorted(codes) == [0, 2]
    assert spent_in(path) == {QUIET: 100}


def test_what_is_reserved_counts_until_the_run_gives_it_back(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    run = Ledger(tmp_path / "privacy.jsonl")
    run.charge_to(charges_of(path))
    run.reserve([(ONE, 50)])
    run.charge("round 1", ONE)
    assert spent_in(path) == {ONE: 50}  # what a killed run leaves
    again = Ledger(tmp_path / "privacy.jsonl")
    again.charge_to(charges_of(path))
    again.reserve([(ONE, 40)])
    again.charge("round 1", ONE)
    again.charge("round 2", ONE)
    assert spent_in(path) == {ONE: 40}
    again.close()
    assert spent_in(path) == {ONE: 2}
    assert ProjectLedger(path).entries()[0].ended
    run.close()


def test_what_was_not_planned_is_reserved_before_it_is_charged(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    run = Ledger(tmp_path / "privacy.jsonl")
    run.charge_to(charges_of(path))
    run.reserve([(ONE, 1)])
    for number in range(40):
        run.charge(f"round {number}", ONE)
        run.charge(f"other {number}", OTHER, 3)
        found = spent_in(path)
        assert found[ONE] >= number + 1
        assert found[OTHER] >= 3 * (number + 1)
    assert len(path.read_text().splitlines()) < 20
    run.close()
    assert spent_in(path) == {ONE: 40, OTHER: 120}


def test_a_run_that_would_exceed_the_budget_stops_before_it_releases_more(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    run = Ledger(tmp_path / "privacy.jsonl")
    budget = epsilon([(QUIET, 100)], 1e-3).value + 1e-4
    run.charge_to(charges_of(path, budget=Budget(budget, 1e-3)))
    run.reserve([(QUIET, 98)])
    run.charge("rounds", QUIET, 98)
    run.charge("again 1", QUIET)
    run.charge("again 2", QUIET)
    with pytest.raises(RunFailedError, match=r"more than privacy\.budget=.*The run stops"):
        run.charge("again 3", QUIET)
    run.close()
    assert spent_in(path) == {QUIET: 100}
    assert "again 3" not in (tmp_path / "privacy.jsonl").read_text()


def test_composed_epsilon_is_that_of_dp_accounting(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    charges_of(path, "a").reserve([(ONE, 100)])
    charges_of(path, "b").reserve([(OTHER, 30), (ONE, 5)])
    accountant = pld.PLDAccountant()
    for mechanism, count in ((ONE, 105), (OTHER, 30)):
        q, noise = mechanism.cohort / 100, dp_accounting.GaussianDpEvent(mechanism.noise_multiplier)
        accountant.compose(dp_accounting.PoissonSampledDpEvent(q, noise), count)
    (group,) = groups(ProjectLedger(path).entries())
    found = group.epsilon(1e-3)
    assert found is not None
    assert found.value == pytest.approx(accountant.get_epsilon(1e-3), abs=1e-3)
    alone = group.epsilon(1e-3, [group.entries[0]])
    assert alone is not None
    assert alone.value == pytest.approx(4.7844, abs=1e-3)


def test_a_budget_composes_only_what_concerns_the_same_people(tmp_path: Path) -> None:
    path, budget = tmp_path / "ledger.jsonl", Budget(0.65, 1e-3)  # for 100 rounds, not for 190
    charges_of(path, "a", budget=budget).reserve([(QUIET, 100)])
    others = People("mnist", "xyz", "client")
    charges_of(path, "b", people=others, budget=budget).reserve([(QUIET, 100)])
    for same in (People("moved", "abc", "client"), People("digits", "mended", "client")):
        with pytest.raises(LedgerError, match=r"more than privacy\.budget=0\.65"):
            charges_of(path, "c", people=same, budget=budget).reserve([(QUIET, 100)])
    # Data that was moved, and then mended, is still of the same people.
    charges_of(path, "d", people=People("moved", "abc", "client")).reserve([(QUIET, 1)])
    with pytest.raises(LedgerError, match=r"more than privacy\.budget=0\.65"):
        charges_of(path, "e", people=People("moved", "new", "client"), budget=budget).reserve(
            [(QUIET, 90)]
        )
    assert sorted(len(group.entries) for group in groups(ProjectLedger(path).entries())) == [1, 2]


@pytest.mark.parametrize(
    ("mechanism", "people"), [(FIXED, DIGITS), (ONE, People("digits", "abc", "record"))]
)
def test_what_no_accountant_composes_is_refused(
    mechanism: Mechanism, people: People, tmp_path: Path
) -> None:
    path = tmp_path / "ledger.jsonl"
    charges_of(path, "a").reserve([(ONE, 1)])
    with pytest.raises(LedgerError, match=r"/runs/a has released .* No accountant composes them"):
        charges_of(path, "b", people=people, budget=Budget(50.0, 1e-3)).reserve([(mechanism, 1)])
    charges_of(path, "c", people=people).reserve([(mechanism, 1)])  # no budget: it is noted
    assert len(groups(ProjectLedger(path).entries())) == 2


def test_correlated_noise_of_two_runs_is_not_taken_for_one_stream(tmp_path: Path) -> None:
    turns = CorrelatedSums(5.0, 10, 400, 8, "same configuration")  # 40 rounds from turn to turn
    path = tmp_path / "ledger.jsonl"
    for run in "ab":
        charges_of(path, run).reserve([(turns, 50)])
    (group,) = groups(ProjectLedger(path).entries())
    noise = 5.0 / (math.sqrt(2) * turns.sensitivity(50))
    exact = pld.PLDAccountant().compose(dp_accounting.GaussianDpEvent(noise)).get_epsilon(1e-3)
    found = group.epsilon(1e-3)
    assert found is not None
    assert found.value == pytest.approx(exact, abs=1e-3)
    assert found.value > epsilon([(turns, 100)], 1e-3).value + 0.01
