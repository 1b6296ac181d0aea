"""The weighted mean of clients' weights, the same bits for any division of the clients.

`Reduction` adds clients wherever they are trained: a lane, a worker. `mean_of` merges such
partial sums. Because the sums are exact, the result depends only on who was added.

Floating-point numbers weigh by the clients' weights: the sums of their examples' weights, such as
their numbers. Integer and Boolean buffers (such as counters of batches) are averaged as whole
numbers by the same weights and rounded to the nearest.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from heliotrope.errors import RunFailedError

from ..updates import Failure, Scaling, Stack, Weights, is_finite
from .exact import Units, add_slices, moved, sum_of_differences

__all__ = ["Mean", "Outlier", "Partial", "Reduction", "mean_of", "merged"]

_TOGETHER = 8  # clients that came alone and wait to be added
_LARGE = 1 << 23  # bytes of a tensor that does not wait, since it would take as much memory again


@dataclass(frozen=True)
class Outlier:
    """A client's tensor that is too large to be cut into slices: kept as it is.

    `values` are float64 [*shape], of the array `name`; `weight` is the client's.
    """

    client: int
    weight: int
    name: str
    values: Tensor


@dataclass(frozen=True)
class Partial:
    """Exact sums over some clients of their arrays, times their weights.

    `sums` holds float64 [slices, D] of each floating-point tensor, int64 [D] of differences
    of the others, and float64 [slices, D] of differences that were `clipped`; `most_weight` is
    that of the `Reduction`. The numbers beside them are the
    clients', as in `Update`; `numbers` are what algorithms tell, each client's times its weight.
    """

    most_weight: int
    clients: tuple[int, ...]
    sums: Mapping[str, Tensor]
    outliers: tuple[Outlier, ...]
    weight: int
    loss_sums: tuple[float, ...]
    seen: int
    weight_seen: int
    steps: int
    numbers: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    clipped: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Mean:
    """How far clients went from the global weights, in the mean by their own weights.

    `differences` are float64, in the shapes of the weights.
    """

    clients: tuple[int, ...]
    weight: int
    differences: Mapping[str, Tensor]

    def weights(self, start: Weights) -> dict[str, Tensor]:
        """Return the mean weights in the types of the global ones, rounded once."""
        return {name: moved(value, self.differences[name]) for name, value in start.items()}


class Reduction:
    """Adds clients up; memory of one model's sums, however many clients there are.

    Parameters
    ----------
    weights
        From which what the clients send differs: see `Instruction.starts`.
    most_weight
        At least the sum of all clients' weights, and the same wherever clients are added.
    """

    def __init__(self, weights: Weights, most_weight: int) -> None:
        self._weights = weights
        self._most_weight = most_weight
        self._units = _units(weights, most_weight)
        self._sums: dict[str, Tensor] = {}
        self._starts: dict[str, Tensor] = {}  # of what is clipped, [D]
        self._waiting: dict[str, list[tuple[Tensor, int, Tensor | None]]] = {}
        self._outliers: list[Outlier] = []
        self._clients: list[int] = []
        self._loss_sums: list[float] = []
        self._numbers: dict[str, list[float]] = {}
        self._weight = self._seen = self._weight_seen = self._steps = 0

    def add(self, stack: Stack) -> list[Failure]:
        """Add the clients of a stack; return those that are left out, and why.

        What is within limits is finite: values are looked at more closely only if some are not.
        """
        failures: list[Failure] = []
        clipped = frozenset() if stack.scaling is None else stack.scaling.names
        within = {
            name: name in clipped or self._holds(name, value)
            for name, value in stack.arrays.items()
        }
        sound = stack.arrays.keys() == self._weights.keys() and min(stack.weights, default=0) >= 0
        if stack.scaling is not None:
            sound = sound and is_finite(stack.scaling.factors)
        if not (sound and all(within.values()) and all(map(is_finite, stack.states.values()))):
            rejected = stack.rejections(self._weights)
            failures = list(rejected.values())
            stack = stack.without(rejected)
        if not stack.clients:
            return failures
        for name, value in stack.arrays.items():
            if stack.scaling is not None and name in clipped:
                self._add_clipped(name, value, stack, stack.scaling)
            else:
                self._add(name, value, stack, within=within[name])
        self._clients += stack.clients
        self._loss_sums += stack.loss_sums
        for name, values in stack.numbers.items():
            pairs = zip(values, stack.weights, strict=True)
            self._numbers.setdefault(name, []).extend(value * weight for value, weight in pairs)
        self._weight += sum(stack.weights)
        self._seen += sum(stack.seen)
        self._weight_seen += sum(stack.weights_seen)
        self._steps += sum(stack.steps)
        return failures

    def _holds(self, name: str, values: Tensor) -> bool:
        start = self._weights.get(name)
        if start is None or values.shape[1:] != start.shape:
            return False
        if values.is_floating_point() != start.is_floating_point():
            return False
        return name not in self._units or self._units[name].holds(values)

    def _add(self, name: str, values: Tensor, stack: Stack, *, within: bool) -> None:
        flat = values.reshape(len(stack.clients), -1)
        if name not in self._units:
            start = self._weights[name].to(values.device, torch.int64).reshape(-1)
            steps = (flat.to(torch.int64) - start) * _column(stack.weights, flat)
            self._sums[name] = steps.sum(dim=0) + self._sums.get(name, 0)
            return
        units, weights = self._units[name], list(stack.weights)
        if not within:
            flat = flat.clone()
            for row, client in enumerate(stack.clients):
                if not units.holds(flat[row]):
                    kept = values[row].clone()
                    self._outliers.append(Outlier(client, weights[row], name, kept))
                    flat[row], weights[row] = 0.0, 0
        self._add_slices(name, flat, weights)

    def _add_clipped(self, name: str, values: Tensor, stack: Stack, scaling: Scaling) -> None:
        """Add how far the clients went, clipped: within limits by that."""
        if name not in self._starts:
            self._units[name] = Units.up_to(scaling.most, self._most_weight)
            self._starts[name] = self._weights[name].to(values.device).reshape(-1)
        flat = values.reshape(len(stack.clients), -1)
        self._add_slices(name, flat, list(stack.weights), scaling.factors)

    def _add_slices(
        self, name: str, flat: Tensor, weights: list[int], factors: Tensor | None = None
    ) -> None:
        if name not in self._sums:
            shape = (len(self._units[name].units), flat.shape[1])
            self._sums[name] = torch.zeros(shape, dtype=torch.float64, device=flat.device)
        if len(flat) > 1 or flat.nbytes > _LARGE:
            self._add_now(name, flat, weights, factors)
            return
        waiting = self._waiting.setdefault(name, [])
        waiting.append((flat[0], weights[0], factors))
        if len(waiting) == _TOGETHER:
            self._add_waiting(name)

    def _add_waiting(self, name: str) -> None:
        """Add the clients that came alone: several together take half the time."""
        waiting = self._waiting.pop(name, None)
        if waiting:
            values, weights, factors = zip(*waiting, strict=True)
            self._add_now(name, values, weights, None if factors[0] is None else torch.cat(factors))

    def _add_now(
        self,
        name: str,
        values: Tensor | Sequence[Tensor],
        weights: Sequence[int],
        factors: Tensor | None,
    ) -> None:
        scaled = None if factors is None else (self._starts[name], factors)
        add_slices(self._sums[name], values, weights, self._units[name], scaled)

    def partial(self) -> Partial | None:
        """Return what was added, or None if nothing was."""
        if not self._clients:
            return None
        for name in self._sums:
            self._add_waiting(name)
        return Partial(
            most_weight=self._most_weight,
            clients=tuple(sorted(self._clients)),
            sums={name: total.cpu() for name, total in self._sums.items()},
            outliers=tuple(self._outliers),
            weight=self._weight,
            loss_sums=tuple(self._loss_sums),
            seen=self._seen,
            weight_seen=self._weight_seen,
            steps=self._steps,
            numbers={name: tuple(values) for name, values in self._numbers.items()},
            clipped=frozenset(self._starts),
        )


def merged(partials: Sequence[Partial]) -> Partial:
    """Return the sums over the clients of all; there must be at least one."""
    first, *others = partials
    if not others:
        return first
    sums = dict(first.sums)
    for other in others:
        for name, total in other.sums.items():
            sums[name] = sums[name] + total
    return Partial(
        most_weight=first.most_weight,
        clients=tuple(sorted(client for part in partials for client in part.clients)),
        sums=sums,
        outliers=tuple(outlier for part in partials for outlier in part.outliers),
        weight=sum(part.weight for part in partials),
        loss_sums=tuple(loss for part in partials for loss in part.loss_sums),
        seen=sum(part.seen for part in partials),
        weight_seen=sum(part.weight_seen for part in partials),
        steps=sum(part.steps for part in partials),
        numbers={
            name: tuple(value for part in partials for value in part.numbers[name])
            for name in first.numbers
        },
        clipped=first.clipped,
    )


def mean_of(partials: Sequence[Partial], weights: Weights) -> Mean:
    """Return the mean over all clients; `weights` are those of the `Reduction`.

    Raises `RunFailedError` if they have no examples together: that mean is not a number.
    """
    whole = merged(partials)
    if whole.weight == 0:
        raise RunFailedError(
            f"All {len(whole.clients)} clients of the round report num-examples=0, so their "
            "updates weigh nothing. Leave clients without examples out of the round."
        )
    all_units = _units(weights, whole.most_weight)
    differences = {}
    for name, start in weights.items():
        if name in whole.clipped:
            total = whole.sums[name].sum(dim=0)
        elif name in all_units:
            own = sorted((o for o in whole.outliers if o.name == name), key=lambda o: o.client)
            total = _difference(whole, name, start, own)
        else:
            total = whole.sums[name].double()
        differences[name] = total.div_(whole.weight).view(start.shape)
    return Mean(whole.clients, whole.weight, differences)


def _difference(whole: Partial, name: str, start: Tensor, outliers: Sequence[Outlier]) -> Tensor:
    """Return the sum of differences of one tensor, float64 [D]; outliers last, in client order."""
    flat = start.reshape(-1)
    regular = whole.weight - sum(outlier.weight for outlier in outliers)
    difference = sum_of_differences(whole.sums[name], flat, regular)
    for outlier in outliers:
        step = outlier.values.reshape(-1).double() - flat.double()
        difference.add_(step, alpha=outlier.weight)
    return difference


def _units(weights: Weights, most_weight: int) -> dict[str, Units]:
    """Return how to cut each floating-point tensor, by name."""
    return {
        name: Units.of(value, most_weight)
        for name, value in weights.items()
        if value.is_floating_point()
    }


def _column(weights: Sequence[int], like: Tensor) -> Tensor:
    return torch.tensor(weights, dtype=torch.int64, device=like.device)[:, None]
