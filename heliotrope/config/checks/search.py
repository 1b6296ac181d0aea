"""Checks of a search: how many trials, and when they are given up."""

from __future__ import annotations

from heliotrope.config.checks.values import at_least
from heliotrope.config.groups import keys_of_ours
from heliotrope.config.search import SearchConfig

__all__ = ["check_search"]

_LEAST = {"startup_trials": 1, "warmup": 0, "min_resource": 1, "reduction_factor": 2}


def check_search(cfg: SearchConfig | None) -> None:
    """Raise `ConfigError` for a number of trials, or a key of sampler or pruner, out of range."""
    if cfg is None:
        return
    at_least("search.trials", cfg.trials, 1)
    at_least("search.seed", cfg.seed, 0)
    for part, choice in (("sampler", cfg.sampler), ("pruner", cfg.pruner)):
        keys = keys_of_ours(f"search/{part}", choice)
        for key in keys.keys() & _LEAST.keys():
            at_least(f"search.{part}.{key}", keys[key], _LEAST[key])
