"""From weights to whole numbers modulo 2^bits, whose sum over a cohort is exact, and back.

A client with weight w sends w times its difference in units of a step. The step is chosen so that
the largest sum that can be does not wrap around; what is beyond the agreed bounds is refused, not
cut off. Numbers such as counts and losses are whole numbers modulo 2^64.

Shape legend: D weights.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["BoundError", "Quantizer"]

_FRACTION = 2.0**-24  # the unit of numbers that are not whole
_EXACT_BITS = 48  # of a sum: a product of float64 is then right to a part of the step
_NUMBER_BITS = 63


class BoundError(ValueError):
    """What a client would send is beyond the bounds that the sum is safe within."""


@dataclass(frozen=True)
class Quantizer:
    """How the clients of a round turn what they send into whole numbers.

    Parameters
    ----------
    limit
        How far a single weight may be from the global one.
    bits
        Of a masked value, 16, 32 or 64: sums are modulo 2^bits.
    clients
        The most that a sum has.
    largest_weight, total_weight
        The most that one client weighs, and that all in a sum weigh together.
    toward_zero
        Whether numbers are rounded toward zero, so that no update becomes longer than it was, and
        not to the nearest.
    """

    limit: float
    bits: int
    clients: int
    largest_weight: int
    total_weight: int
    toward_zero: bool = False

    @cached_property
    def step(self) -> float:
        """The unit of sums: a power of two, so that nothing is rounded on the way back."""
        room = 2 ** (min(self.bits, _EXACT_BITS) - 1) - 1 - (self.clients + 1) // 2
        if room < 1:
            return math.inf
        mantissa, exponent = math.frexp(self.limit * self.total_weight / room)
        step: float = 2.0 ** (exponent - 1 if mantissa == 0.5 else exponent)
        return step

    @property
    def error(self) -> float:
        """The most that rounding changes a sum of all clients by, of one weight."""
        return self.step * self.clients * (1 if self.toward_zero else 0.5)

    @property
    def _most_number(self) -> int:
        return ((1 << _NUMBER_BITS) - 1) // max(1, self.clients)

    def values(self, differences: NDArray[np.float64], weight: int) -> NDArray[Any]:
        """Return `weight` times `differences` [D] as unsigned integers, negative ones wrapped.

        Raises `BoundError` if one is further away than the limit, or NaN, or the weight is beyond
        its bound.
        """
        if not 0 <= weight <= self.largest_weight:
            raise BoundError(
                f"it weighs {weight}, where {self.largest_weight} is the most that one may"
            )
        furthest = float(np.abs(differences).max()) if len(differences) else 0.0
        if not furthest <= self.limit:
            raise BoundError(
                f"it went {furthest:.4g}, beyond federated.secure_aggregation.range="
                f"{self.limit:g}, which may be raised, or optimizer.lr lowered"
            )
        scaled = differences * (weight / self.step)
        whole = np.trunc(scaled, out=scaled) if self.toward_zero else np.rint(scaled, out=scaled)
        return whole.astype(np.int64).astype(np.dtype(f"uint{self.bits}"))

    def sums(self, total: NDArray[Any]) -> NDArray[np.float64]:
        """Return sums of weighted differences [D] from those of `values`."""
        return total.view(np.dtype(f"int{self.bits}")).astype(np.float64) * self.step

    def whole_number(self, value: int) -> int:
        """Return a whole number modulo 2^64; `BoundError` if the clients' sum could wrap around."""
        if abs(value) > self._most_number:
            raise BoundError(f"a count of {value}, where {self._most_number} is the most")
        return value % 2**64

    def number(self, value: float) -> int:
        """Return a number in units of 2^-24 modulo 2^64; `BoundError` if too large, or NaN."""
        if not math.isfinite(value):
            raise BoundError(f"a number that is {value}")
        return self.whole_number(round(value / _FRACTION))

    def nearest_number(self, value: float) -> int:
        """Return `number` of what is nearest to `value` within the bounds; of NaN, the largest."""
        most = self._most_number
        units = math.inf if math.isnan(value) else value / _FRACTION
        return self.whole_number(round(min(max(units, -most), most)))

    @staticmethod
    def whole_sum(total: int) -> int:
        """Return the sum of what `whole_number` gave."""
        return total - 2**64 if total >= 2**63 else total

    @classmethod
    def number_sum(cls, total: int) -> float:
        """Return the sum of what `number` gave."""
        return cls.whole_sum(total) * _FRACTION
