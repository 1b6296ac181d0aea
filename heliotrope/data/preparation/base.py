"""From columns to batches: steps, what they must know of the training rows, and the fitted whole.

A `Step` makes one or two fields of a batch. What it must know, such as a mean, it takes from
statistics of the training rows that add: those of all rows are the sum of those of any groups of
rows, to the digit, so that clients can tell theirs and no rows need to be pooled.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Literal, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from heliotrope.config.data import Fit
from heliotrope.data.columns import Raw
from heliotrope.data.examples import Examples
from heliotrope.data.fields import Field
from heliotrope.data.info import Info
from heliotrope.data.preparation.moments import Bounds, Scale
from heliotrope.errors import DataError

__all__ = [
    "Fit",
    "Fitted",
    "Grouped",
    "Groups",
    "Kind",
    "Preparation",
    "Statistic",
    "Statistics",
    "Step",
]

Kind = Literal["number", "word", "text", "stream", "image", "id", "array"]
"""What a column holds: numbers, words of a small set, texts, a long text, pixels, ids or arrays."""

Groups = NDArray[np.int64]
"""Which group of rows each example belongs to, [N] numbers from 0 on."""


@dataclass(frozen=True, eq=False)
class Grouped:
    """Rows that others of their groups are scaled by, and the group of each."""

    raw: Raw
    groups: Groups

    def of(self, groups: Groups) -> Iterator[tuple[int, NDArray[np.int64]]]:
        """Yield each group that is in `groups`, too, and the indices of its rows here."""
        order = np.argsort(self.groups, kind="stable")
        found, starts = np.unique(self.groups[order], return_index=True)
        wanted = np.isin(found, groups).tolist()
        pieces = np.split(order, starts[1:]) if len(order) else []
        for group, rows, asked in zip(found.tolist(), pieces, wanted, strict=True):
            if asked:
                yield group, rows


class Statistic(Protocol):
    """What a step must know: a value with `+`."""

    def __add__(self, other: Self, /) -> Self:
        """Return the statistic of the rows of both."""

    def to_bytes(self) -> bytes:
        """Return the message with which a client tells it."""


class Step(ABC):
    """Makes fields of a batch from columns; not fitted."""

    measured_for: ClassVar[tuple[Fit, ...]] = ("training",)
    """Kinds of fit that need a statistic of the rows."""

    fixed_size: ClassVar[bool] = False
    """Whether the message that tells the statistic is as long for any rows."""

    @property
    def told(self) -> str:
        """What a client tells with its statistic, to be formatted with that."""
        return ""

    def measure(self, raw: Raw) -> Any:
        """Return the `Statistic` of these rows."""
        raise NotImplementedError(f"{self} needs no statistic")

    @abstractmethod
    def fitted(self, statistic: Any) -> Fitted:
        """Return the step, fitted to rows of this statistic; None fits it to nothing.

        Raises `DataError` if it cannot be fitted to these rows.
        """

    def by_group(self, statistic: Any) -> Fitted:
        """Return the step, fitted to each client's own rows if it scales numbers.

        `statistic` is that of all clients' rows, None if the step needs none with this fit.
        """
        return self.fitted(statistic)

    def bounds(self) -> Mapping[str, Bounds | None]:
        """Return the columns that it scales by a mean and a deviation, with bounds of each.

        They must be known without the rows; None where nobody knows any.
        """
        return {}

    def moments(self, raw: Raw, bounds: Sequence[Bounds]) -> NDArray[np.float64]:
        """Return what each row adds to count, sum and sum of squares of these columns, [N, K, 3].

        `bounds` are those of each column, in the order of the method of this name.
        """
        raise NotImplementedError(f"{self} scales no numbers")

    def scaled(self, scales: Sequence[Scale]) -> Fitted:
        """Return the step that scales these columns so, whatever the rows are."""
        raise NotImplementedError(f"{self} scales no numbers")


class Fitted(ABC):
    """A fitted step: a dataclass of numbers, texts and tuples of these, so that it can be saved."""

    kind: ClassVar[str]
    of_targets: ClassVar[bool] = False
    """Whether new rows, which are to be predicted, may lack its columns."""

    @abstractmethod
    def reads(self) -> Mapping[str, Kind]:
        """Return the columns that it reads, and what they hold."""

    @abstractmethod
    def fields(self, raw: Raw) -> Mapping[str, Field]:
        """Return fields of the batch, of all examples.

        Raises `DataError` naming origin, row and column of what it has no value for.
        """

    def grouped(self, raw: Raw, groups: Groups, known: Grouped) -> Mapping[str, Field]:  # noqa: ARG002
        """Return fields of which rows are fitted to the rows of their group in `known`, if any are.

        Those of a group that is not there are made by `fields`' rule.
        """
        return self.fields(raw)

    @abstractmethod
    def describe(self, info: Info) -> Info:
        """Return `info` with what it knows."""


@dataclass(frozen=True)
class Statistics:
    """Of each step, what must be known of some rows; None of steps that need nothing."""

    by_step: tuple[Any, ...]

    @classmethod
    def of(cls, steps: Sequence[Step], raw: Raw, fit: Fit) -> Statistics:
        """Return the statistics of the rows of `raw`."""
        return cls(tuple(step.measure(raw) if fit in step.measured_for else None for step in steps))

    def __add__(self, other: Statistics) -> Statistics:
        pairs = zip(self.by_step, other.by_step, strict=True)
        return Statistics(tuple(None if a is None else a + b for a, b in pairs))

    def to_bytes(self) -> bytes:
        """Return the message with which a client tells all of them."""
        return b"".join(statistic.to_bytes() for statistic in self.by_step if statistic is not None)

    def told(self, steps: Sequence[Step]) -> tuple[str, ...]:
        """Return what these tell, such as "mean and deviation of the pixels", a phrase a step."""
        pairs = zip(steps, self.by_step, strict=True)
        return tuple(
            step.told.format(statistic) for step, statistic in pairs if statistic is not None
        )


@dataclass(frozen=True)
class Preparation:
    """What every split of a dataset, and new rows, go through before a model sees them.

    Parameters
    ----------
    steps
        The fitted steps.
    fit
        What they were fitted to.
    task
        The task that the data poses.
    """

    steps: tuple[Fitted, ...]
    fit: Fit
    task: str

    @classmethod
    def of(cls, steps: Sequence[Step], statistics: Statistics, fit: Fit, task: str) -> Preparation:
        """Fit the steps to rows of which the statistics are known."""
        fitted = [
            step.by_group(statistic) if fit == "per_client" else step.fitted(statistic)
            for step, statistic in zip(steps, statistics.by_step, strict=True)
        ]
        return cls(tuple(fitted), fit, task)

    def apply(
        self, raw: Raw, groups: Groups | None = None, training: Raw | None = None
    ) -> Examples:
        """Return the examples of a split, or new rows, which may lack what is to be predicted.

        Parameters
        ----------
        raw
            The rows.
        groups
            With `data.fit=per_client`, which of these training rows are scaled together, such as
            those of a client: [N].
        training
            Without `groups`: training rows, by which those of the same natural group are scaled.
            Rows of another group, and all without these, are scaled by what all clients told.

        Raises
        ------
        DataError
            If a column is missing, or holds what the preparation has no place for.
        """
        known = None if groups is None else Grouped(raw, groups)
        if self.fit != "per_client":
            training = None
        if training is not None and training.keys is not None and raw.keys is not None:
            both = np.concatenate([raw.keys, training.keys])
            numbered = np.unique(both, return_inverse=True)[1].astype(np.int64)
            groups, known = numbered[: len(raw)], Grouped(training, numbered[len(raw) :])
        fields: dict[str, Field] = {}
        for step in self.steps:
            lacking = [name for name in step.reads() if name not in raw.columns]
            if lacking and step.of_targets:
                continue
            if lacking:
                raise DataError(
                    f"{raw.origin} has no column {lacking[0]}, which the model was trained with. "
                    f"It has {', '.join(raw.columns)}. Add the column, or name another dataset."
                )
            if groups is None or known is None:
                fields.update(step.fields(raw))
            else:
                fields.update(step.grouped(raw, groups, known))
        return Examples(fields, raw.keys)

    def info(self) -> Info:
        """Return what a task and a model must know."""
        info = Info(task=self.task)
        for step in self.steps:
            info = step.describe(info)
        return info

    def to_json(self) -> dict[str, Any]:
        """Return what `heliotrope.data.preparation.from_json` takes: values that JSON has."""
        steps = [{"kind": step.kind, **asdict(step)} for step in self.steps]  # type: ignore[call-overload]
        return {"fit": self.fit, "task": self.task, "steps": steps}
