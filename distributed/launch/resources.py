"""Each worker's share of the CPUs and GPUs, and the refusal of what is not there."""

from __future__ import annotations

import logging
from collections.abc import Iterator

from heliotrope.cluster.connection import Cluster
from heliotrope.cluster.placement import halved
from heliotrope.config import Run
from heliotrope.config.checks.distributed import check_sync_batchnorm
from heliotrope.config.workers import worker_range
from heliotrope.errors import ResourceError
from heliotrope.system.resources import check_cpus, threads_of

from ..attempt import WorkerResources

__all__ = ["fitting_resources", "returns_large_blocks", "worker_resources"]

_log = logging.getLogger(__name__)


def worker_resources(run: Run, workers: int, cpus: int, largest: int, gpus: int) -> WorkerResources:
    """Return what each of `workers` gets of `cpus` CPUs and `gpus` GPUs.

    `largest` is the most CPUs that one worker can have, so that all find room. Raises
    `ResourceError` naming the key and how many there are.
    """
    wanted, device = run.distributed.cpus_per_worker, _device(run, workers, gpus)
    check_cpus("distributed.workers", workers, 1, cpus)
    if wanted is not None and wanted > largest:
        raise ResourceError(
            f"distributed.cpus_per_worker={wanted} is more than the {largest} that each of "
            f"{workers} worker(s) can have: there are {cpus} CPUs in all. Lower it, or lower "
            "distributed.workers."
        )
    check_sync_batchnorm(run.distributed, device)
    return WorkerResources(threads=threads_of(wanted or largest), device=device)


def fitting_resources(
    run: Run, cluster: Cluster, free: tuple[int, int] | None = None
) -> Iterator[tuple[int, WorkerResources]]:
    """Yield how many workers may find room on `cluster`, the most first, and what each gets.

    `free` are the CPUs and GPUs that others leave; None for all. On which nodes they are is not
    known: of the same workers, those that have as many CPUs as possible come before those with
    fewer. Where no number of workers finds room, the fewest come all the same, with the least
    that they can do with, to wait for it; a cluster that cannot grow must have as much, or a
    `ResourceError` is raised. `device=auto` means GPUs if enough are free for the fewest.
    """
    fewest, most = worker_range(run.distributed.workers)
    cpus, wanted = cluster.cpus, run.distributed.cpus_per_worker
    free_cpus, free_gpus = free or (cpus, cluster.gpu_workers)
    gpus = min(cluster.gpu_workers, free_gpus)
    gpu = run.device == "cuda" or (run.device == "auto" and gpus >= fewest)
    found = False
    for workers in range(min(most, gpus) if gpu else most, fewest - 1, -1):
        largest = min(cluster.cpus_per_worker(workers, gpu=gpu), free_cpus // workers)
        if wanted is not None:
            shares = [wanted] if largest >= wanted else []
        else:
            largest = threads_of(largest) if largest else 0
            shares = halved(largest) if workers == fewest else [largest, 1][:largest]
        for share in shares:
            found = True
            yield workers, worker_resources(run, workers, cpus, share, gpus)
    if not found:
        if not cluster.can_grow:
            largest = cluster.cpus_per_worker(fewest, gpu=gpu)
            worker_resources(run, fewest, cpus, largest, cluster.gpu_workers)
        device = "cuda" if gpu else "cpu"
        check_sync_batchnorm(run.distributed, device)
        yield fewest, WorkerResources(threads_of(wanted or 1), device)


def _device(run: Run, workers: int, gpus: int) -> str:
    if run.device == "cuda" and gpus < workers:
        raise ResourceError(
            f"distributed.workers={workers} with device=cuda needs a GPU for each worker, but "
            f"there are {gpus}. Set distributed.workers to the number of GPUs, or device=cpu."
        )
    if run.device == "auto" and 0 < gpus < workers:
        _log.warning("%d workers, but %d GPU(s): training on CPUs instead", workers, gpus)
    return "cuda" if run.device != "cpu" and gpus >= workers else "cpu"


def returns_large_blocks(run: Run) -> bool:
    """Return whether ranks give freed blocks back: those of layers that are whole for a moment."""
    return run.distributed.strategy == "fsdp"
