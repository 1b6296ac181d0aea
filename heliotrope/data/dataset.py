"""A dataset as both modes train on it: three splits, prepared alike."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from heliotrope.config.data import Fit
from heliotrope.data.columns import Raw
from heliotrope.data.examples import Examples
from heliotrope.data.info import Info
from heliotrope.data.partition import Partition
from heliotrope.data.preparation import Preparation, Statistics, Step
from heliotrope.data.preparation.counts import counted
from heliotrope.privacy.canaries import Canaries
from heliotrope.privacy.ledger import Release

__all__ = ["Dataset", "Exchange", "Fitting"]

_SUMS = 3 * 8  # bytes in which a client tells count, sum and sum of squares of a column


@dataclass(frozen=True)
class Exchange:
    """What clients and server send each other so that all prepare their rows alike.

    Parameters
    ----------
    fit
        What the preparation is fitted to.
    told
        What each client tells, such as "counts of 5,000 words".
    bytes_up, bytes_down
        Of all clients' messages together, and of the preparation that each gets.
    charged
        Whether that is released with noise, and counted as privacy spent.
    """

    fit: Fit
    told: tuple[str, ...]
    bytes_up: int
    bytes_down: int
    charged: bool = False


@dataclass(frozen=True, eq=False)
class Fitting:
    """How a preparation came about.

    Parameters
    ----------
    steps
        What was fitted.
    train, validation, test
        The rows of each split; it was fitted to the first.
    statistics
        What had to be known of them.
    preparation
        The result.
    columns
        Those whose means and deviations were released with noise.
    """

    steps: tuple[Step, ...]
    train: Raw
    validation: Raw
    test: Raw
    statistics: Statistics
    preparation: Preparation
    columns: tuple[str, ...] = ()

    def exchange(self, partition: Partition) -> Exchange:
        """Return what these clients would send, so that no rows need to be pooled for the fit."""
        if self.columns:
            columns, clients = len(self.columns), len(partition)
            told = (f"count, sum and sum of squares of {counted(columns)}, for noisy sums",)
            up, down = columns * _SUMS * clients, self._reply_bytes * clients
            return Exchange(self.preparation.fit, told, up, down, charged=True)
        total = 0
        for step, statistic in zip(self.steps, self.statistics.by_step, strict=True):
            if statistic is None:
                continue
            if step.fixed_size:  # the same for any rows: a million clients take no time
                total += len(partition) * len(statistic.to_bytes())
            else:
                messages = (step.measure(self.train.subset(rows)) for rows in partition)
                total += sum(len(message.to_bytes()) for message in messages)
        reply = self._reply_bytes if total else 0
        told_by_each = self.statistics.told(self.steps)
        return Exchange(self.preparation.fit, told_by_each, total, reply * len(partition))

    @property
    def _reply_bytes(self) -> int:
        return len(json.dumps(self.preparation.to_json()).encode())

    def by_client(self, partition: Partition) -> Examples:
        """Return the training examples, each client's fitted to its own.

        Those that no client has are fitted to themselves, together.
        """
        groups = np.full(len(self.train), len(partition), dtype=np.int64)
        groups[partition.indices] = np.repeat(np.arange(len(partition)), partition.sizes)
        return self.preparation.apply(self.train, groups)


@dataclass(frozen=True, eq=False)
class Dataset:
    """Three splits of one dataset, prepared alike.

    Parameters
    ----------
    name
        Its name.
    train, validation, test
        The examples; `validation` may be empty.
    info
        What a task and a model must know.
    preparation
        What new rows go through before the same model. It is saved with the model.
    fitting
        Where `preparation` was fitted here; None if it came with a model.
    notes
        Lines to be shown: what was inferred, and what was left out.
    canaries
        Those that are the last rows of `train`, if there are any.
    content
        A hash of the training and validation examples together, with folds of all that these
        divide, if one was asked for.
    releases
        Statistics of `train` that `preparation` is made of, to be charged before it is used.
    files
        A hash of the files that the rows are in, where it is known without reading all of them.
    """

    name: str
    train: Examples
    validation: Examples
    test: Examples
    info: Info
    preparation: Preparation
    fitting: Fitting | None = None
    notes: tuple[str, ...] = ()
    canaries: Canaries | None = None
    content: str | None = None
    releases: tuple[Release, ...] = ()
    files: str | None = None

    @property
    def kept(self) -> dict[str, Any]:
        """What a checkpoint keeps of the data: a run goes on with no others."""
        prepared = self.preparation.to_json()
        return prepared if self.files is None else {**prepared, "files": self.files}

    @property
    def present(self) -> Tensor | None:
        """Which rows of `train` take part, bool [N]: all but some canaries; None for all."""
        if self.canaries is None:
            return None
        found = torch.ones(len(self.train), dtype=torch.bool)
        found[-len(self.canaries) :] = torch.tensor(self.canaries.included)
        return found
