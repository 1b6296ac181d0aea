"""Buffers, such as BatchNorm's running statistics: after each step all ranks have rank 0's.

A step changes them by what a rank sees of the batch, so that each would evaluate another model,
and a resumed run would go on from another one than was saved. Alternatively, on GPUs, batches are
normalised over all ranks (`distributed.sync_batchnorm`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from heliotrope.config import Run
from heliotrope.errors import ConfigError
from heliotrope.models.layers.seeded import SeededLayer
from heliotrope.system.resources import pick_device

from ..communication.traffic import HALF
from ..topology import Topology

__all__ = ["SharedBuffers", "check_batchnorm", "synchronised", "with_own_buffers"]


class SharedBuffers:
    """The buffers of `model` that are to be the same on all ranks.

    Those of seeded layers are not: they say which part of a batch a rank has. In an update, rank 0
    sends `nbytes` to each of the others.
    """

    def __init__(self, model: nn.Module, topology: Topology) -> None:
        self._model = model
        self._alone = topology.world_size == 1
        self.nbytes = sum(b.nbytes for b in self._buffers())

    @torch.no_grad()
    def update(self) -> None:
        """Take rank 0's; every rank must call it."""
        buffers = [] if self._alone else self._buffers()
        if not buffers:
            return
        # One message of bytes. The widest first: each begins at a multiple of its size.
        buffers.sort(key=Tensor.element_size, reverse=True)
        message = torch.cat([_as_bytes(buffer) for buffer in buffers])
        dist.broadcast(message, src=0)
        parts = torch.split(message, [buffer.nbytes for buffer in buffers])
        for buffer, part in zip(buffers, parts, strict=True):
            buffer.copy_(part.view(buffer.dtype).view(buffer.shape))

    def _buffers(self) -> list[Tensor]:
        """Return them anew: a model may put another tensor in the place of one."""
        layers = [layer for layer in self._model.modules() if isinstance(layer, SeededLayer)]
        own = {id(buffer) for layer in layers for buffer in (layer.key, layer.first)}
        return [b for b in self._model.buffers() if id(b) not in own and b.numel()]


def _as_bytes(buffer: Tensor) -> Tensor:
    return buffer.contiguous().view(-1).view(torch.uint8)


def check_batchnorm(run: Run, model: nn.Module) -> None:
    """Raise `ConfigError` if `run` cannot have the BatchNorm of `model`.

    Or if the model has none, where `distributed.sync_batchnorm` asks for it.
    """
    cfg, layers = run.distributed, any(isinstance(m, _BatchNorm) for m in model.modules())
    if cfg.sync_batchnorm and not layers:
        raise ConfigError(
            f"distributed.sync_batchnorm=true has no effect: model={run.model.name} has no "
            "BatchNorm. Set distributed.sync_batchnorm=false."
        )
    halved = cfg.strategy == "fsdp" and cfg.precision in HALF
    if layers and halved and pick_device(run.device).type == "cpu":
        raise ConfigError(
            f"distributed.precision={cfg.precision} with distributed.strategy=fsdp has weights in "
            f"half precision, which torch's BatchNorm of model={run.model.name} cannot have beside "
            "its float32 statistics on a CPU. Set distributed.precision=fp32 or "
            "distributed.strategy=ddp, or normalise by torch.nn.GroupNorm."
        )


def synchronised(model: nn.Module) -> nn.Module:
    """Return `model` with the statistics of each batch taken over all ranks; names stay."""
    convert: Callable[[nn.Module], nn.Module] = nn.SyncBatchNorm.convert_sync_batchnorm
    return convert(model)


def with_own_buffers(model: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return `tensors` of a checkpoint, copies of those that are buffers of `model`.

    Of its averaged and its raw weights alike, whose names have a prefix.
    """
    buffers = {name for name, _ in model.named_buffers()}
    own = {name: name.rpartition("weights/")[2] for name in tensors}
    return {name: v.clone() if own[name] in buffers else v for name, v in tensors.items()}
