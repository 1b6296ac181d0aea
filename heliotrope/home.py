"""A job's time in its run directory: claimed, logged and displayed, resumed, given up."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from heliotrope import checkpoint
from heliotrope.checkpoint import Checkpoint
from heliotrope.config import Mode, Run
from heliotrope.display import Display
from heliotrope.errors import ConfigError, RunDirectoryError
from heliotrope.rundir import RunDirectory
from heliotrope.trackers import tell_end
from heliotrope.tracking import log_to, stop_logging

__all__ = ["at_home", "newest_checkpoint"]

_log = logging.getLogger(__name__)


@contextmanager
def at_home(
    run: Run, mode: Mode, directory: Path, who: str
) -> Iterator[tuple[RunDirectory, Display]]:
    """Claim the run's directory, and log as `who` and display there, inside the block."""
    home = RunDirectory(directory)
    home.claim(run, mode)
    handler = log_to(home.log, who)
    unit, total = _length(run, mode)
    try:
        with Display(f"{mode} {run.name}", unit, total) as display:
            yield home, display
    except ConfigError:  # nothing was started
        raise
    except BaseException as error:
        tell_end(run, home.path, "failed" if isinstance(error, Exception) else "interrupted")
        raise
    finally:
        stop_logging(handler)
        home.release()


def newest_checkpoint(
    run: Run, mode: Mode, home: RunDirectory, display: Display
) -> Checkpoint | None:
    """Return the checkpoint to go on from, or None if there is none yet.

    A damaged one is refused aloud and the one before it taken. Raises `RunDirectoryError` if
    more epochs or rounds are begun already than the config asks for.
    """

    def loudly(line: str) -> None:
        _log.error(line)
        display.say(line, style="red")

    saved = checkpoint.latest(home.checkpoints, loudly)
    if saved is None:
        return None
    unit, total = _length(run, mode)
    done, step = int(saved.state[unit]), int(saved.state.get("step", 0))
    begun = done + (step > 0)
    if begun > total:
        raise RunDirectoryError(
            f"{mode}.{unit}s={total}, but hydra.run.dir={home.path} has done {begun} already. "
            f"Set {mode}.{unit}s={begun} or more to continue it, or choose another directory."
        )
    within = f", step {step} of the next" if step else ""
    display.say(f"resuming after {unit} {done}{within}")
    display.at(done)
    return saved


def _length(run: Run, mode: Mode) -> tuple[str, int]:
    if mode == "distributed":
        return "epoch", run.distributed.epochs
    return "round", run.federated.rounds
