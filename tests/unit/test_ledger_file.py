"""The file of a project ledger: what is cut off, damaged, replaced, or cannot be locked."""

from __future__ import annotations

import errno
import fcntl
import json
import math
import os
from pathlib import Path
from typing import IO

import pytest

from heliotrope.errors import ConfigError, LedgerError
from heliotrope.privacy.mechanisms import fields_of
from heliotrope.privacy.project import Budget, Entry, ProjectLedger, Sweep
from heliotrope.system.locks import file_system
from tests.project_ledgers import FIXED, ONE, charges_of, entry_of, spent_in


@pytest.mark.parametrize("cut", [1, 5, 200, "zeros"])
def test_a_line_that_was_cut_off_was_never_released(cut: int | str, tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    charges_of(path, "a").reserve([(ONE, 3)])
    whole = path.read_bytes()
    line = entry_of("b", spent=((ONE, 7),)).to_line()
    torn = b"\0" * 300 if cut == "zeros" else line[: -int(cut) - 1]
    path.write_bytes(whole + torn)
    assert spent_in(path) == {ONE: 3}
    charges_of(path, "c").reserve([(ONE, 1)])
    assert spent_in(path) == {ONE: 4}
    assert path.read_bytes().startswith(whole)
    assert len(path.read_text().splitlines()) == 2


def test_a_whole_line_without_its_end_counts(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    path.write_bytes(entry_of("a", spent=((ONE, 7),)).to_line().rstrip(b"\n"))
    charges_of(path, "b").reserve([(ONE, 1)])
    assert spent_in(path) == {ONE: 8}


@pytest.mark.parametrize("text", ["notes\n", "notes", '{"ledger": 2}\n', "[1]\n", "{}\n"])
def test_a_file_that_is_no_ledger_is_left_as_it_is(text: str, tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text(text)
    with pytest.raises(LedgerError, match=r"notes\.txt, line 1 is no entry"):
        charges_of(path).reserve([(ONE, 1)])
    assert path.read_text() == text


def test_damage_in_the_middle_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    for run in "abc":
        charges_of(path, run).reserve([(ONE, 1)])
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(lines[0] + lines[1][:40] + b"\n" + lines[2])
    with pytest.raises(LedgerError, match="line 2 is no entry"):
        charges_of(path, "d").reserve([(ONE, 1)])


def test_an_entry_is_read_as_it_was_written() -> None:
    sweep, budget = Sweep("/runs/sweep", "geometric", 5.0, 3), Budget(8.0, 1e-5)
    entry = entry_of("a", spent=((ONE, 3), (FIXED, 1)), sweep=sweep, budget=budget, ended=True)
    assert Entry.from_line(entry.to_line()) == entry


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK], ids=errno.errorcode.get)
def test_a_file_system_without_locks_is_named(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def flock(_file: IO[str], _operation: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(LedgerError, match="has no file locks") as refused:
        charges_of(tmp_path / "ledger.jsonl").reserve([(ONE, 1)])
    assert file_system(tmp_path) in str(refused.value)
    assert isinstance(refused.value, ConfigError)


def test_a_file_that_is_replaced_while_we_wait_is_not_written_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, before = tmp_path / "ledger.jsonl", fcntl.flock
    charges_of(path, "a").reserve([(ONE, 1)])

    def flock(file: IO[str], operation: int) -> None:
        monkeypatch.setattr(fcntl, "flock", before)
        path.rename(tmp_path / "old.jsonl")  # as an editor does
        path.write_bytes((tmp_path / "old.jsonl").read_bytes())
        before(file, operation)

    monkeypatch.setattr(fcntl, "flock", flock)
    charges_of(path, "b").reserve([(ONE, 2)])
    assert spent_in(path) == {ONE: 3}


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
            {"spent": [{**fields_of(ONE), "count": 3, **part}]}
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
    line = json.loads(entry_of(spent=((ONE, 3),)).to_line())
    path.write_text(json.dumps(line) + "\n" + json.dumps({**line, **change}) + "\n")
    with pytest.raises(LedgerError, match="line 2 is no entry"):
        ProjectLedger(path).entries()


def test_a_line_that_nests_too_deeply_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    path.write_text("[" * 100_000 + "\n")
    with pytest.raises(LedgerError, match="line 1 is no entry"):
        ProjectLedger(path).entries()
