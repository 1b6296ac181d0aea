"""`privacy` where each client has an account of its own: what each will have spent at the end."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from rich.table import Table

from heliotrope.config import Run
from heliotrope.data import Examples
from heliotrope.privacy.accountant import epsilon
from heliotrope.privacy.accounts import Account

__all__ = ["PlansSilos", "silo_table"]


@runtime_checkable
class PlansSilos(Protocol):
    """Keys of a protection that counts what each client spends by itself."""

    def silos(self, run: Run, train: Examples) -> list[tuple[Account, int]]:
        """Return the account of each client of a run that begins, and how many rounds it takes."""


def silo_table(silos: Sequence[tuple[Account, int]]) -> Table:
    """Return a row for each client: its data, its steps, its noise, and its epsilon at the end."""
    title = "federated: ε for a record of each client, of so many examples (size), at δ"
    table = Table(title=title, title_justify="left")
    table.add_column("client", no_wrap=True)
    for name in ("size", "batch", "steps", "rounds", "noise", "δ", "ε"):  # steps of a round
        table.add_column(name, justify="right", no_wrap=True)
    for account, rounds in silos:
        spent = [(account.mechanism, rounds * account.releases)]
        table.add_row(
            account.name,
            f"{account.examples:,}",
            f"{account.mechanism.cohort:,}",
            f"{account.releases:,}",
            f"{rounds:,}",
            f"{account.mechanism.noise_multiplier:g}",
            f"{account.delta:.2g}",
            f"{epsilon(spent, account.delta).value:.3f}",
        )
    return table
