"""TensorBoard and MLflow, which follow a run's metrics.jsonl; both packages are optional.

They show the numbers of metrics.jsonl under the same names, by optimizer steps.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from heliotrope.config import Run
from heliotrope.runs.follower import Follower
from heliotrope.runs.sinks import MlFlow, Sink, TensorBoard

__all__ = ["listeners", "tell_end"]

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


def tell_end(run: Run, directory: Path, status: str, say: Callable[[str], None]) -> None:
    """Tell the trackers how a run ended that was not completed: `failed` or `interrupted`."""
    patience = _STOPPED if status == "interrupted" else _PATIENCE
    for follower in _followers(run, directory, patience, say):
        follower.close(status)


def _followers(
    run: Run, directory: Path, patience: float, say: Callable[[str], None] | None
) -> tuple[Follower, ...]:
    wanted: list[tuple[Sink, str]] = []
    if run.tracking.tensorboard:
        wanted.append((TensorBoard(directory / "tensorboard"), ".tensorboard.at"))
    if run.tracking.mlflow is not None:
        wanted.append((MlFlow(run, run.tracking.mlflow, directory / ".mlflow"), ".mlflow.at"))
    metrics = directory / "metrics.jsonl"
    return tuple(Follower(sink, metrics, directory / at, patience, say) for sink, at in wanted)
