"""Numeric columns: scaled, and what is missing replaced by the mean and told beside it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from heliotrope.config.data import Fit
from heliotrope.data.columns import Raw, Values
from heliotrope.data.fields import Dense, Field, array_of, tensor_of
from heliotrope.data.info import Info
from heliotrope.data.mapped import Mapped
from heliotrope.data.preparation.base import Fitted, Grouped, Groups, Kind, Step
from heliotrope.data.preparation.counts import counted
from heliotrope.data.preparation.moments import Bounds, Scale, row_moments
from heliotrope.data.preparation.sums import ColumnSums
from heliotrope.data.stored import StoredColumn, stored_rows
from heliotrope.errors import DataError

__all__ = ["FittedNumbers", "Numbers", "OwnNumbers", "numbers"]

_USUAL = 4.0  # deviations from the mean that usual numbers lie within


@dataclass(frozen=True)
class Numbers(Step):
    """Make the field `numeric` of columns [N] of numbers: float32 [N, K + indicators].

    Numbers are taken as float32 from the start. Fitted to training rows, a column has an
    indicator of what is missing if these lack any of it; fitted otherwise, each column has one.
    Fitted to nothing, a column is scaled by its mean and deviation in `usual`, if they are there:
    they are known without these rows.
    """

    columns: tuple[str, ...]
    usual: tuple[tuple[float, float], ...] = ()

    # Rows of no training client take those of all.
    measured_for: ClassVar[tuple[Fit, ...]] = ("training", "per_client")
    fixed_size: ClassVar[bool] = True

    @property
    def told(self) -> str:
        return f"mean, deviation and number of values of {counted(len(self.columns))}"

    def measure(self, raw: Raw) -> ColumnSums:
        nothing = ColumnSums.of(np.empty((0, len(self.columns)), np.float32))
        return sum(map(ColumnSums.of, _blocks(raw, self.columns)), start=nothing)

    def fitted(self, statistic: ColumnSums | None) -> FittedNumbers:
        if statistic is None:
            usual = self.usual or ((0.0, 1.0),) * len(self.columns)
            means, deviations = zip(*usual, strict=True)
            return FittedNumbers(self.columns, means, deviations, self.columns)
        lacking = zip(self.columns, statistic.missing(), strict=True)
        return FittedNumbers(
            self.columns,
            statistic.means(),
            statistic.deviations(),
            tuple(column for column, missing in lacking if missing),
        )

    def by_group(self, statistic: ColumnSums) -> OwnNumbers:
        return OwnNumbers(self.columns, statistic.means(), statistic.deviations())

    def bounds(self) -> dict[str, Bounds | None]:
        known: list[Bounds | None] = [None] * len(self.columns)
        if self.usual:
            known = [(mean - _USUAL * width, mean + _USUAL * width) for mean, width in self.usual]
        return dict(zip(self.columns, known, strict=True))

    def moments(self, raw: Raw, bounds: Sequence[Bounds]) -> NDArray[np.float64]:
        return row_moments(numbers(raw, self.columns), bounds)

    def scaled(self, scales: Sequence[Scale]) -> FittedNumbers:
        means, deviations = ([s.mean for s in scales], [s.deviation for s in scales])
        # Which columns lack numbers is not told: each has an indicator.
        return FittedNumbers(self.columns, tuple(means), tuple(deviations), self.columns)


@dataclass(frozen=True)
class FittedNumbers(Fitted):
    """``(number - mean) / deviation``, and for each indicator 1 where its column has no number.

    A missing number becomes 0, the mean after scaling. So does every number of a column whose
    deviation is 0, which has no two in training: no weight has learned what others mean.
    """

    columns: tuple[str, ...]
    means: tuple[float, ...]
    deviations: tuple[float, ...]
    indicators: tuple[str, ...]

    kind: ClassVar[str] = "numbers"

    def reads(self) -> Mapping[str, Kind]:
        return dict.fromkeys(self.columns, "number")

    def fields(self, raw: Raw) -> Mapping[str, Field]:
        indicated = tuple(self.columns.index(column) for column in self.indicators)
        stored = stored_rows(raw, self.columns)
        if stored is None:
            prepare = _Prepared(self.means, self.deviations, indicated)
            return {"numeric": Dense(prepare.array(numbers(raw, self.columns)))}
        rows, places = stored
        prepare = _Prepared(self.means, self.deviations, indicated, tuple(places))
        return {"numeric": Mapped(rows, prepare)}

    def describe(self, info: Info) -> Info:
        return replace(info, numeric=_names(self.columns, self.indicators))


@dataclass(frozen=True)
class OwnNumbers(Fitted):
    """``(number - mean) / deviation`` by the mean and deviation of each group of training rows.

    `means` and `deviations` are those of all training rows, for rows of no group of theirs. A
    group that has no number in a column takes that mean, and one that has no two that deviation.
    Each column has an indicator.
    """

    columns: tuple[str, ...]
    means: tuple[float, ...]
    deviations: tuple[float, ...]

    kind: ClassVar[str] = "own_numbers"

    def reads(self) -> Mapping[str, Kind]:
        return dict.fromkeys(self.columns, "number")

    def fields(self, raw: Raw) -> Mapping[str, Field]:
        values = numbers(raw, self.columns)
        scaled = _scaled(values, self.means, self.deviations)
        return {"numeric": _with_indicators(scaled, np.isnan(values))}

    def grouped(self, raw: Raw, groups: Groups, known: Grouped) -> Mapping[str, Field]:
        values = numbers(raw, self.columns)
        known_values = values if known.raw is raw else numbers(known.raw, self.columns)
        scaled = _scaled(values, self.means, self.deviations)
        order = np.argsort(groups, kind="stable")
        ordered = groups[order]
        for group, rows in known.of(groups):
            first, end = np.searchsorted(ordered, [group, group + 1])
            own = order[first:end]
            scaled[own] = _scaled(values[own], *self._scale_of(ColumnSums.of(known_values[rows])))
        return {"numeric": _with_indicators(scaled, np.isnan(values))}

    def _scale_of(self, own: ColumnSums) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Return the means and deviations by which a group's numbers are scaled."""
        means = zip(own.counts, own.means(), self.means, strict=True)
        deviations = zip(own.deviations(), self.deviations, strict=True)
        return (
            tuple(mean if count else of_all for count, mean, of_all in means),
            tuple(deviation or of_all for deviation, of_all in deviations),
        )

    def describe(self, info: Info) -> Info:
        return replace(info, numeric=_names(self.columns, self.columns))


