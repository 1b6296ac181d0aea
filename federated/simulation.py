"""Runs a federation from its parts, simulated or on real nodes, and writes its results."""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from flwr.serverapp.strategy import Strategy

from heliotrope.cluster.connection import Cluster
from heliotrope.cluster.environment import driver_environment
from heliotrope.cluster.placement import reserved, say
from heliotrope.config import Run
from heliotrope.errors import ConfigError
from heliotrope.models import parameter_count
from heliotrope.privacy.canaries import Canaries
from heliotrope.runs.directory import RunDirectory
from heliotrope.runs.display import Display
from heliotrope.runs.events import Progress, Tracker
from heliotrope.runs.lifecycle import newest_checkpoint, run_directory
from heliotrope.runs.outcome import Outcome
from heliotrope.runs.results import write_outcome
from heliotrope.runs.trackers import listeners
from heliotrope.system.resources import available_cpus, peak_rss_bytes, pick_device, threads_of

from .algorithms import proximal
from .algorithms.momentum import MOMENTUM
from .attack_setting import AttackSetting
from .client_state import StateStore
from .components import Components
from .engine.context import (
    TrainingContext,
)
from .engine.execution import ExecutionPlan
from .engine.root import RootClient
from .flower.grid import CohortGrid
from .pools.base import Pool
from .pools.inprocess import InProcessPool
from .pools.requests import requests
from .population import Population
from .protection import Protection, protected
from .secure_setting import SecureSetting
from .server import Server
from .strategies import ModelFacts
from .strategies.fltrust import FLTrust
from .strategies.mean import MeanStrategy
from .strategies.robust import RobustStrategy

__all__ = ["simulate", "train_clients"]

_log = logging.getLogger(__name__)


PoolOf = Callable[[RunDirectory, Tracker, Display], AbstractContextManager[Pool]]
"""Gives the pool of a run whose directory, events and display these are."""


def simulate(run: Run, directory: Path, components: Components, cluster: Cluster | None) -> None:
    """Train the clients of `run`, in this process or on a Ray cluster, and write its results."""
    context = components.context.on(pick_device(run.device if cluster is None else "cpu"))
    components = replace(components, context=context)
    # What workers have summed is soon added; a second thread would then spin for some ms on a CPU
    # on which a worker has begun the next round.
    idle = cluster is not None and components.reduce
    torch.set_num_threads(1 if idle else threads_of(available_cpus()))

    def pool(run_dir: RunDirectory, tracker: Tracker, _: Display) -> AbstractContextManager[Pool]:
        return _pool(run, context, cluster, run_dir.log, tracker)

    train_clients(
        run, directory, components, pool, ("flwr",) if cluster is None else ("flwr", "ray")
    )


def train_clients(
    run: Run, directory: Path, components: Components, pool_of: PoolOf, packages: Sequence[str]
) -> None:
    """Train the clients of `run` in a pool, and write the results; versions of `packages` too."""
    context = components.context
    with (
        run_directory(run, "federated", directory, "server") as (run_dir, display),
        Tracker(run_dir.metrics, (display, *listeners(run, run_dir.path, display.say))) as tracker,
    ):
        with (
            pool_of(run_dir, tracker, display) as pool,
            protected(run, context, run_dir, components.content) as protection,
        ):
            grid, attack = _grid(pool, components), components.attack
            canaries = None if context.canaries is None else context.canaries.canaries
            if isinstance(components.strategy, FLTrust):
                components.strategy.root = RootClient(context, components.root)
            server = Server(run, components, grid, tracker, run_dir, display.say, protection)
            up, down = components.exchange.bytes_up, components.exchange.bytes_down
            server.state.counts = Progress(bytes_up=up, bytes_down=down)  # unless it resumes
            _begin(run, server, grid, tracker, run_dir, display, attack, canaries)
            if attack is not None:
                display.say(attack.line())
            if (secure := components.secure) is not None:
                display.say(secure.line())
            if protection is not None:
                display.say(protection.line())
            for note in components.notes:
                display.say(note)
            _say_who_weighs_nothing(context.population, display)
            _say_who_holds_out(context.population, display)
            with _frozen_heap():
                state = server.train()
            outcome = Outcome(
                metrics=server.attacked,
                unit={"rounds": state.server_round},
                counts=state.counts,
                clock=state.clock,
                startup_seconds=state.startup_seconds or 0.0,
                parameters=parameter_count(context.model),
                peak_rss_bytes=peak_rss_bytes() + pool.peak_rss_bytes(),
                target=server.target.summary(),
                preparation=asdict(components.exchange),
                privacy=None if protection is None else _privacy(protection, secure),
                attack=None if attack is None else attack.told() | server.success,
                secure_aggregation=(
                    None if secure is None else secure.told(simulated=not pool.keeps_states)
                ),
                canaries=None if canaries is None else canaries.told(),
                pruned=server.target.pruned,
                packages=tuple(packages),
            )
        write_outcome(run, "federated", run_dir, tracker, server.final, outcome, display)


