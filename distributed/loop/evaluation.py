"""The one evaluation, divided among the ranks: metrics are sums, so the result is exact."""

from __future__ import annotations

from functools import partial

import torch
from torch import nn

from heliotrope.data import Examples
from heliotrope.evaluation import evaluate
from heliotrope.metrics import Metrics
from heliotrope.tasks import Task

from ..communication.exchange import gathered_rows
from ..communication.process_group import sum_over_ranks
from ..topology import Topology
from .example_order import rank_slice

__all__ = ["evaluate_by_ranks"]


def evaluate_by_ranks(
    model: nn.Module,
    task: Task,
    split: Examples,
    batch_size: int,
    topology: Topology,
    device: torch.device,
) -> Metrics:
    """Return the metrics of `model` on all of `split`, the same on every rank.

    Each rank evaluates a part, in batches of `batch_size`; all must call it. Where losses depend
    on all examples of a batch, the outputs of all ranks are brought together.
    """
    mine = split.subset(rank_slice(len(split), topology))
    gather = partial(gathered_rows, topology=topology)
    part = evaluate(model, task, mine, batch_size, gather=gather)
    total = sum_over_ranks(torch.from_numpy(part.to_vector()), topology, device)
    return task.metrics.from_vector(total.numpy())
