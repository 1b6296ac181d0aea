"""Schema of what all runs of a project may tell together about those whose data they use."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["ProjectConfig"]


@dataclass
class ProjectConfig:
    """The ledger that runs share, and what they may spend together. Off while `ledger` is null.

    Parameters
    ----------
    ledger
        The file in which every run is charged.
    budget
        The epsilon that all runs in it on the same data may spend; null: as much as they like.
    delta
        The probability with which that may fail.
    selection, trials
        Of a sweep whose best trial alone is released: what the number of trials is drawn from,
        geometric or poisson, and its expectation; null: all combinations are trained.
    """

    ledger: str | None = None
    budget: float | None = None
    delta: float | None = None
    selection: str | None = None
    trials: float | None = None
