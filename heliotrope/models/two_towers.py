"""Pictures and names as vectors of one space, in which those that belong together are close."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from heliotrope.errors import ConfigError
from heliotrope.models.layers.blocks import ChannelsLast, check_size, check_sizes, initialise
from heliotrope.models.layers.tokens import MeanEmbedding, require_inputs
from heliotrope.tasks import Task

__all__ = ["two_towers"]

_MOST = 100.0  # by which similarities are multiplied, as Radford et al. (2021) limit it


def two_towers(
    task: Task,
    *,
    channels: list[int] = [32, 64, 128],  # noqa: B006 - it is only read
    kernel_size: int = 3,
    width: int = 64,
    temperature: float = 0.07,
) -> nn.Module:
    """Convolutions of an image, the mean of a text's word vectors: [B, 2, num_outputs].

    Row 0 of an example is its image's vector, row 1 its text's, of length 1 each; but the image's
    is divided by a temperature that is learned, so that the product of two rows is a logit.

    Source: Radford et al. (2021), Learning Transferable Visual Models From Natural Language
    Supervision, section 2.3.

    Parameters
    ----------
    channels
        Of each convolution, after which height and width are halved.
    kernel_size
        Of the convolutions.
    width
        Length of a word vector.
    temperature
        At the start of training.

    Raises
    ------
    ConfigError
        If the inputs are no images and texts, or a key is out of its range.
    """
    require_inputs(task, "two_towers", ("image", "tokens", "tokens_length"))
    check_sizes("model.channels", channels)
    check_size("model.width", width)
    if not channels:
        raise ConfigError("model.channels=[] leaves no convolution. Give one number or more.")
    if kernel_size < 1 or kernel_size % 2 == 0:
        raise ConfigError(f"model.kernel_size={kernel_size} must be odd, such as 3 or 5.")
    if not temperature >= 1 / _MOST:
        raise ConfigError(f"model.temperature={temperature} must be at least {1 / _MOST}.")
    info = task.facts.info
    depth, height, wide = info.image_shape
    if min(height, wide) < 2 ** len(channels):
        raise ConfigError(
            f"model.channels={channels} halves the image {len(channels)} times, but "
            f"data={task.facts.name} is only {height}x{wide}. Use fewer channels entries."
        )
    layers: list[nn.Module] = [ChannelsLast()]
    for out in channels:
        convolution = nn.Conv2d(depth, out, kernel_size, padding=kernel_size // 2)
        layers += [convolution, nn.ReLU(), nn.MaxPool2d(2)]
        depth = out
    image = nn.Sequential(*layers, _MeanOfPlaces(), nn.Linear(depth, task.num_outputs))
    text = nn.Linear(width, task.num_outputs)
    model = _TwoTowers(image, MeanEmbedding(len(info.vocabulary), width), text, temperature)
    initialise(model)
    return model


class _MeanOfPlaces(nn.Module):
    def forward(self, maps: Tensor) -> Tensor:
        """Return [B, C] of maps [B, C, H, W]."""
        return maps.mean(dim=(2, 3))


class _TwoTowers(nn.Module):
    def __init__(
        self, image: nn.Sequential, words: MeanEmbedding, text: nn.Linear, temperature: float
    ) -> None:
        super().__init__()
        self.image = image
        self.words = words
        self.text = text
        self.log_scale = nn.Parameter(torch.tensor(-math.log(temperature)))

    def forward(self, image: Tensor, tokens: Tensor, lengths: Tensor) -> Tensor:
        """Return the vectors, [B, 2, D], of images [B, C, H, W] and of texts, tokens [B, L]."""
        seen = functional.normalize(self.image(image), dim=1)
        read = functional.normalize(self.text(self.words(tokens, lengths)), dim=1)
        scale = self.log_scale.clamp(max=math.log(_MOST)).exp()
        return torch.stack([seen * scale, read], dim=1)
