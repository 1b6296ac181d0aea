"""Means over the ranks, sent as they are or in eight bits."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional

from ..topology import Topology
from .process_group import sum_over_ranks

__all__ = ["EXCHANGES", "exchanged_bytes", "gathered_rows", "mean_in_int8", "mean_over_ranks"]

_BLOCK = 256  # values that share a scale


def mean_over_ranks(values: Tensor, topology: Topology) -> Tensor:
    """Return the element-wise mean of every rank's `values`, [...], the same on all ranks."""
    return sum_over_ranks(values, topology, values.device) / topology.world_size


def mean_in_int8(values: Tensor, topology: Topology) -> Tensor:
    """Return about the mean of every rank's float32 `values`, [N], the same on all ranks.

    1. Each rank cuts its values into a part for each rank, and sends it there in 8 bits.
    2. Each rank takes the mean of the parts that it received, and sends it to all, in 8 bits.

    Blocks of 256 values share a scale: each rounding errs by at most 1/254 of the largest of
    its block. Alone, nothing is sent or rounded.
    """
    world = topology.world_size
    if world == 1:
        return values
    padded = functional.pad(values, (0, -len(values) % (world * _BLOCK)))
    parts = _swapped(*_quantized(padded.view(world, -1, _BLOCK)))  # [W, N/W/256, 256]
    codes, scales = _quantized(parts.mean(dim=0))
    mean = _dequantized(_gathered(codes, world), _gathered(scales, world))
    return mean.view(-1)[: len(values)]


def gathered_rows(rows: Tensor, topology: Topology) -> tuple[Tensor, int]:
    """Return every rank's `rows`, [N, ...] in the order of ranks, and where this rank's begin.

    Ranks may have different numbers of rows, also none.
    """
    if topology.world_size == 1:
        return rows, 0
    count = torch.tensor([len(rows)], device=rows.device)
    counts = _gathered(count, topology.world_size).view(-1).tolist()
    padding = rows.new_zeros((max(counts) - len(rows), *rows.shape[1:]))
    parts = _gathered(torch.cat([rows, padding]), topology.world_size)
    every = [part[:size] for part, size in zip(parts, counts, strict=True)]
    return torch.cat(every), sum(counts[: topology.rank])


EXCHANGES: dict[str, Callable[[Tensor, Topology], Tensor]] = {
    "fp32": mean_over_ranks,
    "int8": mean_in_int8,
}


def exchanged_bytes(exchange: str, count: int, workers: int) -> int:
    """Return the bytes that all workers send in each of the two halves of a mean of `count`."""
    if exchange == "fp32":
        return (workers - 1) * 4 * count
    blocks = workers * -(-count // (workers * _BLOCK))
    return (workers - 1) * blocks * (_BLOCK + 4)


def _quantized(values: Tensor) -> tuple[Tensor, Tensor]:
    """Return int8 codes shaped as `values`, [..., 256], and the scale of each block, [..., 1]."""
    scales = values.abs().amax(dim=-1, keepdim=True) / 127
    codes = values / scales.where(scales > 0, 1.0)
    return codes.round().to(torch.int8), scales


def _dequantized(codes: Tensor, scales: Tensor) -> Tensor:
    return codes.to(scales.dtype) * scales


def _swapped(codes: Tensor, scales: Tensor) -> Tensor:
    """Send part r to rank r; return what came from each, [W, ...]."""
    received = [torch.empty_like(codes), torch.empty_like(scales)]
    for target, sent in zip(received, (codes, scales), strict=True):
        dist.all_to_all_single(target, sent.contiguous())
    return _dequantized(*received)


def _gathered(mine: Tensor, world: int) -> Tensor:
    """Return every rank's tensor, [W, ...]."""
    whole = mine.new_empty((world, *mine.shape))
    dist.all_gather(list(whole.unbind()), mine.contiguous())
    return whole
