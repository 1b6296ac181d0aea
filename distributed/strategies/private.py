"""DP-SGD with DDP's sums: clipped gradients of single examples, noise added once (Abadi 2016).

Each step:

1. Each rank adds up the clipped gradients of its examples; micro-batches join the same sum.
2. The sums of all ranks are added.
3. Every rank adds the same noise, and divides by the number of examples that a step expects.
4. Penalties of the weights join: they tell nothing of the examples.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from heliotrope.config import Run
from heliotrope.tasks import Task
from heliotrope.training.loop import TrainingBatch
from heliotrope.training.noisy_steps import release_sums
from heliotrope.training.per_example import ClippedGradients

from ..communication.process_group import sum_over_ranks
from ..privacy.protection import Protection
from ..topology import Topology
from .engine import Engine

__all__ = ["PrivateEngine"]


class PrivateEngine(Engine):
    """An engine whose gradients are those that `protection` may release.

    `exchange` adds up a tensor over the ranks; None for that of the process group.
    """

    def __init__(
        self,
        run: Run,
        model: nn.Module,
        task: Task,
        topology: Topology,
        directory: Path,
        protection: Protection,
        exchange: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        super().__init__(run, model, task, topology, directory)
        self._topology, self._protection = topology, protection
        self._over_ranks = exchange or partial(
            sum_over_ranks, topology=topology, device=self._device
        )
        self._weights_penalty, self._penalty = self._penalty, None
        self._trained = [p for p in model.parameters() if p.requires_grad]
        self._step_seed = 0
        model.train()
        self._recipe = replace(
            self._recipe,
            backward=ClippedGradients(model, task, protection.clip),
            change_gradients=self._release,
        )

    def _exchanging_model(self, model: nn.Module, task: Task, topology: Topology) -> nn.Module:  # noqa: ARG002 - as the base
        return model

    def step(self, batch: TrainingBatch) -> None:
        """Take one optimizer step on this rank's part of a global batch, also an empty one."""
        self._step_seed = batch.seed
        super().step(batch)

    def _release(self) -> None:
        """Make of the gradients, which are this rank's sums, the noisy mean over all ranks."""
        sizes = [p.numel() for p in self._trained]
        gradients = [p.grad for p in self._trained if p.grad is not None]
        noise = self._protection.noise(self._step_seed, sum(sizes)).to(self._device)
        if self._topology.world_size > 1:
            mine = torch.cat([gradient.reshape(-1) for gradient in gradients])
            whole = torch.split(self._over_ranks(mine), sizes)
            for gradient, total in zip(gradients, whole, strict=True):
                gradient.copy_(total.view_as(gradient))
        release_sums(self._trained, noise, self._protection.expected, self._weights_penalty)
