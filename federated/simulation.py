"""Builds the parts of a simulated federation from a config, runs it, and writes its results."""

from __future__ import annotations

import gc
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from heliotrope import checkpoint
from heliotrope.config import Run
from heliotrope.data import load
from heliotrope.display import Display
from heliotrope.finish import finish
from heliotrope.models import parameter_count
from heliotrope.resources import available_cpus, peak_rss_bytes, pick_device
from heliotrope.result import Outcome
from heliotrope.rundir import RunDirectory
from heliotrope.tasks import task_of
from heliotrope.tracking import Tracker, log_to, stop_logging

from .choice import check_kind
from .client import Clients
from .grid import CohortGrid
from .pool import InProcessPool, Pool
from .server import Server
from .setup import assemble, divide
from .strategies import build_strategy, reduces

__all__ = ["run_job"]

_log = logging.getLogger(__name__)


def run_job(run: Run, directory: Path) -> None:
    """Train `run` in federated mode and leave its results in `directory`."""
    device = pick_device(run.device)
    torch.set_num_threads(available_cpus())
    dataset = load(run.data, run.seed)
    task = task_of(dataset)
    clients = assemble(run, task, dataset.train, divide(run, dataset))
    strategy = build_strategy(run)
    reduce = reduces(run.federated)
    check_kind(clients)
    home = RunDirectory(directory)
    home.claim(run, "federated")
    handler = log_to(home.log, "server")
    with Display(f"federated {run.name}", "round", run.federated.rounds) as display:
        tracker = Tracker(home.metrics, (display,))
        try:
            with _pool(run, clients, device, home.log, tracker) as pool:
                grid = CohortGrid(pool, reduce)
                server = Server(
                    run,
                    clients.model,
                    task,
                    dataset,
                    clients.population,
                    strategy,
                    grid,
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
                    packages=("flwr", *(("ray",) if run.federated.pool == "ray" else ())),
                )
            finish(run, "federated", home, tracker, server.final, task, outcome, display)
        finally:
            tracker.close()
            stop_logging(handler)
            home.release()


@contextmanager
def _pool(
    run: Run, clients: Clients, device: torch.device, log: Path, tracker: Tracker
) -> Iterator[Pool]:
    if run.federated.pool == "inprocess":
        threads = run.federated.cpus_per_worker or available_cpus()
        yield InProcessPool(clients.on(device), threads)
        return
    import ray  # only here: importing and starting it takes seconds

    from heliotrope.cluster import session

    from .ray_pool import RayPool

    def on_failure(worker: int, reason: str) -> None:
        tracker.emit("failure", worker=worker, reason=reason)

    with session(ray) as cluster:
        pool = RayPool(
            run, clients.task, clients.train, clients.population, cluster, log, on_failure
        )
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

    def loudly(line: str) -> None:
        _log.error(line)
        display.say(line, style="red")

    found = checkpoint.latest(home.checkpoints, loudly) if run.resume else None
    home.reopen()
    if found is not None:
        server.resume(found)
        display.say(f"resumed after round {found.progress}")
        return
    tracker.rewind(0)
    tracker.emit("start", mode="federated", name=run.name, seed=run.seed)
