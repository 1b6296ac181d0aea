"""Schema of what a training step minimises."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["LossConfig"]


@dataclass
class LossConfig:
    """The training loss: smoothed labels, plus l1 ||w||_1 and (l2/2) ||w||^2 of all weights.

    Evaluation always gives the plain loss.
    """

    label_smoothing: float = 0.0
    l1: float = 0.0
    l2: float = 0.0
