"""The bytes that a round's clients are sent, and send back: what the server will count."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

from flwr.app import ArrayRecord, ConfigRecord
from flwr.serverapp.strategy import Strategy

from heliotrope.config import Run

from ..components import Components
from ..flower.grid import CohortGrid
from ..flower.messages import CLIP, content_of, to_record
from ..pools.base import Pool
from ..population.evaluated import clients_to_evaluate
from ..privacy.adaptive import Adaptive
from ..privacy.names import privacy_of
from ..strategies.trial import after_a_round

__all__ = ["RunTraffic", "client_bytes"]


def client_bytes(run: Run, components: Components) -> tuple[int, int]:
    """Return the bytes that a client is sent in the first round, and in later ones.

    It sends back as many. They follow from what the strategy tells the clients, of a made-up
    model after the first round: Flower's adaptive strategies send float64 from then on.
    """
    weights, cohort = components.context.global_weights, run.federated.clients_per_round
    sent = to_record(weights)
    first = _told_bytes(run, components.strategy, 1, sent)
    later = after_a_round(components.strategy, weights, cohort)
    if later is None or later[1] is None:
        return first, first
    return first, _told_bytes(run, later[0], 2, later[1])


def _told_bytes(run: Run, strategy: Strategy, server_round: int, arrays: ArrayRecord) -> int:
    grid = CohortGrid(cast(Pool, None), reduce=False)  # nobody is asked to do anything
    grid.offer(range(run.federated.clients_per_round))
    config, privacy = ConfigRecord(), privacy_of(run.federated)
    if isinstance(privacy, Adaptive):  # clients answer whether the clip was more than they need
        config[CLIP] = float(privacy.clip)
    messages = strategy.configure_train(server_round, arrays, config, grid)
    weights, instruction = content_of(next(iter(messages)))
    return instruction.sent_bytes(weights)


@dataclass(frozen=True)
class RunTraffic:
    """The bytes of a run, of all clients together.

    Parameters
    ----------
    first, each
        Of a client in the first round and in each later one, in each direction.
    cohort, rounds
        How many clients train in a round, and how many rounds there are.
    prepared_up, prepared_down
        Sent once, for the preparation of the data.
    evaluations_down
        Of the models that are sent to be evaluated.
    """

    first: int
    each: int
    cohort: int
    rounds: int
    prepared_up: int
    prepared_down: int
    evaluations_down: int

    @classmethod
    def of(cls, run: Run, components: Components) -> RunTraffic:
        """Return that of `run`, if every client that is drawn answers."""
        cfg, context, exchange = run.federated, components.context, components.exchange
        holding = len(context.population.evaluating())
        asked = clients_to_evaluate(cfg, holding) if holding else 0
        model = sum(value.nbytes for value in context.global_weights.values())
        evaluations = cfg.rounds // cfg.evaluate_every + (cfg.rounds % cfg.evaluate_every > 0)
        return cls(
            *client_bytes(run, components),
            cfg.clients_per_round,
            cfg.rounds,
            exchange.bytes_up,
            exchange.bytes_down,
            evaluations * asked * model,
        )

    @property
    def up(self) -> int:
        """From the clients to the server."""
        return self.prepared_up + self._trained

    @property
    def down(self) -> int:
        """From the server to the clients."""
        return self.prepared_down + self._trained + self.evaluations_down

    @property
    def _trained(self) -> int:
        return self.cohort * (self.first + (self.rounds - 1) * self.each)
