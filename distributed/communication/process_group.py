"""The process group: joining it, sums over it, and the model that averages gradients over it."""

from __future__ import annotations

import copy
import inspect
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import Store  # type: ignore[attr-defined]
from torch.distributed.rendezvous import rendezvous
from torch.nn.parallel import DistributedDataParallel

from heliotrope.errors import RunFailedError
from heliotrope.seeding import isolated_rng
from heliotrope.tasks import Task

from ..topology import Topology
from .hung import HungRank, missing_ranks, timed_out, unreachable

__all__ = ["data_parallel", "device_of", "joined", "sum_over_ranks"]

_TRIED = 4  # passes in training mode by which it is found whether some leave weights out
_LEFT_OUT = "Expected to have finished reduction in the prior iteration"  # so torch calls it


def device_of(name: str, topology: Topology) -> torch.device:
    """Return the device of one worker; with `cuda`, each has a GPU of its own."""
    return torch.device(name, topology.local_rank) if name == "cuda" else torch.device(name)


@contextmanager
def joined(
    topology: Topology, device: torch.device, timeout: float, store: Store | None = None
) -> Iterator[None]:
    """Be a member of the process group inside the block; alone, there is none.

    The ranks meet in `store`, or where torchrun's environment variables say. After an error
    the group is left as it is: leaving it in order can wait for ever for a dead peer. Raises
    `HungRank`, which names the ranks that did not come, `timeout` seconds after the others, also
    to the meeting itself, and `ConnectionError` if one that came cannot be reached. On GPUs,
    NCCL's watchdog ends a process that waits so long in an exchange, and what it says on stderr
    names the exchange, not the ranks.
    """
    if topology.world_size == 1:
        yield
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    store = store or next(rendezvous("env://"))[0]
    began = time.monotonic()
    try:
        dist.init_process_group(
            backend="nccl" if device.type == "cuda" else "gloo",
            store=store,
            rank=topology.rank,
            world_size=topology.world_size,
            timeout=timedelta(seconds=timeout),
        )
        yield
    except RuntimeError as error:
        if unreachable(error):
            raise ConnectionError(
                "another worker cannot be reached: it has died, or a firewall or the wrong network "
                f"interface (GLOO_SOCKET_IFNAME, NCCL_SOCKET_IFNAME) is in between: {error}"
            ) from error
        if timed_out(error, time.monotonic() - began, timeout):
            raise HungRank(missing_ranks(store, topology), timeout) from error
        if _LEFT_OUT in str(error):
            raise RunFailedError(
                "The model leaves some weights out of a pass, which it did not at the start: "
                "another rank waits for their gradients. Add 0 times the outputs of the layers "
                "that are left out, or set distributed.strategy=local_sgd."
            ) from error
        raise
    dist.destroy_process_group()


def sum_over_ranks(values: Tensor, topology: Topology, device: torch.device) -> Tensor:
    """Return the element-wise sum of every rank's `values`, [...], the same on all ranks.

    They are summed on `device`, in their own dtype.
    """
    if topology.world_size == 1:
        return values
    shared = values.to(device, copy=True)
    dist.all_reduce(shared)
    return shared.to(values.device)


def data_parallel(model: nn.Module, task: Task, topology: Topology, *, uses_all: bool) -> nn.Module:
    """Wrap `model` so that `backward` leaves the mean gradient over the ranks; alone, as it is.

    `uses_all` says that each pass uses all weights. Otherwise some passes are tried: a weight that
    one of them leaves out is looked for in every step then, and has no gradient where no rank
    uses it, as with one worker.

    Buffers are not copied here but after each step: see `distributed.strategies.buffers`.

    DDP groups gradients anew after its first step, and the order of the sums of three or more
    ranks depends on the groups. One pass without an update settles them, so that a resumed run
    adds in the same order as one that was never interrupted.
    """
    if topology.world_size == 1:
        return model
    # torch 2.13 renamed the argument.
    arguments = inspect.signature(DistributedDataParallel).parameters
    new = "forward_sync_buffers" in arguments
    buffers: dict[str, Any] = {"forward_sync_buffers" if new else "broadcast_buffers": False}
    device = next(model.parameters()).device
    left_out = torch.tensor([0.0 if uses_all else _leaves_weights_out(model, task)])
    wrapped = DistributedDataParallel(
        model,
        gradient_as_bucket_view=True,
        find_unused_parameters=bool(sum_over_ranks(left_out, topology, device) > 0),
        **buffers,
    )
    model.eval()
    nothing = {name: value.to(device) for name, value in task.facts.example.items()}
    torch.autograd.backward(task.call(wrapped, nothing).sum())
    wrapped.zero_grad(set_to_none=True)
    model.train()
    return wrapped


def _leaves_weights_out(model: nn.Module, task: Task) -> bool:
    """Return whether some pass of a copy of `model` gives a weight no gradient.

    On two examples of zeros, once in evaluation and some times in training, where layers may be
    dropped at random. A pass that fails says nothing: that the model can be trained is found
    elsewhere.
    """
    device = next(model.parameters()).device
    example = task.facts.example
    two = {name: value.expand(2, *value.shape[1:]).to(device) for name, value in example.items()}
    with isolated_rng(0):
        for training in (False, *[True] * _TRIED):
            with suppress(Exception):  # whatever a user's code may raise
                tried = copy.deepcopy(model).train(training)
                torch.autograd.backward(task.call(tried, two).sum())
                if any(p.grad is None for p in tried.parameters() if p.requires_grad):
                    return True
    return False
