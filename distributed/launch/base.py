"""Three launchers of one worker: `inline`, `torchrun`, `ray`; each gives a run its workers.

A launcher is opened once a run and starts workers once an attempt.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from heliotrope.runs.display import Display

from ..attempt import RunAttempt, TrainingResult, WorkerResources

if TYPE_CHECKING:
    from heliotrope.data import Dataset
    from heliotrope.system.signals import Stop

__all__ = ["Launcher"]


class Launcher(Protocol):
    """Starts the workers of an attempt and waits for them.

    `launch` raises `WorkerFailure` if a worker died, a `HeliotropeError` if another attempt
    would end the same; no worker outlives it. Once `stop` has been asked it makes the workers
    stop, as soon as their state is saved; it may do so by itself, to gather more.
    """

    def gather(self) -> tuple[int, WorkerResources]:
        """Find room for an attempt's workers; return how many, and what each has.

        Raises `ResourceError` if there is not enough, also after waiting for what was lost.
        """

    def launch(
        self, attempt: RunAttempt, dataset: Dataset, display: Display, stop: Stop
    ) -> TrainingResult:
        """Run the workers of one attempt to their end."""
