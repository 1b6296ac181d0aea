"""The length of a learning-rate schedule, which a resumed run may not change by accident."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from heliotrope import registry
from heliotrope.config.run import Mode, Run
from heliotrope.errors import ConfigError

__all__ = ["Horizon", "check_horizon", "horizon_of", "moved", "refuse_another_horizon"]


def _scales(schedule: str) -> bool:
    """Whether a schedule depends on the run's length."""
    return "done" in registry.entry("schedule", schedule).signature.given


@dataclass(frozen=True)
class Horizon:
    """How long the schedule of a mode is: `given` by its lr_horizon, or as long as the run.

    Parameters
    ----------
    mode
        `distributed` or `federated`, the group of the keys.
    unit
        The key of the run's length: `epochs` or `rounds`.
    schedule
        The value of lr_schedule.
    total
        The run's length.
    """

    mode: Mode
    unit: str
    schedule: str
    total: int
    given: int | None

    @property
    def length(self) -> int | None:
        """Epochs or rounds from the first step to the schedule's end; None if it has none."""
        if not _scales(self.schedule):
            return None
        return self.total if self.given is None else self.given


def horizon_of(run: Run, mode: Mode) -> Horizon:
    """Return the horizon of the run's schedule in `mode`."""
    if mode == "federated":
        rounds = run.federated
        return Horizon(mode, "rounds", rounds.lr_schedule, rounds.rounds, rounds.lr_horizon)
    cfg = run.distributed
    return Horizon(mode, "epochs", cfg.lr_schedule, cfg.epochs, cfg.lr_horizon)


def check_horizon(horizon: Horizon) -> None:
    """Raise `ConfigError` if a horizon is given that is below 1 or has no effect."""
    key, given = f"{horizon.mode}.lr_horizon", horizon.given
    if given is None:
        return
    if given < 1:
        raise ConfigError(f"{key}={given} must be at least 1.")
    if not _scales(horizon.schedule):
        scaled = list(filter(_scales, registry.names("schedule")))
        raise ConfigError(
            f"{key}={given} has no effect with {horizon.mode}.lr_schedule={horizon.schedule}, "
            f"which does not depend on the run's length. Leave it out, or choose "
            f"{', '.join(scaled[:-1])} or {scaled[-1]}."
        )


def refuse_another_horizon(before: Horizon, now: Horizon, directory: Path) -> None:
    """Raise `ConfigError` if resuming would stretch or shrink a schedule that nobody named.

    The rate would jump in the middle of the run, and its weights would be those of no
    uninterrupted run. Whoever gives lr_horizon says what is wanted.
    """
    if before.length in (None, now.length):
        return
    if now.given is not None:
        return
    key, unit = f"{now.mode}.lr_horizon", f"{now.mode}.{now.unit}"
    raise ConfigError(
        f"hydra.run.dir={directory} holds a run with {now.mode}.lr_schedule={before.schedule} "
        f"over {before.length} {now.unit}; with {unit}={now.total} the learning rate would jump. "
        f"Set {key}={before.length} to keep the schedule and its last rate from there on, "
        f"{key}={now.total} to stretch it, or {unit}={before.length}."
    )


def moved(before: Horizon, now: Horizon) -> str | None:
    """Return what to say of a schedule that the resumed run asks to be of another length."""
    if before.length in (None, now.length):
        return None
    return (
        f"the learning rate's schedule ends after {now.length} {now.unit}, no longer after "
        f"{before.length}: the weights will be those of no uninterrupted run"
    )
