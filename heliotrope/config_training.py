"""Schema of what training minimises, and when it ends."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["EarlyStoppingConfig", "LossConfig"]


@dataclass
class LossConfig:
    """The training loss: smoothed labels, plus l1 ||w||_1 and (l2/2) ||w||^2 of all weights.

    Evaluation always gives the plain loss.
    """

    label_smoothing: float = 0.0
    l1: float = 0.0
    l2: float = 0.0


@dataclass
class EarlyStoppingConfig:
    """Ends a run whose `metric` has not improved in `patience` evaluations. Off while null."""

    metric: str | None = None
    patience: int = 3
    min_delta: float = 0.0
    mode: str = "auto"
