"""Convolutional network for images."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from torch import nn

from heliotrope.errors import ConfigError
from heliotrope.models.layers.augment import SeededAugment
from heliotrope.models.layers.blocks import ChannelsLast, check_sizes, dense_head, initialise
from heliotrope.models.layers.blocks import activation as activation_layer
from heliotrope.models.layers.inputs import other_model
from heliotrope.tasks import Task

__all__ = ["cnn"]


def cnn(
    task: Task,
    *,
    channels: Sequence[int] = (32, 64),
    kernel_size: int = 5,
    hidden: Sequence[int] = (512,),
    activation: str = "relu",
    dropout: float = 0.0,
    flip: bool = False,
    shift: int = 0,
) -> nn.Module:
    """Convolutions over [B, C, H, W], each halving H and W, then dense layers to [B, num_outputs].

    `channels: [32, 64], kernel_size: 5, hidden: [512]` on 28x28 is the FedAvg paper's CNN
    (1,663,370 parameters).

    Parameters
    ----------
    channels
        Filters of each convolution, which activation and 2x2 max-pooling follow.
    kernel_size
        Height and width of the filters: odd.
    hidden
        Units of each dense layer before the last.
    activation
        After each convolution and hidden layer: relu, gelu or tanh.
    dropout
        The share of each hidden layer's units that is dropped in training.
    flip
        Augmentation: mirror every other training image, left to right.
    shift
        Augmentation: move each training image by up to so many pixels.

    Raises
    ------
    ConfigError
        If the input is no image or too small for the number of poolings, or a key is out of its
        range.
    """
    _check(task, channels, kernel_size, shift)
    layers: list[nn.Module] = []
    depth, height, width = task.input_shape
    for filters in channels:
        layers += [
            nn.Conv2d(depth, filters, kernel_size, padding=kernel_size // 2),
            activation_layer(activation),
            nn.MaxPool2d(2),
        ]
        depth, height, width = filters, height // 2, width // 2
    inputs = depth * height * width
    head = dense_head(inputs, hidden, task.num_outputs, activation, dropout)
    numbered = {str(n): layer for n, layer in enumerate([*layers, nn.Flatten(), *head])}
    augment = SeededAugment(flip=flip, shift=shift) if flip or shift else None
    first: dict[str, nn.Module] = {} if augment is None else {"augment": augment}
    first["format"] = ChannelsLast()
    model = nn.Sequential(OrderedDict(first | numbered))  # weights have the same names with all
    initialise(model)
    return model


def _check(task: Task, channels: Sequence[int], kernel_size: int, shift: int) -> None:
    """Raise `ConfigError` if the input is no image or too small, or a key is out of its range."""
    example = task.facts.example
    if len(task.inputs) > 1 or len(task.input_shape) != 3:
        raise ConfigError(
            f"model=cnn takes images [channels, height, width], but data={task.facts.name} gives "
            f"{', '.join(f'{n} {list(example[n].shape[1:])}' for n in task.inputs)}. "
            f"{other_model(task)}"
        )
    check_sizes("model.channels", channels)
    if kernel_size < 1 or kernel_size % 2 == 0:
        raise ConfigError(f"model.kernel_size={kernel_size} must be odd, such as 3 or 5.")
    _, height, width = task.input_shape
    if min(height, width) < 2 ** len(channels):
        raise ConfigError(
            f"model.channels={list(channels)} halves the image {len(channels)} times, but "
            f"data={task.facts.name} is only {height}x{width}. Use fewer channels entries."
        )
    if not 0 <= shift < min(height, width):
        raise ConfigError(
            f"model.shift={shift} must be at least 0 and less than the size of an image of "
            f"data={task.facts.name}, {height}x{width}."
        )
