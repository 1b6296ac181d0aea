"""The driver: attempts at a run until one succeeds, then its results."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from heliotrope.config import Run
from heliotrope.data import Dataset
from heliotrope.errors import ResourceError, RunFailedError, WorkerError
from heliotrope.metrics.chosen import check_chosen_metrics
from heliotrope.models import build, parameter_count
from heliotrope.plugin_loading import refusing_exits
from heliotrope.privacy.charges import ProjectCharges
from heliotrope.runs import checkpoint
from heliotrope.runs.changed_plugins import going_on
from heliotrope.runs.clock import Clock
from heliotrope.runs.directory import RunDirectory
from heliotrope.runs.display import Display
from heliotrope.runs.events import Tracker
from heliotrope.runs.lifecycle import newest_checkpoint, run_directory
from heliotrope.runs.outcome import Outcome
from heliotrope.runs.project import project_charges
from heliotrope.runs.pruning import PruningRule
from heliotrope.runs.results import write_outcome
from heliotrope.runs.trackers import listeners
from heliotrope.shell import typed
from heliotrope.system.background import in_background
from heliotrope.system.resources import peak_rss_bytes
from heliotrope.system.signals import signals_heard
from heliotrope.tasks import Task, task_of
from heliotrope.training.trial import check_step

from .attempt import AttemptStart, RunAttempt, TrainingResult, WorkerFailure, WorkerResources
from .communication import worker_lock
from .launch.base import Launcher
from .loop.mixup import check_mixup
from .loop.passes import check_passes
from .loop.schedule import check_schedule
from .loop.training_data import training_data
from .privacy.account import Account
from .privacy.checks import check_private
from .privacy.dpsgd import DpSgd
from .privacy.names import privacy_of
from .strategies.buffers import check_batchnorm
from .strategies.compiler import check_compiler
from .strategies.initial_weights import initial_weights
from .strategies.recompute import recompute

__all__ = ["Components", "begin", "build_components", "drive", "giving_back", "write_results"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Components:
    """What a configuration means on this machine, found to fit before any work.

    `notes` are lines to be shown.
    """

    dataset: Dataset
    task: Task
    model: nn.Module
    notes: tuple[str, ...]


@refusing_exits()
def build_components(run: Run) -> Components:
    """Load the data and build the model once, so that what is wrong with them shows here."""
    dataset = training_data(run)
    check_schedule(run.distributed, len(dataset.train))
    task = task_of(dataset, run)
    check_mixup(run.distributed.mixup, task)
    check_chosen_metrics(run, "distributed", task.metrics.directions)
    model = build(run.model, task, run.seed)
    check_private(run, model, task, dataset)
    notes = check_step(run, model, task)
    check_passes(run, model, task, len(dataset.train))
    if run.distributed.activation_checkpointing:
        recompute(model)
    check_batchnorm(run, model)
    if run.distributed.compile:
        check_compiler()
    return Components(dataset, task, model, (*dataset.notes, *notes))


def drive(
    run: Run, directory: Path, components: Components, launcher: Launcher, close: Callable[[], None]
) -> None:
    """Attempt the run until it is trained or has failed too often, and write its results.

    `close` closes the launcher: while the report is drawn, for Ray takes a second to stop.
    """
    clock = Clock()
    with (
        run_directory(run, "distributed", directory, "driver") as (run_dir, display),
        clock.kept_in(run_dir.path),
    ):
        for note in components.notes:
            display.say(note)
        with (
            giving_back(run, run_dir, components),
            initial_weights(run, components.model, run_dir.path),
        ):
            trained = _attempts(run, run_dir, components, launcher, display, clock)
        closed = in_background(close)
        try:
            write_results(run, run_dir, components, clock, trained, display)
        finally:
            closed.result()


def _attempts(
    run: Run,
    run_dir: RunDirectory,
    components: Components,
    launcher: Launcher,
    display: Display,
    clock: Clock,
) -> TrainingResult:
    """Attempt the run until it is trained; `clock` counts on over all attempts."""
    before, resume = None, run.resume
    failures: list[WorkerFailure] = []
    attempt = None
    while True:
        workers, resources = _gathered(launcher, attempt, failures, run, run_dir)
        saved = begin(run, run_dir, components, display, resume, clock)
        start = AttemptStart.now(clock, clock.seconds_before if before is None else before)
        rule = PruningRule.read(run_dir.path)
        attempt = RunAttempt(run, run_dir.path, saved, start, resources, rule)
        what = "launcher %s: %d worker(s), %d thread(s) on %s each"
        _log.info(what, run.distributed.launcher, workers, resources.threads, resources.device)
        try:
            with signals_heard() as stop:
                trained = launcher.launch(attempt, components.dataset, display, stop)
            if not trained.stopped:
                return trained
            if stop.asked():
                display.say(f"stopped after step {trained.counts.steps}, which is saved")
                stop.leave()
            display.say(f"there is room for more than {workers} worker(s): going on with them")
        except WorkerFailure as failure:
            failures.append(failure)
            _tell(failure, run_dir, display)
            if stop.asked():  # a signal to all processes may end workers before they hear
                stop.leave()
            if len(failures) > run.distributed.max_failures:
                raise _given_up(failures, run, run_dir) from failure
            display.say("starting the workers again from the last checkpoint", style="yellow")
        except RunFailedError as error:
            _note(run_dir, (), reason=str(error))
            raise
        before, resume = clock.seconds, True


def _gathered(
    launcher: Launcher,
    before: RunAttempt | None,
    failures: list[WorkerFailure],
    run: Run,
    run_dir: RunDirectory,
) -> tuple[int, WorkerResources]:
    """Return the workers and their share; after an attempt, having none is a failed run."""
    try:
        return launcher.gather()
    except ResourceError as error:
        if before is None:
            raise
        if failures:
            raise _given_up(failures, run, run_dir, f" {error}") from error
        where = typed("hydra.run.dir", run_dir.path)
        hint = f"Continue from the last checkpoint with resume=true {where}."
        raise RunFailedError(f"The workers stopped to be more of them. {error} {hint}") from error


def begin(
    run: Run,
    run_dir: RunDirectory,
    components: Components,
    display: Display,
    resume: bool,
    clock: Clock,
) -> int | None:
    """Bring the directory to where an attempt begins; return the checkpoint's progress, if any.

    Events after the checkpoint are dropped, for they will happen again; failures are kept, and
    `clock` takes over the time that has passed.
    """
    worker_lock.wait_until_clear(run_dir.path, display.say)

    saved = None
    if resume:  # mapped: workers read the tensors, here only their shapes count
        saved = newest_checkpoint(run, "distributed", run_dir, display, mapped=True)
    if saved is not None:
        path = checkpoint.path_of(run_dir.checkpoints, saved.progress)
        checkpoint.check_weights(components.model.state_dict(), saved.model, path)
    privacy = privacy_of(run.distributed)
    if privacy is not None:
        kept = None if saved is None else saved.state.get("privacy")
        epoch = 0 if saved is None else int(saved.state["epoch"])
        account = _account(privacy, run, run_dir, components, kept)
        with closing(account):
            display.say(account.promise(epoch))
            if (project := _project(run, run_dir, components, privacy)) is not None:
                account.reserve(project, epoch)
            account.note_plan()
    run_dir.begin(run)
    canaries = components.dataset.canaries
    if canaries is not None:
        canaries.write(run_dir.path)
        display.say(canaries.line())
    offset, seconds = 0, 0.0
    if saved is not None:
        with checkpoint.understood(checkpoint.path_of(run_dir.checkpoints, saved.progress)):
            offset = int(saved.state["metrics_offset"])
            seconds = float(saved.state["seconds"])
    with Tracker(run_dir.metrics) as tracker:
        clock.resume(max(seconds, tracker.rewind(offset)))
        if saved is None:
            directions = components.task.metrics.directions
            tracker.emit(
                "start", mode="distributed", name=run.name, seed=run.seed, directions=directions
            )
    return None if saved is None else saved.progress


def _tell(failure: WorkerFailure, run_dir: RunDirectory, display: Display) -> None:
    _log.error("rank %d failed: %s", failure.rank, failure.reason)
    _note(run_dir, (display,), rank=failure.rank, reason=failure.reason)


def _note(run_dir: RunDirectory, listeners: tuple[Any, ...], **fields: Any) -> None:
    try:
        with Tracker(run_dir.metrics, listeners) as tracker:
            tracker.emit("failure", **fields)
    except RunFailedError:  # such as for a full disk, which may be why there is a failure to note
        _log.exception("a failure could not be noted")


def _given_up(
    failures: list[WorkerFailure], run: Run, run_dir: RunDirectory, why: str = ""
) -> WorkerError:
    last = failures[-1]
    go_on = going_on(run, run_dir.path, last.reason)
    mend = "Mend that, and continue" if "plugins_changed" in go_on else "Continue"
    return WorkerError(
        f"rank {last.rank} failed: {last.reason}.{why} {len(failures)} failure(s), "
        f"distributed.max_failures={run.distributed.max_failures}. {run_dir.log} has what the "
        f"workers said. {mend} from the last checkpoint with {go_on}."
    )


def write_results(
    run: Run,
    run_dir: RunDirectory,
    components: Components,
    clock: Clock,
    trained: TrainingResult,
    display: Display,
) -> None:
    """Write the last events, the report and result.json from what rank 0 said."""
    clock.at_least(trained.seconds)
    clock.train_seconds = trained.train_seconds
    launcher, canaries = run.distributed.launcher, components.dataset.canaries
    driver = peak_rss_bytes() if launcher != "inline" else 0  # inline, it is the worker
    outcome = Outcome(
        metrics={},
        unit={"epochs": trained.epochs},
        counts=trained.counts,
        clock=clock,
        startup_seconds=trained.startup_seconds,
        parameters=parameter_count(components.model),
        peak_rss_bytes=trained.peak_rss_bytes + driver,
        target=None if trained.target is None else dict(trained.target),
        privacy=_spent(run, run_dir, components),
        canaries=None if canaries is None else canaries.told(),
        pruned=trained.pruned,
        packages=("ray",) if launcher == "ray" else (),
    )
    with Tracker(run_dir.metrics, listeners(run, run_dir.path, display.say)) as tracker:
        sums = trained.final.items()
        final = {split: components.task.metrics.from_vector(vector) for split, vector in sums}
        write_outcome(run, "distributed", run_dir, tracker, final, outcome, display)


def _account(
    privacy: DpSgd, run: Run, run_dir: RunDirectory, components: Components, saved: Any = None
) -> Account:
    dataset = components.dataset
    examples, content = len(dataset.train), dataset.content
    return Account(privacy, run, examples, run_dir.ledger, saved, content, dataset.releases)


def _spent(run: Run, run_dir: RunDirectory, components: Components) -> dict[str, Any] | None:
    """Return what was promised and spent, of a run with privacy, and charge the project no more."""
    privacy = privacy_of(run.distributed)
    if privacy is None:
        return None
    with closing(_account(privacy, run, run_dir, components)) as account:
        if (project := _project(run, run_dir, components, privacy)) is not None:
            account.end(project)
        return account.result()


@contextmanager
def giving_back(run: Run, run_dir: RunDirectory, components: Components) -> Iterator[None]:
    """If the block is not finished, give back what the run has reserved for the rest of it.

    Not while a worker may go on for a moment: then that stays reserved until the run goes on.
    """
    try:
        yield
    except BaseException:
        if run.privacy.ledger is not None and worker_lock.is_clear(run_dir.path):
            _spent(run, run_dir, components)
        raise


def _project(
    run: Run, run_dir: RunDirectory, components: Components, privacy: DpSgd
) -> ProjectCharges | None:
    dataset = components.dataset
    count = len(dataset.train)
    return project_charges(run, "distributed", run_dir.path, dataset.content, privacy, count)