@dataclass(frozen=True)
class _Prepared:
    """Scales numbers, and puts beside them 1 where those of `indicated` columns are missing.

    Of rows that are read from a file, `places` says which cells are the columns; None for all.
    """

    means: tuple[float, ...]
    deviations: tuple[float, ...]
    indicated: tuple[int, ...]
    places: tuple[int, ...] | None = None

    def __call__(self, rows: Tensor) -> Tensor:
        """Return float32 [B, K + indicators] of rows [B, cells] of numbers."""
        values = as_float32(array_of(rows))
        if self.places is not None and self.places != tuple(range(values.shape[1])):
            values = values[:, list(self.places)]
        return tensor_of(self.array(values))

    def array(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return float32 [N, K + indicators] of numbers, float32 [N, K]."""
        scaled = _scaled(values, self.means, self.deviations)
        if not self.indicated:
            return scaled
        missing = np.isnan(values[:, list(self.indicated)])
        return np.concatenate([scaled, missing], axis=1, dtype=np.float32)


def _blocks(raw: Raw, columns: tuple[str, ...]) -> Iterator[NDArray[np.float32]]:
    """Yield columns of numbers as `numbers` does: at once if they are in memory, else in parts."""
    stored = stored_rows(raw, columns)
    if stored is None:
        yield numbers(raw, columns)
        return
    rows, places = stored
    for block in rows.blocks():
        yield as_float32(block if places == list(range(block.shape[1])) else block[:, places])


def numbers(raw: Raw, columns: tuple[str, ...]) -> NDArray[np.float32]:
    """Return columns of numbers side by side, float32 [N, K], NaN where one is missing.

    Raises `DataError` naming row and column of a number that is too large.
    """
    values = np.empty((len(raw), len(columns)), dtype=np.float32)
    for index, name in enumerate(columns):
        found = raw.columns[name]
        if isinstance(found, StoredColumn):
            raise DataError(
                f"{raw.origin}: the column {name} stays in a file, but data.fit=per_client and "
                "data.fit=private need it in memory. Set data.fit=training or none, or raise "
                "data.memory_mib."
            )
        if not isinstance(found, Values):
            raise DataError(f"{raw.origin}: the column {name} must hold numbers, as in training.")
        values[:, index] = as_float32(found.values)
    refuse_infinite(values, columns, raw.where)
    return values


def as_float32(values: NDArray[Any]) -> NDArray[np.float32]:
    """Return numbers as float32, of which those that are too large are infinite."""
    with np.errstate(over="ignore"):
        return values.astype(np.float32, copy=False)


def refuse_infinite(
    values: NDArray[np.float32], columns: Sequence[str], where: Callable[[int], str]
) -> None:
    """Raise `DataError` if one of the numbers [N, K] is infinite; `where` names the row."""
    wrong = np.isinf(values)
    if wrong.any():
        row, index = np.argwhere(wrong)[0].tolist()
        raise DataError(
            f"{where(row)}, column {columns[index]}: the number is infinite, or too "
            "large for float32. Mend it, or leave it empty."
        )


def _scaled(
    values: NDArray[np.float32], means: tuple[float, ...], deviations: tuple[float, ...]
) -> NDArray[np.float32]:
    """Return scaled columns, computed in float64: float32 [N, K].

    0 where a number is missing, or where the deviation is 0.
    """
    widths = np.array([deviation or np.inf for deviation in deviations])
    wide = values.astype(np.float64)
    wide -= np.array(means)
    wide /= widths
    scaled = wide.astype(np.float32)
    missing = np.isnan(scaled)
    if missing.any():
        scaled[missing] = 0
    return scaled


def _with_indicators(scaled: NDArray[np.float32], missing: NDArray[np.bool_]) -> Dense:
    return Dense(np.concatenate([scaled, missing], axis=1, dtype=np.float32))


def _names(columns: tuple[str, ...], indicators: tuple[str, ...]) -> tuple[str, ...]:
    return (*columns, *(f"{column} is missing" for column in indicators))
