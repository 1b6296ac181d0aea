"""Checks of a learning-rate schedule."""

from __future__ import annotations

import math

from heliotrope import registry
from heliotrope.config.checks.values import at_least, one_of, within
from heliotrope.config.horizon import Horizon, check_horizon
from heliotrope.config.schedule import Schedule
from heliotrope.errors import ConfigError
from heliotrope.plugin_loading import raised

__all__ = ["check_factors", "check_schedule"]

_TRIED = 1000  # steps, evenly over the run: each takes a microsecond


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


def check_factors(schedule: Schedule, steps: int, total: int) -> None:
    """Raise `ConfigError` if a plug-in's schedule of `steps` gives what no rate can be made of.

    It is asked at some steps of the run, which has `total`.
    """
    entry = registry.entry("schedule", schedule.shape)
    if entry.built_in:
        return
    what = f"{schedule.mode}.lr_schedule={entry.name} ({entry.where})"
    first, last = schedule.warmup, min(steps, total) - 1
    for step in sorted({first + (last - first) * n // _TRIED for n in range(_TRIED + 1)}):
        where = f"at step {step} of {steps}, counted from 0,"
        try:
            value = schedule.value(step, steps)
        except Exception as error:
            raise ConfigError(f"{what} {where} raises {raised(error)}") from error
        if not _multiplies(value):
            raise ConfigError(
                f"{what} {where} gives {value!r}, with which the learning rate is to be "
                "multiplied. Return a finite number of at least 0."
            )


def _multiplies(value: object) -> bool:
    """Return whether a value is a finite number of at least 0, also one of torch or NumPy."""
    try:
        number = float("nan" if isinstance(value, str) else value)  # type: ignore[arg-type]
    except (TypeError, ValueError, RuntimeError):
        return False
    return math.isfinite(number) and number >= 0
