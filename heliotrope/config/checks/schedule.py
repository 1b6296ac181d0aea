"""Checks of a learning-rate schedule."""

from __future__ import annotations

from heliotrope import registry
from heliotrope.config.checks.values import at_least, one_of, within
from heliotrope.config.horizon import Horizon, check_horizon
from heliotrope.config.schedule import Schedule
from heliotrope.errors import ConfigError

__all__ = ["check_schedule"]


def check_schedule(schedule: Schedule, horizon: Horizon) -> None:
    """Check a schedule by itself; whether it fits the run may depend on the data.

    Raises `ConfigError` naming key, value and remedy.
    """
    mode, unit, shape = schedule.mode, schedule.unit, schedule.shape
    one_of(f"{mode}.lr_schedule", shape, tuple(registry.names("schedule")))
    at_least(f"{mode}.lr_warmup_{unit}", schedule.warmup, 0)
    at_least(f"{mode}.lr_decay_{unit}", schedule.decay_every, 1)
    within(f"{mode}.lr_decay_factor", schedule.decay_factor, 0, 1, open_low=True)
    if schedule.decays and schedule.decay_every is None:
        raise ConfigError(
            f"{mode}.lr_schedule={shape} needs {mode}.lr_decay_{unit}, the number of {unit} "
            "between two decays. Set it."
        )
    if not schedule.decays and schedule.decay_every is not None:
        raise ConfigError(
            f"{mode}.lr_decay_{unit}={schedule.decay_every} has no effect with "
            f"{mode}.lr_schedule={shape}. Set {mode}.lr_schedule=step."
        )
    if shape == "one_cycle" and schedule.warmup:
        raise ConfigError(
            f"{mode}.lr_warmup_{unit}={schedule.warmup} has no place in "
            f"{mode}.lr_schedule=one_cycle, which rises by itself. Set {mode}.lr_warmup_{unit}=0."
        )
    check_horizon(horizon)
