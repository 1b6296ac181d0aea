"""Schema of how the jobs of a sweep are run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from heliotrope.errors import ConfigError

__all__ = ["SweepConfig", "check_sweep"]


@dataclass
class SweepConfig:
    """Of a command with `-m`.

    `parallel` is how many jobs run at a time: 1, one after the other in this process; more, or
    `auto` for as many as the CPUs hold, in processes that Ray places, each with an equal share. On
    several nodes, the jobs' directories are on a file system that all share.
    """

    parallel: Any = 1


def check_sweep(cfg: SweepConfig) -> None:
    """Raise `ConfigError` unless `parallel` is a whole number of at least 1, or `auto`."""
    given = cfg.parallel
    whole = isinstance(given, int) and not isinstance(given, bool) and given >= 1
    if not whole and given != "auto":
        raise ConfigError(
            f"sweep.parallel={given} is neither a number of jobs nor auto. Set a whole number of "
            "at least 1, or auto for as many as the CPUs hold."
        )
