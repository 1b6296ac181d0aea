"""A strategy's memory between rounds, saved and restored without pickle.

Flower's strategies keep it in attributes: arrays in dicts, lists or records (momenta, the
current model), plain numbers beside them. What cannot change between rounds (functions,
strings, settings) is rebuilt from the config and not saved.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from flwr.app import ArrayRecord
from flwr.serverapp.strategy import Strategy
from torch import Tensor

from ..messages import read_arrays, to_record

__all__ = ["restore", "snapshot"]


def snapshot(strategy: Strategy) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the arrays and the plain values that `strategy` holds, by attribute name."""
    arrays: dict[str, Tensor] = {}
    shapes: dict[str, Any] = {}
    for name, value in vars(strategy).items():
        parts = _parts(value)
        if parts is not None:
            kind, keys, tensors = parts
            shapes[name] = {"kind": kind, "keys": keys}
            arrays |= {f"{name}/{i}": tensor for i, tensor in enumerate(tensors)}
        elif value is None or isinstance(value, bool | int | float):
            shapes[name] = {"kind": "plain", "value": value}
    return arrays, shapes


def restore(strategy: Strategy, arrays: Mapping[str, Tensor], shapes: Mapping[str, Any]) -> None:
    """Put back what `snapshot` returned."""
    for name, shape in shapes.items():
        if shape["kind"] == "plain":
            setattr(strategy, name, shape["value"])
            continue
        tensors = [arrays[f"{name}/{i}"] for i in range(len(shape["keys"]))]
        setattr(strategy, name, _whole(shape["kind"], shape["keys"], tensors))


def _parts(value: object) -> tuple[str, list[str], list[Tensor]] | None:
    if isinstance(value, ArrayRecord):
        read = read_arrays(value)
        return "record", list(read), list(read.values())
    if isinstance(value, dict) and value and all(isinstance(v, np.ndarray) for v in value.values()):
        return "dict", list(value), [torch.from_numpy(np.array(v)) for v in value.values()]
    if isinstance(value, list) and value and all(isinstance(v, np.ndarray) for v in value):
        keys = [str(i) for i in range(len(value))]
        return "list", keys, [torch.from_numpy(np.array(v)) for v in value]
    return None


def _whole(kind: str, keys: list[str], tensors: list[Tensor]) -> object:
    if kind == "record":
        return to_record(dict(zip(keys, tensors, strict=True)))
    arrays = [np.array(tensor.numpy()) for tensor in tensors]
    return arrays if kind == "list" else dict(zip(keys, arrays, strict=True))
