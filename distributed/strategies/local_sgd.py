"""Local SGD and DiLoCo: workers train by themselves and exchange weights every H steps.

1. Each worker takes H steps of its own optimizer on its own part of every global batch.
2. The mean of how far the workers went is the gradient of the outer optimizer, which moves the
   weights they began with; Local SGD moves them all the way.
3. Each worker goes on from there and keeps the state of its own optimizer.

An epoch ends with an exchange, so that there are always weights that all agree on: these are
evaluated and exported. Buffers, such as BatchNorm's statistics, are averaged in an exchange where
they are floating-point numbers, and taken from rank 0 where they are not.
(Stich 2019, arXiv:1805.09767; Douillard et al. 2023, arXiv:2311.08105.)
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn

from heliotrope.config import Run
from heliotrope.models import build
from heliotrope.runs import checkpoint
from heliotrope.runs.checkpoint import Checkpoint
from heliotrope.runs.checkpoint_files import Below
from heliotrope.tasks import Task
from heliotrope.training import optimizer_state
from heliotrope.training.joint import Gather, alone
from heliotrope.training.loop import TrainingBatch

from ..communication.exchange import EXCHANGES, mean_over_ranks
from ..topology import Topology
from .engine import Engine, Snapshot

__all__ = ["LocalSgdEngine"]


class LocalSgdEngine(Engine):
    """An engine that meets the others every `distributed.diloco.local_steps` steps.

    A checkpoint holds what each rank has of its own; as many other ranks go on from the mean. With
    `distributed.sharded_checkpoints` each rank writes that, and rank 0 what all have in common.
    """

    def __init__(
        self, run: Run, model: nn.Module, task: Task, topology: Topology, directory: Path
    ) -> None:
        super().__init__(run, model, task, topology, directory)
        cfg = run.distributed.diloco
        self._topology = topology
        self._every = cfg.local_steps
        self._mean = EXCHANGES[cfg.exchange]
        self._agreed = build(run.model, task, run.seed).to(self._device)
        lr, momentum, nesterov = cfg.lr, cfg.momentum, cfg.nesterov
        if run.distributed.strategy == "local_sgd":
            lr, momentum, nesterov = 1.0, 0.0, False
        self._outer = torch.optim.SGD(
            self._agreed.parameters(), lr=lr, momentum=momentum, nesterov=nesterov
        )

    def _exchanging_model(self, model: nn.Module, task: Task, topology: Topology) -> nn.Module:  # noqa: ARG002 - as the base
        return model

    def _gather(self, topology: Topology) -> Gather:  # noqa: ARG002 - as the base
        return alone  # a worker trains by itself

    def step(self, batch: TrainingBatch) -> None:
        """Take a step on the mean loss of this rank's examples."""
        super().step(replace(batch, divisor=max(1, batch.weight)))

    def after_step(self, step: int, steps: int) -> tuple[int, int]:
        """Exchange weights if it is time to."""
        if step % self._every and step != steps:
            return 0, 0
        self._exchange()
        self._speed.watch.lap("exchange")
        return self._sent

    @torch.no_grad()
    def _exchange(self) -> None:
        agreed, own = list(self._agreed.parameters()), list(self._model.parameters())
        went = torch.cat([(a - w).view(-1) for a, w in zip(agreed, own, strict=True)])
        gradients = torch.split(self._mean(went, self._topology), [w.numel() for w in own])
        for a, gradient in zip(agreed, gradients, strict=True):
            a.grad = gradient.view_as(a)
        self._outer.step()
        for a, w in zip(agreed, own, strict=True):
            w.copy_(a)
        for buffer in self._model.buffers():
            if buffer.is_floating_point():
                buffer.copy_(mean_over_ranks(buffer, self._topology))
        self._buffers.update()
        for common, buffer in zip(self._agreed.buffers(), self._model.buffers(), strict=True):
            common.copy_(buffer)

    @contextmanager
    def evaluating(self) -> Iterator[nn.Module]:
        """Have the model of the last exchange inside the block."""
        yield self._agreed

    def snapshot(self) -> Snapshot:
        """Return what a checkpoint must hold: all of it on rank 0, or each rank's own part."""
        optimizer, rest = optimizer_state.flatten(self.optimizer)
        own = {f"optimizer/{name}": value for name, value in optimizer.items()}
        own |= {f"weights/{name}": value for name, value in self._model.state_dict().items()}
        outer, outer_rest = optimizer_state.flatten(self._outer)
        others = {"optimizer": rest, "outer": outer_rest, "ranks": self._topology.world_size}
        rank, arrays = self._topology.rank, {f"outer/{name}": v for name, v in outer.items()}
        if self._cfg.sharded_checkpoints:
            mine = {f"{rank}/{name}": value for name, value in own.items()}
            if rank > 0:
                return Snapshot({}, mine, others)
            return Snapshot(self._agreed.state_dict(), arrays | mine, others)
        for name, value in own.items():
            for number, part in enumerate(self._from_all(value)):
                arrays[f"{number}/{name}"] = part
        return Snapshot(self._agreed.state_dict(), arrays, others)

    def _from_all(self, value: Tensor) -> list[Tensor]:
        """Return every rank's `value` on rank 0, nothing on the others."""
        if self._topology.world_size == 1:
            return [value]
        mine, parts = value.detach().to(self._device).contiguous(), []
        if self._topology.rank == 0:
            parts = [torch.empty_like(mine) for _ in range(self._topology.world_size)]
        dist.gather(mine, parts or None)
        return parts

    def restore(self, saved: Checkpoint, path: Path) -> None:
        """Go on from a checkpoint, also from one of another number of workers."""
        checkpoint.load_weights(self._agreed, saved.model, path)
        count = saved.state["ranks"]
        ranks = range(min(count, len(saved.arrays)))  # each has some of the arrays
        if count == self._topology.world_size:
            ranks = range(self._topology.rank, self._topology.rank + 1)
        own = [Below(f"{rank}/", saved.arrays) for rank in ranks]
        mean = {name: _mean([arrays[name] for arrays in own]) for name in own[0]}
        checkpoint.load_weights(self._model, Below("weights/", mean), path)
        inner = Below("optimizer/", mean)
        outer = {name: v.clone() for name, v in Below("outer/", saved.arrays).items()}
        optimizer_state.restore(self.optimizer, inner, saved.state["optimizer"])
        optimizer_state.restore(self._outer, outer, saved.state["outer"])


def _mean(values: list[Tensor]) -> Tensor:
    """Return the mean, or a copy; of integers, which are counts that all have alike, the first."""
    if len(values) == 1 or not values[0].is_floating_point():
        return values[0].clone()
    return torch.stack(values).mean(dim=0)
