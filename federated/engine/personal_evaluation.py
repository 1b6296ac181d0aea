"""Evaluation where a part of the weights is client state: each client evaluates what is its own."""

from __future__ import annotations

import torch

from heliotrope.evaluation import evaluate
from heliotrope.metrics import Metrics
from heliotrope.seeding import isolated_rng, seed

from ..client_state import ClientStates
from ..updates import Weights
from .context import TrainingContext

__all__ = ["evaluate_splits_of"]


def evaluate_splits_of(
    context: TrainingContext, weights: Weights, states: ClientStates
) -> dict[str, Metrics]:
    """Return the metrics of the clients in `states` on their own examples of the central splits.

    By split; the sums of disjoint clients add up.
    """
    model, size = context.fresh_model(weights), context.evaluation_batch_size
    own = model.state_dict()
    totals = {name: context.task.metrics.zero() for name in context.central}
    with isolated_rng(seed(context.run_seed, "evaluation")):
        for client in states.clients:
            for name, value in states.of(client).items():
                own[name].copy_(value)
            for name, split in context.central.items():
                rows = torch.from_numpy(context.owners[name][client])
                if len(rows):
                    measured = evaluate(model, context.task, split, size, rows)
                    totals[name] = totals[name] + measured
    return totals
