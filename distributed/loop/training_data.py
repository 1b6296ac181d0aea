"""The data of a run, the same for the driver and for workers that load it by themselves."""

from __future__ import annotations

from heliotrope.config import Run
from heliotrope.data import Dataset, load
from heliotrope.data.canaries import with_canaries
from heliotrope.data.private_fit import fitted_privately

from ..privacy.names import privacy_of

__all__ = ["training_data"]


def training_data(run: Run) -> Dataset:
    """Return the dataset, with canaries if any are planted, and hashed where noise follows from it.

    Raises what `heliotrope.data.load` and `heliotrope.data.private_fit.fitted_privately` raise.
    """
    hashed = run.privacy.ledger is not None or run.distributed.privacy.name != "none"
    dataset = load(run.data, run.seed, task=run.task_name, fold=run.data_fold, hashed=hashed)
    dataset = fitted_privately(run, dataset, privacy_of(run.distributed))
    return with_canaries(dataset, run.audit.canaries, run.seed)
