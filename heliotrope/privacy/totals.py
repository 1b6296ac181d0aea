"""What the entries of a project's ledger come to together, where they compose."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from heliotrope.privacy.accountant import Epsilon, Spent, epsilon
from heliotrope.privacy.charges import about_the_same
from heliotrope.privacy.mechanisms import Adjacency
from heliotrope.privacy.project import Budget, Entry, added

__all__ = ["Group", "groups"]


@dataclass(frozen=True)
class Group:
    """Entries that compose: on the same data, of one unit and adjacency.

    Parameters
    ----------
    entries
        In the order of time.
    adjacencies
        What neighbours are; more than one if an entry has mechanisms of several, which no
        accountant composes.
    """

    entries: tuple[Entry, ...]
    adjacencies: frozenset[Adjacency]

    @property
    def sources(self) -> list[str]:
        """The names of the data."""
        return sorted({entry.people.source for entry in self.entries})

    @property
    def unit(self) -> str:
        """Of whom one more or less is hidden."""
        return self.entries[0].people.unit

    @property
    def budget(self) -> Budget | None:
        """That of the newest entry that has one."""
        return next((e.budget for e in reversed(self.entries) if e.budget is not None), None)

    @property
    def delta(self) -> float:
        """The delta of the budget, or the least of the runs' own."""
        return self.budget.delta if self.budget else min(entry.delta for entry in self.entries)

    def epsilon(self, delta: float, entries: Sequence[Entry] | None = None) -> Epsilon | None:
        """Return what all entries, or these of them, spent together; None if nothing tells."""
        spent: Spent = added(*(e.released for e in (self.entries if entries is None else entries)))
        return None if len(self.adjacencies) > 1 else epsilon(spent, delta)


def groups(entries: Sequence[Entry]) -> list[Group]:
    """Return the entries that spend anything, by what composes."""
    left = sorted((entry for entry in entries if entry.spent), key=lambda entry: entry.time)
    found: list[Group] = []
    while left:
        same = [left[0], *about_the_same(left[0], left)]
        left = [entry for entry in left if entry not in same]
        kinds: dict[tuple[str, frozenset[Adjacency]], list[Entry]] = {}
        for entry in sorted(same, key=lambda entry: entry.time):
            adjacencies = frozenset(mechanism.adjacency for mechanism, _ in entry.spent)
            kinds.setdefault((entry.people.unit, adjacencies), []).append(entry)
        found += [Group(tuple(each), kind[1]) for kind, each in kinds.items()]
    return found
