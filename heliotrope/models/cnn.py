"""Convolutional network for images."""

from __future__ import annotations

from collections import OrderedDict

from torch import nn

from heliotrope.config import CnnConfig
from heliotrope.errors import ConfigError
from heliotrope.models.augment import SeededAugment
from heliotrope.models.layers import ChannelsLast, activation, check_sizes, dense_head
from heliotrope.tasks import Task

__all__ = ["build_cnn"]


def build_cnn(cfg: CnnConfig, task: Task) -> nn.Module:
    """Convolutions over [B, C, H, W], each halving H and W, then dense layers.

    `channels: [32, 64], kernel_size: 5, hidden: [512]` on 28x28 is the FedAvg paper's CNN
    (1,663,370 parameters).

    Raises `ConfigError` if the input is no image or too small for the number of poolings.
    """
    if len(task.input_shape) != 3:
        raise ConfigError(
            f"model=cnn takes images [channels, height, width], but data={task.data_name} "
            f"gives inputs of shape {list(task.input_shape)}. Set model=mlp."
        )
    check_sizes("model.channels", cfg.channels)
    if cfg.kernel_size < 1 or cfg.kernel_size % 2 == 0:
        raise ConfigError(f"model.kernel_size={cfg.kernel_size} must be odd, such as 3 or 5.")
    channels, height, width = task.input_shape
    if min(height, width) < 2 ** len(cfg.channels):
        raise ConfigError(
            f"model.channels={cfg.channels} halves the image {len(cfg.channels)} times, but "
            f"data={task.data_name} is only {height}x{width}. Use fewer channels entries."
        )
    if not 0 <= cfg.shift < min(height, width):
        raise ConfigError(
            f"model.shift={cfg.shift} must be at least 0 and less than the size of an image of "
            f"data={task.data_name}, {height}x{width}."
        )
    augment = SeededAugment(flip=cfg.flip, shift=cfg.shift) if cfg.flip or cfg.shift else None
    layers: list[nn.Module] = []
    for out_channels in cfg.channels:
        layers += [
            nn.Conv2d(channels, out_channels, cfg.kernel_size, padding=cfg.kernel_size // 2),
            activation(cfg.activation),
            nn.MaxPool2d(2),
        ]
        channels, height, width = out_channels, height // 2, width // 2
    head = dense_head(
        channels * height * width, cfg.hidden, task.num_outputs, cfg.activation, cfg.dropout
    )
    numbered = {str(n): layer for n, layer in enumerate([*layers, nn.Flatten(), *head])}
    first: dict[str, nn.Module] = {} if augment is None else {"augment": augment}
    first["format"] = ChannelsLast()
    return nn.Sequential(OrderedDict(first | numbered))  # weights have the same names with all
