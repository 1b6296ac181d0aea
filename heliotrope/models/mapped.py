"""A model that is built once: other processes map its weights from a file into their memory.

Their own copy is built on torch's meta device, where tensors have shapes but no values. What is
mapped takes no memory of a process until it is written to, and has the same bits in all of them.
"""

from __future__ import annotations

import gc
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor, nn

from heliotrope import registry
from heliotrope.config import ModelConfig
from heliotrope.models.layers.dropout import seed_dropout
from heliotrope.models.pristine import gradient_hooks
from heliotrope.seeding import isolated_rng, seed
from heliotrope.system.tensor_file import SAVABLE, write_tensors
from heliotrope.tasks import Task

__all__ = ["mapped_model", "release_values", "write_values"]


def write_values(model: nn.Module, path: Path) -> None:
    """Write all parameters and buffers of `model` to `path`, each once.

    Raises `OSError` if it cannot be written, `ValueError` if a tensor is of a kind that no file of
    ours holds.
    """
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    for name, value in tensors.items():
        if value.dtype not in SAVABLE or value.layout is not torch.strided:
            raise ValueError(f"{name} is of type {value.dtype} and {value.layout}")
    write_tensors(path, tensors)


def release_values(model: nn.Module) -> None:
    """Free the memory of `model`'s weights and buffers, in place; names and shapes stay.

    What a user's module does not let go of stays as well.
    """
    with suppress(Exception):
        _replace(model, lambda _, value: torch.empty_like(value, device="meta"))


def mapped_model(cfg: ModelConfig, task: Task, run_seed: int, path: Path) -> nn.Module | None:
    """Return the model of `cfg` with the values that `write_values` left at `path`.

    None if it cannot be built without values: a plug-in may compute with them, or keep tensors
    where nothing can be put in their place. Weights are mapped, buffers are in memory.
    """
    entry = registry.entry("model", cfg.name)
    others = [] if entry.built_in else _meta_tensors()
    try:
        with isolated_rng(seed(run_seed, "init")), warnings.catch_warnings(action="ignore"):
            undrawn = torch.default_generator.get_state()
            with torch.device("meta"):
                model: nn.Module = entry.build(vars(cfg), task=task)
            if not torch.equal(undrawn, torch.default_generator.get_state()):
                return None  # nothing was drawn for the weights: these are other numbers
        seed_dropout(model)
        _map(model, path)
    except Exception:  # noqa: BLE001 - whatever a plug-in does without values
        return None
    if not entry.built_in:
        known = set(map(id, others))
        if any(id(tensor) not in known for tensor in _meta_tensors()):
            return None
    return model


def _map(model: nn.Module, path: Path) -> None:
    with safe_open(path, framework="pt") as file:

        def value(name: str, old: Tensor) -> Tensor:
            found: Tensor = file.get_tensor(name)
            if found.shape != old.shape or any(gradient_hooks(old)):
                raise ValueError(f"{name} is not what was built")
            return found if isinstance(old, nn.Parameter) else found.clone()

        _replace(model, value)


def _replace(model: nn.Module, make: Callable[[str, Tensor], Tensor]) -> None:
    """Put `make(name, old)` in the place of each parameter and buffer; tied ones stay tied."""
    made: dict[int, Tensor] = {}
    kept = []  # so that no new tensor has the identity of an old one
    for path, module in list(model.named_modules()):
        both = {
            **dict(module.named_parameters(recurse=False, remove_duplicate=False)),
            **dict(module.named_buffers(recurse=False, remove_duplicate=False)),
        }
        for name, old in both.items():
            if id(old) not in made:
                new = make(f"{path}.{name}" if path else name, old)
                if isinstance(old, nn.Parameter):
                    new = nn.Parameter(new, requires_grad=old.requires_grad)
                    vars(new).update(vars(old))
                made[id(old)] = new
                kept.append(old)
            setattr(module, name, made[id(old)])


def _meta_tensors() -> list[Tensor]:
    """Return all tensors without values that Python code can still reach."""
    gc.collect()
    return [o for o in gc.get_objects() if issubclass(type(o), Tensor) and o.device.type == "meta"]
