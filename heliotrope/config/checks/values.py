"""Checks of single values; each raises `ConfigError` naming the key, its value and the remedy."""

from __future__ import annotations

from heliotrope.errors import ConfigError, closest

__all__ = ["above", "at_least", "fraction", "one_of", "within"]


def one_of(key: str, value: str, allowed: tuple[str, ...]) -> None:
    """Refuse a value that is not one of those `allowed`, with the closest of them."""
    if value not in allowed:
        raise ConfigError(
            f"{key}={value} is not one of {', '.join(allowed)}.{closest(value, allowed)}"
        )


def at_least(key: str, value: float | None, least: float) -> None:
    """Refuse a number below `least`; null is none."""
    if value is not None and not value >= least:
        raise ConfigError(f"{key}={value} must be at least {least:g}.")


def within(key: str, value: float, low: float, high: float, *, open_low: bool = False) -> None:
    """Refuse a number outside of [`low`, `high`], or of (`low`, `high`]."""
    if not (low < value if open_low else low <= value) or not value <= high:
        left = "(" if open_low else "["
        raise ConfigError(f"{key}={value} must lie in {left}{low:g}, {high:g}].")


def above(key: str, value: float | None, bound: float) -> None:
    """Refuse a number that is not greater than `bound`; null is none."""
    if value is not None and not value > bound:
        raise ConfigError(f"{key}={value} must be greater than {bound:g}.")


def fraction(key: str, value: float) -> None:
    """Refuse a number outside of [0, 1)."""
    if not 0 <= value < 1:
        raise ConfigError(f"{key}={value} must lie in [0, 1).")
