"""What a deployed client with local privacy sees to by itself, whatever the server asks.

It counts the rounds that it takes part in, tells nothing beside its noisy update, and takes the
noise from its own keys: a server that is not trusted must not say how much it is.
"""

from __future__ import annotations

from dataclasses import replace

from flwr.app import ConfigRecord, RecordDict

from heliotrope.config import FederatedConfig
from heliotrope.errors import ConfigError, MessageError
from heliotrope.privacy.accountant import Epsilon, epsilon
from heliotrope.privacy.mechanisms import Mechanism
from heliotrope.privacy.secure_noise import SECURE_SOURCE

from ..privacy.local import Local
from ..privacy.names import privacy_of
from ..updates import Instruction

__all__ = ["SERVERS_NOISE", "LocalGuard", "local_of"]

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
    """Looks after one client of `clients`; what it keeps is in the `state` of its node."""

    def __init__(self, privacy: Local, clients: int, state: RecordDict) -> None:
        assert privacy.noise_multiplier is not None
        self._privacy, self._state = privacy, state
        self._mechanism = Mechanism("none", privacy.noise_multiplier, 1, 1)
        self._delta = privacy.delta_for(clients)

    @property
    def taken(self) -> int:
        """In how many rounds the client has taken part."""
        if _TAKEN not in self._state:
            return 0
        count = self._state.config_records[_TAKEN][_COUNT]
        assert isinstance(count, int)
        return count

    def _spent(self, rounds: int) -> Epsilon:
        return epsilon([(self._mechanism, rounds)], self._delta)

    def admit(self, instruction: Instruction) -> Instruction:
        """Charge a round, and return what the client does of what it is asked.

        Raises `MessageError` if it is asked for more than its update, or its budget is spent.
        """
        more = any(algorithm.sends() for algorithm in instruction.algorithms)
        if more or instruction.start_loss:
            raise MessageError(
                "the server asks for more than an update, which federated/privacy=local would have "
                "to tell without noise"
            )
        rounds, budget = self.taken + 1, self._privacy.target_epsilon
        if budget is not None and self._spent(rounds).value > budget:
            raise MessageError(
                f"the client has taken part in {rounds - 1} rounds; another would spend more than "
                f"federated.privacy.target_epsilon={budget:g}"
            )
        self._state[_TAKEN] = ConfigRecord({_COUNT: rounds})
        return replace(instruction, equal_weights=True, clip=None, noise=None)

    def told(self) -> ConfigRecord:
        """Return what the client says of its privacy; all of it is known to the server anyway."""
        return ConfigRecord(
            {
                "noise-source": SECURE_SOURCE,
                "epsilon": self._spent(self.taken).value,
                "delta": self._delta,
                _COUNT: self.taken,
            }
        )
