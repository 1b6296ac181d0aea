"""The algebra: a metric is a vector of sums over examples, so that any split of them is exact.

Shapes: B examples of a batch, K groups of examples (such as clients), S cells of a vector.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from heliotrope.data.fields import Batch

__all__ = [
    "Batch",
    "Cell",
    "Direction",
    "GroupedMetrics",
    "Metric",
    "MetricSet",
    "MetricWithPanels",
    "Metrics",
    "Sums",
]

Cell = tuple[Tensor | int, Tensor | float]
Direction = Literal["max", "min"]
Sums = NDArray[np.float64]


class Metric(Protocol):
    """Sums over examples from which numbers follow, such as a confusion matrix and accuracy."""

    @property
    def size(self) -> int:
        """Number of cells of its vector of sums."""

    @property
    def directions(self) -> Mapping[str, Direction]:
        """The names of the numbers it computes, and whether more or less of each is better."""

    def cells(self, outputs: Tensor, batch: Batch) -> Sequence[Cell]:
        """Return what a batch adds to the vector, as pairs of indices and values.

        The indices are int64 [B] or [B, ...] in [0, size), also where outputs are NaN, and the
        values of the same shape, or one number for all. Where every example adds to the same
        cell, that is one number and the values are [B]. What an example adds does not depend on
        the others. `outputs` are the model's, [B, ...], and `batch` lies on their device.
        """

    def compute(self, sums: Sums) -> dict[str, Sums]:
        """Return each number, [...], from vectors of sums [..., size].

        NaN where it is not defined, such as for no examples. NumPy's warnings are off.
        """


@runtime_checkable
class MetricWithPanels(Metric, Protocol):
    """A metric of which the report shows more than numbers."""

    def panels(self, sums: Sums) -> dict[str, Any]:
        """Return what panels of the report are drawn from, as JSON, from one vector [size]."""


@dataclass(frozen=True)
class MetricSet:
    """The metrics of a task: their vectors, one behind the other, after the count of examples.

    `first` are the numbers that are told first, the one that matters most before the others; the
    rest follow in the order of the members.

    Raises
    ------
    ValueError
        If there is no number, one of `first` is not computed, or two have the same name.
    """

    members: tuple[Metric, ...]
    first: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        names = Counter(name for member in self.members for name in member.directions)
        twice = [name for name, times in names.items() if times > 1]
        if twice:
            raise ValueError(f"more than one metric computes {', '.join(twice)}. Leave one.")
        if not names:
            raise ValueError("no metric computes a number. Add one, such as Loss.")
        unknown = [name for name in self.first if name not in names]
        if unknown:
            there = ", ".join(names)
            raise ValueError(f"no metric computes {', '.join(unknown)}: there are {there}.")

    @cached_property
    def size(self) -> int:
        """Number of cells, S."""
        return 1 + sum(member.size for member in self.members)

    @cached_property
    def directions(self) -> dict[str, Direction]:
        """The names of all numbers, in the order of telling, and which way is better."""
        every = {name: way for member in self.members for name, way in member.directions.items()}
        return {name: every[name] for name in (*self.first, *every)}

    def zero(self) -> Metrics:
        """Return the metrics of no examples: the zero of the sum."""
        return Metrics(self, np.zeros(self.size))

    def from_vector(self, vector: Sums) -> Metrics:
        """Return the metrics whose sums, or added sums, `Metrics.to_vector` gave."""
        return Metrics(self, np.asarray(vector, dtype=np.float64))

    def measure(self, outputs: Tensor, batch: Batch) -> Metrics:
        """Return what a batch adds to the metrics.

        `outputs` are the model's, [B, ...], those of `batch`; both lie on one device. Raises
        `ValueError` if a member adds a tensor that has no value for each example.
        """
        sums = torch.zeros(self.size, dtype=torch.float64, device=outputs.device)
        each = np.zeros(self.size)  # what every example adds
        each[0] = 1.0
        for start, index, value in self._cells(outputs, batch):
            if isinstance(index, Tensor):
                _add_to(sums[start:], index, value)
            elif isinstance(value, Tensor):
                sums[start + index] += value.sum(dtype=torch.float64)
            else:
                each[start + index] += value
        return Metrics(self, sums.cpu().numpy() + each * len(outputs))

    def measure_groups(
        self, outputs: Tensor, batch: Batch, groups: Tensor, count: int
    ) -> GroupedMetrics:
        """Return what a batch adds to each of `count` groups.

        `groups` is int64 [B] in [0, count): whose each example is.
        """
        groups = groups.to(outputs.device)
        sums = torch.zeros(count, self.size, dtype=torch.float64, device=outputs.device)
        each = np.zeros(self.size)  # what every example adds
        each[0] = 1.0
        for start, index, value in self._cells(outputs, batch):
            if isinstance(index, Tensor):
                starts = groups * self.size + start
                _add_to(sums.view(-1), starts.view(-1, *[1] * (index.dim() - 1)) + index, value)
            elif isinstance(value, Tensor):
                sums[:, start + index].index_add_(0, groups, value.to(torch.float64))
            else:
                each[start + index] += value
        found, sizes = sums.cpu().numpy(), torch.bincount(groups, minlength=count).cpu().numpy()
        for cell in np.flatnonzero(each):
            found[:, cell] += sizes * each[cell]
        return GroupedMetrics(self, found)

    def compute(self, sums: Sums) -> dict[str, Sums]:
        """Return every number by name, [...] each, from vectors of sums [..., S]."""
        found: dict[str, Sums] = {}
        with np.errstate(all="ignore"):  # of what is not defined comes NaN
            for member, start in self._placed():
                found |= member.compute(sums[..., start : start + member.size])
        return {name: found[name] for name in self.directions}

    def panels(self, sums: Sums) -> dict[str, Any]:
        """Return what the members' panels are drawn from, from one vector [S]."""
        found: dict[str, Any] = {}
        for member, start in self._placed():
            if isinstance(member, MetricWithPanels):
                found |= member.panels(sums[start : start + member.size])
        return found

    def _placed(self) -> Iterable[tuple[Metric, int]]:
        """Yield each member and where its cells begin."""
        start = 1
        for member in self.members:
            yield member, start
            start += member.size

    def _cells(
        self, outputs: Tensor, batch: Batch
    ) -> Iterable[tuple[int, Tensor | int, Tensor | float]]:
        """Yield what a batch adds, each after where its member's cells begin."""
        for member, start in self._placed():
            for index, value in member.cells(outputs, batch):
                if isinstance(value, Tensor) and value.dim() == 0:
                    raise ValueError(
                        f"{type(member).__name__} adds a tensor without dimensions, such as a "
                        "mean. Return a value for each example, [B], or a number that is the "
                        "same for all."
                    )
                yield start, index, value


