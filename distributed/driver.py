"""The driver: attempts at a run until one succeeds, then its results."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from heliotrope import checkpoint
from heliotrope.background import in_background
from heliotrope.config import Run
from heliotrope.data import Dataset, load
from heliotrope.display import Display
from heliotrope.errors import ResourceError, RunFailedError, WorkerError
from heliotrope.finish import finish
from heliotrope.home import at_home, newest_checkpoint
from heliotrope.models import build, parameter_count
from heliotrope.resources import peak_rss_bytes
from heliotrope.result import Outcome
from heliotrope.rundir import RunDirectory
from heliotrope.tasks import Task, task_of
from heliotrope.trackers import listeners
from heliotrope.tracking import Clock, Tracker

from . import fence
from .attempt import Attempt, Share, Trained, WorkerFailure
from .compiler import check_compiler
from .launchers import Launcher
from .recompute import recompute
from .schedule import check_schedule
from .stop import signals_heard

__all__ = ["Parts", "begin", "drive", "prepare", "write_results"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Parts:
    """What a configuration means on this machine, found to fit before any work."""

    dataset: Dataset
    task: Task
    model: nn.Module


def prepare(run: Run) -> Parts:
    """Load the data and build the model once, so that what is wrong with them shows here."""
    dataset = load(run.data, run.seed)
    check_schedule(run.distributed, len(dataset.train))
    task = task_of(dataset, run.loss.label_smoothing)
    model = build(run.model, task, run.seed)
    if run.distributed.activation_checkpointing:
        recompute(model)
    if run.distributed.compile:
        check_compiler()
    return Parts(dataset, task, model)


def drive(
    run: Run, directory: Path, parts: Parts, launcher: Launcher, close: Callable[[], None]
) -> None:
    """Attempt the run until it is trained or has failed too often, and write its results.

    `close` closes the launcher: while the report is drawn, for Ray takes a second to stop.
    """
    with at_home(run, "distributed", directory, "driver") as (home, display):
        attempt, trained = _attempts(run, home, parts, launcher, display)
        closing = in_background(close)
        try:
            write_results(run, home, parts, attempt, trained, display)
        finally:
            closing.result()


def _attempts(
    run: Run, home: RunDirectory, parts: Parts, launcher: Launcher, display: Display
) -> tuple[Attempt, Trained]:
    """Attempt the run until it is trained; return the last attempt and what came of it."""
    started, resume = time.time() - Clock().seconds, run.resume
    failures: list[WorkerFailure] = []
    attempt = None
    while True:
        workers, share = _gathered(launcher, attempt, failures, run, home)
        saved = begin(run, home, parts.model, display, resume)
        attempt = Attempt(run, home.path, saved, started, share)
        what = "launcher %s: %d worker(s), %d thread(s) on %s each"
        _log.info(what, run.distributed.launcher, workers, share.threads, share.device)
        try:
            with signals_heard() as stop:
                trained = launcher.launch(attempt, parts.dataset, display, stop)
            if not trained.stopped:
                return attempt, trained
            if stop.asked():
                display.say(f"stopped after step {trained.counts.steps}, which is saved")
                stop.leave()
            display.say(f"there is room for more than {workers} worker(s): going on with them")
        except WorkerFailure as failure:
            failures.append(failure)
            _tell(failure, home, display)
            if stop.asked():  # a signal to all processes may end workers before they hear
                stop.leave()
            if len(failures) > run.distributed.max_failures:
                raise _given_up(failures, run, home) from failure
            display.say("starting the workers again from the last checkpoint", style="yellow")
        except RunFailedError as error:
            _note(home, (), reason=str(error))
            raise
        started, resume = time.time(), True


def _gathered(
    launcher: Launcher,
    before: Attempt | None,
    failures: list[WorkerFailure],
    run: Run,
    home: RunDirectory,
) -> tuple[int, Share]:
    """Return the workers and their share; after an attempt, having none is a failed run."""
    try:
        return launcher.gather()
    except ResourceError as error:
        if before is None:
            raise
        if failures:
            raise _given_up(failures, run, home, f" {error}") from error
        hint = f"Continue from the last checkpoint with resume=true hydra.run.dir={home.path}."
        raise RunFailedError(f"The workers stopped to be more of them. {error} {hint}") from error


def begin(
    run: Run, home: RunDirectory, model: nn.Module, display: Display, resume: bool
) -> int | None:
    """Bring the directory to where an attempt begins; return the checkpoint's progress, if any.

    Events after the checkpoint are dropped, for they will happen again; failures are kept.
    """
    fence.wait_until_clear(home.path)

    saved = newest_checkpoint(run, "distributed", home, display) if resume else None
    if saved is not None:
        path = checkpoint.path_of(home.checkpoints, saved.progress)
        checkpoint.load_weights(model, saved.model, path)
    home.begin(run)
    offset = 0 if saved is None else int(saved.state["metrics_offset"])
    with Tracker(home.metrics) as tracker:
        tracker.rewind(offset)
        if saved is None:
            tracker.emit("start", mode="distributed", name=run.name, seed=run.seed)
    return None if saved is None else saved.progress


def _tell(failure: WorkerFailure, home: RunDirectory, display: Display) -> None:
    _log.error("rank %d failed: %s", failure.rank, failure.reason)
    _note(home, (display,), rank=failure.rank, reason=failure.reason)


def _note(home: RunDirectory, listeners: tuple[Any, ...], **fields: Any) -> None:
    try:
        with Tracker(home.metrics, listeners) as tracker:
            tracker.emit("failure", **fields)
    except RunFailedError:  # such as for a full disk, which may be why there is a failure to note
        _log.exception("a failure could not be noted")


def _given_up(
    failures: list[WorkerFailure], run: Run, home: RunDirectory, why: str = ""
) -> WorkerError:
    last = failures[-1]
    return WorkerError(
        f"rank {last.rank} failed: {last.reason}.{why} {len(failures)} failure(s), "
        f"distributed.max_failures={run.distributed.max_failures}. {home.log} has what the "
        "workers said. Continue from the last checkpoint with resume=true "
        f"hydra.run.dir={home.path}."
    )


def write_results(
    run: Run,
    home: RunDirectory,
    parts: Parts,
    attempt: Attempt,
    trained: Trained,
    display: Display,
) -> None:
    """Write the last events, the report and result.json from what rank 0 said."""
    clock = Clock.since(attempt.started)
    clock.seconds_before = trained.seconds_before
    clock.train_seconds = trained.train_seconds
    launcher = run.distributed.launcher
    driver = peak_rss_bytes() if launcher != "inline" else 0  # inline, it is the worker
    outcome = Outcome(
        metrics={},
        unit={"epochs": trained.epochs},
        counts=trained.counts,
        clock=clock,
        startup_seconds=trained.startup_seconds,
        parameters=parameter_count(parts.model),
        peak_rss_bytes=trained.peak_rss_bytes + driver,
        target=None if trained.target is None else dict(trained.target),
        packages=("ray",) if launcher == "ray" else (),
    )
    with Tracker(home.metrics, listeners(run, home.path)) as tracker:
        finish(run, "distributed", home, tracker, trained.final, parts.task, outcome, display)
