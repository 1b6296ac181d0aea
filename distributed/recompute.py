"""Activation checkpointing: less memory for a step, a second forward pass in the backward one."""

from __future__ import annotations

from functools import partial
from math import isqrt
from typing import Any

from torch import nn
from torch.utils.checkpoint import checkpoint, checkpoint_sequential

from heliotrope.errors import ConfigError

__all__ = ["recompute"]

# Dropout follows its own keys (heliotrope/models/dropout.py): no generator's state to keep.
_KEPT: dict[str, Any] = {"use_reentrant": False, "preserve_rng_state": False}


def recompute(model: nn.Module) -> None:
    """Let `model` keep only what enters each of its parts, while training.

    The parts are the blocks of its `nn.ModuleList`s, or of an `nn.Sequential` about the square
    root of its layers each, which keeps least (Chen et al. 2016). Names of weights stay as
    they are. Raises `ConfigError` if the model is made of neither.
    """
    if isinstance(model, nn.Sequential):
        parts = isqrt(len(model) - 1) + 1
        model.forward = partial(checkpoint_sequential, list(model), parts, **_KEPT)  # type: ignore[method-assign]
        return
    blocks = [b for list_ in model.modules() if isinstance(list_, nn.ModuleList) for b in list_]
    if not blocks:
        raise ConfigError(
            f"distributed.activation_checkpointing=true does not know the parts of a "
            f"{type(model).__name__}. Set distributed.activation_checkpointing=false."
        )
    for block in blocks:
        block.forward = partial(checkpoint, block.forward, **_KEPT)
