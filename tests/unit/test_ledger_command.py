"""`heliotrope privacy ledger=FILE`: what a project has spent."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.project_ledgers import ONE, charges_of
from tests.support import Command


def test_the_command_shows_who_spent_what(tmp_path: Path, heliotrope: Command) -> None:
    path = tmp_path / "ledger.jsonl"
    for run, count in (("a", 60), ("b", 40)):
        charges = charges_of(path, run, purpose="training" if run == "a" else "trial of a sweep")
        charges.reserve([(ONE, count)])
        if run == "a":
            charges.end([(ONE, count)])
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
    charges_of(path, name="a[/red]", purpose="b[/red]").reserve([(ONE, 1)])
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
