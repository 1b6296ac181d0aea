"""A client's loss at the global weights, before it trains: what q-FedAvg weighs clients by."""

from __future__ import annotations

import torch

from ..updates import Instruction, Weights
from .context import TrainingContext
from .time_limit import UNLIMITED, Limit

__all__ = ["start_loss"]


def start_loss(
    context: TrainingContext,
    weights: Weights,
    instruction: Instruction,
    client: int,
    limit: Limit = UNLIMITED,
) -> float:
    """Return the training loss per unit of weight of a client's examples, without dropout.

    Of the data alone: neither penalties on weights nor a proximal term are in it.
    """
    model, train = context.fresh_model(weights, instruction.states, client).eval(), context.train
    mine = torch.from_numpy(context.population.train_indices(client))
    task, total = context.task, 0.0
    outputs = []  # of a joint task, whose losses are of all examples of the client
    with torch.inference_mode():
        for batch in torch.split(mine, context.evaluation_batch_size):
            limit.check()
            chosen = train.take(batch)
            outputs.append(task.call(model, chosen))
            if not task.joint:
                losses = task.losses(outputs.pop(), chosen)
                total += float(losses.sum(dtype=torch.float64))
        if outputs:
            losses = task.losses(torch.cat(outputs), train.take(mine))
            total += float(losses.sum(dtype=torch.float64))
    return total / max(1, *context.weights_of([client]))
