"""Multi-layer perceptron."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from heliotrope.models.layers.blocks import dense_head, initialise
from heliotrope.models.layers.columns import Columns, OnColumns
from heliotrope.tasks import Task

__all__ = ["dense", "mlp"]


def mlp(
    task: Task,
    *,
    hidden: list[int] = [128],  # noqa: B006 - it is only read
    activation: str = "relu",
    dropout: float = 0.0,
    embedding: int = 0,
) -> nn.Module:
    """Dense layers on the flattened inputs, [B, num_outputs].

    `hidden: [200, 200]` on 784 inputs and 10 classes is the FedAvg paper's 2NN
    (199,210 parameters).

    Parameters
    ----------
    hidden
        Units of each hidden layer.
    activation
        Of the hidden layers: relu, gelu or tanh.
    dropout
        The share of units that a hidden layer drops in training.
    embedding
        Length of the learned vector of each category; 0 for a one-hot encoding.

    Raises
    ------
    ConfigError
        If an input is neither numbers nor categories, or a key is out of its range.
    """
    return dense(task, "mlp", hidden, activation, dropout, embedding)


def dense(
    task: Task, model: str, hidden: Sequence[int], activation: str, dropout: float, embedding: int
) -> nn.Module:
    """Return dense layers on all inputs of `task`, [B, num_outputs].

    `model` is their name, for messages; the others are keys of `mlp`. Raises `ConfigError` for
    inputs that it cannot take, or a key that is out of range.
    """
    columns = Columns.of(task, model, embedding)
    layers = dense_head(columns.width, hidden, task.num_outputs, activation, dropout)
    plain = len(task.inputs) == 1 and columns.is_plain
    network = nn.Sequential(*([nn.Flatten()] if plain else []), *layers)
    initialise(network)
    columns.forget_unseen(next(layer for layer in network if isinstance(layer, nn.Linear)))
    return network if plain else OnColumns(columns, network)
