"""What the model of a data-parallel run gives away of its canaries."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from heliotrope.audit.losses import losses_of
from heliotrope.config import Run
from heliotrope.data import Dataset
from heliotrope.data.canaries import with_canaries
from heliotrope.privacy.canaries import Canaries
from heliotrope.tasks import Task

__all__ = ["canary_scores"]


def canary_scores(
    run: Run, dataset: Dataset, model: nn.Module, task: Task
) -> tuple[Tensor, Canaries]:
    """Return a score of each canary, float64 [M], the higher the rather it took part; and its coin.

    It is the negative loss: nothing but training with it lets a model expect a random target.
    `dataset` is the run's, without canaries; `model` its last.
    """
    planted = with_canaries(dataset, run.audit.canaries, run.seed)
    assert planted.canaries is not None
    rows = torch.arange(len(dataset.train), len(planted.train))
    losses = losses_of(model, task, planted.train, rows, run.evaluation_batch_size)
    return -losses, planted.canaries
