"""The one evaluation, divided among the ranks: metrics are sums, so the result is exact."""

from __future__ import annotations

from functools import partial

import torch
from torch import nn

from heliotrope.data import Dataset, Examples
from heliotrope.evaluation import evaluate, evaluating
from heliotrope.metrics import Metrics
from heliotrope.tasks import Task

from ..communication.exchange import gathered_rows
from ..communication.process_group import sum_over_ranks
from ..strategies.engine import Engine
from ..topology import Topology
from .example_order import rank_slice

__all__ = ["evaluate_by_ranks", "evaluate_splits"]


def evaluate_splits(
    engine: Engine,
    task: Task,
    dataset: Dataset,
    batch_size: int,
    topology: Topology,
    device: torch.device,
) -> dict[str, Metrics]:
    """Return the metrics of what `engine` exports on each split that has examples; all call it."""
    splits = {"validation": dataset.validation, "test": dataset.test}
    with engine.evaluating() as model:
        return {
            name: evaluate_by_ranks(
                model, task, split, batch_size, topology, device, engine.passes_exchange
            )
            for name, split in splits.items()
            if len(split)
        }


def evaluate_by_ranks(
    model: nn.Module,
    task: Task,
    split: Examples,
    batch_size: int,
    topology: Topology,
    device: torch.device,
    in_step: bool = False,
) -> Metrics:
    """Return the metrics of `model` on all of `split`, the same on every rank.

    Each rank evaluates a part, in batches of `batch_size`; all must call it. Where losses depend
    on all examples of a batch, the outputs of all ranks are brought together. With `in_step`, for
    a model whose passes exchange weights, all ranks make the same number of passes.
    """
    mine = split.subset(rank_slice(len(split), topology))
    if in_step:
        most = -(-len(split) // topology.world_size)  # examples of any rank
        missing = _passes(most, batch_size, task) - _passes(len(mine), batch_size, task)
        _pass_without_examples(model, task, missing, device)
    gather = partial(gathered_rows, topology=topology)
    part = evaluate(model, task, mine, batch_size, gather=gather)
    total = sum_over_ranks(torch.from_numpy(part.to_vector()), topology, device)
    return task.metrics.from_vector(total.numpy())


def _passes(examples: int, batch_size: int, task: Task) -> int:
    """Return how many passes `evaluate` makes; a joint task's outputs are never none."""
    return max(int(task.joint), -(-examples // batch_size))


def _pass_without_examples(model: nn.Module, task: Task, count: int, device: torch.device) -> None:
    """Make `count` passes of which nothing is measured, on one example of zeros."""
    zeros = {name: value.to(device) for name, value in task.facts.example.items()}
    with evaluating(model):
        for _ in range(count):
            task.call(model, zeros)
