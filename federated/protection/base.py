"""What the round loop asks of a protection, whatever its kind."""

from __future__ import annotations

import secrets
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flwr.serverapp.strategy import Strategy

from heliotrope.config import Run
from heliotrope.data import Exchange
from heliotrope.privacy.charges import ProjectCharges
from heliotrope.privacy.ledger import Ledger, release_stamp
from heliotrope.runs.private_sums import decided_by, settings_of_sums

from ..aggregation import Mean
from ..engine.context import TrainingContext
from ..flower.messages import EQUAL_WEIGHTS
from ..privacy.base import ClientPrivacy
from ..updates import StepNoise, Weights

__all__ = ["Protection", "stamp_of"]


class Protection(ABC):
    """The protection of a run, from its first round to its result.

    `begin` comes once, first of all. Each round then asks, in this order: `draw`, `told`,
    `release`, `numbers`; and when it is accepted, `saved`. To be closed.

    Parameters
    ----------
    privacy
        The keys.
    run, context
        Whose seed, clients and model are meant.
    path
        Of the run's ledger.
    """

    _privacy: ClientPrivacy
    _run: Run
    _ledger: Ledger
    last_round: int
    """The last round that the budget has room for; it may change from round to round."""

    noise: StepNoise | None = None
    """What clients add to the sums of their local steps, from `begin` on; None: nothing."""

    @abstractmethod
    def __init__(
        self, privacy: ClientPrivacy, run: Run, context: TrainingContext, path: Path
    ) -> None: ...

    def charge_to(self, project: ProjectCharges) -> None:
        """Charge a project, too, for what the run's ledger is charged from now on."""
        self._ledger.charge_to(project)

    @classmethod
    @abstractmethod
    def check(
        cls,
        privacy: Any,
        run: Run,
        context: TrainingContext,
        strategy: Strategy,
        exchange: Exchange,
    ) -> None:
        """Raise `ConfigError` for what cannot be accounted for, before any work."""

    @abstractmethod
    def begin(self, server_round: int, saved: Mapping[str, Any]) -> None:
        """Take up a run that has done `server_round` rounds.

        `saved` is what `saved` returned after that round, as JSON gives it back; empty if there is
        none.
        """

    @abstractmethod
    def line(self) -> str:
        """Return what a user is told before training."""

    @abstractmethod
    def draw(self, server_round: int) -> list[int]:
        """Return a round's cohort in client order, perhaps empty, and begin to charge it.

        What a client sends is charged durably before somebody sees it whom it is protected from:
        if that is the server, when this returns; if it is who gets the models, when `release` does.
        """

    def told(self, server_round: int) -> Mapping[str, bool | float]:  # noqa: ARG002
        """Return what the cohort is told beside the weights, by the names of `flower.messages`.

        By default, to weigh 1 each in the sum if the keys say so.
        """
        return {EQUAL_WEIGHTS: True} if self._privacy.equal_weights else {}

    def release(
        self,
        server_round: int,  # noqa: ARG002
        mean: Mean | None,
        beginning: Weights,  # noqa: ARG002
    ) -> Mean | None:
        """Return the mean that the strategy is given in place of the clients' own.

        By default, that one. It is None where no client has answered, and where the strategy takes
        replies. `beginning` has the shapes of the weights.
        """
        return mean

    @abstractmethod
    def numbers(self, server_round: int) -> Mapping[str, float]:
        """Return what a round's event says, by names such as privacy/epsilon_rdp."""

    @abstractmethod
    def saved(self) -> dict[str, Any]:
        """Return what a checkpoint keeps, as JSON can hold it."""

    def _assumptions(self) -> list[str]:
        """Return what the promise depends on, a sentence each."""
        return [*self._privacy.assumptions(), *decided_by(self._run, "federated")]

    @abstractmethod
    def result(self) -> dict[str, Any]:
        """Return what result.json says."""

    @abstractmethod
    def close(self) -> None:
        """Close what is open, such as a ledger."""


def stamp_of(run: Run, content: str | None) -> str:
    """Return what a round's noise and charge depend on beside the run's seed.

    `content` is a hash of its data.

    A round that is done again after a crash gives the same sum, and may have the same noise, if
    all that sums depend on is as before. What clients are given up for their time is not the same
    twice.
    """
    lost = () if run.federated.client_timeout is None else (secrets.token_hex(8),)
    return release_stamp(settings_of_sums(run, "federated"), content, *lost)
