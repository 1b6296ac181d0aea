"""Builds the parts of a simulated federation from a config, runs it, and writes its results."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from flwr.serverapp.strategy import Strategy

from heliotrope.cluster import Cluster, room
from heliotrope.config import Run
from heliotrope.data import Scaling, load
from heliotrope.display import Display
from heliotrope.errors import ResourceError
from heliotrope.finish import finish
from heliotrope.home import at_home, newest_checkpoint
from heliotrope.models import parameter_count
from heliotrope.resources import available_cpus, peak_rss_bytes, pick_device
from heliotrope.result import Outcome
from heliotrope.rundir import RunDirectory
from heliotrope.tasks import task_of
from heliotrope.trackers import listeners
from heliotrope.tracking import Tracker

from .choice import check_kind
from .client import Clients
from .grid import CohortGrid
from .pool import InProcessPool, Pool
from .server import Server
from .setup import assemble, divide
from .strategies import build_strategy, reduces

__all__ = ["Parts", "prepare", "simulate"]


@dataclass(frozen=True)
class Parts:
    """What a configuration means, found to fit before any work."""

    clients: Clients
    scaling: Scaling
    strategy: Strategy
    reduce: bool


def prepare(run: Run) -> Parts:
    """Load and divide the data and build model and strategy, so that what is wrong shows here."""
    dataset = load(run.data, run.seed)
    splits = {"validation": dataset.validation, "test": dataset.test}
    central = {name: split for name, split in splits.items() if len(split)}
    task = task_of(dataset, run.loss.label_smoothing)
    return Parts(
        clients=assemble(run, task, dataset.train, divide(run, dataset), central),
        scaling=dataset.scaling,
        strategy=build_strategy(run),
        reduce=reduces(run.federated),
    )


def simulate(run: Run, directory: Path, parts: Parts, cluster: Cluster | None) -> None:
    """Train the clients of `run`, in this process or on a Ray cluster, and write its results."""
    clients = parts.clients.on(pick_device(run.device if cluster is None else "cpu"))
    torch.set_num_threads(available_cpus())
    check_kind(clients)
    with (
        at_home(run, "federated", directory, "server") as (home, display),
        Tracker(home.metrics, (display, *listeners(run, home.path))) as tracker,
    ):
        with _pool(run, clients, cluster, home.log, tracker) as pool:
            server = Server(
                run,
                clients,
                parts.scaling,
                parts.strategy,
                CohortGrid(pool, parts.reduce),
                tracker,
                home.checkpoints,
            )
            _begin(run, server, tracker, home, display)
            with _frozen_heap():
                state = server.train()
            outcome = Outcome(
                metrics={},
                unit={"rounds": state.server_round},
                counts=state.counts,
                clock=state.clock,
                startup_seconds=state.startup_seconds or 0.0,
                parameters=parameter_count(clients.model),
                peak_rss_bytes=peak_rss_bytes() + pool.peak_rss_bytes(),
                target=server.target.summary(),
                packages=("flwr",) if cluster is None else ("flwr", "ray"),
            )
        finish(run, "federated", home, tracker, server.final, clients.task, outcome, display)


@contextmanager
def _pool(
    run: Run, clients: Clients, cluster: Cluster | None, log: Path, tracker: Tracker
) -> Iterator[Pool]:
    if cluster is None:
        yield InProcessPool(clients, run.federated.cpus_per_worker or available_cpus())
        return
    from .ray_pool import RayPool

    def on_failure(worker: int, reason: str) -> None:
        tracker.emit("failure", worker=worker, reason=reason)

    workers, cfg = run.federated.workers, run.federated
    share = {"CPU": float(cfg.cpus_per_worker or cluster.cpu_share(workers))}
    if run.device != "cpu":
        gpus = cluster.gpu_share("federated.gpus_per_worker", workers, cfg.gpus_per_worker)
        if gpus == 0 and run.device == "cuda":
            raise ResourceError(
                f"device=cuda, but each worker has no GPU: federated.gpus_per_worker="
                f"{cfg.gpus_per_worker}, and the cluster has {cluster.gpus}. Set device=cpu."
            )
        share |= {"GPU": gpus} if gpus else {}
    import ray

    with room(ray, cluster, "federated.workers", workers, share) as group:
        pool = RayPool(run, clients, share, group, log, on_failure)
        try:
            yield pool
        finally:
            pool.close()


@contextmanager
def _frozen_heap() -> Iterator[None]:
    """Keep what is loaded by now out of garbage collection.

    Flower's QFedAvg and Bulyan call `gc.collect` for every update: 0.2 s each over a heap full
    of modules, under a millisecond over what a round allocates.
    """
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def _begin(
    run: Run, server: Server, tracker: Tracker, home: RunDirectory, display: Display
) -> None:
    """Resume from the newest good checkpoint, or write the first event."""
    found = newest_checkpoint(run, "federated", home, display) if run.resume else None
    if found is not None:
        server.resume(found)
        home.begin(run)
        return
    home.begin(run)
    tracker.rewind(0)
    tracker.emit("start", mode="federated", name=run.name, seed=run.seed)
