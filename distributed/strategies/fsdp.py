"""FSDP2: each worker holds a part of every weight, its gradient and its optimizer state.

The method is Zhao et al.'s (2023), as `torch.distributed.fsdp.fully_shard` has it.

Weights are gathered part by part to be evaluated as well: no worker ever holds the whole model.
What is saved is whole when it is read, so that a run may go on with another number of workers, or
with `ddp`; rank 0 gathers it, and with `distributed.sharded_checkpoints` each rank writes its own.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

from heliotrope.config import Run
from heliotrope.tasks import Task
from heliotrope.training.loop import TrainingBatch, weight_penalty

from ..communication.traffic import HALF
from ..topology import Topology
from .engine import Engine, Snapshot
from .initial_weights import initial_model
from .layer_order import LayerOrder

__all__ = ["FsdpEngine", "sharded_parts"]


class FsdpEngine(Engine):
    """An engine whose model is sharded over the workers, in place, from where it is on the CPU.

    Weights are gathered part by part when needed: the blocks of the model's `nn.ModuleList`s,
    or its direct children where there are none. With `bf16` and `fp16` they travel and are used in
    that, while gradients are summed, and weights updated, in float32; evaluation is all in float32,
    from a second sharded model.
    """

    passes_exchange = True
    _mesh: DeviceMesh | None = None

    def __init__(
        self, run: Run, model: nn.Module, task: Task, topology: Topology, directory: Path
    ) -> None:
        super().__init__(run, model, task, topology, directory)
        self._first = topology.rank == 0
        self._saves = topology.rank < topology.world_size // run.distributed.mesh.replicate
        _gather_once(model)
        if self._ema is not None:
            self._evaluated = self._exported
        if self._ordered and self._evaluated is not model:
            self._order_of(self._evaluated, topology).check_evaluation(self._evaluated)
        if self._penalty is not None:
            self._penalty = lambda: weight_penalty(_shards(model), run.loss)

    def _exchanging_model(self, model: nn.Module, task: Task, topology: Topology) -> nn.Module:  # noqa: ARG002 - as the base
        half = HALF.get(self._cfg.precision)
        policy = MixedPrecisionPolicy(
            param_dtype=half, reduce_dtype=None if half is None else torch.float32
        )
        sharded = self._sharded(model, topology, policy)
        self._order: LayerOrder | None = None
        if self._ordered:
            self._order = self._order_of(model, topology)
            self._order_of(model, topology).check_evaluation(model)
        return sharded

    @property
    def _ordered(self) -> bool:
        """Whether turns are checked: a compiled part would be compiled anew for each."""
        return not self._cfg.compile

    def _order_of(self, model: nn.Module, topology: Topology) -> LayerOrder:
        names = {id(module): name for name, module in model.named_modules()}
        parts = {names[id(part)]: part for part in sharded_parts(model)}
        return LayerOrder(parts, topology, self._device)

    def _forward_context(self) -> Callable[[TrainingBatch], AbstractContextManager[object]]:
        return super()._forward_context() if self._order is None else self._in_order

    def _in_order(self, batch: TrainingBatch) -> AbstractContextManager[object]:  # noqa: ARG002 - as the base
        assert self._order is not None
        return self._order.checked()

    def _in_float32(self, run: Run, topology: Topology, directory: Path) -> nn.Module:
        half = self._cfg.precision in HALF
        self._evaluated = self._another(run, topology, directory) if half else self._model
        return self._evaluated

    def _device_of(self, model: nn.Module) -> torch.device:  # noqa: ARG002 - as the base
        """Return where the parts of the model go, which is on the CPU before it is divided."""
        on_gpu = dist.get_backend() == "nccl"
        return torch.device("cuda", torch.cuda.current_device()) if on_gpu else torch.device("cpu")

    def _another(self, run: Run, topology: Topology, directory: Path) -> nn.Module:
        model = initial_model(run, self._task, directory)
        return self._sharded(model, topology, MixedPrecisionPolicy())

    def _sharded(
        self, model: nn.Module, topology: Topology, policy: MixedPrecisionPolicy
    ) -> nn.Module:
        for part in (*sharded_parts(model), model):
            # Of the root too: nothing is whole between the passes, as between those of its parts.
            fully_shard(
                part, mesh=self._mesh_of(topology), mp_policy=policy, reshard_after_forward=True
            )
        return model

    def _mesh_of(self, topology: Topology) -> DeviceMesh:
        """Return all ranks, or with replicas a row of them for each: rank 0's row is the first."""
        if self._mesh is None:
            replicas = self._cfg.mesh.replicate
            shape = (replicas, topology.world_size // replicas)
            outer = int(replicas == 1)  # without replicas there is one dimension
            names = ("replicate", "shard")[outer:]
            self._mesh = init_device_mesh(self._device.type, shape[outer:], mesh_dim_names=names)
        return self._mesh

    def _compiled(self, model: nn.Module) -> nn.Module:
        for part in sharded_parts(model):  # between them, weights are gathered
            part.compile(dynamic=False)
        return model

    @property
    def _autocast(self) -> None:
        """Nothing is cast: the policy says in which precision."""

    @contextmanager
    def evaluating(self) -> Iterator[nn.Module]:
        """Have a sharded model, in float32, inside the block: it gathers its weights part by part.

        It runs as it is written, also where training is compiled.
        """
        model = self._evaluated
        if model is not self._exported:
            _take_over(model, self._exported)
        with ExitStack() as stack:
            if self._cfg.compile:
                stack.enter_context(torch.compiler.set_stance("force_eager"))
            yield model

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
        """Return this rank's shards, of one replica; rank 0 has what is not sharded as well."""
        return {
            name: value.to_local() if isinstance(value, DTensor) else value
            for name, value in tensors.items()
            if (self._saves if isinstance(value, DTensor) else self._first)
        }

    def _load(self, model: nn.Module, weights: Mapping[str, Tensor], path: Path) -> None:  # noqa: ARG002 - as the base
        with torch.no_grad():
            for name, own in model.state_dict().items():
                own.copy_(_like(weights[name], own))

    def _placed(self, name: str, value: Tensor) -> Tensor:
        weights = [p for group in self.optimizer.param_groups for p in group["params"]]
        return _like(value, weights[int(name.partition(".")[0])])


def sharded_parts(model: nn.Module) -> list[nn.Module]:
    """Return the parts of `model` that have weights and are gathered one after the other.

    One with a weight that is used outside of it too is none: the root has that weight then, for
    two parts would each train their own.
    """
    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
    parts = [block for list_ in lists for block in list_] or list(model.children())
    uses = Counter(_uses(model))
    return [
        part
        for part in parts
        if (own := Counter(_uses(part))) and all(own[w] == uses[w] for w in own)
    ]


def _uses(module: nn.Module) -> Iterator[int]:
    """Yield the identity of each weight below `module`, once for each name that it has."""
    return (id(weight) for _, weight in module.named_parameters(remove_duplicate=False))


def _gather_once(model: nn.Module) -> None:
    """Gather each part once: memory first taken in inference mode could not be trained in later."""
    for part in model.modules():
        if isinstance(part, FSDPModule):
            part.unshard()
            part.reshard()


@torch.no_grad()
def _take_over(model: nn.Module, other: nn.Module) -> None:
    """Give a sharded `model` the weights and buffers of another that is sharded alike."""
    for own, weight in zip(_shards(model), _shards(other), strict=True):
        own.copy_(weight)
    for own, buffer in zip(model.buffers(), other.buffers(), strict=True):
        own.copy_(buffer)


def _shards(model: nn.Module) -> Iterator[Tensor]:
    """Yield this rank's part of each weight: a penalty's gradient asks for no other's.

    Through the whole weight, that gradient has the wrong shape where this rank holds nothing of it.
    """
    return (p.to_local() if isinstance(p, DTensor) else p for p in model.parameters())


def _whole(value: Tensor) -> Tensor:
    return value.full_tensor() if isinstance(value, DTensor) else value


def _like(value: Tensor, own: Tensor) -> Tensor:
    """Return a copy of a whole tensor, sharded as `own` if it is of its shape.

    A step counter is not.
    """
    if not isinstance(own, DTensor) or value.shape != own.shape:
        return value.clone()
    mesh, dim = (
        own.device_mesh,
        own.device_mesh.ndim - 1,
    )  # the shards are the mesh's last dimension
    parts, index = value.chunk(mesh.size(dim)), mesh.get_local_rank(dim)
    mine = parts[index] if index < len(parts) else value[:0]
    return DTensor.from_local(
        mine.clone().to(own.device),  # a view would keep the whole alive
        mesh,
        own.placements,
        run_check=False,
        shape=value.shape,
        stride=value.stride(),
    )
