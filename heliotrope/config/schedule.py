"""Shapes of the learning rate over a run: functions of the step alone, so nothing is saved.

A step is an optimizer step of a data-parallel run, or a round of a federated one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from heliotrope import registry
from heliotrope.config.distributed import DistributedConfig
from heliotrope.config.federated import FederatedConfig
from heliotrope.config.run import Mode

__all__ = ["Schedule", "constant", "cosine", "linear", "one_cycle", "schedule_of", "step"]

# Of one_cycle: the part that rises, and the rates at its start and its end.
_RISE, _LOW, _END = 0.3, 1 / 25, 1 / 250_000


@dataclass(frozen=True)
class Schedule:
    """A shape and its numbers, as the keys of `mode` give them, in `unit`s: steps or rounds.

    Parameters
    ----------
    mode, unit
        For messages, and which keys they name.
    shape
        The name of a schedule in the registry.
    warmup
        Units in which the rate rises evenly to the whole one.
    decay_every, decay_factor
        Units between two decays, and what each multiplies the rate with; of a shape that has them.
    """

    mode: Mode
    unit: str
    shape: str
    warmup: int
    decay_every: int | None
    decay_factor: float

    @property
    def decays(self) -> bool:
        """Whether its shape is one that goes down every `decay_every` steps."""
        return "decay_every" in registry.entry("schedule", self.shape).signature.given

    @property
    def changes(self) -> bool:
        """Whether the rate is ever another than that of the config."""
        return self.shape != "constant" or self.warmup > 0

    def factor(self, step: int, steps: int) -> float:
        """Return what the learning rate is multiplied with at `step` (from 0) of `steps`.

        `steps` are those of the schedule, whose last rate stays for a run that is longer. Warm-up
        rises evenly to 1; the rest of the schedule follows it.
        """
        if step < self.warmup:
            return (step + 1) / (self.warmup + 1)
        if not self.decays:
            step = min(step, steps - 1)
        return float(self.value(step, steps))

    def value(self, step: int, steps: int) -> Any:
        """Return what its function gives at a `step` after the warm-up and below `steps`."""
        step, steps = step - self.warmup, steps - self.warmup
        return registry.entry("schedule", self.shape).build(
            {},
            done=step / steps,
            step=step,
            decay_every=self.decay_every,
            decay_factor=self.decay_factor,
        )


def schedule_of(cfg: DistributedConfig | FederatedConfig) -> Schedule:
    """Return the schedule that a mode's keys describe."""
    if isinstance(cfg, FederatedConfig):
        return Schedule(
            mode="federated",
            unit="rounds",
            shape=cfg.lr_schedule,
            warmup=cfg.lr_warmup_rounds,
            decay_every=cfg.lr_decay_rounds,
            decay_factor=cfg.lr_decay_factor,
        )
    return Schedule(
        mode="distributed",
        unit="steps",
        shape=cfg.lr_schedule,
        warmup=cfg.lr_warmup_steps,
        decay_every=cfg.lr_decay_steps,
        decay_factor=cfg.lr_decay_factor,
    )


# A shape is a function of how much of the schedule is `done`, in [0, 1), or of the `step` after
# warm-up, counted from 0, and returns what the learning rate is multiplied with.


def constant() -> float:
    """Rate of the configuration, at all steps."""
    return 1.0


def linear(done: float) -> float:
    """Evenly down to 0 at the end."""
    return 1.0 - done


def cosine(done: float) -> float:
    """Down to 0 at the end along half a cosine wave (Loshchilov and Hutter 2017)."""
    return 0.5 * (1.0 + math.cos(math.pi * done))


def step(step: int, decay_every: int, decay_factor: float) -> float:
    """Multiplied with a factor every so many steps or rounds."""
    factor: float = decay_factor ** (step // decay_every)
    return factor


def one_cycle(done: float) -> float:
    """Up for a part of the run, then down further than it began (Smith and Topin 2018).

    The numbers are those of `torch.optim.lr_scheduler.OneCycleLR`; momentum stays.
    """
    if done < _RISE:
        return _eased(_LOW, 1.0, done / _RISE)
    return _eased(1.0, _END, (done - _RISE) / (1.0 - _RISE))


def _eased(start: float, end: float, done: float) -> float:
    """Return the point of half a cosine wave from `start` to `end`."""
    return end + (start - end) * 0.5 * (1.0 + math.cos(math.pi * done))
