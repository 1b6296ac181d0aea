"""A stacked step for any number of clients, made of recordings for two numbers of them.

A recording holds for the sizes that it was made with. Where two recordings of the same step, for
different numbers of clients, are the same but for whole numbers in proportion to these, the step
for any other number is known without another recording: it calls the same kernels on the same
shapes as a recording of it would, and so gives the same bits. Rounds whose cohorts differ in size,
as those of Poisson sampling do, would otherwise spend as long on recordings as on training.

Shape legend: K clients in the stack.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from functools import partial
from typing import Any

from torch import fx, nn

from .capture import CapturedStep

__all__ = ["StackSizes"]

_Shape = tuple[tuple[int, ...], ...]
_LEAST = 2  # clients: the only one of a stack may be broadcast, or its dimension squeezed


class StackSizes:
    """The stacked steps of a trainer that differ in nothing but their number of clients.

    Shapes are those of a step's factors and fields, [K, ...] each.
    """

    def __init__(self) -> None:
        self._recorded: dict[_Shape, CapturedStep] = {}  # the latest, by shape but for K
        self._numbers: dict[_Shape, int] = {}  # its K
        self._programs: dict[_Shape, Callable[..., Any]] = {}

    def add(self, shape: _Shape, step: CapturedStep) -> None:
        """Take note of a recorded step."""
        each, clients = _without_clients(shape)
        if clients < _LEAST or not step.pure or each in self._programs:
            return
        if each in self._recorded:
            program = _for_any(self._recorded[each], self._numbers[each], step, clients)
            if program is not None:
                self._programs[each] = program
        self._recorded[each], self._numbers[each] = step, clients

    def step(self, shape: _Shape) -> CapturedStep | None:
        """Return the step for a shape, or None if what was recorded does not tell."""
        each, clients = _without_clients(shape)
        if clients < _LEAST or each not in self._programs:
            return None
        recorded, number = self._recorded[each], self._numbers[each]
        return CapturedStep(
            partial(self._programs[each], clients),
            recorded.work // number * clients,
            recorded.activation_bytes // number * clients,
            pure=True,
            graph=recorded.graph,
        )


def _without_clients(shape: _Shape) -> tuple[_Shape, int]:
    return tuple(size[1:] for size in shape), shape[0][0]


class _DifferentError(Exception):
    """Two recordings differ by more than their numbers of clients."""


def _for_any(
    one: CapturedStep, clients: int, other: CapturedStep, others: int
) -> Callable[..., Any] | None:
    """Return (K, what `replay` takes) -> what it returns, if two recordings tell it."""
    try:
        graph = _Merge(clients, others).merged(one.graph, other.graph)
    except _DifferentError:
        return None
    program: Callable[..., Any] = fx.GraphModule(nn.Module(), graph).forward
    return program


class _Merge:
    """Builds the graph for K clients from those for two numbers of them."""

    def __init__(self, clients: int, others: int) -> None:
        self._clients, self._others = clients, others
        self._graph = fx.Graph()
        self._number = self._graph.placeholder("clients")
        self._multiples = {1: self._number}
        self._nodes: dict[fx.Node, tuple[fx.Node, fx.Node]] = {}  # one's -> the other's, ours

    def merged(self, one: fx.Graph, other: fx.Graph) -> fx.Graph:
        """Return the graph; `_DifferentError` if the two do not tell it."""
        if len(one.nodes) != len(other.nodes):
            raise _DifferentError
        for mine, theirs in zip(one.nodes, other.nodes, strict=True):
            alike = mine.op == theirs.op and mine.target == theirs.target
            # A kernel that was chosen by its sizes is the same for all K only if they are.
            if not alike or mine.meta.get("chosen_by") != theirs.meta.get("chosen_by"):
                raise _DifferentError
            args, kwargs = (
                self._of(mine.args, theirs.args),
                self._of(mine.kwargs, theirs.kwargs),
            )
            ours = self._graph.create_node(mine.op, mine.target, args, kwargs)
            self._nodes[mine] = theirs, ours
        return self._graph

    def _of(self, mine: Any, theirs: Any) -> Any:
        """Return an argument for K clients, from those for the two numbers."""
        if isinstance(mine, fx.Node):
            theirs_too, ours = self._nodes[mine]
            if theirs is not theirs_too:
                raise _DifferentError
            return ours
        if type(mine) is not type(theirs):
            raise _DifferentError
        if isinstance(mine, tuple | list):
            if len(mine) != len(theirs):
                raise _DifferentError
            return type(mine)(self._of(*pair) for pair in zip(mine, theirs, strict=True))
        if isinstance(mine, dict):
            if mine.keys() != theirs.keys():
                raise _DifferentError
            return {name: self._of(value, theirs[name]) for name, value in mine.items()}
        if mine == theirs:
            return mine
        if type(mine) is int and mine * self._others == theirs * self._clients:
            return self._multiple(*divmod(mine, self._clients))
        raise _DifferentError

    def _multiple(self, times: int, rest: int) -> fx.Node:
        if rest:
            raise _DifferentError
        if times not in self._multiples:
            made = self._graph.call_function(operator.mul, (self._number, times))
            self._multiples[times] = made
        return self._multiples[times]