def _add_to(sums: Tensor, indices: Tensor, value: Tensor | float) -> None:
    """Add values to the cells at `indices`, which may repeat."""
    if isinstance(value, Tensor):
        values = value.to(torch.float64)
    else:
        values = torch.full(indices.shape, value, dtype=torch.float64, device=sums.device)
    sums.index_add_(0, indices.reshape(-1), values.reshape(-1))


@dataclass(frozen=True, eq=False)
class Metrics:
    """What was measured over some examples: `a + b` is that of both, in any order.

    `sums` is float64 [S]; counts in it are exact below 2**53.
    """

    metric_set: MetricSet
    sums: Sums

    @property
    def count(self) -> int:
        """Number of examples."""
        return int(self.sums[0])

    def __add__(self, other: Metrics) -> Metrics:
        return Metrics(self.metric_set, self.sums + other.sums)

    def to_vector(self) -> Sums:
        """Return all sums as one vector, float64 [S], which may be added to others."""
        return self.sums.copy()

    def compute(self) -> dict[str, float]:
        """Return every number by name, NaN where it is not defined."""
        return {name: float(value) for name, value in self.metric_set.compute(self.sums).items()}

    def panels(self) -> dict[str, Any]:
        """Return what the report's panels are drawn from, as JSON; nothing for no examples."""
        return self.metric_set.panels(self.sums) if self.count else {}


@dataclass(frozen=True, eq=False)
class GroupedMetrics:
    """The metrics of K groups of examples, such as clients. `sums` is float64 [K, S]."""

    metric_set: MetricSet
    sums: Sums

    def take(self, groups: NDArray[np.int64]) -> GroupedMetrics:
        """Return the groups at these indices, in this order."""
        return GroupedMetrics(self.metric_set, self.sums[groups])

    @property
    def counts(self) -> NDArray[np.int64]:
        """Number of examples of each group, [K]."""
        return self.sums[:, 0].astype(np.int64)

    @property
    def finite(self) -> NDArray[np.bool_]:
        """Whether every sum of a group is, [K]."""
        whole: NDArray[np.bool_] = np.logical_and.reduce(np.isfinite(self.sums), axis=1)
        return whole

    def total(self) -> Metrics:
        """Return the metrics of all groups' examples."""
        return Metrics(self.metric_set, self.sums.sum(axis=0))

    def compute(self) -> dict[str, Sums]:
        """Return what `Metrics.compute` does for each group, [K] each."""
        return self.metric_set.compute(self.sums)
