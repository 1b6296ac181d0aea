"""The process group: joining it, sums over it, and the model that averages gradients over it."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import Store  # type: ignore[attr-defined]
from torch.distributed.rendezvous import rendezvous
from torch.nn.parallel import DistributedDataParallel

from heliotrope.tasks import Task

from .attempt import Place
from .hung import HungRank, missing_ranks, timed_out

__all__ = ["data_parallel", "device_of", "joined", "sum_over_ranks"]


def device_of(name: str, place: Place) -> torch.device:
    """Return the device of one worker; with `cuda`, each has a GPU of its own."""
    return torch.device(name, place.local_rank) if name == "cuda" else torch.device(name)


@contextmanager
def joined(
    place: Place, device: torch.device, timeout: float, store: Store | None = None
) -> Iterator[None]:
    """Be a member of the process group inside the block; alone, there is none.

    The ranks meet in `store`, or where torchrun's environment variables say. After an error
    the group is left as it is: leaving it in order can wait for ever for a dead peer. Raises
    `HungRank`, which names the ranks that did not come, `timeout` seconds after the others, also
    to the meeting itself. On GPUs, NCCL's watchdog ends a process that waits so long in an
    exchange, and what it says on stderr names the exchange, not the ranks.
    """
    if place.world_size == 1:
        yield
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    store = store or next(rendezvous("env://"))[0]
    try:
        dist.init_process_group(
            backend="nccl" if device.type == "cuda" else "gloo",
            store=store,
            rank=place.rank,
            world_size=place.world_size,
            timeout=timedelta(seconds=timeout),
        )
        yield
    except RuntimeError as error:
        if not timed_out(error):
            raise
        raise HungRank(missing_ranks(store, place), timeout) from error
    dist.destroy_process_group()


def sum_over_ranks(values: Tensor, place: Place, device: torch.device) -> Tensor:
    """Return the element-wise sum of every rank's `values`, the same on all ranks."""
    if place.world_size == 1:
        return values
    shared = values.to(device, copy=True)
    dist.all_reduce(shared)
    return shared.to(values.device)


def data_parallel(model: nn.Module, task: Task, place: Place) -> nn.Module:
    """Wrap `model` so that `backward` leaves the mean gradient over the ranks; alone, as it is.

    Buffers are not copied from rank 0 at each step: they are derived from seeds, or part of
    the weights that all ranks start from.

    DDP groups gradients anew after its first step, and the order of the sums of three or more
    ranks depends on the groups. One pass without an update settles them, so that a resumed run
    adds in the same order as one that was never interrupted.
    """
    if place.world_size == 1:
        return model
    # torch 2.13 renamed the argument.
    arguments = inspect.signature(DistributedDataParallel).parameters
    new = "forward_sync_buffers" in arguments
    buffers: dict[str, Any] = {"forward_sync_buffers" if new else "broadcast_buffers": False}
    wrapped = DistributedDataParallel(model, gradient_as_bucket_view=True, **buffers)
    device = next(model.parameters()).device
    model.eval()
    nothing = torch.zeros((1, *task.input_shape), device=device)
    wrapped(nothing).sum().backward()
    wrapped.zero_grad(set_to_none=True)
    model.train()
    return wrapped
