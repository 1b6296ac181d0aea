"""A training step recorded once and replayed: autograd's work without autograd's overhead.

The step is run under a dispatch mode that writes down every kernel call, forward and backward,
as an fx graph; replaying it calls the same kernels on other tensors of the same shapes. What
is gained: no modules, no autograd graph, no optimizer object per step; and a gradient that is
one matrix product is handed over as its two factors, so that the optimizer can multiply them
straight into the weights. Recording takes milliseconds, so nothing is cached on disk.

The arithmetic is that of the eager step, kernel by kernel, only that the last addition is
fused, and that `kernels` knows some which do the same in less time.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import BuiltinFunctionType
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from .kernels import quicker

__all__ = ["Gradient", "NotCapturableError", "Step", "capture", "eager_step"]

_aten = torch.ops.aten

Gradient = Tensor | tuple[Tensor, Tensor]
"""A gradient, or two matrices (or stacks of matrices) whose product it is."""

Losses = Callable[..., Tensor]
"""(parameters, keys, inputs, targets) -> losses, [B] of one client or [A, B] of a stack."""

Step = Callable[
    [Sequence[Tensor], Mapping[str, Tensor], Tensor, Tensor, Tensor],
    tuple[Tensor, Sequence[Gradient]],
]
"""(parameters, keys, inputs, targets, weights) -> (sum of weights * losses over B, gradients)."""


class NotCapturableError(Exception):
    """The step cannot be replayed; the message says why."""


def eager_step(losses: Losses) -> Step:
    """Return the step by plain autograd."""

    def step(
        parameters: Sequence[Tensor],
        keys: Mapping[str, Tensor],
        inputs: Tensor,
        targets: Tensor,
        weights: Tensor,
    ) -> tuple[Tensor, Sequence[Gradient]]:
        with torch.inference_mode(mode=False), torch.enable_grad():
            leaves = [p.detach().requires_grad_() for p in parameters]
            each = losses(leaves, keys, inputs, targets)
            gradients = torch.autograd.grad(each, leaves, weights)
            return (each.detach() * weights).sum(dim=-1), gradients

    return step


def capture(
    losses: Losses,
    parameters: Sequence[Tensor],
    keys: Mapping[str, Tensor],
    inputs: Tensor,
    targets: Tensor,
    weights: Tensor,
) -> Step:
    """Record one step on these tensors; the result replays it on others of the same shapes.

    Raises `NotCapturableError` if the step draws random numbers, looks at values, changes its
    inputs in place, or replays to something else than it was.
    """
    eager = eager_step(losses)
    names = [f"p{i}" for i in range(len(parameters))]
    names += [f"k{i}" for i in range(len(keys))] + ["inputs", "targets", "weights"]
    leaves = [p.detach().requires_grad_() for p in parameters]
    recorder = _Recorder(
        zip(names, [*leaves, *keys.values(), inputs, targets, weights], strict=True)
    )
    with torch.enable_grad(), recorder:
        each = losses(leaves, keys, inputs, targets)
        gradients = torch.autograd.grad(each, leaves, weights)
        total = (each.detach() * weights).sum(dim=-1)
    replay = recorder.program(total, gradients)

    def step(
        parameters: Sequence[Tensor],
        keys: Mapping[str, Tensor],
        inputs: Tensor,
        targets: Tensor,
        weights: Tensor,
    ) -> tuple[Tensor, Sequence[Gradient]]:
        result: tuple[Tensor, Sequence[Gradient]] = replay(
            *parameters, *keys.values(), inputs, targets, weights
        )
        return result

    batch = weights.dim() - 1
    others = (inputs.roll(1, batch), targets.roll(1, batch), weights)
    _check_equal(step(parameters, keys, *others), eager(parameters, keys, *others))
    return step


def _check_equal(
    replayed: tuple[Tensor, Sequence[Gradient]], expected: tuple[Tensor, Sequence[Gradient]]
) -> None:
    dense = [g[0] @ g[1] if isinstance(g, tuple) else g for g in replayed[1]]
    pairs = zip([replayed[0], *dense], [expected[0], *expected[1]], strict=True)
    for ours, theirs in pairs:
        assert isinstance(theirs, Tensor)
        if not torch.allclose(ours, theirs, rtol=1e-3, atol=1e-5, equal_nan=True):
            raise NotCapturableError("its step replays to other gradients on another batch")


def _directly(target: Any) -> Any:
    """Return torch's own function for an operator, half a microsecond faster to call, if any."""
    if not isinstance(target, OpOverload):
        return target
    name = target._schema.name.removeprefix("aten::")  # noqa: SLF001 - has no public name
    function = getattr(torch, name, None)
    return function if isinstance(function, BuiltinFunctionType) else target


