"""`data.fit=private`: means and deviations of what the training rows hold, released with noise.

Each client, or each record, adds the mean of its rows to the sums, whatever their number: of every
column whether it is there, its number within public bounds, mapped to -1 to 1, and the square.
Gaussian noise is added to the sums once, and the run's accountant charges that as one release.
Words are numbered by their hash, as with `data.fit=none`: nothing of them is told.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from heliotrope.config import Run
from heliotrope.data.dataset import Dataset, Fitting
from heliotrope.data.partition import Partition
from heliotrope.data.preparation import Fitted, Preparation
from heliotrope.data.preparation.moments import Bounds, scale_of, unit_sums
from heliotrope.errors import ConfigError, closest
from heliotrope.privacy.accountant import Spent, epsilon
from heliotrope.privacy.keys import NoiseKeys
from heliotrope.privacy.ledger import Release, release_stamp
from heliotrope.privacy.mechanisms import (
    LEAST_NOISE,
    MOST_NOISE,
    Adjacency,
    GaussianMechanism,
    fields_of,
)
from heliotrope.seeding import numpy_generator

__all__ = ["fitted_privately", "sensitivity", "statistics_of"]

_REACH: dict[Adjacency, float] = {
    "add-or-remove-one": math.sqrt(3),  # nothing, or (1, 1, 1)
    "replace-special": math.sqrt(3),
    "replace-one": 2.0,  # (1, -1, 1), or (1, 1, 1)
}


def sensitivity(columns: int, adjacency: Adjacency) -> float:
    """Return how far the sums of neighbours can be apart for so many columns, in Euclidean norm.

    A client or record adds to count, sum and sum of squares of a column a mean of points (1, x,
    x^2) and (0, 0, 0), where x lies between -1 and 1. No two such means are further apart than two
    of the points.
    """
    return _REACH[adjacency] * math.sqrt(columns)


def statistics_of(run: Run, keys: NoiseKeys, population: int) -> Spent:
    """Return what the fit of a run releases of so many; nothing unless `data.fit=private`.

    Raises `ConfigError` if nobody could be charged for it, or nothing is left for training.
    """
    if run.data.fit != "private":
        return []
    noise = run.data.fit_noise_multiplier
    if noise is None:
        raise ConfigError(
            "data.fit=private needs data.fit_noise_multiplier, the noise on what is released "
            "before training. Set it, such as 5; the more, the less it spends."
        )
    if not LEAST_NOISE <= noise <= MOST_NOISE:
        raise ConfigError(
            f"data.fit_noise_multiplier={noise:g} is beyond what can be accounted for, "
            f"{LEAST_NOISE:g} to {MOST_NOISE:g}. Set one such as 5."
        )
    mechanism = keys.of_everybody(population, noise)
    delta, target = keys.delta_for(population), keys.target_epsilon
    if target is not None and (alone := epsilon([(mechanism, 1)], delta).value) >= target:
        raise ConfigError(
            f"data.fit_noise_multiplier={noise:g} spends epsilon {alone:.4g} before training, of "
            f"{keys.key}.target_epsilon={target:g} at delta={delta:.3g}: nothing is left. Raise "
            "either."
        )
    return [(mechanism, 1)]


def fitted_privately(
    run: Run, dataset: Dataset, keys: NoiseKeys | None, partition: Partition | None = None
) -> Dataset:
    """Return `dataset` with a preparation of noisy sums, if `data.fit=private`, and their charge.

    It is the same for all processes of a run, and whenever it goes on: noise follows from the
    run's seed and from all that the sums depend on. What `releases` names is to be charged before
    anything is done with the examples.

    Parameters
    ----------
    run, dataset
        Of which the training rows have no preparation yet; with its `content`.
    keys
        Of the run's protection, which charges for the sums; None if there is none.
    partition
        Whose the rows are, where clients are protected; None: each row is a record of its own.

    Raises
    ------
    ConfigError
        If there is no protection, nothing to release, or no bounds of a column.
    """
    if run.data.fit != "private":
        return dataset
    if keys is None:
        raise ConfigError(
            "data.fit=private releases means and deviations that the run's protection charges for, "
            "and there is none. Set federated/privacy=central or distributed/privacy=dpsgd, or "
            "data.fit=training."
        )
    fitting = dataset.fitting
    assert fitting is not None
    rows = np.arange(len(fitting.train))
    groups, units = rows, len(rows)
    if partition is not None:
        units = len(partition)
        groups = np.full(len(rows), units)  # of a row that no client has
        groups[partition.indices] = np.repeat(np.arange(units), partition.sizes)
    ((mechanism, _),) = statistics_of(run, keys, units)
    sums = _ClippedSums.of(run, fitting)
    stamp = sums.stamp(run, dataset.content, groups, mechanism)
    preparation = sums.preparation(run, fitting, groups, units, mechanism, stamp)
    fitting = replace(fitting, preparation=preparation, columns=tuple(sums.bounds))
    return replace(
        dataset,
        train=preparation.apply(fitting.train),
        validation=preparation.apply(fitting.validation),
        test=preparation.apply(fitting.test),
        info=preparation.info(),
        preparation=preparation,
        fitting=fitting,
        releases=(Release(f"statistics {stamp}", mechanism),),
    )


@dataclass(frozen=True)
class _ClippedSums:
    """The columns of which sums are released, and the bounds that their numbers are cut off at."""

    bounds: Mapping[str, Bounds]

    @classmethod
    def of(cls, run: Run, fitting: Fitting) -> _ClippedSums:
        """Return those of a dataset; `ConfigError` unless bounds of each column are known."""
        known = {name: each for step in fitting.steps for name, each in step.bounds().items()}
        given = {name: (low, high) for name, (low, high) in (run.data.fit_bounds or {}).items()}
        if not known:
            raise ConfigError(
                f"data.fit=private releases means and deviations, but data={run.data.name} has no "
                "numbers that are scaled, and vocabularies are not released. Set data.fit=none, "
                "with which words are numbered by their hash."
            )
        for name in given:
            if name not in known:
                raise ConfigError(
                    f"data.fit_bounds={{{name}: ...}} is no column that is scaled: these are "
                    f"{', '.join(known)}.{closest(name, list(known))}"
                )
        bounds = {name: given.get(name, each) for name, each in known.items()}
        lacking = [name for name, each in bounds.items() if each is None]
        if lacking:
            raise ConfigError(
                f"data.fit=private needs bounds of {', '.join(lacking)}, which nobody knows "
                f"without the data. Set data.fit_bounds={{{lacking[0]}: [LEAST, LARGEST], ...}} to "
                "numbers that are public, not to those of the data, or data.fit=none."
            )
        return cls({name: each for name, each in bounds.items() if each is not None})

    def stamp(
        self,
        run: Run,
        content: str | None,
        groups: NDArray[np.int64],
        mechanism: GaussianMechanism,
    ) -> str:
        """Return what noise and charge depend on beside the run's seed: all that changes the sums.

        With the same noise on other sums, their difference would be told.
        """
        assert content is not None, "the data are not hashed"
        whose = hashlib.sha256(np.ascontiguousarray(groups).tobytes()).hexdigest()
        split: Any = run.data.validation_fraction
        if run.data_fold is not None:
            split = [split, vars(run.data_fold)]
        return release_stamp(
            run.seed, content, split, whose, sorted(self.bounds.items()), fields_of(mechanism)
        )

    def preparation(
        self,
        run: Run,
        fitting: Fitting,
        groups: NDArray[np.int64],
        units: int,
        mechanism: GaussianMechanism,
        stamp: str,
    ) -> Preparation:
        """Return the preparation by the sums over units, with noise of standard deviation z S."""
        noise = mechanism.noise_multiplier * sensitivity(len(self.bounds), mechanism.adjacency)
        generator = numpy_generator(run.seed, "private fit", stamp)
        steps: list[Fitted] = []
        for step in fitting.steps:
            bounds = [self.bounds[name] for name in step.bounds()]
            if not bounds:
                steps.append(step.fitted(None))
                continue
            sums = unit_sums(step.moments(fitting.train, bounds), groups, units)
            noisy = sums + noise * generator.standard_normal(sums.shape)
            pairs = zip(noisy, bounds, strict=True)
            steps.append(step.scaled([scale_of(each, noise, limits) for each, limits in pairs]))
        return Preparation(tuple(steps), "private", fitting.preparation.task)
