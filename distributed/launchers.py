"""Three launchers of one worker: `inline`, `torchrun`, `ray`; each gives a run its workers.

A launcher is opened once a run and starts workers once an attempt. What it needs is imported
when it is chosen: `inline` and `torchrun` work where Ray is not installed.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Protocol

from heliotrope.config import Run
from heliotrope.display import Display

from .attempt import Attempt, Share, Trained

if TYPE_CHECKING:
    from heliotrope.data import Dataset

    from .stop import Stop

__all__ = ["Launcher", "opened"]


class Launcher(Protocol):
    """Starts the workers of an attempt and waits for them.

    `launch` raises `WorkerFailure` if a worker died, a `HeliotropeError` if another attempt
    would end the same; no worker outlives it. Once `stop` has been asked it makes the workers
    stop, as soon as their state is saved; it may do so by itself, to gather more.
    """

    def gather(self) -> tuple[int, Share]:
        """Find room for an attempt's workers; return how many, and what each has.

        Raises `ResourceError` if there is not enough, also after waiting for what was lost.
        """

    def launch(self, attempt: Attempt, dataset: Dataset, display: Display, stop: Stop) -> Trained:
        """Run the workers of one attempt to their end."""


def opened(run: Run) -> AbstractContextManager[Launcher]:
    """Open the launcher that `run` names; `ResourceError` if it lacks the CPUs or GPUs."""
    match run.distributed.launcher:
        case "ray":
            from .ray_launcher import ray_launcher

            return ray_launcher(run)
        case "torchrun":
            from .torchrun import torchrun_launcher

            return torchrun_launcher(run)
        case _:
            from .inline import inline_launcher

            return inline_launcher(run)
