"""A project's privacy ledger: nothing is lost, whoever writes, and the budget is that of all."""

from __future__ import annotations

import errno
import fcntl
import json
import math
import os
import subprocess
import sys
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import IO

import dp_accounting
import pytest
from dp_accounting import pld

from heliotrope.errors import ConfigError, LedgerError, RunFailedError
from heliotrope.privacy.accountant import epsilon
from heliotrope.privacy.charges import ProjectCharges
from heliotrope.privacy.ledger import Ledger
from heliotrope.privacy.mechanisms import CorrelatedSums, Mechanism, fields_of
from heliotrope.privacy.project import Budget, Entry, People, ProjectLedger, Sweep, added
from heliotrope.privacy.totals import groups
from heliotrope.system.locks import file_system
from tests.support import Command, environment

_ONE = Mechanism("poisson", 1.0, 10, 100)
_OTHER = Mechanism("poisson", 2.0, 20, 100)
_QUIET = Mechanism("poisson", 4.0, 10, 100)  # its epsilon is computed six times as fast as _ONE's
_FIXED = Mechanism("fixed", 2.0, 20, 100)
_DIGITS = People("digits", "abc", "client")


def _entry(run: str = "a", people: People = _DIGITS, **fields: object) -> Entry:
    entry = Entry(run, f"/runs/{run}", "mine", "federated", "training", people, 1e-3)
    return replace(entry, **fields)  # type: ignore[arg-type]


def _charges(path: Path, run: str = "a", **fields: object) -> ProjectCharges:
    return ProjectCharges(ProjectLedger(path), _entry(run, **fields))  # type: ignore[arg-type]


