"""A strategy's memory between rounds, saved and restored without pickle.

A class with `state_dict` and `load_state_dict` says itself what its memory is: the strategy, or
what it holds in an attribute, such as a torch optimizer. Of others, all attributes are saved:
tensors, arrays, records, numbers, strings, generators of random numbers, and lists, tuples,
sets and dicts of such. What is code (functions, classes, modules) is built again from the config.
"""

from __future__ import annotations

import functools
import logging
import random
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from flwr.app import ArrayRecord, ConfigRecord, MetricRecord
from flwr.serverapp.strategy import Strategy
from torch import Tensor

from heliotrope.errors import CheckpointError, ConfigError

from ..flower.messages import read_arrays, to_record
from .buffers import ParametersOnly

__all__ = ["check_savable", "restore", "snapshot"]

_PLAIN = (bool, int, float, str, type(None))
_CODE = (
    *(FunctionType, MethodType, BuiltinFunctionType, functools.partial, np.ufunc),
    *(type, ModuleType, logging.Logger),
)
_SEQUENCES: dict[str, type[Any]] = {
    kind.__name__: kind for kind in (list, tuple, set, frozenset, deque)
}
_BITS: dict[str, Any] = {
    kind.__name__: kind
    for kind in (
        *(np.random.PCG64, np.random.PCG64DXSM, np.random.MT19937),
        *(np.random.Philox, np.random.SFC64),
    )
}
_BUFFERED = {"MT19937": 624, "Philox": 4}  # numbers that they hold for later
_RECORDS: dict[str, type[Any]] = {
    kind.__name__: kind for kind in (ConfigRecord, MetricRecord, OrderedDict)
}


class _UnsavableError(Exception):
    """A value that cannot be saved; the message is its path and type."""


def check_savable(strategy: Strategy) -> None:
    """Raise `ConfigError` naming what of the strategy's state a checkpoint could not hold."""
    snapshot(strategy)


