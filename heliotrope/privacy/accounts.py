"""An account for each client: what it has spent, what it may still spend, who can be drawn.

Where a client's own data is protected before it leaves the client, each client has its own epsilon:
that of the rounds in which it took part. Nothing is gained by who is drawn for a round.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from heliotrope.privacy.accountant import (
    Epsilon,
    Mechanism,
    RunningBound,
    Spent,
    epsilon,
    rounds_within,
)
from heliotrope.privacy.ledger import Ledger

__all__ = ["Account", "Accounts"]


@dataclass(frozen=True)
class Account:
    """What a client pays for a round.

    Parameters
    ----------
    name
        The client's, in the ledger and in result.json.
    mechanism
        Of one release.
    releases
        In each round that it takes part in, such as its local steps.
    delta
        At which its epsilon is told.
    examples
        How many it holds, to be told beside its epsilon.
    """

    name: str
    mechanism: Mechanism
    releases: int
    delta: float
    examples: int


class Accounts:
    """The accounts of all clients of a run that goes on.

    Parameters
    ----------
    ledger
        In which they are kept.
    accounts
        By client.
    coming
        Names of releases that are still to come, also where they are charged already: rounds that
        a crash has cut off are done again, alike.
    rounds
        How many those are.
    budget
        The epsilon that each client may spend; None: any.
    """

    def __init__(
        self,
        ledger: Ledger,
        accounts: Mapping[int, Account],
        coming: Collection[str],
        rounds: int,
        budget: float | None,
    ) -> None:
        self._ledger, self.accounts = ledger, dict(accounts)
        self._before = {c: ledger.without(coming, a.name) for c, a in accounts.items()}
        self._taken = dict.fromkeys(accounts, 0)
        self._bounds: dict[Any, RunningBound] = {}
        self._room = dict.fromkeys(accounts, rounds)
        if budget is not None:
            found: dict[Any, int] = {}
            for client, account in accounts.items():
                alike = self._alike(client)
                if alike not in found:
                    most, spent = rounds * account.releases, self._before[client]
                    within = rounds_within(account.mechanism, most, account.delta, budget, spent)
                    found[alike] = within // account.releases
                self._room[client] = found[alike]
        self._told = {c: self.bound(c) for c in accounts if self._before[c]}

    def _alike(self, client: int) -> Any:
        """Return what makes clients' epsilons the same after as many rounds."""
        account = self.accounts[client]
        spent = tuple(self._before[client])
        return account.mechanism, account.releases, account.delta, spent

    def room(self, client: int) -> int:
        """Return how many more rounds a client's budget has room for."""
        return self._room[client] - self._taken[client]

    def charge(self, release: str, clients: Collection[int]) -> None:
        """Charge a round to these clients, durably: then it may be released."""
        alike: dict[tuple[Mechanism, int], list[str]] = {}
        for client in clients:
            account = self.accounts[client]
            alike.setdefault((account.mechanism, account.releases), []).append(account.name)
            self._taken[client] += 1
        for (mechanism, count), names in alike.items():
            self._ledger.charge(release, mechanism, count, names)
        self._ledger.sync()
        self._told |= {client: self.bound(client) for client in clients}

    def bound(self, client: int) -> float:
        """Return an upper bound on what a client has spent, by RDP."""
        alike, account = self._alike(client), self.accounts[client]
        if alike not in self._bounds:
            spent = self._before[client]
            self._bounds[alike] = RunningBound(account.mechanism, account.delta, spent)
        return self._bounds[alike].after(self._taken[client] * account.releases)

    @property
    def highest(self) -> float:
        """The bound of the client that has spent most."""
        return max(self._told.values(), default=0.0)

    def after(self, client: int, rounds: int) -> Epsilon:
        """Return what a client will have spent after so many rounds from the beginning on."""
        account = self.accounts[client]
        more = (account.mechanism, rounds * account.releases)
        return epsilon((*self._before[client], more), account.delta)

    def spent(self, client: int) -> Spent:
        """Return all that was charged to a client, also for rounds that will be done again."""
        return self._ledger.without((), self.accounts[client].name)

    def result(self) -> dict[str, Any]:
        """Return what result.json says: the most that a client has spent, and each one's own."""
        each: dict[str, dict[str, Any]] = {}
        highest, rdp = Epsilon(0.0, "PLD", 0.0), 0.0
        for client, account in self.accounts.items():
            spent = self.spent(client)
            whole = epsilon(spent, account.delta)
            highest, rdp = max(highest, whole, key=lambda e: e.value), max(rdp, whole.rdp)
            each[account.name] = {
                "epsilon": whole.value,
                "delta": account.delta,
                "examples": account.examples,
                "releases": sum(count for _, count in spent),
                "noise_multiplier": account.mechanism.noise_multiplier,
            }
        return {
            "epsilon": highest.value,
            "delta": max(account.delta for account in self.accounts.values()),
            "accountant": highest.accountant,
            "epsilon_rdp": rdp,
            "releases": sum(said["releases"] for said in each.values()),
            "clients": each,
        }
