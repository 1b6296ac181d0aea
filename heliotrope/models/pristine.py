"""A module as it was built, of which copies are made."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import suppress
from types import CellType, FunctionType
from typing import Any

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from heliotrope.errors import ConfigError
from heliotrope.models.hidden import attributes, hooks, vacant
from heliotrope.plugin_loading import raised

__all__ = ["Pristine", "gradient_hooks"]


class Pristine:
    """Keeps a module's attributes and non-persistent buffers as built; the weights are shared.

    Raises `ConfigError` naming what cannot be copied.
    """

    def __init__(self, model: nn.Module) -> None:
        self._weights = dict(model.state_dict(keep_vars=True))
        _check(model, self._weights)
        around = {  # of the weights themselves: torch's copies are without
            name: (gradient_hooks(p), dict(vars(p))) for name, p in model.named_parameters()
        }
        shared = {id(value): value for value in self._weights.values()}
        self._model, self._around = _copied((model, around), shared)

    def copy(self, weights: Mapping[str, Tensor]) -> nn.Module:
        """Return a new module with `weights`, cast to the module's types and device."""
        memo: dict[int, Any] = {}
        for name, value in self._weights.items():
            if id(value) in memo:
                continue  # tied to a name before
            given = weights[name].to(value.device, value.dtype, copy=True)
            if isinstance(value, nn.Parameter):
                given = nn.Parameter(given, requires_grad=value.requires_grad)
            memo[id(value)] = given
        model, around = _copied((self._model, self._around), memo)
        parameters = dict(model.named_parameters())
        for name, ((each, after), values) in around.items():
            vars(parameters[name]).update(values)
            for hook in each:
                parameters[name].register_hook(hook)  # type: ignore[no-untyped-call]
            for hook in after:
                weight = parameters[name]
                weight.register_post_accumulate_grad_hook(hook)  # type: ignore[no-untyped-call]
        return model


def gradient_hooks(weight: Tensor) -> tuple[list[Any], list[Any]]:
    """Return the hooks on the gradient of a weight: before, and after it is added to `.grad`."""
    after = getattr(weight, "_post_accumulate_grad_hooks", None)
    before = weight._backward_hooks  # noqa: SLF001 - torch gives it no public name
    return list((before or {}).values()), list((after or {}).values())


def _check(model: nn.Module, state: Mapping[str, Any]) -> None:
    """Raise `ConfigError` if the weights are not what a state of the module gives and takes."""
    kind = type(model).__name__
    own = {id(value) for value in (*model.parameters(), *model.buffers())}
    for name, value in state.items():
        if not isinstance(value, Tensor):
            raise ConfigError(
                f"the model, a {kind}, has a {type(value).__name__} under {name} of its "
                "state_dict(), which cannot be averaged. Keep it in an attribute."
            )
        if is_lazy(value):
            raise ConfigError(
                f"the model, a {kind}, does not know the shape of {name} yet. Let it see a batch "
                "where it is made, or give the layer its number of inputs."
            )
        if id(value) not in own and not name.endswith("_extra_state"):
            raise ConfigError(
                f"the model, a {kind}, gives a copy of {name} in its state_dict(), into which no "
                "weights can be put. Return the parameter itself."
            )
    kept = {id(value) for value in state.values()}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and id(parameter) not in kept:
            raise ConfigError(
                f"the model, a {kind}, trains {name} and leaves it out of its state_dict(). "
                "Freeze it by requires_grad_(False), or keep it in the state_dict()."
            )
    _check_memory(model)


def _check_memory(model: nn.Module) -> None:
    """Raise `ConfigError` if something else lies in the memory of a weight: copies would not.

    On a GPU the weights of torch's recurrent layers do, and are copied well.
    """
    weights = {
        p.untyped_storage().data_ptr(): (name, p)
        for name, p in reversed(list(model.named_parameters()))
        if p.requires_grad and p.numel() and p.device.type == "cpu"
    }
    others = [*model.named_parameters(), *model.named_buffers()]
    others += [(name, value) for module in model.modules() for name, value in attributes(module)]
    for name, value in others:
        if not isinstance(value, Tensor) or value.device.type != "cpu" or value.is_sparse:
            continue
        first, weight = weights.get(value.untyped_storage().data_ptr(), ("", value))
        if value is not weight:
            raise ConfigError(
                f"the model, a {type(model).__name__}, keeps {name} in the memory of {first}, "
                "which no copy for a client would. Take the view in forward, or make it a "
                "clone()."
            )


def _copied(parts: tuple[nn.Module, Any], memo: dict[int, Any]) -> tuple[nn.Module, Any]:
    """Return a deep copy of a module and what belongs to it.

    `memo` says what stands for some of its tensors, by their ids.
    """
    model, around = parts
    for module in model.modules():
        for _, value in attributes(module):
            if isinstance(value, Tensor) and not value.is_leaf:  # torch copies only leaves
                memo.setdefault(id(value), value.detach().clone())
        for found in vacant(module):  # `deepcopy` takes long for each, and a module has a dozen
            memo.setdefault(id(found), type(found)())
    cells: dict[int, tuple[CellType, CellType]] = {}
    for function in _functions(model, around):
        _with_own_cells(function, memo, cells)
    try:
        result = copy.deepcopy(parts, memo)
    except Exception as error:
        raise ConfigError(
            f"the model, a {type(model).__name__}, cannot be copied for each client: "
            f"{raised(error, 'Keep in its attributes only what copy.deepcopy can copy.')}"
        ) from error
    for old, new in cells.values():
        with suppress(ValueError):  # not filled
            new.cell_contents = _copy_of(old.cell_contents, memo)
    return result


def _functions(model: nn.Module, around: Mapping[str, Any]) -> Iterator[Any]:
    """Yield what may be functions with a closure: attributes and hooks of modules and weights."""
    for module in model.modules():
        for _, value in attributes(module):
            yield value
        for _, found in hooks(module):
            yield from found.values()
    for (each, after), _ in around.values():
        yield from each
        yield from after


def _with_own_cells(
    function: Any, memo: dict[int, Any], cells: dict[int, tuple[CellType, CellType]]
) -> None:
    """Note a function with a closure of its own to stand for `function`, also in closures."""
    if not isinstance(function, FunctionType) or not function.__closure__ or id(function) in memo:
        return
    for cell in function.__closure__:
        cells.setdefault(id(cell), (cell, CellType()))
    own = tuple(cells[id(cell)][1] for cell in function.__closure__)
    made = FunctionType(
        function.__code__, function.__globals__, function.__name__, function.__defaults__, own
    )
    made.__kwdefaults__, made.__qualname__ = function.__kwdefaults__, function.__qualname__
    vars(made).update(vars(function))
    memo[id(function)] = made
    for cell in function.__closure__:
        with suppress(ValueError):
            _with_own_cells(cell.cell_contents, memo, cells)


def _copy_of(value: Any, memo: dict[int, Any]) -> Any:
    if isinstance(value, Tensor) and not value.is_leaf:
        return memo.setdefault(id(value), value.detach().clone())
    with suppress(Exception):  # such as a file: all copies have the same one
        return copy.deepcopy(value, memo)
    return value
