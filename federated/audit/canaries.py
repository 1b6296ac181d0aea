"""What the model of a federated run gives away of its canary clients."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from heliotrope.config import Run
from heliotrope.data import Dataset
from heliotrope.privacy.canaries import Canaries
from heliotrope.tasks import Task

from ..engine.context import assemble, divide, prepared_for
from ..privacy.canaries import with_canary_clients

__all__ = ["canary_scores"]


def canary_scores(
    run: Run, dataset: Dataset, model: nn.Module, task: Task
) -> tuple[Tensor, Canaries]:
    """Return a score of each canary, float64 [M], the higher the rather it took part; and its coin.

    It is how far the run went along the canary's direction, from the weights it began with to those
    of `model`.
    """
    partition = divide(run, dataset)
    clients = with_canary_clients(partition, run.audit.canaries, run.seed)
    context = assemble(run, task, prepared_for(partition, dataset), clients)
    assert context.canaries is not None
    starts = context.global_weights
    went = torch.cat(
        [
            (parameter.detach().cpu().double() - starts[name].double()).reshape(-1)
            for name, parameter in model.named_parameters()
            if parameter.requires_grad
        ]
    )
    scores = [
        float(torch.from_numpy(context.canaries.direction(canary, len(went))) @ went)
        for canary in range(len(context.canaries.canaries))
    ]
    return torch.tensor(scores, dtype=torch.float64), context.canaries.canaries
