"""A run whose processes the user starts with `torchrun`, on one machine or on several.

    torchrun --nproc-per-node 2 -m distributed experiment=E distributed.launcher=torchrun

Each process composes the configuration and acts as its rank; rank 0 owns the run's directory,
which all of them see. torchrun itself starts them again after a failure (`--max-restarts`), and
they then go on from the last checkpoint.
"""

from __future__ import annotations

import os
import time
from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed as dist

from heliotrope.config import Run
from heliotrope.errors import ConfigError
from heliotrope.home import at_home
from heliotrope.resources import available_cpus
from heliotrope.rundir import RunDirectory
from heliotrope.tracking import Clock, log_to

from .attempt import Attempt, Place
from .driver import begin, prepare, write_results
from .group import device_of, joined
from .rank import run_rank
from .share import share_of
from .stop import signals_heard

__all__ = ["place_from_environment", "run_one_rank"]


def place_from_environment() -> Place:
    """Return the place that torchrun gave this process."""
    return Place(
        rank=int(os.environ["RANK"]),
        world_size=int(os.environ["WORLD_SIZE"]),
        local_rank=int(os.environ["LOCAL_RANK"]),
    )


def run_one_rank(run: Run, directory: Path) -> None:
    """Act as one rank of the run; rank 0 also begins it and writes its results."""
    place = place_from_environment()
    _check(run, place)
    restarted = int(os.environ["TORCHELASTIC_RESTART_COUNT"]) > 0
    run = replace(run, resume=run.resume or restarted)
    here, cpus = int(os.environ["LOCAL_WORLD_SIZE"]), available_cpus()
    share = share_of(run, here, cpus, cpus // here, torch.cuda.device_count())
    device, timeout = device_of(share.device, place), run.distributed.collective_timeout
    parts = prepare(run)
    if place.rank > 0:
        with joined(place, device, timeout), signals_heard() as stop:
            told = _from_rank_0(None, place)
            log_to(RunDirectory(told[0]).log, f"rank {place.rank}")
            trained = run_rank(Attempt(run, *told, share), place, parts.dataset, stop.asked)
        if trained.stopped:
            stop.leave()
        return
    with at_home(run, "distributed", directory, "rank 0") as (home, display):
        started = time.time() - Clock().seconds
        with joined(place, device, timeout), signals_heard() as stop:
            saved = begin(run, home, parts.model, display, run.resume)
            told = _from_rank_0((home.path, saved, started), place)
            attempt = Attempt(run, *told, share)
            trained = run_rank(attempt, place, parts.dataset, stop.asked, display)
        if trained.stopped:
            stop.leave()
        write_results(run, home, parts, attempt, trained, display)


def _check(run: Run, place: Place) -> None:
    cfg = run.distributed
    if cfg.launcher != "torchrun":
        raise ConfigError(
            f"distributed.launcher={cfg.launcher}, but torchrun started this process. Set "
            "distributed.launcher=torchrun, or start it with plain python."
        )
    if cfg.workers != place.world_size:
        raise ConfigError(
            f"distributed.workers={cfg.workers}, but torchrun started {place.world_size} "
            f"process(es). Set distributed.workers={place.world_size}."
        )
    if cfg.max_failures:
        raise ConfigError(
            f"distributed.max_failures={cfg.max_failures} has no effect under torchrun, which "
            f"starts failed workers again itself. Use torchrun --max-restarts {cfg.max_failures}."
        )


_Told = tuple[Path, int | None, float]


def _from_rank_0(told: _Told | None, place: Place) -> _Told:
    """Return rank 0's directory, checkpoint and time of start, on every rank."""
    box = [told]
    if place.world_size > 1:
        dist.broadcast_object_list(box, src=0)
    assert box[0] is not None
    return box[0]
