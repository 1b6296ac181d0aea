"""Checks of a dataset's keys."""

from __future__ import annotations

from typing import get_args

from heliotrope.config.checks.values import at_least, fraction, one_of, within
from heliotrope.config.data import DataConfig, Fit
from heliotrope.config.groups import keys_of_ours
from heliotrope.errors import ConfigError
from heliotrope.shell import typed

__all__ = ["check_csv_format", "check_data"]


def check_data(cfg: DataConfig) -> None:
    """Raise `ConfigError` for a key below `data` that is out of range."""
    one_of("data.fit", cfg.fit, get_args(Fit))
    fraction("data.validation_fraction", cfg.validation_fraction)
    keys = keys_of_ours("data", cfg)
    for name in ("vocabulary", "max_words", "length", "size"):
        at_least(f"data.{name}", keys.get(name), 1)
    if "bad_rows" in keys:
        one_of("data.bad_rows", keys["bad_rows"], ("refuse", "skip"))
    if "delimiter" in keys:
        check_csv_format(keys["delimiter"], keys["encoding"], keys["decimal"])
    if "test_fraction" in keys:
        within("data.test_fraction", keys["test_fraction"], 0, 0.9, open_low=True)


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
