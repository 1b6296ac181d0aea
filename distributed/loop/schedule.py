"""The learning rate of each step of a data-parallel run."""

from __future__ import annotations

from torch.optim import Optimizer

from heliotrope.config import DistributedConfig, Run
from heliotrope.config.checks.schedule import check_factors
from heliotrope.config.schedule import schedule_of
from heliotrope.errors import ConfigError
from heliotrope.training.optimizers import GroupRates

__all__ = ["LearningRate", "check_schedule"]


def check_schedule(cfg: DistributedConfig, examples: int) -> None:
    """Raise `ConfigError` if a run over `examples` ends before its schedule has begun.

    Or if the schedule is a plug-in's, and gives what no rate can be made of.
    """
    each = -(-examples // cfg.batch_size)
    key, epochs = "epochs", cfg.epochs
    if cfg.lr_horizon is not None:
        key, epochs = "lr_horizon", cfg.lr_horizon
    steps = each * epochs
    for name, needed in (
        ("lr_warmup_steps", cfg.lr_warmup_steps),
        ("lr_decay_steps", cfg.lr_decay_steps or 0),
    ):
        if needed >= steps:
            raise ConfigError(
                f"distributed.{name}={needed} is longer than the run: distributed.{key}="
                f"{epochs} of {each} step(s) end after step {steps - 1}, counted from 0. Set "
                f"distributed.{name} below {steps}, or distributed.{key} higher."
            )
    check_factors(schedule_of(cfg), steps, each * cfg.epochs)


class LearningRate:
    """Sets the learning rate of `optimizer` to that of a step, as the keys of `run` say.

    `optimizer` has the rates with which it was made, those of no checkpoint. `epoch_steps` is the
    number of steps of an epoch.
    """

    def __init__(self, run: Run, optimizer: Optimizer, epoch_steps: int) -> None:
        cfg = run.distributed
        self._rates = GroupRates(optimizer)
        self._schedule = schedule_of(cfg)
        self._steps = (cfg.lr_horizon or cfg.epochs) * epoch_steps

    def set(self, step: int) -> None:
        """Set the rate of the `step`-th step of the run, counted from 0."""
        self._rates.multiply(self._schedule.factor(step, self._steps))
