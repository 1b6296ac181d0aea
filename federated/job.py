"""`run_job`: one federated run, from a checked configuration to its results.

This module imports torch and Flower late: with the Ray pool, the cluster starts while another
thread imports them and loads the data.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from heliotrope.background import in_background
from heliotrope.cluster import Cluster, session
from heliotrope.config import Run
from heliotrope.errors import ResourceError
from heliotrope.resources import check_cpus
from heliotrope.rundir import RunDirectory

if TYPE_CHECKING:
    from .simulation import Parts

__all__ = ["run_job"]


def run_job(run: Run, directory: Path) -> None:
    """Train `run` in federated mode and leave its results in `directory`.

    Raises a `ConfigError` before any work if the data, the model, the machine or the directory
    do not fit the configuration, and a `RunFailedError` if training cannot be finished.
    """
    RunDirectory(directory).refuse_if_taken(run, "federated")
    # Ray looks once a second whether it is up: it is to find the CPUs free.
    gently = run.federated.pool == "ray"
    preparing = in_background(lambda: _prepare(run), gently=gently)
    with _cluster(run) as cluster:
        parts = preparing.result()
        from .simulation import simulate

        simulate(run, directory, parts, cluster)


def _prepare(run: Run) -> Parts:
    from .simulation import prepare

    return prepare(run)


@contextmanager
def _cluster(run: Run) -> Iterator[Cluster | None]:
    """Be connected to Ray inside the block, if the pool is Ray's; it must have room for it."""
    if run.federated.pool == "inprocess":
        yield None
        return
    import ray  # only here: importing and starting it takes seconds

    with session(ray) as cluster:
        workers, each = run.federated.workers, run.federated.cpus_per_worker or 1
        check_cpus("federated.workers", workers, each, cluster.cpus)
        if each > cluster.cpu_share(workers):
            raise ResourceError(
                f"federated.cpus_per_worker={each} is more than the {cluster.cpu_share(workers)} "
                f"that each of {workers} worker(s) can have on one node. Lower it, or lower "
                "federated.workers."
            )
        yield cluster
