"""Inputs of secure aggregation from what clients have trained, and the mean from their sum.

Floating-point arrays are masked values; counters and what is told beside the weights are numbers.

Shape legend: K clients of a stack, D floating-point weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from heliotrope.errors import RunFailedError

from ..secure_aggregation.masking import Masking
from ..secure_aggregation.messages import MaskedInput, Vector
from ..secure_aggregation.quantization import BoundError, Quantizer
from ..updates import Failure, Instruction, Stack, Update, Weights
from .reduction import Mean

__all__ = ["Layout", "MaskedReduction"]

_COUNTS = 4  # weight, examples seen, their weights, steps


@dataclass(frozen=True)
class Layout:
    """Where what clients send stands in a vector.

    Parameters
    ----------
    starts
        What it differs from: see `Instruction.starts`.
    told
        Names of the numbers that algorithms tell.
    """

    starts: Weights
    told: tuple[str, ...]

    @classmethod
    def of(cls, instruction: Instruction, weights: Weights) -> Layout:
        """Return that of a round's clients, which begin from `weights`."""
        told = {name for algorithm in instruction.algorithms for name in algorithm.tells}
        return cls(instruction.starts(weights), tuple(sorted(told)))

    @property
    def floating(self) -> list[str]:
        """The names of the arrays that are masked values, in order."""
        return [name for name, value in self.starts.items() if value.is_floating_point()]

    @property
    def whole(self) -> list[str]:
        """The names of the arrays that are numbers, in order."""
        return [name for name, value in self.starts.items() if not value.is_floating_point()]

    @property
    def size(self) -> int:
        """The number of masked values."""
        return sum(self.starts[name].numel() for name in self.floating)

    @property
    def numbers(self) -> int:
        """The number of numbers beside them: the arrays', the counts, the loss, what is told."""
        whole = sum(self.starts[name].numel() for name in self.whole)
        return whole + _COUNTS + 1 + len(self.told)

    def mean(
        self, total: Vector, clients: Sequence[int], quantizer: Quantizer
    ) -> tuple[Mean, Update]:
        """Return the mean of `clients` from the sum of their vectors, and what they told.

        Raises `RunFailedError` if they have no examples together.
        """
        numbers = [quantizer.whole_sum(number) for number in total.numbers.tolist()]
        weight, seen, weight_seen, steps = (numbers.pop() for _ in range(_COUNTS))
        told = [numbers.pop() for _ in range(len(self.told) + 1)]
        if weight == 0:
            raise RunFailedError(
                f"All {len(clients)} clients of the round report num-examples=0, so their updates "
                "weigh nothing. Leave clients without examples out of the round."
            )
        sums = torch.from_numpy(quantizer.sums(total.values))
        differences: dict[str, Tensor] = {}
        counted = torch.tensor(numbers, dtype=torch.float64)
        for names, source in ((self.floating, sums), (self.whole, counted)):
            at = 0
            for name in names:
                shape = self.starts[name].shape
                part = source[at : at + shape.numel()]
                differences[name] = (part / weight).view(shape)
                at += shape.numel()
        mean = Mean(tuple(clients), weight, {name: differences[name] for name in self.starts})
        loss, *others = (quantizer.number_sum(number % 2**64) for number in told)
        each = {name: value / weight for name, value in zip(self.told, others, strict=True)}
        return mean, Update(tuple(clients), {}, weight, loss, seen, weight_seen, steps, each)


class MaskedReduction:
    """Turns stacks of clients into masked inputs, as `Reduction` adds them up.

    Parameters
    ----------
    layout
        Of the vectors.
    masking
        How numbers are made whole, and each client's masks.
    """

    def __init__(self, layout: Layout, masking: Masking) -> None:
        self._layout, self._masking = layout, masking
        self.inputs: list[MaskedInput] = []

    def add(self, stack: Stack) -> list[Failure]:
        """Mask the clients of a stack; return those that are left out, and why."""
        rejected = stack.rejections(self._layout.starts)
        failures = list(rejected.values())
        stack = stack.without(rejected)
        for row, client in enumerate(stack.clients):
            try:
                vector = self._vector(stack, row)
            except BoundError as error:
                failures.append(Failure(client, f"update rejected: {error}", "diverged"))
                continue
            self.inputs.append(self._masking.masks[client].masked(vector))
        return failures

    def _vector(self, stack: Stack, row: int) -> Vector:
        quantizer, weight, layout = self._masking.quantizer, stack.weights[row], self._layout
        values = [
            _named(quantizer, name, self._difference(stack, name, row), weight)
            for name in layout.floating
        ]
        numbers: list[int] = []
        for name in layout.whole:
            steps = stack.arrays[name][row].to(torch.int64) - layout.starts[name].to(torch.int64)
            numbers += [quantizer.whole_number(n * weight) for n in steps.reshape(-1).tolist()]
        told = [quantizer.number(stack.numbers[n][row] * weight) for n in layout.told]
        told.insert(0, quantizer.nearest_number(stack.loss_sums[row]))
        counts = (weight, stack.seen[row], stack.weights_seen[row], stack.steps[row])
        numbers += reversed(told)
        numbers += [quantizer.whole_number(count) for count in reversed(counts)]
        dtype = np.dtype(f"uint{quantizer.bits}")
        return Vector(
            np.concatenate(values) if values else np.empty(0, dtype),
            np.array(numbers, dtype=np.uint64),
        )

    def _difference(self, stack: Stack, name: str, row: int) -> Tensor:
        """Return how far a client went, float64 [D], clipped if that is still to be done."""
        value = stack.arrays[name][row]
        way = value.double() - self._layout.starts[name].to(value.device)
        if stack.scaling is not None and name in stack.scaling.names:
            way = way * stack.scaling.factors[row]
        return way.reshape(-1).cpu()


def _named(quantizer: Quantizer, name: str, way: Tensor, weight: int) -> np.ndarray:
    try:
        return quantizer.values(way.numpy(), weight)
    except BoundError as error:
        raise BoundError(f"{name}: {error}") from error