def _spent(path: Path) -> dict[Mechanism, int]:
    return dict(added(*(entry.spent for entry in ProjectLedger(path).entries())))


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
    _charges(path).reserve([(_ONE, 1)])
    assert set(synced) == {tmp_path, path}
    synced.clear()
    path.write_bytes(b"")  # of one that died between the two
    _charges(path).reserve([(_ONE, 1)])
    assert set(synced) == {tmp_path, path}
    synced.clear()
    _charges(path).reserve([(_ONE, 2)])
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
    assert _spent(path) == {_ONE: 2 * 200 * 201 // 2}


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
    assert _spent(path) == {_QUIET: 100}


@pytest.mark.parametrize("cut", [1, 5, 200, "zeros"])
def test_a_line_that_was_cut_off_was_never_released(cut: int | str, tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    _charges(path, "a").reserve([(_ONE, 3)])
    whole = path.read_bytes()
    line = _entry("b", spent=((_ONE, 7),)).to_line()
    torn = b"\0" * 300 if cut == "zeros" else line[: -int(cut) - 1]
    path.write_bytes(whole + torn)
    assert _spent(path) == {_ONE: 3}
    _charges(path, "c").reserve([(_ONE, 1)])
    assert _spent(path) == {_ONE: 4}
    assert path.read_bytes().startswith(whole)
    assert len(path.read_text().splitlines()) == 2


def test_a_whole_line_without_its_end_counts(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    path.write_bytes(_entry("a", spent=((_ONE, 7),)).to_line().rstrip(b"\n"))
    _charges(path, "b").reserve([(_ONE, 1)])
    assert _spent(path) == {_ONE: 8}


@pytest.mark.parametrize("text", ["notes\n", "notes", '{"ledger": 2}\n', "[1]\n", "{}\n"])
def test_a_file_that_is_no_ledger_is_left_as_it_is(text: str, tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text(text)
    with pytest.raises(LedgerError, match=r"notes\.txt, line 1 is no entry"):
        _charges(path).reserve([(_ONE, 1)])
    assert path.read_text() == text


def test_damage_in_the_middle_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    for run in "abc":
        _charges(path, run).reserve([(_ONE, 1)])
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(lines[0] + lines[1][:40] + b"\n" + lines[2])
    with pytest.raises(LedgerError, match="line 2 is no entry"):
        _charges(path, "d").reserve([(_ONE, 1)])


def test_an_entry_is_read_as_it_was_written() -> None:
    sweep, budget = Sweep("/runs/sweep", "geometric", 5.0, 3), Budget(8.0, 1e-5)
    entry = _entry("a", spent=((_ONE, 3), (_FIXED, 1)), sweep=sweep, budget=budget, ended=True)
    assert Entry.from_line(entry.to_line()) == entry


def test_what_is_reserved_counts_until_the_run_gives_it_back(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    run = Ledger(tmp_path / "privacy.jsonl")
    run.charge_to(_charges(path))
    run.reserve([(_ONE, 50)])
    run.charge("round 1", _ONE)
    assert _spent(path) == {_ONE: 50}  # what a killed run leaves
    again = Ledger(tmp_path / "privacy.jsonl")
    again.charge_to(_charges(path))
    again.reserve([(_ONE, 40)])
    again.charge("round 1", _ONE)
    again.charge("round 2", _ONE)
    assert _spent(path) == {_ONE: 40}
    again.close()
    assert _spent(path) == {_ONE: 2}
    assert ProjectLedger(path).entries()[0].ended
    run.close()


def test_what_was_not_planned_is_reserved_before_it_is_charged(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    run = Ledger(tmp_path / "privacy.jsonl")
    run.charge_to(_charges(path))
    run.reserve([(_ONE, 1)])
    for number in range(40):
        run.charge(f"round {number}", _ONE)
        run.charge(f"other {number}", _OTHER, 3)
        found = _spent(path)
        assert found[_ONE] >= number + 1
        assert found[_OTHER] >= 3 * (number + 1)
    assert len(path.read_text().splitlines()) < 20
    run.close()
    assert _spent(path) == {_ONE: 40, _OTHER: 120}


def test_a_run_that_would_exceed_the_budget_stops_before_it_releases_more(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    run = Ledger(tmp_path / "privacy.jsonl")
    budget = epsilon([(_QUIET, 100)], 1e-3).value + 1e-4
    run.charge_to(_charges(path, budget=Budget(budget, 1e-3)))
    run.reserve([(_QUIET, 98)])
    run.charge("rounds", _QUIET, 98)
    run.charge("again 1", _QUIET)
    run.charge("again 2", _QUIET)
    with pytest.raises(RunFailedError, match=r"more than privacy\.budget=.*The run stops"):
        run.charge("again 3", _QUIET)
    run.close()
    assert _spent(path) == {_QUIET: 100}
    assert "again 3" not in (tmp_path / "privacy.jsonl").read_text()


def test_composed_epsilon_is_that_of_dp_accounting(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    _charges(path, "a").reserve([(_ONE, 100)])
    _charges(path, "b").reserve([(_OTHER, 30), (_ONE, 5)])
    accountant = pld.PLDAccountant()
    for mechanism, count in ((_ONE, 105), (_OTHER, 30)):
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
    _charges(path, "a", budget=budget).reserve([(_QUIET, 100)])
    others = People("mnist", "xyz", "client")
    _charges(path, "b", people=others, budget=budget).reserve([(_QUIET, 100)])
    for same in (People("moved", "abc", "client"), People("digits", "mended", "client")):
        with pytest.raises(LedgerError, match=r"more than privacy\.budget=0\.65"):
            _charges(path, "c", people=same, budget=budget).reserve([(_QUIET, 100)])
    # Data that was moved, and then mended, is still of the same people.
    _charges(path, "d", people=People("moved", "abc", "client")).reserve([(_QUIET, 1)])
    with pytest.raises(LedgerError, match=r"more than privacy\.budget=0\.65"):
        _charges(path, "e", people=People("moved", "new", "client"), budget=budget).reserve(
            [(_QUIET, 90)]
        )
    assert sorted(len(group.entries) for group in groups(ProjectLedger(path).entries())) == [1, 2]


@pytest.mark.parametrize(
    ("mechanism", "people"), [(_FIXED, _DIGITS), (_ONE, People("digits", "abc", "record"))]
)
def test_what_no_accountant_composes_is_refused(
    mechanism: Mechanism, people: People, tmp_path: Path
) -> None:
    path = tmp_path / "ledger.jsonl"
    _charges(path, "a").reserve([(_ONE, 1)])
    with pytest.raises(LedgerError, match=r"/runs/a has released .* No accountant composes them"):
        _charges(path, "b", people=people, budget=Budget(50.0, 1e-3)).reserve([(mechanism, 1)])
    _charges(path, "c", people=people).reserve([(mechanism, 1)])  # no budget: it is noted
    assert len(groups(ProjectLedger(path).entries())) == 2


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK], ids=errno.errorcode.get)
def test_a_file_system_without_locks_is_named(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def flock(_file: IO[str], _operation: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(LedgerError, match="has no file locks") as refused:
        _charges(tmp_path / "ledger.jsonl").reserve([(_ONE, 1)])
    assert file_system(tmp_path) in str(refused.value)
    assert isinstance(refused.value, ConfigError)


def test_a_file_that_is_replaced_while_we_wait_is_not_written_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, before = tmp_path / "ledger.jsonl", fcntl.flock
    _charges(path, "a").reserve([(_ONE, 1)])

    def flock(file: IO[str], operation: int) -> None:
        monkeypatch.setattr(fcntl, "flock", before)
        path.rename(tmp_path / "old.jsonl")  # as an editor does
        path.write_bytes((tmp_path / "old.jsonl").read_bytes())
        before(file, operation)

    monkeypatch.setattr(fcntl, "flock", flock)
    _charges(path, "b").reserve([(_ONE, 2)])
    assert _spent(path) == {_ONE: 3}


def test_the_command_shows_who_spent_what(tmp_path: Path, heliotrope: Command) -> None:
    path = tmp_path / "ledger.jsonl"
    for run, count in (("a", 60), ("b", 40)):
        charges = _charges(path, run, purpose="training" if run == "a" else "trial of a sweep")
        charges.reserve([(_ONE, count)])
        if run == "a":
            charges.end([(_ONE, count)])
    with path.open("ab") as file:
        file.write(b'{"ledger": 1, "run"')  # being written
    code, told, _ = heliotrope("privacy", f"ledger={path}", "budget=8")
    assert code == 0
    assert "all 2 together: epsilon 4.784 at delta 0.001 (PLD, at most 5.655 by RDP)" in told
    assert "of the budget of 8, 3.216 left" in told
    assert "reserved" in told
    assert "training" in told
    assert "trial of a sweep" in told


def test_the_command_shows_names_as_they_are(tmp_path: Path, heliotrope: Command) -> None:
    path = tmp_path / "ledger.jsonl"
    _charges(path, name="a[/red]", purpose="b[/red]").reserve([(_ONE, 1)])
    code, told, _ = heliotrope("privacy", f"ledger={path}")
    assert code == 0
    assert "a[/red]" in told
    assert "b[/red]" in told


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["ledger=nothing.jsonl"], "ledger=nothing.jsonl cannot be read: No such file"),
        (["ledger=empty.jsonl"], "ledger=empty.jsonl has no entry"),
        (["ledger="], "ledger= names no file"),
        (["ledger"], "ledger has no value. Write, without spaces, ledger=FILE"),
        (["ledger", "empty.jsonl"], "ledger has no value. Write, without spaces, ledger=FILE"),
        (["ledger=empty.jsonl", "budget"], "budget has no value"),
        (["ledger=empty.jsonl", "delta=2"], "delta=2 must be above 0"),
        (["ledger=empty.jsonl", "buget=2"], "Did you mean 'budget'?"),
    ],
)
def test_the_command_refuses_what_it_cannot_show(
    arguments: list[str],
    said: str,
    tmp_path: Path,
    heliotrope: Command,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty.jsonl").touch()
    code, _, errors = heliotrope("privacy", *arguments)
    assert code == 2
    assert said in errors


def test_correlated_noise_of_two_runs_is_not_taken_for_one_stream(tmp_path: Path) -> None:
    turns = CorrelatedSums(5.0, 10, 400, 8, "same configuration")  # 40 rounds from turn to turn
    path = tmp_path / "ledger.jsonl"
    for run in "ab":
        _charges(path, run).reserve([(turns, 50)])
    (group,) = groups(ProjectLedger(path).entries())
    noise = 5.0 / (math.sqrt(2) * turns.sensitivity(50))
    exact = pld.PLDAccountant().compose(dp_accounting.GaussianDpEvent(noise)).get_epsilon(1e-3)
    found = group.epsilon(1e-3)
    assert found is not None
    assert found.value == pytest.approx(exact, abs=1e-3)
    assert found.value > epsilon([(turns, 100)], 1e-3).value + 0.01


@pytest.mark.parametrize(
    "change",
    [
        {"time": "x"},
        {"time": 1e300},
        {"delta": "x"},
        {"delta": -1.0},
        {"directory": 3},
        {"budget": {"epsilon": "x", "delta": 1e-3}},
        {"people": {"source": "digits", "content": None, "unit": "client"}},
        {"sweep": {"directory": "/s", "selection": "geometric", "mean": 0.0, "drawn": 1}},
        {"sweep": {"directory": "/s", "selection": "other", "mean": 2.0, "drawn": 1}},
        {"sweep": {"directory": ["/s"], "selection": None, "mean": 0.0, "drawn": 1}},
        {"ended": "no"},
        *(
            {"spent": [{**fields_of(_ONE), "count": 3, **part}]}
            for part in (
                {"count": -3},
                {"noise_multiplier": "x"},
                {"noise_multiplier": -1.0},
                {"noise_multiplier": math.nan},
                {"cohort": 101},
                {"cohort": 0},
                {"population": 0},
                {"sampling": "other"},
                {"count": math.inf},
                {"count": 1.5},
                {"count": True},
                {"cohort": 1.5},
                {"population": math.inf},
                {"noise_multiplier": 1e-200},
                {"noise_multiplier": 10**400},
            )
        ),
    ],
    ids=str,
)
def test_a_line_whose_numbers_cannot_be_meant_is_refused(
    change: dict[str, object], tmp_path: Path
) -> None:
    path = tmp_path / "ledger.jsonl"
    line = json.loads(_entry(spent=((_ONE, 3),)).to_line())
    path.write_text(json.dumps(line) + "\n" + json.dumps({**line, **change}) + "\n")
    with pytest.raises(LedgerError, match="line 2 is no entry"):
        ProjectLedger(path).entries()


def test_a_line_that_nests_too_deeply_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    path.write_text("[" * 100_000 + "\n")
    with pytest.raises(LedgerError, match="line 1 is no entry"):
        ProjectLedger(path).entries()
