"""What a deployed client with local privacy sees to by itself, whatever the server asks.

It counts the rounds that it takes part in, tells nothing beside its noisy update, and takes the
noise from its own keys: a server that is not trusted must not say how much it is.

What Flower keeps for a node ends with the run, and with the SuperNode's process: who begins other
runs would be given updates without end. So the count of all runs is in a file of the client's own.
"""

from __future__ import annotations

import secrets
from dataclasses import replace
from pathlib import Path

from flwr.app import ConfigRecord, RecordDict

from heliotrope.config import FederatedConfig
from heliotrope.errors import ConfigError, LedgerError, MessageError
from heliotrope.privacy.accountant import Spent, epsilon
from heliotrope.privacy.ledger import Ledger
from heliotrope.privacy.mechanisms import Mechanism
from heliotrope.privacy.project import added
from heliotrope.privacy.secure_noise import SECURE_SOURCE
from heliotrope.system.locks import NoLocksError, lock

from ..privacy.local import Local
from ..privacy.names import privacy_of
from ..updates import Instruction

__all__ = ["LEDGER", "SERVERS_NOISE", "LocalGuard", "local_of"]

LEDGER = "privacy-ledger"
"""In a node's config, the file in which it counts the rounds of all runs."""

SERVERS_NOISE = "none here: the server adds it to the sum"
"""What a deployed client says of its noise where the server is trusted."""

_TAKEN = "heliotrope.privacy"  # in a node's own context, which Flower keeps there
_COUNT = "participations"


def local_of(cfg: FederatedConfig) -> Local | None:
    """Return the keys of a client that adds noise by itself; None if it does not.

    Raises `ConfigError` if they leave open how much noise that is.
    """
    privacy = privacy_of(cfg)
    if not isinstance(privacy, Local):
        return None
    if privacy.noise_multiplier is None:
        raise ConfigError(
            f"{privacy.key}.noise_multiplier is not set: a deployed client cannot know for how "
            f"many rounds its noise is to last. Set it; {privacy.key}.target_epsilon then ends its "
            "part when it is spent."
        )
    return privacy


class LocalGuard:
    """Looks after one client of `clients`.

    It counts in the file `ledger`; without one, in the `state` of its node, for this run alone.
    """

    def __init__(
        self, privacy: Local, clients: int, state: RecordDict, ledger: Path | None = None
    ) -> None:
        assert privacy.noise_multiplier is not None
        self._privacy, self._state, self._ledger = privacy, state, ledger
        self._mechanism = Mechanism("none", privacy.noise_multiplier, 1, 1)
        self._delta = privacy.delta_for(clients)
        self._spent: Spent = ()

    def admit(self, instruction: Instruction) -> Instruction:
        """Charge a round, and return what the client does of what it is asked.

        Raises `MessageError` if it is asked for more than its update, or its budget is spent, and
        `LedgerError` if the round cannot be written down.
        """
        more = any(algorithm.sends() for algorithm in instruction.algorithms)
        if more or instruction.start_loss:
            raise MessageError(
                "the server asks for more than an update, which federated/privacy=local would have "
                "to tell without noise"
            )
        self._spent = self._charged_here() if self._ledger is None else self._charged(self._ledger)
        return replace(instruction, equal_weights=True, clip=None, noise=None)

    def _charged_here(self) -> Spent:
        before = self._state.config_records[_TAKEN][_COUNT] if _TAKEN in self._state else 0
        assert isinstance(before, int)
        spent = self._within_budget([(self._mechanism, before)])
        self._state[_TAKEN] = ConfigRecord({_COUNT: before + 1})
        return spent

    def _charged(self, path: Path) -> Spent:
        try:
            with path.open("ab") as file:
                lock(file, wait=True)  # of two runs at once, each sees the other's round
                ledger = Ledger(path)
                try:
                    spent = self._within_budget(ledger.spent)
                    ledger.charge(secrets.token_hex(8), self._mechanism)
                    ledger.sync()
                finally:
                    ledger.close()
        except (OSError, NoLocksError) as error:
            raise LedgerError(
                f"{LEDGER}={path} of this node's config: a round cannot be written down ({error}), "
                "so that the client takes no part. Name a file in a folder that it may write to."
            ) from error
        return spent

    def _within_budget(self, before: Spent) -> Spent:
        """Return what another round makes of what was spent before it."""
        spent = added(before, [(self._mechanism, 1)])
        budget = self._privacy.target_epsilon
        if budget is not None and epsilon(spent, self._delta).value > budget:
            raise MessageError(
                f"the client has taken part in {_rounds(before)} rounds; another would spend more "
                f"than federated.privacy.target_epsilon={budget:g}"
            )
        return spent

    def told(self) -> ConfigRecord:
        """Return what the client says of its privacy; all of it is known to the server anyway."""
        return ConfigRecord(
            {
                "noise-source": SECURE_SOURCE,
                "epsilon": epsilon(self._spent, self._delta).value,
                "delta": self._delta,
                _COUNT: _rounds(self._spent),
            }
        )


def _rounds(spent: Spent) -> int:
    return sum(count for _, count in spent)