def snapshot(strategy: Strategy) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the arrays of a strategy's state by name, and a description of the rest, for JSON.

    Raises `ConfigError` naming an attribute that cannot be saved.
    """
    strategy = _inner(strategy)
    arrays: dict[str, Tensor] = {}
    try:
        if _has_own(strategy):
            own: Any = strategy
            return arrays, {"own": _encoded(own.state_dict(), "state_dict()", arrays)}
        state = {name: value for name, value in vars(strategy).items() if not _is_code(value)}
        return arrays, {
            "attributes": {name: _encoded(value, name, arrays) for name, value in state.items()}
        }
    except _UnsavableError as error:
        raise ConfigError(
            f"federated/strategy: {type(strategy).__name__} keeps {error}, which a checkpoint "
            "cannot hold. Give the class state_dict() and load_state_dict(state), with tensors, "
            "arrays, numbers, strings, and lists and dicts of them."
        ) from error


def restore(strategy: Strategy, arrays: Mapping[str, Tensor], described: Mapping[str, Any]) -> None:
    """Put back what `snapshot` returned into a strategy built from the same config.

    Raises
    ------
    CheckpointError
        If it was returned by an earlier version, or names what is no state.
    ConfigError
        If the strategy has not made what is to be restored; names the attribute.
    """
    strategy = _inner(strategy)
    if "own" in described:
        own: Any = strategy
        own.load_state_dict(_decoded(described["own"], arrays))
        return
    if "attributes" not in described:
        raise CheckpointError(
            "the checkpoint holds its strategy's state as an earlier version wrote it. Continue "
            "the run with that version, or begin another one."
        )
    for name, value in described["attributes"].items():
        if name.startswith("__") or (
            callable(getattr(strategy, name, None)) and not _has_own(getattr(strategy, name))
        ):
            raise CheckpointError(
                f"the checkpoint would replace {name[:60]} of {type(strategy).__name__}, which is "
                "code and never saved. It was not written by Heliotrope: do not use it."
            )
        if value["kind"] != "object":
            setattr(strategy, name, _decoded(value, arrays))
            continue
        current: Any = getattr(strategy, name, None)
        if not _has_own(current):
            raise ConfigError(
                f"federated/strategy: the {name} of {type(strategy).__name__} cannot be restored: "
                "make it in __init__, or give the class state_dict() and load_state_dict(state)."
            )
        current.load_state_dict(_decoded(value["state"], arrays))


def _inner(strategy: Strategy) -> Strategy:
    return strategy.inner if isinstance(strategy, ParametersOnly) else strategy


def _has_own(value: object) -> bool:
    return callable(getattr(value, "state_dict", None)) and callable(
        getattr(value, "load_state_dict", None)
    )


def _is_code(value: object) -> bool:
    return isinstance(value, _CODE)


def _encoded(value: Any, path: str, arrays: dict[str, Tensor]) -> dict[str, Any]:
    """Return a value as JSON, with its tensors moved to `arrays`."""
    for kinds, encode in _ENCODERS:
        if type(value) in kinds:
            return encode(value, path, arrays)
    if isinstance(value, Tensor):  # such as torch.nn.Parameter
        return _tensor(value, path, arrays)
    if isinstance(value, np.generic):
        return {**_array(np.asarray(value), path, arrays), "kind": "scalar"}
    if _has_own(value) and "." not in path and "[" not in path:
        return {"kind": "object", "state": _encoded(value.state_dict(), path, arrays)}
    raise _UnsavableError(f"{path}, a {type(value).__name__}")


def _tensor(value: Tensor, path: str, arrays: dict[str, Tensor]) -> dict[str, Any]:
    at = _put(value.detach().cpu().clone(), path, arrays)
    return {"kind": "tensor", "at": at, "device": str(value.device)}


def _put(tensor: Tensor, path: str, arrays: dict[str, Tensor]) -> str:
    """Keep a tensor under a name of its own: the keys 1 and "1" of a dict give one path."""
    name = path if path not in arrays else f"{path} #{len(arrays)}"
    arrays[name] = tensor
    return name


def _array(value: Any, path: str, arrays: dict[str, Tensor]) -> dict[str, Any]:
    try:
        return {"kind": "array", "at": _put(torch.from_numpy(np.array(value)), path, arrays)}
    except TypeError as error:  # of a dtype that torch does not have, such as object
        raise _UnsavableError(f"{path}, an array of {value.dtype}") from error


def _record(value: Any, path: str, arrays: dict[str, Tensor]) -> dict[str, Any]:
    read = read_arrays(value)
    at = [_put(tensor, f"{path}.{name}", arrays) for name, tensor in read.items()]
    return {"kind": "arrays", "at": at, "names": list(read)}


def _sequence(value: Any, path: str, arrays: dict[str, Tensor]) -> dict[str, Any]:
    items = sorted(value, key=repr) if isinstance(value, set | frozenset) else value
    parts = [_encoded(item, f"{path}[{i}]", arrays) for i, item in enumerate(items)]
    most = {"most": value.maxlen} if isinstance(value, deque) else {}
    return {"kind": type(value).__name__, "items": parts, **most}


def _dict(value: Any, path: str, arrays: dict[str, Tensor]) -> dict[str, Any]:
    pairs = [
        [_encoded(key, f"{path} key {key!r}", arrays), _encoded(item, f"{path}.{key}", arrays)]
        for key, item in value.items()
    ]
    return {"kind": "dict", "items": pairs}


def _settings(value: Any, path: str, arrays: dict[str, Tensor]) -> dict[str, Any]:
    return {**_dict(dict(value), path, arrays), "kind": type(value).__name__}


def _torch_generator(value: Any, path: str, arrays: dict[str, Tensor]) -> dict[str, Any]:
    at = _put(value.get_state(), path, arrays)
    return {"kind": "torch.Generator", "at": at, "device": str(value.device)}


def _numpy_generator(value: Any, path: str, arrays: dict[str, Tensor]) -> dict[str, Any]:
    bits = value.bit_generator
    state = _encoded(bits.state, path, arrays)
    return {"kind": "numpy.Generator", "bits": type(bits).__name__, "state": state}


def _python_generator(value: Any, path: str, arrays: dict[str, Tensor]) -> dict[str, Any]:
    return {"kind": "random.Random", "state": _encoded(value.getstate(), path, arrays)}


_Encoder = Callable[[Any, str, dict[str, Tensor]], dict[str, Any]]
_ENCODERS: tuple[tuple[tuple[type[Any], ...], _Encoder], ...] = (
    (_PLAIN, lambda value, _path, _arrays: {"kind": "plain", "value": value}),
    ((Tensor,), _tensor),
    ((np.ndarray,), _array),
    ((ArrayRecord,), _record),
    ((list, tuple, set, frozenset, deque), _sequence),
    ((dict,), _dict),
    (tuple(_RECORDS.values()), _settings),
    ((torch.Generator,), _torch_generator),
    ((np.random.Generator,), _numpy_generator),
    ((random.Random,), _python_generator),
)


def _decoded(saved: Mapping[str, Any], arrays: Mapping[str, Tensor]) -> Any:
    """Undo `_encoded`."""
    kind = saved["kind"]
    if kind == "plain":
        return saved["value"]
    if kind in ("tensor", "array", "scalar"):
        tensor = arrays[saved["at"]]
        if kind == "tensor":
            return tensor.to(saved["device"])
        array = np.array(tensor.numpy())
        return array if kind == "array" else array[()]
    if kind == "arrays":
        pairs = zip(saved["names"], saved["at"], strict=True)
        return to_record({name: arrays[at] for name, at in pairs})
    if kind == "dict" or kind in _RECORDS:
        held = {_decoded(key, arrays): _decoded(item, arrays) for key, item in saved["items"]}
        return held if kind == "dict" else _RECORDS[kind](held)
    if kind in _SEQUENCES:
        items = [_decoded(item, arrays) for item in saved["items"]]
        return deque(items, saved["most"]) if kind == "deque" else _SEQUENCES[kind](items)
    return _generator(saved, arrays)


def _generator(saved: Mapping[str, Any], arrays: Mapping[str, Tensor]) -> Any:
    if saved["kind"] == "torch.Generator":
        return torch.Generator(saved["device"]).set_state(arrays[saved["at"]])
    state = _decoded(saved["state"], arrays)
    if saved["kind"] == "random.Random":
        python = random.Random()  # noqa: S311 - its state follows
        python.setstate(state)
        return python
    bits = _BITS[saved["bits"]]()
    bits.state = state
    position = state.get("buffer_pos", state["state"].get("pos", 0))
    if not 0 <= position <= _BUFFERED.get(saved["bits"], 0):  # numpy would read beyond its memory
        raise ValueError(f"{saved['bits']} has no position {position}")
    return np.random.Generator(bits)
