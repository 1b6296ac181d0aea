"""What each worker of the pool on Ray asks the cluster for."""

from __future__ import annotations

from collections.abc import Iterator

from heliotrope.cluster.connection import Cluster
from heliotrope.cluster.placement import Request, halved
from heliotrope.config import Run
from heliotrope.errors import ResourceError
from heliotrope.system.resources import check_cpus, threads_of

__all__ = ["check_room", "requests"]


def check_room(run: Run, cluster: Cluster) -> None:
    """Refuse what a cluster that cannot grow will never have; raises `ResourceError`."""
    if cluster.can_grow:
        return
    workers, each = run.federated.workers, run.federated.cpus_per_worker or 1
    check_cpus("federated.workers", workers, each, cluster.cpus)
    if each > cluster.cpus_per_worker(workers):
        raise ResourceError(
            f"federated.cpus_per_worker={each} is more than the {cluster.cpus_per_worker(workers)} "
            f"that each of {workers} worker(s) can have on one node. Lower it, or lower "
            "federated.workers."
        )


def requests(run: Run, cluster: Cluster, free: tuple[int, int] | None = None) -> Iterator[Request]:
    """Yield what the workers may find room for on `cluster`, the largest first.

    `free` are the CPUs and GPUs that others leave; None for all. The last, with the least that
    a worker can do with, is there to be waited for. Raises `ResourceError` naming the key if
    there are no such GPUs.
    """
    workers, wanted = run.federated.workers, run.federated.cpus_per_worker
    free_cpus, free_gpus = free or (cluster.cpus, cluster.gpus)
    gpu = _gpu(run, cluster, free_gpus)
    largest = min(cluster.cpus_per_worker(workers), free_cpus // workers)
    cpus_each = halved(threads_of(largest) if largest else 0)
    if wanted is not None:
        cpus_each = [threads_of(wanted)] if largest >= wanted else []
    for cpus in cpus_each or [threads_of(wanted or 1)]:
        yield Request(workers, {"CPU": float(cpus)} | gpu)


def _gpu(run: Run, cluster: Cluster, free: int) -> dict[str, float]:
    """Return each worker's GPUs; none, of `device=auto`, if others hold them all."""
    if run.device == "cpu":
        return {}
    key, wanted = "federated.gpus_per_worker", run.federated.gpus_per_worker
    gpus = cluster.gpus_per_worker(key, run.federated.workers, wanted, free)
    if gpus == 0 and run.device == "cuda" and wanted is None:  # to be waited for
        gpus = cluster.gpus_per_worker(key, run.federated.workers, None) or float(cluster.can_grow)
    if gpus == 0 and run.device == "cuda":
        raise ResourceError(
            f"device=cuda, but each worker has no GPU: federated.gpus_per_worker={wanted}, and "
            f"the cluster has {cluster.gpus}. Set device=cpu."
        )
    return {"GPU": gpus} if gpus else {}
