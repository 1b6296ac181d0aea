"""`run_job`: one federated run, from a checked configuration to its results.

This module imports torch and Flower late: with the Ray pool, the cluster starts while another
thread imports them and loads the data.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from heliotrope.cluster.connection import Cluster, session
from heliotrope.config import Run
from heliotrope.runs.directory import RunDirectory
from heliotrope.system.background import in_background
from heliotrope.system.process_exit import stoppable

from .pools.requests import check_room

if TYPE_CHECKING:
    from .components import Components

__all__ = ["run_job"]


def run_job(run: Run, directory: Path) -> None:
    """Train `run` in federated mode and leave its results in `directory`.

    Raises a `ConfigError` before any work if the data, the model, the machine or the directory
    do not fit the configuration, and a `RunFailedError` if training cannot be finished.
    """
    RunDirectory(directory).refuse_if_taken(run, "federated")
    # Ray's start takes longer than these imports, so they leave the CPUs to it.
    gently = run.federated.pool == "ray"
    with ExitStack() as stack:
        with stoppable() if gently else nullcontext():
            preparing = in_background(lambda: _prepare(run), gently=gently)
            cluster = stack.enter_context(_cluster(run))
        components = preparing.result()
        from .simulation import simulate

        simulate(run, directory, components, cluster)


def _prepare(run: Run) -> Components:
    from .components import build_components

    return build_components(run)


@contextmanager
def _cluster(run: Run) -> Iterator[Cluster | None]:
    """Be connected to Ray inside the block, if the pool is Ray's; it must have room for it."""
    if run.federated.pool == "inprocess":
        yield None
        return
    import ray  # only here: importing and starting it takes seconds

    with session(ray) as cluster:
        check_room(run, cluster)
        yield cluster
