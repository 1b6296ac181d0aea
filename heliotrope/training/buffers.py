"""Buffers of a model, such as BatchNorm's statistics, that some passes must leave as they are."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

__all__ = ["unchanged_buffers"]


@contextmanager
def unchanged_buffers(model: nn.Module) -> Iterator[None]:
    """Let passes inside the block change copies of the buffers of `model`.

    The buffers themselves are out of their reach, so that a backward pass may follow.
    """
    owners = [(module, name) for module in model.modules() for name in module._buffers]  # noqa: SLF001
    buffers = [module._buffers[name] for module, name in owners]  # noqa: SLF001
    for (module, name), buffer in zip(owners, buffers, strict=True):
        module._buffers[name] = None if buffer is None else buffer.clone()  # noqa: SLF001
    try:
        yield
    finally:
        for (module, name), buffer in zip(owners, buffers, strict=True):
            module._buffers[name] = buffer  # noqa: SLF001
