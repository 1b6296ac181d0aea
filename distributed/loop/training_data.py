"""The data of a run, the same for the driver and for workers that load it by themselves."""

from __future__ import annotations

from heliotrope.config import Run
from heliotrope.data import Dataset, load
from heliotrope.data.canaries import with_canaries

__all__ = ["training_data"]


def training_data(run: Run) -> Dataset:
    """Return the dataset, with canaries if any are planted, and hashed where noise follows from it.

    Raises what `heliotrope.data.load` raises.
    """
    hashed = run.privacy.ledger is not None or run.distributed.privacy.name != "none"
    dataset = load(run.data, run.seed, task=run.task_name, hashed=hashed)
    return with_canaries(dataset, run.audit.canaries, run.seed)
