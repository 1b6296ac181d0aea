"""Schema of what training minimises, when it ends, and who else is told of it."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["EarlyStoppingConfig", "LossConfig", "TrackingConfig"]


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


@dataclass
class TrackingConfig:
    """Trackers beside metrics.jsonl; `mlflow` is a tracking URI, such as sqlite:///mlflow.db."""

    tensorboard: bool = False
    mlflow: str | None = None
