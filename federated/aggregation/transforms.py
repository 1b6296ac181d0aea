"""What is done to each client's update before updates are added up: a chain of transforms.

An update is how far a client went from the global weights. Transforms change its trained
parameters, in float64; buffers, which are no steps of an optimizer, go by unchanged.

Shape legend: K clients of a stack.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from heliotrope.config import FederatedConfig

from ..updates import StepNoise, Weights

__all__ = ["ClipNorm", "UpdateContext", "UpdateTransform", "transforms_of"]


_BLOCK = 1 << 17  # numbers worked on at once


@dataclass(frozen=True)
class UpdateContext:
    """Whose updates a transform is given, so that what it draws repeats, and differs by client.

    Parameters
    ----------
    run_seed
        Of the run.
    server_round
        From 1.
    clients
        The number of each row's client, [K].
    noise
        That the clients are to add, if any.
    """

    run_seed: int
    server_round: int
    clients: tuple[int, ...]
    noise: StepNoise | None = None


class UpdateTransform(Protocol):
    """One step of the chain; a value that any process can make from the configuration."""

    def apply(self, updates: Mapping[str, Tensor], context: UpdateContext) -> Mapping[str, Tensor]:
        """Return the transformed `updates`, by name: float64 [K, *shape] of each parameter.

        Clients do not depend on one another: a row's result is that of its row alone, and of its
        client in `context`. A parameter that layers share comes once. The tensors given may be
        changed in place.
        """


@dataclass(frozen=True)
class ClipNorm(UpdateTransform):
    """Scales a client's update down to the Euclidean norm `most`, over all its parameters.

    Flat clipping of McMahan et al. 2018, arXiv:1710.06963. An update that is not finite is not
    made finite: it is left out of the round as ever.
    """

    most: float

    def apply(self, updates: Mapping[str, Tensor], context: UpdateContext) -> Mapping[str, Tensor]:
        """Return the updates, [K, *shape] of each parameter, those above `most` scaled."""
        del context
        return self.clipped(updates)[0]

    def clipped(self, updates: Mapping[str, Tensor]) -> tuple[Mapping[str, Tensor], Tensor]:
        """Scale the updates in place; return them, and their factors."""
        starts = {name: torch.zeros_like(update[0]) for name, update in updates.items()}
        scales = self.factors(updates, starts)
        for update in updates.values():
            update.mul_(scales.view(-1, *[1] * (update.dim() - 1)))
        return updates, scales

    def factors(self, arrays: Weights, starts: Weights) -> Tensor:
        """Return what scales each client's update, float64 [K]; NaN if it is not finite.

        Its weights are `arrays`, [K, *shape] each, and it began at `starts`, [*shape].
        """
        total = None
        for name, value in arrays.items():
            flat, start = value.reshape(len(value), starts[name].numel()), starts[name].reshape(-1)
            width = max(1, _BLOCK // len(flat))
            squares = torch.zeros(len(flat), dtype=torch.float64, device=flat.device)
            parts = torch.split(flat, width, dim=1), torch.split(start, width)
            for part, begin in zip(*parts, strict=True):
                way = part.double() - begin
                squares += way.mul_(way).sum(dim=1)
            total = squares if total is None else total + squares
        assert total is not None
        norms = total.sqrt()
        factors = (self.most / norms).clamp(max=1.0)  # of a norm of 0, min(inf, 1)
        return torch.where(norms.isfinite(), factors, torch.nan)


def transforms_of(cfg: FederatedConfig) -> tuple[UpdateTransform, ...]:
    """Return the transforms that the keys of `cfg` ask for, in the order they are applied in."""
    return () if cfg.clip_update_norm is None else (ClipNorm(cfg.clip_update_norm),)
