"""What a search goes over: a dimension a key, written as Hydra writes what a sweep goes over.

::

    optimizer.lr=interval(0.01,1)               a number between these
    'optimizer.lr=tag(log, interval(0.01,1))'   the same, on a logarithmic scale
    'federated.local_epochs=range(1,9)'         1 to 8, as a sweep would run through them
    model=mlp,cnn                               one of these
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Literal

from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep

from heliotrope.config.keys import known_keys
from heliotrope.errors import ConfigError

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

__all__ = ["Dimension", "Value", "dimension_of"]

_DIGITS = 4  # of a number between two others: no result depends on more

Value = float | int | str
"""What a sampler proposes of a dimension: a number, or the text of a choice."""


@dataclass(frozen=True)
class Dimension:
    """The values that a search may give one key.

    Parameters
    ----------
    kind
        `float`, `int` or `choice`.
    low, high, step, log
        Of numbers: the least, the greatest (both may be drawn), their distance if they have one,
        and whether the scale is logarithmic.
    choices
        The texts of the others, as they are typed.
    """

    kind: Literal["float", "int", "choice"]
    low: float = 0
    high: float = 0
    step: float | None = None
    log: bool = False
    choices: tuple[str, ...] = ()

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Dimension:
        """Undo `to_json`."""
        return cls(**{**fields, "choices": tuple(fields["choices"])})

    def to_json(self) -> dict[str, Any]:
        """Return all of it for JSON."""
        return asdict(self) | {"choices": list(self.choices)}

    def distribution(self) -> BaseDistribution:
        """Return it as optuna knows it."""
        from optuna.distributions import (
            CategoricalDistribution,
            FloatDistribution,
            IntDistribution,
        )

        if self.kind == "choice":
            return CategoricalDistribution(self.choices)
        if self.kind == "int":
            step = int(self.step or 1)
            return IntDistribution(int(self.low), int(self.high), log=self.log, step=step)
        return FloatDistribution(self.low, self.high, log=self.log, step=self.step)

    def rounded(self, value: Value) -> Value:
        """Return a number as it is tried, with few digits: 0.0253, and 0.3 for 0.30000000000004."""
        if self.kind != "float":
            return value
        number = float(value)
        if self.step is not None:
            low, step = Decimal(str(self.low)), Decimal(str(self.step))
            return float(low + step * round((number - self.low) / self.step))
        return min(max(float(f"{number:.{_DIGITS}g}"), self.low), self.high)

    def extremes(self) -> tuple[str, ...]:
        """Return the texts of the values that are checked before any trial: all choices, or ends.

        If a key takes the least and the greatest number, it takes those between.
        """
        if self.kind == "choice":
            return self.choices
        return tuple(dict.fromkeys((str(self.low), str(self.high))))


def dimension_of(override: Override) -> Dimension:
    """Return what a sweep's override says of the values of its key.

    Raises `ConfigError` if it can be no dimension.
    """
    value, line = override.value(), override.input_line
    key = override.key_or_group
    if isinstance(value, IntervalSweep):
        assert value.start is not None
        assert value.end is not None
        low, high = sorted((value.start, value.end))
        whole = isinstance(value.start, int) and isinstance(value.end, int)
        if not whole and _takes_whole_numbers(key):
            if low != int(low) or high != int(high):
                raise ConfigError(
                    f"{line}: {key} takes whole numbers. Write such as {key}=interval(1,8)."
                )
            whole = True
        if whole:
            return _logarithmic(Dimension("int", int(low), int(high)), override)
        return _logarithmic(Dimension("float", low, high), override)
    if isinstance(value, RangeSweep) and not value.shuffle:
        numbers = list(value.range())
        if not numbers:
            raise ConfigError(f"{line} holds no number. Write such as '{key}=range(1,5)'.")
        return _logarithmic(_of_range(numbers, value.step), override)
    choices = tuple(dict.fromkeys(override.sweep_string_iterator()))
    return _logarithmic(Dimension("choice", choices=choices), override)


def _of_range(numbers: Sequence[float], step: float) -> Dimension:
    """Return the numbers that a sweep would run through, which are as far apart as `step`."""
    low, high = min(numbers), max(numbers)
    whole = all(isinstance(number, int) for number in numbers)
    return Dimension("int" if whole else "float", low, high, abs(step))


def _logarithmic(dimension: Dimension, override: Override) -> Dimension:
    """Return a dimension with the scale that the tags of its sweep say."""
    tags: set[str] = getattr(override.value(), "tags", set())
    line = override.input_line
    if unknown := sorted(tags - {"log"}):
        raise ConfigError(
            f"{line}: there is no tag {unknown[0]}. Write tag(log, ...) for a logarithmic scale."
        )
    if not tags:
        return dimension
    if dimension.kind == "choice" or dimension.step not in (None, 1) or dimension.low <= 0:
        raise ConfigError(
            f"{line}: a logarithmic scale is of numbers above 0 without steps. Write such as "
            f"'{override.key_or_group}=tag(log, interval(0.001,1))'."
        )
    return Dimension(dimension.kind, dimension.low, dimension.high, log=True)


def _takes_whole_numbers(key: str) -> bool:
    kinds = known_keys().get(key, "").split(" or ")
    return "int" in kinds and "float" not in kinds
