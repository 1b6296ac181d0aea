"""What the layers of `stackable` share: the reason not to be stacked, the form of a dropout."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

__all__ = ["Dropout", "NotStackableError"]


class NotStackableError(Exception):
    """A layer cannot be computed for many clients at once; the message says why."""


class Dropout(Protocol):
    """As `torch.nn.functional.dropout`; the first dimension counts examples (times heads)."""

    def __call__(self, inputs: Tensor, /, p: float, training: bool) -> Tensor: ...