def _grid(pool: Pool, components: Components) -> CohortGrid:
    """Return what delivers the strategy's messages to the clients of `pool`."""
    attack, strategy = components.attack, components.strategy
    return CohortGrid(
        pool,
        components.reduce,
        takes_mean=isinstance(strategy, MeanStrategy),
        takes_updates=isinstance(strategy, RobustStrategy) and strategy.takes_updates,
        states=(
            None if pool.keeps_states else _states(components.context, strategy, components.facts)
        ),
        colluders=None if attack is None else attack.colluders,
        secure=None if components.secure is None else components.secure.rounds,
    )


def _privacy(protection: Protection, secure: SecureSetting | None) -> dict[str, Any]:
    """Return what result.json says of privacy: secure aggregation changes who is trusted."""
    result = protection.result()
    return result if secure is None else secure.trusted(result)


def _states(context: TrainingContext, strategy: Strategy, facts: ModelFacts) -> StateStore | None:
    """Return where the clients' state is kept; None if they keep none."""
    weights = context.global_weights
    beside = dict(strategy.beside(weights)) if isinstance(strategy, MeanStrategy) else {}
    if context.federated.client_momentum:
        beside |= {
            f"{MOMENTUM}{name}": torch.zeros_like(weights[name], dtype=torch.float64)
            for name in sorted(facts.trained)
        }
    if not (context.personal or beside):
        return None
    return StateStore(context.personal, beside, context.population.partition.identities)


@contextmanager
def _pool(
    run: Run, context: TrainingContext, cluster: Cluster | None, log: Path, tracker: Tracker
) -> Iterator[Pool]:
    if cluster is None:
        cpus = run.federated.cpus_per_worker or available_cpus()
        yield InProcessPool(context, threads_of(cpus))
        return
    from .pools.ray_pool import RayPool

    def on_failure(worker: int, reason: str) -> None:
        tracker.emit("failure", worker=worker, reason=reason)

    import ray

    asked = partial(requests, run, cluster)
    patience = run.cluster.wait_seconds
    with reserved(ray, cluster, "federated.workers", asked, patience) as (request, group):
        given = run.device != "auto" or run.federated.gpus_per_worker is not None
        if not given and cluster.gpus and "GPU" not in request.each:
            say(
                f"device=auto: others hold the Ray cluster's {cluster.gpus} GPU(s): training on "
                "CPUs. device=cuda waits for them."
            )
        environment = driver_environment(run.cluster, inherited=not cluster.can_grow)
        pool = RayPool(run, context, request.each, group, log, on_failure, environment)
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


def _say_who_weighs_nothing(population: Population, display: Display) -> None:
    """Print how many clients are never drawn, and the first of them."""
    never = sorted(set(range(len(population))) - set(population.training()))
    if never:
        display.say(
            f"{len(never):,} of {len(population):,} clients are not drawn, such as client "
            f"{never[0]}: their training examples weigh nothing"
        )


def _say_who_holds_out(population: Population, display: Display) -> None:
    """Print how many clients federated evaluation can ask: small ones may hold out nothing."""
    holding = population.evaluating()
    if holding:
        display.say(
            f"{len(holding):,} of {len(population):,} clients hold out "
            f"{sum(population.holdout_sizes(holding)):,} examples for evaluation"
        )


def _execution(run: Run, pool: Pool, display: Display) -> ExecutionPlan:
    """Return how clients are trained, and say so.

    Raises `ConfigError` if `federated.client_training` names a way that the model does not allow.
    """
    cfg = run.federated
    algorithms = proximal(getattr(cfg.strategy, "proximal_mu", 0.0))
    decision = pool.decide(cfg.clients_per_round, algorithms)
    if decision.execution is None:
        ((kind, reason),) = decision.reasons.items()
        raise ConfigError(
            f"federated.client_training={kind} is not possible: {reason}. "
            "Set federated.client_training=sequential or auto."
        )
    display.say(decision.line())
    _log.info("%s", decision.line())
    return decision.execution


def _begin(
    run: Run,
    server: Server,
    grid: CohortGrid,
    tracker: Tracker,
    run_dir: RunDirectory,
    display: Display,
    attack: AttackSetting | None,
    canaries: Canaries | None,
) -> None:
    """Resume from the newest good checkpoint, or decide how to train and write the first event."""
    found = newest_checkpoint(run, "federated", run_dir, display) if run.resume else None
    if found is not None:
        server.resume(found)
    elif server.protection is not None:
        server.protection.begin(0, {})
    if grid.execution is None:
        grid.execution = _execution(run, grid.pool, display)
    else:  # the same digits need the same way of training, wherever it goes on
        display.say(f"client training as before: {grid.execution}")
    run_dir.begin(run)
    if canaries is not None:
        canaries.write(run_dir.path)
        display.say(canaries.line())
    if found is not None:
        return
    server.state.clock.resume(tracker.rewind(0))
    directions = server.target.directions
    told = {} if attack is None else {"attack": attack.told()}
    tracker.emit(
        "start", mode="federated", name=run.name, seed=run.seed, directions=directions, **told
    )
