"""The rounds of a run under secure aggregation: what clients mask, and the mean that is opened."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import islice

from heliotrope.errors import SecureAggregationError

from .aggregation import Mean
from .aggregation.masked import Layout
from .engine.context import TrainingContext
from .engine.thread_lane import Reply
from .privacy.base import ClippedSum
from .privacy.local import Local
from .privacy.names import privacy_of
from .secure_aggregation.masking import Masking
from .secure_aggregation.quantization import Quantizer
from .secure_aggregation.session import Session
from .secure_aggregation.settings import DEFAULT_RANGE, SecAgg
from .updates import Failure, Instruction, Update, Weights

__all__ = ["SecureRound", "SecureRounds"]

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
        clients = sorted([*cohort, *fillers])
        setup = self._settings.setup(self._cohort, len(clients), layout.size, layout.numbers)
        session = Session(setup, clients)
        session.add_nothing(fillers)
        quantizer = self.quantizer(equal_weights=instruction.equal_weights, clip=instruction.clip)
        return SecureRound(session, layout, quantizer, tuple(sorted(cohort)))


@dataclass
class SecureRound:
    """A round under way."""

    session: Session
    layout: Layout
    quantizer: Quantizer
    cohort: tuple[int, ...]

    def instruction(self, instruction: Instruction) -> Instruction:
        """Return what the cohort is told, with its masks."""
        masks = {client: self.session.masks[client] for client in self.cohort}
        return replace(instruction, masking=Masking(self.quantizer, masks))

    def finish(self, replies: Sequence[Reply]) -> tuple[Mean | None, list[Update], list[Failure]]:
        """Return the mean of all that were heard of, what they told together, and who failed.

        No mean if none of the cohort was. Raises `SecureAggregationError` if too few are left.
        """
        failures = [failure for reply in replies for failure in reply.failures]
        heard: list[int] = []
        for message in (message for reply in replies for message in reply.masked):
            if (why := self.session.receive(message)) is None:
                heard.append(message.client)
            else:
                failures.append(Failure(message.client, why))
        lost = {failure.client: failure.reason for failure in failures}
        total, _ = self.session.total(lost)
        if not heard:
            return None, [], failures
        mean, update = self.layout.mean(total, sorted(heard), self.quantizer)
        return mean, [update], failures
