"""Entries of project ledgers, and what runs charge to one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from heliotrope.privacy.charges import ProjectCharges
from heliotrope.privacy.mechanisms import Mechanism
from heliotrope.privacy.project import Entry, People, ProjectLedger, added

__all__ = ["DIGITS", "FIXED", "ONE", "OTHER", "QUIET", "charges_of", "entry_of", "spent_in"]

ONE = Mechanism("poisson", 1.0, 10, 100)
OTHER = Mechanism("poisson", 2.0, 20, 100)
QUIET = Mechanism("poisson", 4.0, 10, 100)  # its epsilon is computed six times as fast as ONE's
FIXED = Mechanism("fixed", 2.0, 20, 100)
DIGITS = People("digits", "abc", "client")


def entry_of(run: str = "a", people: People = DIGITS, **fields: object) -> Entry:
    """Return an entry of a run, with other values of some fields."""
    entry = Entry(run, f"/runs/{run}", "mine", "federated", "training", people, 1e-3)
    return replace(entry, **fields)  # type: ignore[arg-type]


def charges_of(path: Path, run: str = "a", **fields: object) -> ProjectCharges:
    """Return what a run charges to the ledger at `path`."""
    return ProjectCharges(ProjectLedger(path), entry_of(run, **fields))  # type: ignore[arg-type]


def spent_in(path: Path) -> dict[Mechanism, int]:
    """Return how often each mechanism is charged in all entries together."""
    return dict(added(*(entry.spent for entry in ProjectLedger(path).entries())))
