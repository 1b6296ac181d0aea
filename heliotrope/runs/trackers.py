"""TensorBoard and MLflow, which follow a run's metrics.jsonl; both packages are optional.

They show the numbers of metrics.jsonl under the same names, by optimizer steps.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from pathlib import Path

from heliotrope.config import Run
from heliotrope.runs.follower import Follower
from heliotrope.runs.sinks import MlFlow, Sink, TensorBoard
from heliotrope.system.redaction import masked

__all__ = ["check_trackers", "listeners", "tell_end"]

_log = logging.getLogger(__name__)

_PATIENCE = 10.0  # seconds: MLflow tries for minutes to reach a server that is gone
_STOPPED = 2.0  # of a run that was told to stop


def listeners(
    run: Run,
    directory: Path,
    say: Callable[[str], None] | None = None,
    *,
    begun: bool = False,
) -> tuple[Follower, ...]:
    """Return the trackers that `run` asks for, to be given to a `Tracker`, which closes them.

    Each works in a thread of its own: neither its failure nor a slow server holds up the run.
    What it has not taken at the end is told to `say`; without one, as in a worker, it is left to
    the next process that calls this. `begun` says that the run has its place in metrics.jsonl
    already; otherwise the first event or the `Tracker`'s rewind does.
    """
    followers = _followers(run, directory, _PATIENCE, say)
    for follower in followers if begun else ():
        follower.wake()
    return followers


def check_trackers(run: Run, directory: Path, say: Callable[[str], None]) -> threading.Thread:
    """Tell `say` as soon as it is known, from a thread, which trackers will not take the run."""

    def check() -> None:
        for sink, _ in _sinks(run, directory):
            try:
                sink.check()
            except Exception as error:  # noqa: BLE001 - cosmetic beside the run's results
                _log.warning("%s", sink.name, exc_info=True)
                why = masked((str(error).strip().splitlines() or [type(error).__name__])[0])
                say(f"{sink.name} shows nothing of this run, which goes on without it: {why}")

    thread = threading.Thread(target=check, daemon=True, name="trackers")
    thread.start()
    return thread


def tell_end(run: Run, directory: Path, status: str, say: Callable[[str], None]) -> None:
    """Tell the trackers how a run ended that was not completed: `failed` or `interrupted`."""
    patience = _STOPPED if status == "interrupted" else _PATIENCE
    for follower in _followers(run, directory, patience, say):
        follower.close(status)


def _followers(
    run: Run, directory: Path, patience: float, say: Callable[[str], None] | None
) -> tuple[Follower, ...]:
    metrics = directory / "metrics.jsonl"
    sinks = _sinks(run, directory)
    return tuple(Follower(sink, metrics, directory / at, patience, say) for sink, at in sinks)


def _sinks(run: Run, directory: Path) -> list[tuple[Sink, str]]:
    """Return what `run` asks for, each with the file in which a follower notes how far it is."""
    wanted: list[tuple[Sink, str]] = []
    if run.tracking.tensorboard:
        wanted.append((TensorBoard(directory / "tensorboard"), ".tensorboard.at"))
    if run.tracking.mlflow is not None:
        wanted.append((MlFlow(run, run.tracking.mlflow, directory / ".mlflow"), ".mlflow.at"))
    return wanted
