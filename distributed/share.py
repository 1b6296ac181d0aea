"""Each worker's share of the CPUs and GPUs, and the refusal of what is not there."""

from __future__ import annotations

import logging
from collections.abc import Iterator

from heliotrope.cluster import Cluster
from heliotrope.config import Run
from heliotrope.elastic import worker_range
from heliotrope.errors import ResourceError
from heliotrope.resources import check_cpus

from .attempt import Share

__all__ = ["fitting", "share_of"]

_log = logging.getLogger(__name__)


def share_of(run: Run, workers: int, cpus: int, largest: int, gpus: int) -> Share:
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
    return Share(threads=wanted or largest, device=device)


def fitting(
    run: Run, cluster: Cluster, free: tuple[int, int] | None = None
) -> Iterator[tuple[int, Share]]:
    """Yield how many workers may find room on `cluster`, the most first, and what each gets.

    `free` are the CPUs and GPUs that others leave; None for all. On which nodes they are is not
    known: of the same workers, those that have as many CPUs as possible come before those with
    one. Where no number of workers finds room, the fewest come all the same, to wait for it;
    raises `ResourceError` if the whole cluster has none for them. `device=auto` means GPUs if
    there are enough for the fewest.
    """
    fewest, most = worker_range(run.distributed.workers)
    cpus, gpus = cluster.cpus, cluster.gpu_workers
    gpu = run.device == "cuda" or (run.device == "auto" and gpus >= fewest)
    wanted = run.distributed.cpus_per_worker
    free_cpus, free_gpus = free or (cpus, gpus)
    found = False
    for workers in range(min(most, gpus, free_gpus) if gpu else most, fewest - 1, -1):
        largest = min(cluster.cpu_share(workers, gpu=gpu), free_cpus // workers)
        if largest >= (wanted or 1):
            found = True
            yield workers, share_of(run, workers, cpus, largest, gpus)
            if largest > 1 and wanted is None:
                yield workers, share_of(run, workers, cpus, 1, gpus)
    if not found:
        largest = cluster.cpu_share(fewest, gpu=gpu)
        yield fewest, share_of(run, fewest, cpus, largest, gpus)


def _device(run: Run, workers: int, gpus: int) -> str:
    if run.device == "cuda" and gpus < workers:
        raise ResourceError(
            f"distributed.workers={workers} with device=cuda needs a GPU for each worker, but "
            f"there are {gpus}. Set distributed.workers to the number of GPUs, or device=cpu."
        )
    if run.device == "auto" and 0 < gpus < workers:
        _log.warning("%d workers share %d GPU(s): training on CPUs instead", workers, gpus)
    return "cuda" if run.device != "cpu" and gpus >= workers else "cpu"
