"""Activation checkpointing: less memory for a step, a second forward pass in the backward one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from itertools import pairwise
from math import isqrt
from typing import Any

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from heliotrope.errors import ConfigError
from heliotrope.models.layers.seeded import seeded_layers
from heliotrope.training.buffers import unchanged_buffers

__all__ = ["recompute"]


def recompute(model: nn.Module) -> None:
    """Let `model` keep only what enters each of its parts, while training.

    The parts are the blocks of its `nn.ModuleList`s; of an `nn.Sequential`, which is the model or,
    where there are no lists, one of its children, about the square root of its layers each, which
    keeps least (Chen et al. 2016). Names of weights stay as they are. Raises `ConfigError` if the
    model is made of none of these.
    """
    if isinstance(model, nn.Sequential):
        _recompute_sequence(model)
        return
    blocks = [b for list_ in model.modules() if isinstance(list_, nn.ModuleList) for b in list_]
    sequences = [child for child in model.children() if isinstance(child, nn.Sequential)]
    if not blocks and not sequences:
        raise ConfigError(
            f"distributed.activation_checkpointing=true does not know the parts of a "
            f"{type(model).__name__}. Set distributed.activation_checkpointing=false."
        )
    for block in blocks:
        block.forward = partial(checkpoint, block.forward, **_options(block))
    for sequence in sequences if not blocks else []:
        _recompute_sequence(sequence)


def _recompute_sequence(model: nn.Sequential) -> None:
    layers = list(model)
    parts = isqrt(len(layers) - 1) + 1
    size = max(1, len(layers) // parts)
    cuts = [*(index * size for index in range(parts)), len(layers)]
    *kept, last = (
        nn.Sequential(*layers[a:b]) for a, b in pairwise(cuts)
    )  # what the last keeps is needed at once

    def forward(inputs: Tensor) -> Tensor:
        for block in kept:
            inputs = checkpoint(block, inputs, **_options(block))
        outputs: Tensor = last(inputs)
        return outputs

    model.forward = forward  # type: ignore[method-assign]


def _options(block: nn.Module) -> dict[str, Any]:
    """Return how a block is passed again: with the same draws, and without a trace."""
    options: dict[str, Any] = {"use_reentrant": False}
    if any(True for _ in block.buffers()):  # seeded layers have some too
        options["context_fn"] = partial(_passes, block)
    return options


def _passes(
    block: nn.Module,
) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """Return the contexts of the first pass and of the second.

    The second draws as the first did, and changes copies of the buffers: BatchNorm's statistics
    are of one pass a step.
    """
    layers = seeded_layers(block)
    calls: list[int] = []

    @contextmanager
    def first() -> Iterator[None]:
        calls[:] = [layer.calls for layer in layers]
        yield

    @contextmanager
    def second() -> Iterator[None]:
        present = [layer.calls for layer in layers]
        for layer, count in zip(layers, calls, strict=True):
            layer.calls = count
        try:
            with unchanged_buffers(block):
                yield
        finally:
            for layer, count in zip(layers, present, strict=True):
                layer.calls = count

    return first(), second()
