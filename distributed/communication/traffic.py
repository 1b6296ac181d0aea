"""What a step's exchange sends: a run counts it so, and a plan foretells it so.

Bytes are those that all workers send together, in each half of a ring all-reduce: the
reduce-scatter and the all-gather, in both of which every one of W workers sends (W - 1)/W of the
whole (Patarasuk and Yuan 2009).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from heliotrope.config import DistributedConfig

from .exchange import exchanged_bytes

__all__ = ["HALF", "ModelSize", "traffic"]

HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class ModelSize:
    """What of a model is exchanged: its weights in number, bytes that are trained, and buffers."""

    weights: int
    trained_bytes: int
    buffer_bytes: int

    @classmethod
    def of(cls, model: nn.Module, buffer_bytes: int) -> ModelSize:
        """Return that of `model`; `buffer_bytes` are those that all ranks have alike."""
        trained = sum(p.nbytes for p in model.parameters() if p.requires_grad)
        return cls(sum(p.numel() for p in model.parameters()), trained, buffer_bytes)


def traffic(cfg: DistributedConfig, size: ModelSize, workers: int) -> tuple[int, int]:
    """Return the bytes that all workers send in an exchange of `distributed.strategy`.

    With `ddp` and `fsdp` there is one in each step, with `local_sgd` and `diloco` one in
    `distributed.diloco.local_steps`, and at the end of an epoch.
    """
    return _KINDS[cfg.strategy](cfg, size, workers)


def _reduced(_cfg: DistributedConfig, size: ModelSize, workers: int) -> tuple[int, int]:
    """Gradients are summed; rank 0's buffers are sent with the second half."""
    sent = (workers - 1) * size.trained_bytes
    return sent, sent + (workers - 1) * size.buffer_bytes


def _sharded(cfg: DistributedConfig, size: ModelSize, workers: int) -> tuple[int, int]:
    """Weights are gathered for each forward and backward pass, by the workers of a replica.

    Gradients are reduced among them, and each part among the replicas, to which its mean goes
    back: by a ring in each, that is as much up as among all workers at once.
    """
    replicas, passes = cfg.mesh.replicate, 2 * cfg.accumulation_steps
    gathered = (workers - replicas) * size.trained_bytes * passes
    weights = gathered // (2 if cfg.precision in HALF else 1)
    means = (replicas - 1) * size.trained_bytes
    buffers = (workers - 1) * size.buffer_bytes
    return (workers - 1) * size.trained_bytes, weights + means + buffers


def _averaged(cfg: DistributedConfig, size: ModelSize, workers: int) -> tuple[int, int]:
    """How far workers went is averaged, as `distributed.diloco.exchange` says."""
    sent = exchanged_bytes(cfg.diloco.exchange, size.weights, workers)
    return sent, sent


_KINDS: dict[str, Callable[[DistributedConfig, ModelSize, int], tuple[int, int]]] = {
    "ddp": _reduced,
    "fsdp": _sharded,
    "local_sgd": _averaged,
    "diloco": _averaged,
}
