"""A run's part of a project's privacy ledger: what it reserves, uses and gives back."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from time import time

from heliotrope.errors import LedgerError, RunFailedError
from heliotrope.privacy.accountant import RunningBound, Spent, epsilon
from heliotrope.privacy.mechanisms import GaussianMechanism
from heliotrope.privacy.project import Budget, Entry, ProjectLedger, added

__all__ = ["ProjectCharges", "about_the_same"]

_log = logging.getLogger(__name__)

_BLOCK = 16  # releases that are reserved at once beyond what was planned: a line each takes ms


class ProjectCharges:
    """What one run has reserved.

    Parameters
    ----------
    ledger
        The project's.
    entry
        The run's, without what it spends.
    """

    def __init__(self, ledger: ProjectLedger, entry: Entry) -> None:
        self._ledger, self._entry = ledger, entry
        self._held: dict[GaussianMechanism, int] | None = None  # None: as the file says

    def reserve(self, spent: Spent) -> None:
        """Reserve what the run will have spent in the end, in place of what it had reserved.

        Raises `LedgerError` if that does not fit into the budget.
        """
        self._put(spent, ended=False)

    def cover(self, mechanism: GaussianMechanism, count: int) -> None:
        """See to it that `count` uses of a mechanism by the run are charged, durably.

        Raises `RunFailedError` if the budget has no room for them.
        """
        if self._held is None:
            with self._ledger.transaction() as now:
                mine = [e.spent for e in now.entries if e.key == self._entry.key]
                self._held = dict(added(*mine))
        have = self._held.get(mechanism, 0)
        if have >= count:
            return
        held = list(self._held.items())
        try:
            try:
                self._put(added(held, [(mechanism, count + _BLOCK - have)]), ended=False)
            except LedgerError:  # perhaps without the block there is room
                self._put(added(held, [(mechanism, count - have)]), ended=False)
        except LedgerError as error:
            raise RunFailedError(f"{error} The run stops before it releases more.") from error

    def end(self, spent: Spent) -> None:
        """Give back what was not used: no more than `spent` is or will be released.

        If that fails, more is counted than was released, and a line of the log says so.
        """
        try:
            self._put(spent, ended=True)
        except LedgerError as error:
            _log.warning("what the run did not use stays reserved: %s", error)

    def _put(self, spent: Spent, *, ended: bool) -> None:
        entry = replace(self._entry, spent=tuple(spent), ended=ended, time=time())
        with self._ledger.transaction() as now:
            before = next((e for e in now.entries if e.key == entry.key), None)
            had = {} if before is None else dict(before.spent)
            if any(count > had.get(mechanism, 0) for mechanism, count in spent):
                _refuse_excess(self._ledger, entry, now.entries)
            if (had, before is not None and before.ended) != (dict(spent), ended) and (
                had or spent
            ):
                now.put(entry)
        self._held = dict(spent)


def about_the_same(entry: Entry, entries: Sequence[Entry]) -> list[Entry]:
    """Return the others of `entries` that may concern people whom `entry` concerns."""
    found: list[Entry] = []
    rest = [other for other in entries if other.key != entry.key]
    reached = [entry.people]
    while reached:
        people = reached.pop()
        near = [other for other in rest if other.people.may_be(people)]
        rest = [other for other in rest if other not in near]
        found += near
        reached += [other.people for other in near]
    return found


def _refuse_excess(ledger: ProjectLedger, entry: Entry, entries: Sequence[Entry]) -> None:
    """Raise `LedgerError` if with `entry` more is spent than its budget."""
    budget = entry.budget
    if budget is None:
        return
    others = about_the_same(entry, entries)
    for other in others:
        _refuse_mixture(ledger, entry, other, budget)
    before = added(*(other.released for other in others))
    spent = added(before, entry.released)
    (first, count), *rest = spent
    if RunningBound(first, budget.delta, rest).after(count) <= budget.epsilon:
        return  # the bound takes milliseconds, the tight figure seconds
    whole = epsilon(spent, budget.delta).value
    if whole > budget.epsilon:
        used = epsilon(before, budget.delta).value
        raise LedgerError(
            f"privacy.ledger={ledger.path}: with this run, all runs on the same data would spend "
            f"epsilon {whole:.4g} at delta {budget.delta:g}, more than privacy.budget="
            f"{budget.epsilon:g}; {len(others)} other(s) have spent or reserved {used:.4g}: see "
            f"heliotrope privacy ledger={ledger.path}. Shorten the run, add noise, or raise "
            "privacy.budget."
        )


def _refuse_mixture(ledger: ProjectLedger, entry: Entry, other: Entry, budget: Budget) -> None:
    mine, theirs = (
        {(each.people.unit, mechanism.adjacency) for mechanism, _ in each.spent}
        for each in (entry, other)
    )
    for unit_there, adjacency_there in sorted(theirs - mine):
        unit, adjacency = min(mine)
        raise LedgerError(
            f"privacy.ledger={ledger.path}: {other.directory} has released what hides one "
            f"{unit_there} ({adjacency_there}) of the same data, this run one {unit} "
            f"({adjacency}). No accountant composes them, so that nobody can tell whether "
            f"privacy.budget={budget.epsilon:g} is kept. Use the same unit and sampling in all "
            "runs, or a ledger for each kind."
        )
