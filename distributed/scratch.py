"""The files through which the driver and its processes under torchrun talk, in a scratch folder."""

from __future__ import annotations

__all__ = ["ABORT", "ANSWER", "STOP"]

STOP = "stop"  # made by the driver: stop at the next step
ABORT = "abort"  # made by the driver: end at once
ANSWER = "trained.json"  # left by rank 0: what came of it
