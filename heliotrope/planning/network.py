"""A network by two numbers: how long a message waits, and how many bytes a second it then sends.

The model of Hockney (1994): a message of n bytes takes alpha + n / beta seconds. Links are
full-duplex, and no two pairs of workers share one.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from heliotrope.errors import ConfigError

__all__ = ["Network", "bandwidth_of", "seconds_of"]

_SCALES = {"": 1.0, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}
_SECONDS = {"ns": 1e-9, "us": 1e-6, "ms": 1e-3, "s": 1.0}
_NUMBER = r"(\d+(?:\.\d+)?(?:e[+-]?\d+)?)"


@dataclass(frozen=True)
class Network:
    """Links of one kind: `bandwidth` in bytes a second, `latency` in seconds a message."""

    bandwidth: float
    latency: float

    def seconds(self, sent_bytes: float, messages: float = 1.0) -> float:
        """Return how long one link takes for `messages` one after the other, of these bytes."""
        return messages * self.latency + sent_bytes / self.bandwidth


def bandwidth_of(key: str, text: str) -> float:
    """Return the bytes a second that `text` means: `100Gb` are bits a second, `12GB` bytes.

    Raises `ConfigError` naming `key` for anything else: a b is an eighth of a B.
    """
    found = re.fullmatch(rf"{_NUMBER}([kMGT]?)(b|B)(?:it)?(?:/s|ps)?", text)
    value = 0.0 if found is None else float(found[1]) * _SCALES[found[2]]
    if found is None or not 0 < value < float("inf"):
        raise ConfigError(
            f"{key}={text} is no bandwidth above 0. Write a number with its unit: {key}=100Gb for "
            f"gigabits a second, {key}=12GB for gigabytes; k, M, G and T are powers of 1000."
        )
    return value / 8 if found[3] == "b" else value


def seconds_of(key: str, text: str) -> float:
    """Return the seconds that `text` means, such as `20us`; raises `ConfigError` naming `key`."""
    found = re.fullmatch(rf"{_NUMBER}(ns|us|ms|s)", text)
    value = float("inf") if found is None else float(found[1]) * _SECONDS[found[2]]
    if found is None or value == float("inf"):
        raise ConfigError(
            f"{key}={text} is no time. Write a number with its unit, ns, us, ms or s, such as "
            f"{key}=20us."
        )
    return value
