"""Schema of what training minimises, when it ends, and who else is told of it."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["DilocoConfig", "EarlyStoppingConfig", "LossConfig", "TrackingConfig"]


@dataclass
class LossConfig:
    """The training loss: smoothed labels, plus l1 ||w||_1 and (l2/2) ||w||^2 of all weights.

    Evaluation always gives the plain loss.
    """

    label_smoothing: float = 0.0
    l1: float = 0.0
    l2: float = 0.0


@dataclass
class DilocoConfig:
    """How workers train by themselves: of `distributed.strategy` local_sgd and diloco.

    Every `local_steps` steps they exchange how far they went, as `exchange` says. With diloco,
    SGD with the other values takes the mean for its gradient; local_sgd moves to the mean.
    """

    local_steps: int = 32
    exchange: str = "fp32"
    lr: float = 0.7
    momentum: float = 0.9
    nesterov: bool = True


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
