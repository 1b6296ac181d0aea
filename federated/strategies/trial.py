"""A made-up round of a strategy: what it keeps, and what it sends later, shows only after one."""

from __future__ import annotations

import copy
import logging
from collections.abc import Sequence
from typing import cast

from flwr.app import ArrayRecord, ConfigRecord
from flwr.serverapp.strategy import Strategy

from heliotrope.seeding import isolated_rng

from ..engine.execution import ExecutionPlan
from ..engine.thread_lane import Reply
from ..flower.grid import CohortGrid
from ..flower.messages import to_record
from ..pools.base import Pool
from ..updates import Instruction, Update, Weights

__all__ = ["after_a_round"]

_log = logging.getLogger(__name__)

_MOST_BYTES = 1 << 26  # of all updates together


def after_a_round(
    strategy: Strategy, weights: Weights, clients: int
) -> tuple[Strategy, ArrayRecord | None] | None:
    """Return a copy of `strategy` that has seen a round, and the model that it made of it.

    Nobody has changed the `weights` in it. `clients` is the size of a cohort; of a large model
    fewer are made up. None if the strategy cannot be copied, or raises an error: the first round
    will tell that, with its line.
    """
    each = max(1, sum(value.nbytes for value in weights.values()))
    cohort = list(range(min(clients, max(2, _MOST_BYTES // each))))
    grid = CohortGrid(cast(Pool, _Unchanged()), reduce=False)
    grid.execution = ExecutionPlan("sequential", 1)
    grid.offer(cohort)
    try:
        with isolated_rng(0):
            tried = copy.deepcopy(strategy)
            messages = tried.configure_train(1, to_record(weights), ConfigRecord(), grid)
            arrays, _ = tried.aggregate_train(1, grid.send_and_receive(messages))
    except Exception:  # noqa: BLE001 - whatever a user's code may raise
        _log.info("a made-up round of the strategy failed", exc_info=True)
        return None
    return tried, arrays


class _Unchanged:
    """Stands in for a pool: every client returns the weights that it was sent."""

    def train(
        self,
        weights: Weights,
        _instruction: Instruction,
        cohort: Sequence[int],
        _execution: ExecutionPlan,
        _reduce: bool,
    ) -> list[Reply]:
        return [Reply([Update((client,), weights, 1, 0.0, 1, 1, 1) for client in cohort])]
