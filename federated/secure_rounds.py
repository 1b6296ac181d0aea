"""The rounds of a run under secure aggregation: what clients mask, and the mean that is opened."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import islice

from heliotrope.errors import SecureAggregationError

from .aggregation import Mean
from .aggregation.masked import Layout
from .client_state import ClientStates
from .engine.context import TrainingContext
from .engine.thread_lane import Reply
from .privacy.base import ClippedSum
from .privacy.local import Local
from .privacy.names import privacy_of
from .secure_aggregation.masking import Masking
from .secure_aggregation.messages import Setup, Vector
from .secure_aggregation.quantization import Quantizer
from .secure_aggregation.session import Session
from .secure_aggregation.settings import DEFAULT_RANGE, SecAgg
from .updates import Failure, Instruction, Update, Weights

__all__ = ["Opened", "SecureRound", "SecureRounds"]

_ROUNDED = 1 + 2.0**-20  # a clipped update of one weight may be longer by a rounding


class SecureRounds:
    """Begins rounds; `settings` are the keys, and `context` says who weighs how much.

    What the clients of a run weigh at most is known to all, as the number of clients is.
    """

    def __init__(self, settings: SecAgg, context: TrainingContext) -> None:
        self._settings, cfg = settings, context.federated
        self._training = context.population.training()
        self._cohort = cfg.clients_per_round
        self._privacy = privacy_of(cfg)
        # With noise for a sum, each client weighs 1, and as many may come as there are.
        self._poisson = getattr(self._privacy, "sampling", None) == "poisson"
        self._most = len(self._training) if self._poisson else self._cohort  # clients in a sum
        weights = sorted(context.weights_of(self._training))[-self._most :]
        self._largest, self._total = max(1, weights[-1]), max(1, sum(weights))
        self._limit = settings.range or DEFAULT_RANGE
        if isinstance(self._privacy, Local):
            needed = self._privacy.limit(self._cohort, len(self._training), cfg.rounds)
            self._limit = settings.within(needed)

    def quantizer(self, *, equal_weights: bool, clip: float | None) -> Quantizer:
        """Return how numbers are made whole, where each client weighs 1 or by its examples.

        `clip` is the norm that updates may have in the round, if it is not the configuration's.

        Updates whose length is accounted for are rounded toward zero: none becomes longer.
        """
        limit, central = self._limit, False
        if isinstance(self._privacy, ClippedSum):
            limit, central = (clip or self._privacy.clip) * _ROUNDED, True
        return Quantizer(
            limit,
            self._settings.bits,
            clients=self._most,
            largest_weight=1 if equal_weights else self._largest,
            total_weight=self._most if equal_weights else self._total,
            toward_zero=central,
        )

    @property
    def expected_quantizer(self) -> Quantizer:
        """That of rounds as the configuration has them."""
        privacy = self._privacy
        return self.quantizer(equal_weights=bool(privacy and privacy.equal_weights), clip=None)

    def begin(
        self, instruction: Instruction, weights: Weights, cohort: Sequence[int]
    ) -> SecureRound:
        """Begin a round with the clients of `cohort`.

        Where its size is random, others fill it up, and send zeros: messages tell the one from the
        other to nobody. Raises `SecureAggregationError` if it is too small otherwise.
        """
        drawn, missing = set(cohort), max(0, self._cohort - len(cohort))
        spare = (client for client in self._training if client not in drawn)
        fillers = list(islice(spare, missing if self._poisson else 0))
        needed = self._settings.threshold_of(self._cohort)
        if len(cohort) + len(fillers) < needed:
            raise SecureAggregationError(
                f"secure aggregation: {len(cohort)} clients are left to be drawn for round "
                f"{instruction.server_round}, where federated.secure_aggregation.threshold={needed}"
                " are needed. What was trained so far is saved."
            )
        layout = Layout.of(instruction, weights)
        clients = len(cohort) + len(fillers)
        return SecureRound(
            self._settings.setup(self._cohort, clients, layout.size, layout.numbers),
            layout,
            self.quantizer(equal_weights=instruction.equal_weights, clip=instruction.clip),
            tuple(sorted(cohort)),
            tuple(fillers),
        )


@dataclass(frozen=True)
class Opened:
    """What a round under secure aggregation has given.

    Parameters
    ----------
    mean, updates
        Of all that were heard of, and what they told together; neither if nobody was.
    failures
        Who was lost, and why.
    states
        What the clients that were heard of keep, unless it stays with them.
    """

    mean: Mean | None
    updates: list[Update]
    failures: list[Failure]
    states: list[ClientStates]


@dataclass(frozen=True)
class SecureRound:
    """A round before any client is asked.

    Parameters
    ----------
    setup, layout, quantizer
        What clients are told of it, and how they make whole numbers of their updates.
    cohort, fillers
        The clients that train, and those that send zeros.
    """

    setup: Setup
    layout: Layout
    quantizer: Quantizer
    cohort: tuple[int, ...]
    fillers: tuple[int, ...]

    @property
    def clients(self) -> list[int]:
        """All that take part, in order."""
        return sorted([*self.cohort, *self.fillers])

    def simulated(
        self, instruction: Instruction, train: Callable[[Instruction], Sequence[Reply]]
    ) -> Opened:
        """Play the round with all its clients in one process; `train` trains the cohort.

        Raises `SecureAggregationError` if too few are left.
        """
        session = Session(self.setup, self.clients)
        session.add_nothing(self.fillers)
        masks = {client: session.masks[client] for client in self.cohort}
        replies = train(replace(instruction, masking=Masking(self.quantizer, masks)))
        failures = [failure for reply in replies for failure in reply.failures]
        heard: list[int] = []
        for message in (message for reply in replies for message in reply.masked):
            if (why := session.receive(message)) is None:
                heard.append(message.client)
            else:
                failures.append(Failure(message.client, why))
        lost = {failure.client: failure.reason for failure in failures}
        total, _ = session.total(lost)
        states = [
            states.take([client for client in states.clients if client not in lost])
            for reply in replies
            for states in reply.states
        ]
        return self.opened(total, heard, failures, states)

    def opened(
        self,
        total: Vector,
        heard: Sequence[int],
        failures: list[Failure],
        states: list[ClientStates],
    ) -> Opened:
        """Return what the sum `total` says, in which the clients `heard` of the cohort are."""
        failures.sort(key=lambda failure: failure.client)
        if not heard:
            return Opened(None, [], failures, states)
        mean, update = self.layout.mean(total, sorted(heard), self.quantizer)
        return Opened(mean, [update], failures, states)
