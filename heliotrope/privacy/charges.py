"""A run's part of a project's privacy ledger: what it reserves, uses and gives back."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from time import time

from heliotrope.errors import LedgerError, RunFailedError
from heliotrope.privacy.accountant import RunningBound, Spent, epsilon
from heliotrope.privacy.mechanisms import GaussianMechanism
from heliotrope.privacy.project import (
    STATISTICS,
    TRAINING,
    Budget,
    Entry,
    ProjectLedger,
    added,
)

__all__ = ["ProjectCharges", "about_the_same"]

_log = logging.getLogger(__name__)

_BLOCK = 16  # releases that are reserved at once beyond what was planned: a line each takes ms


class ProjectCharges:
    """What one run has reserved, with an entry for each purpose.

    Parameters
    ----------
    ledger
        The project's.
    entry
        That of the run's training, without what it spends.
    """

    def __init__(self, ledger: ProjectLedger, entry: Entry) -> None:
        self._ledger, self._entry = ledger, entry
        self._held: dict[str, dict[GaussianMechanism, int]] = {}  # by purpose; others: as filed

    def reserve(self, spent: Spent, statistics: Spent = ()) -> None:
        """Reserve what training and statistics of the run will have spent in the end.

        It takes the place of what they had reserved. Raises `LedgerError` if that does not fit
        into the budget; then neither has reserved more.
        """
        self._put({TRAINING: spent, STATISTICS: statistics}, ended=False)

    def cover(self, mechanism: GaussianMechanism, count: int, purpose: str = TRAINING) -> None:
        """See to it that `count` uses of a mechanism for a purpose are charged, durably.

        Raises `RunFailedError` if the budget has no room for them.
        """
        if purpose not in self._held:
            key = self._entry_for(purpose).key
            with self._ledger.transaction() as now:
                mine = [e.spent for e in now.entries if e.key == key]
                self._held[purpose] = dict(added(*mine))
        have = self._held[purpose].get(mechanism, 0)
        if have >= count:
            return
        held = list(self._held[purpose].items())
        try:
            try:
                more = added(held, [(mechanism, count + _BLOCK - have)])
                self._put({purpose: more}, ended=False)
            except LedgerError:  # perhaps without the block there is room
                self._put({purpose: added(held, [(mechanism, count - have)])}, ended=False)
        except LedgerError as error:
            raise RunFailedError(f"{error} The run stops before it releases more.") from error

    def end(self, spent: Spent, statistics: Spent = ()) -> None:
        """Give back what was not used: no more than these is or will be released.

        If that fails, more is counted than was released, and a line of the log says so.
        """
        try:
            self._put({TRAINING: spent, STATISTICS: statistics}, ended=True)
        except LedgerError as error:
            _log.warning("what the run did not use stays reserved: %s", error)

    def _entry_for(self, purpose: str) -> Entry:
        return self._entry if purpose == TRAINING else replace(self._entry, purpose=purpose)

    def _put(self, spent: Mapping[str, Spent], *, ended: bool) -> None:
        with self._ledger.transaction() as now:
            entries, changed = list(now.entries), []
            for purpose, each in spent.items():
                entry = replace(
                    self._entry_for(purpose), spent=tuple(each), ended=ended, time=time()
                )
                before = next((e for e in entries if e.key == entry.key), None)
                had = {} if before is None else dict(before.spent)
                if any(count > had.get(mechanism, 0) for mechanism, count in each):
                    _refuse_excess(self._ledger, entry, entries)
                if (had, before is not None and before.ended) != (dict(each), ended) and (
                    had or each
                ):
                    changed.append(entry)
                    entries = [*(e for e in entries if e.key != entry.key), entry]
            for entry in changed:  # of several purposes all, or none
                now.put(entry)
        self._held |= {purpose: dict(each) for purpose, each in spent.items()}


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
