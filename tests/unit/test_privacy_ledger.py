"""What a run has spent is known after any crash, and never forgotten or charged twice."""

from __future__ import annotations

import json
import math
import os
from contextlib import closing
from pathlib import Path

import pytest

from heliotrope.errors import RunFailedError
from heliotrope.privacy.accountant import Mechanism
from heliotrope.privacy.ledger import Ledger
from heliotrope.privacy.mechanisms import fields_of

_ONE, _OTHER = Mechanism("poisson", 1.0, 10, 100), Mechanism("poisson", 2.0, 10, 100)


def _written(path: Path, *releases: tuple[str, Mechanism]) -> Ledger:
    ledger = Ledger(path)
    for release, mechanism in releases:
        ledger.charge(release, mechanism)
    ledger.sync()
    return ledger


def _spent(path: Path) -> dict[Mechanism, int]:
    with closing(Ledger(path)) as ledger:
        return dict(ledger.spent)


def test_a_ledger_is_read_again_and_the_same_release_is_charged_once(tmp_path: Path) -> None:
    path = tmp_path / "privacy.jsonl"
    _written(path, ("round 1 a", _ONE), ("round 2 a", _ONE)).close()
    again = _written(path, ("round 2 a", _ONE), ("round 2 b", _ONE), ("round 3 b", _OTHER))
    assert dict(again.spent) == {_ONE: 3, _OTHER: 1}
    assert _spent(path) == {_ONE: 3, _OTHER: 1}
    again.close()


def test_a_new_ledger_is_durable_with_its_name(tmp_path: Path, synced: list[Path]) -> None:
    path = tmp_path / "privacy.jsonl"
    _written(path, ("round 1 a", _ONE)).close()
    assert set(synced) == {tmp_path, path}


def test_a_line_that_was_cut_off_was_never_released(tmp_path: Path) -> None:
    path = tmp_path / "privacy.jsonl"
    _written(path, ("round 1 a", _ONE), ("round 2 a", _ONE)).close()
    path.write_bytes(path.read_bytes()[:-20])
    ledger = _written(path, ("round 2 c", _ONE))
    assert dict(ledger.spent) == {_ONE: 2}
    ledger.close()
    assert [line.split('"')[3] for line in path.read_text().splitlines()] == [
        "round 1 a",
        "round 2 c",
    ]


def test_what_a_checkpoint_knows_is_charged_if_the_file_is_lost(tmp_path: Path) -> None:
    kept = _written(tmp_path / "a.jsonl", ("round 1 a", _ONE), ("round 2 a", _OTHER))
    ledger = _written(tmp_path / "b.jsonl", ("round 2 a", _OTHER), ("round 3 a", _ONE))
    ledger.restore(kept.saved())
    assert _spent(tmp_path / "b.jsonl") == {_ONE: 2, _OTHER: 1}
    kept.close()
    ledger.close()


def test_a_whole_line_without_its_end_counts(tmp_path: Path) -> None:
    path = tmp_path / "privacy.jsonl"
    _written(path, ("round 1 a", _ONE), ("round 2 a", _ONE)).close()
    path.write_bytes(path.read_bytes().rstrip(b"\n"))  # as an editor may leave it
    _written(path, ("round 2 a", _ONE), ("round 3 a", _OTHER)).close()
    assert _spent(path) == {_ONE: 2, _OTHER: 1}


def test_the_entry_of_a_new_file_in_its_folder_is_durable_before_a_release(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", lambda file: synced.append(os.fstat(file).st_ino))
    _written(tmp_path / "privacy.jsonl", ("round 1 a", _ONE)).close()
    assert tmp_path.stat().st_ino in synced


def _line(**changed: object) -> str:
    return json.dumps({"release": "round 1 a", **fields_of(_ONE), **changed}) + "\n"


@pytest.mark.parametrize(
    "line",
    [
        "{}\n",
        "[1]\n",
        "nonsense\n",
        "nonsense",
        '{"release": "x", "noise": 1}\n',
        "[" * 100_000 + "\n",
        _line(count=-1),  # would take from what others have spent
        _line(count=math.inf),
        _line(count="3"),
        _line(count=True),
        _line(clients="abc"),
        _line(cohort=1.5),
        _line(population=math.inf),  # of whom nobody is ever drawn
        _line(noise_multiplier=True),
        _line(noise_multiplier=1e-200),
        _line(noise_multiplier=10**400),
    ],
    ids=lambda line: line[:120],
)
def test_a_file_that_is_no_ledger_is_not_taken_for_an_empty_one(line: str, tmp_path: Path) -> None:
    path = tmp_path / "privacy.jsonl"
    path.write_text(line)
    with pytest.raises(RunFailedError, match=r"privacy\.jsonl, byte 0"):
        Ledger(path)
    assert path.read_text() == line


def test_clients_have_accounts_of_their_own_charged_once_each(tmp_path: Path) -> None:
    path = tmp_path / "privacy.jsonl"
    ledger = Ledger(path)
    ledger.charge("planned", _ONE, 0, ["Zurich"])
    ledger.charge("round 1 a", _ONE, 7, ["Zurich", "Basel"])
    ledger.charge("round 1 a", _OTHER, 5, ["Basel", "Budapest"])  # Basel has paid
    ledger.charge("round 1 a", _ONE, 7, ["Zurich", "Basel"])
    ledger.charge("round 1 a", _OTHER)  # the run's own is another account
    kept = ledger.saved()
    ledger.close()
    assert len(path.read_bytes().splitlines()) == 4

    def check(ledger: Ledger) -> None:
        assert ledger.clients == ["Zurich", "Basel", "Budapest"]
        accounts = {name: dict(ledger.without((), name)) for name in ledger.clients}
        assert accounts == {"Zurich": {_ONE: 7}, "Basel": {_ONE: 7}, "Budapest": {_OTHER: 5}}
        assert dict(ledger.spent) == {_OTHER: 1}
        assert (ledger.latest_of("Budapest"), ledger.latest_of("Paris")) == (_OTHER, None)
        assert ledger.without({"round 1 a"}, "Zurich") == []

    with closing(Ledger(path)) as again:
        check(again)
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:2]))
    with closing(Ledger(path)) as lost:  # the checkpoint knows the others
        lost.restore(json.loads(json.dumps(kept)))
        check(lost)
    with closing(Ledger(path)) as whole:
        check(whole)
