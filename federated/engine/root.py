"""The server trains on examples of its own as if it were a client."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from heliotrope.config.groups import AttackConfig, PrivacyConfig
from heliotrope.data import Partition
from heliotrope.seeding import seed

from ..client_state import ClientStates
from ..population import Population
from ..updates import Instruction, Weights
from .client_updates import ClientUpdates
from .context import TrainingContext
from .sequential import train_client

__all__ = ["RootClient"]


class RootClient:
    """The server as a client of its own: the same recipe, on the examples at `rows`.

    Its draws are seeded apart from those of the clients. It attacks nobody, and no noise protects
    its examples: they are no client's.
    """

    def __init__(self, context: TrainingContext, rows: NDArray[np.int64]) -> None:
        run_seed = seed(context.run_seed, "root")
        alone = Partition(rows, np.array([0, len(rows)]))
        self._context = replace(
            context,
            population=Population(alone, 0.0, run_seed),
            federated=replace(
                context.federated, attack=AttackConfig("none"), privacy=PrivacyConfig("none")
            ),
            run_seed=run_seed,
        )
        self._finish = ClientUpdates.of(self._context)

    def train(
        self, weights: Weights, instruction: Instruction, state: Weights
    ) -> tuple[Weights, Weights]:
        """Return what it would send as a client, and what it keeps, [*shape] each.

        `state` is what it kept before, nothing at first. It computes with one thread, so that its
        sums are the same wherever the clients are trained.
        """
        states = ClientStates((0,), {n: value[None] for n, value in state.items()})
        order = replace(instruction, states=states if state else None)
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            stack = train_client(self._context, weights, order, 0)
            stack = self._finish(stack, weights, order, rounded=True)
        finally:
            torch.set_num_threads(threads)
        sent = {name: value[0].cpu() for name, value in stack.arrays.items()}
        return sent, {name: value[0].cpu() for name, value in stack.states.items()}
