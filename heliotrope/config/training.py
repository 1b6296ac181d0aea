"""Schema of what training minimises, what it is to reach, and who else is told of it."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["LossConfig", "TargetConfig", "TrackingConfig"]


@dataclass
class LossConfig:
    """The training loss: smoothed labels, plus l1 ||w||_1 and (l2/2) ||w||^2 of all weights.

    Evaluation always gives the plain loss.
    """

    label_smoothing: float = 0.0
    l1: float = 0.0
    l2: float = 0.0


@dataclass
class TargetConfig:
    """A metric to reach, and whether to stop there. Off while `metric` is null."""

    metric: str | None = None
    value: float | None = None
    stop: bool = True


@dataclass
class TrackingConfig:
    """Trackers beside metrics.jsonl; `mlflow` is a tracking URI, such as sqlite:///mlflow.db."""

    tensorboard: bool = False
    mlflow: str | None = None
