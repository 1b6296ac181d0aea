"""A job's time in its run directory: claimed, logged and displayed, resumed, given up."""

from __future__ import annotations

import logging
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from heliotrope.config import Mode, Run, from_resolved
from heliotrope.config.horizon import horizon_of, moved
from heliotrope.errors import ConfigError, HeliotropeError, RunDirectoryError, RunFailedError
from heliotrope.plugin_loading import raised
from heliotrope.runs import checkpoint
from heliotrope.runs.changed_plugins import changed_plugins
from heliotrope.runs.checkpoint import Checkpoint
from heliotrope.runs.directory import RunDirectory
from heliotrope.runs.display import OUTPUT_CLOSED, Display
from heliotrope.runs.events import Tracker, log_to, stop_logging
from heliotrope.runs.trackers import check_trackers, tell_end
from heliotrope.system.redaction import masked
from heliotrope.system.signals import code_of

__all__ = ["newest_checkpoint", "run_directory"]

_log = logging.getLogger(__name__)


@contextmanager
def run_directory(
    run: Run, mode: Mode, directory: Path, who: str
) -> Iterator[tuple[RunDirectory, Display]]:
    """Claim the run's directory, and log as `who` and display there, inside the block."""
    run_dir = RunDirectory(directory)
    run_dir.claim(run, mode)
    handler = log_to(run_dir.log, who)
    unit, total = _length(run, mode)
    display = Display(f"{mode} {run.name}", unit, total)
    try:
        with display:
            if run_dir.unprotected is not None:
                warning = (
                    f"hydra.run.dir={run_dir.path}: {run_dir.unprotected}. See to it that no "
                    "process of another machine uses this directory, or choose one on another "
                    "file system."
                )
                _log.warning(warning)
                display.say(warning, style="yellow")
            if run.tracking.mlflow is not None:
                check_trackers(run, run_dir.path, display.say)
            yield run_dir, display
    except ConfigError:  # nothing was started
        raise
    except BaseException as error:
        how, why = _end_of(error)
        expected = isinstance(error, HeliotropeError) or not isinstance(error, Exception)
        _log.error("%s: %s", how, why, exc_info=not expected)
        tell_end(run, run_dir.path, how, display.say)
        with suppress(RunFailedError), Tracker(run_dir.metrics) as tracker:
            tracker.emit("end", status=how, reason=masked(why))
        raise
    finally:
        stop_logging(handler)
        run_dir.release()


def _end_of(error: BaseException) -> tuple[str, str]:
    """Return how a run ended that was not completed, `failed` or `interrupted`, and why."""
    if isinstance(error, Exception):
        return "failed", str(error) if isinstance(error, HeliotropeError) else raised(error, "")
    code = code_of(error)
    if code == 128 + signal.SIGPIPE:
        return "interrupted", OUTPUT_CLOSED
    return "interrupted", type(error).__name__ if code is None else signal.Signals(code - 128).name


def newest_checkpoint(
    run: Run, mode: Mode, run_dir: RunDirectory, display: Display, *, mapped: bool = False
) -> Checkpoint | None:
    """Return the checkpoint to go on from, `mapped` or not, or None if there is none yet.

    A damaged one is refused aloud and the one before it taken. Raises `RunDirectoryError` if
    more epochs or rounds are begun already than the config asks for.
    """

    def loudly(line: str) -> None:
        _log.error(line)
        display.say(line, style="red")

    saved = checkpoint.latest(run_dir.checkpoints, loudly, mapped=mapped)
    if saved is None:
        display.say(f"there is nothing to resume in {run_dir.path} yet: beginning")
        return None
    unit, total = _length(run, mode)
    with checkpoint.understood(checkpoint.path_of(run_dir.checkpoints, saved.progress)):
        done, step = int(saved.state[unit]), int(saved.state.get("step", 0))
    begun = done + (step > 0)
    if begun > total:
        raise RunDirectoryError(
            f"{mode}.{unit}s={total}, but hydra.run.dir={run_dir.path} has done {begun} already. "
            f"Set {mode}.{unit}s={begun} or more to continue it, or choose another directory."
        )
    earlier = from_resolved(run_dir.config, with_plugins=False)
    changed = changed_plugins(run_dir.config, run)
    warnings = (
        moved(horizon_of(earlier, mode), horizon_of(run, mode)),
        f"resuming with other code: {changed}" if changed else None,
    )
    for warning in filter(None, warnings):
        _log.warning(warning)
        display.say(warning, style="yellow")
    within = f", step {step} of the next" if step else ""
    display.say(f"resuming after {unit} {done}{within}")
    display.at(done)
    return saved


def _length(run: Run, mode: Mode) -> tuple[str, int]:
    if mode == "distributed":
        return "epoch", run.distributed.epochs
    return "round", run.federated.rounds
