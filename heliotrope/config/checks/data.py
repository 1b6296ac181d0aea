"""Checks of a dataset's keys."""

from __future__ import annotations

import math
from typing import Any, get_args

from heliotrope.config.checks.values import above, at_least, fraction, one_of, within
from heliotrope.config.data import DataConfig, Fit
from heliotrope.config.groups import keys_of_ours
from heliotrope.errors import ConfigError
from heliotrope.shell import typed

__all__ = ["check_csv_format", "check_data"]


def check_data(cfg: DataConfig) -> None:
    """Raise `ConfigError` for a key below `data` that is out of range."""
    one_of("data.fit", cfg.fit, get_args(Fit))
    fraction("data.validation_fraction", cfg.validation_fraction)
    above("data.fit_noise_multiplier", cfg.fit_noise_multiplier, 0)
    _check_bounds(cfg.fit_bounds)
    keys = keys_of_ours("data", cfg)
    for name in ("vocabulary", "max_words", "length", "size"):
        at_least(f"data.{name}", keys.get(name), 1)
    if "bad_rows" in keys:
        one_of("data.bad_rows", keys["bad_rows"], ("refuse", "skip"))
    if "delimiter" in keys:
        check_csv_format(keys["delimiter"], keys["encoding"], keys["decimal"])
    if "test_fraction" in keys:
        within("data.test_fraction", keys["test_fraction"], 0, 0.9, open_low=True)


def _check_bounds(bounds: Any) -> None:
    """Raise `ConfigError` unless it is a mapping of columns to two numbers, or null."""
    if bounds is None:
        return
    if not isinstance(bounds, dict):
        raise ConfigError(
            f"data.fit_bounds={bounds} must name columns: data.fit_bounds={{age: [18, 100]}}."
        )
    for column, pair in bounds.items():
        numbers = pair if isinstance(pair, list | tuple) else ()
        real = all(isinstance(n, int | float) and not isinstance(n, bool) for n in numbers)
        width = float(numbers[1]) - float(numbers[0]) if real and len(numbers) == 2 else 0.0
        if not 0 < width < math.inf:
            raise ConfigError(
                f"data.fit_bounds={{{column}: {pair}}} must be two finite numbers, the least and "
                "the largest that the column may have, such as [18, 100]."
            )


def check_csv_format(delimiter: str, encoding: str, decimal: str) -> None:
    """Raise `ConfigError` if one of these is none: a character, an encoding's name, . or ,."""
    if (len(delimiter) != 1 and delimiter != r"\t") or delimiter in '\r\n"':
        raise ConfigError(
            f"{typed('data.delimiter', delimiter)} must be one character, or "
            f"{typed('data.delimiter', chr(92) + 't')} for a tab."
        )
    if decimal not in (".", ","):
        raise ConfigError(
            f"{typed('data.decimal', decimal)} must be {typed('data.decimal', '.')} or "
            f"{typed('data.decimal', ',')}."
        )
    try:
        "".encode(encoding)
    except LookupError:
        raise ConfigError(
            f"data.encoding={encoding} is not known to Python. Set the name of an encoding of "
            "text, such as utf-8, latin-1, cp1252 or utf-16."
        ) from None
