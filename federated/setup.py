"""From a config to the clients of a run: the same for every pool and for deployed clients."""

from __future__ import annotations

from collections.abc import Mapping

from heliotrope.config import Run
from heliotrope.data import Dataset, Partition, Split, partition
from heliotrope.errors import ConfigError
from heliotrope.models import build
from heliotrope.tasks import Task

from .client import Clients
from .population import Population

__all__ = ["assemble", "divide"]


def divide(run: Run, dataset: Dataset) -> Partition:
    """Return the training examples of each client.

    Raises `PartitionError` if the data cannot be divided as asked, `ConfigError` if a round
    needs more clients than there are.
    """
    parts = partition(
        run.federated.partition, dataset.train.targets.numpy(), dataset.train.keys, run.seed
    )
    cohort = run.federated.clients_per_round
    if cohort > len(parts):  # known only here for a natural partition
        raise ConfigError(
            f"federated.clients_per_round={cohort} is more than the {len(parts)} clients that "
            f"the data has. Set federated.clients_per_round={len(parts)} or lower."
        )
    return parts


def assemble(
    run: Run,
    task: Task,
    train: Split,
    parts: Partition,
    central: Mapping[str, Split] | None = None,
) -> Clients:
    """Return the clients over already loaded and divided data, with a freshly built model."""
    return Clients(
        model=build(run.model, task, run.seed),
        task=task,
        train=train,
        population=Population(parts, run.federated.holdout_fraction, run.seed),
        optimizer=run.optimizer,
        loss=run.loss,
        federated=run.federated,
        run_seed=run.seed,
        evaluation_batch_size=run.evaluation_batch_size,
        central=central or {},
    )
