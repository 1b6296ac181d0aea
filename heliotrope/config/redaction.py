"""A configuration as it may be written down: without passwords."""

from __future__ import annotations

from dataclasses import replace

from heliotrope.config.run import Run
from heliotrope.system.redaction import masked

__all__ = ["without_passwords"]


def without_passwords(run: Run) -> Run:
    """Return `run` as it may be written down: an address there may not be connected to."""
    if run.tracking.mlflow is None:
        return run
    return replace(run, tracking=replace(run.tracking, mlflow=masked(run.tracking.mlflow)))
