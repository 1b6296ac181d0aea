"""What a module keeps besides its parameters, wherever its code keeps it, as plain values.

A user's forward pass may count in an attribute, in an object that the attribute holds, in a
closure, a class or a global of its file. What training changes there must be seen before a step
is replaced by a recording of it.
"""

from __future__ import annotations

import sys
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from functools import partial
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from heliotrope.models.layers.seeded import SeededLayer

__all__ = ["attributes", "changed", "hidden_state", "hooks", "is_shared", "vacant"]

_OWN = frozenset(vars(nn.Module()))  # what every module has: parameters, buffers, hooks, ...
_HOOKS = tuple(sorted(name for name in _OWN if name.endswith("_hooks")))
_SHARED = ("the class attribute ", "the global ")
_PLAIN = (str, bytes, int, float, complex, bool, type(None))
# Code that keeps nothing from which a step's result follows.
_LIBRARIES = sys.stdlib_module_names | {"torch", "numpy", "heliotrope"}


def hidden_state(model: nn.Module) -> dict[str, Any]:
    """Return a copy of what a module keeps besides its parameters, by name.

    That is its buffers, but for the keys of seeded layers; its Python attributes; and what its
    hooks and the code of its class find in closures, globals and classes, unless that is a
    library's.
    """
    freezer = _Freezer(model)
    state: dict[str, Any] = {}
    for path, module in model.named_modules():
        if isinstance(module, SeededLayer):
            continue
        prefix = f"{path}." if path else ""
        for name, buffer in module.named_buffers(recurse=False):
            state[prefix + name] = freezer.freeze(buffer)
        for name, value in attributes(module):
            state[prefix + name] = freezer.freeze(value)
        for name, value in hooks(module):
            state[f"what {prefix}{name} keep"] = freezer.freeze(value)
        freezer.freeze(type(module))
    return state | freezer.shared


def changed(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """Return the names under which two results of `hidden_state` differ, sorted."""
    names = before.keys() | after.keys()
    missing = object()
    return sorted(n for n in names if not _alike(before.get(n, missing), after.get(n, missing)))


def is_shared(name: str) -> bool:
    """Return whether what `hidden_state` calls so is not of a module, but of its class or file."""
    return name.startswith(_SHARED)


def attributes(module: nn.Module) -> Iterator[tuple[str, Any]]:
    """Yield the attributes of a module that it does not register, by name."""
    for name, value in list(vars(module).items()):
        if name not in _OWN:
            yield name, value


def hooks(module: nn.Module) -> Iterator[tuple[str, Mapping[int, Any]]]:
    """Yield the hooks of a module, those of each kind by their handles."""
    for name in _HOOKS:
        found = getattr(module, name)
        if found:
            yield name.removeprefix("_"), found


def vacant(module: nn.Module) -> Iterator[dict[Any, Any]]:
    """Yield the dictionaries that every module has and this one keeps nothing in, as for hooks."""
    for name in _OWN:
        found = vars(module).get(name)
        if isinstance(found, dict) and not found and type(found) in (dict, OrderedDict):
            yield found


class _Freezer:
    """Copies values into plain ones that can be compared; what is met twice is copied once.

    `shared` is what all modules of a class have in common: attributes of classes, and globals.
    """

    def __init__(self, model: nn.Module) -> None:
        self.shared: dict[str, Any] = {}
        self._known = {id(part): "a part of the model" for part in model.modules()}
        self._known |= {id(weight): "a weight" for weight in model.parameters()}
        self._alive: list[Any] = []  # an id names a value only while it lives

    def freeze(self, value: Any) -> Any:
        if isinstance(value, _PLAIN):
            return repr(value) if isinstance(value, float) else value  # NaN is the same as NaN
        if id(value) in self._known:
            return self._known[id(value)]
        self._known[id(value)] = f"met before, as number {len(self._alive)}"
        self._alive.append(value)
        if isinstance(value, Tensor):
            return value.detach().clone(), value.requires_grad
        if isinstance(value, torch.Generator):
            return value.get_state().clone()
        if isinstance(value, np.ndarray) and not value.dtype.hasobject:
            return value.copy()
        if isinstance(value, Mapping):
            return [[self.freeze(key), self.freeze(item)] for key, item in list(value.items())]
        if isinstance(value, list | tuple | set | frozenset):
            return [self.freeze(item) for item in list(value)]
        if isinstance(value, ModuleType):
            return value.__name__
        if isinstance(value, FunctionType | MethodType | partial | type):
            return self._code(value)
        return self._object(value)

    def _object(self, value: Any) -> Any:
        self.freeze(type(value))
        if isinstance(value, nn.Module):  # of which the model does not know
            return [[name, self.freeze(item)] for name, item in vars(value).items()]
        try:
            made = value.__reduce_ex__(4)  # what copies and pickles of it are made of
        except Exception:  # noqa: BLE001 - such as a lock or a file: told apart by its type only
            return type(value).__name__
        if isinstance(made, str):
            return made
        state = [self.freeze(part) for part in made[1:3]]
        items = [[self.freeze(item) for item in part or ()] for part in made[3:5]]
        return [type(value).__name__, *state, *items]

    def _code(self, value: FunctionType | MethodType | partial[Any] | type) -> Any:
        if isinstance(value, MethodType):
            return [self.freeze(value.__func__), self.freeze(value.__self__)]
        if isinstance(value, partial):
            return [self.freeze(part) for part in (value.func, value.args, value.keywords)]
        if _of_library(value):
            return value.__qualname__
        if isinstance(value, type):
            for base in value.__mro__[:-1]:
                if not _of_library(base):
                    self._class(base)
            return value.__qualname__
        return self._function(value)

    def _class(self, kind: type) -> None:
        for name, value in list(vars(kind).items()):
            inner = _unwrapped(value)
            if isinstance(inner, FunctionType):
                self.freeze(inner)
            elif not name.startswith("__") and not hasattr(type(value), "__get__"):
                self._share(f"{_SHARED[0]}{kind.__qualname__}.{name}", value)

    def _function(self, function: FunctionType) -> Any:
        names = function.__globals__
        for name in _names(function.__code__):
            if name in names:
                self._share(f"{_SHARED[1]}{name}", names[name])
        kept = [function.__defaults__, function.__kwdefaults__, vars(function)]
        for cell in function.__closure__ or ():
            try:
                kept.append(cell.cell_contents)
            except ValueError:  # not filled yet
                kept.append(None)
        return [function.__qualname__, *(self.freeze(value) for value in kept)]

    def _share(self, name: str, value: Any) -> None:
        if name not in self.shared:
            self.shared[name] = None  # while it is being copied
            self.shared[name] = self.freeze(value)


def _of_library(code: Any) -> bool:
    name = getattr(code, "__module__", None) or "builtins"
    return name.partition(".")[0] in _LIBRARIES and name != "__main__"


def _unwrapped(value: Any) -> Any:
    """Return the function of a method of whatever kind."""
    if isinstance(value, property):
        return value.fget
    return getattr(value, "__func__", value)


def _names(code: CodeType) -> Iterator[str]:
    """Yield the global names of a function, and of functions inside of it."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)


def _alike(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        same = a.shape == b.shape and a.dtype == b.dtype
        return same and bool(torch.equal(a.nan_to_num(), b.nan_to_num()))
    if isinstance(a, np.ndarray) and isinstance(b, np.ndarray):
        return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return len(a) == len(b) and all(map(_alike, a, b))
    return type(a) is type(b) and bool(a == b)
