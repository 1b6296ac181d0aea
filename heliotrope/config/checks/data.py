"""Checks of a dataset's keys."""

from __future__ import annotations

from typing import get_args

from heliotrope.config.checks.values import at_least, fraction, one_of, within
from heliotrope.config.data import DataConfig, Fit
from heliotrope.config.groups import keys_of_ours

__all__ = ["check_data"]


def check_data(cfg: DataConfig) -> None:
    """Raise `ConfigError` for a key below `data` that is out of range."""
    one_of("data.fit", cfg.fit, get_args(Fit))
    fraction("data.validation_fraction", cfg.validation_fraction)
    keys = keys_of_ours("data", cfg)
    for name in ("vocabulary", "max_words", "length", "size"):
        at_least(f"data.{name}", keys.get(name), 1)
    if "bad_rows" in keys:
        one_of("data.bad_rows", keys["bad_rows"], ("refuse", "skip"))
    if "test_fraction" in keys:
        within("data.test_fraction", keys["test_fraction"], 0, 0.9, open_low=True)
