"""The files through which the driver and its processes under torchrun talk, in a scratch folder."""

from __future__ import annotations

__all__ = ["ABORT", "ANSWER", "STEPPED", "STOP", "TRACKED"]

STOP = "stop"  # made by the driver: stop at the next step
ABORT = "abort"  # made by the driver: end at once
STEPPED = "stepped"  # made by the workers: the first step of the attempt is done
ANSWER = "trained.json"  # left by rank 0: what came of it

# An environment variable, not a file: the address of the MLflow server, with its password.
TRACKED = "HELIOTROPE_TRACKING_MLFLOW"
