"""Each worker's share of the CPUs and GPUs, and the refusal of what is not there."""

from __future__ import annotations

import logging

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
    wanted = run.distributed.cpus_per_worker
    check_cpus("distributed.workers", workers, 1, cpus)
    if wanted is not None and wanted > largest:
        raise ResourceError(
            f"distributed.cpus_per_worker={wanted} is more than the {largest} that each of "
            f"{workers} worker(s) can have: there are {cpus} CPUs in all. Lower it, or lower "
            "distributed.workers."
        )
    return Share(threads=wanted or largest, device=_device(run, workers, gpus))


def fitting(run: Run, cluster: Cluster) -> tuple[int, Share]:
    """Return the most workers that find room on `cluster`, and what each of them gets.

    Raises `ResourceError` if there is no room for the fewest that the run may have.
    """
    fewest, most = worker_range(run.distributed.workers)
    cpus = run.distributed.cpus_per_worker or 1
    gpus = cluster.gpus if run.device == "cuda" else most
    larger = (n for n in range(most, fewest, -1) if cluster.cpu_share(n) >= cpus and gpus >= n)
    workers = next(larger, fewest)
    return workers, share_of(run, workers, cluster.cpus, cluster.cpu_share(workers), cluster.gpus)


def _device(run: Run, workers: int, gpus: int) -> str:
    if run.device == "cuda" and gpus < workers:
        raise ResourceError(
            f"distributed.workers={workers} with device=cuda needs a GPU for each worker, but "
            f"there are {gpus}. Set distributed.workers to the number of GPUs, or device=cpu."
        )
    if run.device == "auto" and 0 < gpus < workers:
        _log.warning("%d workers share %d GPU(s): training on CPUs instead", workers, gpus)
    return "cuda" if run.device != "cpu" and gpus >= workers else "cpu"
