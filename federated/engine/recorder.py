"""What a step does, written down as an fx graph while it is run: forward and backward.

`Recorder` refuses what a replay could not repeat: random draws, looks at values, changes of inputs.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Sequence
from types import BuiltinFunctionType
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from .kernels import quicker, sizes_that_choose
from .layers.recurrent_native import native_work

__all__ = ["NotCapturableError", "Recorder", "memory_of"]

_aten = torch.ops.aten
_MASKS = (torch.bool, torch.uint8)

# Where the matrix products have the left one of the matrices.
_PRODUCTS = {
    _aten.mm.default: 0,
    _aten.bmm.default: 0,
    _aten.addmm.default: 1,
    _aten.baddbmm.default: 1,
}


class NotCapturableError(Exception):
    """The step cannot be replayed; the message says why."""


def memory_of(tensor: Tensor) -> int:
    """Return what two tensors have in common that share memory."""
    return tensor.untyped_storage().data_ptr() or -id(tensor)


def _looks_at_values(func: Any, args: Any) -> bool:
    """Return whether the shape or the Python value of what `func` returns hangs on values."""
    if func == _aten.index.Tensor:  # by masks; positions give a shape known beforehand
        return any(index is not None and index.dtype in _MASKS for index in args[1])
    tags = (torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape)
    return any(tag in func.tags for tag in tags)


def _directly(target: Any) -> Any:
    """Return torch's own function for an operator, half a microsecond faster to call, if any."""
    if not isinstance(target, OpOverload):
        return target
    schema = target._schema  # noqa: SLF001 - has no public name
    if any(str(argument.type) == "List[Optional[Tensor]]" for argument in schema.arguments):
        return target  # torch's own function takes no None in a list
    function = getattr(torch, schema.name.removeprefix("aten::"), None)
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
        if torch.Tag.data_dependent_output in func.tags and not isinstance(result, Tensor):
            return result  # a number that follows from constants
        node = self._graph.call_function(
            func, tuple(tree_map(self._node, args)), tree_map(self._node, kwargs)
        )
        node.meta["quicker"] = quicker(func, args, kwargs)
        node.meta["chosen_by"] = sizes_that_choose(func, args)
        self._count(func, args, result)
        if isinstance(result, Tensor):
            self._remember(result, node)
        else:
            self._note_dependence(node)  # of the whole result, and so of its parts
            for index, part in enumerate(result):
                if isinstance(part, Tensor):
                    item = self._graph.call_function(operator.getitem, (node, index))
                    self._remember(part, item)
        return result

    _graph: fx.Graph
    _refuse: Callable[[Any, Any], None]
    _count: Callable[[Any, Any, Any], None]
    _node: Callable[[Any], Any]
    _note_dependence: Callable[[fx.Node], None]
    _remember: Callable[[Tensor, fx.Node], None]


