"""What others have named is printed as it is: no markup, no emoji, in lines and in tables."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from rich.table import Table

from heliotrope.audit.findings import Findings
from heliotrope.audit.terminal import tell
from heliotrope.system.console import plain_console

_ROOT = Path(__file__).resolve().parents[2]
_MAY = {  # where text is our own, or is told not to be markup
    "heliotrope/system/console.py",
    "heliotrope/runs/display.py",
    "heliotrope/data/sources/download.py",
}
_NAME = "a[/b] [red]:fire:"


def test_names_are_printed_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    table = Table(_NAME, title=_NAME)
    table.add_row(_NAME)
    console = plain_console()
    console.print(table)
    console.print(_NAME)
    assert capsys.readouterr().out.count(_NAME) == 4


def test_there_is_no_other_console() -> None:
    found = {
        str(path.relative_to(_ROOT))
        for package in ("heliotrope", "federated", "distributed")
        for path in (_ROOT / package).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id == "Console"
    }
    assert found <= _MAY
    assert found


def test_an_audit_tells_of_a_promise_without_a_bound(capsys: pytest.CaptureFixture[str]) -> None:
    # result.json has null for infinity.
    promised = {"epsilon": None, "delta": 1e-3, "unit": "client"}
    tell(Findings("x", "federated", promised, None), plain_console())
    assert "promised: epsilon unlimited at delta 0.001, for each client" in capsys.readouterr().out
