"""Logistic regression, the baseline of every table; of a number to be predicted, a linear one."""

from __future__ import annotations

from torch import nn

from heliotrope.models.mlp import dense
from heliotrope.tasks import Task

__all__ = ["logistic"]


def logistic(task: Task) -> nn.Module:
    """One linear layer on numbers and one-hot categories, [B, num_outputs] logits.

    Raises `ConfigError` if an input is neither numbers nor categories.
    """
    return dense(task, "logistic", [], "relu", dropout=0.0, embedding=0)
