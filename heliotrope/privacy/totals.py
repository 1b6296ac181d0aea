"""What the entries of a project's ledger come to together, where they compose."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from heliotrope.privacy.accountant import Epsilon, Spent, epsilon, epsilon_of_best
from heliotrope.privacy.charges import about_the_same
from heliotrope.privacy.mechanisms import Adjacency
from heliotrope.privacy.project import Budget, Entry, Sweep, added

__all__ = ["Group", "SweepTotal", "groups", "sweeps_of"]


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


@dataclass(frozen=True)
class SweepTotal:
    """What the trials of a sweep have spent.

    Parameters
    ----------
    sweep
        It.
    trials
        How many were charged.
    whole
        What all of them spent together.
    best
        What it takes to release the best alone; None if nothing proves less than `whole`.
    """

    sweep: Sweep
    trials: int
    whole: Epsilon | None
    best: float | None

    @property
    def line(self) -> str:
        """What a user is told."""
        whole = "?" if self.whole is None else f"{self.whole.value:.4g}"
        text = f"{self.trials} trials of {self.sweep.directory}: epsilon {whole} for all of them"
        if self.best is not None:
            return (
                f"{text}; {self.best:.4g} by RDP for the best alone, of a {self.sweep.selection} "
                f"number of trials (expected {self.sweep.mean:g}), if nothing of the others is told"
            )
        if self.sweep.selection is None:
            return f"{text}, the best as well: their number was not drawn"
        return (
            f"{text}, the best as well: not all {self.sweep.drawn} that were drawn have ended and "
            "spent alike"
        )


def sweeps_of(group: Group, delta: float) -> list[SweepTotal]:
    """Return the sweeps of which trials are in `group`."""
    trials: dict[Sweep, list[Entry]] = {}
    for run in _runs(group.entries):
        if run.sweep is not None:
            trials.setdefault(run.sweep, []).append(run)
    return [
        SweepTotal(sweep, len(each), group.epsilon(delta, each), _best(sweep, each, delta))
        for sweep, each in trials.items()
    ]


def _runs(entries: Sequence[Entry]) -> list[Entry]:
    """Return an entry for each run, of all that it has spent for whatever purpose."""
    found: dict[str, Entry] = {}
    for entry in entries:
        known = found.setdefault(entry.run, replace(entry, spent=()))
        spent, ended = tuple(added(known.spent, entry.spent)), known.ended and entry.ended
        found[entry.run] = replace(known, spent=spent, ended=ended)
    return list(found.values())


def _best(sweep: Sweep, trials: Sequence[Entry], delta: float) -> float | None:
    """Return the epsilon of the best trial; only of as many as were drawn, which spent alike."""
    alike = {trial.spent for trial in trials if trial.ended}
    whole = len(trials) == sweep.drawn and all(trial.ended for trial in trials)
    if sweep.selection is None or not whole or len(alike) != 1:
        return None
    return epsilon_of_best(trials[0].spent, sweep.selection, sweep.mean, delta)
