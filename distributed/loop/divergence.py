"""Refusing to go on with a loss that is not finite."""

from __future__ import annotations

import math
from typing import Any

from heliotrope.config import Run
from heliotrope.errors import RunFailedError

__all__ = ["check_finite"]


def check_finite(run: Run, epoch: int, what: str, loss_sum: float) -> None:
    """Raise `RunFailedError` naming the epoch and what may be lowered if `loss_sum` is not finite.

    `what` names the loss. All ranks know the same sum, so that all raise.
    """
    if math.isfinite(loss_sum):
        return
    rate = run.optimizer.lr
    privacy: Any = run.distributed.privacy  # with the keys of its choice
    noisy = (
        f" or distributed.privacy.clip={privacy.clip:g}, which noise is in proportion to,"
        if privacy.name != "none"
        else ""
    )
    raise RunFailedError(
        f"The {what} is {loss_sum} in epoch {epoch}: training has diverged. Lower "
        f"optimizer.lr={rate:g}{noisy} and start again in another "
        "hydra.run.dir; the checkpoints here hold the epochs before."
    )
