"""Multi-layer perceptron."""

from __future__ import annotations

from math import prod

from torch import nn

from heliotrope.config import MlpConfig
from heliotrope.models.layers import dense_head
from heliotrope.tasks import Task

__all__ = ["build_mlp"]


def build_mlp(cfg: MlpConfig, task: Task) -> nn.Module:
    """Flatten [B, *input_shape], then dense layers to [B, num_outputs].

    `hidden: [200, 200]` on 784 inputs and 10 classes is the FedAvg paper's 2NN
    (199,210 parameters).
    """
    return nn.Sequential(
        nn.Flatten(),
        *dense_head(
            prod(task.input_shape), cfg.hidden, task.num_outputs, cfg.activation, cfg.dropout
        ),
    )