class _Tape:
    """Writes down the operators that pass by; a mixin, so that torch does not wrap the method.

    (`TorchDispatchMode` wraps a subclass's own `__torch_dispatch__` in a call that imports the
    whole compiler, a second at every start.)
    """

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        self._refuse(func, args)
        result = func(*args, **kwargs)
        node = self._graph.call_function(
            func, tuple(tree_map(self._node, args)), tree_map(self._node, kwargs)
        )
        node.meta["quicker"] = quicker(func, args, kwargs)
        if isinstance(result, Tensor):
            self._remember(result, node)
        else:
            for index, part in enumerate(result):
                if isinstance(part, Tensor):
                    item = self._graph.call_function(operator.getitem, (node, index))
                    self._remember(part, item)
        return result

    _graph: fx.Graph
    _refuse: Callable[[Any, Any], None]
    _node: Callable[[Any], Any]
    _remember: Callable[[Tensor, fx.Node], None]


class _Recorder(_Tape, TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Builds the graph of everything done to the named inputs inside the block."""

    def __init__(self, inputs: Iterable[tuple[str, Tensor]]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._graph = fx.Graph()
        self._root = nn.Module()
        self._nodes: dict[int, fx.Node] = {}
        self._alive: list[Tensor] = []  # an id names a tensor only while it lives
        self._shapes: dict[fx.Node, tuple[int, ...]] = {}
        self._inputs: set[fx.Node] = set()
        for name, tensor in inputs:
            node = self._graph.placeholder(name)
            self._inputs.add(node)
            self._remember(tensor, node)

    def _remember(self, tensor: Tensor, node: fx.Node) -> None:
        self._nodes[id(tensor)] = node
        self._alive.append(tensor)
        self._shapes[node] = tuple(tensor.shape)

    def _node(self, value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        if id(value) not in self._nodes:  # made outside: the same in every replay
            name = f"constant_{len(self._alive)}"
            self._root.register_buffer(name, value)
            self._remember(value, self._graph.get_attr(name))
        return self._nodes[id(value)]

    def _refuse(self, func: Any, args: Any) -> None:
        if torch.Tag.nondeterministic_seeded in func.tags:
            raise NotCapturableError(f"{func} draws random numbers")
        if torch.Tag.data_dependent_output in func.tags or (
            torch.Tag.dynamic_output_shape in func.tags
        ):
            raise NotCapturableError(f"{func} depends on the values of a tensor")
        mutable = func._schema.is_mutable  # noqa: SLF001 - torch gives it no public name
        if mutable and args and self._node(args[0]) in self._inputs:
            raise NotCapturableError(f"{func} changes a weight or an input in place")

    def program(self, total: Tensor, gradients: Sequence[Tensor]) -> Callable[..., Any]:
        """Return the recorded graph as a function of its inputs."""
        factors = [self._factors(self._node(gradient)) for gradient in gradients]
        self._graph.output((self._node(total), factors))
        for node in list(self._graph.nodes):
            original = self._same_as(node)
            if original is not None:
                node.replace_all_uses_with(original)
        self._graph.eliminate_dead_code()
        for node in self._graph.nodes:
            node.target = _directly(node.meta.get("quicker", node.target))
        program: Callable[..., Any] = fx.GraphModule(self._root, self._graph).forward
        return program

    def _same_as(self, node: fx.Node) -> fx.Node | None:
        """Return an earlier node with the same value, if `node` does nothing."""
        if node.op != "call_function" or not node.args or not isinstance(node.args[0], fx.Node):
            return None
        source = node.args[0]
        same_shape = self._shapes.get(source) == self._shapes.get(node)
        unsafe_view = _aten._unsafe_view.default  # noqa: SLF001 - that is its name
        reshapes = (_aten.view.default, unsafe_view, _aten.expand.default)
        if (
            node.target in (_aten.detach.default, _aten.alias.default)
            or (node.target in reshapes and same_shape)
            or (node.target == _aten.mul.Scalar and node.args[1] == 1)
        ):
            return source
        if self._transposes(node) and self._transposes(source):
            inner = source.args[0]
            return inner if isinstance(inner, fx.Node) else None
        return None

    def _transposes(self, node: fx.Node) -> bool:
        """Whether `node` swaps the last two dimensions."""
        if node.op != "call_function":
            return False
        last = len(self._shapes.get(node, ())) - 1
        swapped = node.target == _aten.transpose.int and set(node.args[1:]) in (
            {last - 1, last},
            {-2, -1},
        )
        return bool(node.target == _aten.t.default and last == 1) or swapped

    def _factors(self, node: fx.Node) -> fx.Node | tuple[fx.Node, fx.Node]:
        """Return the two matrices whose product `node` is, or `node` itself."""
        product, transposed = node, False
        while True:
            same = self._same_as(product)
            if same is not None:
                product = same
            elif self._transposes(product):
                product, transposed = product.args[0], not transposed  # type: ignore[assignment]
            else:
                break
        if product.target not in (_aten.mm.default, _aten.bmm.default):
            return node
        left, right = product.args
        assert isinstance(left, fx.Node)
        assert isinstance(right, fx.Node)
        if transposed:
            return self._transpose(right), self._transpose(left)
        return left, right

    def _transpose(self, node: fx.Node) -> fx.Node:
        last = len(self._shapes[node]) - 1
        new = self._graph.call_function(_aten.transpose.int, (node, last - 1, last))
        shape = self._shapes[node]
        self._shapes[new] = (*shape[:-2], shape[-1], shape[-2])
        return new
