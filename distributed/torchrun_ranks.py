"""A run whose processes the user starts with `torchrun`, on one machine or on several.

    torchrun --nproc-per-node 2 -m distributed experiment=E distributed.launcher=torchrun

Each process composes the configuration and acts as its rank; rank 0 owns the run's directory,
which all of them see. torchrun itself starts them again after a failure (`--max-restarts`), and
they then go on from the last checkpoint, in the same directory.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path

import torch

from heliotrope.config import Run
from heliotrope.config.checks.distributed import check_sync_batchnorm
from heliotrope.errors import ConfigError
from heliotrope.models.mapped import release_values
from heliotrope.runs.clock import Clock, Reading
from heliotrope.runs.lifecycle import run_directory
from heliotrope.system.console import plain_console
from heliotrope.system.resources import available_cpus
from heliotrope.system.signals import Stop, signals_heard

from .attempt import AttemptStart, RunAttempt, WorkerResources
from .communication.process_group import device_of, joined
from .driver import Components, begin, build_components, giving_back, write_results
from .launch.process import train_process, train_rank
from .launch.rendezvous import Rendezvous, torchrun_store
from .launch.resources import worker_resources
from .strategies.initial_weights import initial_weights
from .topology import Topology, topology_from_environment

__all__ = ["run_one_rank"]

_log = logging.getLogger(__name__)

_GRACE = 1.0  # seconds for a process that may be in the middle of its first step
_REPEATED = 1.0  # seconds: torchrun passes on a Ctrl-C that its processes have had already


def run_one_rank(run: Run, directory: Path) -> None:
    """Act as one rank of the run; rank 0 also begins it and writes its results."""
    topology = topology_from_environment()
    _check(run, topology)
    components = build_components(run)
    meeting = Rendezvous(
        torchrun_store(),
        topology,
        run.distributed.collective_timeout,
        say=lambda what: plain_console(stderr=True).print(f"rank {topology.rank}: {what}"),
    )
    resources = _agreed_resources(run, meeting)
    if topology.rank == 0:
        _lead(run, directory, topology, resources, meeting, components)
        return
    release_values(components.model)
    announced = meeting.announced()
    start = AttemptStart.from_dict(announced["start"])
    attempt = RunAttempt(
        run, Path(announced["directory"]), announced["checkpoint"], start, resources
    )
    with _stop_heard() as (stop, asked):
        trained = train_process(attempt, topology, components.dataset, asked, meeting.store)
    if trained.stopped:
        stop.leave()


def _lead(
    run: Run,
    directory: Path,
    topology: Topology,
    resources: WorkerResources,
    meeting: Rendezvous,
    components: Components,
) -> None:
    """Begin the run or go on with it, train as rank 0, and write the results."""
    run, clock = replace(run, resume=run.resume or _begun_before(directory)), _clock(directory)
    with (
        run_directory(run, "distributed", directory, "rank 0") as (run_dir, display),
        clock.kept_in(run_dir.path),
    ):
        for note in components.notes:
            display.say(note)
        _note_begun(directory, clock)
        saved = begin(run, run_dir, components, display, run.resume, clock)
        _note_begun(directory, clock)  # with the time of earlier commands
        start = AttemptStart.now(clock, clock.seconds - Clock().seconds)
        announced = {"directory": str(run_dir.path), "checkpoint": saved, "start": start.to_dict()}
        meeting.announce(announced)
        attempt = RunAttempt(run, run_dir.path, saved, start, resources)
        device, timeout = device_of(resources.device, topology), run.distributed.collective_timeout
        with (
            giving_back(run, run_dir, components),
            initial_weights(run, components.model, run_dir.path),
            _stop_heard() as (stop, asked),
            joined(topology, device, timeout, meeting.store),
        ):
            trained = train_rank(attempt, topology, components.dataset, asked, display)
        if trained.stopped:
            stop.leave()
        write_results(run, run_dir, components, clock, trained, display)


def _agreed_resources(run: Run, meeting: Rendezvous) -> WorkerResources:
    """Meet the other ranks; return this one's share, on the kind of device that all of them have.

    Ranks on CPUs and ranks on GPUs have no way of exchanging gradients in common.
    """
    here, cpus = int(os.environ["LOCAL_WORLD_SIZE"]), available_cpus()
    resources = worker_resources(run, here, cpus, cpus // here, torch.cuda.device_count())
    ranks = meeting.meet({"device": resources.device, "host": socket.gethostname()})
    without = {each["host"] for each in ranks if each["device"] == "cpu"}
    if resources.device == "cpu" or not without:
        return resources
    check_sync_batchnorm(run.distributed, "cpu")
    _log.warning("too few GPUs on %s: all ranks train on CPUs", ", ".join(sorted(without)))
    return replace(resources, device="cpu")


def _begun(directory: Path) -> str:
    return f"begun/{directory.resolve()}"


def _note_begun(directory: Path, clock: Clock) -> None:
    torchrun_store().set(_begun(directory), json.dumps(asdict(clock.read())))


def _clock(directory: Path) -> Clock:
    """Return the run's clock: that of the attempt before, if this torchrun made it on this host."""
    store, key = torchrun_store(), _begun(directory)
    if store.check([key]):
        reading = Reading(**json.loads(store.get(key)))
        if reading.known:
            return Clock.going_on(reading)
    return Clock()


def _begun_before(directory: Path) -> bool:
    """Return whether an earlier attempt of this very torchrun has begun the run in `directory`.

    A restart alone does not say so: the attempt before may have been refused, for a directory that
    holds a run which nobody asked to go on with. Only where the store is rank 0's own, and as new
    as its process, is the count of restarts all there is.
    """
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        return bool(torchrun_store().check([_begun(directory)]))
    return int(os.environ["TORCHELASTIC_RESTART_COUNT"]) > 0


@contextmanager
def _stop_heard() -> Iterator[tuple[Stop, Callable[[], bool]]]:
    """Hear signals inside the block; yield what they ask, and how the training is to ask for it.

    Until the training asks for the first time there is nothing to save, and the process may be
    waiting for a rank that has died, where Python hears nothing: a signal then ends it.
    """
    training = threading.Event()
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    before = signal.set_wakeup_fd(writer)

    def watch() -> None:
        while number := os.read(reader, 1):
            time.sleep(_GRACE)
            if not training.is_set() and number[0] in (signal.SIGINT, signal.SIGTERM):
                os._exit(128 + number[0])
        os.close(reader)

    threading.Thread(target=watch, daemon=True, name="signals").start()
    try:
        with signals_heard(repeated=_REPEATED) as stop:

            def asked() -> bool:
                training.set()
                return stop.asked()

            yield stop, asked
    finally:
        signal.set_wakeup_fd(before)
        os.close(writer)


def _check(run: Run, topology: Topology) -> None:
    cfg = run.distributed
    if cfg.launcher != "torchrun":
        raise ConfigError(
            f"distributed.launcher={cfg.launcher}, but torchrun started this process. Set "
            "distributed.launcher=torchrun, or start it with plain python."
        )
    if cfg.workers != topology.world_size:
        raise ConfigError(
            f"distributed.workers={cfg.workers}, but torchrun started {topology.world_size} "
            f"process(es). Set distributed.workers={topology.world_size}."
        )
    if cfg.max_failures:
        raise ConfigError(
            f"distributed.max_failures={cfg.max_failures} has no effect under torchrun, which "
            f"starts failed workers again itself. Use torchrun --max-restarts {cfg.max_failures}."
        )
