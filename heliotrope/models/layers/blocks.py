"""Pieces that several model families use."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from heliotrope.errors import ConfigError, closest
from heliotrope.models.layers.dropout import SeededDropout, VariationalDropout

__all__ = [
    "ChannelsLast",
    "activation",
    "check_dropout",
    "check_size",
    "check_sizes",
    "dense_head",
    "dropout_layer",
    "initialise",
]

_ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "gelu": nn.GELU,
    "tanh": nn.Tanh,
}


def initialise(model: nn.Module) -> None:
    """Draw the weights of dense and convolutional layers anew, from Glorot and Bengio (2010).

    Uniform in +-sqrt(6 / (fan in + fan out)), biases zero: what the published results of these
    small networks start from. torch's own default has a third of the variance or less, and
    ends mnist_mlp 0.1 to 0.2 points of accuracy lower.
    """
    for layer in model.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d):
            nn.init.xavier_uniform_(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


class ChannelsLast(nn.Module):
    """Turns images [B, C, H, W] in memory, where nothing is trained: the values are the same.

    Pooling on a CPU is up to ten times faster so, and the FedAvg CNN is evaluated 1.3 to 2 times
    faster. Training goes without, since `vmap` cannot turn.
    """

    def forward(self, images: Tensor) -> Tensor:
        """Return the same images; of one channel too, which `contiguous` would leave as it is."""
        if self.training or torch.is_grad_enabled():
            return images
        return torch.empty_like(images, memory_format=torch.channels_last).copy_(images)


def activation(name: str) -> nn.Module:
    """Return the activation called `name`; `ConfigError` lists the choices."""
    if name not in _ACTIVATIONS:
        raise ConfigError(
            f"model.activation={name} is not one of {', '.join(_ACTIVATIONS)}."
            f"{closest(name, _ACTIVATIONS)}"
        )
    return _ACTIVATIONS[name]()


def check_size(key: str, size: int) -> None:
    """Refuse a size below one."""
    if size < 1:
        raise ConfigError(f"{key}={size} must be at least 1.")


def check_sizes(key: str, sizes: Sequence[int]) -> None:
    """Refuse a list of layer sizes with an entry below one."""
    if any(size < 1 for size in sizes):
        raise ConfigError(f"{key}={list(sizes)} must hold sizes of at least 1.")


def check_dropout(p: float) -> None:
    """Refuse a dropout probability outside [0, 1)."""
    if not 0.0 <= p < 1.0:
        raise ConfigError(f"model.dropout={p} must lie in [0, 1).")


def dropout_layer(p: float, *, variational: bool = False) -> nn.Module:
    """Return a dropout that is drawn from seeds, or nothing to do if `p` is 0."""
    if p == 0.0:
        return nn.Identity()
    return VariationalDropout(p) if variational else SeededDropout(p)


def dense_head(
    inputs: int, hidden: Sequence[int], outputs: int, act: str, dropout: float
) -> Iterator[nn.Module]:
    """Yield dense layers `inputs -> *hidden -> outputs`, each hidden one with its activation.

    `act` names that; `dropout` is the share of a hidden layer's units dropped in training. Raises
    `ConfigError` naming the key of a model whose value is out of range.
    """
    check_sizes("model.hidden", hidden)
    check_dropout(dropout)
    for size in hidden:
        yield nn.Linear(inputs, size)
        yield activation(act)
        if dropout > 0.0:
            yield SeededDropout(dropout)
        inputs = size
    yield nn.Linear(inputs, outputs)
