"""What is done to each client's update before updates are added up: a chain of transforms.

An update is how far a client went from the global weights. Transforms change its trained
parameters, in float64; buffers, which are no steps of an optimizer, go by unchanged.

Shape legend: K clients of a stack.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor, nn

from heliotrope.config import FederatedConfig

from ..updates import Stack, Weights

__all__ = ["ClipNorm", "TransformChain", "UpdateTransform", "transforms_of"]


class UpdateTransform(Protocol):
    """One step of the chain; a value that any process can make from the configuration."""

    def apply(self, updates: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Return the transformed `updates`, by name: float64 [K, *shape] of each parameter.

        Clients do not depend on one another: a row's result is that of its row alone. A
        parameter that layers share comes once. The tensors given may be changed in place.
        """


@dataclass(frozen=True)
class ClipNorm:
    """Scales a client's update down to the Euclidean norm `most`, over all its parameters.

    Flat clipping of McMahan et al. 2018, arXiv:1710.06963. An update that is not finite is not
    made finite: it is left out of the round as ever.
    """

    most: float

    def apply(self, updates: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Return the updates, those above `most` scaled."""
        squares = [update.flatten(1).square().sum(dim=1) for update in updates.values()]
        norms = torch.stack(squares).sum(dim=0).sqrt()
        scales = (self.most / norms).clamp(max=1.0)  # [K]; of a norm of 0, min(inf, 1)
        for update in updates.values():
            update.mul_(scales.view(-1, *[1] * (update.dim() - 1)))
        return updates


def transforms_of(cfg: FederatedConfig) -> tuple[UpdateTransform, ...]:
    """Return the transforms that the keys of `cfg` ask for, in the order they are applied in."""
    return () if cfg.clip_update_norm is None else (ClipNorm(cfg.clip_update_norm),)


class TransformChain:
    """Applies `transforms`, one after the other, to the updates of a stack.

    `model` says which weights are trained parameters, and which are shared by two names.
    """

    def __init__(self, transforms: Sequence[UpdateTransform], model: nn.Module) -> None:
        self._transforms = transforms
        by_id: dict[int, list[str]] = {}
        for name, p in model.named_parameters(remove_duplicate=False):
            if p.requires_grad:
                by_id.setdefault(id(p), []).append(name)
        self._names = list(by_id.values())  # of each parameter

    def __call__(self, stack: Stack, weights: Weights, *, rounded: bool) -> Stack:
        """Return the stack of clients that began with `weights`, with transformed updates.

        Without transforms it is `stack` itself, and so it is where a client's weights are of
        another shape: what adds it up rejects it. Weights are float64 where they are to be added
        up, and otherwise `rounded` to the types they came in.
        """
        if not self._transforms:
            return stack
        arrays = dict(stack.arrays)
        if any(value.shape[1:] != weights[name].shape for name, value in arrays.items()):
            return stack
        starts = {
            name: weights[name].to(arrays[name].device, torch.float64)
            for name, *_ in self._names
            if name in arrays
        }
        updates: Mapping[str, Tensor] = {
            n: arrays[n].double() - start for n, start in starts.items()
        }
        for transform in self._transforms:
            updates = transform.apply(updates)
        for name, *shared in self._names:
            if name in updates:
                moved = updates[name] + starts[name]
                moved = moved.to(arrays[name].dtype) if rounded else moved
                arrays.update(dict.fromkeys([name, *shared], moved))
        return replace(stack, arrays=arrays)
