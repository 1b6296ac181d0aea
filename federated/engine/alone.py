"""Clients whose batches have a single example: some models cannot be trained on one alone."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from heliotrope.errors import ConfigError
from heliotrope.models.usable import why_not_one

from .context import TrainingContext

__all__ = ["check_batches"]

_Ints = NDArray[np.int64]


def check_batches(context: TrainingContext, model: str) -> None:
    """Raise `ConfigError` if a batch of a client has one example, and the model cannot take one.

    `model` is its name. Where `federated.quorum` lets rounds go on without some clients, only if
    all have such a batch.
    """
    cfg, training = context.federated, context.population.training()
    sizes = np.array(context.population.train_sizes(training))
    alone = _have_one(sizes, cfg.batch_size)
    if not alone.any() or (cfg.quorum < 1 and not alone.all()):
        return
    if (why := why_not_one(context.model, context.task)) is None:
        return
    first = int(np.flatnonzero(alone)[0])
    others = f", and so have {int(alone.sum()) - 1:,} others" if alone.sum() > 1 else ""
    given = "null" if cfg.batch_size is None else str(cfg.batch_size)
    raise ConfigError(
        f"model={model} cannot be trained on one example at a time ({why}), but with "
        f"federated.batch_size={given} client {training[first]}, of {sizes[first]:,} training "
        f"example(s), has a batch of one{others}. {_remedy(context, sizes)}, or normalise without "
        "the other examples of a batch, such as by torch.nn.GroupNorm."
    )


def _have_one(sizes: _Ints, batch_size: int | None) -> NDArray[np.bool_]:
    """Return which clients have a batch of one example."""
    if batch_size == 1:
        return np.ones(len(sizes), dtype=np.bool_)
    left: _Ints = (
        sizes if batch_size is None else np.where(sizes < batch_size, sizes, sizes % batch_size)
    )
    alone: NDArray[np.bool_] = np.equal(left, 1)
    return alone


def _remedy(context: TrainingContext, sizes: _Ints) -> str:
    """Return a batch size for which no client has such a batch, or how to have larger clients."""
    cfg, distinct = context.federated, np.unique(sizes)
    if distinct[0] == 1:
        having = f"{int((sizes == 1).sum()):,} client(s) have one training example"
        if hasattr(cfg.partition, "min_size"):
            return f"{having}: raise federated.partition.min_size={cfg.partition.min_size}"
        return (
            f"{having}: divide the data among fewer clients, or let rounds go on without them by "
            f"a lower federated.quorum={cfg.quorum:g}"
        )
    near = _near(cfg.batch_size or 1, int(distinct[-1]))
    found = next((size for size in near if not _have_one(distinct, size).any()), None)
    return f"Set federated.batch_size={'null' if found is None else found}"


def _near(batch_size: int, most: int) -> Iterator[int]:
    """Yield other batch sizes below `most`, the nearest first."""
    for step in range(1, max(most, batch_size)):
        for size in (batch_size + step, batch_size - step):
            if 1 < size < most:
                yield size
