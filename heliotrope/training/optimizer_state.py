"""An optimizer's state as named tensors and JSON, so that a checkpoint needs no pickle."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

__all__ = ["flatten", "restore"]


def flatten(optimizer: Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors of the state by name (`3.exp_avg`), and the rest, fit for JSON.

    The number is the parameter's place in the order in which the optimizer was given them.
    """
    saved = optimizer.state_dict()
    tensors: dict[str, Tensor] = {}
    scalars: dict[str, dict[str, Any]] = {}
    for index, entries in saved["state"].items():
        scalars[str(index)] = {}
        for key, value in entries.items():
            if isinstance(value, Tensor):
                tensors[f"{index}.{key}"] = value
            else:  # such as the momentum buffer of SGD before its first use: None
                scalars[str(index)][key] = value
    return tensors, {"scalars": scalars, "groups": saved["param_groups"]}


def restore(optimizer: Optimizer, tensors: Mapping[str, Tensor], rest: Mapping[str, Any]) -> None:
    """Undo `flatten` on an optimizer built from the same configuration over the same model.

    Values that JSON turned from tuples into lists (betas) become tuples again.
    """
    state: dict[int, dict[str, Any]] = {
        int(index): dict(entries) for index, entries in rest["scalars"].items()
    }
    for name, tensor in tensors.items():
        index, _, key = name.partition(".")
        state[int(index)][key] = tensor
    groups = [
        {key: _like(fresh.get(key), value) for key, value in group.items()}
        for fresh, group in zip(optimizer.param_groups, rest["groups"], strict=True)
    ]
    optimizer.load_state_dict({"state": state, "param_groups": groups})


def _like(fresh: object, value: Any) -> Any:
    return tuple(value) if isinstance(fresh, tuple) else value