class Recorder(_Tape, TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Builds the graph of everything done to the named inputs inside the block."""

    def __init__(self, inputs: Iterable[tuple[str, Tensor]]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._graph = fx.Graph()
        self._root = nn.Module()
        self._nodes: dict[int, fx.Node] = {}
        self._alive: list[Tensor] = []  # an id names a tensor only while it lives
        self._shapes: dict[fx.Node, tuple[int, ...]] = {}
        self._memory: dict[fx.Node, int] = {}
        self._inputs: set[fx.Node] = set()
        self._dependent: set[fx.Node] = set()  # on the inputs
        self._constants: dict[int, bool] = {}  # memory of a constant -> whether made outside
        self._constants_change = False
        self._looked = False  # at the values of constants
        self._parameters: set[int] = set()  # memory of the weights, which a step changes
        self._seen: set[int] = set()  # memory of all tensors so far
        self.constants = 0  # tensors made outside that it uses
        self.work = 0  # multiplications of the matrix products and convolutions so far
        self.bytes = 0  # of what was made so far
        for name, tensor in inputs:
            node = self._graph.placeholder(name)
            self._inputs.add(node)
            self._dependent.add(node)
            self._remember(tensor, node)
            if name.startswith("p"):
                self._parameters.add(memory_of(tensor))

    def _note_dependence(self, node: fx.Node) -> None:
        if any(source in self._dependent for source in node.all_input_nodes):
            self._dependent.add(node)

    def _remember(self, tensor: Tensor, node: fx.Node) -> None:
        self._note_dependence(node)
        if node not in self._dependent:
            self._constants.setdefault(memory_of(tensor), node.op == "get_attr")
        self._nodes[id(tensor)] = node
        self._alive.append(tensor)
        self._shapes[node] = tuple(tensor.shape)
        self._memory[node] = memory_of(tensor)
        self._seen.add(self._memory[node])

    def _node(self, value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        if id(value) not in self._nodes:  # made outside: the same in every replay
            memory = memory_of(value)
            if memory not in self._constants and memory in self._seen:
                raise NotCapturableError("it reads the .data of a tensor")
            self.constants += 1
            name = f"constant_{len(self._alive)}"
            self._root.register_buffer(name, value)
            self._remember(value, self._graph.get_attr(name))
        return self._nodes[id(value)]

    def _refuse(self, func: Any, args: Any) -> None:
        if torch.Tag.nondeterministic_seeded in func.tags:
            raise NotCapturableError(f"{func} draws random numbers")
        if _looks_at_values(func, args):
            if self._depends(args):
                raise NotCapturableError(f"{func} depends on the values of a tensor")
            self._looked = True
        mutable = func._schema.is_mutable  # noqa: SLF001 - torch gives it no public name
        if mutable and args and self._node(args[0]) in self._inputs:
            raise NotCapturableError(f"{func} changes a weight or an input in place")
        if mutable and args and memory_of(args[0]) in self._constants:
            outside = self._constants[memory_of(args[0])]
            self._constants_change |= outside or self._depends(args)
        self._check_constants()

    def _depends(self, args: Any) -> bool:
        """Return whether a tensor of `args` follows from the inputs."""
        tensors = [value for value in tree_leaves(args) if isinstance(value, Tensor)]
        return any(self._node(tensor) in self._dependent for tensor in tensors)

    def _check_constants(self) -> None:
        if self._looked and self._constants_change:
            raise NotCapturableError("it looks at values of a tensor that it changes in place")

    def _count(self, func: Any, args: Any, result: Any) -> None:
        """Add up multiplications and bytes, from which follows how clients are best trained."""
        parts = result if isinstance(result, tuple | list) else [result]
        made = [part for part in parts if isinstance(part, Tensor)]
        self.bytes += sum(part.nbytes for part in made if memory_of(part) not in self._seen)
        if func in _PRODUCTS:
            self.work += made[0].numel() * args[_PRODUCTS[func]].shape[-1]
        elif func == _aten.convolution.default:
            self.work += made[0].numel() * args[1][0].numel()
        elif func == _aten.convolution_backward.default:
            self.work += 2 * args[0].numel() * args[2][0].numel()
        self.work += native_work(func, args)

    def program(self, total: Tensor, gradients: Sequence[Tensor | None]) -> fx.GraphModule:
        """Return the recorded graph, whose `forward` is a function of its inputs."""
        factors = [
            None if g is None else self._apart(self._factors(self._node(g))) for g in gradients
        ]
        self._graph.output((self._node(total), factors))
        for node in list(self._graph.nodes):
            original = self._same_as(node)
            if original is not None:
                node.replace_all_uses_with(original)
        self._graph.eliminate_dead_code()
        for node in self._graph.nodes:
            node.target = _directly(node.meta.get("quicker", node.target))
        return fx.GraphModule(self._root, self._graph)

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
        if self._is_weight(left) or self._is_weight(right):
            return node  # another weight, which is updated before this one's gradient is formed
        if transposed:
            return self._transpose(right), self._transpose(left)
        return left, right

    def _is_weight(self, node: fx.Node) -> bool:
        """Whether `node` lies in the memory of a weight, in the graph as it will be replayed."""
        same = self._same_as(node)
        while same is not None:
            node, same = same, self._same_as(same)
        return self._memory[node] in self._parameters

    def _apart(
        self, gradient: fx.Node | tuple[fx.Node, fx.Node]
    ) -> fx.Node | tuple[fx.Node, fx.Node]:
        """Return a gradient that no update of a weight changes."""
        if isinstance(gradient, tuple) or not self._is_weight(gradient):
            return gradient
        copy = self._graph.call_function(_aten.clone.default, (gradient,))
        self._shapes[copy] = self._shapes[gradient]
        return copy

    def _transpose(self, node: fx.Node) -> fx.Node:
        last = len(self._shapes[node]) - 1
        new = self._graph.call_function(_aten.transpose.int, (node, last - 1, last))
        shape = self._shapes[node]
        self._shapes[new] = (*shape[:-2], shape[-1], shape[-2])
        self._memory[new] = self._memory[node]
        return new
