"""FSDP2: each worker holds a part of every weight, its gradient and its optimizer state.

The method is Zhao et al.'s (2023), as `torch.distributed.fsdp.fully_shard` has it.

What is evaluated is whole again, and what is saved is whole when it is read, so that a run may go
on with another number of workers, or with `ddp`. Weights are gathered from all ranks: every rank
must take part. With `distributed.sharded_checkpoints` nothing is gathered to be saved.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from heliotrope.config import Run
from heliotrope.models import build
from heliotrope.tasks import Task
from heliotrope.training.loop import TrainingBatch, weight_penalty

from ..topology import Topology
from .engine import HALF, Engine, Snapshot
from .layer_order import LayerOrder

__all__ = ["FsdpEngine"]


class FsdpEngine(Engine):
    """An engine whose model is sharded over the workers, in place.

    Weights are gathered part by part when needed: the blocks of the model's `nn.ModuleList`s,
    or its direct children where there are none. With `bf16` and `fp16` they travel and are used in
    that, while gradients are summed, and weights updated, in float32.
    """

    def __init__(
        self, run: Run, model: nn.Module, task: Task, topology: Topology, directory: Path
    ) -> None:
        super().__init__(run, model, task, topology, directory)
        self._run = run
        self._first = topology.rank == 0
        if self._penalty is not None:
            self._penalty = lambda: weight_penalty(_shards(model), run.loss)

    def _exchanging_model(self, model: nn.Module, task: Task, topology: Topology) -> nn.Module:  # noqa: ARG002 - as the base
        half = HALF.get(self._cfg.precision)
        policy = MixedPrecisionPolicy(
            param_dtype=half, reduce_dtype=None if half is None else torch.float32
        )
        sharded = self._sharded(model, topology, policy)
        self._order: LayerOrder | None = None
        if not self._cfg.compile:  # a compiled part would be compiled anew for each turn
            names = {id(module): name for name, module in model.named_modules()}
            parts = {names[id(part)]: part for part in _parts(model)}
            self._order = LayerOrder(parts, topology, self._device)
        return sharded

    def _forward_context(self) -> Callable[[TrainingBatch], AbstractContextManager[object]]:
        return super()._forward_context() if self._order is None else self._in_order

    def _in_order(self, batch: TrainingBatch) -> AbstractContextManager[object]:  # noqa: ARG002 - as the base
        assert self._order is not None
        return self._order.checked()

    def _as_trained(self, model: nn.Module, topology: Topology) -> nn.Module:
        return self._sharded(model, topology, MixedPrecisionPolicy())

    def _sharded(
        self, model: nn.Module, topology: Topology, policy: MixedPrecisionPolicy
    ) -> nn.Module:
        mesh = init_device_mesh(self._device.type, (topology.world_size,))
        for part in _parts(model):
            fully_shard(part, mesh=mesh, mp_policy=policy)
        fully_shard(model, mesh=mesh, mp_policy=policy)
        return model

    def _compiled(self, model: nn.Module) -> nn.Module:
        for part in _parts(model):  # between them, weights are gathered
            part.compile(dynamic=False)
        return model

    @property
    def _autocast(self) -> None:
        """Nothing is cast: the policy says in which precision."""

    def after_step(self, step: int, steps: int) -> tuple[int, int]:
        """Return the bytes that all workers together sent: gradients, and gathered weights.

        Weights are gathered for the forward and again for the backward pass.
        """
        super().after_step(step, steps)
        gradients = self._exchanged
        passes = 2 * self._cfg.accumulation_steps
        weights = gradients * passes // (2 if self._cfg.precision in HALF else 1)
        return gradients, weights + self._buffers.sent_bytes

    def evaluated(self) -> nn.Module:
        """Return a whole copy of the model."""
        copy = build(self._run.model, self._task, self._run.seed).to(self._device)
        whole = copy.state_dict()
        for name, value in self._exported.state_dict().items():  # one at a time: less memory
            whole[name].copy_(_whole(value))
        for own, buffer in zip(copy.buffers(), self._exported.buffers(), strict=True):
            own.copy_(buffer)  # those that are not saved as well
        return copy

    def snapshot(self) -> Snapshot:
        """Return what a checkpoint must hold: the whole of it for rank 0, or each rank's part."""
        mine = super().snapshot()
        if self._cfg.sharded_checkpoints:
            return replace(mine, model=self._part(mine.model), arrays=self._part(mine.arrays))
        return replace(mine, model=self._whole(mine.model), arrays=self._whole(mine.arrays))

    def _whole(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return whole copies in the memory of rank 0's CPU, nothing on the others."""
        copies = ((name, _whole(value)) for name, value in tensors.items())
        return {name: value.cpu() for name, value in copies if self._first}

    def _part(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return this rank's shards; rank 0's are among those that are not sharded."""
        return {
            name: value.to_local() if isinstance(value, DTensor) else value
            for name, value in tensors.items()
            if isinstance(value, DTensor) or self._first
        }

    def _load(self, model: nn.Module, weights: Mapping[str, Tensor], path: Path) -> None:  # noqa: ARG002 - as the base
        with torch.no_grad():
            for name, own in model.state_dict().items():
                own.copy_(_like(weights[name], own))

    def _placed(self, arrays: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        weights = [p for group in self.optimizer.param_groups for p in group["params"]]
        return {
            name: _like(value, weights[int(name.partition(".")[0])])
            for name, value in arrays.items()
        }


def _parts(model: nn.Module) -> list[nn.Module]:
    """Return the parts of `model` that have weights and are gathered one after the other."""
    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
    parts = [block for list_ in lists for block in list_] or list(model.children())
    return [part for part in parts if any(True for _ in part.parameters())]


def _shards(model: nn.Module) -> Iterator[Tensor]:
    """Yield this rank's part of each weight: a penalty's gradient asks for no other's.

    Through the whole weight, that gradient has the wrong shape where this rank holds nothing of it.
    """
    return (p.to_local() if isinstance(p, DTensor) else p for p in model.parameters())


def _whole(value: Tensor) -> Tensor:
    return value.full_tensor() if isinstance(value, DTensor) else value


def _like(value: Tensor, own: Tensor) -> Tensor:
    """Return a whole tensor sharded as `own`, if it is of its shape; a step counter is not."""
    if not isinstance(own, DTensor) or value.shape != own.shape:
        return value
    return distribute_tensor(value.to(own.device), own.device_mesh, own.placements)
