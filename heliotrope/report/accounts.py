"""Who has spent what, where each client has a privacy account of its own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from heliotrope.report.record import RunRecord, number
from heliotrope.report.units import UNKNOWN, count_text

__all__ = ["OF_CLIENTS", "ClientAccounts", "client_accounts"]

OF_CLIENTS = "privacy/epsilon_rdp/"
"""What names of numbers in events begin with, before a client's."""

_MOST = 20  # lines of a table


@dataclass
class ClientAccounts:
    """The accounts of a run's clients: a line each, who has spent most first.

    `hidden` is how many clients have no line.
    """

    lines: list[list[str]] = field(default_factory=list)
    hidden: int = 0


def client_accounts(run: RunRecord) -> ClientAccounts:
    """Return what each client has spent: as the result says, else as the events do."""
    said = (run.detail("privacy") or {}).get("clients")
    each = _of_result(said) if isinstance(said, Mapping) else _of_events(run)
    each.sort(key=lambda pair: -pair[0])
    return ClientAccounts([line for _, line in each[:_MOST]], max(0, len(each) - _MOST))


def _of_result(said: Mapping[str, Any]) -> list[tuple[float, list[str]]]:
    found = []
    for name, account in said.items():
        if not isinstance(account, Mapping) or (spent := number(account.get("epsilon"))) is None:
            continue
        delta = number(account.get("delta"))
        counts = [number(account.get(key)) for key in ("examples", "releases")]
        cells = [UNKNOWN if count is None else count_text(count) for count in counts]
        at = UNKNOWN if delta is None else f"{delta:.3g}"
        found.append((spent, [str(name), f"{spent:.4g}", at, *cells]))
    return found


def _of_events(run: RunRecord) -> list[tuple[float, list[str]]]:
    """Return upper bounds, by RDP, of a run that has not ended."""
    latest: dict[str, float] = {}
    for event in run.of_kind("train"):
        for key, value in event.items():
            spent = number(value)
            if key.startswith(OF_CLIENTS) and spent is not None:
                latest[key.removeprefix(OF_CLIENTS)] = spent
    return [(v, [n, f"≤ {v:.4g}", UNKNOWN, UNKNOWN, UNKNOWN]) for n, v in latest.items()]
