"""What is to be predicted, and numbers that are used as they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from heliotrope.config.data import Fit
from heliotrope.data.columns import Raw, Strings, Values
from heliotrope.data.fields import Dense, Field
from heliotrope.data.info import Info
from heliotrope.data.preparation.base import Fitted, Kind, Step
from heliotrope.data.preparation.counts import indices_of
from heliotrope.data.preparation.moments import Bounds, Scale, row_moments
from heliotrope.data.preparation.numbers import numbers
from heliotrope.data.preparation.sums import ColumnSums
from heliotrope.errors import DataError, closest

__all__ = ["FittedIds", "FittedLabels", "FittedTarget", "Ids", "Labels", "Target"]

_MOST_NAMED = 20


@dataclass(frozen=True)
class Labels(Step):
    """Make the field `label`, int64 [N], of a column of class indices or of class names.

    Parameters
    ----------
    names
        The classes in the order of their indices. They belong to the question, as the columns'
        names do: all know them, and nothing is fitted.
    numbered
        Whether the names are made of the indices, since nobody has named the classes.
    """

    names: tuple[str, ...]
    column: str = "label"
    numbered: bool = False

    measured_for: ClassVar[tuple[Fit, ...]] = ()

    def fitted(self, statistic: None) -> FittedLabels:  # noqa: ARG002 - it needs none
        return FittedLabels(self.column, self.names)

    def by_name(self, raw: Raw) -> Raw:
        """Return rows with the names of classes instead of their indices, if they have names.

        For a model of other data, whose classes may have other indices. Rows whose indices are
        none stay as they are, to be refused.
        """
        column = raw.columns[self.column]
        if self.numbered or not isinstance(column, Values):
            return raw
        if not np.isin(column.values, np.arange(len(self.names))).all():
            return raw
        words = Strings(column.values.astype(np.int32), self.names)
        return replace(raw, columns={**raw.columns, self.column: words})


@dataclass(frozen=True)
class FittedLabels(Fitted):
    """The classes in the order of their indices."""

    column: str
    names: tuple[str, ...]

    kind: ClassVar[str] = "labels"
    of_targets: ClassVar[bool] = True

    def reads(self) -> Mapping[str, Kind]:
        return {self.column: "word"}

    def fields(self, raw: Raw) -> Mapping[str, Field]:
        found = raw.columns[self.column]
        if isinstance(found, Strings):
            table = [*indices_of(found.words, self.names), -1]
            labels = np.array(table, dtype=np.int64)[found.codes]
        else:
            assert isinstance(found, Values)
            with np.errstate(invalid="ignore"):  # a missing one
                labels = found.values.astype(np.int64)
            labels = np.where(labels == found.values, labels, -1)
        wrong = np.flatnonzero((labels < 0) | (labels >= len(self.names)))
        if len(wrong):
            raise self._refused(raw, found, wrong.tolist())
        return {"label": Dense(labels)}

    def describe(self, info: Info) -> Info:
        return replace(info, class_names=self.names)

    def _refused(self, raw: Raw, found: Strings | Values, rows: list[int]) -> DataError:
        where = f"{raw.where(rows[0])}, column {self.column}"
        more = f" ({len(rows):,} such rows)" if len(rows) > 1 else ""
        if isinstance(found, Values):
            return DataError(
                f"{where}: found label {found.values[rows[0]]}{more}; expected a "
                f"whole number from 0 to {len(self.names) - 1}. Mend or remove the rows."
            )
        code = int(found.codes[rows[0]])
        if code < 0:
            return DataError(f"{where}: the label is missing{more}. Remove the rows.")
        word = found.words[code]
        names, others = (", ".join(n[:_MOST_NAMED]) for n in (self.names, found.words))
        return DataError(
            f"{where}: the class {word}{more} is none that the model was trained with: {names}. "
            f"The data has {others}.{closest(word, self.names)} Remove the rows, or train with "
            "some of them."
        )


@dataclass(frozen=True)
class Target(Step):
    """Make a field of numbers to be predicted, float32 [N] in their own unit.

    Parameters
    ----------
    field
        Its name in a batch: `target` or `rating`.
    """

    field: str = "target"
    column: str = "target"

    fixed_size: ClassVar[bool] = True

    @property
    def told(self) -> str:
        return f"mean and deviation of the {self.field}"

    def measure(self, raw: Raw) -> ColumnSums:
        return ColumnSums.of(numbers(raw, (self.column,)))

    def fitted(self, statistic: ColumnSums | None) -> FittedTarget:
        if statistic is None:
            return FittedTarget(self.field, self.column, 0.0, 1.0)
        (mean,), (deviation,) = statistic.means(), statistic.deviations()
        return FittedTarget(self.field, self.column, mean, deviation or 1.0)

    def bounds(self) -> dict[str, Bounds | None]:
        return {self.column: None}

    def moments(self, raw: Raw, bounds: Sequence[Bounds]) -> NDArray[np.float64]:
        return row_moments(numbers(raw, (self.column,)), bounds)

    def scaled(self, scales: Sequence[Scale]) -> FittedTarget:
        (scale,) = scales
        return FittedTarget(self.field, self.column, scale.mean, scale.deviation)


@dataclass(frozen=True)
class FittedTarget(Fitted):
    """Mean and deviation of what is to be predicted; batches hold it unscaled."""

    field: str
    column: str
    mean: float
    deviation: float

    kind: ClassVar[str] = "target"
    of_targets: ClassVar[bool] = True

    def reads(self) -> Mapping[str, Kind]:
        return {self.column: "number"}

    def fields(self, raw: Raw) -> Mapping[str, Field]:
        values = numbers(raw, (self.column,))[:, 0]
        missing = np.flatnonzero(np.isnan(values))
        if len(missing):
            raise DataError(
                f"{raw.where(missing[0])}, column {self.column}: the number to be "
                f"predicted is missing ({len(missing):,} such rows). Remove the rows."
            )
        return {self.field: Dense(values)}

    def describe(self, info: Info) -> Info:
        return replace(info, target_mean=self.mean, target_std=self.deviation)


@dataclass(frozen=True)
class Ids(Step):
    """Make the field `user` or `item`, int64 [N], of a column of numbers from 0 on.

    Parameters
    ----------
    size
        How many there are; all know them beforehand, and nothing is fitted.
    """

    column: str
    size: int

    measured_for: ClassVar[tuple[Fit, ...]] = ()

    def fitted(self, statistic: None) -> FittedIds:  # noqa: ARG002 - it needs none
        return FittedIds(self.column, self.size)


@dataclass(frozen=True)
class FittedIds(Fitted):
    """Numbers below `size`, used as they are."""

    column: str
    size: int

    kind: ClassVar[str] = "ids"

    def reads(self) -> Mapping[str, Kind]:
        return {self.column: "id"}

    def fields(self, raw: Raw) -> Mapping[str, Field]:
        found = raw.columns[self.column]
        assert isinstance(found, Values)
        with np.errstate(invalid="ignore"):  # a missing one
            ids = found.values.astype(np.int64)
        wrong = np.flatnonzero((ids != found.values) | (ids < 0) | (ids >= self.size))
        if len(wrong):
            raise DataError(
                f"{raw.where(wrong[0])}, column {self.column}: found "
                f"{found.values[wrong[0]]:g}; expected a whole number from 0 to {self.size - 1}. "
                "Mend or remove the row."
            )
        return {self.column: Dense(ids)}

    def describe(self, info: Info) -> Info:
        sizes = {"user": info.users, "item": info.items, self.column: self.size}
        return replace(info, users=sizes["user"], items=sizes["item"])
