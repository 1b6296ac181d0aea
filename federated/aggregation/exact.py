"""Sums of floating-point numbers that are the same in any order and grouping: pre-rounding.

Each number is cut into slices, multiples of fixed units (Demmel and Nguyen 2013, "Fast
reproducible floating-point summation"). A slice has so few bits that float64 adds slices, times
whole weights, without rounding; and what does not round is associative. The units follow
from what everyone knows beforehand, the global weights and the sum of all examples' weights.

Shape legend: K clients, S slices, D weights of one tensor.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["MOST_WEIGHT", "Units", "add_slices", "moved", "sum_of_differences"]

_MANTISSA = 53  # bits of float64
_MARGIN = 8  # doublings of the largest global weight that clients may go beyond it
_LEAST_BITS = 8  # of a slice
_LEAST_RANGE = 0  # power of two: weights that begin at zero may go up to 1
_BLOCK = 1 << 18  # numbers worked on at once: for several threads, and yet in the cache

MOST_WEIGHT = (1 << (_MANTISSA - 3 - _LEAST_BITS)) - 1
"""What clients may weigh in all for their sum to be exact: 4.4e12."""


@dataclass(frozen=True)
class Units:
    """How the numbers of one tensor are cut.

    Parameters
    ----------
    limit
        Numbers up to this size can be cut.
    units
        Of each slice, [S] powers of two, the coarsest first. What is below half of the last
        is rounded away: 2^-64 of `limit` or less.
    """

    limit: float
    units: tuple[float, ...]

    @classmethod
    def of(cls, tensor: Tensor, most_weight: int) -> Units:
        """Return the units for clients that start from `tensor` and weigh `most_weight` in all.

        A sum may hold the clients' numbers and, subtracted, as many of the global tensor. Raises
        `ValueError` if they weigh too much for a sum to be exact.
        """
        largest = float(tensor.abs().amax()) if tensor.numel() else 0.0
        exponent = max(math.frexp(largest)[1] + _MARGIN, _LEAST_RANGE)
        return cls._of_exponent(exponent, most_weight)

    @classmethod
    def _of_exponent(cls, exponent: int, most_weight: int) -> Units:
        bits = _MANTISSA - 3 - most_weight.bit_length()  # a slice's own
        if bits < _LEAST_BITS:
            raise ValueError(f"weights of {most_weight} in all are too many for an exact sum")
        slices = math.ceil(64 / bits)
        units = tuple(2.0 ** (exponent - bits * (number + 1)) for number in range(slices))
        return cls(2.0**exponent, units)

    @classmethod
    def up_to(cls, size: float, most_weight: int) -> Units:
        """Return the units for numbers of at most `size`, that weigh `most_weight` in all."""
        return cls._of_exponent(math.frexp(size)[1], most_weight)

    def holds(self, values: Tensor) -> bool:
        """Return whether all values are within the limit; NaN is not."""
        if not values.numel():
            return True
        low, high = (float(extreme) for extreme in values.aminmax())
        return -self.limit <= low and high <= self.limit


def add_slices(
    sums: Tensor,
    values: Tensor | Sequence[Tensor],
    weights: Sequence[int],
    units: Units,
    scaled: tuple[Tensor, Tensor] | None = None,
) -> None:
    """Add the clients' slices, each times its client's weight, to `sums` in place.

    Parameters
    ----------
    sums
        float64 [S, D].
    values
        Floating point [K, D], or of each client [D], within the limit of `units`.
    weights
        [K] whole numbers.
    scaled
        A start [D] and factors, float64 [K]: instead of its values, of each client is added how far
        they are from the start, times its factor. That must be within the limit.
    """
    clients, size = len(values), sums.shape[1]
    width = min(size, max(1, _BLOCK // clients if sums.device.type == "cpu" else size))
    memory = torch.empty(2, clients, width, dtype=torch.float64, device=sums.device)
    column = torch.tensor(weights, dtype=torch.float64, device=sums.device)
    # Blocks by `split`: making each view by itself would take as long as the arithmetic.
    parts: Iterable[Tensor | tuple[Tensor, ...]]
    if isinstance(values, Tensor):
        parts = torch.split(values, width, dim=1)
    else:
        parts = zip(*(torch.split(row, width) for row in values), strict=True)
    begins = None if scaled is None else iter(torch.split(scaled[0], width))
    for part, *targets in zip(parts, *(torch.split(row, width) for row in sums), strict=True):
        rest, cut = memory[:, :, : len(targets[0])]
        if isinstance(part, Tensor):
            rest.copy_(part)
        else:
            for row, own in zip(rest, part, strict=True):
                row.copy_(own)
        if begins is not None and scaled is not None:
            rest.sub_(next(begins)).mul_(scaled[1][:, None])
        for target, slice_ in zip(targets, _slices(rest, cut, units), strict=True):
            if clients == 1:  # several times faster than the product of a matrix with one row
                target.add_(slice_[0], alpha=weights[0])
            else:
                target.addmv_(slice_.t(), column)


def sum_of_differences(sums: Tensor, start: Tensor, weight: int) -> Tensor:
    """Return what `sums` exceed `start` times the clients' weight by, float64 [D].

    Every subtraction and sum is rounded once, to float64; for weights of float64 the product of
    `start` and `weight` is, too. Nothing here depends on how the clients were divided.

    Parameters
    ----------
    sums
        float64 [S, D], on the CPU.
    start
        Floating point [D].
    weight
        Of all clients in `sums` together.
    """
    result = torch.empty(len(start), dtype=torch.float64)
    blocks = (torch.split(each, _BLOCK) for each in (result, start, *sums))
    for here, part, first, *others in zip(*blocks, strict=True):
        # Of float32 the product is exact: its 24 bits leave room for 29 in float64.
        torch.sub(first, part.double(), alpha=weight, out=here)
        for total in others:
            here.add_(total)
    return result


def moved(start: Tensor, difference: Tensor) -> Tensor:
    """Return `start` plus a float64 difference of its shape, rounded once to the type of `start`.

    Whole numbers move by the difference rounded to the nearest.
    """
    if not start.is_floating_point():
        whole = torch.round(difference).to(torch.int64)
        return (start.to(torch.int64) + whole).to(start.dtype)
    flat, way = start.reshape(-1), difference.reshape(-1)
    out = torch.empty_like(flat)
    memory = torch.empty(min(_BLOCK, len(flat)), dtype=torch.float64)
    for to, part, step in zip(
        *(torch.split(each, _BLOCK) for each in (out, flat, way)), strict=True
    ):
        to.copy_(memory[: len(part)].copy_(part).add_(step))
    return out.view(start.shape)


def _slices(rest: Tensor, cut: Tensor, units: Units) -> Iterator[Tensor]:
    """Yield the slices of float64 numbers, in `cut`, and the last in `rest`, which held them."""
    for unit in units.units[:-1]:
        yield _rounded(rest, unit, out=cut)
        rest.sub_(cut)
    yield _rounded(rest, units.units[-1], out=rest)


def _rounded(values: Tensor, unit: float, out: Tensor) -> Tensor:
    """Return float64 `values`, up to 2^51 units, rounded to multiples of `unit`.

    The sum with a number whose last bit is worth a unit has no bits below it.
    """
    shift = 1.5 * 2.0 ** (_MANTISSA - 1) * unit
    return torch.add(values, shift, out=out).sub_(shift)
