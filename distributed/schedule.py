"""The learning rate over the run: a function of the step alone, so there is nothing to save."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

from torch.optim import Optimizer

from heliotrope.config import DistributedConfig
from heliotrope.errors import ConfigError
from heliotrope.training import Batch

__all__ = ["check_schedule", "factor", "scheduled"]

# One cycle as in Smith and Topin (2018): up for a part of the run, then down further than it
# began. The numbers are those of torch.optim.lr_scheduler.OneCycleLR; momentum stays.
_RISE, _LOW, _END = 0.3, 1 / 25, 1 / 250_000


def factor(cfg: DistributedConfig, step: int, steps: int) -> float:
    """Return what the learning rate is multiplied with at `step` (from 0) of `steps`.

    Warm-up rises evenly to 1; the schedule then has the rest of the run for itself.
    """
    warmup = cfg.lr_warmup_steps
    if step < warmup:
        return (step + 1) / (warmup + 1)
    step, steps = step - warmup, steps - warmup
    done = step / steps
    match cfg.lr_schedule:
        case "linear":
            return 1.0 - done
        case "cosine":
            return 0.5 * (1.0 + math.cos(math.pi * done))
        case "step":
            assert cfg.lr_decay_steps is not None
            return cfg.lr_decay_factor ** (step // cfg.lr_decay_steps)
        case "one_cycle":
            if done < _RISE:
                return _eased(_LOW, 1.0, done / _RISE)
            return _eased(1.0, _END, (done - _RISE) / (1.0 - _RISE))
        case _:
            return 1.0


def _eased(start: float, end: float, done: float) -> float:
    """Return the point of half a cosine wave from `start` to `end`."""
    return end + (start - end) * 0.5 * (1.0 + math.cos(math.pi * done))


def check_schedule(cfg: DistributedConfig, examples: int) -> None:
    """Raise `ConfigError` if a run over `examples` ends before its schedule has begun."""
    each = -(-examples // cfg.batch_size)
    steps = each * cfg.epochs
    for key, needed in (
        ("lr_warmup_steps", cfg.lr_warmup_steps),
        ("lr_decay_steps", cfg.lr_decay_steps or 0),
    ):
        if needed >= steps:
            raise ConfigError(
                f"distributed.{key}={needed} is longer than the run: distributed.epochs="
                f"{cfg.epochs} of {each} step(s) end after step {steps - 1}, counted from 0. Set "
                f"distributed.{key} below {steps}, or train longer."
            )


def scheduled(
    batches: Iterable[Batch],
    optimizer: Optimizer,
    lr: float,
    cfg: DistributedConfig,
    place: tuple[int, int],
) -> Iterator[Batch]:
    """Yield `batches`, each with the optimizer's learning rate set for its step.

    `place` is the number of the first step, from 0, and the number of steps of the whole run.
    """
    first, steps = place
    for step, batch in enumerate(batches, start=first):
        for group in optimizer.param_groups:
            group["lr"] = lr * factor(cfg, step, steps)
        yield batch
