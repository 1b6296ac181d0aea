"""Which training examples are the server's own: taken out before the others are divided."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from heliotrope.config import Run
from heliotrope.data import Traits
from heliotrope.data.traits import quantile_of
from heliotrope.errors import ConfigError
from heliotrope.seeding import numpy_generator

__all__ = ["root_examples"]

_QUANTILES = 10


def root_examples(run: Run, traits: Traits) -> NDArray[np.int64]:
    """Return the positions of the server's training examples, sorted; of most strategies none.

    As many as `federated.strategy.root_examples` says, drawn by the run's seed: of each label, or
    of each tenth of the numbers to be predicted, as large a share as it has of all, and one at
    least if there are as many.

    Raises `ConfigError` if that is none or all, or takes all that a natural group has.
    """
    strategy = run.federated.strategy
    if strategy.name != "fltrust":
        return np.empty(0, dtype=np.int64)
    size: int = strategy.root_examples  # type: ignore[attr-defined]  # of its choice
    if not 1 <= size < traits.examples:
        raise ConfigError(
            f"federated.strategy.root_examples={size} must lie between 1 and "
            f"{traits.examples - 1}: the server has some of the {traits.examples:,} training "
            "examples, and the clients have the others."
        )
    drawn = np.sort(_drawn(size, _strata(traits), run.seed))
    if traits.keys is not None and run.federated.partition.name == "natural":
        emptied = np.setdiff1d(traits.keys, np.delete(traits.keys, drawn))
        if len(emptied):
            raise ConfigError(
                f"federated.strategy.root_examples={size} takes all training examples of "
                f"{emptied[0]}, which is a client. Lower it, or choose another seed."
            )
    return drawn


def _strata(traits: Traits) -> NDArray[np.int64]:
    """Return the stratum of each example, [N] numbers from 0 on."""
    values = traits.labels
    if values is None and traits.targets is not None:
        values = quantile_of(traits.targets, _QUANTILES)
    if values is None:
        return np.zeros(traits.examples, dtype=np.int64)
    return np.unique(values, return_inverse=True)[1].astype(np.int64)


def _drawn(size: int, strata: NDArray[np.int64], run_seed: int) -> NDArray[np.int64]:
    counts = np.bincount(strata)
    quotas = size * counts / len(strata)
    taken = np.full(len(counts), int(size >= len(counts)))
    for _ in range(size - int(taken.sum())):  # each time where most is lacking
        taken[np.argmax(quotas - taken)] += 1
    generator = numpy_generator(run_seed, "root examples")
    return np.concatenate(
        [
            generator.permutation(np.flatnonzero(strata == stratum))[:count]
            for stratum, count in enumerate(taken.tolist())
        ]
    )
